"""The single writer of a folder's records, and the state that they add up to."""

import json
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import filelock

from offrl_ray import records, segments
from offrl_ray.errors import UsageError, plain
from offrl_ray.segments import LOCK
from offrl_ray.store import called, store
from offrl_ray.sweep.lease import Lease
from offrl_ray.sweep.state import NAME, State

Record = dict[str, Any]
LOOK_SECONDS = 1.0  # whoever only looks whether a driver runs has the lock for an instant


class Ledger:
    """Owns a folder for as long as it is open; that of a working copy on its store, too.

    Raises UsageError if another process does, and says which.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(folder / LOCK)
        self._writer: records.Writer | None = None
        at = store(folder)
        self._lease = Lease(folder, at) if at else None
        try:
            self._lock.acquire(timeout=LOOK_SECONDS)
        except filelock.Timeout:
            place = called(folder)
            raise UsageError([f"{place} is being written{_who(State.read(folder))}; {WAIT.format(place)}"]) from None
        try:
            if self._lease:
                self._lease.take()
            # before the log is read: what another driver writes after that, this one must meet and be fenced off
            self._after = segments.after(at) if at else 0
            self.log, self.problems = self._read()
            self.state = State(self.log)
        except BaseException:
            self._release()
            raise

    def _read(self) -> records.RecordLog:
        try:
            return records.read(self.folder, driver=True)
        except FileNotFoundError:
            return records.RecordLog([], [])

    def replay(self, learn: Callable[[Record], None]) -> None:
        """Build the state anew, and show every record to `learn` at the moment when the state has taken it in."""
        self.state = State()
        for record in self.log:
            self.state.add(record)
            learn(record)

    def write(self, batch: Sequence[Record], learn: Callable[[Record], None] = lambda record: None) -> None:
        """Make records durable, then add each to the state and show it to `learn`."""
        if not batch:
            return
        self._writer = self._writer or records.Writer(self.folder, self._after)
        for record in self._writer.write_all(batch):
            self.log.append(record)
            self.state.add(record)
            learn(record)

    def check(self, now: Record) -> None:
        """Raises UsageError unless the folder is free, or holds exactly the work of a plan on exactly its data."""
        check(self.folder, self.state, now)

    def close(self) -> None:
        if self._writer:
            self._writer.close()
        self._release()

    def _release(self) -> None:
        if self._lease:
            self._lease.release()
        self._lock.release()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


WAIT = "`offrl-ray status {0}` shows how far it is, `offrl-ray stop {0}` ends it"


def _who(state: State) -> str:
    s = state.session
    if s is None:
        return " by another process"
    since = datetime.fromtimestamp(s["time"]).strftime("%Y-%m-%d %H:%M:%S")
    return f" by process {s['pid']!r} on {s['host']!r} since {since}"


def check(folder: Path, state: State, now: Record) -> None:
    """Raises UsageError unless the state is empty, or of exactly the work of a plan's record on exactly its data."""
    if not state.count:
        return
    place, plan = called(folder), state.plan or {}
    if plan.get("digest") != now["digest"]:
        differ = _differences(_settings(plan), _settings(now))
        raise UsageError([f"{place} holds another run or sweep, its plan differs{differ}; choose another folder"])
    before, data = ([f["digest"] for f in files] for files in (plan["data"], now["data"]))
    if before != data:
        changed = ", ".join(str(f["file"]) for f in now["data"] if f["digest"] not in before)
        changed = changed or "their order or number"
        raise UsageError([f"{place} was begun on other data: {changed} has changed; choose another folder"])


def _settings(plan: Record) -> dict[str, Any]:
    """What a plan sets: dotted key or part of the plan -> what was said of it, as a record has it."""
    said = {part: plan[part] for part in ("search", "rungs", "objectives") if plan.get(part)}
    said |= {k: v for part in ("base", "axes", "domains") for k, v in plan.get(part, {}).items()}
    return dict(json.loads(json.dumps(said)))


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    keys = [k for k in sorted({*before, *now}) if k not in before or k not in now or before[k] != now[k]]
    was, has = ({k: repr(of[k]) if k in of else "not set" for k in keys} for of in (before, now))
    return ": " + ", ".join(f"{plain(k)} was {was[k]} and is {has[k]}" for k in keys) if before and now and keys else ""


def place_problems(folder: Path) -> list[str]:
    """Why results cannot be written to a folder that may not exist yet, nor to its store."""
    at = store(folder)
    lost = [f"--out: {at.url} is gone with this process; give a folder or a bucket"] if at and at.lost else []
    return lost + _local_problems(folder) + (at.problems() if at else [])


def _local_problems(folder: Path) -> list[str]:
    for path in (folder, *folder.absolute().parents):
        if path.is_dir():
            return [] if os.access(path, os.W_OK) else [f"--out: {path} cannot be written to; choose another folder"]
        if path.exists():
            return [f"--out: {path} is no folder; choose another place for the results"]
    return []


def safe_trial(folder: Path, name: object) -> Path:
    """Where a trial keeps its checkpoints. Records may be forged, so the name is checked.

    Raises UsageError if it would lead anywhere but to FOLDER/trials/NAME itself.
    """
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        raise UsageError([f"{folder}: a trial must be named {NAME.pattern}, but is {name!r}; do not trust its records"])
    path = folder / "trials" / name
    if path.resolve() != folder.resolve() / "trials" / name:
        raise UsageError([f"{path} is a link to {path.resolve()}; a trial must lie in the sweep's own folder"])
    return path
