"""A sweep as a job: `ray job submit`, `ray job stop`, and the same again, on a real head with its dashboard."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from offrl_ray import checkpoint
from tests.distributed.test_ray_up import free_ports
from tests.distributed.user import ROOT, Record, Session, log_of, redone, results, violations

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(
        find_spec("aiohttp_cors") is None, reason="the dashboard is not installed: pip install -e .[dashboard]"
    ),
]
RAY = Path(sys.executable).with_name("ray")
EVAL_EVERY, STEPS = 200, 1600
SIZES = {"algo.cql_alpha": "0,1", "train.steps": STEPS, "train.report_every": 10, "eval.every": EVAL_EVERY}


class Cluster:
    """A head with the job API on localhost, in a home of its own."""

    def __init__(self, folder: Path):
        self.home, self.temp = folder / "home", folder / "ray"
        self.temp.mkdir(mode=0o700)
        (self.home / ".ray").mkdir(mode=0o700, parents=True)
        port, dashboard, agent, client = free_ports(4)
        self.url = f"http://127.0.0.1:{dashboard}"
        made = self.ray("get-auth-token", "--generate")
        assert made.returncode == 0, made.stdout
        ports = [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
        ports += [f"--ray-client-server-port={client}", "--dashboard-host=127.0.0.1"]
        env = {"RAY_AUTH_MODE": "token", "RAY_TMPDIR": str(self.temp), "RAY_USAGE_STATS_ENABLED": "0"}
        env |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # whose `python` the entrypoint is
        argv = ("start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2", *ports)
        self.head = Session(self.home, RAY, *argv, env=env)
        self.head.until(lambda: self.ray("job", "list", "--address", self.url).returncode == 0)

    def ray(self, *argv: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        own = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        own |= {"HOME": str(self.home), "RAY_AUTH_MODE": "token", "RAY_TMPDIR": str(self.temp), **env}
        return subprocess.run(
            [RAY, *argv], env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200, umask=0o077
        )

    def submit(self, name: str, out: Path, **env: str) -> subprocess.CompletedProcess[str]:
        """cluster/README.md's submission, of a small sweep."""
        runtime = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}}
        options = ["--address", self.url, "--submission-id", name, "--no-wait", "--working-dir", ROOT]
        options += ["--runtime-env-json", json.dumps(runtime)]
        script = ["python", "tune_configs/tune_cql_dqn.py", "--preset", "smoke", "--address", "auto", "--out", out]
        sizes = [arg for k, v in SIZES.items() for arg in ("--set", f"{k}={v}")]
        return self.ray("job", "submit", *options, "--", *script, *sizes, **env)

    def ended(self, name: str, seconds: float = 300) -> str:
        """How: succeeded, failed or stopped; in Ray's words of a job that has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            told = self.ray("job", "status", "--address", self.url, name).stdout
            if found := re.search(f"Job '{name}' (?:was )?(succeeded|failed|stopped)", told):
                return found[1]
            time.sleep(0.5)
        raise TimeoutError(self.logs(name))

    def logs(self, name: str) -> str:
        return self.ray("job", "logs", "--address", self.url, name).stdout

    def driver(self) -> int:
        (pid,) = (p for p, title in self.head.processes().items() if title.startswith("python tune_configs/"))
        return pid


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="job-", dir="/tmp"))  # short: Ray's sockets lie below it
    started = Cluster(folder)
    try:
        yield started
    finally:
        started.head.close()
        shutil.rmtree(folder, ignore_errors=True)


def trained(folder: Path, session: int) -> int:
    """Reports since that session began."""
    log = log_of(folder)
    begins = [i for i, r in enumerate(log) if r["kind"] == "session"]
    return sum(r["kind"] == "train" for r in log[begins[session] :]) if len(begins) > session else 0


def last_steps(log: list[Record]) -> dict[str, int]:
    return {r["trial"]: r["step"] for r in log if r["kind"] == "train"}


def test_a_job_that_is_stopped_and_killed_and_submitted_again(cluster: Cluster, tmp_path: Path) -> None:
    """It stops cleanly, repeats nothing but what came after a checkpoint, and ends as if nothing had happened."""
    assert cluster.submit("undisturbed", tmp_path / "whole").returncode == 0
    assert cluster.ended("undisturbed") == "succeeded", cluster.logs("undisturbed")
    folder = tmp_path / "cut" / "cql_dqn-smoke"

    assert cluster.submit("first", tmp_path / "cut").returncode == 0
    cluster.head.until(lambda: trained(folder, 0) >= 20)
    assert "Job 'first' was stopped" in cluster.ray("job", "stop", "--address", cluster.url, "first").stdout
    assert "SIGTERM: saving what runs" in cluster.logs("first")
    assert violations(folder) == []
    for trial, step in last_steps(log_of(folder)).items():
        assert max(checkpoint.steps(folder / "trials" / trial)) >= step

    assert cluster.submit("second", tmp_path / "cut").returncode == 0
    cluster.head.until(lambda: trained(folder, 1) >= 20)
    os.kill(cluster.driver(), signal.SIGKILL)
    assert cluster.ended("second") == "failed"
    after_stop = redone(log_of(folder))
    assert after_stop
    assert set(after_stop) == {0}
    assert violations(folder) == []

    assert cluster.submit("third", tmp_path / "cut").returncode == 0
    assert cluster.ended("third") == "succeeded", cluster.logs("third")
    after_kill = redone(log_of(folder))[len(after_stop) :]
    assert after_kill
    assert max(after_kill) <= EVAL_EVERY
    assert violations(folder) == []
    assert results(log_of(folder)) == results(log_of(tmp_path / "whole" / "cql_dqn-smoke"))


def test_a_submission_without_the_token_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    stranger = {"HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    refused = cluster.submit("stranger", tmp_path / "runs", **stranger)
    assert refused.returncode != 0
    assert "Missing authentication token" in refused.stdout
    assert "stranger" not in cluster.ray("job", "list", "--address", cluster.url).stdout
    assert not (tmp_path / "runs").exists()
