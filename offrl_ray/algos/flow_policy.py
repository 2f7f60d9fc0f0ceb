"""A policy that imitates by flow matching and acts by its average: what every flow variant has.

    L_flow = E (v(x_t, t) - (x_1 - x_0))^2,  t ~ U(0, 1)

One clipped Adam step an update on the weighted sum of the variant's terms, with a linear warm-up. What acts is the
exponential moving average (EMA) of the parameters, by N Euler steps from noise and a clamp at the action bounds.
"""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Generator, Tensor

from offrl_ray.algos import flow
from offrl_ray.algos import functional as fn
from offrl_ray.fields import Count, Fraction, NonNegative, Positive, Swept, config
from offrl_ray.types import Batch, Hparams, Metrics, Noise, Obs, Spec, State

Term = tuple[Tensor, tuple[Tensor, Metrics]]
"""Weight of a part of the policy's loss, its gradient, and its metrics, NAME_loss among them."""


@config
class PolicyConfig:
    num_flow_steps: Count = 10
    """N, Euler steps of the sampler"""
    ema_decay: Swept[Fraction] = 0.999
    """of the averaged policy: the one that acts and, where there are any, teaches and picks next actions"""
    lr: Swept[Positive] = 1e-4
    """Adam step size of the policy"""
    warmup_steps: Swept[NonNegative] = 500
    """updates over which the policy's step size rises linearly"""
    grad_clip: Swept[Positive | None] = 1.0
    """largest gradient norm of each network, each member by itself; none switches it off"""
    network: flow.Network = Field(default_factory=flow.ResMlp)
    """velocity network"""


class FlowPolicy:
    """For one member; holds configuration and network functions, never parameters."""

    def __init__(self, cfg: PolicyConfig, spec: Spec):
        self.cfg, self.spec = cfg, spec
        self.policy_module = flow.velocity_module(cfg.network, spec)
        self.v = fn.stateless(self.policy_module)

    def init(self, g: Generator) -> State:
        policy = fn.init_params(self.policy_module, g)
        return {"acting": {"policy_ema": policy}, "policy": policy, "policy_opt": fn.adam_init(policy)}

    def uniform(self, g: Generator, *size: int) -> Tensor:
        return torch.rand(size, generator=g, device=g.device)

    def sample(self, policy: fn.Params, z: Tensor, cond: Tensor) -> Tensor:
        """Predicted chunks [B, H_p, A] from noise, without gradient."""
        return fn.clip_action(flow.sample(self.v, policy, z, cond, self.cfg.num_flow_steps, 0), self.spec)

    def flow_errors(self, policy: fn.Params, batch: Batch, cond: Tensor, noise: Noise) -> Tensor:
        """L_flow per sample, [B]."""
        return flow.flow_loss(self.v, policy, noise["x_0"], batch.action, noise["t"], cond)

    def flow_term(self, policy: fn.Params, batch: Batch, cond: Tensor, noise: Noise) -> tuple[Tensor, Metrics]:
        loss = self.flow_errors(policy, batch, cond, noise).mean()
        return loss, {"flow_loss": loss}

    def policy_step(self, state: State, terms: Mapping[str, Term], hp: Hparams) -> tuple[State, Metrics]:
        """One Adam step on L_policy; the terms' gradients are taken apart, so that their norms can be compared."""
        metrics: Metrics = {}
        total, loss = torch.zeros(()), torch.zeros(())
        for name, (weight, (g, m)) in terms.items():
            metrics |= {**m, f"grad_norm_{name}": g.norm()}
            # where, not only a product: with weight 0 not even a diverged critic may touch the policy
            total = total + torch.where(weight > 0, weight * g, 0.0)
            loss = loss + torch.where(weight > 0, weight * m[f"{name}_loss"], 0.0)
        warm = ((state["policy_opt"]["t"] + 1) / hp["warmup_steps"].clamp_min(1)).clamp_max(1)
        changed, norm = fn.descend(state, "policy", total, hp["lr"] * warm, hp["grad_clip"])
        metrics |= {"policy_loss": loss, "actor_loss": loss, "grad_norm_policy": norm}
        return changed, metrics

    def averaged(self, state: State, new: State, hp: Hparams) -> State:
        """The averages of what `new` holds, one update further than in `state`."""
        return {"acting": {"policy_ema": fn.polyak(state["acting"]["policy_ema"], new["policy"], 1 - hp["ema_decay"])}}

    def act_noise(self, g: Generator, n: int) -> Noise:
        return {"z": fn.normal_chunks(g, self.spec, n)}

    def act(self, state: State, obs: Obs, noise: Noise) -> Tensor:
        return fn.executed(self.sample(state["acting"]["policy_ema"], noise["z"], fn.encode(obs)), self.spec)
