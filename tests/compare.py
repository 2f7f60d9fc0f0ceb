"""One update of a variant beside its slow reference."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from offrl_ray.algos import functional as fn
from offrl_ray.algos import make
from offrl_ray.fields import swept_fields
from offrl_ray.types import Algorithm, Batch, Hparams, Noise, Spec, State
from tests.rows.kinds import Flat
from tests.toys import batch, generator, leaves, run_config, spec_of


class Problem(NamedTuple):
    cfg: Any
    alg: Algorithm
    state: State
    hp: Hparams
    batch: Batch
    noise: Noise


def problem(
    variant: str,
    *settings: Flat,
    prepare: Callable[[State], State] = lambda state: state,
    size: int = 5,
    seed: int = 0,
    spec: Spec | None = None,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """One update's start, data and noise; `prepare` makes the fresh state one in which everything matters."""
    cfg, spec = run_config(variant, *settings).algo, spec or spec_of(variant)
    alg = make(cfg, spec)
    values = {k: getattr(cfg, k) for k in swept_fields(type(cfg))}
    hp = {k: torch.tensor(math.inf if v is None else float(v), dtype=dtype) for k, v in values.items()}
    state = prepare(alg.init(generator(seed)))
    rows = size * alg.minibatches
    given = (state, batch(generator(seed + 1), rows, spec), alg.update_noise(generator(seed + 2), rows))
    start, data, noise = (fn.tree_map(lambda t: t.to(dtype), tree) for tree in given)
    return Problem(cfg, alg, start, hp, data, noise)


def agree(mine: Any, reference: Any, bound: float) -> None:
    """Relative to the largest entry of all."""
    x, y = (torch.cat([t.double().reshape(-1) for t in leaves(tree).values()]) for tree in (mine, reference))
    assert float(y.norm()) > 0
    assert float((x - y).abs().max() / y.abs().max()) < bound
