"""The one record format: append-only JSON lines, each with a sequence number and a checksum.

A folder's `records.jsonl` is its truth; event files, tables and pictures are derived from it. Every record has `v`,
`seq`, `time` (unix seconds), `kind` and `crc`; `attempt` counts a trial's starts from 1. Kinds:

plan     what was asked: `name`, `question`, `preset`, `variant`, `axes` {key: [values]} of the grid, `domains`
         {key: domain} searched inside every cell, `base` {dotted key: value}, `cells` [{index, axes, base, space}],
         `search` {sampler, trials (per cell), seed, objectives [..], first [..]} or null, `objectives`
         [{metric, mode}], `rungs` {grace, eta} or null, `resources` {..}, `keep` {top, bytes}, `fresh`, `priors`
         [what another sweep found], `claims` [those that the sweep script declares, or none], `confirms` {folder,
         digest, points [trial names]} of a confirmation sweep or null, `points` [{trial, point, config, seeds, steps,
         cell}] (the grid's; a search asks for its own), `digest`, `data` [{file, digest, ...}], `versions` {.., code}
session  `host`, `pid`, `argv`, `versions`, `address` of its Ray (HOST:PORT or local), `nodes` [{name, address, cpus,
         gpus}] and `resources` {..} that it reserves, evaluators counted: a driver begins
extend   `trials`: so many more points per cell may be asked
point    `trial`, `point`, `config`, `seeds`, `steps`, `cell`, `number`, `params` as asked, `same_as` trial or null:
         asked by the search after the plan; `same_as`: the same run as another, not run again
start    `trial`, `attempt`, `step` where it starts or continues [, `cached` "folder:trial": results copied from an
         earlier sweep]
train    `trial`, `attempt`, `seed`, `step`, `metrics` {name: mean since the last report}, `seconds` of training so far
eval     `trial`, `attempt`, `seed`, `step`, `digest` of the checkpoint, `members` (seeds evaluated together), `env`
         {id, ...}, `episodes` asked and, one entry per episode, `episode_seeds`, `success_once`, `success_at_end`,
         `return`, `length`, `q_start` (the critic's mean Q over its ensemble of the first observation and the chunk
         executed there, in units of reward_scale x reward), `discounted_return` (sum gamma^t r_t x reward_scale up to
         and including the first terminated step), both null for a variant without critic; `seconds`
diverged `trial`, `attempt`, `seed`, `step`, `reason`: a stop rule ended this seed
note     `trial`, `text`: something a reader should know
stop     `trial`, `reason`: somebody decided (rung, user); the trial will end as pruned
fault    `trial`, `attempt`, `failure` (class), `reason`, `step`: an attempt was lost, the trial will be tried again
end      `trial`, `attempt`, `status` completed | pruned | diverged | failed, `failure` (class, "" unless failed),
         `reason`, `step`, `diverged` {seed: reason}, `cost` {...}
retry    `trial`: a failed end is void, the trial is open again
dropped  `trial`, `steps` [..], `bytes`: retention removed these checkpoints

Failure classes: infra, oom, hang, eval, gpu, disk, checkpoint, data, code. Numbers that are not finite are the strings
"nan", "inf", "-inf", so every line is strict JSON; `float()` reads them.
"""

import errno
import gzip
import json
import math
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from offrl_ray import segments
from offrl_ray.errors import DiskFull
from offrl_ray.objects import Store, StoreError
from offrl_ray.store import store

VERSION = 3
FILE = "records.jsonl"
TORN = "records.torn"
CRC = b',"crc":"'


class RecordLog(NamedTuple):
    records: list[dict[str, Any]]
    problems: list[str]  # damaged lines and missing records, with line numbers


def strict(value: Any) -> Any:
    """The same value with numbers that JSON has not as their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {k: strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v) for v in value]
    return value


def encode(record: dict[str, Any]) -> bytes:
    """One line: the record as JSON with its CRC-32 as last key."""
    body = json.dumps(strict(record), separators=(",", ":"), allow_nan=False)
    return f'{body[:-1]},"crc":"{zlib.crc32(body.encode()):08x}"}}\n'.encode()


def decode(line: bytes) -> dict[str, Any]:
    """Inverse of `encode`. Raises ValueError for a line that is torn, damaged or of another version."""
    body, mark, crc = line.rstrip(b"\n").rpartition(CRC)
    if not mark:
        raise ValueError("not a record")
    body += b"}"
    if crc != b'%08x"}' % zlib.crc32(body):
        raise ValueError("checksum differs")
    record = json.loads(body.decode())
    if record.get("v") != VERSION:
        raise ValueError(f"record version {record.get('v')}, this reader knows {VERSION}")
    if not isinstance(record.get("seq"), int):
        raise ValueError("no number")
    return record


def kept(folder: Path) -> Path:
    """Where the truth of a folder's records is."""
    return folder / (segments.FOLDER if store(folder) else FILE)


def read(folder: str | Path, driver: bool = False) -> RecordLog:
    """All good records of a folder, while it grows or after; what is damaged or missing is named, never raised.

    A working copy first gets what its store has, unless a driver keeps it that is not the caller. Raises
    FileNotFoundError if the folder has no records.
    """
    segments.pull(Path(folder), FILE, driver=driver)
    log = _read(folder)
    if log.problems and store(Path(folder)):  # is it the copy that is damaged, or the store?
        segments.pull(Path(folder), FILE, anew=True, driver=driver)
        log = _read(folder)
    return log


def _read(folder: str | Path) -> RecordLog:
    problems: list[str] = []
    return RecordLog(list(stream(folder, problems)), problems)


def stream(source: str | Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """As `read`, one record at a time, for a reader that keeps less than all of it; adds to `problems`.

    The source is a folder, or a compressed copy of its records, *.gz. Raises OSError, or EOFError for a copy cut short.
    """
    copy = str(source).endswith(".gz")
    path = Path(source) if copy else Path(source) / FILE
    last, damaged = -1, False
    with gzip.open(path) if copy else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):  # a line counts when its end is written: the next writer cuts this one off
                problems.append(f"{path}:{number}: torn end")
                return
            try:
                record = decode(line)
            except ValueError as e:
                problems.append(f"{path}:{number}: {e}")
                damaged = True  # by a line's end, too: it may stand for several records
                continue
            if record["seq"] != last + 1 and not (damaged and record["seq"] > last):
                problems.append(f"{path}:{number}: record {record['seq']} comes after record {last}")
            last, damaged = record["seq"], False
            yield record


def _next_seq(lines: Sequence[bytes]) -> int:
    """Above every readable record's, with room for the damaged lines behind the last one."""
    for behind, line in enumerate(reversed(lines)):
        try:
            return decode(line)["seq"] + 1 + behind
        except ValueError:
            continue
    return len(lines)


class Writer:
    """Single writer of a folder's records; what it wrote is durable when `write` or `write_all` returns.

    A torn last line, left by a killed writer, is first moved to `records.torn`, so that the next line stays readable.
    In a working copy they are on the store first, and a writer that has failed once writes no more.
    """

    def __init__(self, folder: str | Path, after: int | None = None):
        """`after`: a number above the first ones of all segments that the store had when the log was read."""
        self._path, self._store = Path(folder) / FILE, store(Path(folder))
        self._failed: OSError | None = None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        sync(self._path.parent)
        *lines, rest = self._path.read_bytes().split(b"\n")
        if rest:
            with (self._path.parent / TORN).open("ab") as f:
                f.write(rest + b"\n")
            sync(self._path.parent / TORN)
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - len(rest))
        if after is None:
            after = segments.after(self._store) if self._store else 0
        self._seq = max(_next_seq(lines), after)

    def write(self, kind: str, **fields: Any) -> None:
        self.write_all([{"kind": kind, **fields}])

    def write_all(self, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Append records, each with `v`, `seq` and `time`, in one write and one sync: all of them or none.

        Returns them as they are written.

        A kill or a power cut in between may leave the first of them alone. Raises DiskFull when they do not fit, and
        OSError when the disk fails; nothing is written then. In a working copy raises StoreError, too, and whatever is
        raised they may have been written, or not.
        """
        if not records:
            return []
        if self._failed:
            raise self._failed
        heads = [{"v": VERSION, "seq": self._seq + i, "time": round(time.time(), 3)} for i in range(len(records))]
        full = [head | record | head for head, record in zip(heads, records, strict=True)]
        lines = b"".join(map(encode, full))
        if self._store is None:
            self._append(lines)
        else:
            self._publish(self._store, lines)
        self._seq += len(full)
        return full

    def _publish(self, to: Store, lines: bytes) -> None:
        try:
            segments.create(to, self._seq, lines)
            self._append(lines)
        except BaseException as e:  # the copy may lack what the store has, so no other record may follow here
            self._failed = e if isinstance(e, OSError) else StoreError(f"{to.url}: interrupted; start again")
            raise

    def _append(self, lines: bytes) -> None:
        size = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, lines) != len(lines):
                raise OSError(errno.ENOSPC, "written in part")
            os.fsync(self._fd)
        except BaseException as e:  # an interrupt, too: the next record must not repeat a number
            os.ftruncate(self._fd, size)
            if DiskFull.caused(e):
                text = f"record {self._seq} did not fit and was taken back; the disk is full, free some space"
                raise DiskFull(errno.ENOSPC, text, str(self._path)) from e
            raise

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, durable. Raises OSError if the disk fails."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as e:
        if not (path.is_dir() and e.errno in (errno.EINVAL, errno.ENOTSUP)):  # not every file system syncs folders
            raise
    finally:
        os.close(fd)
