"""cluster/slurm.sbatch as Slurm runs it, on one node: `srun` and `scontrol` are stand-ins, `ray symmetric-run` is real.

It runs among processes and ports of its own: `ray symmetric-run` refuses a machine with another Ray, and at its end
stops every Ray that it sees.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.user import ROOT, Session, log_of, redone, violations

pytestmark = pytest.mark.ray
APART = ["unshare", "--user", "--map-root-user", "--pid", "--net", "--fork", "--kill-child", "--mount-proc"]
EXEC = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"
NODE = "10.9.9.9"
STAND_INS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": f'if [ "$1" = show ]; then echo {NODE}; else echo "$@" >> "$HOME/requeued"; fi',
}


@pytest.fixture
def home() -> Iterator[Path]:
    missing = [p for p in ("unshare", "ip") if not shutil.which(p)]
    if missing or subprocess.run([*APART, "true"], capture_output=True).returncode:
        pytest.skip("`unshare` with `ip link` is not possible on this machine, for this user")
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    for name, text in STAND_INS.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
    (folder / "repository").mkdir()
    (folder / "repository/.venv").symlink_to(sys.prefix)
    # a cheaper sweep under the name that the script starts
    (folder / "repository/tune_configs").mkdir()
    (folder / "repository/tune_configs/tune_cpql.py").symlink_to(ROOT / "tune_configs/tune_cql_dqn.py")
    yield folder
    shutil.rmtree(folder)


def job(home: Path, *argv: str) -> Session:
    env = {"SLURM_SUBMIT_DIR": str(home / "repository"), "SLURM_JOB_ID": str(os.getpid()), "SLURM_NNODES": "1"}
    env |= {"SLURM_JOB_NODELIST": "localhost", "SLURM_CPUS_PER_TASK": "2", "OUT": str(home / "runs"), "NAME": "sweep"}
    env |= {"PATH": f"{home / 'bin'}:{os.environ['PATH']}"}
    network = f'ip link set lo up && ip address add {NODE} dev lo && exec "$@"'
    node = [*APART, "bash", "-c", network, "node", "bash", ROOT / "cluster/slurm.sbatch", *argv]
    return Session(home, "-c", EXEC, *node, env=env)


def test_a_job_that_is_told_to_end_is_queued_again_and_goes_on(home: Path) -> None:
    folder = home / "runs/sweep"
    argv = ["--preset", "smoke", "--address", "auto", "--set", "algo.cql_alpha=0,1"]
    argv += ["--set", "train.steps=1600", "--set", "eval.every=200"]
    first = job(home, *argv)
    try:
        first.until(lambda: [r for r in log_of(folder) if r["kind"] == "train"])
        titles = first.processes().items()
        (script,) = (pid for pid, title in titles if title.startswith(f"bash {ROOT / 'cluster/slurm.sbatch'}"))
        os.kill(script, signal.SIGUSR1)
        first.ended()
        assert (home / "requeued").read_text().split() == ["requeue", str(os.getpid())]
        assert violations(folder) == []
        assert oct((home / ".ray/auth_token").stat().st_mode & 0o777) == "0o600"
    finally:
        first.close()
    again = job(home, *argv)
    try:
        assert again.ended() == 0, again.text
        assert "2 completed" in again.text
    finally:
        again.close()
    assert set(redone(log_of(folder))) == {0}
    assert violations(folder) == []
