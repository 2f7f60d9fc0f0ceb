"""A sweep as a user starts it, and what an accident can do to its processes."""

import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from offrl_ray import checkpoint, records
from offrl_ray.sweep import fsck

ROOT = Path(__file__).parents[2]
Record = dict[str, Any]
POLL_SECONDS = 0.02


def log_of(folder: Path) -> list[Record]:
    try:
        return records.read(folder).records
    except FileNotFoundError:
        return []


def violations(folder: Path) -> list[str]:
    """What `offrl-ray fsck` finds, checkpoints and all; nothing in a folder that has no records yet."""
    return fsck.check(folder, lambda p: checkpoint.load(p).digest).violations if log_of(folder) else []


def results(log: list[Record]) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Every training report by (trial, seed, step), and every evaluation, episode by episode; the newest counts."""
    train = {(r["trial"], r["seed"], r["step"]): r["metrics"] for r in log if r["kind"] == "train"}
    keys = ("digest", "episode_seeds", "success_once", "success_at_end", "return", "length")
    keys += ("q_start", "discounted_return")
    evals = {(r["trial"], r["seed"], r["step"]): [r[k] for k in keys] for r in log if r["kind"] == "eval"}
    return train, evals


def redone(log: list[Record]) -> list[int]:
    """Per restart of a trial: the reported steps that it trained again."""
    found, reported = [], dict[str, int]()
    for r in log:
        if r["kind"] == "start" and r["trial"] in reported:
            found.append(max(0, reported[r["trial"]] - r["step"]))
        elif r["kind"] == "train":
            reported[r["trial"]] = max(r["step"], reported.get(r["trial"], 0))
    return found


class Session:
    """A command in a process group of its own. What it starts inherits a mark, by which it is found again."""

    def __init__(self, home: Path, *argv: str | Path, env: dict[str, str] | None = None, terminal: int | None = None):
        self.mark, self.out = uuid.uuid4().hex, home / f"out-{uuid.uuid4().hex[:8]}.txt"
        own = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "PYTHONPATH": str(ROOT)}
        # SPT_NOENV: Ray changes its processes' titles, which would else overwrite the mark
        own |= {"OMP_NUM_THREADS": "1", "SPT_NOENV": "1", "SESSION_MARK": self.mark}
        own["RAY_ADDRESS"] = "local"  # whatever Ray of somebody's runs here
        with self.out.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, argv)],
                env={**os.environ, **own, **(env or {})},
                stdout=out if terminal is None else terminal,
                stderr=out if terminal is None else terminal,
                start_new_session=True,
                preexec_fn=terminal and partial(fcntl.ioctl, terminal, termios.TIOCSCTTY, 0),
            )

    @property
    def text(self) -> str:
        return self.out.read_text()

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    def until(self, what: Callable[[], Any], seconds: float = 120) -> Any:
        """The first true answer; raises TimeoutError if none comes while it runs, or in so many seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            running = self.runs
            if answer := what():
                return answer
            if not running:
                break
            time.sleep(POLL_SECONDS)
        raise TimeoutError(f"it did not happen; the driver's exit code is {self.process.poll()}\n{self.text[-3000:]}")

    def gone(self, seconds: float = 120) -> None:
        """Wait until no trial and no evaluator of it lives; Ray's own helpers, which touch nothing, may take a minute.

        Raises TimeoutError.
        """
        deadline = time.monotonic() + seconds
        while left := [t for t in self.processes().values() if t.startswith("ray::") and "Agent" not in t]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"still there: {left}")
            time.sleep(POLL_SECONDS)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def send_all(self, number: signal.Signals) -> None:
        """To its process group, as `timeout` does."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def ended(self, seconds: float = 200) -> int:
        """Its exit code."""
        return self.process.wait(seconds)

    def processes(self) -> dict[int, str]:
        """Pid -> title of the driver and all that it has started, dead ones not counted."""
        mark = f"SESSION_MARK={self.mark}".encode()
        return {pid: title for pid, title, environ in all_processes() if mark in environ}

    def actors(self, *names: str) -> list[int]:
        """Pids of Ray actors whose class begins so; an actor's title tells its class and what it does."""
        starts = tuple(f"ray::{name}" for name in names)
        return [pid for pid, title in self.processes().items() if title.startswith(starts)]

    def close(self) -> None:
        """End whatever is left of it."""
        for pid in [self.process.pid, *self.processes()]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


@contextmanager
def sessions() -> Iterator[Callable[..., Session]]:
    """`Session`; each one that it makes is closed in the end."""
    begun: list[Session] = []

    def begin(*args: Any, **more: Any) -> Session:
        begun.append(Session(*args, **more))
        return begun[-1]

    try:
        yield begin
    finally:
        for session in begun:
            session.close()


def all_processes() -> Iterator[tuple[int, str, bytes]]:
    for path in Path("/proc").glob("[0-9]*"):
        try:
            title = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            environ = (path / "environ").read_bytes()
        except OSError:  # it is gone, or another user's
            continue
        if title:
            yield int(path.name), title, environ
