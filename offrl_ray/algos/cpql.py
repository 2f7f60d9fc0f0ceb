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
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Generator, Tensor
from torch.func import grad

from offrl_ray.algos import flow, nets
from offrl_ray.algos import functional as fn
from offrl_ray.fields import Count, Discount, Fraction, Needs, NonNegative, Positive, Swept, config
from offrl_ray.types import Algorithm, Batch, Hparams, Metrics, Noise, Obs, Spec, State


@config
class Config:
    needs: ClassVar[Needs] = Needs()
    name: Literal["cpql"] = "cpql"
    """the variant"""
    alpha: Swept[NonNegative] = 0.01
    """weight of the Q term; 0 is flow + consistency BC"""
    bc_weight: Swept[NonNegative] = 1.0
    """weight of the flow-matching term"""
    consistency_weight: Swept[NonNegative] = 1.0
    """weight of the consistency term"""
    q_grad_mode: Literal["single_step", "last_k", "whole_grad"] = "single_step"
    """Euler steps that carry the Q gradient: one big step, the last q_grad_steps of the sampler, or all of it"""
    q_grad_steps: Count | None = None
    """k of last_k, 1 .. num_flow_steps; `q_grad_mode=last_5` sets both"""
    q_norm: Literal["none", "coinflip", "abs"] = "none"
    """scale of the Q term: raw; one critic by the other's mean |Q|, by coin flip; mean Q by its mean |Q|"""
    q_norm_eps: Positive = 1e-3
    """floor of that mean |Q|"""
    num_flow_steps: Count = 10
    """N, Euler steps of the sampler"""
    cons_t_min: Fraction = 0.05
    """smallest t_c"""
    cons_t_max: Fraction = 0.95
    """largest t_c and t+"""
    cons_delta_min: Fraction = 0.02
    """smallest t+ - t_c"""
    cons_delta_max: Fraction = 0.15
    """largest t+ - t_c"""
    teacher_steps: Count = 2
    """Euler steps of the consistency teacher"""
    gamma: Swept[Discount] = 0.99
    """discount per environment step"""
    tau: Swept[Fraction] = 0.005
    """Polyak rate of the target critic"""
    ema_decay: Swept[Fraction] = 0.999
    """of the policy that acts, teaches and picks next actions"""
    reward_scale: Swept[Positive] = 0.1
    """factor on rewards"""
    q_target_clip: Swept[Positive] = 100.0
    """bound on the absolute TD target"""
    random_action_penalty: NonNegative = 0.0
    """weight of mean Q(s, uniform action) - Q(s, data action) in the critic's loss; 0 leaves it out"""
    bounded_critic: bool = False
    """Q = bounds of any true Q through a sigmoid, trained by cross-entropy: overestimation becomes impossible"""
    lr: Swept[Positive] = 1e-4
    """Adam step size of the policy"""
    lr_critic: Swept[Positive] = 3e-4
    """Adam step size of the critic"""
    warmup_steps: Swept[NonNegative] = 500
    """updates over which the policy's step size rises linearly"""
    grad_clip: Swept[Positive | None] = 1.0
    """largest gradient norm of policy and of critic, each member by itself; none switches it off"""
    network: flow.Network = Field(default_factory=flow.ResMlp)
    """velocity network"""
    critic_hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (256, 256)
    """hidden layers of each critic"""
    num_critics: Annotated[int, Field(ge=2)] = 2
    """size of the ensemble; targets take its minimum"""

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

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        k, n, rules = self.q_grad_steps, self.num_flow_steps, []
        if (self.q_grad_mode == "last_k") != (k is not None):
            rules.append(
                f"q_grad_steps must be given for q_grad_mode=last_k and only then, "
                f"but got q_grad_mode={self.q_grad_mode}, q_grad_steps={k}; write q_grad_mode=last_{k or 5}"
            )
        if k is not None and k > n:
            rules.append(f"q_grad_steps must be <= num_flow_steps, but got {k} > {n}; lower it or use whole_grad")
        for low, high in (("cons_t_min", "cons_t_max"), ("cons_delta_min", "cons_delta_max")):
            if getattr(self, low) > getattr(self, high):
                rules.append(f"{low} must be <= {high}, but got {getattr(self, low)} > {getattr(self, high)}")
        if rules:
            raise ValueError("\n".join(rules))
        return self

    def inert(self) -> frozenset[str]:
        """Fields that change no parameter of the trained policy and critic, given the others."""
        names: set[str] = set()
        if self.alpha == 0:
            names |= {"q_grad_mode", "q_grad_steps", "q_norm", "q_norm_eps"}
        if self.num_flow_steps == 1:
            names |= {"q_grad_mode", "q_grad_steps"}
        if self.q_norm == "none":
            names |= {"q_norm_eps"}
        if self.consistency_weight == 0:
            names |= {"cons_t_min", "cons_t_max", "cons_delta_min", "cons_delta_max", "teacher_steps"}
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


def consistency_loss(
    v: flow.Velocity,
    params: fn.Params,
    teacher: fn.Params,
    x_0: Tensor,
    x_1: Tensor,
    t: Tensor,
    cond: Tensor,
    steps: int,
) -> Tensor:
    """L_cons per sample, [B]: student and teacher start at the same point x_t+; only the student learns."""
    x_t = flow.interpolate(x_0, x_1, t)
    x_hat = flow.integrate(v, teacher, x_t, t, torch.ones_like(t), cond, steps).detach()
    return (v(params, x_t, t, cond) - (x_hat - x_0)).square().mean((1, 2))


class _Cpql:
    """The update, for one member; holds configuration and network functions, never parameters."""

    def __init__(self, cfg: Config, spec: Spec):
        self.cfg, self.spec = cfg, spec
        self.policy_module = flow.velocity_module(cfg.network, spec)
        self.v, self.logits = fn.stateless(self.policy_module), fn.stateless(self.critic_module)
        self.q_steps = 1 if cfg.q_grad_mode == "single_step" else cfg.num_flow_steps
        self.grad_steps = cfg.q_grad_steps or self.q_steps

    def critic_module(self) -> nets.EnsembleMlp:
        inputs = fn.condition_dim(self.spec) + self.spec.act_horizon * self.spec.action_dim
        return nets.EnsembleMlp(self.cfg.num_critics, inputs, self.cfg.critic_hidden)

    def init(self, g: Generator) -> State:
        policy, critic = fn.init_params(self.policy_module, g), fn.init_params(self.critic_module, g)
        return {
            "acting": {"policy_ema": policy},
            "policy": policy,
            "policy_opt": fn.adam_init(policy),
            "critic": critic,
            "critic_target": critic,
            "critic_opt": fn.adam_init(critic),
        }

    def update_noise(self, g: Generator, batch_size: int) -> Noise:
        def uniform(*size: int) -> Tensor:
            return torch.rand(size, generator=g, device=g.device)

        noise = {name: self._normal(g, batch_size) for name in ("x_0", "z", "z_next")}
        noise |= {name: uniform(batch_size) for name in ("t", "t_c", "delta")}
        noise["coin"] = uniform()
        # drawn whether used or not, so that runs with and without the penalty see the same batches
        noise["random_action"] = uniform(batch_size, self.spec.act_horizon, self.spec.action_dim)
        return noise

    def _normal(self, g: Generator, n: int) -> Tensor:
        return torch.randn((n, self.spec.pred_horizon, self.spec.action_dim), generator=g, device=g.device)

    def _bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_tensor(self.spec.action_low), like.new_tensor(self.spec.action_high)

    def _clamp(self, action: Tensor) -> Tensor:
        low, high = self._bounds(action)
        return torch.minimum(torch.maximum(action, low), high)

    def _logits(self, params: fn.Params, cond: Tensor, chunk: Tensor) -> Tensor:
        """Critic outputs [E, B] at chunks [B, >= H, A]; what a longer prediction adds is never executed."""
        return self.logits(params, torch.cat([cond, chunk[:, : self.spec.act_horizon].flatten(1)], dim=1))

    def _q(self, logits: Tensor, hp: Hparams) -> Tensor:
        if not self.cfg.bounded_critic:
            return logits
        low, high = fn.q_bounds(self.spec, hp["gamma"], hp["reward_scale"])
        return low + (high - low) * logits.sigmoid()

    def flow_term(self, policy: fn.Params, batch: Batch, cond: Tensor, noise: Noise) -> tuple[Tensor, Metrics]:
        loss = flow.flow_loss(self.v, policy, noise["x_0"], batch.action, noise["t"], cond).mean()
        return loss, {"flow_loss": loss}

    def consistency_term(
        self, policy: fn.Params, teacher: fn.Params, batch: Batch, cond: Tensor, noise: Noise
    ) -> tuple[Tensor, Metrics]:
        c = self.cfg
        t_c = c.cons_t_min + (c.cons_t_max - c.cons_t_min) * noise["t_c"]
        delta = c.cons_delta_min + (c.cons_delta_max - c.cons_delta_min) * noise["delta"]
        t_plus = (t_c + delta).clamp_max(c.cons_t_max)
        args = (noise["x_0"], batch.action, t_plus, cond, c.teacher_steps)
        loss = consistency_loss(self.v, policy, teacher, *args).mean()
        return loss, {"consistency_loss": loss}

    def value_term(
        self, policy: fn.Params, critic: fn.Params, cond: Tensor, noise: Noise, hp: Hparams
    ) -> tuple[Tensor, Metrics]:
        raw = flow.sample(self.v, policy, noise["z"], cond, self.q_steps, self.grad_steps)
        action = self._clamp(raw)
        q = self._q(self._logits(critic, cond, action), hp)
        loss, q_mean, scale = q_loss(q, noise["coin"] < 0.5, self.cfg)
        return loss, {
            "q_policy_loss": loss,
            "q_mean": q_mean,
            "q_policy_mean": q.mean(),
            "q_norm_scale": scale,
            "action_saturation": (raw != action)[:, : self.spec.act_horizon].float().mean(),
        }

    def critic_term(
        self, critic: fn.Params, y: Tensor, batch: Batch, cond: Tensor, noise: Noise, hp: Hparams
    ) -> tuple[Tensor, Metrics]:
        out = self._logits(critic, cond, batch.q_action)
        q = self._q(out, hp)
        if self.cfg.bounded_critic:
            low, high = fn.q_bounds(self.spec, hp["gamma"], hp["reward_scale"])
            probability = ((y - low) / (high - low)).clamp(0, 1).expand_as(out)
            td = F.binary_cross_entropy_with_logits(out, probability)
        else:
            td = (q - y).square().mean()
        penalty = torch.zeros_like(td)
        if self.cfg.random_action_penalty:
            action = torch.lerp(*self._bounds(y), noise["random_action"])
            penalty = self._q(self._logits(critic, cond, action), hp).mean() - q.mean()
        loss = td + self.cfg.random_action_penalty * penalty
        metrics = {"critic_loss": loss, "td_loss": td, "cql_penalty": penalty}
        return loss, metrics | {"q_data_mean": q.mean(), "q_data_std": q.std(0).mean()}

    def policy_step(self, state: State, batch: Batch, cond: Tensor, noise: Noise, hp: Hparams) -> tuple[State, Metrics]:
        """One Adam step on L_policy; the terms' gradients are taken apart, so that their norms can be compared."""
        policy, teacher, critic = state["policy"], state["acting"]["policy_ema"], state["critic"]
        terms = {
            "flow": (hp["bc_weight"], grad(self.flow_term, has_aux=True)(policy, batch, cond, noise)),
            "consistency": (
                hp["consistency_weight"],
                grad(self.consistency_term, has_aux=True)(policy, teacher, batch, cond, noise),
            ),
            "q_policy": (hp["alpha"], grad(self.value_term, has_aux=True)(policy, critic, cond, noise, hp)),
        }
        metrics: Metrics = {}
        total, loss = torch.zeros(()), torch.zeros(())
        for name, (weight, (tree, m)) in terms.items():
            g = fn.ravel(tree)
            metrics |= {**m, f"grad_norm_{name}": g.norm()}
            # where, not only a product: with weight 0 not even a diverged critic may touch the policy
            total = total + torch.where(weight > 0, weight * g, 0.0)
            loss = loss + torch.where(weight > 0, weight * m[f"{name}_loss"], 0.0)
        total, norm = fn.clip_norm(total, hp["grad_clip"])
        warm = ((state["policy_opt"]["t"] + 1) / hp["warmup_steps"].clamp_min(1)).clamp_max(1)
        policy, opt = fn.adam(policy, total, state["policy_opt"], hp["lr"] * warm)
        metrics |= {"policy_loss": loss, "actor_loss": loss, "grad_norm_policy": norm}
        return {"policy": policy, "policy_opt": opt}, metrics

    def critic_step(self, state: State, batch: Batch, cond: Tensor, noise: Noise, hp: Hparams) -> tuple[State, Metrics]:
        """One Adam step on L_critic; next actions come from the EMA policy."""
        next_cond = fn.encode(batch.next_obs)
        steps = self.cfg.num_flow_steps
        a = self._clamp(flow.sample(self.v, state["acting"]["policy_ema"], noise["z_next"], next_cond, steps, 0))
        next_q = self._q(self._logits(state["critic_target"], next_cond, a), hp).min(0).values
        y = fn.td_target(batch, next_q, hp["gamma"], hp["reward_scale"], hp["q_target_clip"])
        tree, metrics = grad(self.critic_term, has_aux=True)(state["critic"], y, batch, cond, noise, hp)
        g, norm = fn.clip_norm(fn.ravel(tree), hp["grad_clip"])
        critic, opt = fn.adam(state["critic"], g, state["critic_opt"], hp["lr_critic"])
        metrics |= {
            "grad_norm_critic": norm,
            "td_target_mean": y.mean(),
            "td_target_clipped": (y.abs() >= hp["q_target_clip"]).float().mean(),
            "q_next_mean": next_q.mean(),
        }
        return {"critic": critic, "critic_opt": opt}, metrics

    def update(self, state: State, batch: Batch, noise: Noise, hp: Hparams) -> tuple[State, Metrics]:
        """Policy step, critic step, Polyak, EMA; both steps see the parameters from before the update."""
        cond = fn.encode(batch.obs)
        p, policy_metrics = self.policy_step(state, batch, cond, noise, hp)
        c, critic_metrics = self.critic_step(state, batch, cond, noise, hp)
        targets = {
            "acting": {"policy_ema": fn.polyak(state["acting"]["policy_ema"], p["policy"], 1 - hp["ema_decay"])},
            "critic_target": fn.polyak(state["critic_target"], c["critic"], hp["tau"]),
        }
        low, high = fn.q_bounds(self.spec, hp["gamma"], hp["reward_scale"])
        metrics = policy_metrics | critic_metrics
        metrics |= {"loss": metrics["policy_loss"] + metrics["critic_loss"], "q_bound_low": low, "q_bound_high": high}
        return p | c | targets, fn.detached(metrics)

    def act_noise(self, g: Generator, n: int) -> Noise:
        return {"z": self._normal(g, n)}

    def act(self, state: State, obs: Obs, noise: Noise) -> Tensor:
        policy, steps = state["acting"]["policy_ema"], self.cfg.num_flow_steps
        x_1 = self._clamp(flow.sample(self.v, policy, noise["z"], fn.encode(obs), steps, 0))
        return x_1[:, self.spec.act_offset : self.spec.act_offset + self.spec.act_horizon]


def make(cfg: Config, spec: Spec) -> Algorithm:
    """Raises UsageError if the network does not fit the chunk."""
    c = _Cpql(cfg, spec)
    return Algorithm(c.init, c.update_noise, c.update, c.act_noise, c.act)
