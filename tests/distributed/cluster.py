"""A Ray of several nodes on this machine, as `ray start` makes it: each node its own raylet and temp folder."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.distributed.user import ROOT, all_processes

MEMORY = 80 * 2**20


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


class Cluster:
    """Its processes are found again by a mark in their environment."""

    def __init__(self, home: Path, token: bool = True):
        self.home, self.port = home, free_port()
        self.place = Path(tempfile.mkdtemp(prefix="n", dir="/tmp"))  # short, for the paths of sockets
        self.marks: dict[str, str] = {}
        self.mode = "token" if token else "disabled"
        if token:
            path = home / ".ray" / "auth_token"
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.write_text(secrets.token_hex(32))
            path.chmod(0o600)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def add(self, name: str, cpus: int, gpus: int = 0, **env: str) -> None:
        """Start a node, the first as the head."""
        where = ["--head", "--port", str(self.port), "--include-dashboard=false"]
        where = ["--address", self.address] if self.marks else where
        self.marks[name] = secrets.token_hex(8)
        own = {"HOME": str(self.home), "RAY_AUTH_MODE": self.mode, "RAY_TMPDIR": str(self.place), "NODE_MARK": name}
        own |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SPT_NOENV": "1", "NODE_MARK": self.marks[name]}
        has = ["--num-cpus", str(cpus), "--num-gpus", str(gpus), "--object-store-memory", str(MEMORY)]
        ray = Path(sys.executable).with_name("ray")
        done = subprocess.run(
            [ray, "start", *where, *has, "--node-name", name, "--disable-usage-stats"],
            env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | own | env,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def processes(self, name: str) -> dict[int, str]:
        """Pid -> title of a node's raylet and all that it has started."""
        mark = f"NODE_MARK={self.marks[name]}".encode()
        return {pid: title for pid, title, environ in all_processes() if mark in environ}

    def actors(self, name: str, kind: str) -> list[int]:
        return [pid for pid, title in self.processes(name).items() if title.startswith(f"ray::{kind}")]

    def kill(self, name: str) -> None:
        """As a machine that loses its power."""
        for pid in self.processes(name):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def close(self) -> None:
        for name in reversed(self.marks):
            self.kill(name)
        shutil.rmtree(self.place, ignore_errors=True)
