"""Networks, used as stateless functions of their parameters (functional.stateless). No dropout, no batch statistics."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["relu", "mish", "tanh"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu_, "mish": F.mish, "tanh": torch.tanh}
GROUPS = 8
"""of GroupNorm, per convolution"""


def sinusoidal(t: Tensor, dim: int) -> Tensor:
    """Transformer embedding of flow time t in [0, 1], [B] -> [B, dim]; one period unit is 0.01."""
    half = dim // 2
    freqs = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half, device=t.device, dtype=t.dtype))
    phase = 100 * t[:, None] * freqs
    return torch.cat([phase.sin(), phase.cos()], dim=1)


class EnsembleMlp(nn.Module):
    """E independent MLPs, LayerNorm (or none) and an activation after each hidden layer: [B, in] -> [E, B].

    With `each` [B, n, D] the inputs are `x` [B, in - D] beside each of the n, and the result is [E, B, n]: the first
    layer sees x once. With [B, D] there is one for each x, and no gradient by x is computed where none is wanted.
    Hidden layers are orthogonal with gain sqrt(2); the last layer is small, so that values start near zero.
    """

    def __init__(
        self,
        size: int,
        inputs: int,
        hidden: Sequence[int],
        layer_norm: bool = True,
        activation: Activation = "mish",
    ):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.widths = [inputs, *hidden]
        pairs = list(zip(self.widths[:-1], self.widths[1:], strict=True))
        self.w = nn.ParameterList([self._orthogonal(size, i, o, math.sqrt(2)) for i, o in pairs])
        self.b = nn.ParameterList([torch.zeros(size, 1, o) for _, o in pairs])
        norms = pairs if layer_norm else []
        self.norm_w = nn.ParameterList([torch.ones(size, 1, o) for _, o in norms])
        self.norm_b = nn.ParameterList([torch.zeros(size, 1, o) for _, o in norms])
        self.w_out = nn.Parameter(self._orthogonal(size, self.widths[-1], 1, 0.01))
        self.b_out = nn.Parameter(torch.zeros(size, 1, 1))

    @staticmethod
    def _orthogonal(size: int, inputs: int, outputs: int, gain: float) -> Tensor:
        w = torch.empty(size, inputs, outputs)
        for member in w:
            nn.init.orthogonal_(member, gain)
        return w

    def forward(self, x: Tensor, each: Tensor | None = None) -> Tensor:
        if each is None:
            return self._after_first(self._first(x, self.w[0]))
        w_x, w_each = self.w[0].split((x.shape[1], each.shape[-1]), 1)
        h = self._first(x, w_x)
        if each.dim() == 2:
            return self._after_first(torch.baddbmm(h, each.expand(len(h), *each.shape), w_each))
        flat = each.flatten(0, 1)
        pairs = torch.bmm(flat.expand(len(h), *flat.shape), w_each).unflatten(1, each.shape[:2])
        return self._after_first((pairs + h[:, :, None]).flatten(1, 2)).unflatten(1, each.shape[:2])

    def _first(self, x: Tensor, w: Tensor) -> Tensor:
        return torch.baddbmm(self.b[0], x.expand(len(w), *x.shape), w)

    def _after_first(self, h: Tensor) -> Tensor:
        norms = zip(self.norm_w, self.norm_b, strict=True)
        for layer, (w, b) in enumerate(zip(self.w, self.b, strict=True)):
            if layer:
                h = torch.baddbmm(b, h, w)
            if norm := next(norms, None):
                h = F.layer_norm(h, h.shape[-1:]) * norm[0] + norm[1]
            h = self.activation(h)
        # as a sum: products with one column are slow as matrix products, and their gradients slower
        return (h * self.w_out.transpose(1, 2)).sum(-1) + self.b_out.squeeze(-1)


class Mlp(nn.Module):
    """[B, in] -> [B, out]; hidden layers as those of `EnsembleMlp`, and a small last layer."""

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, layer_norm: bool, activation: Activation):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        widths = [inputs, *hidden]
        self.layers = nn.ModuleList([nn.Linear(i, o) for i, o in zip(widths[:-1], hidden, strict=True)])
        self.norms = nn.ModuleList([nn.LayerNorm(o) if layer_norm else nn.Identity() for o in hidden])
        self.out = nn.Linear(widths[-1], outputs)
        for layer in (*self.layers, self.out):
            nn.init.orthogonal_(layer.weight, 0.01 if layer is self.out else math.sqrt(2))
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = self.activation(norm(layer(x)))
        return self.out(x)


class ResMlp(nn.Module):
    """Velocity field v(x, t, cond) as a pre-norm residual ReLU MLP: [B, H_p, A], [B], [B, C] -> [B, H_p, A]."""

    def __init__(self, horizon: int, action_dim: int, cond_dim: int, width: int, blocks: int, time_dim: int):
        super().__init__()
        flat = horizon * action_dim
        self.time_dim = time_dim
        self.inp = nn.Linear(flat + time_dim + cond_dim, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(blocks)])
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(blocks)])
        self.out = nn.Linear(width, flat)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        h = self.inp(torch.cat([x.flatten(1), sinusoidal(t, self.time_dim), cond], dim=1))
        for norm, layer in zip(self.norms, self.layers, strict=True):
            h = h + layer(F.relu(norm(h)))
        return self.out(F.relu(h)).view(x.shape)


class ConvBlock(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int):
        super().__init__(
            nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2), nn.GroupNorm(groups, outputs), nn.Mish()
        )


class FilmBlock(nn.Module):
    """Residual pair of convolutions, modulated per channel by the condition (FiLM, Perez et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, cond: int, kernel: int, groups: int):
        super().__init__()
        self.first = ConvBlock(inputs, outputs, kernel, groups)
        self.second = ConvBlock(outputs, outputs, kernel, groups)
        self.film = nn.Linear(cond, 2 * outputs)
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        scale, bias = self.film(F.mish(cond))[:, :, None].chunk(2, dim=1)
        return self.second(scale * self.first(x) + bias) + self.skip(x)


class FilmPair(nn.Module):
    def __init__(self, inputs: int, outputs: int, cond: int, kernel: int, groups: int):
        super().__init__()
        self.first = FilmBlock(inputs, outputs, cond, kernel, groups)
        self.second = FilmBlock(outputs, outputs, cond, kernel, groups)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        return self.second(self.first(x, cond), cond)


class Unet1d(nn.Module):
    """Velocity field as the conditional 1-D U-Net of Diffusion Policy (Chi et al. 2023): shapes as `ResMlp`.

    H_p must be divisible by 2^(len(widths) - 1).
    """

    def __init__(
        self,
        action_dim: int,
        cond_dim: int,
        widths: Sequence[int],
        time_dim: int,
        kernel: int = 5,
        groups: int = GROUPS,
    ):
        super().__init__()
        self.time_dim = time_dim
        self.time = nn.Sequential(nn.Linear(time_dim, 4 * time_dim), nn.Mish(), nn.Linear(4 * time_dim, time_dim))

        def pair(inputs: int, outputs: int) -> FilmPair:
            return FilmPair(inputs, outputs, time_dim + cond_dim, kernel, groups)

        pairs = list(zip([action_dim, *widths[:-1]], widths, strict=True))
        self.down = nn.ModuleList([pair(i, o) for i, o in pairs])
        self.shrink = nn.ModuleList([nn.Conv1d(w, w, 3, 2, 1) for w in widths[:-1]])
        self.mid = pair(widths[-1], widths[-1])
        self.up = nn.ModuleList([pair(2 * o, i) for i, o in reversed(pairs[1:])])
        self.grow = nn.ModuleList([nn.ConvTranspose1d(i, i, 4, 2, 1) for i, _ in reversed(pairs[1:])])
        self.out = nn.Sequential(ConvBlock(widths[0], widths[0], kernel, groups), nn.Conv1d(widths[0], action_dim, 1))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        cond = torch.cat([self.time(sinusoidal(t, self.time_dim)), cond], dim=1)
        h, skips = x.transpose(1, 2), []
        for level, block in enumerate(self.down):
            h = block(h, cond)
            skips.append(h)
            if level < len(self.shrink):
                h = self.shrink[level](h)
        h = self.mid(h, cond)
        for block, grow in zip(self.up, self.grow, strict=True):
            h = grow(block(torch.cat([h, skips.pop()], dim=1), cond))
        return self.out(h).transpose(1, 2)
