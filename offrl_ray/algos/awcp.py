"""AWCP: advantage-weighted consistency policy; flow and consistency BC that imitates the better chunks more.

The critic is CPQL's (flow_critic.py), but no Q gradient reaches the policy: the critic only weights the data.

    L_policy = bc_weight * mean_i(w_i l_flow,i) + consistency_weight * mean_i(w_i l_cons,i)
    w_i      = min(exp(beta A_i), W) / mean_j min(exp(beta A_j), W)
    A_i      = q_i - mean_j q_j  or  q_i - V(s_i),   q_i = min_e Q_e(s_i, a_i),  a_i = the data's chunk
    l_cons   = mean (x^ - x_1^)^2                     endpoint: K Euler steps to time 1, x^ by the student from x_t+,
                                                      x_1^ by the EMA teacher from x_t_c
    l_cons   = mean (v(x_t+, t+) - (x_1^ - x_0))^2    velocity: CPQL's, x_1^ by the EMA teacher from x_t+
    L_V      = mean_i |kappa - 1(u_i < 0)| u_i^2,    u_i = q_i - V(s_i)

symbol       name                    meaning
beta         beta                    multiplies A; A is in units of reward_scale, so beta * reward_scale is what counts
W            weight_clip             largest weight before the normalisation; after it none exceeds the batch size
             baseline                batch_mean also prefers states near the reward; value compares within a state
kappa        expectile               of the value baseline; 1/2 is the mean over the data's actions
t_c, t+      cons_t_*, cons_delta_*  velocity: as in CPQL; endpoint: t_c ~ U(0, 1), t+ = min(t_c + cons_step, 1)
K            teacher_steps

Sources: Desperodoo/rlft at 3df4d55 (endpoint form; defaults of its HEAD) and a861e9f (the first version: velocity,
beta 1, W 10, consistency_weight 1); the value baseline after IQL, Kostrikov et al. 2022.

Deviations from rlft: those of cpql.py that concern critic, optimiser and data; q is the minimum of all critics, not of
two; the value baseline. From IQL: V regresses on the q_i of the advantage, not on the target critic's, so that at
kappa = 1/2 the advantages of a state average to zero; it shares lr_critic and critic_hidden with the critic.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from offrl_ray.algos import flow, nets
from offrl_ray.algos import functional as fn
from offrl_ray.algos.flow_critic import CriticConfig, FlowCritic
from offrl_ray.fields import Count, Fraction, Needs, NonNegative, Number, Swept, config
from offrl_ray.types import Algorithm, Batch, Hparams, Metrics, Noise, Spec, State


@config
class Config(CriticConfig):
    needs: ClassVar[Needs] = Needs()
    name: Literal["awcp"] = "awcp"
    """the variant"""
    beta: Swept[NonNegative] = 10.0
    """factor on the advantage; 0 is flow + consistency BC"""
    weight_clip: Swept[Annotated[float, Number, Field(ge=1, allow_inf_nan=False)]] = 100.0
    """W, largest weight before weights are scaled to mean 1"""
    baseline: Literal["batch_mean", "value"] = "batch_mean"
    """what is taken from Q to make the advantage: the batch's mean Q, or a learned V of the state"""
    expectile: Swept[Annotated[float, Number, Field(gt=0, lt=1)]] = 0.7
    """kappa of V; above 1/2 it leans to the better of the data's actions"""
    consistency_weight: Swept[NonNegative] = 0.3
    """weight of the consistency term"""
    cons_mode: Literal["endpoint", "velocity"] = "endpoint"
    """what must agree with the teacher: the chunk that is reached, from two neighbouring times, or CPQL's velocity"""
    cons_step: Swept[Fraction] = 0.01
    """t+ - t_c of the endpoint form"""
    teacher_steps: Count = 2
    """Euler steps of the consistency teacher, and of the endpoint form's student"""

    def inert(self) -> frozenset[str]:
        names = set(super().inert())
        if self.consistency_weight == 0:
            names |= {"cons_mode", "cons_step"}
        if self.cons_mode == "velocity":
            names |= {"cons_step"}
        else:
            names |= {"cons_t_min", "cons_t_max", "cons_delta_min", "cons_delta_max"}
        if self.beta == 0:
            names |= {"weight_clip", "baseline", "expectile"}
        if self.baseline == "batch_mean":
            names |= {"expectile"}
        return frozenset(names)


def weights(advantage: Tensor, beta: Tensor, clip: Tensor) -> Tensor:
    """min(exp(beta A), W) over its mean, [B]; relative to the largest, so that not all of them can vanish.

    With beta = 0 not even a diverged critic has a say.
    """
    log = torch.where(beta > 0, torch.minimum(beta * advantage, clip.log()), 0.0)
    w = (log - log.max()).exp()
    return w / w.mean()


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's, of two [B]; 0 if one of them is constant."""
    x, y = x - x.mean(), y - y.mean()
    norm = x.norm() * y.norm()
    return torch.where(norm > 0, (x * y).sum() / norm, 0.0)


def weight_metrics(w: Tensor, advantage: Tensor, step: Tensor) -> Metrics:
    size = w.sum().square() / w.square().sum()
    return {
        "weight_mean": w.mean(),
        "weight_std": w.std(correction=0),
        "weight_max": w.max(),
        "effective_sample_size": size,
        "effective_sample_share": size / len(w),
        "weight_step_corr": correlation(w, step),
        "advantage_mean": advantage.mean(),
    }


def weighted(name: str, w: Tensor, errors: Tensor) -> tuple[Tensor, Metrics]:
    loss = (w * errors).mean()
    return loss, {f"{name}_loss": loss, f"{name}_loss_unweighted": errors.mean()}


class _Awcp(FlowCritic):
    cfg: Config

    def __init__(self, cfg: Config, spec: Spec):
        super().__init__(cfg, spec)
        self.value = fn.stateless(self.value_module)

    def value_module(self) -> nets.EnsembleMlp:
        return nets.EnsembleMlp(1, fn.condition_dim(self.spec), self.cfg.critic_hidden)

    def init(self, g: Generator) -> State:
        state = super().init(g)
        if self.cfg.baseline == "value":
            value = fn.init_params(self.value_module, g)
            state |= {"value": value, "value_opt": fn.adam_init(value)}
        return state

    def update_noise(self, g: Generator, batch_size: int) -> Noise:
        noise = {name: fn.normal_chunks(g, self.spec, batch_size) for name in ("x_0", "z_next")}
        noise |= {name: self.uniform(g, batch_size) for name in ("t", "t_c", "delta")}
        return noise | {"random_action": self.random_action(g, batch_size)}

    def weighted_flow(
        self, policy: fn.Params, w: Tensor, batch: Batch, cond: Tensor, noise: Noise
    ) -> tuple[Tensor, Metrics]:
        return weighted("flow", w, self.flow_errors(policy, batch, cond, noise))

    def weighted_consistency(
        self, policy: fn.Params, teacher: fn.Params, w: Tensor, batch: Batch, cond: Tensor, noise: Noise, hp: Hparams
    ) -> tuple[Tensor, Metrics]:
        if self.cfg.cons_mode == "velocity":
            return weighted("consistency", w, self.consistency_errors(policy, teacher, batch, cond, noise))
        t_c = noise["t_c"]
        t_plus = (t_c + hp["cons_step"]).clamp_max(1)
        args = (noise["x_0"], batch.action, t_c, t_plus, cond, self.cfg.teacher_steps)
        return weighted("consistency", w, flow.endpoint_loss(self.v, policy, teacher, *args))

    def value_term(
        self, value: fn.Params, q: Tensor, cond: Tensor, hp: Hparams
    ) -> tuple[Tensor, tuple[Metrics, Tensor]]:
        """L_V; also V(s), [B]."""
        v = self.value(value, cond).squeeze(0)
        loss = fn.expectile_loss(q - v, hp["expectile"]).mean()
        return loss, ({"v_loss": loss, "v_mean": v.mean()}, v)

    def advantage(self, state: State, q: Tensor, cond: Tensor, hp: Hparams) -> tuple[Tensor, State, Metrics]:
        """A of each chunk, and V one Adam step further if there is one."""
        if self.cfg.baseline == "batch_mean":
            return q - q.mean(), {}, {}
        g, (metrics, v) = fn.gradient(self.value_term, state["value"], q, cond, hp)
        changed, norm = fn.descend(state, "value", g, hp["lr_critic"], hp["grad_clip"])
        return q - v, changed, metrics | {"grad_norm_value": norm}

    def update(self, state: State, batch: Batch, noise: Noise, hp: Hparams) -> tuple[State, Metrics]:
        """Critic step, V step, policy step, Polyak, EMA; all steps see the parameters from before the update."""
        cond = fn.encode(batch.obs)
        new, metrics, q_data = self.critic_step(state, batch, cond, noise, hp)
        q = q_data.min(0).values
        advantage, value, value_metrics = self.advantage(state, q, cond, hp)
        w = weights(advantage, hp["beta"], hp["weight_clip"])
        policy, teacher = state["policy"], state["acting"]["policy_ema"]
        flow_part = fn.gradient(self.weighted_flow, policy, w, batch, cond, noise)
        consistency_part = fn.gradient(self.weighted_consistency, policy, teacher, w, batch, cond, noise, hp)
        terms = {"flow": (hp["bc_weight"], flow_part), "consistency": (hp["consistency_weight"], consistency_part)}
        trained, policy_metrics = self.policy_step(state, terms, hp)
        new |= value | trained
        metrics |= value_metrics | policy_metrics | weight_metrics(w, advantage, batch.step)
        metrics |= fn.bound_metrics(self.spec, hp["gamma"], hp["reward_scale"])
        metrics |= {"q_mean": q.mean(), "q_policy_loss": q.new_zeros(())}
        metrics["loss"] = metrics["policy_loss"] + metrics["critic_loss"] + metrics.get("v_loss", 0.0)
        return new | self.averaged(state, new, hp), metrics


def make(cfg: Config, spec: Spec) -> Algorithm:
    """Raises UsageError if the network does not fit the chunk."""
    a = _Awcp(cfg, spec)
    return Algorithm(a.init, a.update_noise, a.update, a.act_noise, a.act, critic=a.critic)
