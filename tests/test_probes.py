"""Problems that can be solved on paper, learned through the ordinary training loop from data in memory.

Rewards and gamma = 1/2 make every value a simple fraction. Actions are uniform over all that there are, so that the
policy's actions are always among the data's; frames are one-hot states.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch

from offrl_ray.algos import make
from offrl_ray.algos.functional import select
from offrl_ray.data.dataset import Dataset
from offrl_ray.fields import hparams
from offrl_ray.train import Snapshot, start, train
from offrl_ray.types import Algorithm, Hparams, Metrics
from tests.rows import ROWS
from tests.rows.kinds import Flat
from tests.toys import dataset, episode, generator, half_missing, random_actions, run_config, spec_of


class Chain(NamedTuple):
    """States of the frames, one more than rewards; the steps that end in a terminal; the values on paper."""

    states: Sequence[int]
    reward: Sequence[float]
    terminated: Sequence[int]
    values: Sequence[float]


CHAINS = {
    "constant reward is worth r / (1 - gamma)": Chain([0] * 5, [1] * 4, [], [2, 2, 2, 2]),
    "reward follows the observation, high": Chain([1, 0], [1], [0], [1]),
    "reward follows the observation, low": Chain([2, 0], [-0.5], [0], [-0.5]),
    "reward one step late is discounted once": Chain([3, 4, 0], [0, 1], [1], [1 / 2, 1]),
    "reward travels back across chunks": Chain(
        [5, 6, 7, 8, 9, 0], [0, 0, 0, 0, 1], [4], [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]
    ),
    "rewards inside a chunk add up": Chain([10, 11, 12, 0], [1, 0, 1], [2], [1 + 1 / 4, 1 / 2, 1]),
    "a truncation bootstraps from the last frame": Chain([13, 14, 0], [0, 0], [], [1 / 2, 1]),
    "a terminal does not bootstrap": Chain([15, 16, 0], [0, 0], [1], [0, 0]),
    "a terminal inside a chunk ends it": Chain([17, 18, 19, 0], [0, 1, 1], [1], [1 / 2, 1, 2]),
}
STATES = 21
BY_ACTION = STATES - 1
COPIES = 12
TOLERANCE = 0.04


def one_hot(states: Sequence[int]) -> np.ndarray:
    return np.eye(STATES, dtype=np.float32)[list(states)]


def world(act_horizon: int, num_actions: int) -> Dataset:
    """`COPIES` of each chain, then as many times four single steps whose reward is half the action."""
    g = np.random.default_rng(0)
    chains = [c for c in CHAINS.values() for _ in range(COPIES)]
    episodes = [
        episode(one_hot(c.states), random_actions(g, len(c.reward), 1, num_actions), c.reward, terminated=c.terminated)
        for c in chains
    ]
    for _ in range(4 * COPIES):
        action = random_actions(g, 1, 1, num_actions)
        episodes.append(episode(one_hot([BY_ACTION, 0]), action, action[0] / 2, terminated=[0]))
    return dataset(episodes, act_horizon=act_horizon, pred_horizon=act_horizon, num_actions=num_actions)


class Learned(NamedTuple):
    data: Dataset
    alg: Algorithm
    hp: Hparams
    snapshot: Snapshot

    def metrics(self, chunks: Sequence[int]) -> Metrics:
        """Of an update on these chunks of the data."""
        batch = self.data.batch(torch.tensor(chunks))
        noise = self.alg.update_noise(generator(), len(chunks))
        return self.alg.update(select(self.snapshot.state, 0), batch, noise, self.hp)[1]

    def q(self, chunks: Sequence[int]) -> float:
        """Mean Q at these chunks of the data."""
        return self.metrics(chunks)["q_data_mean"].item()


def trained(variant: str, data: Dataset, steps: int, *algo: Flat) -> Learned:
    every = {"train_report_every": steps, "eval_every": steps}
    cfg = run_config(variant, *algo, train_steps=steps, train_batch_size=64, train_seeds=(0,), **every)
    alg = make(cfg.algo, data.spec)
    (progress,) = train(cfg, alg, data, start(cfg, alg))
    return Learned(data, alg, hparams(cfg.algo), progress.snapshot)


@cache
def learned(variant: str, probe: str, act_horizon: int) -> Learned:
    return trained(variant, world(act_horizon, spec_of(variant).num_actions), 400, ROWS[variant].probes[probe])


LEARNERS = pytest.mark.parametrize(
    ("variant", "probe", "act_horizon"),
    [(v, p, h) for v, row in ROWS.items() for p in row.probes for h in ((1,) if spec_of(v).num_actions else (1, 3))],
)


@LEARNERS
@pytest.mark.parametrize("name", CHAINS)
def test_values_on_paper(name: str, variant: str, probe: str, act_horizon: int) -> None:
    agent = learned(variant, probe, act_horizon)
    first = 0
    for other, chain in CHAINS.items():
        if other == name:
            break
        first += COPIES * len(chain.reward)
    length = len(CHAINS[name].reward)
    values = [agent.q([first + i * length + t for i in range(COPIES)]) for t in range(length)]
    assert values == pytest.approx(CHAINS[name].values, abs=TOLERANCE)


@LEARNERS
def test_reward_follows_the_action(variant: str, probe: str, act_horizon: int) -> None:
    agent = learned(variant, probe, act_horizon)
    chunks = range(len(agent.data) - 4 * COPIES, len(agent.data))
    rewards = agent.data.batch(torch.tensor(list(chunks))).reward[:, 0].tolist()
    assert [agent.q([i]) for i in chunks] == pytest.approx(rewards, abs=TOLERANCE)


TWO_MODES: Flat = {
    "num_flow_steps": 5,
    "network.width": 32,
    "network.time_dim": 8,
    "lr": 3e-3,
    "ema_decay": 0.95,
}


@cache
def two_modes(variant: str, **algo: float | str) -> torch.Tensor:
    """500 actions after data with actions near -0.5, worth 0, and as many near 0.5, worth 1."""
    actions = np.repeat([-0.5, 0.5], 100) + np.random.default_rng(0).normal(0, 0.05, 200)
    data = dataset([episode([0, 0], np.array([[a]]), [float(a > 0)], terminated=[0]) for a in actions])
    agent = trained(variant, data, 400, ROWS[variant].probes.get("plain", {}), TWO_MODES, algo)
    acting, obs = select(agent.snapshot.state, 0), {"state": torch.zeros(500, 1, 1)}
    normalised = agent.alg.act(acting, obs, agent.alg.act_noise(generator(), 500))[:, 0, 0]
    return normalised * data.spec.action_std[0] + data.spec.action_mean[0]


def share_of_the_better(actions: torch.Tensor) -> float:
    return (actions > 0).float().mean().item()


@pytest.mark.parametrize(
    ("variant", "algo"),
    [
        ("flow_bc", {}),
        ("cpql", {"alpha": 0.0}),
        ("cpql", {"alpha": 1.0, "q_grad_mode": "whole_grad"}),
        ("awcp", {"beta": 3.0}),
    ],
    ids=["flow_bc", "bc", "cpql", "awcp"],
)
def test_flow_policies_act_like_the_data(variant: str, algo: Flat) -> None:
    assert ((two_modes(variant, **algo).abs() - 0.5).abs() < 0.2).float().mean() > 0.85


@pytest.mark.parametrize(
    ("variant", "algo"), [("flow_bc", {}), ("cpql", {"alpha": 0.0})], ids=["flow_bc", "cpql, alpha 0"]
)
def test_without_a_q_term_both_modes_are_chosen_alike(variant: str, algo: Flat) -> None:
    assert share_of_the_better(two_modes(variant, **algo)) == pytest.approx(0.5, abs=0.1)


def test_a_one_step_flow_acts_by_the_mean_of_the_modes() -> None:
    assert (two_modes("flow_bc", num_flow_steps=1).abs() < 0.2).float().mean() > 0.85


def test_cpql_prefers_the_better_mode() -> None:
    assert share_of_the_better(two_modes("cpql", alpha=1.0, q_grad_mode="whole_grad")) > 0.85


def test_cpql_prefers_the_better_mode_less_by_one_big_step_than_by_all_steps() -> None:
    """The single step trains v(., 0) only, which supplies 1/N of what the sampler integrates."""
    bc, whole = two_modes("cpql", alpha=0.0), two_modes("cpql", alpha=1.0, q_grad_mode="whole_grad")
    single = two_modes("cpql", alpha=1.0)
    assert share_of_the_better(bc) + 0.05 < share_of_the_better(single) < share_of_the_better(whole) - 0.05


AWCPS: list[Flat] = [
    {"beta": 0.0},
    {"beta": 1.0},
    {"beta": 3.0},
    {"beta": 1.0, "cons_mode": "velocity", "baseline": "value"},
]


@pytest.mark.parametrize("algo", AWCPS, ids=["beta 0", "beta 1", "beta 3", "beta 1, first form, value"])
def test_awcp_prefers_the_better_mode_by_exp_beta(algo: Flat) -> None:
    """The better mode's Q is 1 above the other's, so its chunks weigh exp(beta) times as much."""
    assert share_of_the_better(two_modes("awcp", **algo)) == pytest.approx(1 / (1 + np.exp(-algo["beta"])), abs=0.09)


@cache
def corridor(baseline: str) -> dict[str, float]:
    """Metrics of AWCP's weights where no action matters and Q is 1/16, 1/8, 1/4, 1/2, 1 along every episode."""
    g = np.random.default_rng(0)
    walk = [0.0] * 4 + [1.0]
    episodes = [episode(one_hot(range(6)), g.uniform(-1, 1, (5, 1)), walk, terminated=[4]) for _ in range(24)]
    agent = trained("awcp", dataset(episodes), 400, ROWS["awcp"].probes["plain"], {"beta": 3.0, "baseline": baseline})
    return {k: m.item() for k, m in agent.metrics(range(len(agent.data))).items()}


def test_awcps_batch_mean_prefers_states_near_the_reward() -> None:
    weights = np.exp(3 / 2.0 ** np.arange(4, -1, -1))
    weights /= weights.mean()
    found = corridor("batch_mean")
    assert found["weight_step_corr"] == pytest.approx(np.corrcoef(weights, range(5))[0, 1], abs=0.03)
    assert found["weight_std"] == pytest.approx(weights.std(), rel=0.1)


def test_awcps_value_baseline_prefers_no_state() -> None:
    found = corridor("value")
    assert found["v_mean"] == pytest.approx(31 / 16 / 5, abs=0.02)
    assert found["effective_sample_share"] > 0.98


HALF: Flat = {
    "hidden": (32, 32),
    "critic_hidden": (32, 32),
    "num_samples": 4,
    "lr": 1e-2,
    "lr_critic": 1e-2,
    "init_temperature": 0.1,
    "lr_temperature": 1e-12,
}


@cache
def after_half(**algo: float | str) -> tuple[float, Metrics]:
    """What CQL does after data whose better half is missing, raw, and the metrics of one more update."""
    agent = trained("cql", half_missing(), 200, HALF, algo)
    state, spec = select(agent.snapshot.state, 0), agent.data.spec
    action = agent.alg.act(state, {"state": torch.zeros(1, 1, 1)}, {}).item()
    noise = agent.alg.update_noise(generator(), len(agent.data))
    _, metrics = agent.alg.update(state, agent.data.batch(torch.arange(len(agent.data))), noise, agent.hp)
    return action * spec.action_std[0] + spec.action_mean[0], metrics


def test_soft_actor_critic_takes_the_false_optimum_and_believes_in_it() -> None:
    """No action pays more than 1."""
    action, metrics = after_half(cql_alpha=0.0)
    assert action > 0.5
    assert metrics["q_policy_mean"] > 1.3


@pytest.mark.parametrize("form", ["importance", "plain", "per_source"])
def test_cql_stays_with_the_data_and_does_not_overestimate(form: str) -> None:
    action, metrics = after_half(cql_alpha=1.0, form=form)
    assert -1 < action < 0
    assert metrics["q_policy_mean"] < metrics["q_data_mean"] < 1
