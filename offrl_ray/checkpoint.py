"""Checkpoints that are complete or absent: DIR/step_00002000/{state.pt, manifest.json}.

Written to a temporary folder, synced and renamed; the digest covers tensors and manifest, so a flipped bit is
found. Loading never unpickles anything but tensors.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import torch

from offrl_ray import __version__
from offrl_ray.config import RunConfig, from_dict, to_dict
from offrl_ray.errors import UsageError
from offrl_ray.records import sync
from offrl_ray.train import Snapshot
from offrl_ray.types import Spec

FORMAT = 1
TENSORS, MANIFEST = "state.pt", "manifest.json"
NAME = re.compile(r"step_([0-9]{8,})\Z", re.ASCII)
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError, EOFError, pickle.UnpicklingError)


class Checkpoint(NamedTuple):
    snapshot: Snapshot
    cfg: RunConfig
    spec: Spec
    digest: str  # of tensors, config and spec
    seconds: float  # of training so far


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint in the folder, oldest first."""
    names = (NAME.match(p.name) for p in folder.glob("step_*"))
    return sorted(int(m[1]) for m in names if m)


def save(folder: Path, snapshot: Snapshot, cfg: RunConfig, spec: Spec, seconds: float = 0.0) -> str:
    """Write one checkpoint and return its digest; one of the same step is replaced."""
    final = path_of(folder, snapshot.step)
    temporary, replaced = (folder / f".{final.name}.{uuid.uuid4().hex}" for _ in range(2))
    temporary.mkdir(parents=True)
    try:
        with (temporary / TENSORS).open("wb") as f:
            torch.save({"state": snapshot.state, "generators": snapshot.generators, "source": snapshot.source}, f)
            f.flush()
            os.fsync(f.fileno())
        manifest = {
            "format": FORMAT,
            "step": snapshot.step,
            "config": to_dict(cfg),
            "spec": spec.__dict__,
            "versions": {"offrl_ray": __version__, "torch": torch.__version__},
        }
        digest = digest_of(manifest, temporary / TENSORS)
        manifest |= {"digest": digest, "seconds": seconds}
        with (temporary / MANIFEST).open("w") as g:
            json.dump({**manifest, "sha256": _sha256(manifest).hexdigest()}, g, indent=1)
            g.flush()
            os.fsync(g.fileno())
        _put_in_place(temporary, final, replaced)
        sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
    return digest


def _put_in_place(new: Path, final: Path, aside: Path) -> None:
    if final.exists():
        os.rename(final, aside)
    try:
        new.rename(final)
    except OSError:
        if aside.exists():
            os.rename(aside, final)
        raise


def load(path: str | Path) -> Checkpoint:
    """Raises UsageError if the checkpoint is missing, damaged or of another format."""
    path = Path(path)
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}, this version reads {FORMAT}")
        if manifest.pop("sha256") != _sha256(manifest).hexdigest():
            raise ValueError(f"{MANIFEST} differs from its checksum")
        digest, seconds = manifest.pop("digest"), manifest.pop("seconds")
        if digest_of(manifest, path / TENSORS) != digest:
            raise ValueError(f"{TENSORS} or {MANIFEST} differs from its digest")
        if path_of(path.parent, manifest["step"]).name != path.resolve().name:
            raise ValueError(f"it is of step {manifest['step']}")
        tensors = torch.load(path / TENSORS, weights_only=True, map_location="cpu")
        saved = Snapshot(manifest["step"], tensors["state"], tensors["generators"], tensors["source"])
        cfg, spec = from_dict(manifest["config"]), _spec(manifest["spec"])
        if len(saved.generators) != len(cfg.train.seeds) or "acting" not in saved.state:
            raise ValueError("its tensors are of another layout")
    except FileNotFoundError as e:
        raise UsageError(
            [f"{path} is no checkpoint, {Path(e.filename).name} is missing; give a folder step_..."]
        ) from None
    except (*DAMAGE, UsageError) as e:
        raise UsageError([f"{path} is damaged: {str(e).splitlines()[0]}; use another checkpoint"]) from None
    return Checkpoint(saved, cfg, spec, digest, seconds)


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest good checkpoint, and what was wrong with newer ones, which are set aside as *.corrupt."""
    problems: list[str] = []
    for step in reversed(steps(folder)):
        try:
            return load(path_of(folder, step)), problems
        except UsageError as e:
            problems += e.problems
            set_aside(folder, step)
    return None, problems


def set_aside(folder: Path, step: int) -> None:
    """Keep a damaged checkpoint for a look at it, under a name that no run takes for a checkpoint."""
    broken = path_of(folder, step)
    broken.rename(broken.with_name(f"{broken.name}.{uuid.uuid4().hex[:8]}.corrupt"))


def remove(folder: Path, step: int) -> None:
    shutil.rmtree(path_of(folder, step), ignore_errors=True)


def _spec(fields: dict[str, Any]) -> Spec:
    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    return Spec(**tuples(fields))


def digest_of(manifest: dict[str, Any], tensors: Path) -> str:
    """SHA-256 over the tensors' file, config, spec and step: equal for equal runs, whatever time they took."""
    sha = _sha256(manifest)
    with tensors.open("rb") as f:
        sha.update(hashlib.file_digest(f, "sha256").digest())
    return sha.hexdigest()


def _sha256(manifest: dict[str, Any]) -> "hashlib._Hash":
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode())
