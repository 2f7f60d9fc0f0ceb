"""The tanh-Gaussian policy pi(a|s) over a predicted chunk (Haarnoja et al. 2018, appendix C).

a = tanh(u), u ~ N(mean(s), std(s)^2), every dimension by itself. Densities are those of raw actions in [-1, 1]^d,
d = H_p A, whatever the data's standard deviations are; actions go in and out in normalised units.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offrl_ray.algos import functional as fn
from offrl_ray.algos import nets
from offrl_ray.types import Spec

EDGE = 1 - 1e-6
"""Data actions are moved this far inside, so that atanh is finite: |u| <= 7.25."""


class TanhGaussian:
    """Functions of a policy's parameters; holds none itself."""

    def __init__(
        self,
        spec: Spec,
        hidden: Sequence[int],
        layer_norm: bool,
        activation: nets.Activation,
        log_std_min: float,
        log_std_max: float = 2.0,
    ):
        self.spec, self.shape = spec, (spec.pred_horizon, spec.action_dim)
        self.dim = math.prod(self.shape)
        self._mlp = (fn.condition_dim(spec), hidden, 2 * self.dim, layer_norm, activation)
        self._log_std = (log_std_min, log_std_max)
        self.forward = fn.stateless(self.module)

    def module(self) -> nn.Module:
        return nets.Mlp(*self._mlp)

    def normal(self, params: fn.Params, cond: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of u, [B, H_p, A] each."""
        mean, log_std = self.forward(params, cond).unflatten(1, (2, *self.shape)).unbind(1)
        return mean, log_std.clamp(*self._log_std)

    def sample(self, params: fn.Params, cond: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Reparameterised chunks and their log pi for standard normal eps, [..., B, H_p, A] -> same, [..., B]."""
        mean, log_std = self.normal(params, cond)
        u = mean + log_std.exp() * eps
        return self._normalised(torch.tanh(u)), _log_density(u, eps, log_std)

    def log_prob(self, params: fn.Params, cond: Tensor, action: Tensor) -> Tensor:
        """log pi of normalised chunks [B, H_p, A], [B]."""
        mean, log_std = self.normal(params, cond)
        raw = action * action.new_tensor(self.spec.action_std) + action.new_tensor(self.spec.action_mean)
        u = torch.atanh(raw.clamp(-EDGE, EDGE))
        return _log_density(u, (u - mean) * torch.exp(-log_std), log_std)

    def mode(self, params: fn.Params, cond: Tensor) -> Tensor:
        """tanh(mean), which is what acts when the policy is judged; normalised [B, H_p, A]."""
        return self._normalised(torch.tanh(self.normal(params, cond)[0]))

    def uniform(self, share: Tensor) -> Tensor:
        """Normalised actions spread over the action bounds; `share` is uniform in [0, 1), [..., A]."""
        return torch.lerp(share.new_tensor(self.spec.action_low), share.new_tensor(self.spec.action_high), share)

    def _normalised(self, raw: Tensor) -> Tensor:
        return self.uniform((raw + 1) / 2)


def _log_density(u: Tensor, eps: Tensor, log_std: Tensor) -> Tensor:
    """log N(u) - log |d tanh(u) / du|, summed over the chunk; eps is u's standardised form."""
    normal = -0.5 * eps.square() - log_std - 0.5 * math.log(2 * math.pi)
    return (normal - 2 * (math.log(2) - u - F.softplus(-2 * u))).sum((-2, -1))
