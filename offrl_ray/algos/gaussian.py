"""The tanh-Gaussian policy pi(a|s) over a predicted chunk (Haarnoja et al. 2018, appendix C).

a = tanh(u), u ~ N(mean(s), std(s)^2), every dimension by itself. Densities are those of raw actions in [-1, 1]^d,
d = H_p A, whatever the data's standard deviations are; actions go in and out in normalised units.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from offrl_ray.algos import functional as fn
from offrl_ray.algos import nets
from offrl_ray.types import Spec

EDGE = 1 - 17 * 2**-24
"""Data actions are moved this far inside, so that atanh is finite: |u| <= 7.25. It is 1 - 1e-6 as float32 has it."""


class TanhGaussian:
    """Functions of a policy's parameters; holds none itself."""

    def __init__(
        self,
        spec: Spec,
        hidden: Sequence[int],
        layer_norm: bool,
        activation: nets.Activation,
        log_std_min: float = -20.0,
        log_std_max: float = 2.0,
    ):
        self.spec, self.shape = spec, (spec.pred_horizon, spec.action_dim)
        self.dim = math.prod(self.shape)
        self._mlp = (fn.condition_dim(spec), hidden, 2 * self.dim, layer_norm, activation)
        self._log_std = (log_std_min, log_std_max)
        self.forward = fn.stateless(self.module)

    def module(self) -> nn.Module:
        return nets.Mlp(*self._mlp)

    def moments(self, params: fn.Params, cond: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of u, [B, H_p, A] each."""
        mean, log_std = self.forward(params, cond).unflatten(1, (2, *self.shape)).unbind(1)
        return mean, log_std.clamp(*self._log_std)

    def sample(self, params: fn.Params, cond: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Reparameterised chunks and their log pi for standard normal eps, [..., B, H_p, A] -> same, [..., B].

        With fewer than H_p steps in eps it is the chunk's beginning, and the density of that alone.
        """
        return self.draw(*self.moments(params, cond), eps)

    def log_prob(self, params: fn.Params, cond: Tensor, action: Tensor) -> Tensor:
        """log pi of normalised chunks [B, H_p, A], [B]."""
        return self.log_density(*self.moments(params, cond), action)

    def mode(self, params: fn.Params, cond: Tensor) -> Tensor:
        """tanh(mean), which is what acts when the policy is judged; normalised [B, H_p, A]."""
        return self.squash(self.moments(params, cond)[0])

    def chunk(self, params: fn.Params, cond: Tensor, eps: Tensor) -> Tensor:
        """`sample` without the density."""
        mean, log_std = self.moments(params, cond)
        return self.squash(torch.addcmul(mean, log_std.exp(), eps))

    def draw(self, mean: Tensor, log_std: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """`sample` where the forward pass is already done."""
        mean, log_std = (x[:, : eps.shape[-2]] for x in (mean, log_std))
        u = torch.addcmul(mean, log_std.exp(), eps)
        return self.squash(u), self._log_density(u, eps, log_std)

    def log_density(self, mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
        """`log_prob` where the forward pass is already done."""
        raw = action * action.new_tensor(self.spec.action_std) + action.new_tensor(self.spec.action_mean)
        u = torch.atanh(raw.clamp(-EDGE, EDGE))
        return self._log_density(u, (u - mean) * torch.exp(-log_std), log_std)

    def squash(self, u: Tensor) -> Tensor:
        """tanh(u) in normalised units."""
        return fn.between_bounds(torch.sigmoid(2 * u), self.spec)  # (tanh(u) + 1) / 2

    def _log_density(self, u: Tensor, eps: Tensor, log_std: Tensor) -> Tensor:
        """log N(u) - log |d tanh(u) / du|, summed over the chunk; eps is u's standardised form."""
        # 1 - tanh(u)^2 = (2 / (e^u + e^-u))^2
        steps = torch.addcmul(2 * torch.logaddexp(u, -u) - log_std, eps, eps, value=-0.5)
        return steps.sum((-2, -1)) - math.prod(u.shape[-2:]) * (2 * math.log(2) + 0.5 * math.log(2 * math.pi))
