"""Pure pieces that variants share: parameters as data, Adam, clipping, Polyak, Q bounds, the SMDP target.

Parameters are dicts of tensors; a module is only a function of them. Everything here is for one member.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn

from offrl_ray.types import Batch, Metrics, Noise, Obs, Spec, State

Params = dict[str, Tensor]


def init_params(module: Callable[[], nn.Module], generator: Generator) -> Params:
    """Freshly initialised parameters; a function of the generator alone, though `nn` draws from the global RNG."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        built = module()
    return {k: v.detach().to(generator.device) for k, v in built.named_parameters()}


def stateless(module: Callable[[], nn.Module]) -> Callable[..., Tensor]:
    """The module's forward as a function `f(params, *inputs)`; its own parameters take no memory."""
    with torch.device("meta"):
        built = module()
    return lambda params, *inputs: cast(Tensor, torch.func.functional_call(built, params, inputs, tie_weights=False))


def ravel(params: Params) -> Tensor:
    """All parameters as one vector, in the dict's order."""
    return torch.cat([p.reshape(-1) for p in params.values()])


def unravel(vector: Tensor, like: Params) -> Params:
    parts = vector.split([p.numel() for p in like.values()])
    return {k: part.view(p.shape) for (k, p), part in zip(like.items(), parts, strict=True)}


def gradient(loss: Callable[..., tuple[Tensor, Any]], params: Params, *inputs: Any) -> tuple[Tensor, Any]:
    """Gradient of `loss(params, *inputs)` by `params` as one vector, and what the loss returns beside its value.

    A lone member's by plain autograd: torch.func's, which a stack of members needs, records the backward pass as well,
    and that costs small networks as much as the pass itself.
    """
    if torch._C._are_functorch_transforms_active():
        tree, aux = torch.func.grad(loss, has_aux=True)(params, *inputs)
        return ravel(tree), aux
    with torch.enable_grad():
        leaves = {k: p.detach().requires_grad_() for k, p in params.items()}
        value, aux = loss(leaves, *inputs)
        found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return torch.cat([g.reshape(-1) for g in found]), tree_map(Tensor.detach, aux)


def clip_norm(grad: Tensor, max_norm: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient vector scaled to at most `max_norm`, and its norm before."""
    norm = grad.norm()
    return grad * (max_norm / norm.clamp_min(1e-12)).clamp_max(1.0), norm


def adam_init(params: Params) -> State:
    zero = torch.zeros_like(ravel(params))
    return {"m": zero, "v": zero.clone(), "t": torch.zeros((), device=zero.device)}


def adam(
    params: Params, grad: Tensor, opt: State, lr: Tensor, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> tuple[Params, State]:
    """One step of Adam (Kingma & Ba 2015, algorithm 1) on a raveled gradient, in few passes over the parameters."""
    t = opt["t"] + 1
    m = torch.lerp(opt["m"], grad, 1 - b1)
    v = torch.addcmul(b2 * opt["v"], grad, grad, value=1 - b2)
    unbias_1 = -torch.expm1(t * math.log(b1))  # 1 - b^t, without its cancellation
    unbias_2 = (-torch.expm1(t * math.log(b2))).sqrt()
    step = m / v.sqrt().add_(eps * unbias_2)
    rate = -lr * unbias_2 / unbias_1
    stepped = {k: params[k].addcmul(d, rate) for k, d in unravel(step, params).items()}
    return stepped, {"m": m, "v": v, "t": t}


def descend(state: State, name: str, grad: Tensor, lr: Tensor, max_norm: Tensor) -> tuple[State, Tensor]:
    """One clipped step of Adam on `state[name]`: what changes in the state, and the gradient's norm before clipping."""
    grad, norm = clip_norm(grad, max_norm)
    params, opt = adam(state[name], grad, state[f"{name}_opt"], lr)
    return {name: params, f"{name}_opt": opt}, norm


def polyak(target: Params, online: Params, rate: Tensor) -> Params:
    """(1 - rate) * target + rate * online."""
    return {k: torch.lerp(target[k], online[k], rate) for k in target}


def encode(obs: Obs) -> Tensor:
    """Observation window -> condition vector [B, C]: all frames of all keys side by side."""
    windows = [obs[k].flatten(1) for k in sorted(obs)]
    return torch.cat(windows, dim=1) if len(windows) > 1 else windows[0]


def condition_dim(spec: Spec) -> int:
    """C, the width of `encode`'s result."""
    return spec.obs_horizon * sum(math.prod(shape) for shape in spec.obs_shape.values())


def no_noise(g: Generator, size: int) -> Noise:
    """Of an update or a policy that draws nothing."""
    return {}


def normal_chunks(g: Generator, spec: Spec, *size: int) -> Tensor:
    """Standard normal predictions, [*size, H_p, A]."""
    return torch.randn((*size, spec.pred_horizon, spec.action_dim), generator=g, device=g.device)


def action_bounds(spec: Spec, like: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest normalised action, [A] each."""
    return like.new_tensor(spec.action_low), like.new_tensor(spec.action_high)


def clip_action(action: Tensor, spec: Spec) -> Tensor:
    """Actions [..., A] within the bounds; no gradient outside."""
    low, high = action_bounds(spec, action)
    return torch.minimum(torch.maximum(action, low), high)


def between_bounds(share: Tensor, spec: Spec) -> Tensor:
    """Normalised actions [..., A] at a share of the way from the lower bound to the upper one."""
    return torch.lerp(*action_bounds(spec, share), share)


def executed(prediction: Tensor, spec: Spec) -> Tensor:
    """The part [B, H, A] of a prediction [B, H_p, A] that the environment sees."""
    return prediction[:, spec.act_offset : spec.act_offset + spec.act_horizon]


def chunk_return(batch: Batch, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """R^(tau) = sum_{i<tau} gamma^i r_{t+i} and gamma^tau, each [B] (Sutton, Precup & Singh 1999, SMDP backup)."""
    powers = gamma ** torch.arange(batch.reward.shape[1], device=batch.reward.device)
    return (powers * batch.mask * batch.reward).sum(1), gamma ** batch.mask.sum(1)


def td_target(batch: Batch, next_value: Tensor, gamma: Tensor, reward_scale: Tensor, clip: Tensor) -> Tensor:
    """y = clip(rs * R^(tau) + (1 - d) * gamma^tau * V(s'), -clip, clip), [B]."""
    ret, discount = chunk_return(batch, gamma)
    y = reward_scale * ret + (1 - batch.terminal) * discount * next_value
    return y.clamp(-clip, clip)


def expectile_loss(u: Tensor, kappa: Tensor) -> Tensor:
    """|kappa - 1(u < 0)| u^2, per entry (Newey & Powell 1987)."""
    return torch.where(u < 0, 1 - kappa, kappa) * u.square()


def q_bounds(spec: Spec, gamma: Tensor, reward_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value that any fixed point of the backup on this data can have.

    A reward that is only paid on the terminating step is received once; any other at most 1 / (1 - gamma) times.
    """
    horizon = torch.ones_like(gamma) if spec.reward_ends_episode else 1 / (1 - gamma)
    scale = reward_scale * horizon
    return min(spec.reward_low, 0.0) * scale, max(spec.reward_high, 0.0) * scale


def bound_metrics(spec: Spec, gamma: Tensor, reward_scale: Tensor) -> Metrics:
    low, high = q_bounds(spec, gamma, reward_scale)
    return {"q_bound_low": low, "q_bound_high": high}


def target_metrics(y: Tensor, next_value: Tensor, clip: Tensor) -> Metrics:
    """Of a TD target."""
    clipped = (y.abs() >= clip).float().mean()
    return {"td_target_mean": y.mean(), "td_target_clipped": clipped, "q_next_mean": next_value.mean()}


def tree_map(f: Callable[..., Any], *trees: Any) -> Any:
    """`f` on the tensors of equally built nested dicts, tuples and batches."""
    if isinstance(trees[0], tuple):
        made = tuple(tree_map(f, *fields) for fields in zip(*trees, strict=True))
        return Batch(*made) if isinstance(trees[0], Batch) else made
    if isinstance(trees[0], dict):
        return {k: tree_map(f, *(t[k] for t in trees)) for k in trees[0]}
    return f(*trees)


def to_device(tree: Any, device: str | torch.device) -> Any:
    """The same nested dict with its tensors on `device`."""
    return tree_map(lambda leaf: leaf.to(device), tree)


def stack(trees: list[Any]) -> Any:
    """Nested dicts of tensors, joined along a new first axis."""
    return tree_map(lambda *leaves: torch.stack(leaves), *trees)


def select(tree: Any, index: Any) -> Any:
    """Entry `index` of the first axis of every tensor."""
    return tree_map(lambda leaf: leaf[index], tree)
