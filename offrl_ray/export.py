"""A checkpoint's policies as files for others: seed_N.safetensors, policy.json, README.txt (see exported.py)."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import __version__ as safetensors_version
from safetensors import torch as safetensors

from offrl_ray import __version__
from offrl_ray.algos.functional import select
from offrl_ray.checkpoint import Checkpoint, load
from offrl_ray.config import to_dict
from offrl_ray.errors import UsageError
from offrl_ray.evaluate import is_finite
from offrl_ray.exported import FORMAT, POLICY, flatten, sha256_of, weights_of
from offrl_ray.policy import acting
from offrl_ray.records import sync

README = """\
{variant} policies of seeds {seeds}, trained for {step} updates. seed_N.safetensors holds a policy's weights,
policy.json all else: config, observation keys and shapes, normalisation, horizons, action bounds, checksums.
With offrl-ray {version} installed, Python runs one like this, in this folder:
    import torch
    from offrl_ray.exported import load_exported
    policy = load_exported(".", seed={seed})
    window = {{k: [torch.zeros(1, *s)] * policy.spec.obs_horizon for k, s in policy.spec.obs_shape.items()}}
    print(policy.act(window, policy.alg.act_noise(torch.Generator().manual_seed(0), 1)))
`window` holds the last {frames} raw frames of each key, oldest first (at an episode's start the first frame, repeated);
`act` gives {horizon} raw actions in [{low:g}, {high:g}]: execute them all, then call it again. No Ray, no simulator.
"""


def export(checkpoint: Path, out: Path, extra: Mapping[str, Any], seeds: Sequence[int] | None = None) -> None:
    """Write the policies of a checkpoint, of all its seeds or of some, to a new folder: complete, or not at all.

    `extra` is JSON-able and kept as it is: where the policy comes from and how well it does. Raises UsageError if the
    checkpoint is damaged, a seed is not in it or has diverged, or OUT exists or cannot be written.
    """
    taken = [f"{out} exists already; choose a new folder"] if os.path.lexists(out) else []
    try:
        found = load(checkpoint)
    except UsageError as e:
        raise UsageError(taken + e.problems) from None
    seeds = found.cfg.train.seeds if seeds is None else seeds
    if problems := taken + _seed_problems(checkpoint, found, seeds):
        raise UsageError(problems)
    files = {weights_of(s): _weights(found, s) for s in seeds}
    about = _about(found, files, extra)
    files[POLICY] = json.dumps({**about, "sha256": sha256_of(about)}, indent=1, allow_nan=False).encode()
    files["README.txt"] = _readme(found, seeds).encode()
    try:
        _write(out, files)
    except OSError as e:
        raise UsageError([f"{out} cannot be written: {e.strerror}; choose another place"]) from None


def _seed_problems(checkpoint: Path, found: Checkpoint, seeds: Sequence[int]) -> list[str]:
    known, state = found.cfg.train.seeds, found.snapshot.state
    if not seeds:
        return [f"at least one seed must be exported; {checkpoint} has {', '.join(map(str, known))}"]
    problems = [f"{checkpoint} has no seed {s}; it has {', '.join(map(str, known))}" for s in seeds if s not in known]
    healthy = [s for i, s in enumerate(known) if is_finite(select(state, i))]
    others = f"export the others, {', '.join(map(str, healthy))}" if healthy else "choose another checkpoint"
    diverged = [s for s in seeds if s in known and s not in healthy]
    return problems + [f"seed {s} of {checkpoint} has diverged, a weight is not finite; {others}" for s in diverged]


def _weights(found: Checkpoint, seed: int) -> bytes:
    member = acting(found.snapshot.state, found.cfg.train.seeds.index(seed))
    return safetensors.save({k: t.contiguous() for k, t in flatten(member["acting"]).items()})


def _about(found: Checkpoint, files: Mapping[str, bytes], extra: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "variant": found.cfg.algo.name,
        "config": to_dict(found.cfg),
        "spec": found.spec.__dict__,
        "raw_action_bounds": found.spec.raw_bounds,
        "checkpoint": found.digest,
        "step": found.snapshot.step,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "versions": {"offrl_ray": __version__, "torch": torch.__version__, "safetensors": safetensors_version},
        "extra": dict(extra),
    }


def _readme(found: Checkpoint, seeds: Sequence[int]) -> str:
    low, high = found.spec.raw_bounds
    return README.format(
        variant=found.cfg.algo.name,
        seeds=", ".join(map(str, seeds)),
        step=found.snapshot.step,
        version=__version__,
        seed=seeds[0],
        frames=found.spec.obs_horizon,
        horizon=found.spec.act_horizon,
        low=low,
        high=high,
    )


def _write(out: Path, files: Mapping[str, bytes]) -> None:
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        for name, content in files.items():
            (temporary / name).write_bytes(content)
            sync(temporary / name)
        sync(temporary)
        temporary.rename(out)
        sync(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
