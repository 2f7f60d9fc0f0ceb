"""A folder's records on a store, which can append to nothing: one file for each batch, records/FIRST.jsonl.

They are the log, in the order of their first numbers; a working copy's `records.jsonl` holds the first so many. Nobody
can write a number twice: who comes second is fenced off, also where two drivers believe that they are alone.
"""

import itertools
import os
import re
import uuid
from pathlib import Path
from typing import NamedTuple

import filelock

from offrl_ray.objects import Fenced, Store
from offrl_ray.store import held, store

FOLDER = "records"
NAME = re.compile(r"([0-9]{12,})\.jsonl", re.ASCII)
LOCK = ".lock"  # of the folder's only driver on this machine
PULL_LOCK = ".pull.lock"


class Segment(NamedTuple):
    first: int  # the number of its first record
    name: str
    bytes: int


def _listed(of: Store) -> list[Segment]:
    found = ((NAME.fullmatch(name), size) for name, size in of.names(FOLDER).items())
    return sorted(Segment(int(m[1]), f"{FOLDER}/{m[0]}", size) for m, size in found if m)


def create(of: Store, seq: int, lines: bytes) -> None:
    """Raises Fenced if the store has a record of this number, StoreError if it may have taken the lines or not."""
    try:
        of.create(f"{FOLDER}/{seq:012d}.jsonl", lines)
    except Fenced as e:
        text = f"{of.url}: record {seq} has been written by another driver; this one ends, it has lost the sweep"
        raise Fenced(text) from e


def after(of: Store) -> int:
    """A number above every segment's first."""
    return max((s.first + 1 for s in _listed(of)), default=0)


def pull(folder: Path, file: str, anew: bool = False, driver: bool = False) -> None:
    """Append to a working copy's `file` what the store has beyond it; all of it anew if it is no part of the log.

    Nothing where a driver of this machine keeps the copy, unless it is the caller, and for folders that have no store.
    """
    of = store(folder)
    if of is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / PULL_LOCK):
        if driver or not held(folder / LOCK):
            _pull(of, folder / file, anew)


def _pull(of: Store, path: Path, anew: bool) -> None:
    segments = _listed(of)
    held_here = 0 if anew else _held(of, path, segments)
    new = of.read(*(s.name for s in segments[held_here:]))
    lines = b"".join(c if c.endswith(b"\n") or not c else c + b"\n" for c in new)
    if held_here:
        with path.open("ab") as f:
            f.write(lines)
    elif segments:
        whole = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        whole.write_bytes(lines)
        whole.replace(path)
    else:
        path.unlink(missing_ok=True)


def _held(of: Store, path: Path, segments: list[Segment]) -> int:
    """How many segments the local file is made of; 0 if it is not made of these."""
    size = os.path.getsize(path) if path.exists() else 0
    ends = list(itertools.accumulate(s.bytes for s in segments))
    if size not in ends:
        return 0
    last = segments[ends.index(size)]
    with path.open("rb") as f:
        f.seek(size - last.bytes)
        return ends.index(size) + 1 if of.read(last.name) == [f.read()] else 0
