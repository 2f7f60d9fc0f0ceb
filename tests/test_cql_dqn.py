"""Discrete CQL against the slow reference, against numbers worked by hand, and on states with known answers."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from offrl_ray.algos import cql_dqn
from offrl_ray.algos import functional as fn
from offrl_ray.errors import UsageError
from offrl_ray.run import check_network
from offrl_ray.types import Batch, Spec, State
from tests import compare
from tests.compare import Problem, agree
from tests.reference import cql_dqn as ref
from tests.rows.cql_dqn import PROBE
from tests.rows.kinds import Flat
from tests.toys import (
    advance,
    algorithm,
    batch,
    dataset,
    different,
    episode,
    generator,
    relative_error,
    run_config,
    steps,
)
from tests.toys import spec_of as toy_spec

SIZE = 7
SPEC = toy_spec("cql_dqn")
CASES: dict[str, Flat] = {
    "double": {},
    "single": {"double_q": False},
    "alpha 0": {"cql_alpha": 0.0},
    "hot": {"cql_temp": 4.0},
    "cold": {"cql_temp": 0.2, "cql_alpha": 3.0},
    "one layer": {"hidden": (16,), "gamma": 0.5},
    "three layers": {"hidden": (16, 8, 4)},
}
CASE = pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
PRECISION = pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])


def different_networks(state: State) -> State:
    """Two networks that disagree about the best action, which depends on the state, with values that are not small."""
    critic = {k: 4 * v if k.endswith("weight") else 0 * v for k, v in state["critic"].items()}
    return {**state, "critic": critic, "critic_target": {k: -v for k, v in critic.items()}}


problem = partial(compare.problem, "cql_dqn", prepare=different_networks, size=SIZE)


def gradient(p: Problem) -> ref.Params:
    """Of one update, read off Adam's first moment."""
    state, _ = p.alg.update(p.state, p.batch, p.noise, p.hp)
    return fn.unravel(10 * state["critic_opt"]["m"], p.state["critic"])


def doubled(p: Problem) -> tuple[State, Batch]:
    return ref.double(p.state), Batch(*map(ref.double, p.batch))


@PRECISION
@CASE
def test_values_agree_with_the_reference(settings: Flat, dtype: torch.dtype, bound: float) -> None:
    p = problem(settings, dtype=dtype)
    state, b = doubled(p)
    critic, target = state["critic"], state["critic_target"]
    ys, down, up = ref.targets(critic, target, b, p.cfg), ref.push_down(critic, b, p.cfg), ref.pull_up(critic, b)
    q = [ref.values(critic, ref.condition(b.obs, i)) for i in range(SIZE)]
    loss, grad = (partial(ref.critic_loss, state=state, batch=b, cfg=p.cfg), gradient(p))
    greedy = ref.mean([max(map(float, row)) for row in q])
    expected = {
        "loss": loss(critic),
        "critic_loss": loss(critic),
        "td_loss": ref.td_loss(critic, ys, b),
        "cql_penalty": down + up,
        "q_value": -up,
        "q_data_mean": -up,
        "q_mean": greedy,
        "q_policy_mean": greedy,
        "next_q_value": ref.mean(ref.next_values(critic, target, b, p.cfg)),
        "td_target_mean": ref.mean(ys),
        "grad_norm": math.sqrt(sum(float((g**2).sum()) for g in grad.values())),
        "q_bound_low": SPEC.reward_low / (1 - p.cfg.gamma),
        "q_bound_high": SPEC.reward_high / (1 - p.cfg.gamma),
    }
    _, metrics = p.alg.update(p.state, p.batch, p.noise, p.hp)
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert metrics[name].item() == pytest.approx(float(value), rel=bound, abs=bound), name


@PRECISION
@CASE
def test_gradients_agree_with_the_reference(settings: Flat, dtype: torch.dtype, bound: float) -> None:
    p = problem(settings, dtype=dtype)
    state, b = doubled(p)
    agree(gradient(p), ref.gradient(lambda x: ref.critic_loss(x, state, b, p.cfg), state["critic"]), bound)


def test_what_the_reference_is_compared_on_tells_double_from_single() -> None:
    p = problem()
    state, b = doubled(p)
    single = problem({"double_q": False}).cfg
    assert ref.targets(state["critic"], state["critic_target"], b, p.cfg) != ref.targets(
        state["critic"], state["critic_target"], b, single
    )


@CASE
def test_the_references_gradients_are_finite_differences(settings: Flat) -> None:
    p = problem(settings)
    state, b = doubled(p)
    loss = partial(ref.critic_loss, state=state, batch=b, cfg=p.cfg)
    grad = ref.gradient(loss, state["critic"])
    up, down = ({k: v + sign * 1e-6 * grad[k] for k, v in state["critic"].items()} for sign in (1, -1))
    slope = (loss(up) - loss(down)) / 2e-6
    assert slope.item() == pytest.approx(sum(g.square().sum().item() for g in grad.values()), rel=1e-5)


@pytest.mark.parametrize("part", ["push_down", "pull_up"])
def test_push_down_and_pull_up_agree_each_by_itself(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem({"cql_alpha": 0.7})
    state, b = doubled(p)
    whole, term = gradient(p), getattr(cql_dqn, part)
    monkeypatch.setattr(cql_dqn, part, lambda *args: term(*args).detach())
    expected: dict[str, Callable[[ref.Params], Tensor]] = {
        "push_down": lambda x: 0.7 * ref.push_down(x, b, p.cfg),
        "pull_up": lambda x: 0.7 * ref.pull_up(x, b),
    }
    agree(fn.tree_map(torch.sub, whole, gradient(p)), ref.gradient(expected[part], state["critic"]), 1e-9)


@pytest.mark.parametrize(
    "settings", [{"grad_clip": 0.5, "cql_alpha": 2.0, "cql_temp": 0.5}, {"double_q": False, "tau": 0.3}], ids=str
)
def test_a_run_of_20_updates_is_the_references(settings: Flat) -> None:
    p = problem(settings)
    reference, state = ref.Reference(p.state, p.cfg), p.state
    for i in range(20):
        data = Batch(*(fn.tree_map(Tensor.double, field) for field in batch(generator(i), 3, SPEC)))
        state, _ = p.alg.update(state, data, {}, p.hp)
        reference.update(data, {})
    assert max(relative_error({k: state[k] for k in reference.state}, reference.state).values()) < 1e-5


def test_alpha_zero_is_double_dqn_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    alg, hp = algorithm("cql_dqn", {"cql_alpha": 0.0})
    start, data = alg.init(generator()), steps(alg, 20, spec=SPEC)
    without = advance(alg, hp, start, data)
    with_it = advance(alg, {**hp, "cql_alpha": torch.tensor(0.7)}, start, data)
    monkeypatch.setattr(cql_dqn, "push_down", lambda q, temp: torch.zeros(()))
    monkeypatch.setattr(cql_dqn, "pull_up", lambda q: torch.zeros(()))
    removed = advance(alg, {**hp, "cql_alpha": torch.tensor(0.7)}, start, data)
    assert not different(without, removed)
    assert different(without, with_it)


def test_terms_by_hand() -> None:
    """Q = 0, ln 2, ln 3: at T = 1 the exponentials add up to 6; at T = 1/2 to 1 + 4 + 9."""
    q = torch.tensor([[0.0, math.log(2), math.log(3)]])
    assert cql_dqn.push_down(q, torch.tensor(1.0)).item() == pytest.approx(math.log(6))
    assert cql_dqn.push_down(q, torch.tensor(0.5)).item() == pytest.approx(math.log(14) / 2)
    assert cql_dqn.pull_up(torch.tensor([1.0, 4.0])).item() == -2.5


def linear(online: Sequence[Sequence[float]], target: Sequence[Sequence[float]]) -> tuple[Spec, State]:
    """Networks that give the state s = e_i the values of row i: each frame is one-hot, ReLU changes nothing."""
    spec = Spec(**{**SPEC.__dict__, "obs_shape": {"state": (2,)}, "num_actions": 2})

    def network(rows: Sequence[Sequence[float]]) -> fn.Params:
        eye = torch.eye(2)
        return {"0.weight": eye, "0.bias": torch.zeros(2), "2.weight": torch.tensor(rows).T, "2.bias": torch.zeros(2)}

    critic = network(online)
    return spec, {
        "acting": {"critic": critic},
        "critic": critic,
        "critic_target": network(target),
        "critic_opt": fn.adam_init(critic),
    }


@pytest.mark.parametrize(
    ("double_q", "terminal", "y"), [(True, 0.0, 1 + 0.5 * 3), (False, 0.0, 1 + 0.5 * 7), (True, 1.0, 1.0)]
)
def test_targets_by_hand(double_q: bool, terminal: float, y: float) -> None:
    """At s' the online network prefers action 0, the target network says 3 for it, and 7 for the other."""
    spec, state = linear(online=[[1.0, 2.0], [5.0, 4.0]], target=[[0.0, 0.0], [3.0, 7.0]])
    alg, hp = algorithm("cql_dqn", {"gamma": 0.5, "double_q": double_q, "hidden": (2,), "cql_alpha": 2.0}, spec=spec)
    s, after = ({"state": torch.tensor([[row]])} for row in ([1.0, 0.0], [0.0, 1.0]))
    one, action = torch.ones(1, 1), torch.ones(1, 1, 1)
    data = Batch(s, action, action, one, one, torch.tensor([terminal]), after, torch.zeros(1))
    _, metrics = alg.update(state, data, {}, hp)
    penalty = math.log(math.exp(1) + math.exp(2)) - 2
    expected = {"td_target_mean": y, "q_value": 2.0, "td_loss": (2 - y) ** 2, "cql_penalty": penalty}
    expected["critic_loss"] = (2 - y) ** 2 + 2 * penalty
    assert {k: metrics[k].item() for k in expected} == pytest.approx(expected)


def test_the_policy_is_the_argmax_of_the_trained_network() -> None:
    p = problem()
    state, _ = p.alg.update(p.state, p.batch, p.noise, p.hp)
    actions = p.alg.act(state, p.batch.obs, {}).flatten().tolist()
    critic = ref.double(state["critic"])
    assert actions == [ref.best(ref.values(critic, ref.condition(p.batch.obs, b))) for b in range(SIZE)]
    assert len(set(actions)) > 1


def test_cartpoles_network_has_4610_parameters() -> None:
    spec = Spec(**{**SPEC.__dict__, "obs_shape": {"state": (4,)}, "num_actions": 2})
    alg = cql_dqn.make(run_config("cql_dqn", {"hidden": (64, 64)}).algo, spec)
    assert sum(p.numel() for p in alg.init(generator())["critic"].values()) == 4610


# -- what it learns: one state, three actions, each ending the episode


def bandit(actions: Sequence[int], rewards: Sequence[float], cql_alpha: float) -> tuple[list[float], int]:
    """Q of the three actions, and the one chosen, after 500 updates on data with these actions and their rewards."""
    episodes = [episode([1, 1], np.array([[float(a)]]), [rewards[a]], terminated=[0]) for a in actions]
    data = dataset(episodes, num_actions=3)
    alg, hp = algorithm("cql_dqn", PROBE, {"cql_alpha": cql_alpha}, spec=data.spec)
    whole = data.batch(torch.arange(len(data)))
    state = advance(alg, hp, alg.init(generator()), [(whole, {})] * 500)
    asked = [whole._replace(q_action=torch.full_like(whole.q_action, a)) for a in range(3)]
    q = [alg.update(state, b, {}, hp)[1]["q_value"].item() for b in asked]
    return q, int(alg.act(state, whole.obs, {})[0])


def test_actions_absent_from_the_data_are_valued_below_its_own_by_cql_alone() -> None:
    """Both actions of the data lose 1: without the penalty an action that nobody tried looks better than they do."""
    plain, dreamt = bandit([0, 1], [-1, -1], cql_alpha=0.0)
    conservative, done = bandit([0, 1], [-1, -1], cql_alpha=1.0)
    assert plain[:2] == pytest.approx([-1, -1], abs=0.01)
    assert plain[2] > -0.5
    assert conservative[2] < min(conservative[:2]) - 1
    assert (dreamt, done in (0, 1)) == (2, True)


def test_nothing_is_paid_for_caution_where_the_softmax_of_q_is_the_datas_policy() -> None:
    """Rewards ln 1, ln 2, ln 3 and shares 1/6, 2/6, 3/6 of the data: the penalty's gradient vanishes at Q = r."""
    rewards = [math.log(a + 1) for a in range(3)]
    q, _ = bandit([0, 1, 1, 2, 2, 2], rewards, cql_alpha=5.0)
    assert q == pytest.approx(rewards, abs=0.01)


def test_the_price_of_caution_is_the_one_of_its_fixed_point() -> None:
    """Two thirds of the data do action 0; all rewards are 0. 2 p_a Q_a = alpha (p_a - softmax_a), for each a."""
    shares = (4 / 6, 1 / 6, 1 / 6)
    q, _ = bandit([0, 0, 0, 0, 1, 2], [0, 0, 0], cql_alpha=1.0)
    total = sum(map(math.exp, q))
    for p, value in zip(shares, q, strict=True):
        assert 2 * p * value == pytest.approx(p - math.exp(value) / total, abs=0.002)
    assert q[0] > 0.1 > -0.1 > max(q[1:])


# -- bad input


@pytest.mark.parametrize("spec", [Spec(**{**SPEC.__dict__, "num_actions": 0})])
def test_continuous_actions_are_refused(spec: Spec) -> None:
    with pytest.raises(UsageError, match="cql_dqn needs discrete actions"):
        check_network(run_config("cql_dqn"), spec)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("cql_alpha", -1), ("cql_temp", 0), ("gamma", 1.0), ("tau", 2), ("lr", 0), ("grad_clip", 0), ("hidden", [])],
)
def test_a_wrong_value_is_refused_with_its_key(setting: str, value: object) -> None:
    with pytest.raises(UsageError, match=rf"algo\.{setting}"):
        run_config("cql_dqn", {setting: value})


@pytest.mark.parametrize("horizon", ["obs", "pred"])
def test_chunks_are_refused(horizon: str) -> None:
    with pytest.raises(UsageError, match="must be 1 for cql_dqn"):
        run_config("cql_dqn", **{f"data_{horizon}_horizon": 2})
