"""cluster/onprem.yaml for real: `ray up`, `ray submit` and `ray down` over SSH to this machine.

The SSH server is one of the test's own: on the pipe of each connection instead of a port, for a throw-away key, with
another home than the user's. The Ray has ports and a temporary directory of its own.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from offrl_ray.records import FILE, read
from offrl_ray.sweep.status import driver_runs
from tests.distributed.user import ROOT, all_processes, log_of, violations

pytestmark = [pytest.mark.ray, pytest.mark.sim]
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
NEEDED = {"sshd": "openssh-server", "ssh": "openssh-client", "rsync": "rsync", "pkill": "procps", "tmux": "tmux"}
RAY = Path(sys.executable).with_name("ray")
SCRIPT = "tune_configs/tune_cpql.py"
POINTS = 2


def free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Host:
    """A home on this machine that is reached by SSH, and the user who launches a cluster on it."""

    def __init__(self, folder: Path):
        self.home, self.user, self.ssh = folder / "host", folder / "user", folder / "ssh"
        self.temp, self.mark, self.yaml = folder / "ray", uuid.uuid4().hex, folder / "onprem.yaml"
        for path in (self.home / "offrl-ray", self.user, self.user / "tmp", self.ssh):
            path.mkdir(parents=True)
        # as if cluster/install.sh had been there: what it does takes minutes
        (self.home / "offrl-ray/venv").symlink_to(sys.prefix)
        self._server()
        self._token()
        self.yaml.write_text(yaml.safe_dump(self._cluster()))

    def _server(self) -> None:
        for name in ("host", "key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.ssh / name], check=True)
        env = {
            "HOME": self.home,
            "RAY_TMPDIR": self.temp,
            "TMUX_TMPDIR": self.home,
            "SESSION_MARK": self.mark,
            "SPT_NOENV": 1,
            "PYTHONPATH": ROOT,
        }
        lines = {
            "HostKey": self.ssh / "host",
            "AuthorizedKeysFile": self.ssh / "key.pub",
            "StrictModes": "no",  # the folders above belong to pytest
            "UsePAM": "no",
            "SetEnv": " ".join(f"{k}={v}" for k, v in env.items()),
        }
        (self.ssh / "config").write_text("".join(f"{k} {v}\n" for k, v in lines.items()))
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where root's server wants to be jailed; a package's start makes it

    @property
    def proxy(self) -> str:
        return f"{shutil.which('sshd', path=PATH)} -i -f {self.ssh / 'config'}"

    def _token(self) -> None:
        """As cluster/README.md makes it."""
        (self.user / ".ray").mkdir(mode=0o700)
        made = self.ray("get-auth-token", "--generate", umask=0o077)
        assert made.returncode == 0, made.stdout

    def _cluster(self) -> dict:
        """cluster/onprem.yaml with what a user edits, the ports of this test, and without the installation."""
        config = yaml.safe_load((ROOT / "cluster/onprem.yaml").read_text())
        config["cluster_name"] = self.temp.parent.name
        config["provider"] |= {"head_ip": "127.0.0.1", "worker_ips": []}
        config["max_workers"] = 0
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        key = str(self.ssh / "key")
        config["auth"] = {"ssh_user": user, "ssh_private_key": key, "ssh_proxy_command": self.proxy}
        install, *rest = config["setup_commands"]
        assert install.startswith("bash ~/offrl-ray/cluster/install.sh ")
        config["setup_commands"] = rest
        stop, start = config["head_start_ray_commands"]
        port, dashboard, agent, client = free_ports(4)
        assert "--port=6379" in start
        start = start.replace("--port=6379", f"--port={port} --dashboard-port={dashboard}")
        start += f" --dashboard-agent-listen-port={agent} --ray-client-server-port={client}"
        config["head_start_ray_commands"] = [stop, start]
        return config

    def reachable(self) -> str:
        """Why not, in the server's words; empty if it is."""
        options = ["-F", "none", "-i", self.ssh / "key", "-o", f"ProxyCommand={self.proxy}", "-o", "BatchMode=yes"]
        options += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes"]
        user = yaml.safe_load(self.yaml.read_text())["auth"]["ssh_user"]
        done = subprocess.run(
            ["ssh", *options, f"{user}@127.0.0.1", "echo ~"], capture_output=True, text=True, timeout=60
        )
        return "" if done.stdout.strip() == str(self.home) else done.stdout + done.stderr

    def ray(self, *argv: str | Path, umask: int = 0o022, seconds: float = 400) -> subprocess.CompletedProcess[str]:
        """A `ray` command as the user types it in the root of the repository."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        env |= {"HOME": str(self.user), "TMPDIR": str(self.user / "tmp"), "RAY_TMPDIR": str(self.user / "tmp")}
        return subprocess.run(
            [RAY, *argv],
            cwd=ROOT,
            env=env | {"SESSION_MARK": self.mark, "RAY_USAGE_STATS_ENABLED": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            umask=umask,
        )

    def processes(self) -> dict[int, str]:
        """Pid -> title of all that was started on it."""
        mark = f"SESSION_MARK={self.mark}".encode()
        return {pid: title for pid, title, environ in all_processes() if mark in environ}

    def until(self, what: Callable[[], bool], seconds: float = 200) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, self.processes()
            time.sleep(0.2)

    def gone(self, seconds: float = 60) -> dict[int, str]:
        """What of it still runs after so long; ssh keeps a connection open for ten seconds."""
        deadline = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return left


@pytest.fixture
def host() -> Iterator[Host]:
    if missing := [package for program, package in NEEDED.items() if not shutil.which(program, path=PATH)]:
        pytest.skip(f"not on this machine: {', '.join(missing)} (apt-get install, as .ci/run does)")
    folder = Path(tempfile.mkdtemp(prefix="up-", dir="/tmp"))  # short: Ray's sockets lie below it
    launched = Host(folder)
    try:
        if reason := launched.reachable():
            pytest.skip(f"the SSH server does not let this user in: {reason}")
        yield launched
    finally:
        for pid in launched.processes():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder)


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that Ray's own `ray stop` would take for one of its own."""
    title = "python /x/ray/_private/log_monitor.py"
    with subprocess.Popen(["bash", "-c", f'exec -a "{title}" sleep 600']) as process:
        yield process
        process.kill()


def test_a_sweep_on_a_cluster_from_up_to_down(
    host: Host, bystander: subprocess.Popen[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = {}

    def ray(name: str, *argv: str | Path) -> str:
        begin = time.monotonic()
        done = host.ray(*argv)
        seconds[name] = time.monotonic() - begin
        assert done.returncode == 0, done.stdout
        return done.stdout

    args = ["--preset", "smoke", "--address", "auto", "--out", str(tmp_path), "--set", "algo.alpha=0,0.05"]
    args += ["--set", "algo.q_grad_mode=single_step"]
    folder = tmp_path / "cpql-smoke"
    ray("up", "up", "-y", host.yaml)
    assert {oct(p.stat().st_mode & 0o777) for p in (host.temp, host.home / ".ray")} == {"0o700"}
    assert oct((host.home / ".ray/auth_token").stat().st_mode & 0o777) == "0o600"
    ray("submit", "submit", "--tmux", host.yaml, SCRIPT, "--", *args)
    host.until(lambda: (folder / FILE).exists() and not driver_runs(folder))
    assert f"trials    {POINTS} completed" in ray("watch", "exec", host.yaml, f"offrl-ray status {folder}")
    ray("leave", "exec", host.yaml, "tmux kill-server")
    assert (host.home / "tune_cpql.py").exists()
    ends = [r["status"] for r in log_of(folder) if r["kind"] == "end"]
    assert ends == ["completed"] * POINTS
    assert violations(folder) == []
    before = read(folder).records
    assert "this sweep has ended; nothing to do" in ray("again", "submit", host.yaml, SCRIPT, *args)
    assert read(folder).records == before
    ray("down", "down", "-y", host.yaml)
    assert host.gone() == {}
    assert bystander.poll() is None, "a Ray that is not the cluster's was ended with it"
    with capsys.disabled():
        print("", {k: f"{v:.1f} s" for k, v in seconds.items()})
