"""DQC against the slow reference, against numbers worked by hand, and on problems that can be solved on paper."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
import pytest
import torch
from torch import Tensor

from offrl_ray.algos import dqc, make
from offrl_ray.algos import functional as fn
from offrl_ray.algos.functional import select
from offrl_ray.errors import UsageError
from offrl_ray.types import Batch, Spec, State
from tests import compare
from tests.compare import Problem, agree
from tests.reference import cpql as ref_cpql
from tests.reference import dqc as ref
from tests.rows.kinds import Flat
from tests.test_probes import Learned, one_hot, trained
from tests.toys import batch, dataset, different, episode, generator, relative_error, run, run_config, spec_of

SPEC = spec_of("dqc")
H, H_A = SPEC.q_horizon, SPEC.act_horizon
SIZE = 10
CASES: dict[str, Flat] = {
    "quantile V, expectile distillation": {},
    "expectile V, quantile distillation": {"backup": "expectile", "distill": "quantile", "kappa_d": 0.8},
    "minimum of three, quantiles": {"q_agg": "min", "num_critics": 3, "distill": "quantile"},
    "minimum, expectiles": {"q_agg": "min", "backup": "expectile", "kappa_b": 0.7, "kappa_d": 0.3},
    "more layers": {"network.blocks": 2, "critic_hidden": (16, 8, 4)},
}
CASE = pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
PRECISION = pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])


def different_networks(state: State) -> State:
    """Values that differ and are not all one half, a target and an EMA that lag."""
    new = dict(state)
    for name, scale in (("chunk_critic", 60), ("action_critic", 40), ("value", 50)):
        new[name] = {**state[name], "w_out": scale * state[name]["w_out"]}
    new["action_critic_target"] = {k: 1.1 * v for k, v in new["action_critic"].items()}
    ema = {k: 0.9 * v for k, v in state["policy"].items()}
    return {**new, "acting": {"policy_ema": ema, "action_critic": new["action_critic"]}}


problem = partial(compare.problem, "dqc", prepare=different_networks, size=SIZE, seed=1)


def gradients(p: Problem) -> dict[str, ref_cpql.Params]:
    """Of one update, read off Adam's first moment."""
    state, _ = p.alg.update(p.state, p.batch, p.noise, p.hp)
    return {name: fn.unravel(10 * state[f"{name}_opt"]["m"], p.state[name]) for name in ref.NETWORKS}


def losses(p: Problem) -> dict[str, Callable[[ref_cpql.Params], Tensor]]:
    s, b, z = ref.double(p.state), Batch(*map(ref.double, p.batch)), ref.double(p.noise)
    return {name: partial(loss, state=s, batch=b, noise=z, cfg=p.cfg, spec=SPEC) for name, loss in ref.LOSSES.items()}


def test_the_data_of_the_comparison_has_chunks_of_every_kind() -> None:
    b = problem().batch
    kinds = {(tau < H_A, d) for tau, d in zip(b.mask.sum(1).tolist(), b.terminal.tolist(), strict=True)}
    assert kinds == {(True, 0.0), (True, 1.0), (False, 0.0), (False, 1.0)}
    assert H > H_A


@PRECISION
@CASE
def test_values_and_gradients_agree_with_the_reference(settings: Flat, dtype: torch.dtype, bound: float) -> None:
    p = problem(settings, dtype=dtype)
    _, metrics = p.alg.update(p.state, p.batch, p.noise, p.hp)
    mine = gradients(p)
    for name, loss in losses(p).items():
        params = ref.double(p.state[name])
        assert metrics[f"{name}_loss"].item() == pytest.approx(loss(params).item(), rel=bound)
        agree(mine[name], ref.gradient(loss, params), bound)


@pytest.mark.parametrize(
    "settings",
    [
        {"grad_clip": 0.2, "ema_decay": 0.7, "tau": 0.3, "lr_critic": 2e-3},
        {"backup": "expectile", "distill": "quantile", "kappa_d": 0.9},
    ],
    ids=["clipped", "other measures"],
)
def test_a_run_of_20_updates_is_the_references(settings: Flat) -> None:
    p = problem(settings)
    reference, state = ref.Reference(p.state, p.cfg, SPEC), p.state
    for i in range(20):
        data = Batch(*(fn.tree_map(Tensor.double, field) for field in batch(generator(i), 4, SPEC)))
        noise = fn.tree_map(Tensor.double, p.alg.update_noise(generator(100 + i), 4))
        state, _ = p.alg.update(state, data, noise, p.hp)
        reference.update(data, noise)
    assert max(relative_error({k: state[k] for k in reference.state}, reference.state).values()) < 1e-5


@pytest.mark.parametrize("settings", [{}, {"q_agg": "min", "num_critics": 3}, {"num_samples": 1}])
def test_the_executed_chunk_is_the_references_best_sample(settings: Flat) -> None:
    p = problem(settings)
    z = p.alg.act_noise(generator(), SIZE)["z"].double()
    chunk = p.alg.act(p.state, p.batch.obs, {"z": z})
    acting = ref.double(p.state["acting"])
    for b in range(SIZE):
        agree({"": chunk[b]}, {"": ref.act(acting, ref_cpql.condition(p.batch.obs, b), z[b], p.cfg, SPEC)}, 1e-9)


@pytest.mark.parametrize("q_agg", ["mean", "min"])
def test_an_executed_chunk_is_worth_the_mean_of_its_critics_probabilities(q_agg: str) -> None:
    state = run("dqc")
    critic = {k: torch.zeros_like(v) for k, v in state["acting"]["action_critic"].items()}
    critic["b_out"] = torch.tensor([-math.log(4), math.log(3)]).view(2, 1, 1)  # of 1/5 and 3/4
    alg, b = make(run_config("dqc", {"q_agg": q_agg}).algo, SPEC), batch(generator(), 4, SPEC)
    assert alg.critic
    q = alg.critic.q({"acting": {"action_critic": critic}}, b.obs, b.q_action[:, :H_A])
    torch.testing.assert_close(q, torch.full((4,), (1 / 5 + 3 / 4) / 2))


def test_rho_by_hand() -> None:
    """p = 1/2 everywhere, targets 4/5, 1/5, 1, 0: logits ln 4, -ln 4 and, off the ends by 1e-5, +-ln 99999."""
    target, logits, kappa = torch.tensor([0.8, 0.2, 1.0, 0.0]), torch.zeros(4), torch.tensor(0.9)
    expectile = dqc.optimistic_loss(logits, target, kappa, "expectile").tolist()
    assert expectile == pytest.approx([w * math.log(2) for w in (0.9, 0.1, 0.9, 0.1)])
    quantile = dqc.optimistic_loss(logits, target, kappa, "quantile").tolist()
    ends = math.log(99_999)
    assert quantile == pytest.approx([0.9 * math.log(4), 0.1 * math.log(4), 0.9 * ends, 0.1 * ends], rel=1e-3)


@pytest.mark.parametrize(("measure", "best"), [("expectile", 0.7), ("quantile", 0.9)])
def test_rho_is_least_at_the_expectile_and_at_the_quantile(measure: dqc.Measure, best: float) -> None:
    """Three targets of 0.1, seven of 0.9: an expectile of a 0-1 variable is its mean at kappa 1/2."""
    target, kappa = torch.tensor([0.1] * 3 + [0.9] * 7), torch.tensor(0.5)
    grid = torch.linspace(0.05, 0.95, 91)
    loss = [dqc.optimistic_loss(torch.logit(p).expand(10), target, kappa, measure).mean() for p in grid]
    expected = 0.3 * 0.1 + 0.7 * 0.9 if measure == "expectile" else best
    assert grid[torch.stack(loss).argmin()].item() == pytest.approx(expected, abs=0.006)


def test_the_mean_of_valid_entries_by_hand() -> None:
    loss = torch.tensor([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]])
    assert dqc.valid_mean(loss, torch.tensor([1.0, 0.0, 1.0])) == 4.0
    assert dqc.valid_mean(loss[0], torch.tensor([1.0, 0.0, 1.0])) == 2.0
    assert dqc.valid_mean(loss, torch.zeros(3)) == 0.0


@pytest.mark.parametrize(
    ("tau", "terminal", "reward", "target"),
    [
        (3, 1.0, [0, 0, 1, 0, 0], 0.25),
        (5, 0.0, [0, 0, 0, 0, 0], 0.5**5 / 2),
        (2, 0.0, [0, 0, 1, 1, 1], 0.5**2 / 2),
        (1, 1.0, [0, 1, 1, 1, 1], 0.0),
        (3, 0.0, [1, 1, 1, 0, 0], 1.0),
    ],
    ids=["success", "full chunk", "cut off", "failure", "more than 1"],
)
def test_targets_by_hand(tau: int, terminal: float, reward: Sequence[float], target: float) -> None:
    """gamma = 1/2 and V = 1/2."""
    p = problem({"gamma": 0.5}, size=1)
    state = {**p.state, "value": fn.tree_map(torch.zeros_like, p.state["value"])}
    mask = (torch.arange(H) < tau).double()[None]
    rows = p.batch._replace(mask=mask, terminal=torch.tensor([terminal]), reward=torch.tensor([reward]).double())
    _, metrics = p.alg.update(state, rows, p.noise, p.hp)
    assert metrics["td_target_mean"].item() == pytest.approx(target)


def three_chunks() -> Problem:
    """Two actions and cut off, two actions and terminated, five actions."""
    p = problem({"backup": "expectile"}, size=3)
    mask = (torch.arange(H) < torch.tensor([[2], [2], [5]])).double()
    return p._replace(batch=p.batch._replace(mask=mask, terminal=torch.tensor([0.0, 1.0, 0.0]).double()))


@pytest.mark.parametrize(("row", "valid"), [(0, False), (1, True), (2, True)], ids=["cut off", "terminated", "full"])
def test_chunks_count_if_they_were_executed_or_terminated(row: int, valid: bool) -> None:
    p = three_chunks()
    moved = p.batch.q_action.clone()
    moved[row] += 1
    before, after = gradients(p), gradients(p._replace(batch=p.batch._replace(q_action=moved)))
    for name in ("action_critic", "value"):
        assert bool(different(before[name], after[name])) == valid
    assert different(before["chunk_critic"], after["chunk_critic"])
    _, metrics = p.alg.update(p.state, p.batch, p.noise, p.hp)
    assert metrics["valid_share"].item() == pytest.approx(2 / 3)


def test_a_batch_without_valid_chunks_teaches_neither_the_action_critic_nor_v() -> None:
    p = three_chunks()
    p = p._replace(batch=fn.tree_map(lambda t: t[:1], p.batch), noise=fn.tree_map(lambda t: t[:1], p.noise))
    grads = gradients(p)
    for name in ref.NETWORKS:
        assert any(g.any() for g in grads[name].values()) == (name in ("chunk_critic", "policy"))


@pytest.mark.parametrize("step", range(H))
def test_the_action_critic_sees_the_executed_actions_and_the_chunk_critic_all(step: int) -> None:
    p = problem({"backup": "expectile"})
    moved = p.batch.q_action.clone()
    moved[:, step] += 1
    (one, two) = (p.alg.update(p.state, b, p.noise, p.hp) for b in (p.batch, p.batch._replace(q_action=moved)))
    seen = step < H_A
    assert one[1]["chunk_q_mean"] != two[1]["chunk_q_mean"]
    assert (one[1]["action_q_mean"] != two[1]["action_q_mean"]) == seen
    assert bool(different(one[0]["value"], two[0]["value"])) == seen
    assert different(one[0]["action_critic"], two[0]["action_critic"])  # through what it distils


def test_without_decoupling_a_distilled_critic_that_equals_the_chunk_critic_stays() -> None:
    p = problem({"kappa_d": 0.5}, spec=dataclasses.replace(SPEC, q_horizon=H_A))
    same = p._replace(state={**p.state, "action_critic": p.state["chunk_critic"]})
    other, equal = (q.alg.update(q.state, q.batch, q.noise, q.hp)[1]["grad_norm_action_critic"] for q in (p, same))
    assert other > 1e-3
    assert equal < 1e-12


def test_the_trained_policy_itself_acts_unless_it_is_averaged() -> None:
    state = run("dqc", {"ema_decay": 0.0})
    assert not different(state["acting"]["policy_ema"], state["policy"])
    assert not different(state["acting"]["action_critic"], state["action_critic"])
    averaged = run("dqc", {"ema_decay": 0.5})
    assert different(averaged["acting"]["policy_ema"], averaged["policy"])


BAD: dict[str, tuple[Flat, Flat, list[str]]] = {
    "negative": ({"reward_low": -1.0}, {}, [">= 0", "-1", "env.reward_mode=sparse"]),
    "too large": ({"reward_high": 5.0}, {"reward_scale": 0.5}, ["<= 1", "0.5 * 5", "algo.reward_scale=0.2"]),
    "dense": ({"reward_ends_episode": False}, {}, ["terminating steps alone", "env.reward_mode=sparse"]),
}


@pytest.mark.parametrize(("changes", "algo", "words"), BAD.values(), ids=BAD)
def test_data_on_which_values_are_no_probabilities_are_refused(changes: Flat, algo: Flat, words: list[str]) -> None:
    with pytest.raises(UsageError) as e:
        make(run_config("dqc", algo).algo, Spec(**{**SPEC.__dict__, **changes}))
    (problem,) = e.value.problems
    assert all(w in problem for w in words), problem


def test_all_reasons_are_told_at_once_and_a_scale_that_is_small_enough_is_taken() -> None:
    worst = dataclasses.replace(SPEC, reward_low=-1.0, reward_high=4.0, reward_ends_episode=False)
    with pytest.raises(UsageError) as e:
        make(run_config("dqc").algo, worst)
    assert len(e.value.problems) == 3
    make(run_config("dqc", {"reward_scale": 0.25}).algo, dataclasses.replace(SPEC, reward_high=4.0))


@pytest.mark.parametrize("kappa", ["kappa_b", "kappa_d"])
@pytest.mark.parametrize("value", [0, 1, True, float("nan")])
def test_optimism_lies_strictly_between_0_and_1(kappa: str, value: float) -> None:
    with pytest.raises(UsageError, match=kappa):
        run_config("dqc", {kappa: value})


def test_the_scored_chunk_has_a_length_of_its_own() -> None:
    assert run_config("dqc").data.q_horizon == 16
    assert run_config("dqc", data_q_horizon=8, data_act_horizon=8).data.q_horizon == 8
    with pytest.raises(UsageError, match=r"data\.q_horizon must be >= data\.act_horizon, but got 4 < 8"):
        run_config("dqc", data_q_horizon=4)


PROBE: Flat = {
    "critic_hidden": (32, 32),
    "num_flow_steps": 1,
    "gamma": 0.5,
    "tau": 0.05,
    "lr_critic": 3e-3,
    "backup": "expectile",
    "kappa_d": 0.7,
}
COPIES = 12
CHAIN, CUT, FAILURE, FORK = [5, 6, 7, 8, 9, 0], [13, 14, 8], [15, 16, 0], [10, 11, 12, 2, 0]
KINDS = [(CHAIN, 1.0, True), (CUT, 0.0, False), (FAILURE, 0.0, True), (FORK, 1.0, True), (FORK, 0.0, True)]
AGENTS: dict[str, tuple[int, int, Flat]] = {
    "one action of three": (1, 3, {}),
    "one of three, quantile V": (1, 3, {"backup": "quantile"}),
    "two of three": (2, 3, {}),
    "one of one": (1, 1, {"kappa_d": 0.5}),
}


@cache
def learned(name: str) -> Learned:
    """Frames are one-hot states; a chain that succeeds, a cut one, one that fails, one that its last action decides."""
    act_horizon, q_horizon, settings = AGENTS[name]
    g = np.random.default_rng(0)
    episodes = []
    for states, reward, ends in KINDS * COPIES:
        n = len(states) - 1
        action = 0.5 * g.choice([-1, 1], (n, 1))
        if states is FORK:  # whatever went before, both ends are equally likely
            action = np.array([[0.5]] * (n - 1) + [[reward - 0.5]])
        episodes.append(episode(one_hot(states), action, [0.0] * (n - 1) + [reward], terminated=[n - 1] * ends))
    data = dataset(episodes, act_horizon=act_horizon, pred_horizon=act_horizon, q_horizon=q_horizon)
    return trained("dqc", data, 800, PROBE, settings)


def means(agent: Learned, metric: str, states: Sequence[int]) -> list[float]:
    """The metric at all chunks that start in each of these states, which are the frame of one chain alone."""
    everything = agent.data.batch(torch.arange(len(agent.data)))
    found = []
    for s in states:
        rows = (everything.obs["state"][:, -1].argmax(1) == s).nonzero()[:, 0]
        noise = agent.alg.update_noise(generator(), len(rows))
        state = select(agent.snapshot.state, 0)
        found.append(agent.alg.update(state, agent.data.batch(rows), noise, agent.hp)[1][metric].item())
    return found


near = partial(pytest.approx, abs=0.05)


@pytest.mark.parametrize("metric", ["chunk_q_mean", "action_q_mean", "v_mean"])
@pytest.mark.parametrize("name", AGENTS)
def test_values_on_paper(name: str, metric: str) -> None:
    agent = learned(name)
    assert means(agent, metric, CHAIN[:-1]) == near([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1])
    assert means(agent, metric, FAILURE[:-1]) == near([0, 0])
    assert means(agent, metric, CUT[:1]) == near([1 / 8])  # bootstraps from a state that is worth 1/2


def test_optimism_on_paper() -> None:
    """Of values 0 and 1 alike an expectile is kappa: V's where a backup ends at the fork, the distillation's within."""
    decoupled, coupled = learned("one action of three"), learned("one of one")
    for agent in (decoupled, coupled):
        assert means(agent, "v_mean", FORK[3:4]) == near([0.9])
    assert means(decoupled, "action_q_mean", FORK[:3]) == near([0.9 / 8, 0.7 / 4, 0.7 / 2])
    assert means(coupled, "action_q_mean", FORK[:3]) == near([0.9 / 8, 0.9 / 4, 0.9 / 2])
    assert means(learned("one of three, quantile V"), "v_mean", FORK[3:4]) == near([1])


def test_without_decoupling_and_optimism_the_action_critic_becomes_the_chunk_critic() -> None:
    agent = learned("one of one")
    states = [*CHAIN[:-1], *CUT[:-1], *FAILURE[:-1], *FORK[:-1]]
    assert means(agent, "action_q_mean", states) == near(means(agent, "chunk_q_mean", states))


BIGGER: Flat = {"num_flow_steps": 5, "network.width": 32, "network.time_dim": 8, "lr": 3e-3, "ema_decay": 0.95}


@cache
def two_modes() -> Learned:
    """Data with actions near -0.5, worth 0, and as many near 0.5, worth 1."""
    actions = np.repeat([-0.5, 0.5], 100) + np.random.default_rng(0).normal(0, 0.05, 200)
    data = dataset([episode([0, 0], np.array([[a]]), [float(a > 0)], terminated=[0]) for a in actions])
    return trained("dqc", data, 400, PROBE, BIGGER)


@pytest.mark.parametrize("size", [1, 2, 4, 16])
def test_the_best_of_n_is_the_better_mode_unless_all_are_of_the_other(size: int) -> None:
    agent = two_modes()
    alg = make(run_config("dqc", PROBE, BIGGER, {"num_samples": size}).algo, agent.data.spec)
    obs = {"state": torch.zeros(2000, 1, 1)}
    chunk = alg.act(select(agent.snapshot.state, 0), obs, alg.act_noise(generator(), 2000))
    action = chunk[:, 0, 0] * agent.data.spec.action_std[0] + agent.data.spec.action_mean[0]
    assert ((action.abs() - 0.5).abs() < 0.2).float().mean() > 0.85
    assert (action > 0).float().mean().item() == pytest.approx(1 - 0.5**size, abs=0.06)
