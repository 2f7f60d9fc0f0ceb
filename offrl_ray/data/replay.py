"""A data set that grows by whole episodes: what an online run has lived through."""

import numpy as np
import torch
from torch import Tensor

from offrl_ray.data.dataset import Arrays, Dataset, chunk_rows, padding, standard
from offrl_ray.data.hdf5 import Episode
from offrl_ray.types import Spec, State

FIRST = 1024  # rows of room at the start; doubled whenever it is full


class Replay(Dataset):
    """Chunks of the episodes so far, in the layout of `Dataset`; keeps all of them."""

    def __init__(self, spec: Spec, control_mode: str = "", device: str | torch.device = "cpu"):
        columns = 2 * spec.obs_horizon + spec.pred_horizon + 2 * spec.q_horizon + 3
        room: Arrays = {
            "rows": np.zeros((0, columns), np.int32),
            "action": np.zeros((0, spec.action_dim), np.float32),
            "reward": np.zeros(0, np.float32),
            "counts": np.zeros(1, np.int64),
            "weights": np.zeros(0),
        }
        obs = {f"obs.{k}": np.zeros((0, *shape), np.float32) for k, shape in spec.obs_shape.items()}
        super().__init__(room | obs, spec, device)
        self._control_mode = control_mode
        self._chunks = self._frames = 0  # how much of the room is taken

    def __len__(self) -> int:
        return self._chunks

    def add(self, episode: Episode) -> None:
        """Append one episode; its last step may have been cut off anywhere."""
        s, steps = self.spec, len(episode.action)
        self._make_room(self._frames + steps + 1)
        here = slice(self._frames, self._frames + steps)
        for key, values in self._obs.items():
            new = standard(episode.obs[key], s.obs_mean[key], s.obs_std[key])
            values[self._frames : self._frames + steps + 1] = self._tensor(new)
        pad = padding(episode.action, self._control_mode)
        self._action[here] = self._tensor(standard(episode.action, s.action_mean, s.action_std))
        # of row r at room + r (Dataset.batch)
        self._action[len(self._reward) :][here] = self._tensor(standard(pad, s.action_mean, s.action_std))
        self._reward[here] = self._tensor(episode.reward)
        rows = chunk_rows(episode, self._frames, s).astype(np.int32)
        self._rows[self._chunks : self._chunks + steps] = self._tensor(rows)
        self._frames, self._chunks = self._frames + steps + 1, self._chunks + steps

    def pack(self) -> State:
        room = len(self._reward)
        obs = {f"obs.{k}": v[: self._frames].clone() for k, v in self._obs.items()}
        return {
            "rows": self._rows[: self._chunks].clone(),
            "action": self._action[: self._frames].clone(),
            "padding": self._action[room : room + self._frames].clone(),
            "reward": self._reward[: self._frames].clone(),
            **obs,
        }

    def unpack(self, saved: State) -> None:
        self._chunks, self._frames = len(saved["rows"]), len(saved["reward"])
        self._make_room(self._frames)
        room = len(self._reward)
        self._rows[: self._chunks] = saved["rows"]
        self._action[: self._frames] = saved["action"]
        self._action[room : room + self._frames] = saved["padding"]
        self._reward[: self._frames] = saved["reward"]
        for key, values in self._obs.items():
            values[: self._frames] = saved[f"obs.{key}"]

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _make_room(self, needed: int) -> None:
        old = len(self._reward)
        if needed <= old:
            return
        room = max(FIRST, 2 * old, needed)

        def grow(x: Tensor, size: int) -> Tensor:
            return torch.cat([x, x.new_zeros((size - len(x), *x.shape[1:]))])

        self._rows, self._reward = grow(self._rows, room), grow(self._reward, room)
        self._obs = {k: grow(v, room) for k, v in self._obs.items()}
        action, pad = self._action[:old], self._action[old:]
        self._action = torch.cat([grow(action, room), grow(pad, room)])


def prior(arrays: Arrays, spec: Spec, device: str | torch.device = "cpu") -> Dataset:
    """The data set of a run's files; an empty one if it has none."""
    return Dataset(arrays, spec, device) if arrays else Replay(spec, device=device)
