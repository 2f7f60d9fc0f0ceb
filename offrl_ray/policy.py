"""A variant's acting part between raw observations and raw actions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from offrl_ray.algos.functional import select, to_device
from offrl_ray.types import Algorithm, Noise, Obs, Spec, State

Window = dict[str, list[Tensor]]
"""Last T_o raw frames of each key, [N, ...] each."""


@dataclass(frozen=True)
class Policy:
    alg: Algorithm
    spec: Spec
    state: State  # only `State["acting"]` is needed

    def act(self, window: Window, noise: Noise) -> Tensor:
        """Raw action chunk [N, H, A] within the action bounds."""
        obs: Obs = {}
        for key, frames in window.items():
            x = torch.stack(frames, dim=1)
            obs[key] = (x - x.new_tensor(self.spec.obs_mean[key])) / x.new_tensor(self.spec.obs_std[key])
        action = self.alg.act(self.state, obs, noise)
        raw = action * action.new_tensor(self.spec.action_std) + action.new_tensor(self.spec.action_mean)
        return raw.clamp(*self.spec.raw_bounds)


def acting(state: State, index: int) -> State:
    """What a member's `act` needs, out of a stacked state, on the CPU."""
    return to_device(select({"acting": state["acting"]}, index), "cpu")
