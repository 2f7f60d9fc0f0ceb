"""A policy that `export.export` wrote, ready to act.

Of this package it takes the variants (their networks and `act`), types, fields, errors and policy; no training loop, no
config of a run, no checkpoint, no reader of data, no simulator and no Ray. The weights are plain safetensors under the
parameters' dotted names, and the rest is JSON, for those who have a network of their own.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Generator, Tensor

from offrl_ray.algos import AlgoConfig, make
from offrl_ray.errors import UsageError
from offrl_ray.policy import Policy
from offrl_ray.types import Spec, State

FORMAT = 1
POLICY = "policy.json"
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError, SafetensorError)
_ALGO: TypeAdapter[Any] = TypeAdapter(AlgoConfig)


def weights_of(seed: int) -> str:
    """The file of a seed's weights."""
    return f"seed_{seed}.safetensors"


def sha256_of(about: Mapping[str, Any]) -> str:
    """Of POLICY's content without its own checksum."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def load_exported(out: str | Path, seed: int) -> Policy:
    """The policy of one seed, on the CPU.

    Raises UsageError if there is no export, if it has no such seed, and if any byte of it is not what was written.
    """
    out = Path(out)
    try:
        about = json.loads((out / POLICY).read_bytes())
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']}, this version reads {FORMAT}")
        if about.pop("sha256") != sha256_of(about):
            raise ValueError(f"{POLICY} differs from its checksum")
        if weights_of(seed) not in about["files"]:
            raise UsageError([f"{out} has no seed {seed}; its files are {', '.join(about['files'])}"])
        content = (out / weights_of(seed)).read_bytes()
        if hashlib.sha256(content).hexdigest() != about["files"][weights_of(seed)]:
            raise ValueError(f"{weights_of(seed)} differs from its checksum")
        spec = Spec.from_json(about["spec"])
        alg = make(_ALGO.validate_python(about["config"]["algo"]), spec)
        acting = _unflatten(safetensors.load(content), alg.init(Generator())["acting"])
    except FileNotFoundError as e:
        raise UsageError([f"{out} is no exported policy, {Path(e.filename).name} is missing"]) from None
    except UsageError:
        raise
    except DAMAGE as e:
        raise UsageError([f"{out} is damaged: {str(e).splitlines()[0]}; export the policy again"]) from None
    return Policy(alg._replace(critic=None), spec, {"acting": acting})  # the critic stays with the trainer


def flatten(tree: State, path: str = "") -> dict[str, Tensor]:
    """Dotted name -> tensor. Names in the tree may have dots themselves: only `_unflatten` inverts it."""
    flat: dict[str, Tensor] = {}
    for name, sub in tree.items():
        flat |= flatten(sub, f"{path}{name}.") if isinstance(sub, dict) else {f"{path}{name}": sub}
    return flat


def _unflatten(flat: dict[str, Tensor], like: State) -> State:
    """Raises ValueError unless the tensors are those of a tree such as `like`."""
    found, needed = ({k: (tuple(t.shape), t.dtype) for k, t in f.items()} for f in (flat, flatten(like)))
    if found != needed:
        wrong = sorted(k for k in found.keys() | needed.keys() if found.get(k) != needed.get(k))
        raise ValueError(f"its tensors do not fit its config: {', '.join(wrong[:3])}")

    def fill(tree: State, path: str) -> State:
        return {k: fill(v, f"{path}{k}.") if isinstance(v, dict) else flat[path + k] for k, v in tree.items()}

    return fill(like, "")
