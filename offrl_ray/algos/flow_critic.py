"""What a flow policy with a critic beside it shares with others: consistency, the critic's step, the averages.

    L_cons   = E (v(x_t+, t+) - (x_1^ - x_0))^2                              x_1^ = EMA teacher, Euler from (x_t+, t+)
    L_critic = mean_E (Q_i(s, a_D) - y)^2,  y = clip(rs R^(tau) + (1 - d) gamma^tau min_i Q'_i(s', a'), +-C)

Next actions a' come from the EMA policy, as in Diffusion-QL (Wang et al. 2023).
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Generator, Tensor

from offrl_ray.algos import flow, nets
from offrl_ray.algos import functional as fn
from offrl_ray.algos.flow_policy import FlowPolicy, PolicyConfig
from offrl_ray.fields import Count, Discount, Fraction, NonNegative, Positive, Swept, config, hparams
from offrl_ray.types import Batch, Critic, Hparams, Metrics, Noise, Obs, Spec, State


@config
class CriticConfig(PolicyConfig):
    bc_weight: Swept[NonNegative] = 1.0
    """weight of the flow-matching term"""
    consistency_weight: Swept[NonNegative] = 1.0
    """weight of the consistency term"""
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
    reward_scale: Swept[Positive] = 0.1
    """factor on rewards"""
    q_target_clip: Swept[Positive] = 100.0
    """bound on the absolute TD target"""
    random_action_penalty: NonNegative = 0.0
    """weight of mean Q(s, uniform action) - Q(s, data action) in the critic's loss; 0 leaves it out"""
    bounded_critic: bool = False
    """Q = bounds of any true Q through a sigmoid, trained by cross-entropy: overestimation becomes impossible"""
    lr_critic: Swept[Positive] = 3e-4
    """Adam step size of all networks that learn values"""
    critic_hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (256, 256)
    """hidden layers of each network that learns values"""
    num_critics: Annotated[int, Field(ge=2)] = 2
    """size of the ensemble; targets take its minimum"""

    @model_validator(mode="after")
    def _consistent(self) -> "CriticConfig":
        if rules := self.broken_rules():
            raise ValueError("\n".join(rules))
        return self

    def broken_rules(self) -> list[str]:
        pairs = (("cons_t_min", "cons_t_max"), ("cons_delta_min", "cons_delta_max"))
        return [
            f"{low} must be <= {high}, but got {getattr(self, low)} > {getattr(self, high)}"
            for low, high in pairs
            if getattr(self, low) > getattr(self, high)
        ]

    def inert(self) -> frozenset[str]:
        """Fields that change neither how the policy acts nor any parameter of policy and critic, given the others."""
        if self.consistency_weight == 0:
            return frozenset({"cons_t_min", "cons_t_max", "cons_delta_min", "cons_delta_max", "teacher_steps"})
        return frozenset()


class FlowCritic(FlowPolicy):
    cfg: CriticConfig

    def __init__(self, cfg: CriticConfig, spec: Spec):
        super().__init__(cfg, spec)
        self._outputs = fn.stateless(self.critic_module)
        self.critic = Critic(self.chunk_value, cfg.gamma, cfg.reward_scale)

    def critic_module(self) -> nets.EnsembleMlp:
        inputs = fn.condition_dim(self.spec) + self.spec.act_horizon * self.spec.action_dim
        return nets.EnsembleMlp(self.cfg.num_critics, inputs, self.cfg.critic_hidden)

    def init(self, g: Generator) -> State:
        policy, critic = super().init(g), fn.init_params(self.critic_module, g)
        return policy | {"critic": critic, "critic_target": critic, "critic_opt": fn.adam_init(critic)}

    def random_action(self, g: Generator, batch_size: int) -> Tensor:
        """Of the penalty; drawn whether used or not, so that runs with and without it see the same batches."""
        return self.uniform(g, batch_size, self.spec.act_horizon, self.spec.action_dim)

    def logits(self, params: fn.Params, cond: Tensor, chunk: Tensor) -> Tensor:
        """Critic outputs [E, B] at chunks [B, >= H, A]; what a longer prediction adds is never executed."""
        return self._outputs(params, torch.cat([cond, chunk[:, : self.spec.act_horizon].flatten(1)], dim=1))

    def q(self, logits: Tensor, hp: Hparams) -> Tensor:
        if not self.cfg.bounded_critic:
            return logits
        low, high = fn.q_bounds(self.spec, hp["gamma"], hp["reward_scale"])
        return low + (high - low) * logits.sigmoid()

    def chunk_value(self, state: State, obs: Obs, chunk: Tensor) -> Tensor:
        """Q [N] of executed chunks, mean over the ensemble."""
        logits = self.logits(state["critic"], fn.encode(obs), chunk)
        return self.q(logits, hparams(self.cfg, logits.device)).mean(0)

    def consistency_errors(
        self, policy: fn.Params, teacher: fn.Params, batch: Batch, cond: Tensor, noise: Noise
    ) -> Tensor:
        """L_cons per sample, [B]."""
        c = self.cfg
        t_c = c.cons_t_min + (c.cons_t_max - c.cons_t_min) * noise["t_c"]
        delta = c.cons_delta_min + (c.cons_delta_max - c.cons_delta_min) * noise["delta"]
        t_plus = (t_c + delta).clamp_max(c.cons_t_max)
        args = (noise["x_0"], batch.action, t_plus, cond, c.teacher_steps)
        return flow.consistency_loss(self.v, policy, teacher, *args)

    def critic_term(
        self, critic: fn.Params, y: Tensor, batch: Batch, cond: Tensor, noise: Noise, hp: Hparams
    ) -> tuple[Tensor, tuple[Metrics, Tensor]]:
        out = self.logits(critic, cond, batch.q_action)
        q = self.q(out, hp)
        if self.cfg.bounded_critic:
            low, high = fn.q_bounds(self.spec, hp["gamma"], hp["reward_scale"])
            probability = ((y - low) / (high - low)).clamp(0, 1).expand_as(out)
            td = F.binary_cross_entropy_with_logits(out, probability)
        else:
            td = (q - y).square().mean()
        penalty = torch.zeros_like(td)
        if self.cfg.random_action_penalty:
            action = fn.between_bounds(noise["random_action"], self.spec)
            penalty = self.q(self.logits(critic, cond, action), hp).mean() - q.mean()
        loss = td + self.cfg.random_action_penalty * penalty
        metrics = {"critic_loss": loss, "td_loss": td, "cql_penalty": penalty}
        return loss, (metrics | {"q_data_mean": q.mean(), "q_data_std": q.std(0).mean()}, q)

    def critic_step(
        self, state: State, batch: Batch, cond: Tensor, noise: Noise, hp: Hparams
    ) -> tuple[State, Metrics, Tensor]:
        """One Adam step on L_critic; also Q of the data from before it, [E, B]."""
        next_cond = fn.encode(batch.next_obs)
        a = self.sample(state["acting"]["policy_ema"], noise["z_next"], next_cond)
        next_q = self.q(self.logits(state["critic_target"], next_cond, a), hp).min(0).values
        y = fn.td_target(batch, next_q, hp["gamma"], hp["reward_scale"], hp["q_target_clip"])
        g, (metrics, q) = fn.gradient(self.critic_term, state["critic"], y, batch, cond, noise, hp)
        changed, norm = fn.descend(state, "critic", g, hp["lr_critic"], hp["grad_clip"])
        metrics |= fn.target_metrics(y, next_q, hp["q_target_clip"]) | {"grad_norm_critic": norm}
        return changed, metrics, q

    def averaged(self, state: State, new: State, hp: Hparams) -> State:
        target = fn.polyak(state["critic_target"], new["critic"], hp["tau"])
        return super().averaged(state, new, hp) | {"critic_target": target}
