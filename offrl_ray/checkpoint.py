"""Checkpoints that are complete or absent: DIR/step_00002000/{state.pt, history.json, manifest.json}.

Written to a temporary folder, synced and renamed; the digest covers every file, so a flipped bit is found. Loading
never unpickles anything but tensors. Of a working copy they lie on its store alone, each as one tar file of that name.
"""

import contextlib
import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import tarfile
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from offrl_ray import __version__
from offrl_ray.config import RunConfig, from_dict, to_dict
from offrl_ray.errors import CheckpointError, DiskFull, UsageError
from offrl_ray.objects import Store, StoreError
from offrl_ray.records import sync
from offrl_ray.store import called, here, names, store
from offrl_ray.train import Snapshot
from offrl_ray.types import Spec

FORMAT = 2
TENSORS, HISTORY, MANIFEST = "state.pt", "history.json", "manifest.json"
NAME = re.compile(r"step_([0-9]{8,})\Z", re.ASCII)
HIDDEN = re.compile(r"\.(step_[0-9]{8,})\.[0-9a-f]{32}(\.replaced)?\Z", re.ASCII)
CORRUPT = ".corrupt"
FILES = (TENSORS, HISTORY, MANIFEST)
TAR = "all.tar"
OWNER, SELF = "owner", uuid.uuid4().hex.encode()  # which process makes a trial's checkpoints on a store
PER_TENSOR = 512  # bytes in a file of tensors beside their content: names, alignment, directory
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, EOFError, RecursionError, pickle.UnpicklingError)

History = dict[int, list[list[Any]]]
"""Seed -> its train reports so far, [step, {metric: float}] each."""


class Checkpoint(NamedTuple):
    snapshot: Snapshot
    cfg: RunConfig
    spec: Spec
    digest: str  # of tensors, config, spec and history
    seconds: float  # of training so far
    history: History


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint in the folder, oldest first; none if there is no folder. Raises OSError."""
    return sorted(int(m[1]) for m in map(NAME.match, names(folder)) if m)


def sizes(folder: Path) -> dict[int, int]:
    """Step -> bytes of its checkpoint, oldest first; what vanishes meanwhile counts nothing."""
    if at := store(folder):
        return {int(m[1]): size for found, size in sorted(at.names().items()) if (m := NAME.match(found))}
    return {step: sum(map(_bytes, os.walk(path_of(folder, step)))) for step in steps(folder)}


def _bytes(walked: tuple[str, list[str], list[str]]) -> int:
    total, (root, _, files) = 0, walked
    for name in files:
        with contextlib.suppress(FileNotFoundError):
            total += os.lstat(os.path.join(root, name)).st_size
    return total


def estimate(snapshot: Snapshot) -> int:
    """Bytes on the disk of a checkpoint, without its history."""
    sizes = [t.nbytes + PER_TENSOR for t in _tensors(snapshot._asdict())]
    return sum(sizes)


def _tensors(tree: Mapping[str, Any]) -> Iterator[Tensor]:
    for value in tree.values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            yield from _tensors(value)


def save(folder: Path, snapshot: Snapshot, cfg: RunConfig, spec: Spec, seconds: float, history: History) -> str:
    """Write one checkpoint and return its digest; one of the same step is replaced.

    Raises DiskFull if less than twice its size is free, or if it does not fit after all, and StoreError if its store is
    lost, or another process has taken the trial over; whatever is raised, the checkpoints before it are as they were.
    """
    reports = json.dumps(history, sort_keys=True).encode()
    manifest = {
        "format": FORMAT,
        "step": snapshot.step,
        "config": to_dict(cfg),
        "spec": spec.__dict__,
        "versions": {"offrl_ray": __version__, "torch": torch.__version__},
    }
    folder.mkdir(parents=True, exist_ok=True)
    size = estimate(snapshot) + len(reports)
    if shutil.disk_usage(folder).free < 2 * size:
        raise _full(folder, size)
    new = _hidden(folder, snapshot.step)
    try:
        new.mkdir()
        _write_tensors(new / TENSORS, snapshot)
        _write(new / HISTORY, reports)
        digest = digest_of(manifest, new)
        manifest |= {"digest": digest, "seconds": seconds}
        sealed = {**manifest, "sha256": _sha256(manifest).hexdigest()}
        _write(new / MANIFEST, json.dumps(sealed, indent=1).encode())
        sync(new)
        if at := store(folder):
            _publish(at, new, path_of(folder, snapshot.step).name)
        else:
            _put_in_place(new, path_of(folder, snapshot.step))
            sync(folder)
    except (OSError, RuntimeError) as e:
        if DiskFull.caused(e):
            raise _full(folder, size) from e
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return digest


def _hidden(folder: Path, step: int) -> Path:
    return folder / f".{path_of(folder, step).name}.{uuid.uuid4().hex}"


def _full(folder: Path, size: int) -> DiskFull:
    free = shutil.disk_usage(folder).free
    text = (
        f"a checkpoint of about {size / 2**20:.1f} MiB needs twice as much room, but {free / 2**20:.1f} MiB are free "
        f"or a limit forbids it; earlier checkpoints are intact, make room and start again"
    )
    return DiskFull(errno.ENOSPC, text, str(folder))


def _write_tensors(path: Path, snapshot: Snapshot) -> None:
    with path.open("wb") as f:
        torch.save({"state": snapshot.state, "generators": snapshot.generators, "source": snapshot.source}, f)
    sync(path)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    sync(path)


def _put_in_place(new: Path, final: Path) -> None:
    replaced = new.with_name(f"{new.name}.replaced")
    if final.exists():
        final.rename(replaced)
    try:
        new.rename(final)
    except OSError:
        if replaced.exists():
            replaced.rename(final)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _publish(at: Store, new: Path, to: str) -> None:
    if _owner(at) not in (None, SELF):
        raise StoreError(f"{at.url} has been taken over by another process; this one ends, it was believed dead")
    with tarfile.open(new / TAR, "w") as tar:
        for part in FILES:
            tar.add(new / part, part)
    at.put(to, new / TAR)


def _owner(at: Store) -> bytes | None:
    try:
        return at.read(OWNER)[0]
    except FileNotFoundError:
        return None


def fetch(path: Path, to: Path) -> None:
    """A checkpoint of a working copy as a new folder, damaged as it may be. Raises UsageError if there is none."""
    at = store(path.parent)
    assert at
    to.mkdir(parents=True)
    try:
        at.get(path.name, to / TAR)
    except FileNotFoundError:
        raise UsageError([f"{at.url}/{path.name} is no checkpoint; give a folder step_..."]) from None
    with contextlib.suppress(tarfile.TarError, KeyError, EOFError), tarfile.open(to / TAR) as tar:
        for part in FILES:
            content = tar.extractfile(tar.getmember(part))
            if content and tar.getmember(part).size <= (to / TAR).stat().st_size:
                with (to / part).open("wb") as f:
                    shutil.copyfileobj(content, f)
    (to / TAR).unlink()


def load(path: str | Path) -> Checkpoint:
    """One checkpoint, every byte of it checked.

    Raises CheckpointError if it is damaged, UsageError if there is none or it is of another format, and OSError if it
    cannot be read now, which says nothing about its content.
    """
    path = Path(path)
    if not store(path):
        return _load(path, str(path))
    with tempfile.TemporaryDirectory(prefix="offrl-") as scratch:
        fetch(path, Path(scratch) / path.name)
        return _load(Path(scratch) / path.name, called(path))


def _load(path: Path, title: str) -> Checkpoint:
    try:
        manifest = _manifest(path)
        if manifest["format"] == FORMAT:
            return _content(path, manifest)
    except OSError as e:
        if e.errno not in ABSENT:
            raise
        if not os.path.isdir(path):
            raise UsageError([f"{title} is no checkpoint; give a folder step_..."]) from None
        damage = f"{Path(e.filename).name} is missing"
    except DAMAGE as e:
        damage = (str(e) or type(e).__name__).splitlines()[0]
    else:
        other = f"{title} is of format {manifest['format']}, this version reads {FORMAT}"
        raise UsageError([f"{other}; use the version that wrote it, {manifest['versions']}"])
    raise CheckpointError([f"{title} is damaged: {damage}; use another checkpoint"])


def _manifest(path: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
    if manifest.pop("sha256") != _sha256(manifest).hexdigest():
        raise ValueError(f"{MANIFEST} differs from its checksum")
    return manifest


def _content(path: Path, manifest: dict[str, Any]) -> Checkpoint:
    digest, seconds = manifest.pop("digest"), manifest.pop("seconds")
    if digest_of(manifest, path) != digest:
        raise ValueError(f"{TENSORS}, {HISTORY} or {MANIFEST} differs from its digest")
    if path_of(path.parent, manifest["step"]).name != path.resolve().name:
        raise ValueError(f"it is of step {manifest['step']}")
    tensors = torch.load(path / TENSORS, weights_only=True, map_location="cpu")
    saved = Snapshot(manifest["step"], tensors["state"], tensors["generators"], tensors["source"])
    history = {int(seed): reports for seed, reports in json.loads((path / HISTORY).read_bytes()).items()}
    cfg, spec = from_dict(manifest["config"]), Spec.from_json(manifest["spec"])
    if len(saved.generators) != len(cfg.train.seeds) or "acting" not in saved.state:
        raise ValueError("its tensors are of another layout")
    return Checkpoint(saved, cfg, spec, digest, seconds, history)


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest good checkpoint, and what was wrong with newer ones, which are set aside as *.corrupt.

    None if there never was one. Raises CheckpointError if there were and none is good, so that nothing is silently
    trained again from 0; UsageError and OSError as `load`, setting nothing aside.
    """
    problems: list[str] = []
    for step in reversed(steps(folder)):
        try:
            return load(path_of(folder, step)), problems
        except CheckpointError as e:
            problems += e.problems
            set_aside(folder, step)
    if bad := [n for n in names(folder) if n.endswith(CORRUPT)]:
        lost = f"{called(folder)} has no good checkpoint left, damaged are {', '.join(bad)}"
        raise CheckpointError([*problems, f"{lost}; delete the folder to begin the trial again from 0"])
    return None, problems


def set_aside(folder: Path, step: int) -> None:
    """Keep a damaged checkpoint for a look at it, under a name that no run takes for a checkpoint."""
    broken = path_of(folder, step)
    aside = broken.with_name(f"{broken.name}.{uuid.uuid4().hex[:8]}{CORRUPT}")
    if at := store(folder):
        at.move(broken.name, aside.name)
    else:
        broken.rename(aside)


def remove(folder: Path, step: int) -> None:
    """Remove a checkpoint, if it is there, at once: a reader finds all of it or nothing."""
    if at := store(folder):
        return at.remove(path_of(folder, step).name)
    gone = _hidden(folder, step)
    with contextlib.suppress(FileNotFoundError):
        path_of(folder, step).rename(gone)
    return shutil.rmtree(gone, ignore_errors=True)


def clean(folder: Path) -> None:
    """Remove what killed writers left, and put back a checkpoint that one was about to replace.

    Only for the holder of the trial's lock: what a living writer is making looks no different. The lock is this
    machine's; on a store the trial becomes this process's, and one that lives on elsewhere can save no more.
    """
    if at := store(folder):
        at.write(OWNER, SELF)
    for left in here(folder):
        if m := HIDDEN.match(left):
            if m[2] and not (folder / m[1]).exists():
                (folder / left).rename(folder / m[1])
            else:
                shutil.rmtree(folder / left, ignore_errors=True)


def digest_of(manifest: dict[str, Any], folder: Path) -> str:
    """SHA-256 over the folder's tensors and history, config, spec and step: equal for equal runs, at any speed."""
    sha = _sha256(manifest)
    for name in (TENSORS, HISTORY):
        with (folder / name).open("rb") as f:
            sha.update(hashlib.file_digest(f, "sha256").digest())
    return sha.hexdigest()


def _sha256(manifest: dict[str, Any]) -> "hashlib._Hash":
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode())
