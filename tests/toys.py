"""Small data with known answers, and small runs of each variant."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from offrl_ray.algos import make
from offrl_ray.config import RunConfig, resolve
from offrl_ray.data import dataset as ds
from offrl_ray.data.hdf5 import Episode
from offrl_ray.fields import hparams
from offrl_ray.types import Algorithm, Batch, Hparams, Noise, Spec, State
from tests.rows import ROWS
from tests.rows.kinds import UNSET, Flat

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


def spec_of(variant: str) -> Spec:
    """The spec that a variant is tested on."""
    return ROWS[variant].spec or SPEC


def layered(variant: str, *algo: Flat) -> dict[str, Any]:
    return {k: v for layer in (ROWS[variant].small, *algo) for k, v in layer.items()}


def run_config(variant: str, *algo: Flat, **rest: Any) -> RunConfig:
    """The variant at its small size, then each of `algo` on top; `rest` are other settings, with _ for the dot."""
    given = {f"algo.{k}": v for k, v in layered(variant, *algo).items() if v is not UNSET}
    others = {k.replace("_", ".", 1): v for k, v in rest.items()}
    return resolve({"algo.name": variant, "data.files": ("toy.h5",), **given, **others})


def algorithm(variant: str, *algo: Flat, spec: Spec | None = None) -> tuple[Algorithm, Hparams]:
    cfg = run_config(variant, *algo).algo
    return make(cfg, spec or spec_of(variant)), hparams(cfg)


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def window(g: Generator, size: int, spec: Spec = SPEC) -> dict[str, Tensor]:
    return {k: torch.randn(size, spec.obs_horizon, *shape, generator=g) for k, shape in spec.obs_shape.items()}


def batch(g: Generator, size: int = 16, spec: Spec = SPEC) -> Batch:
    """Random chunks of every length, a third of them terminal."""
    h = spec.q_horizon
    tau = torch.arange(size) % h + 1

    def actions(horizon: int) -> Tensor:
        shape = (size, horizon, spec.action_dim)
        if spec.num_actions:
            return torch.randint(spec.num_actions, shape, generator=g).float()
        return torch.randn(shape, generator=g)

    return Batch(
        obs=window(g, size, spec),
        action=actions(spec.pred_horizon),
        q_action=actions(h),
        reward=torch.empty(size, h).uniform_(spec.reward_low, spec.reward_high, generator=g),
        mask=(torch.arange(h) < tau[:, None]).float(),
        terminal=(torch.rand(size, generator=g) < 1 / 3).float(),
        next_obs=window(g, size, spec),
        step=torch.arange(size) % 7.0,
    )


Step = tuple[Batch, Noise]


def steps(alg: Algorithm, count: int, seed: int = 1, spec: Spec = SPEC) -> list[Step]:
    g = generator(seed)
    return [(batch(g, spec=spec), alg.update_noise(generator(1000 * seed + i), 16)) for i in range(count)]


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
    return advance(alg, hp, alg.init(generator()), steps(alg, count, spec=spec_of(variant)))


def outcome(variant: str, *algo: Flat) -> State:
    """What a small run leaves behind, without bystanders, and how it acts."""
    alg, _ = algorithm(variant, *algo)
    state = run(variant, *algo)
    chunk = alg.act(state, window(generator(1), 5, spec_of(variant)), alg.act_noise(generator(2), 5))
    return {k: v for k, v in state.items() if k not in ROWS[variant].bystanders} | {"chunk": chunk}


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


def dataset(episodes: Sequence[Episode], **changes: int) -> ds.Dataset:
    """One frame, one action and one step, and continuous actions, unless `changes` say otherwise."""
    given = {"obs_horizon": 1, "act_horizon": 1, "pred_horizon": 1, **changes}
    arrays, spec = ds.build([episodes], control_mode="pd_joint_pos", **given)
    return ds.Dataset(arrays, spec)


def random_actions(g: np.random.Generator, count: int, dim: int, num_actions: int = 0) -> np.ndarray:
    """Uniform over all that there are; `num_actions` of them if they are discrete."""
    return g.integers(num_actions, size=(count, dim)) if num_actions else g.uniform(-1, 1, (count, dim))


def walks(spec: Spec = SPEC) -> ds.Dataset:
    """Four random episodes, two of which end in a terminal state, cut into chunks and rewarded as `spec` has it."""
    g = np.random.default_rng(0)
    episodes = []
    for i, n in enumerate((5, 7, 9, 6)):
        terminated = [n - 1] * (i % 2)
        obs, action = g.normal(size=n + 1), random_actions(g, n, spec.action_dim, spec.num_actions)
        reward = g.uniform(spec.reward_low, spec.reward_high, n)
        if spec.reward_ends_episode:
            reward *= np.isin(np.arange(n), terminated)
        episodes.append(episode(obs, action, reward, terminated=terminated))
    horizons = {k: getattr(spec, k) for k in ("obs_horizon", "act_horizon", "pred_horizon", "q_horizon")}
    return dataset(episodes, num_actions=spec.num_actions, **horizons)


def half_missing() -> ds.Dataset:
    """Single steps with actions in [-1, 0] that pay 1 + a, so that the best lie at the data's edge.

    Nothing is paid beyond it, but what rises toward it seems to rise on.
    """
    actions = np.random.default_rng(0).uniform(-1, 0, 200)
    return dataset([episode([0, 0], np.array([[a]]), [1 + a], terminated=[0]) for a in actions])
