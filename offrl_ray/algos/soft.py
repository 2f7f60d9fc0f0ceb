"""Soft actor-critic on action chunks: what sac, cql and rlpd share (Haarnoja et al. 2018, arXiv 1812.05905).

    L_critic = 1/2 sum_E mean_B (Q_i(s, a_D) - y)^2,   y = clip(rs R^(tau) + (1 - d) gamma^tau V(s'), +-C)
    V(s')    = min_{i in M} Q'_i(s', a') [- temperature * log pi(a'|s')],  a' ~ pi(.|s'), M a random subset of E
    L_actor  = E (temperature * log pi(a|s) - Q(s, a)),  a ~ pi(.|s) reparameterised
    L_temp   = -log(temperature) * E (log pi(a|s) + target_entropy)

symbol       name                        meaning
E, M         num_critics, num_min        ensemble, and the random part of it whose minimum is the target
C            q_target_clip               bound on |y|
rs           reward_scale
H_t          target_entropy              of the predicted chunk, d = H_p A dimensions; by default -d / 2

Order of one update: critic, actor (it climbs the new critic), temperature, Polyak.
"""

import math
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Generator, Tensor

from offrl_ray.algos import functional as fn
from offrl_ray.algos import nets
from offrl_ray.algos.gaussian import TanhGaussian
from offrl_ray.fields import Count, Discount, Fraction, NonNegative, Number, Positive, Swept, config
from offrl_ray.types import Algorithm, Batch, Critic, Hparams, Metrics, Noise, Obs, Spec, State

Hidden = Annotated[tuple[Count, ...], Field(min_length=1)]
Finite = Annotated[float, Field(allow_inf_nan=False), Number]


@config
class SoftConfig:
    gamma: Swept[Discount] = 0.99
    """discount per environment step"""
    tau: Swept[Fraction] = 0.005
    """Polyak rate of the target critics"""
    reward_scale: Swept[Positive] = 1.0
    """factor on rewards"""
    q_target_clip: Swept[Positive] = 100.0
    """bound on the absolute TD target"""
    backup_entropy: bool = False
    """the next state's value has the policy's entropy in it"""
    init_temperature: Swept[Positive] = 1.0
    """temperature at the start"""
    lr_temperature: Swept[NonNegative] = 1e-4
    """Adam step size of log temperature; 0 keeps the temperature where it starts"""
    target_entropy: Swept[Finite | None] = None
    """entropy of a predicted chunk that the temperature aims at, in nats of raw actions; none is -d/2"""
    lr: Swept[Positive] = 3e-4
    """Adam step size of the policy"""
    lr_critic: Swept[Positive] = 3e-4
    """Adam step size of the critics"""
    grad_clip: Swept[Positive | None] = 1.0
    """largest gradient norm of each network, each member by itself; none switches it off"""
    hidden: Hidden = (256, 256, 256)
    """hidden layers of the policy"""
    critic_hidden: Hidden = (256, 256, 256)
    """hidden layers of each critic"""
    layer_norm: bool = True
    """LayerNorm before each activation, in all networks"""
    activation: nets.Activation = "mish"
    """of all networks"""
    num_critics: Count = 10
    """size of the ensemble"""
    num_min: Count = 2
    """critics of the random subset whose minimum is the target"""

    @model_validator(mode="after")
    def _subset_of_ensemble(self) -> Any:
        if self.num_min > self.num_critics:
            raise ValueError(f"num_min must be <= num_critics, but got {self.num_min} > {self.num_critics}; lower it")
        return self


class Soft:
    """The update, for one member; a variant overrides a term. Holds configuration and functions, never parameters."""

    log_std_min = -20.0
    actor_q = "min"

    def __init__(self, cfg: Any, spec: Spec):
        self.cfg, self.spec = cfg, spec
        self.pi = TanhGaussian(spec, cfg.hidden, cfg.layer_norm, cfg.activation, self.log_std_min)
        self.critics = fn.stateless(self.critic_module)

    def critic_module(self) -> nets.EnsembleMlp:
        c, inputs = self.cfg, fn.condition_dim(self.spec) + self.spec.q_horizon * self.spec.action_dim
        return nets.EnsembleMlp(c.num_critics, inputs, c.critic_hidden, c.layer_norm, c.activation)

    def init(self, g: Generator) -> State:
        policy, critic = fn.init_params(self.pi.module, g), fn.init_params(self.critic_module, g)
        # a factor on the initial temperature, so that this one may be swept
        temperature = {"log_factor": torch.zeros((), device=g.device)}
        return {
            "acting": {"policy": policy},
            "policy": policy,
            "policy_opt": fn.adam_init(policy),
            "critic": critic,
            "critic_target": critic,
            "critic_opt": fn.adam_init(critic),
            "temperature": temperature,
            "temperature_opt": fn.adam_init(temperature),
        }

    def update_noise(self, g: Generator, batch_size: int) -> Noise:
        noise = {name: fn.normal_chunks(g, self.spec, batch_size) for name in ("eps", "eps_next")}
        return noise | {"subset": torch.rand(self.cfg.num_critics, generator=g, device=g.device)}

    def q(self, critic: fn.Params, cond: Tensor, chunk: Tensor) -> Tensor:
        """Q [E, B] of chunks [B, >= H_q, A]; what a longer prediction adds is not scored."""
        return self.critics(critic, torch.cat([cond, chunk[:, : self.spec.q_horizon].flatten(1)], dim=1))

    def chunk_value(self, state: State, obs: Obs, chunk: Tensor) -> Tensor:
        """Q [N] of executed chunks, mean over the ensemble."""
        return self.q(state["critic"], fn.encode(obs), chunk).mean(0)

    def temperature(self, state: State, hp: Hparams) -> Tensor:
        return hp["init_temperature"] * state["temperature"]["log_factor"].exp()

    def target_entropy(self, hp: Hparams) -> Tensor:
        given = hp["target_entropy"]
        return torch.where(given.isinf(), -0.5 * self.pi.dim, given)

    def next_value(self, state: State, next_cond: Tensor, noise: Noise, hp: Hparams) -> Tensor:
        """V(s'), [B]."""
        drawn = (state["policy"], next_cond, noise["eps_next"])
        action, log_pi = self.pi.sample(*drawn) if self.cfg.backup_entropy else (self.pi.chunk(*drawn), None)
        value = self.subset_min(self.q(state["critic_target"], next_cond, action), noise)
        return value if log_pi is None else value - self.temperature(state, hp) * log_pi

    def subset_min(self, q: Tensor, noise: Noise) -> Tensor:
        """Smallest Q of a random subset of the critics, [E, ...] -> [...]."""
        if self.cfg.num_min < self.cfg.num_critics:
            q = q[noise["subset"].argsort()[: self.cfg.num_min]]
        return q.min(0).values

    def td_loss(self, critic: fn.Params, y: Tensor, batch: Batch, cond: Tensor) -> tuple[Tensor, Metrics]:
        q = self.q(critic, cond, batch.q_action)
        loss = len(q) / 2 * F.mse_loss(q, y.expand_as(q))
        fixed = q.detach()
        q_std = (fixed - fixed.mean(0)).norm(dim=0).mean() / max(len(q) - 1, 1) ** 0.5
        return loss, {"td_loss": loss, "q_data_mean": q.mean(), "q_std": q_std}

    def critic_gradient(
        self, state: State, y: Tensor, batch: Batch, cond: Tensor, noise: Noise, hp: Hparams
    ) -> tuple[Tensor, Metrics]:
        """Gradient of L_critic as one vector; its value is the metric critic_loss."""
        vector, metrics = fn.gradient(self.td_loss, state["critic"], y, batch, cond)
        return vector, {**metrics, "critic_loss": metrics["td_loss"]}

    def critic_step(self, state: State, batch: Batch, cond: Tensor, noise: Noise, hp: Hparams) -> tuple[State, Metrics]:
        next_value = self.next_value(state, fn.encode(batch.next_obs), noise, hp)
        y = fn.td_target(batch, next_value, hp["gamma"], hp["reward_scale"], hp["q_target_clip"])
        gradient, metrics = self.critic_gradient(state, y, batch, cond, noise, hp)
        changed, norm = fn.descend(state, "critic", gradient, hp["lr_critic"], hp["grad_clip"])
        target = fn.polyak(state["critic_target"], changed["critic"], hp["tau"])
        metrics |= fn.target_metrics(y, next_value, hp["q_target_clip"]) | {"grad_norm_critic": norm}
        return {**state, **changed, "critic_target": target}, metrics

    def actor_loss(
        self, policy: fn.Params, state: State, batch: Batch, cond: Tensor, noise: Noise, hp: Hparams
    ) -> tuple[Tensor, Metrics]:
        """L_actor; the metrics must hold log_pi, the mean log density of the policy's own actions."""
        action, log_pi = self.pi.sample(policy, cond, noise["eps"])
        q, every = self.policy_q(state, cond, action)
        log_pi, q = log_pi.mean(), q.mean()
        loss = self.temperature(state, hp) * log_pi - q
        return loss, {"actor_loss": loss, "actor_q": q, "log_pi": log_pi, "q_policy_mean": every.detach().mean()}

    def policy_q(self, state: State, cond: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Q [B] that the policy climbs, and the whole ensemble's [E, B]."""
        every = self.critics(state["critic"], cond, action[:, : self.spec.q_horizon].flatten(1))
        return every.min(0).values if self.actor_q == "min" else every.mean(0), every

    def actor_step(
        self, state: State, batch: Batch, cond: Tensor, noise: Noise, hp: Hparams, *more: Any
    ) -> tuple[State, Metrics]:
        """The policy, then the temperature, on the entropy that the policy had; `more` goes to a variant's loss."""
        gradient, metrics = fn.gradient(self.actor_loss, state["policy"], state, batch, cond, noise, hp, *more)
        changed, norm = fn.descend(state, "policy", gradient, hp["lr"], hp["grad_clip"])
        temperature, target = self.temperature(state, hp), self.target_entropy(hp)
        # minus d L_temp / d log(temperature)
        missing = metrics["log_pi"] + target
        warmer, opt = fn.adam(state["temperature"], -missing.reshape(1), state["temperature_opt"], hp["lr_temperature"])
        metrics |= {
            "grad_norm_policy": norm,
            "temperature": temperature,
            "temperature_loss": -temperature.log() * missing,
            "entropy": -metrics["log_pi"],
            "target_entropy": target,
        }
        changed |= {"temperature": warmer, "temperature_opt": opt, "acting": {"policy": changed["policy"]}}
        return {**state, **changed}, metrics

    def update(self, state: State, batch: Batch, noise: Noise, hp: Hparams) -> tuple[State, Metrics]:
        cond = fn.encode(batch.obs)
        state, critic = self.critic_step(state, batch, cond, noise, hp)
        state, actor = self.actor_step(state, batch, cond, noise, hp)
        return state, self.summary(critic | actor, hp)

    def summary(self, metrics: Metrics, hp: Hparams) -> Metrics:
        loss = metrics["critic_loss"] + metrics["actor_loss"] + metrics["temperature_loss"]
        bounds = fn.bound_metrics(self.spec, hp["gamma"], hp["reward_scale"])
        if self.cfg.backup_entropy:
            bounds["q_bound_high"] = bounds["q_bound_high"] + metrics["temperature"] * self.entropy_bound(hp["gamma"])
        return metrics | bounds | {"loss": loss, "q_mean": metrics["q_data_mean"]}

    def entropy_bound(self, gamma: Tensor) -> Tensor:
        """Most entropy, discounted, that the backup can add to a Q; there is no least: a density has no bound.

        A uniform chunk has d log 2 nats, and one is added at the end of each chunk. None but an episode's last chunk is
        shorter than q_horizon; where it bootstraps, it may be a single step.
        """
        return self.pi.dim * math.log(2) * gamma / (1 - gamma**self.spec.q_horizon)

    def explore_noise(self, g: Generator, n: int) -> Noise:
        return {"eps": fn.normal_chunks(g, self.spec, n)}

    def act(self, state: State, obs: Obs, noise: Noise) -> Tensor:
        """The mode without noise, a sample with it."""
        policy, cond = state["acting"]["policy"], fn.encode(obs)
        chunk = self.pi.chunk(policy, cond, noise["eps"]) if noise else self.pi.mode(policy, cond)
        return fn.executed(chunk, self.spec)

    def algorithm(self, minibatches: int = 1) -> Algorithm:
        critic = Critic(self.chunk_value, self.cfg.gamma, self.cfg.reward_scale)
        acting = (fn.no_noise, self.act, self.explore_noise)
        return Algorithm(self.init, self.update_noise, self.update, *acting, minibatches, critic)
