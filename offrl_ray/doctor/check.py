"""What a check says."""

import subprocess
from collections.abc import Sequence
from typing import NamedTuple

GiB = 2**30


class Check(NamedTuple):
    name: str
    status: str  # ok, warn or fail
    found: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.status:5} {self.name:14} {self.found}{f'; {self.fix}' if self.fix else ''}"


def ok(name: str, found: str) -> Check:
    return Check(name, "ok", found)


def warn(name: str, found: str, fix: str = "") -> Check:
    return Check(name, "warn", found, fix)


def fail(name: str, found: str, fix: str = "") -> Check:
    return Check(name, "fail", found, fix)


def output(command: Sequence[str], seconds: float) -> str:
    """A command's standard output. Raises OSError, CalledProcessError and TimeoutExpired."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True)
    return done.stdout
