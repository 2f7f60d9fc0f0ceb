"""Flow matching on action chunks: what the flow variants share.

Straight paths x_t = (1 - t) x_0 + t x_1 from noise x_0 ~ N(0, I) to data x_1 (Lipman et al. 2023; Liu et al. 2023).
A `Velocity` is v(params, x [B, H_p, A], t [B], cond [B, C]) -> [B, H_p, A].
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import Discriminator, Field, Tag
from torch import Tensor, nn

from offrl_ray.algos import functional as fn
from offrl_ray.algos import nets
from offrl_ray.errors import UsageError
from offrl_ray.fields import Count, config
from offrl_ray.types import Spec

Velocity = Callable[[fn.Params, Tensor, Tensor, Tensor], Tensor]


@config
class ResMlp:
    kind: Literal["resmlp"] = "resmlp"
    """velocity network: residual MLP"""
    width: Count = 256
    """hidden units"""
    blocks: Count = 3
    """residual layers"""
    time_dim: Annotated[int, Field(ge=4, multiple_of=2)] = 32
    """size of the embedding of flow time"""


@config
class Unet:
    kind: Literal["unet"] = "unet"
    """velocity network: 1-D U-Net"""
    widths: Annotated[tuple[Annotated[int, Field(ge=8, multiple_of=8)], ...], Field(min_length=2)] = (64, 128, 256)
    """channels per level; the seeds' 5.93 M parameters at 512 condition features"""
    time_dim: Annotated[int, Field(ge=4, multiple_of=2)] = 64
    """size of the embedding of flow time"""


def _kind(value: Any) -> Any:
    return value.get("kind", "resmlp") if isinstance(value, dict) else getattr(value, "kind", None)


Network = Annotated[
    Annotated[ResMlp, Tag("resmlp")] | Annotated[Unet, Tag("unet")],
    Discriminator(
        _kind, custom_error_type="network", custom_error_message="kind must be resmlp or unet: network.kind=unet"
    ),
]


def velocity_module(cfg: ResMlp | Unet, spec: Spec) -> Callable[[], nn.Module]:
    """Builder of the velocity network. Raises UsageError if the chunk does not fit the network."""
    cond = fn.condition_dim(spec)
    if isinstance(cfg, ResMlp):
        return lambda: nets.ResMlp(spec.pred_horizon, spec.action_dim, cond, cfg.width, cfg.blocks, cfg.time_dim)
    multiple = 2 ** (len(cfg.widths) - 1)
    if spec.pred_horizon % multiple:
        raise UsageError(
            [
                f"data.pred_horizon must be a multiple of {multiple} for a U-Net of {len(cfg.widths)} levels, "
                f"but is {spec.pred_horizon}; change it or algo.network.widths"
            ]
        )
    for level, width in enumerate(cfg.widths):
        if width // nets.GROUPS * spec.pred_horizon // 2**level < 3:
            raise UsageError(
                [
                    f"algo.network.widths must leave a normalisation group 3 numbers or more, but level {level} has "
                    f"{width} channels in {nets.GROUPS} groups at {spec.pred_horizon // 2**level} position; widen it"
                ]
            )
    return lambda: nets.Unet1d(spec.action_dim, cond, cfg.widths, cfg.time_dim)


def interpolate(x_0: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
    """x_t of the straight path; t is [B]."""
    return torch.lerp(x_0, x_1, t[:, None, None])


def flow_loss(v: Velocity, params: fn.Params, x_0: Tensor, x_1: Tensor, t: Tensor, cond: Tensor) -> Tensor:
    """L_flow per sample, [B]: mean over chunk and dimensions of (v(x_t, t) - (x_1 - x_0))^2."""
    return (v(params, interpolate(x_0, x_1, t), t, cond) - (x_1 - x_0)).square().mean((1, 2))


def integrate(v: Velocity, params: fn.Params, x: Tensor, t_0: Tensor, t_1: Tensor, cond: Tensor, steps: int) -> Tensor:
    """Euler steps from x at time t_0 [B] to time t_1 [B]."""
    dt = (t_1 - t_0) / steps
    for i in range(steps):
        x = x + dt[:, None, None] * v(params, x, t_0 + i * dt, cond)
    return x


def consistency_loss(
    v: Velocity,
    params: fn.Params,
    teacher: fn.Params,
    x_0: Tensor,
    x_1: Tensor,
    t: Tensor,
    cond: Tensor,
    steps: int,
) -> Tensor:
    """L_cons per sample, [B]: student and teacher start at the same point x_t+; only the student learns."""
    x_t = interpolate(x_0, x_1, t)
    x_hat = integrate(v, teacher, x_t, t, torch.ones_like(t), cond, steps).detach()
    return (v(params, x_t, t, cond) - (x_hat - x_0)).square().mean((1, 2))


def endpoint_loss(
    v: Velocity,
    params: fn.Params,
    teacher: fn.Params,
    x_0: Tensor,
    x_1: Tensor,
    t_c: Tensor,
    t_plus: Tensor,
    cond: Tensor,
    steps: int,
) -> Tensor:
    """Consistency of where the flow ends, [B]: both go on to time 1, the teacher from x_t_c, the student from x_t+."""
    one = torch.ones_like(t_c)
    x_hat = integrate(v, teacher, interpolate(x_0, x_1, t_c), t_c, one, cond, steps).detach()
    x = integrate(v, params, interpolate(x_0, x_1, t_plus), t_plus, one, cond, steps)
    return (x - x_hat).square().mean((1, 2))


def sample(v: Velocity, params: fn.Params, x_0: Tensor, cond: Tensor, steps: int, grad_steps: int) -> Tensor:
    """x_1 by `steps` Euler steps from noise; gradient reaches `params` through the last `grad_steps` only."""
    at = [x_0.new_full((x_0.shape[0],), i / steps) for i in range(steps + 1)]
    split = steps - grad_steps
    x = x_0
    if split:
        frozen = {k: p.detach() for k, p in params.items()}
        x = integrate(v, frozen, x, at[0], at[split], cond, split).detach()
    return integrate(v, params, x, at[split], at[steps], cond, grad_steps) if grad_steps else x
