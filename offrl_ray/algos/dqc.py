"""DQC: decoupled Q-chunking. Values are backed up over h actions, the policy is judged by the h_a <= h it executes.

All values are probabilities (networks give logits), since all reward is paid where an episode ends and is at most 1.
A critic of long chunks backs up over h steps at once; a critic of executed chunks is distilled from it, optimistic
about the h - h_a actions that it does not see; V is optimistic among the data's executed chunks. The policy is plain
flow BC, and the best of N samples is executed:

    L_chunk  = E mean_k BCE(Q^h_k(s, a_0:h), y)                y = clip(rs R^(tau) + (1 - d) gamma^tau V(s'), 0, 1)
    L_action = E_valid mean_k rho(Q^ha_k(s, a_0:ha), Q^h_k(s, a_0:h); kappa_d)
    L_V      = E_valid rho(V(s), agg_k Q'^ha_k(s, a_0:ha); kappa_b)
    L_flow   = E (v(x_t, t) - (x_1 - x_0))^2                   t ~ U(0, 1)
    rho(p, e; kappa) = |kappa - 1[e < p]| * (BCE(p, e) for the expectile, |logit p - logit e| for the quantile)
    a = argmax_n agg_k logit Q^ha_k(s, a_n),  a_n = clamp(sample(z_n))[executed],  n = 1 .. N

symbol         name                      meaning
h, h_a         q_horizon, act_horizon    of the data: actions that Q^h scores; actions executed, which Q^ha scores
kappa_d        kappa_d, distill          optimism of the distillation; its loss
kappa_b        kappa_b, backup           optimism of V; its loss
k, agg         num_critics, q_agg        members of both ensembles; how many become one; Q^ha_k learns from Q^h_k alone
N              num_samples               predictions drawn for every decision; 1 is BC
gamma, tau     gamma, tau                discount per environment step; Polyak rate of Q', the target of Q^ha
rs             reward_scale              factor on rewards

In y, and only there, tau is the chunk's length. V has no target network: y takes the current one.

Samples of L_action and L_V are valid if all h_a actions were executed, or the episode terminated among them: what
stands behind a terminal was never executed, but neither would it be. Chunks that the end of the data cuts off before
h_a are not valid; for y they count as shorter chunks.

Sources: Li, Park & Levine 2025 (arXiv 2512.10926), code ColinQiyangLi/dqc agents/dqc.py at 949d85b, whose defaults
these are but for gamma (.999 there), h (25), grad_clip (none) and networks (4 x 1024); h = 16 and an EMA policy,
Desperodoo/rl-vla dqc.py at af33f07 (its targets sigma(y) instead of y were a mistake).

Deviations from the first code: rewards and terminals are the data's, not those of relabelled goals, so no network is
given a goal; starts less than h steps before the end of an episode are used; targets of V are kept off 0 and 1 as those
of the distillation are (their logits were infinite); the mean over valid samples is divided by their number, not by the
batch's; the policy imitates all H_p actions, padded ones too; one Adam a network; Mish or ReLU, not GELU.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor
from torch.func import grad

from offrl_ray.algos import flow, nets
from offrl_ray.algos import functional as fn
from offrl_ray.errors import UsageError
from offrl_ray.fields import Count, Discount, Fraction, Needs, Number, Positive, Swept, config
from offrl_ray.types import Algorithm, Batch, Critic, Hparams, Metrics, Noise, Obs, Spec, State

EPS = 1e-5
"""Probabilities are kept this far from 0 and 1 before their logit is taken, as the original does when distilling."""

Optimism = Annotated[float, Number, Field(gt=0, lt=1)]
Measure = Literal["quantile", "expectile"]


@config
class Config:
    needs: ClassVar[Needs] = Needs(q_horizon=True, defaults={"data.q_horizon": 16})
    name: Literal["dqc"] = "dqc"
    """the variant"""
    kappa_b: Swept[Optimism] = 0.9
    """optimism of V among the data's executed chunks; 0.5 is none"""
    kappa_d: Swept[Optimism] = 0.5
    """optimism of the executed chunk's value about the actions that follow in the data; 0.5 is none"""
    backup: Measure = "quantile"
    """what V is of the values at the data's actions"""
    distill: Measure = "expectile"
    """what an executed chunk's value is of the values of the long chunks that it begins"""
    q_agg: Literal["mean", "min"] = "mean"
    """what becomes of the ensemble's values, in the target of V and in the choice among samples"""
    num_samples: Count = 32
    """N, predictions of which the best is executed; 1 is flow BC"""
    num_flow_steps: Count = 10
    """Euler steps of the sampler"""
    gamma: Swept[Discount] = 0.99
    """discount per environment step"""
    tau: Swept[Fraction] = 0.005
    """Polyak rate of the target of the executed chunk's critic"""
    ema_decay: Swept[Fraction] = 0.0
    """of the policy that acts; 0 is the trained policy itself"""
    reward_scale: Swept[Positive] = 1.0
    """factor on rewards; the largest reward times it must be at most 1"""
    lr: Swept[Positive] = 3e-4
    """Adam step size of the policy"""
    lr_critic: Swept[Positive] = 3e-4
    """Adam step size of both critics and of V"""
    grad_clip: Swept[Positive | None] = 1.0
    """largest gradient norm of each network by itself; none switches it off"""
    network: flow.Network = Field(default_factory=flow.ResMlp)
    """velocity network"""
    critic_hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (256, 256)
    """hidden layers of each critic and of V"""
    num_critics: Annotated[int, Field(ge=2)] = 2
    """size of both ensembles"""

    def inert(self) -> frozenset[str]:
        """Fields that change neither what is trained nor how it acts, given the others."""
        return frozenset()


def optimistic_loss(logits: Tensor, target: Tensor, kappa: Tensor, measure: Measure) -> Tensor:
    """rho, entry by entry: least where sigmoid(logits) is the kappa-quantile or -expectile of the targets."""
    weight = torch.where(target >= logits.sigmoid(), kappa, 1 - kappa)
    if measure == "expectile":
        return weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return weight * (logits - torch.logit(target, EPS)).abs()


def valid_mean(loss: Tensor, valid: Tensor) -> Tensor:
    """Mean over all but the last axis, and over the valid entries of the last; 0 if there are none."""
    return (loss * valid).sum(-1).mean() / valid.sum().clamp_min(1)


def _spread(name: str, values: Tensor) -> Metrics:
    return {f"{name}_mean": values.mean(), f"{name}_max": values.max(), f"{name}_min": values.min()}


class _Dqc:
    """The update, for one member; holds configuration and network functions, never parameters."""

    def __init__(self, cfg: Config, spec: Spec):
        self.cfg, self.spec = cfg, spec
        self.modules = {
            "policy": flow.velocity_module(cfg.network, spec),
            "chunk_critic": self._value_module(cfg.num_critics, spec.q_horizon),
            "action_critic": self._value_module(cfg.num_critics, spec.act_horizon),
            "value": self._value_module(1, 0),
        }
        self.nets = {name: fn.stateless(module) for name, module in self.modules.items()}
        self.v = self.nets["policy"]

    def _value_module(self, size: int, actions: int) -> Callable[[], nets.EnsembleMlp]:
        inputs = fn.condition_dim(self.spec) + actions * self.spec.action_dim
        return partial(nets.EnsembleMlp, size, inputs, self.cfg.critic_hidden)

    def init(self, g: Generator) -> State:
        params = {name: fn.init_params(module, g) for name, module in self.modules.items()}
        return {
            "acting": {"policy_ema": params["policy"], "action_critic": params["action_critic"]},
            **params,
            **{f"{name}_opt": fn.adam_init(p) for name, p in params.items()},
            "action_critic_target": params["action_critic"],
        }

    def update_noise(self, g: Generator, batch_size: int) -> Noise:
        x_0 = fn.normal_chunks(g, self.spec, batch_size)
        return {"x_0": x_0, "t": torch.rand(batch_size, generator=g, device=g.device)}

    def _q(self, critic: str, params: fn.Params, cond: Tensor, chunk: Tensor) -> Tensor:
        """Logits [E, B] at chunks of the critic's own length."""
        return self.nets[critic](params, torch.cat([cond, chunk.flatten(1)], dim=1))

    def _agg(self, q: Tensor) -> Tensor:
        return q.mean(0) if self.cfg.q_agg == "mean" else q.min(0).values

    def chunk_term(self, params: fn.Params, y: Tensor, cond: Tensor, chunk: Tensor) -> tuple[Tensor, Tensor, Metrics]:
        """L_chunk; also the members' values, which the distillation takes."""
        logits = self._q("chunk_critic", params, cond, chunk)
        loss, q = F.binary_cross_entropy_with_logits(logits, y.expand_as(logits)), logits.sigmoid()
        return loss, q, {"chunk_critic_loss": loss, **_spread("chunk_q", q), **_spread("chunk_q_logit", logits)}

    def action_term(
        self, params: fn.Params, y_d: Tensor, valid: Tensor, cond: Tensor, chunk: Tensor, kappa: Tensor
    ) -> tuple[Tensor, Metrics]:
        """L_action."""
        logits = self._q("action_critic", params, cond, chunk)
        loss = valid_mean(optimistic_loss(logits, y_d, kappa, self.cfg.distill), valid)
        q = logits.sigmoid()
        metrics = {"action_critic_loss": loss, **_spread("action_q", q)}
        return loss, metrics | {"q_data_mean": q.mean(), "q_data_std": q.std(0).mean(), "q_mean": q.mean()}

    def value_term(
        self, params: fn.Params, e: Tensor, valid: Tensor, cond: Tensor, kappa: Tensor
    ) -> tuple[Tensor, Metrics]:
        """L_V."""
        logits = self.nets["value"](params, cond)[0]
        loss = valid_mean(optimistic_loss(logits, e, kappa, self.cfg.backup), valid)
        v = logits.sigmoid()
        return loss, {"value_loss": loss, **_spread("v", v), "adv": (e - v).mean()}

    def flow_term(self, params: fn.Params, batch: Batch, noise: Noise, cond: Tensor) -> tuple[Tensor, Metrics]:
        """L_flow."""
        loss = flow.flow_loss(self.v, params, noise["x_0"], batch.action, noise["t"], cond).mean()
        return loss, {"flow_loss": loss, "policy_loss": loss, "actor_loss": loss}

    def loss(
        self, params: dict[str, fn.Params], state: State, batch: Batch, noise: Noise, hp: Hparams
    ) -> tuple[Tensor, Metrics]:
        """Sum of all terms, each a function of its own network's parameters alone."""
        h_a, cond = self.spec.act_horizon, fn.encode(batch.obs)
        head, valid = batch.q_action[:, :h_a], torch.maximum(batch.mask[:, h_a - 1], batch.terminal)
        v_next = self.nets["value"](state["value"], fn.encode(batch.next_obs))[0].sigmoid()
        # rewards are not negative, so that a bound on |y| is the clip to [0, 1]
        y = fn.td_target(batch, v_next, hp["gamma"], hp["reward_scale"], torch.ones_like(hp["gamma"]))
        e = self._agg(self._q("action_critic", state["action_critic_target"], cond, head).sigmoid())
        l_chunk, y_d, m_chunk = self.chunk_term(params["chunk_critic"], y, cond, batch.q_action)
        l_action, m_action = self.action_term(params["action_critic"], y_d.detach(), valid, cond, head, hp["kappa_d"])
        l_value, m_value = self.value_term(params["value"], e, valid, cond, hp["kappa_b"])
        l_flow, m_flow = self.flow_term(params["policy"], batch, noise, cond)
        critics = l_chunk + l_action + l_value
        metrics = m_chunk | m_action | m_value | m_flow | {"critic_loss": critics, "loss": critics + l_flow}
        metrics |= {"td_target_mean": y.mean(), "q_next_mean": v_next.mean(), "valid_share": valid.mean()}
        return critics + l_flow, metrics

    def update(self, state: State, batch: Batch, noise: Noise, hp: Hparams) -> tuple[State, Metrics]:
        """One Adam step for each network, all from the parameters before the update; Polyak, EMA."""
        params = {name: state[name] for name in self.nets}
        grads, metrics = grad(self.loss, has_aux=True)(params, state, batch, noise, hp)
        new: State = {}
        for name, tree in grads.items():
            lr = hp["lr" if name == "policy" else "lr_critic"]
            changed, metrics[f"grad_norm_{name}"] = fn.descend(state, name, fn.ravel(tree), lr, hp["grad_clip"])
            new |= changed
        new["action_critic_target"] = fn.polyak(state["action_critic_target"], new["action_critic"], hp["tau"])
        ema = fn.polyak(state["acting"]["policy_ema"], new["policy"], 1 - hp["ema_decay"])
        new["acting"] = {"policy_ema": ema, "action_critic": new["action_critic"]}
        return new, metrics | fn.bound_metrics(self.spec, hp["gamma"], hp["reward_scale"])

    def chunk_value(self, state: State, obs: Obs, chunk: Tensor) -> Tensor:
        """Q^ha [N] of executed chunks: the mean over the ensemble of probabilities, whatever `q_agg` is.

        It is the mean of the metric q_data_mean, at other chunks; for the policy's own there is no metric.
        """
        return self._q("action_critic", state["acting"]["action_critic"], fn.encode(obs), chunk).sigmoid().mean(0)

    def act_noise(self, g: Generator, n: int) -> Noise:
        return {"z": fn.normal_chunks(g, self.spec, n, self.cfg.num_samples)}

    def act(self, state: State, obs: Obs, noise: Noise) -> Tensor:
        """The best of N samples; scored, as in the original, by aggregated logits, which do not saturate."""
        policy, critic = state["acting"]["policy_ema"], state["acting"]["action_critic"]
        n, size = noise["z"].shape[:2]
        cond = fn.encode(obs).repeat_interleave(size, 0)
        x_1 = flow.sample(self.v, policy, noise["z"].flatten(0, 1), cond, self.cfg.num_flow_steps, 0)
        chunk = fn.executed(fn.clip_action(x_1, self.spec), self.spec)
        best = self._agg(self._q("action_critic", critic, cond, chunk)).view(n, size).argmax(1)
        return chunk.view(n, size, *chunk.shape[1:]).take_along_dim(best[:, None, None, None], 1).squeeze(1)


def make(cfg: Config, spec: Spec) -> Algorithm:
    """Raises UsageError if values on this data are no probabilities, or the network does not fit the chunk."""
    problems, cure = [], "take data with sparse rewards (env.reward_mode=sparse) or another variant"
    if spec.reward_low < 0:
        problems.append(f"rewards must be >= 0 for dqc, but the data's lowest is {spec.reward_low:g}; {cure}")
    if spec.reward_high * cfg.reward_scale > 1:
        problems.append(
            f"algo.reward_scale times the data's highest reward must be <= 1 for dqc, but is {cfg.reward_scale:g} * "
            f"{spec.reward_high:g}; set algo.reward_scale={1 / spec.reward_high:g} or less"
        )
    if not spec.reward_ends_episode:
        problems.append(
            f"rewards must be paid on terminating steps alone for dqc, but the data has others (up to "
            f"{spec.reward_high:g}); {cure}"
        )
    if problems:
        raise UsageError(problems)
    c = _Dqc(cfg, spec)
    critic = Critic(c.chunk_value, cfg.gamma, cfg.reward_scale)
    return Algorithm(c.init, c.update_noise, c.update, c.act_noise, c.act, critic=critic)
