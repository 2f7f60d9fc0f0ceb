"""CPQL: consistency policy Q-learning on action chunks, in the flow-matching form of the seed documents.

A flow policy v imitates the data, is made self-consistent against its own EMA, and is pulled up the critic's slope:

    L_policy = bc_weight * L_flow + consistency_weight * L_cons + alpha * L_Q
    L_flow   = E (v(x_t, t) - (x_1 - x_0))^2                                 t ~ U(0, 1)
    L_cons   = E (v(x_t+, t+) - (x_1^ - x_0))^2                              x_1^ = EMA teacher, Euler from (x_t+, t+)
    L_Q      = -E Q(s, a),  a = clamp(sample(z))[:H]                         gradient through `q_grad_mode` Euler steps
    L_critic = mean_E (Q_i(s, a_D) - y)^2,  y = clip(rs R^(tau) + (1 - d) gamma^tau min_i Q'_i(s', a'), +-C)

symbol       name                   meaning
alpha        alpha                  weight of the Q term (in cccedric's code alpha weights BC, eta weights Q)
N            num_flow_steps         Euler steps of the sampler
k            q_grad_steps           last Euler steps that carry gradient; single_step samples in one Euler step instead
t_c, delta   cons_t_*, cons_delta_* t+ = min(t_c + delta, cons_t_max)
gamma, tau   gamma, tau             discount per environment step; Polyak rate of the target critic
C            q_target_clip          bound on |y|
rs           reward_scale

Sources: consistency policy Q-learning, Chen et al. 2024 (arXiv 2310.06343), code cccedric/cpql; the flow form and its
constants, Desperodoo/rlft cpql.py at 21e1514 (`q_norm="none"`, what seed document 000 ran) and 27556ec ("coinflip");
`q_norm="abs"`, FQL, Park et al. 2025. Next actions a' come from the EMA policy, as in Diffusion-QL (Wang et al. 2023).

Deviations from rlft: Adam without weight decay, constant rate after a linear warm-up (no cosine: a run then does not
depend on where it will be stopped); the critic loss is the mean over critics, not the sum; time is not rounded to 0.01;
the normaliser of L_Q has a floor `q_norm_eps`; the chunk starts at the current frame unless `data.q_chunk_anchor` says
"oldest"; actions are standardised, and the clamp is at the raw bounds +-1.
"""

import re
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Generator, Tensor

from offrl_ray.algos import flow
from offrl_ray.algos import functional as fn
from offrl_ray.algos.flow_critic import CriticConfig, FlowCritic
from offrl_ray.fields import Count, Needs, NonNegative, Positive, Swept, config
from offrl_ray.types import Algorithm, Batch, Hparams, Metrics, Noise, Spec, State


@config
class Config(CriticConfig):
    needs: ClassVar[Needs] = Needs()
    name: Literal["cpql"] = "cpql"
    """the variant"""
    alpha: Swept[NonNegative] = 0.01
    """weight of the Q term; 0 is flow + consistency BC"""
    q_grad_mode: Literal["single_step", "last_k", "whole_grad"] = "single_step"
    """Euler steps that carry the Q gradient: one big step, the last q_grad_steps of the sampler, or all of it"""
    q_grad_steps: Count | None = None
    """k of last_k, 1 .. num_flow_steps; `q_grad_mode=last_5` sets both"""
    q_norm: Literal["none", "coinflip", "abs"] = "none"
    """scale of the Q term: raw; one critic by the other's mean |Q|, by coin flip; mean Q by its mean |Q|"""
    q_norm_eps: Positive = 1e-3
    """floor of that mean |Q|"""

    @model_validator(mode="before")
    @classmethod
    def _last_k_spelling(cls, data: Any) -> Any:
        given = (data if isinstance(data, dict) else data.kwargs) or {}
        spelled = re.fullmatch(r"last_([0-9]+)", str(given.get("q_grad_mode")))
        if not spelled:
            return data
        k = int(spelled[1])
        if given.get("q_grad_steps") not in (None, k):
            raise ValueError(
                f"q_grad_mode=last_{k} sets q_grad_steps={k}, but got q_grad_steps={given['q_grad_steps']}"
            )
        return {**given, "q_grad_mode": "last_k", "q_grad_steps": k}

    def broken_rules(self) -> list[str]:
        k, n, rules = self.q_grad_steps, self.num_flow_steps, super().broken_rules()
        if (self.q_grad_mode == "last_k") != (k is not None):
            rules.append(
                f"q_grad_steps must be given for q_grad_mode=last_k and only then, "
                f"but got q_grad_mode={self.q_grad_mode}, q_grad_steps={k}; write q_grad_mode=last_{k or 5}"
            )
        if k is not None and k > n:
            rules.append(f"q_grad_steps must be <= num_flow_steps, but got {k} > {n}; lower it or use whole_grad")
        return rules

    def inert(self) -> frozenset[str]:
        names = set(super().inert())
        if self.alpha == 0:
            names |= {"q_grad_mode", "q_grad_steps", "q_norm", "q_norm_eps"}
        if self.num_flow_steps == 1:
            names |= {"q_grad_mode", "q_grad_steps"}
        if self.q_norm == "none":
            names |= {"q_norm_eps"}
        return frozenset(names)


def q_loss(q: Tensor, coin: Tensor, cfg: Config) -> tuple[Tensor, Tensor, Tensor]:
    """L_Q from critic values [E, B]; also the value that the seed calls q_mean, and the normaliser."""
    first, second = q[0], q[1]
    if cfg.q_norm == "none":
        return -first.mean(), first.mean(), first.new_ones(())
    if cfg.q_norm == "abs":
        mean = q.mean(0)
        scale = mean.abs().mean().clamp_min(cfg.q_norm_eps).detach()
        return -mean.mean() / scale, mean.mean(), scale
    up, by = torch.where(coin, first, second), torch.where(coin, second, first)
    scale = by.abs().mean().clamp_min(cfg.q_norm_eps).detach()
    return -up.mean() / scale, q.min(0).values.mean(), scale


class _Cpql(FlowCritic):
    cfg: Config

    def __init__(self, cfg: Config, spec: Spec):
        super().__init__(cfg, spec)
        self.q_steps = 1 if cfg.q_grad_mode == "single_step" else cfg.num_flow_steps
        self.grad_steps = cfg.q_grad_steps or self.q_steps

    def update_noise(self, g: Generator, batch_size: int) -> Noise:
        noise = {name: fn.normal_chunks(g, self.spec, batch_size) for name in ("x_0", "z", "z_next")}
        noise |= {name: self.uniform(g, batch_size) for name in ("t", "t_c", "delta")}
        return noise | {"coin": self.uniform(g), "random_action": self.random_action(g, batch_size)}

    def consistency_term(
        self, policy: fn.Params, teacher: fn.Params, batch: Batch, cond: Tensor, noise: Noise
    ) -> tuple[Tensor, Metrics]:
        loss = self.consistency_errors(policy, teacher, batch, cond, noise).mean()
        return loss, {"consistency_loss": loss}

    def value_term(
        self, policy: fn.Params, critic: fn.Params, cond: Tensor, noise: Noise, hp: Hparams
    ) -> tuple[Tensor, Metrics]:
        raw = flow.sample(self.v, policy, noise["z"], cond, self.q_steps, self.grad_steps)
        action = fn.clip_action(raw, self.spec)
        q = self.q(self.logits(critic, cond, action), hp)
        loss, q_mean, scale = q_loss(q, noise["coin"] < 0.5, self.cfg)
        return loss, {
            "q_policy_loss": loss,
            "q_mean": q_mean,
            "q_policy_mean": q.mean(),
            "q_norm_scale": scale,
            "action_saturation": (raw != action)[:, : self.spec.act_horizon].float().mean(),
        }

    def update(self, state: State, batch: Batch, noise: Noise, hp: Hparams) -> tuple[State, Metrics]:
        """Policy step, critic step, Polyak, EMA; both steps see the parameters from before the update."""
        cond = fn.encode(batch.obs)
        policy, teacher = state["policy"], state["acting"]["policy_ema"]
        terms = {
            "flow": (hp["bc_weight"], fn.gradient(self.flow_term, policy, batch, cond, noise)),
            "consistency": (
                hp["consistency_weight"],
                fn.gradient(self.consistency_term, policy, teacher, batch, cond, noise),
            ),
            "q_policy": (hp["alpha"], fn.gradient(self.value_term, policy, state["critic"], cond, noise, hp)),
        }
        new, metrics = self.policy_step(state, terms, hp)
        critic, critic_metrics, _ = self.critic_step(state, batch, cond, noise, hp)
        new |= critic
        metrics |= critic_metrics | fn.bound_metrics(self.spec, hp["gamma"], hp["reward_scale"])
        metrics["loss"] = metrics["policy_loss"] + metrics["critic_loss"]
        return new | self.averaged(state, new, hp), metrics


def make(cfg: Config, spec: Spec) -> Algorithm:
    """Raises UsageError if the network does not fit the chunk."""
    c = _Cpql(cfg, spec)
    return Algorithm(c.init, c.update_noise, c.update, c.act_noise, c.act, critic=c.critic)
