"""What lies at a URL as an ordinary folder."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from offrl_ray import checkpoint, records, segments, store
from offrl_ray.errors import UsageError
from offrl_ray.sweep import confirmation, derived
from offrl_ray.sweep.ledger import safe_trial
from offrl_ray.sweep.state import State


def pull(source: Path, to: Path, checkpoints: bool) -> Iterator[Path]:
    """Copy a sweep and its confirmation; gives what it has written. Raises UsageError if TO holds something else."""
    state = State.read(source)
    log = (source / records.FILE).read_bytes()
    if problems := _problems(source, to, log):
        raise UsageError(problems)
    to.mkdir(parents=True, exist_ok=True)
    new = to / f".{records.FILE}.{uuid.uuid4().hex}"
    new.write_bytes(log)
    yield new.replace(to / records.FILE)
    yield from derived.rebuild(to)
    for trial in state.trials:
        yield from _files(safe_trial(source, trial), safe_trial(to, trial), checkpoints)
    if store.exists(records.kept(source / confirmation.FOLDER)):
        yield from pull(source / confirmation.FOLDER, to / confirmation.FOLDER, checkpoints)


def _problems(source: Path, to: Path, log: bytes) -> list[str]:
    held = to / records.FILE
    if not store.store(source):
        return [f"pull copies from a URL, but {source} is a folder already"]
    if store.store(to):
        return [f"pull writes an ordinary folder, but {to} is the working copy of {store.called(to)}"]
    if store.held(to / segments.LOCK):
        return [f"{to} is being written by a driver; choose another folder"]
    if held.exists() and not log.startswith(held.read_bytes()):
        return [f"{to} holds records that {store.called(source)} has not; choose another folder"]
    return []


def _files(source: Path, to: Path, checkpoints: bool) -> Iterator[Path]:
    at = store.store(source)
    assert at
    for name in at.names():
        new, wanted = to / f".pulled.{uuid.uuid4().hex}", checkpoints and checkpoint.NAME.match(name)
        if (to / name).exists() or not (wanted or name.endswith(".txt")):
            continue
        to.mkdir(parents=True, exist_ok=True)
        if wanted:
            checkpoint.fetch(source / name, new)
        else:
            at.get(name, new)
        os.replace(new, to / name)
        yield to / name
