"""The one record format: append-only JSON lines, each with a sequence number and a checksum.

A folder's `records.jsonl` is its truth; event files, tables and pictures are derived from it. Kinds:

plan   what was asked: `name`, `question`, `axes` {key: [values]}, `points` [{trial, point, config, seeds, steps}],
       `data` [{file, digest, ...}], `versions`
start  `trial`, `step` where it starts or continues
train  `trial`, `seed`, `step`, `metrics` {name: mean since the last report}, `seconds` of training so far
eval   `trial`, `seed`, `step`, `digest` of the checkpoint, `env` {id, ...}, `episode_seeds` and, one entry per episode,
       `success_once`, `success_at_end`, `return`, `length`, `seconds`
note   `trial`, `text`: something a reader should know (a damaged checkpoint, a retried evaluation)
end    `trial`, `status` completed | diverged | failed, `reason`, `step`, `diverged` {seed: reason}, `cost` {...}

Numbers that are not finite are the strings "nan", "inf", "-inf", so every line is strict JSON; `float()` reads them.
"""

import contextlib
import json
import math
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

VERSION = 1
FILE = "records.jsonl"


class RecordLog(NamedTuple):
    records: list[dict[str, Any]]
    problems: list[str]  # damaged lines, with their numbers


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {k: _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    return value


def encode(record: dict[str, Any]) -> bytes:
    """One line: the record as JSON with its CRC-32 as last key."""
    body = json.dumps(_strict(record), separators=(",", ":"), allow_nan=False)
    return f'{body[:-1]},"crc":"{zlib.crc32(body.encode()):08x}"}}\n'.encode()


def decode(line: bytes) -> dict[str, Any]:
    """Inverse of `encode`. Raises ValueError for a line that is torn, damaged or of another version."""
    record = json.loads(line)
    if not isinstance(record, dict) or "crc" not in record:
        raise ValueError("not a record")
    crc = record.pop("crc")
    body = line.rstrip(b"\n")[: -len(f',"crc":"{crc}"}}')] + b"}"
    if f"{zlib.crc32(body):08x}" != crc:
        raise ValueError("checksum differs")
    if record.get("v") != VERSION:
        raise ValueError(f"record version {record.get('v')}, this reader knows {VERSION}")
    return record


def read(folder: str | Path) -> RecordLog:
    """All good records of a folder, while it grows or after; damaged lines are named, never raised.

    Raises FileNotFoundError if the folder has no records.
    """
    path = Path(folder) / FILE
    records, problems = [], []
    *lines, rest = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            records.append(decode(line))
        except (ValueError, RecursionError) as e:
            problems.append(f"{path}:{number}: {e}")
    if rest:  # a line counts when its end is written: the next writer cuts this one off
        problems.append(f"{path}:{len(lines) + 1}: torn end")
    return RecordLog(records, problems)


class Writer:
    """Single writer of a folder's records; every record is durable when `write` returns.

    A torn last line, left by a killed writer, is cut off first, so that the next line stays readable.
    """

    def __init__(self, folder: str | Path):
        path = Path(folder) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        sync(path.parent)
        content = path.read_bytes()
        os.ftruncate(self._fd, content.rfind(b"\n") + 1)
        self._seq = content.count(b"\n")

    @property
    def count(self) -> int:
        """Lines in the file."""
        return self._seq

    def write(self, kind: str, **fields: Any) -> None:
        line = encode({"v": VERSION, "seq": self._seq, "kind": kind, **fields})
        size = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, line) != len(line):
                raise OSError(f"record {self._seq} could only be written in part and was taken back; is the disk full?")
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, size)
            raise
        self._seq += 1

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def sync(folder: Path) -> None:
    """Make new and renamed names in a folder durable."""
    with contextlib.suppress(OSError):  # not every file system can sync a folder
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
