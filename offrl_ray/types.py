"""The seam between a variant and everything else.

Shape letters, used throughout the package:
B batch, T_o observation frames, H executed action chunk, H_p predicted action chunk, H_q chunk that the critic scores,
A action dimension, E critics of an ensemble, C encoded condition, N environments. A population axis P, one entry per
seed, appears only where batches come from and in train.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Generator, Tensor

State = dict[str, Any]
"""Nested dict of tensors, nothing else. `State["acting"]` is the only part that `Algorithm.act` reads."""
Noise = dict[str, Tensor]
Hparams = dict[str, Tensor]
Metrics = dict[str, Tensor]
Obs = dict[str, Tensor]


class Batch(NamedTuple):
    """Chunked transitions of one member, observations and actions normalised (see `Spec`)."""

    obs: Obs  # key -> [B, T_o, ...]: frames t-T_o+1 .. t
    action: Tensor  # [B, H_p, A]: what the policy imitates
    q_action: Tensor  # [B, H_q, A]: what the critic scores; padded after the chunk's end
    reward: Tensor  # [B, H_q]: raw rewards r_t .. r_{t+H_q-1}
    mask: Tensor  # [B, H_q]: 1 while the step belongs to the chunk; sums to the chunk length tau >= 1
    terminal: Tensor  # [B]: 1 if the chunk ended by `terminated`
    next_obs: Obs  # key -> [B, T_o, ...]: frames up to t+tau
    step: Tensor  # [B]: t, the chunk's current step within its episode


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a variant must know about data and environment; JSON-able, and kept in every checkpoint.

    Variants live in normalised units, (raw - mean) / std per dimension; raw actions lie in [-1, 1], or are the index of
    one of `num_actions` discrete actions, which is never normalised.
    """

    obs_shape: dict[str, tuple[int, ...]]  # key -> shape of one frame
    obs_mean: dict[str, tuple[float, ...]]
    obs_std: dict[str, tuple[float, ...]]
    action_dim: int
    action_mean: tuple[float, ...]
    action_std: tuple[float, ...]
    obs_horizon: int  # T_o
    pred_horizon: int  # H_p
    act_horizon: int  # H
    q_horizon: int  # H_q; H for all variants but those that say otherwise
    act_offset: int  # the executed chunk is prediction[act_offset : act_offset + H]
    reward_low: float
    reward_high: float
    reward_ends_episode: bool  # every non-zero reward is paid on a terminating step
    num_actions: int = 0  # discrete actions; 0: actions are continuous

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Spec":
        """The spec whose `__dict__` these fields were. Raises TypeError if some are missing or unknown."""

        def tuples(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: tuples(v) for k, v in value.items()}
            return tuple(tuples(v) for v in value) if isinstance(value, list) else value

        return cls(**tuples(fields))

    @property
    def raw_bounds(self) -> tuple[float, float]:
        """Smallest and largest raw action."""
        return (0.0, self.num_actions - 1.0) if self.num_actions else (-1.0, 1.0)

    @property
    def action_low(self) -> tuple[float, ...]:
        """Normalised lower action bound, [A]."""
        return tuple((self.raw_bounds[0] - m) / s for m, s in zip(self.action_mean, self.action_std, strict=True))

    @property
    def action_high(self) -> tuple[float, ...]:
        """Normalised upper action bound, [A]."""
        return tuple((self.raw_bounds[1] - m) / s for m, s in zip(self.action_mean, self.action_std, strict=True))


class Critic(NamedTuple):
    """What a variant believes an executed chunk is worth. Pure, and for a single member.

    `q` is the mean over the ensemble that the metrics q_policy_mean and q_data_mean average over a batch: what will be
    paid from here on, discounted by `gamma`, in units of `reward_scale` x reward. No time limit cuts it off, and it
    holds the policy's entropy where the variant backs that up. It reads `acting` and, where there is one, `critic`.

    A chunk that the policy predicts for the oldest frame (`act_offset` > 0) is scored from there on in training, and
    that is the executed one only where all frames are the same: at an episode's start.
    """

    q: Callable[[State, Obs, Tensor], Tensor]  # obs history, executed chunk [N, H, A] -> [N]
    gamma: float  # discount per environment step
    reward_scale: float


class Algorithm(NamedTuple):
    """Everything the program may know about a variant. All functions are pure and for a single member."""

    init: Callable[[Generator], State]
    update_noise: Callable[[Generator, int], Noise]  # every random number that one update of so many chunks needs
    update: Callable[[State, Batch, Noise, Hparams], tuple[State, Metrics]]
    act_noise: Callable[[Generator, int], Noise]  # for so many environments, when the policy is judged
    act: Callable[[State, Obs, Noise], Tensor]  # obs history, [N, T_o, ...] -> executed chunk [N, H, A]
    explore_noise: Callable[[Generator, int], Noise] | None = None  # when it gathers data; None: it never does
    minibatches: int = 1  # minibatches of `batch_size` chunks, side by side in the batch of one update
    critic: Critic | None = None  # None: it values nothing


class Source(Protocol):
    """Where the batches of a run come from."""

    def sample(self, generators: Sequence[Generator], batch_size: int, state: State) -> Batch:
        """One batch per generator, [P, B, ...]; `state` is the members' acting part, stacked, for those that act."""

    def metrics(self) -> Metrics:
        """What happened since the last call, name -> [P]."""

    def pack(self) -> State:
        """All that a later run needs to go on here, for a checkpoint; nothing in it changes any more."""

    def unpack(self, saved: State) -> None:
        """Go on from there; from the beginning if it is empty."""


class EnvStep(NamedTuple):
    obs: Obs  # raw, key -> [N, ...]
    reward: Tensor  # [N] float32
    success: Tensor  # [N] bool
    terminated: Tensor  # [N] bool
    truncated: Tensor  # [N] bool


class Env(Protocol):
    """A vector environment that never resets by itself."""

    num_envs: int
    max_steps: int
    action_dim: int
    num_actions: int  # discrete ones; 0: continuous

    def reset(self, seeds: Sequence[int]) -> Obs:
        """Start one episode per environment, environment i from `seeds[i]`; `len(seeds) == num_envs`."""

    def step(self, action: Tensor) -> EnvStep:
        """Apply raw actions [N, A], in [-1, 1] or one index each."""

    def close(self) -> None: ...
