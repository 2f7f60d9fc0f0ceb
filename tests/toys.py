"""Small data with known answers, and small runs of each variant."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from rows import ROWS
from rows.kinds import UNSET, Flat
from torch import Generator, Tensor

from offrl_ray.algos import make
from offrl_ray.config import RunConfig, resolve
from offrl_ray.data import dataset as ds
from offrl_ray.data.hdf5 import Episode
from offrl_ray.fields import hparams
from offrl_ray.types import Algorithm, Batch, Hparams, Noise, Spec, State

SPEC = Spec(
    obs_shape={"state": (3,), "goal": (1,)},
    obs_mean={"state": (0.0, 0.0, 0.0), "goal": (0.0,)},
    obs_std={"state": (1.0, 1.0, 1.0), "goal": (1.0,)},
    action_dim=2,
    action_mean=(0.1, -0.2),
    action_std=(0.5, 0.8),
    obs_horizon=2,
    pred_horizon=4,
    act_horizon=3,
    q_horizon=3,
    act_offset=1,
    reward_low=-1.0,
    reward_high=2.0,
    reward_ends_episode=False,
)


def layered(variant: str, *algo: Flat) -> dict[str, Any]:
    return {k: v for layer in (ROWS[variant].small, *algo) for k, v in layer.items()}


def run_config(variant: str, *algo: Flat, **rest: Any) -> RunConfig:
    """The variant at its small size, then each of `algo` on top; `rest` are other settings, with _ for the dot."""
    given = {f"algo.{k}": v for k, v in layered(variant, *algo).items() if v is not UNSET}
    others = {k.replace("_", ".", 1): v for k, v in rest.items()}
    return resolve({"algo.name": variant, "data.files": ("toy.h5",), **given, **others})


def algorithm(variant: str, *algo: Flat, spec: Spec = SPEC) -> tuple[Algorithm, Hparams]:
    cfg = run_config(variant, *algo).algo
    return make(cfg, spec), hparams(cfg)


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def window(g: Generator, size: int, spec: Spec = SPEC) -> dict[str, Tensor]:
    return {k: torch.randn(size, spec.obs_horizon, *shape, generator=g) for k, shape in spec.obs_shape.items()}


def batch(g: Generator, size: int = 16, spec: Spec = SPEC) -> Batch:
    """Random chunks of every length, a third of them terminal."""
    h, a = spec.q_horizon, spec.action_dim
    tau = torch.arange(size) % h + 1
    return Batch(
        obs=window(g, size, spec),
        action=torch.randn(size, spec.pred_horizon, a, generator=g),
        q_action=torch.randn(size, h, a, generator=g),
        reward=torch.empty(size, h).uniform_(spec.reward_low, spec.reward_high, generator=g),
        mask=(torch.arange(h) < tau[:, None]).float(),
        terminal=(torch.rand(size, generator=g) < 1 / 3).float(),
        next_obs=window(g, size, spec),
        step=torch.arange(size) % 7.0,
    )


Step = tuple[Batch, Noise]


def steps(alg: Algorithm, count: int, seed: int = 1) -> list[Step]:
    g = generator(seed)
    return [(batch(g), alg.update_noise(generator(1000 * seed + i), 16)) for i in range(count)]


def advance(alg: Algorithm, hp: Hparams, state: State, data: Sequence[Step]) -> State:
    for b, noise in data:
        state, _ = alg.update(state, b, noise, hp)
    return state


def run(variant: str, *algo: Flat, count: int = 3) -> State:
    """The state after a small run from a fixed start on fixed data; remembered."""
    return _run(variant, tuple(sorted(layered(variant, *algo).items())), count)


@cache
def _run(variant: str, settings: tuple[tuple[str, Any], ...], count: int) -> State:
    alg, hp = algorithm(variant, dict(settings))
    return advance(alg, hp, alg.init(generator()), steps(alg, count))


def leaves(tree: State, path: str = "") -> dict[str, Tensor]:
    """Dotted path -> tensor."""
    if isinstance(tree, Tensor):
        return {path[1:]: tree}
    return {k: t for name, sub in tree.items() for k, t in leaves(sub, f"{path}.{name}").items()}


def different(a: State, b: State) -> set[str]:
    """Paths of tensors that are not bit for bit the same in both."""
    x, y = leaves(a), leaves(b)
    return {k for k in x.keys() | y.keys() if k not in x or k not in y or not same_bits(x[k], y[k])}


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()


def relative_error(a: State, b: State) -> dict[str, float]:
    """Path -> largest difference relative to the tensor's largest entry."""
    x, y = leaves(a), leaves(b)
    assert x.keys() == y.keys()
    return {k: float((x[k] - y[k]).abs().max() / y[k].abs().max().clamp_min(1e-30)) for k in x}


def episode(
    obs: np.ndarray | Sequence[float], action: np.ndarray, reward: Sequence[float], *, terminated: Sequence[int] = ()
) -> Episode:
    """Frames, one more than steps; `terminated` are the steps that lead to a terminal state."""
    ends = np.isin(np.arange(len(reward)), terminated)
    frames = {"state": np.asarray(obs, np.float32).reshape(len(reward) + 1, -1)}
    last = np.arange(len(reward)) == len(reward) - 1
    return Episode(
        "toy", frames, np.asarray(action, np.float32), np.asarray(reward, np.float32), ends, ends, last & ~ends
    )


def dataset(episodes: Sequence[Episode], **horizons: int) -> ds.Dataset:
    """One frame, one action and one step, unless `horizons` say otherwise."""
    given = {"obs_horizon": 1, "act_horizon": 1, "pred_horizon": 1, **horizons}
    arrays, spec = ds.build([episodes], control_mode="pd_joint_pos", **given)
    return ds.Dataset(arrays, spec)


def walks() -> ds.Dataset:
    """Four random episodes, two of which end in a terminal state, cut into chunks of three."""
    g = np.random.default_rng(0)
    lengths = (5, 7, 9, 6)
    episodes = [
        episode(g.normal(size=n + 1), g.uniform(-1, 1, (n, 2)), g.uniform(-1, 2, n), terminated=[n - 1] * (i % 2))
        for i, n in enumerate(lengths)
    ]
    return dataset(episodes, obs_horizon=2, act_horizon=3, pred_horizon=4)
