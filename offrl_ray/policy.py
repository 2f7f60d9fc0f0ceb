"""A variant's acting part, and its critic, between raw observations and raw actions."""

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
    state: State  # `acting`; for `value` also `critic`, where there is one

    def act(self, window: Window, noise: Noise) -> Tensor:
        """Raw action chunk [N, H, A] within the action bounds."""
        action = self.alg.act(self.state, self._normalised(window), noise)
        raw = action * action.new_tensor(self.spec.action_std) + action.new_tensor(self.spec.action_mean)
        return raw.clamp(*self.spec.raw_bounds)

    def value(self, window: Window, chunk: Tensor) -> Tensor | None:
        """The critic's Q [N] of executing raw action chunks [N, H, A]; None for a variant without critic."""
        if self.alg.critic is None:
            return None
        action = (chunk - chunk.new_tensor(self.spec.action_mean)) / chunk.new_tensor(self.spec.action_std)
        return self.alg.critic.q(self.state, self._normalised(window), action)

    def _normalised(self, window: Window) -> Obs:
        obs: Obs = {}
        for key, frames in window.items():
            x = torch.stack(frames, dim=1)
            obs[key] = (x - x.new_tensor(self.spec.obs_mean[key])) / x.new_tensor(self.spec.obs_std[key])
        return obs


def acting(state: State, index: int) -> State:
    """What a member's `act` needs, out of a stacked state, on the CPU."""
    return to_device(select({"acting": state["acting"]}, index), "cpu")


def acting_and_critic(state: State, index: int) -> State:
    """What an evaluation of a member needs, likewise: `acting` and, where there is one, `critic`."""
    return to_device(select({k: state[k] for k in ("acting", "critic") if k in state}, index), "cpu")
