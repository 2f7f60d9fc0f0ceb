"""CQL: conservative Q-learning on soft actor-critic (soft.py), the critics pushed down where the data is not.

    L_critic = 1/2 sum_E mean_B (Q_i(s, a_D) - y)^2 + alpha' cql_alpha sum_E mean_B (Delta_i - gap)
    Delta_i  = max(T log sum_a exp(term_i(a) / T) - Q_i(s, a_D), m)
    L_alpha' = -alpha' cql_alpha mean_E (Delta_i - gap)                      alpha' = 1, gap = 0 without lagrange_gap
    L_actor  = E (temperature * log pi(a|s) - Q(s, a)); for the first bc_steps updates log pi(a_D|s) in Q's place

The actions a are 3n at every state s: n uniform, n ~ pi(.|s), and n ~ pi(.|s') that are scored at s. What they add to
the sum is the `form`; d = H_q A is the number of action dimensions that the critic scores:

form         terms                                           Delta of a flat Q, whatever it is
importance   Q - log(density that drew the action)           d ln 2 + T ln n and more, the uniform ones' part
plain        Q, and Q(s, a_D) too: 3n + 1 of them            T ln(3n + 1)
per_source   Q; the mean of the three sources' log-sums      T ln n

`auto` is importance for d <= 8 and plain above. An importance weight estimates the integral of exp Q over all actions,
but the weights' spread grows with d: at d = 56 a uniform action weighs e^39 and one of a policy at its target entropy
e^-56 or so, hence Q differences of a few units decide nothing, the policy's own actions are never pushed down, and no
gap below 41 can be met. Without densities the largest Q of any source is what is pushed down, at every d. That is
CQL(rho) of the paper, rho the sources' mixture. plain rather than per_source because its Delta is positive and its push
fades once the data's action is on top, and goes to the source that overestimates; per_source spends a third on each,
and its Delta has no floor. The metrics cql_share_* say who is pushed down, and cql_form which form is in force: 0, 1, 2
in the table's order.

symbol       name                        meaning
n, T, m      num_samples, cql_temp, cql_clip_diff_min
gap          lagrange_gap                alpha' rises while Delta is above it, and falls below
alpha'       state["alpha_prime"]        0 <= alpha' <= 1e6, e at the start

Sources: Kumar et al. 2020 (arXiv 2006.04779); code aviralkumar2907/CQL (plain is its min_q_version 2), young-geng/CQL
and CORL, whose Lagrange form this is. Defaults are CORL's but for lr, which is aviral's: 3e-5 is for a million updates.

Deviations from the codes: the TD term has the paper's factor 1/2, so that their weight w is cql_alpha = w / 2; targets
are clipped, temperature and target entropy are those of soft.py, and the critics step before the policy; alpha' is
kept below its bound by projection, so that it can come back; max_target_backup takes the penalty's own draws at s'.
"""

import math
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from offrl_ray.algos import functional as fn
from offrl_ray.algos import nets
from offrl_ray.algos.soft import Finite, Soft, SoftConfig
from offrl_ray.fields import Count, Needs, NonNegative, Positive, Swept, config
from offrl_ray.types import Algorithm, Batch, Hparams, Metrics, Noise, Spec, State

FORMS = ("importance", "plain", "per_source")
SOURCES = ("random", "current", "next")
MAX_IMPORTANCE_DIM = 8
MAX_ALPHA_PRIME = 1e6
BLOCK = 2048
"""actions that go through the critics together on a CPU"""


@config
class Config(SoftConfig):
    needs: ClassVar[Needs] = Needs(defaults={"data.pred_horizon": 8})
    name: Literal["cql"] = "cql"
    """the variant"""
    cql_alpha: Swept[NonNegative] = 5.0
    """weight of the conservative term; 0 is SAC"""
    cql_temp: Swept[Positive] = 1.0
    """temperature of its log-sum-exp"""
    num_samples: Count = 10
    """actions from each of its three sources: uniform, policy at s, policy at s'"""
    form: Literal["auto", "importance", "plain", "per_source"] = "auto"
    """densities weigh the actions; none do; one log-sum a source. auto: importance if the critic scores at most 8
    action dimensions, else plain; the metric cql_form tells"""
    lagrange_gap: Swept[Positive | None] = None
    """Delta that a learned factor on cql_alpha aims at; none switches it off"""
    cql_clip_diff_min: Swept[Finite | None] = None
    """a Delta below it is not pushed down further; none switches it off"""
    max_target_backup: bool = False
    """the next state's value is that of the best of num_samples actions"""
    bc_steps: Swept[NonNegative] = 0.0
    """first updates in which the policy imitates the data instead of climbing Q"""
    lr: Swept[Positive] = 1e-4
    """Adam step size of the policy"""
    grad_clip: Swept[Positive | None] = None
    """largest gradient norm of each network, each member by itself; none switches it off"""
    layer_norm: bool = False
    """LayerNorm before each activation, in all networks"""
    activation: nets.Activation = "relu"
    """of all networks"""
    num_critics: Count = 2
    """size of the ensemble"""

    def inert(self) -> frozenset[str]:
        """Fields that change no parameter of the trained policy and critic, given the others."""
        if self.cql_alpha:
            return frozenset()
        names = {"cql_temp", "form", "lagrange_gap", "cql_clip_diff_min", "num_samples"}
        return frozenset(names - {"num_samples"} if self.max_target_backup else names)


def soft_maximum(form: str, q: Tensor, q_data: Tensor, log_density: Tensor, temp: Tensor) -> tuple[Tensor, Tensor]:
    """T logsumexp of the terms, [E, B], and the shares in it of the three sources and of the data's action, [4].

    q [E, B, 3n] and log_density [B, 3n], one source after the other; q_data [E, B].
    """
    if form == "per_source":
        each = temp * (q.unflatten(-1, (len(SOURCES), -1)) / temp).logsumexp(-1)
        return each.mean(-1), q.new_tensor([1 / 3, 1 / 3, 1 / 3, 0])
    terms = torch.cat([q, q_data[..., None]], -1) if form == "plain" else q - log_density
    share = (terms.detach() / temp).softmax(-1).mean((0, 1))
    sampled, data = share.split((q.shape[-1], terms.shape[-1] - q.shape[-1]))
    sources = sampled.unflatten(0, (len(SOURCES), -1)).sum(1)
    return temp * (terms / temp).logsumexp(-1), torch.cat([sources, data.sum(0, keepdim=True)])


class _Cql(Soft):
    def __init__(self, cfg: Config, spec: Spec):
        super().__init__(cfg, spec)
        self.dim = spec.q_horizon * spec.action_dim
        chosen = "importance" if self.dim <= MAX_IMPORTANCE_DIM else "plain"
        self.form = chosen if cfg.form == "auto" else cfg.form

    def init(self, g: Generator) -> State:
        alpha_prime = {"log": torch.ones((), device=g.device)}
        return super().init(g) | {"alpha_prime": alpha_prime, "alpha_prime_opt": fn.adam_init(alpha_prime)}

    def update_noise(self, g: Generator, batch_size: int) -> Noise:
        # drawn after SAC's, and whether used or not, so that all settings see the same numbers
        noise, size, a = super().update_noise(g, batch_size), (self.cfg.num_samples, batch_size), self.spec.action_dim
        noise["random"] = torch.rand((*size, self.spec.q_horizon, a), generator=g, device=g.device)
        for name in ("current", "next"):
            noise[name] = fn.normal_chunks(g, self.spec, *size)
        return noise

    def alpha_prime(self, state: State, hp: Hparams) -> Tensor:
        return torch.where(hp["lagrange_gap"].isinf(), 1.0, state["alpha_prime"]["log"].exp())

    def proposals(self, policy: fn.Params, cond: Tensor, next_cond: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Scored chunks [B, 3n, H_q A] and the log densities that drew them [B, 3n], one source after the other."""
        h = self.spec.q_horizon
        current, log_current = self.pi.sample(policy, cond, noise["current"][..., :h, :])
        following, log_following = self.pi.sample(policy, next_cond, noise["next"][..., :h, :])
        log_uniform = torch.full_like(log_current, -self.dim * math.log(2))
        actions = torch.cat([fn.between_bounds(noise["random"], self.spec), current, following]).flatten(2)
        return actions.transpose(0, 1), torch.cat([log_uniform, log_current, log_following]).transpose(0, 1)

    def delta(self, q: Tensor, log_density: Tensor, hp: Hparams) -> tuple[Tensor, Tensor]:
        """Delta [E, B] of Q [E, B, 3n + 1], the data's action last; and the shares of `soft_maximum`."""
        q, q_data, low = q[..., :-1], q[..., -1], hp["cql_clip_diff_min"]
        top, share = soft_maximum(self.form, q, q_data, log_density, hp["cql_temp"])
        return torch.maximum(top - q_data, torch.where(low.isinf(), -torch.inf, low)), share

    def penalty(
        self, critic: fn.Params, cond: Tensor, actions: Tensor, log_density: Tensor, hp: Hparams
    ) -> tuple[Tensor, Tensor]:
        """Sum over critics and states of Delta, and the Q [E, B, 3n + 1] that it comes from."""
        q = self.critics(critic, cond, actions)
        return self.delta(q, log_density, hp)[0].sum(), q

    def penalty_gradient(
        self, state: State, batch: Batch, cond: Tensor, noise: Noise, hp: Hparams
    ) -> tuple[Tensor, Metrics]:
        """Of sum_E mean_B Delta, one vector; on a CPU in blocks of states whose activations its cache holds."""
        sampled, log_density = self.proposals(state["policy"], cond, fn.encode(batch.next_obs), noise)
        actions = torch.cat([sampled, batch.q_action.flatten(1)[:, None]], 1)
        size = max(1, BLOCK // actions.shape[1]) if actions.is_cpu else len(actions)
        blocks = zip(*(t.split(size) for t in (cond, actions, log_density)), strict=True)
        parts = [fn.gradient(self.penalty, state["critic"], s, a, density, hp) for s, a, density in blocks]
        gradient = torch.stack([g for g, _ in parts]).sum(0) / len(actions)
        q = torch.cat([part for _, part in parts], 1)
        diff, share = self.delta(q, log_density, hp)
        means = q[..., :-1].unflatten(-1, (len(SOURCES), -1)).mean((0, 1, 3))
        metrics = {f"cql_q_{name}": value for name, value in zip(SOURCES, means.unbind(), strict=True)}
        metrics |= {f"cql_share_{name}": value for name, value in zip((*SOURCES, "data"), share.unbind(), strict=True)}
        metrics |= {"cql_q_data": q[..., -1].mean(), "cql_q_std": q[..., :-1].std(-1).mean()}
        return gradient, {"cql_penalty": diff.mean(1).sum(), "cql_diff": diff.mean(), **metrics}

    def critic_gradient(
        self, state: State, y: Tensor, batch: Batch, cond: Tensor, noise: Noise, hp: Hparams
    ) -> tuple[Tensor, Metrics]:
        """SAC's, and the penalty's beside it: with weight 0 the latter leaves no trace."""
        td, metrics = super().critic_gradient(state, y, batch, cond, noise, hp)
        conservative, more = self.penalty_gradient(state, batch, cond, noise, hp)
        weight, gap = hp["cql_alpha"] * self.alpha_prime(state, hp), hp["lagrange_gap"]
        excess = more["cql_penalty"] - torch.where(gap.isinf(), 0.0, self.cfg.num_critics * gap)
        loss = torch.where(weight > 0, metrics["critic_loss"] + weight * excess, metrics["critic_loss"])
        metrics |= {**more, "critic_loss": loss, "grad_norm_td": td.norm(), "grad_norm_cql": conservative.norm()}
        return torch.where(weight > 0, td + weight * conservative, td), metrics

    def critic_step(self, state: State, batch: Batch, cond: Tensor, noise: Noise, hp: Hparams) -> tuple[State, Metrics]:
        """alpha' and the critics, both from the same Delta and alpha'."""
        after, metrics = super().critic_step(state, batch, cond, noise, hp)
        gap, alpha_prime = hp["lagrange_gap"], self.alpha_prime(state, hp)
        loss = torch.where(gap.isinf(), 0.0, -alpha_prime * hp["cql_alpha"] * (metrics["cql_diff"] - gap))
        # d L_alpha' / d log alpha' is L_alpha' itself
        stepped, opt = fn.adam(state["alpha_prime"], loss.reshape(1), state["alpha_prime_opt"], hp["lr_critic"])
        capped = {"log": stepped["log"].clamp_max(math.log(MAX_ALPHA_PRIME))}
        form = loss.new_tensor(float(FORMS.index(self.form)))
        metrics |= {"alpha_prime": alpha_prime, "alpha_prime_loss": loss, "cql_form": form}
        return {**after, "alpha_prime": capped, "alpha_prime_opt": opt}, metrics

    def next_value(self, state: State, next_cond: Tensor, noise: Noise, hp: Hparams) -> Tensor:
        if not self.cfg.max_target_backup:
            return super().next_value(state, next_cond, noise, hp)
        action, log_pi = self.pi.sample(state["policy"], next_cond, noise["next"])
        scored = action[..., : self.spec.q_horizon, :].flatten(2).transpose(0, 1)
        q = self.critics(state["critic_target"], next_cond, scored)
        best = self.subset_min(q, noise).max(1)
        if not self.cfg.backup_entropy:
            return best.values
        return best.values - self.temperature(state, hp) * log_pi.gather(0, best.indices[None])[0]

    def actor_loss(
        self, policy: fn.Params, state: State, batch: Batch, cond: Tensor, noise: Noise, hp: Hparams
    ) -> tuple[Tensor, Metrics]:
        _, metrics = super().actor_loss(policy, state, batch, cond, noise, hp)
        log_data = self.pi.log_prob(policy, cond, batch.action).mean()
        early = state["policy_opt"]["t"] < hp["bc_steps"]
        climbed = torch.where(early, log_data, metrics["actor_q"])
        loss = self.temperature(state, hp) * metrics["log_pi"] - climbed
        return loss, {**metrics, "actor_loss": loss, "bc_loss": -log_data}


def make(cfg: Config, spec: Spec) -> Algorithm:
    return _Cql(cfg, spec).algorithm()
