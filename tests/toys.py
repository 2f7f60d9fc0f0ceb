"""Small data with known answers, and what the tests must know of each variant: one `Row` for each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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

Flat = Mapping[str, Any]

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
    act_offset=1,
    reward_low=-1.0,
    reward_high=2.0,
    reward_ends_episode=False,
)


@dataclass(frozen=True, kw_only=True)
class Knob:
    """Another value of a setting, settings under which it must matter, and settings that have to change with it."""

    value: Any
    given: Flat = field(default_factory=dict)
    along: Flat = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the loss: with and without it, the first gradients differ in all of these parameters but `spares`."""

    on: Flat
    off: Flat
    trains: str
    spares: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Row:
    small: Flat
    """a network that takes a millisecond, and step sizes at which 20 updates are visible"""
    knobs: Mapping[str, Knob]
    """every setting of the variant"""
    switches: Sequence[Flat]
    """settings that switch something off, and so may make others inert"""
    parts: Mapping[str, Part]
    optimisers: Mapping[str, str]
    """parameters -> their optimiser's state"""
    averages: Mapping[tuple[str, ...], tuple[str, Callable[[Hparams], Tensor]]]
    """path of averaged parameters -> what they follow, and at what rate"""
    noisy: Flat
    """settings under which all kinds of noise are drawn"""
    normal: frozenset[str]
    """noise that is standard normal; all other is uniform in [0, 1)"""
    networks: Mapping[str, Flat]
    probes: Mapping[str, Flat]
    """ways to learn values that must find the closed form"""


UNSET = object()
NO_RESMLP = {"network.width": UNSET, "network.blocks": UNSET}
PROBE = {
    "critic_hidden": (32, 32),
    "alpha": 0.0,
    "num_flow_steps": 1,
    "teacher_steps": 1,
    "gamma": 0.5,
    "tau": 0.1,
    "ema_decay": 0.9,
    "reward_scale": 1.0,
    "lr_critic": 1e-2,
}

ROWS: dict[str, Row] = {
    "cpql": Row(
        small={
            "network.width": 16,
            "network.blocks": 1,
            "network.time_dim": 4,
            "critic_hidden": (16, 16),
            "num_flow_steps": 3,
            "alpha": 0.5,
            "lr": 1e-3,
            "lr_critic": 1e-3,
            "warmup_steps": 0,
            "grad_clip": None,
        },
        knobs={
            "alpha": Knob(value=0.2),
            "bc_weight": Knob(value=0.5),
            "consistency_weight": Knob(value=0.3),
            "q_grad_mode": Knob(value="whole_grad"),
            "q_grad_steps": Knob(value=2, given={"q_grad_mode": "last_k", "q_grad_steps": 1}),
            "q_norm": Knob(value="coinflip"),
            "q_norm_eps": Knob(value=10.0, given={"q_norm": "abs"}),
            "num_flow_steps": Knob(value=2),
            "cons_t_min": Knob(value=0.5),
            "cons_t_max": Knob(value=0.5),
            "cons_delta_min": Knob(value=0.1),
            "cons_delta_max": Knob(value=0.3),
            "teacher_steps": Knob(value=1),
            "gamma": Knob(value=0.9),
            "tau": Knob(value=0.5),
            "ema_decay": Knob(value=0.9),
            "reward_scale": Knob(value=1.0),
            "q_target_clip": Knob(value=0.05),
            "random_action_penalty": Knob(value=1.0),
            "bounded_critic": Knob(value=True),
            "lr": Knob(value=3e-3),
            "lr_critic": Knob(value=3e-3),
            "warmup_steps": Knob(value=10.0),
            "grad_clip": Knob(value=0.1),
            "network.kind": Knob(value="unet", along={**NO_RESMLP, "network.widths": (16, 16)}),
            "network.width": Knob(value=8),
            "network.blocks": Knob(value=2),
            "network.time_dim": Knob(value=6),
            "network.widths": Knob(
                value=(16, 32), given={**NO_RESMLP, "network.kind": "unet", "network.widths": (16, 16)}
            ),
            "critic_hidden": Knob(value=(16,)),
            "num_critics": Knob(value=3),
        },
        switches=[{"alpha": 0.0}, {"consistency_weight": 0.0}, {"bc_weight": 0.0}, {"q_norm": "none"}],
        parts={
            "flow": Part(
                on={"bc_weight": 1.0, "consistency_weight": 0.0, "alpha": 0.0},
                off={"bc_weight": 0.0, "consistency_weight": 0.0, "alpha": 0.0},
                trains="policy",
            ),
            "consistency": Part(
                on={"bc_weight": 0.0, "consistency_weight": 1.0, "alpha": 0.0},
                off={"bc_weight": 0.0, "consistency_weight": 0.0, "alpha": 0.0},
                trains="policy",
            ),
            "q_policy": Part(
                on={"bc_weight": 0.0, "consistency_weight": 0.0, "alpha": 1.0},
                off={"bc_weight": 0.0, "consistency_weight": 0.0, "alpha": 0.0},
                trains="policy",
            ),
            "td": Part(on={"reward_scale": 1.0}, off={"reward_scale": 0.1}, trains="critic"),
            "td bounded": Part(
                on={"bounded_critic": True, "q_target_clip": 100.0, "alpha": 0.0},
                off={"bounded_critic": True, "q_target_clip": 0.05, "alpha": 0.0},
                trains="critic",
            ),
            # a constant on all values cancels in their difference
            "penalty": Part(
                on={"random_action_penalty": 1.0},
                off={"random_action_penalty": 0.0},
                trains="critic",
                spares=frozenset({"b_out"}),
            ),
        },
        optimisers={"policy": "policy_opt", "critic": "critic_opt"},
        averages={
            ("acting", "policy_ema"): ("policy", lambda hp: 1 - hp["ema_decay"]),
            ("critic_target",): ("critic", lambda hp: hp["tau"]),
        },
        noisy={"random_action_penalty": 1.0},
        normal=frozenset({"x_0", "z", "z_next"}),
        networks={"resmlp": {}, "unet": {**NO_RESMLP, "network.kind": "unet", "network.widths": (16, 16)}},
        probes={"plain": PROBE, "bounded": {**PROBE, "bounded_critic": True}},
    ),
}


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
    h, a = spec.act_horizon, spec.action_dim
    tau = torch.arange(size) % h + 1
    return Batch(
        obs=window(g, size, spec),
        action=torch.randn(size, spec.pred_horizon, a, generator=g),
        q_action=torch.randn(size, h, a, generator=g),
        reward=torch.empty(size, h).uniform_(spec.reward_low, spec.reward_high, generator=g),
        mask=(torch.arange(h) < tau[:, None]).float(),
        terminal=(torch.rand(size, generator=g) < 1 / 3).float(),
        next_obs=window(g, size, spec),
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
