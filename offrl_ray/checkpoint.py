"""Checkpoints that are complete or absent: DIR/step_00002000/{state.pt, manifest.json}.

Written to a temporary folder, synced and renamed; the manifest holds the digest of the tensors, so a flipped bit is
found. Loading never unpickles anything but tensors.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import torch

from offrl_ray import __version__
from offrl_ray.config import RunConfig, from_dict, to_dict
from offrl_ray.errors import UsageError
from offrl_ray.train import Snapshot
from offrl_ray.types import Spec

FORMAT = 1
TENSORS, MANIFEST = "state.pt", "manifest.json"


class Checkpoint(NamedTuple):
    snapshot: Snapshot
    cfg: RunConfig
    spec: Spec
    digest: str  # SHA-256 of the tensors' file


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint in the folder, oldest first."""
    return sorted(int(p.name[5:]) for p in folder.glob("step_*") if p.name[5:].isdigit())


def save(folder: Path, snapshot: Snapshot, cfg: RunConfig, spec: Spec) -> str:
    """Write one checkpoint and return its digest; one of the same step is replaced."""
    final = path_of(folder, snapshot.step)
    temporary = folder / f".{final.name}.{uuid.uuid4().hex}"
    temporary.mkdir(parents=True)
    try:
        with (temporary / TENSORS).open("wb") as f:
            torch.save({"state": snapshot.state, "generators": snapshot.generators}, f)
            f.flush()
            os.fsync(f.fileno())
        digest = _sha256(temporary / TENSORS)
        manifest = {
            "format": FORMAT,
            "step": snapshot.step,
            "size": (temporary / TENSORS).stat().st_size,
            "sha256": digest,
            "config": to_dict(cfg),
            "spec": spec.__dict__,
            "versions": {"offrl_ray": __version__, "torch": torch.__version__},
        }
        with (temporary / MANIFEST).open("w") as f:
            json.dump(manifest, f, indent=1)
            f.flush()
            os.fsync(f.fileno())
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        _sync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return digest


def load(path: str | Path, device: str = "cpu") -> Checkpoint:
    """Raises UsageError if the checkpoint is missing, damaged or of another format."""
    path = Path(path)
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}, this version reads {FORMAT}")
        if _sha256(path / TENSORS) != manifest["sha256"]:
            raise ValueError(f"{TENSORS} differs from its digest")
        tensors = torch.load(path / TENSORS, weights_only=True, map_location=device)
        cfg, spec = from_dict(manifest["config"]), _spec(manifest["spec"])
    except FileNotFoundError as e:
        raise UsageError(
            [f"{path} is no checkpoint: {Path(e.filename).name} is missing; give a folder step_..."]
        ) from None
    except (ValueError, KeyError, TypeError, RuntimeError, OSError, EOFError) as e:
        raise UsageError([f"{path} is damaged: {e!s}; use another checkpoint"]) from None
    return Checkpoint(
        Snapshot(manifest["step"], tensors["state"], tensors["generators"]), cfg, spec, manifest["sha256"]
    )


def newest(folder: Path, device: str = "cpu") -> tuple[Checkpoint | None, list[str]]:
    """The newest good checkpoint, and what was wrong with newer ones, which are set aside as *.corrupt."""
    problems: list[str] = []
    for step in reversed(steps(folder)):
        try:
            return load(path_of(folder, step), device), problems
        except UsageError as e:
            problems += e.problems
            broken = path_of(folder, step)
            broken.rename(broken.with_name(f"{broken.name}.{uuid.uuid4().hex[:8]}.corrupt"))
    return None, problems


def remove(folder: Path, step: int) -> None:
    shutil.rmtree(path_of(folder, step), ignore_errors=True)


def _spec(fields: dict[str, Any]) -> Spec:
    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    return Spec(**tuples(fields))


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system can sync a folder
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
