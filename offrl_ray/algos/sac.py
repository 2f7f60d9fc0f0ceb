"""Offline SAC on action chunks with one of four actor losses (seed document 002).

    sac    L_actor = E(T log pi(a|s) - Q(s, a)),   a ~ pi(.|s) reparameterised, Q = min_i Q_i
    td3bc  L_actor = E(T log pi(a|s) - lam Q(s, a) / max(mean |Q|, eps)) + (1 - lam) mean (a - a_D)^2
           lam = 1 / (1 + w),  or the seed's  T / (T + mean |Q|)
    awr    L_actor = -E omega log pi(a_D|s) + T E log pi(a|s),   omega = min(exp(z / T_awr), W),
           z = A over the batch, standardised,   A = min_i Q_i(s, a_D) - V(s),  or  - mean_i Q_i(s, a_D)
    iql    L_actor = -E omega log pi(a_D|s),   omega = exp(clip(A / T_iql, +-C_iql)), then over its mean,
           A = min_i Q'_i(s, a_D) - V(s)

    L_V    = E |kappa - 1(u < 0)| u^2,   u = min_i Q'_i(s, a_D) - V(s)       in iql; in awr with kappa = 1/2, the mean
    y      = clip(rs R^(tau) + (1 - d) gamma^tau V'(s'), +-C)                in iql; in the others as in soft.py
    L_critic + cql_alpha mean (log(e^Q_i(s, a) + e^Q_i(s, a_u)) - Q_i(s, a_D))   one a ~ pi, one uniform a_u; not CQL(H)

symbol        name                    meaning
T             init_/lr_temperature    temperature; it moves in all modes, and in iql means nothing
w             bc_weight               0 is the sac loss, bit for bit
eps           q_norm_eps              floor of the mean |Q| that normalises Q
T_awr, T_iql  awr_/iql_temperature    divide the advantage (in CORL's IQL a beta multiplies it)
W, C_iql      weight_clip, iql_clip   bounds of a weight, and of its logarithm
kappa         expectile
'             tau                     Polyak copies

Order of one update: value, critic, actor, temperature, Polyak. Everything that is not here is in soft.py.

Sources: SAC, Haarnoja et al. 2018 (arXiv 1812.05905); TD3+BC, Fujimoto & Gu 2021; AWAC, Nair et al. 2020; IQL,
Kostrikov et al. 2021; Desperodoo/rl-vla sac.py at af33f07, whose choices are the defaults but for the deviations.

Deviations from rl-vla: actions are standardised, and td3bc's squared error is that of sampled actions in these units,
not in raw ones; all that it executes is what it predicts (theirs drops the first action of each chunk); awr's advantage
is Q - V (theirs is `awr_advantage="ensemble_gap"`, minus the ensemble's spread), its deviation the batch's own; H_t is
-d/2, not -d; Adam without weight decay, at a constant rate.
"""

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Generator, Tensor, nn

from offrl_ray.algos import functional as fn
from offrl_ray.algos import nets
from offrl_ray.algos.soft import Soft, SoftConfig
from offrl_ray.fields import Needs, NonNegative, Number, Positive, Swept, config
from offrl_ray.types import Algorithm, Batch, Hparams, Metrics, Noise, Spec, State

Open = Annotated[float, Number, Field(gt=0, lt=1)]


@config
class Config(SoftConfig):
    needs: ClassVar[Needs] = Needs(defaults={"data.pred_horizon": 8})
    name: Literal["sac"] = "sac"
    """the variant"""
    actor_loss: Literal["sac", "td3bc", "awr", "iql"] = "td3bc"
    """what the policy descends"""
    actor_q_mode: Literal["min", "mean"] = "min"
    """Q that the sac and td3bc losses climb: smallest or mean of the ensemble"""
    bc_weight: Swept[NonNegative] = 2.0
    """w of td3bc; 0 is sac"""
    lam_mode: Literal["const", "adaptive"] = "const"
    """weight of Q in td3bc: 1 / (1 + bc_weight), or temperature / (temperature + mean |Q|)"""
    q_norm_eps: Swept[Positive] = 1.0
    """td3bc: floor of the mean |Q| that divides Q"""
    awr_temperature: Swept[Positive] = 1.0
    """divides the standardised advantage"""
    awr_advantage: Literal["value", "ensemble_gap"] = "value"
    """smallest Q less a learned V(s), or less the ensemble's mean"""
    weight_clip: Swept[Positive] = 100.0
    """largest awr weight"""
    expectile: Swept[Open] = 0.7
    """of Q that iql's V regresses to; 1/2 is the mean"""
    iql_temperature: Swept[Positive] = 1.0
    """divides the advantage"""
    iql_clip: Swept[Positive] = 8.0
    """bound on the absolute logarithm of an iql weight"""
    entropy_bonus: bool = False
    """iql's loss has SAC's entropy term in it; the others always do"""
    cql_alpha: NonNegative = 0.0
    """weight of the conservative penalty; 0 leaves it out"""

    @model_validator(mode="after")
    def _ensemble_has_a_gap(self) -> "Config":
        if self.actor_loss == "awr" and self.awr_advantage == "ensemble_gap" and self.num_critics == 1:
            raise ValueError("num_critics must be >= 2 for awr_advantage=ensemble_gap, but is 1; raise it or use value")
        return self

    @property
    def learns_value(self) -> bool:
        return self.actor_loss == "iql" or (self.actor_loss == "awr" and self.awr_advantage == "value")

    def inert(self) -> frozenset[str]:
        """Fields that change no parameter of the trained policy, critic and value, given the others."""
        own = {
            "sac": {"actor_q_mode"},
            "td3bc": {"actor_q_mode", "bc_weight", "lam_mode", "q_norm_eps"},
            "awr": {"awr_temperature", "awr_advantage", "weight_clip"},
            "iql": {"expectile", "iql_temperature", "iql_clip", "entropy_bonus"},
        }
        names = set[str]().union(*own.values()) - own[self.actor_loss]
        if self.lam_mode == "adaptive":
            names |= {"bc_weight"}
        elif self.bc_weight == 0:
            names |= {"q_norm_eps"}
        if self.actor_loss == "iql":
            names |= {"num_min", "backup_entropy"}
            if not self.entropy_bonus:
                names |= {"init_temperature", "lr_temperature", "target_entropy"}
        if self.lr_temperature == 0:
            names |= {"target_entropy"}
        if self.num_critics == 1:
            names |= {"actor_q_mode"}
        return frozenset(names)


IDLE = (
    *("value_loss", "v_loss", "v_mean", "bc_loss", "actor_lam"),
    *("awr_advantage_mean", "awr_weights_mean", "awr_weights_max"),
    *("iql_v_mean", "iql_advantage_mean", "iql_weights_mean", "iql_weights_max"),
    *("cql_penalty", "cql_q_policy", "cql_q_random", "cql_q_data"),
)
"""Metrics that are 0 where the actor's loss or the penalty does not have them: every plot shows every run."""


def conservative_penalty(q_policy: Tensor, q_random: Tensor, q_data_mean: Tensor) -> Tensor:
    """The penalty from Q [E, B] at the policy's and at uniform actions, and the mean Q at the data's."""
    return torch.logaddexp(q_policy, q_random).mean() - q_data_mean


def awr_weight(advantage: Tensor, hp: Hparams) -> Tensor:
    z = (advantage - advantage.mean()) / advantage.std(correction=0).clamp_min(1e-6)
    return torch.minimum(torch.exp(z / hp["awr_temperature"]), hp["weight_clip"])


def iql_weight(advantage: Tensor, hp: Hparams) -> Tensor:
    bound = hp["iql_clip"]
    w = torch.minimum(torch.maximum(advantage / hp["iql_temperature"], -bound), bound).exp()
    return w / w.mean()


def weighting(
    mode: str, advantage: Tensor, weight: Callable[[Tensor, Hparams], Tensor], hp: Hparams
) -> tuple[Tensor, Metrics]:
    """w of the data's chunks from their advantages, [B]."""
    w = weight(advantage, hp)
    return w, {
        f"{mode}_advantage_mean": advantage.mean(),
        f"{mode}_weights_mean": w.mean(),
        f"{mode}_weights_max": w.max(),
    }


class _Sac(Soft):
    def __init__(self, cfg: Config, spec: Spec):
        super().__init__(cfg, spec)
        self.actor_q = cfg.actor_q_mode
        self.v = fn.stateless(self.value_module)

    def value_module(self) -> nn.Module:
        c = self.cfg
        return nets.Mlp(fn.condition_dim(self.spec), c.critic_hidden, 1, c.layer_norm, c.activation)

    def init(self, g: Generator) -> State:
        state = super().init(g)
        if self.cfg.learns_value:
            value = fn.init_params(self.value_module, g)
            state |= {"value": value, "value_opt": fn.adam_init(value)}
            state |= {"value_target": value} if self.cfg.actor_loss == "iql" else {}
        return state

    def update_noise(self, g: Generator, batch_size: int) -> Noise:
        uniform = (batch_size, self.spec.q_horizon, self.spec.action_dim)
        # drawn whether used or not, so that runs with and without the penalty see the same batches
        return super().update_noise(g, batch_size) | {
            "eps_penalty": fn.normal_chunks(g, self.spec, batch_size),
            "random_action": torch.rand(uniform, generator=g, device=g.device),
        }

    def value(self, params: fn.Params, cond: Tensor) -> Tensor:
        """V [B]."""
        return self.v(params, cond).squeeze(-1)

    def value_loss(self, params: fn.Params, q: Tensor, cond: Tensor, hp: Hparams) -> tuple[Tensor, Metrics]:
        """L_V."""
        v = self.value(params, cond)
        kappa = hp["expectile"] if self.cfg.actor_loss == "iql" else torch.full_like(hp["expectile"], 0.5)
        loss = fn.expectile_loss(q - v, kappa).mean()
        return loss, {"value_loss": loss, "v_loss": loss, "v_mean": v.mean()}

    def value_step(self, state: State, q: Tensor, cond: Tensor, hp: Hparams) -> tuple[State, Metrics]:
        """V towards q = min Q'(s, a_D)."""
        gradient, metrics = fn.gradient(self.value_loss, state["value"], q, cond, hp)
        changed, norm = fn.descend(state, "value", gradient, hp["lr_critic"], hp["grad_clip"])
        return {**state, **changed}, metrics | {"grad_norm_value": norm}

    def next_value(self, state: State, next_cond: Tensor, noise: Noise, hp: Hparams) -> Tensor:
        if self.cfg.actor_loss == "iql":
            return self.value(state["value_target"], next_cond)
        return super().next_value(state, next_cond, noise, hp)

    def critic_gradient(
        self, state: State, y: Tensor, batch: Batch, cond: Tensor, noise: Noise, hp: Hparams
    ) -> tuple[Tensor, Metrics]:
        if not self.cfg.cql_alpha:
            return super().critic_gradient(state, y, batch, cond, noise, hp)
        drawn = self.pi.chunk(state["policy"], cond, noise["eps_penalty"])
        chunks = torch.cat([drawn[:, : self.spec.q_horizon], fn.between_bounds(noise["random_action"], self.spec)])
        return fn.gradient(self.critic_loss, state["critic"], y, batch, cond, chunks)

    def critic_loss(
        self, critic: fn.Params, y: Tensor, batch: Batch, cond: Tensor, chunks: Tensor
    ) -> tuple[Tensor, Metrics]:
        """L_critic with the penalty; `chunks` are the policy's, then the uniform ones."""
        td, metrics = self.td_loss(critic, y, batch, cond)
        q_policy, q_random = self.q(critic, cond.repeat(2, 1), chunks).chunk(2, dim=1)
        penalty = conservative_penalty(q_policy, q_random, metrics["q_data_mean"])
        loss = td + self.cfg.cql_alpha * penalty
        return loss, metrics | {
            "critic_loss": loss,
            "cql_penalty": penalty,
            "cql_q_policy": q_policy.mean(),
            "cql_q_random": q_random.mean(),
            "cql_q_data": metrics["q_data_mean"],
        }

    def update(self, state: State, batch: Batch, noise: Noise, hp: Hparams) -> tuple[State, Metrics]:
        cond, mode, metrics = fn.encode(batch.obs), self.cfg.actor_loss, Metrics()
        weight: Tensor | None = None
        if self.cfg.learns_value:
            q = self.q(state["critic_target"], cond, batch.q_action).min(0).values
            state, metrics = self.value_step(state, q, cond, hp)
        if mode == "iql":
            v = self.value(state["value"], cond)
            weight, more = weighting(mode, q - v, iql_weight, hp)
            metrics |= more | {"actor_q": q.mean(), "iql_v_mean": v.mean()}
        state, critic = self.critic_step(state, batch, cond, noise, hp)
        if mode == "awr":
            every = self.q(state["critic"], cond, batch.q_action)
            low = every.min(0).values
            baseline = self.value(state["value"], cond) if self.cfg.learns_value else every.mean(0)
            weight, more = weighting(mode, low - baseline, awr_weight, hp)
            metrics |= more | {"actor_q": low.mean()}
        state, actor = self.actor_step(state, batch, cond, noise, hp, weight)
        if mode == "iql":
            state = {**state, "value_target": fn.polyak(state["value_target"], state["value"], hp["tau"])}
        return state, self.summary(metrics | critic | actor, hp)

    def actor_loss(
        self,
        policy: fn.Params,
        state: State,
        batch: Batch,
        cond: Tensor,
        noise: Noise,
        hp: Hparams,
        weight: Tensor | None = None,
    ) -> tuple[Tensor, Metrics]:
        if weight is not None:
            return self.imitation(policy, state, batch, cond, noise, hp, weight)
        if self.cfg.actor_loss == "td3bc":
            return self.regularised(policy, state, batch, cond, noise, hp)
        loss, metrics = super().actor_loss(policy, state, batch, cond, noise, hp)
        return loss, metrics | {"actor_lam": torch.ones_like(loss), "actor_entropy": -metrics["log_pi"]}

    def regularised(
        self, policy: fn.Params, state: State, batch: Batch, cond: Tensor, noise: Noise, hp: Hparams
    ) -> tuple[Tensor, Metrics]:
        """td3bc: the sac loss with a normalised Q and the squared distance to the data."""
        action, log_pi = self.pi.sample(policy, cond, noise["eps"])
        q, every = self.policy_q(state, cond, action)
        size, temperature = q.abs().mean().detach(), self.temperature(state, hp)
        scale = torch.maximum(size, hp["q_norm_eps"])
        if self.cfg.lam_mode == "adaptive":
            lam = temperature / (temperature + size)
        else:
            lam = 1 / (1 + hp["bc_weight"])
            scale = torch.where(hp["bc_weight"] > 0, scale, 1.0)
        log_pi, q, bc = log_pi.mean(), q.mean(), F.mse_loss(action, batch.action)
        loss = temperature * log_pi - lam * q / scale + (1 - lam) * bc
        return loss, {
            "actor_loss": loss,
            "actor_q": q,
            "actor_lam": lam,
            "actor_entropy": -log_pi,
            "bc_loss": bc,
            "log_pi": log_pi,
            "q_policy_mean": every.detach().mean(),
        }

    def imitation(
        self,
        policy: fn.Params,
        state: State,
        batch: Batch,
        cond: Tensor,
        noise: Noise,
        hp: Hparams,
        weight: Tensor,
    ) -> tuple[Tensor, Metrics]:
        """awr and iql: weighted maximum likelihood, with an entropy term or without."""
        mean, log_std = self.pi.moments(policy, cond)
        log_pi = self.pi.draw(mean, log_std, noise["eps"])[1].mean()
        log_pi_data = self.pi.log_density(mean, log_std, batch.action)
        loss, entropy = -(weight * log_pi_data).mean(), torch.zeros_like(log_pi)
        if self.cfg.actor_loss == "awr" or self.cfg.entropy_bonus:
            loss, entropy = loss + self.temperature(state, hp) * log_pi, -log_pi
        return loss, {
            "actor_loss": loss,
            "actor_entropy": entropy,
            "log_pi": log_pi,
            "log_pi_data": log_pi_data.mean(),
        }

    def summary(self, metrics: Metrics, hp: Hparams) -> Metrics:
        zero = torch.zeros_like(metrics["critic_loss"])
        every = dict.fromkeys(IDLE, zero) | metrics
        total = super().summary(every, hp)
        return total | {"loss": total["loss"] + total["value_loss"]}


def make(cfg: Config, spec: Spec) -> Algorithm:
    return _Sac(cfg, spec).algorithm()
