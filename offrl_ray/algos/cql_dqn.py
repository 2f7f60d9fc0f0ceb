"""Discrete CQL on double DQN: Q-learning on fixed data that lowers the value of what the data does not do.

One network gives Q(s, .), the values of all actions; the policy is its argmax.

    L_critic = L_td + cql_alpha * L_cql
    L_td     = mean (Q(s, a_D) - y)^2,  y = R^(tau) + (1 - d) gamma^tau Q'(s', a*)
    a*       = argmax_a Q(s', a) with double_q, else argmax_a Q'(s', a)
    L_cql    = mean T logsumexp_a(Q(s, a) / T) - mean Q(s, a_D)            push down all actions, pull up the data's

At cql_alpha = 0 this is double DQN.

symbol      name        meaning
alpha       cql_alpha   weight of the conservative term
T           cql_temp    temperature of its soft maximum: near 0 the maximum, towards infinity the mean over actions
gamma, tau  gamma, tau  discount per environment step; Polyak rate of the target network Q'
d           terminal    1 if the environment terminated; an episode cut short is bootstrapped from its last frame

Metrics: q_value and q_data_mean are mean Q(s, a_D); q_mean and q_policy_mean are mean max_a Q(s, a), the value of what
the policy would do; next_q_value is mean Q'(s', a*); cql_penalty is L_cql without its weight; critic_loss and loss are
all of L_critic; grad_norm is before clipping. q_value, next_q_value, critic_loss, grad_norm are the notebook's names.

Sources: conservative Q-learning, Kumar et al. 2020 (arXiv 2006.04779), eq. 4, CQL(H); double DQN, van Hasselt et al.
2016 (arXiv 1509.06461); constants and network, the CartPole notebook of datawhalechina/joyrl-book (seed document 001).

Deviations from the notebook: it takes the 200-step cap for a terminal, here a cap ends no chunk; it builds the penalty
as a [B, B] matrix, whose mean is the one here; observations are standardised with the data's statistics.
"""

from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Generator, Tensor, nn, ones_like

from offrl_ray.algos import functional as fn
from offrl_ray.fields import Count, Discount, Fraction, Needs, NonNegative, Positive, Swept, config
from offrl_ray.types import Algorithm, Batch, Critic, Hparams, Metrics, Noise, Obs, Spec, State


@config
class Config:
    needs: ClassVar[Needs] = Needs(
        discrete=True,
        defaults={
            "data.obs_horizon": 1,
            "data.act_horizon": 1,
            "data.pred_horizon": 1,
            "env.control_mode": "native",
            "env.reward_mode": "native",
            "env.sim_backend": "native",
            "env.max_steps": 200,
            "env.num_envs": 5,
            "train.steps": 800,
            "train.batch_size": 64,
            "train.report_every": 20,
            "eval.every": 20,
            "eval.episodes": 5,
        },
    )
    name: Literal["cql_dqn"] = "cql_dqn"
    """the variant"""
    cql_alpha: Swept[NonNegative] = 1.0
    """weight of the conservative term; 0 is double DQN"""
    cql_temp: Swept[Positive] = 1.0
    """temperature of the soft maximum that it pushes down"""
    double_q: bool = True
    """next actions are the online network's choice; false: the target network's own"""
    gamma: Swept[Discount] = 0.95
    """discount per environment step"""
    tau: Swept[Fraction] = 0.005
    """Polyak rate of the target network"""
    lr: Swept[Positive] = 5.5e-4
    """Adam step size"""
    grad_clip: Swept[Positive | None] = 10.0
    """largest gradient norm, each member by itself; none switches it off"""
    hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (64, 64)
    """hidden layers of the network, ReLU after each"""

    def inert(self) -> frozenset[str]:
        """Fields that change no parameter of the trained network, given the others."""
        return frozenset({"cql_temp"} if self.cql_alpha == 0 else ())


def push_down(q: Tensor, temp: Tensor) -> Tensor:
    """mean T logsumexp(Q / T) of all actions' values [B, n]."""
    return (temp * (q / temp).logsumexp(1)).mean()


def pull_up(q_data: Tensor) -> Tensor:
    """Minus the mean value of the data's actions [B]."""
    return -q_data.mean()


def _at(q: Tensor, action: Tensor) -> Tensor:
    """Values [B] of one action index each."""
    return q.gather(1, action[:, None])[:, 0]


class _CqlDqn:
    """The update, for one member; holds configuration and the network's function, never parameters."""

    def __init__(self, cfg: Config, spec: Spec):
        self.cfg, self.spec = cfg, spec
        self.q = fn.stateless(self.critic_module)

    def critic_module(self) -> nn.Sequential:
        """Condition [B, C] -> values of all actions [B, n]."""
        widths = [fn.condition_dim(self.spec), *self.cfg.hidden]
        layers = [layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(widths[-1], self.spec.num_actions))

    def init(self, g: Generator) -> State:
        critic = fn.init_params(self.critic_module, g)
        return {
            "acting": {"critic": critic},
            "critic": critic,
            "critic_target": critic,
            "critic_opt": fn.adam_init(critic),
        }

    def target(self, state: State, batch: Batch, hp: Hparams) -> tuple[Tensor, Tensor]:
        """y and Q'(s', a*), each [B]."""
        cond = fn.encode(batch.next_obs)
        q = self.q(state["critic_target"], cond)
        choice = self.q(state["critic"], cond) if self.cfg.double_q else q
        next_q = _at(q, choice.argmax(1))
        ret, discount = fn.chunk_return(batch, hp["gamma"])
        return ret + (1 - batch.terminal) * discount * next_q, next_q

    def critic_term(self, critic: fn.Params, y: Tensor, batch: Batch, hp: Hparams) -> tuple[Tensor, Metrics]:
        q = self.q(critic, fn.encode(batch.obs))
        q_data = _at(q, batch.q_action[:, 0, 0].long())
        td = (q_data - y).square().mean()
        penalty = push_down(q, hp["cql_temp"]) + pull_up(q_data)
        loss = td + hp["cql_alpha"] * penalty
        metrics = {"loss": loss, "critic_loss": loss, "td_loss": td, "cql_penalty": penalty}
        metrics |= dict.fromkeys(("q_value", "q_data_mean"), q_data.mean())
        return loss, metrics | dict.fromkeys(("q_mean", "q_policy_mean"), q.amax(1).mean())

    def update(self, state: State, batch: Batch, noise: Noise, hp: Hparams) -> tuple[State, Metrics]:
        """One Adam step on L_critic, then Polyak."""
        y, next_q = self.target(state, batch, hp)
        g, metrics = fn.gradient(self.critic_term, state["critic"], y, batch, hp)
        changed, norm = fn.descend(state, "critic", g, hp["lr"], hp["grad_clip"])
        metrics |= {"next_q_value": next_q.mean(), "td_target_mean": y.mean(), "grad_norm": norm}
        metrics |= fn.bound_metrics(self.spec, hp["gamma"], ones_like(hp["gamma"]))
        target = fn.polyak(state["critic_target"], changed["critic"], hp["tau"])
        return {**changed, "critic_target": target, "acting": {"critic": changed["critic"]}}, metrics

    def chunk_value(self, state: State, obs: Obs, chunk: Tensor) -> Tensor:
        """Q [N] of one action index each, [N, 1, 1]."""
        return _at(self.q(state["critic"], fn.encode(obs)), chunk[:, 0, 0].long())

    def act(self, state: State, obs: Obs, noise: Noise) -> Tensor:
        q = self.q(state["acting"]["critic"], fn.encode(obs))
        return q.argmax(1).to(q.dtype)[:, None, None]


def make(cfg: Config, spec: Spec) -> Algorithm:
    c = _CqlDqn(cfg, spec)
    critic = Critic(c.chunk_value, cfg.gamma, reward_scale=1.0)
    return Algorithm(c.init, fn.no_noise, c.update, fn.no_noise, c.act, critic=critic)
