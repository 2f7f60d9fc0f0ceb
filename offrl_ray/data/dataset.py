"""Episodes -> chunked transitions (docs of the fields: types.Batch).

All rows of all episodes lie in flat tensors built once; a chunk is a row of integers pointing into them, and a batch is
one gather of such rows and one gather per field. An episode of T steps owns T+1 consecutive rows: its frames; the last
has no action and no reward.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

from offrl_ray.data.hdf5 import Episode
from offrl_ray.types import Batch, Metrics, Spec, State

GRIPPER_LAST = {
    "pd_ee_delta_pose": 7,
    "pd_ee_delta_pos": 4,
    "pd_joint_delta_pos": 8,
    "pd_ee_target_delta_pose": 7,
    "pd_ee_target_delta_pos": 4,
    "pd_joint_target_delta_pos": 8,
}
"""Delta control modes, with the action size at which the last dimension is the gripper."""
MIN_STD = 1e-2
"""Floor of a dimension's standard deviation, so that an almost constant one does not amplify its noise."""

Anchor = Literal["current", "oldest"]
Arrays = dict[str, np.ndarray]


def build(
    groups: Sequence[Sequence[Episode]],
    *,
    control_mode: str,
    obs_horizon: int,
    act_horizon: int,
    pred_horizon: int,
    q_horizon: int | None = None,
    anchor: Anchor = "current",
    weights: Sequence[float] | None = None,
    num_actions: int = 0,
    spec: Spec | None = None,
) -> tuple[Arrays, Spec]:
    """Arrays for `Dataset`, and the spec. `groups` are the episodes of each file, `weights` their shares of a batch.

    A given `spec` is used as it is; otherwise it follows from the data.

    Chunks exist for every step t of every episode. With anchor "current" the chunk starts at t, the newest frame of the
    window; with "oldest" at the oldest one, which is what the seed's code did (one step off from what it executed).
    """
    episodes = [e for group in groups for e in group]
    starts = np.cumsum([0] + [len(e.action) + 1 for e in episodes])
    obs = {k: np.concatenate([e.obs[k] for e in episodes]).astype(np.float32) for k in episodes[0].obs}
    action = np.concatenate([_rows(e.action) for e in episodes])
    reward = np.concatenate([_rows(e.reward) for e in episodes])
    has_action = np.concatenate([np.r_[np.ones(len(e.action), bool), False] for e in episodes])
    if spec is None:
        horizons = (obs_horizon, pred_horizon, act_horizon, q_horizon or act_horizon)
        spec = _spec(obs, action[has_action], episodes, horizons, anchor, num_actions)
    table = [chunk_rows(e, int(s), spec, anchor) for e, s in zip(episodes, starts, strict=False)]
    arrays: Arrays = {
        "rows": np.concatenate(table).astype(np.int32),
        "action": standard(np.concatenate([action, padding(action, control_mode)]), spec.action_mean, spec.action_std),
        "reward": reward,
        "counts": np.array([sum(len(e.action) for e in group) for group in groups], np.int64),
        "weights": np.array([] if weights is None else weights, np.float64),
    }
    for key, values in obs.items():
        arrays[f"obs.{key}"] = standard(values, spec.obs_mean[key], spec.obs_std[key])
    return arrays, spec


def _rows(per_step: np.ndarray) -> np.ndarray:
    return np.concatenate([per_step, np.zeros_like(per_step[:1])]).astype(np.float32)


def padding(action: np.ndarray, control_mode: str) -> np.ndarray:
    """What follows each action when its chunk has ended: no motion and the same gripper, or the same action again."""
    if control_mode not in GRIPPER_LAST:
        return action
    pad = np.zeros_like(action)
    if action.shape[1] == GRIPPER_LAST[control_mode]:
        pad[:, -1] = action[:, -1]
    return pad


def standard(x: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    return ((x - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)).astype(np.float32)


def _spec(
    obs: Mapping[str, np.ndarray],
    action: np.ndarray,
    episodes: Sequence[Episode],
    horizons: tuple[int, int, int, int],
    anchor: Anchor,
    num_actions: int,
) -> Spec:
    obs_horizon, pred_horizon, act_horizon, q_horizon = horizons

    def mean(x: np.ndarray) -> tuple[float, ...]:
        return tuple(x.mean(0, dtype=np.float64).tolist())

    def std(x: np.ndarray) -> tuple[float, ...]:
        return tuple(np.maximum(x.std(0, dtype=np.float64), MIN_STD).tolist())

    rewards = np.concatenate([e.reward for e in episodes])
    ends = np.concatenate([e.terminated for e in episodes])
    return Spec(
        obs_shape={k: v.shape[1:] for k, v in obs.items()},
        obs_mean={k: mean(v) for k, v in obs.items()},
        obs_std={k: std(v) for k, v in obs.items()},
        action_dim=action.shape[1],
        action_mean=(0.0,) if num_actions else mean(action),
        action_std=(1.0,) if num_actions else std(action),
        obs_horizon=obs_horizon,
        pred_horizon=pred_horizon,
        act_horizon=act_horizon,
        q_horizon=q_horizon,
        act_offset=0 if anchor == "current" else obs_horizon - 1,
        reward_low=float(rewards.min()),
        reward_high=float(rewards.max()),
        reward_ends_episode=bool(ends[rewards != 0].all()),
        num_actions=num_actions,
    )


def chunk_rows(e: Episode, start: int, spec: Spec, anchor: Anchor = "current") -> np.ndarray:
    """One row per step t: rows of window, next window, action, q_action, reward; then tau, terminal and t.

    `start` is the row of the episode's first frame. A row of padding is named by the negative of (the row it pads + 1).
    """
    t_o, h, h_p = spec.obs_horizon, spec.q_horizon, spec.pred_horizon
    length = len(e.action)
    t = np.arange(length)
    first = t if anchor == "current" else t - (t_o - 1)
    chunk = np.maximum(first, 0)
    next_end = np.append(np.flatnonzero(e.terminated), length)[np.searchsorted(np.flatnonzero(e.terminated), chunk)]
    tau = np.minimum(np.minimum(h, length - chunk), next_end - chunk + 1)
    terminal = next_end < chunk + tau
    window = np.maximum(t[:, None] + np.arange(1 - t_o, 1), 0)
    shift = 1 - t_o if anchor == "current" else 0
    next_window = np.clip((chunk + tau)[:, None] + np.arange(t_o) + shift, 0, length)
    predicted = first[:, None] + np.arange(h_p)
    action = np.where(predicted < length, start + np.maximum(predicted, 0), -(start + length))
    scored = chunk[:, None] + np.arange(h)
    last = (chunk + tau - 1)[:, None]
    q_action = np.where(scored <= last, start + scored, -(start + last + 1))
    reward = start + np.minimum(scored, length)
    numbers = np.stack([tau, terminal, t], axis=1)
    return np.concatenate([start + window, start + next_window, action, q_action, reward, numbers], axis=1)


class Dataset:
    """Chunks of a fixed data set on one device; shares memory with `arrays` on a CPU."""

    def __init__(self, arrays: Arrays, spec: Spec, device: str | torch.device = "cpu"):
        with warnings.catch_warnings():
            # arrays from an object store are read-only; nothing here writes
            warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
            tensors = {k: torch.from_numpy(v).to(device) for k, v in arrays.items()}
        self.spec, self.device = spec, torch.device(device)
        self._rows, self._action, self._reward = tensors["rows"], tensors["action"], tensors["reward"]
        self._obs = {k.removeprefix("obs."): v for k, v in tensors.items() if k.startswith("obs.")}
        self._counts, self._weights = tensors["counts"], tensors["weights"]
        self._offsets = self._counts.cumsum(0) - self._counts
        t_o, h, h_p = spec.obs_horizon, spec.q_horizon, spec.pred_horizon
        self._split = [2 * t_o, h_p + h, h, 1, 1, 1]
        self._step = torch.arange(h, device=device)

    def __len__(self) -> int:
        """Number of chunks, one per step."""
        return len(self._rows)

    def draw(self, generator: Generator, batch_size: int) -> Tensor:
        """Indices [B] of random chunks: uniform over all, or over each file with the files' weights."""
        if not len(self._weights):
            return torch.randint(len(self), (batch_size,), generator=generator, device=self.device)
        share = (self._weights / self._weights.sum()).cumsum(0)[:-1]
        u = torch.rand(2, batch_size, dtype=torch.float64, generator=generator, device=self.device)
        file = (u[0, :, None] >= share).sum(1)
        return self._offsets[file] + (u[1] * self._counts[file]).long()

    def batch(self, indices: Tensor) -> Batch:
        """Chunks at `indices`, [B] or [P, B]; every field has the same leading axes."""
        s, lead = self.spec, indices.shape
        rows = self._rows.index_select(0, indices.reshape(-1))
        frames, actions, rewards, tau, terminal, step = rows.split(self._split, dim=1)
        # padding of row r is stored behind all rows, at row count + r
        actions = torch.where(actions < 0, len(self._reward) - 1 - actions, actions)

        def gather(values: Tensor, at: Tensor) -> Tensor:
            return values.index_select(0, at.reshape(-1)).view(*lead, at.shape[1], *values.shape[1:])

        windows = {k: gather(v, frames).split(s.obs_horizon, dim=len(lead)) for k, v in self._obs.items()}
        action, q_action = gather(self._action, actions).split([s.pred_horizon, s.q_horizon], dim=len(lead))
        mask = (self._step < tau).float()
        return Batch(
            obs={k: w[0] for k, w in windows.items()},
            action=action,
            q_action=q_action,
            reward=gather(self._reward, rewards),
            mask=mask.view(*lead, mask.shape[1]),
            terminal=terminal.float().view(lead),
            next_obs={k: w[1] for k, w in windows.items()},
            step=step.float().view(lead),
        )

    def sample(self, generators: Sequence[Generator], batch_size: int, state: State) -> Batch:
        """One random batch per generator, [P, B, ...]; `state` does not matter to data that is already there."""
        return self.batch(torch.stack([self.draw(g, batch_size) for g in generators]))

    def metrics(self) -> Metrics:
        return {}

    def pack(self) -> State:
        return {}

    def unpack(self, saved: State) -> None: ...


def nbytes(arrays: Arrays) -> int:
    """Memory of a data set, once per node however many trials share it."""
    return sum(a.nbytes for a in arrays.values())
