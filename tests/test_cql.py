"""CQL against the slow reference, against numbers worked by hand, and against soft actor-critic."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from offrl_ray.algos import cql
from offrl_ray.algos import functional as fn
from offrl_ray.algos.soft import Soft
from offrl_ray.errors import UsageError
from offrl_ray.fields import hparams
from offrl_ray.types import Batch, Spec, State
from tests import compare
from tests.compare import Problem, agree
from tests.reference import cql as ref
from tests.rows.kinds import Flat
from tests.toys import SPEC, advance, algorithm, batch, different, generator, relative_error, run_config, steps

SIZE = 4
WIDE = Spec(
    **{**SPEC.__dict__, "action_dim": 3, "action_mean": (0.1, -0.2, 0.0), "action_std": (0.5, 0.8, 1.0)}
)  # nine scored dimensions
CASES: dict[str, tuple[Flat, Spec]] = {
    "importance": ({}, SPEC),
    "plain": ({"form": "plain"}, SPEC),
    "per source": ({"form": "per_source"}, SPEC),
    "nine dimensions": ({}, WIDE),
    "nine dimensions, importance": ({"form": "importance"}, WIDE),
    "warmer": ({"cql_temp": 1.7}, SPEC),
    "warmer, plain": ({"cql_temp": 1.7, "form": "plain"}, SPEC),
    "warmer, per source": ({"cql_temp": 1.7, "form": "per_source"}, SPEC),
    "lagrange": ({"lagrange_gap": 0.8}, SPEC),
    "lagrange, three critics": ({"lagrange_gap": 9.0, "num_critics": 3}, SPEC),
    "clamped": ({"cql_clip_diff_min": 6.0}, SPEC),
    "lagrange, clamped": ({"lagrange_gap": 2.0, "cql_clip_diff_min": 6.0}, SPEC),
    "best of the next actions": ({"max_target_backup": True}, SPEC),
    "best of the next actions with its entropy": (
        {"max_target_backup": True, "backup_entropy": True, "num_critics": 3},
        SPEC,
    ),
    "entropy in the target": ({"backup_entropy": True}, SPEC),
    "imitation": ({"bc_steps": 1.0}, SPEC),
    "layer norm": ({"layer_norm": True, "activation": "mish"}, SPEC),
    "clipped target": ({"q_target_clip": 0.3}, SPEC),
}
CASE = pytest.mark.parametrize(("settings", "spec"), CASES.values(), ids=CASES)
PRECISION = pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
LOSSES: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "critic_loss": ("critic", ref.critic_loss),
    "actor_loss": ("policy", ref.actor_loss),
    "temperature_loss": ("temperature", ref.temperature_loss),
    "alpha_prime_loss": ("alpha_prime", ref.alpha_prime_loss),
}
"""metric -> the parameters that it trains, and the reference's loss as a function of them"""


def uneven(state: State) -> State:
    """Critics that differ and are not small, a policy that sees its state, and multipliers off their start."""
    critic = {**state["critic"], "w_out": 50 * state["critic"]["w_out"]}
    policy = {**state["policy"], "out.weight": 50 * state["policy"]["out.weight"]}
    return {
        **state,
        "acting": {"policy": policy},
        "policy": policy,
        "critic": critic,
        "critic_target": {k: 1.1 * v for k, v in critic.items()},
        "temperature": {"log_factor": state["temperature"]["log_factor"] + 0.3},
        "alpha_prime": {"log": state["alpha_prime"]["log"] - 0.4},
    }


def problem(*settings: Flat, dtype: torch.dtype = torch.float64, spec: Spec = SPEC) -> Problem:
    p = compare.problem("cql", *settings, prepare=uneven, size=SIZE, dtype=dtype, spec=spec)
    if dtype == torch.float64:
        return p
    # at the bounds float32 knows the arctanh of the data's actions to two digits
    return p._replace(batch=p.batch._replace(action=p.batch.action.clamp(-0.9, 0.9)))


def updated(p: Problem) -> tuple[State, dict[str, Tensor]]:
    return p.alg.update(p.state, p.batch, p.noise, p.hp)


def gradients(p: Problem) -> dict[str, ref.Params]:
    """Gradients of one update, read off Adam's first moment."""
    state, _ = updated(p)
    return {name: fn.unravel(10 * state[f"{name}_opt"]["m"], p.state[name]) for name, _ in LOSSES.values()}


def arguments(p: Problem, spec: Spec = SPEC) -> tuple[Any, ...]:
    """What the reference's losses are given: the actor meets the critics that the update has already changed."""
    return ref.double(p.state), Batch(*map(ref.double, p.batch)), ref.double(p.noise), p.cfg, spec


def reference(name: str, p: Problem, spec: Spec) -> Callable[[ref.Params], Tensor]:
    state, *rest = arguments(p, spec)
    if name == "actor_loss":
        state = {**state, "critic": ref.double(updated(p)[0]["critic"])}
    return lambda params: LOSSES[name][1](params, state, *rest)


@PRECISION
@CASE
def test_values_agree_with_the_reference(settings: Flat, spec: Spec, dtype: torch.dtype, bound: float) -> None:
    p = problem(settings, spec=spec, dtype=dtype)
    _, metrics = updated(p)
    for name, (params, _) in LOSSES.items():
        expected = reference(name, p, spec)(ref.double(p.state[params])).item()
        assert metrics[name].item() == pytest.approx(expected, rel=bound, abs=bound), name
    expected = ref.penalty(ref.double(p.state["critic"]), *arguments(p, spec)).item()
    assert metrics["cql_penalty"].item() == pytest.approx(expected, rel=bound)
    assert metrics["cql_diff"].item() == pytest.approx(expected / p.cfg.num_critics, rel=bound)


@PRECISION
@CASE
def test_gradients_agree_with_the_reference(settings: Flat, spec: Spec, dtype: torch.dtype, bound: float) -> None:
    p = problem(settings, spec=spec, dtype=dtype)
    mine = gradients(p)
    for name, (params, _) in LOSSES.items():
        if name != "alpha_prime_loss" or p.cfg.lagrange_gap is not None:
            expected = ref.gradient(reference(name, p, spec), ref.double(p.state[params]))
            agree(mine[params], expected, bound)


@CASE
def test_the_references_gradients_are_finite_differences(settings: Flat, spec: Spec) -> None:
    p = problem(settings, spec=spec)
    for name, (params, _) in LOSSES.items():
        loss, at = reference(name, p, spec), ref.double(p.state[params])
        grad = ref.gradient(loss, at)
        up, down = ({k: v + sign * 1e-7 * grad[k] for k, v in at.items()} for sign in (1, -1))
        slope = (loss(up) - loss(down)) / 2e-7
        assert slope.item() == pytest.approx(sum(g.square().sum().item() for g in grad.values()), rel=1e-4), name


@pytest.mark.parametrize("form", cql.FORMS)
def test_push_down_and_pull_up_agree_each_by_itself(form: str) -> None:
    def penalty(p: Problem) -> ref.Params:
        off = p._replace(hp={**p.hp, "cql_alpha": torch.zeros_like(p.hp["cql_alpha"])})
        return fn.tree_map(torch.sub, gradients(p)["critic"], gradients(off)["critic"])

    def gradient(part: Callable[..., Tensor], p: Problem) -> ref.Params:
        return ref.gradient(lambda x: part(x, *arguments(p)), ref.double(p.state["critic"]))

    here = problem({"form": form, "cql_alpha": 1.0})
    elsewhere = here._replace(noise={**here.noise, "random": 1 - here.noise["random"]})
    other_data = here._replace(batch=here.batch._replace(q_action=-here.batch.q_action))
    down, up = gradient(ref.push_down, here), gradient(ref.pull_up, here)
    agree(penalty(here), fn.tree_map(torch.add, down, up), 1e-9)
    change = fn.tree_map(torch.sub, down, gradient(ref.push_down, elsewhere))
    agree(fn.tree_map(torch.sub, penalty(here), penalty(elsewhere)), change, 1e-9)
    other = fn.tree_map(torch.add, gradient(ref.push_down, other_data), gradient(ref.pull_up, other_data))
    agree(penalty(other_data), other, 1e-9)
    if form != "plain":  # which pushes the data's action down too
        change = fn.tree_map(torch.sub, up, gradient(ref.pull_up, other_data))
        agree(fn.tree_map(torch.sub, penalty(here), penalty(other_data)), change, 1e-9)


def test_uneven_blocks_of_states_make_the_same_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven actions a state: blocks of three states and of one."""
    p = problem()
    whole, metrics = updated(p)
    monkeypatch.setattr(cql, "BLOCK", 21)
    parts, same = updated(p)
    assert max(relative_error(parts, whole).values()) < 1e-12
    assert all(same[k].item() == pytest.approx(v.item(), rel=1e-12, abs=1e-12) for k, v in metrics.items())


@pytest.mark.parametrize(
    "settings",
    [
        {"lagrange_gap": 2.0, "bc_steps": 5.0, "grad_clip": 0.5, "lr_critic": 1e-2, "max_target_backup": True},
        {"form": "plain", "tau": 0.3, "backup_entropy": True, "num_critics": 3, "cql_clip_diff_min": 1.0},
    ],
    ids=["lagrange", "plain"],
)
def test_a_run_of_20_updates_is_the_references(settings: Flat) -> None:
    p = problem(settings)
    reference, state = ref.Reference(p.state, p.cfg, SPEC), p.state
    for i in range(20):
        data = Batch(*(fn.tree_map(Tensor.double, field) for field in batch(generator(i), 3)))
        noise = fn.tree_map(Tensor.double, p.alg.update_noise(generator(100 + i), 3))
        state, _ = p.alg.update(state, data, noise, p.hp)
        reference.update(data, noise)
    assert max(relative_error({k: state[k] for k in reference.state}, reference.state).values()) < 1e-6


@pytest.mark.parametrize("settings", [{}, {"lagrange_gap": 1.0}, {"form": "plain", "num_critics": 3}])
def test_weight_zero_is_soft_actor_critic_bit_for_bit(settings: Flat) -> None:
    cfg = run_config("cql", settings, {"cql_alpha": 0.0, "num_min": 2}).algo
    hp, soft, alg = hparams(cfg), Soft(cfg, SPEC), cql.make(cfg, SPEC)
    sac, mine = soft.init(generator()), alg.init(generator())
    assert not different({k: mine[k] for k in sac}, sac)
    for i in range(20):
        data, noise = batch(generator(i)), alg.update_noise(generator(100 + i), 16)
        of_sac = soft.update_noise(generator(100 + i), 16)
        assert not different({k: noise[k] for k in of_sac}, of_sac)
        sac, _ = soft.update(sac, data, noise, hp)
        mine, _ = alg.update(mine, data, noise, hp)
    assert not different({k: mine[k] for k in sac}, sac)
    assert not different(mine["alpha_prime"], alg.init(generator())["alpha_prime"])


def test_weight_zero_leaves_no_trace_even_of_a_penalty_that_is_nan() -> None:
    alg, hp = algorithm("cql", {"cql_alpha": 0.0})
    start, ((data, noise),) = alg.init(generator()), steps(alg, 1)
    sick = {**noise, "random": noise["random"] * torch.nan}
    assert not different(alg.update(start, data, sick, hp)[0], alg.update(start, data, noise, hp)[0])
    positive = {**hp, "cql_alpha": torch.tensor(0.1)}
    assert alg.update(start, data, sick, positive)[0]["critic"]["w_out"].isnan().all()


def top(form: str, q: list[float], q_data: float, log_density: list[float], temp: float = 1.0) -> list[float]:
    """Soft maximum and shares of one critic at one state."""
    value, share = cql.soft_maximum(
        form, torch.tensor([[q]]), torch.tensor([[q_data]]), torch.tensor([log_density]), torch.tensor(temp)
    )
    return [value.item(), *share.tolist()]


def test_the_soft_maximum_by_hand() -> None:
    """One action a source: exp Q = 2, 1, 3 and 4 at the data; divided by the densities 1/2, 1/4, 1 it is 4, 4, 3."""
    q, q_data, log_density = [math.log(2), 0.0, math.log(3)], math.log(4), [-math.log(2), -math.log(4), 0.0]
    third = 1 / 3
    assert top("importance", q, q_data, log_density) == pytest.approx([math.log(11), 4 / 11, 4 / 11, 3 / 11, 0])
    assert top("plain", q, q_data, log_density) == pytest.approx([math.log(10), 0.2, 0.1, 0.3, 0.4])
    assert top("per_source", q, q_data, log_density) == pytest.approx([math.log(6) / 3, third, third, third, 0])
    # at T = 2 the square roots are summed, and the logarithm doubled
    roots = math.sqrt(2) + 1 + math.sqrt(3) + 2
    assert top("importance", q, q_data, log_density, 2.0)[0] == pytest.approx(2 * math.log(4 + math.sqrt(3)))
    assert top("plain", q, q_data, log_density, 2.0)[0] == pytest.approx(2 * math.log(roots))
    assert top("per_source", q, q_data, log_density, 2.0)[0] == pytest.approx(math.log(6) / 3)
    # two actions a source: 1 + 2, 1 + 3, 4 + 4
    two = [0.0, math.log(2), 0.0, math.log(3), math.log(4), math.log(4)]
    assert top("per_source", two, 0.0, [0.0] * 6)[0] == pytest.approx(math.log(3 * 4 * 8) / 3)
    assert top("plain", two, 0.0, [0.0] * 6) == pytest.approx([math.log(16), 3 / 16, 4 / 16, 8 / 16, 1 / 16])


@pytest.mark.parametrize("temp", [1.0, 0.5])
def test_delta_of_a_flat_q(temp: float) -> None:
    n, level, d = 10, 3.7, 56
    flat, chosen = [level] * 3 * n, [-d * math.log(2)] * n + [56.0] * 2 * n
    floors = [top(form, flat, level, chosen, temp)[0] - level for form in cql.FORMS]
    assert floors == pytest.approx([38.816 + temp * math.log(n), temp * math.log(31), temp * math.log(10)], abs=1e-3)


def test_densities_of_a_long_chunk_hide_the_policys_actions_from_the_penalty_and_plain_does_not() -> None:
    """Eight actions of seven dimensions; the policy's own actions are overestimated by 5."""
    d, q = 56, [0.0, 0.0, 5.0, 5.0, 0.0, 0.0]
    log_density = [-d * math.log(2)] * 2 + [56.0] * 4
    assert top("importance", q, 0.0, log_density)[1:] == pytest.approx([1, 0, 0, 0], abs=1e-6)
    assert top("plain", q, 0.0, log_density)[2] > 0.98


@pytest.mark.parametrize(
    ("settings", "spec", "form"),
    [
        ({}, SPEC, 0),
        ({}, Spec(**{**SPEC.__dict__, "act_horizon": 4, "q_horizon": 4}), 0),
        ({}, WIDE, 1),
        ({"form": "importance"}, WIDE, 0),
        ({"form": "plain"}, SPEC, 1),
        ({"form": "per_source"}, SPEC, 2),
    ],
    ids=["6 dimensions", "8", "9", "importance", "plain", "per source"],
)
def test_densities_are_used_by_themselves_up_to_eight_dimensions_and_a_metric_tells(
    settings: Flat, spec: Spec, form: int
) -> None:
    _, metrics = updated(problem(settings, spec=spec))
    assert metrics["cql_form"] == form
    shares = [metrics[f"cql_share_{s}"].item() for s in (*cql.SOURCES, "data")]
    assert sum(shares) == pytest.approx(1)
    assert (shares[3] > 0) == (form == 1)


def knowing_the_state(p: Problem) -> Problem:
    """Q(s, a) = s_1 in every critic, and u = s_1 in every dimension of the policy's actions; positive states."""

    def critic(name: str, t: Tensor) -> Tensor:
        t = torch.zeros_like(t)
        if name.startswith("w"):
            t[:, 0, 0] = 1
        return t

    def policy(name: str, t: Tensor) -> Tensor:
        t = torch.zeros_like(t)
        if name.startswith("layers") and name.endswith("weight"):
            t[0, 0] = 1
        if name == "out.weight":
            t[: len(t) // 2, 0] = 1
        if name == "out.bias":
            t[len(t) // 2 :] = -20
        return t

    state = {**p.state}
    for part, build in (("critic", critic), ("critic_target", critic), ("policy", policy)):
        state[part] = {k: build(k, v) for k, v in state[part].items()}
    obs, next_obs = (fn.tree_map(torch.abs, o) for o in (p.batch.obs, p.batch.next_obs))
    return p._replace(state=state, batch=p.batch._replace(obs=obs, next_obs=next_obs))


@pytest.mark.parametrize("form", ["plain", "per_source"])
def test_every_proposed_action_is_scored_at_its_own_state(form: str) -> None:
    """Q is the number of the state: with another state's among them the log-sum-exp would be another."""
    p = knowing_the_state(problem({"form": form, "num_samples": 3}))
    _, metrics = updated(p)
    floor = math.log(10 if form == "plain" else 3)
    assert metrics["cql_diff"].item() == pytest.approx(floor, rel=1e-12)
    ids = fn.encode(p.batch.obs)[:, 0]
    assert ids.unique().numel() == SIZE
    for name in ("random", "current", "next", "data"):
        assert metrics[f"cql_q_{name}"].item() == pytest.approx(ids.mean().item(), rel=1e-12)
    assert metrics["cql_q_std"] < 1e-12


def test_proposals_are_uniform_then_the_policys_at_s_then_at_the_next_s() -> None:
    p = knowing_the_state(problem({"num_samples": 3}))
    here, after = (fn.encode(obs) for obs in (p.batch.obs, p.batch.next_obs))
    c = cql._Cql(p.cfg, SPEC)
    actions, log_density = c.proposals(p.state["policy"], here, after, p.noise)
    assert actions.shape == (SIZE, 9, 6)
    mean, std = (torch.tensor(x, dtype=torch.float64).repeat(3) for x in (SPEC.action_mean, SPEC.action_std))
    raw = actions * std + mean
    for b in range(SIZE):
        for i in range(3):
            torch.testing.assert_close(raw[b, i], 2 * p.noise["random"][i, b].flatten() - 1)
            for first, cond in ((3, here), (6, after)):
                expected = cond[b, 0].tanh().expand(6)
                torch.testing.assert_close(raw[b, first + i], expected, rtol=1e-6, atol=1e-6)
    assert (log_density[:, :3] + 6 * math.log(2)).abs().max() < 1e-12
    assert (log_density[:, 3:] > 60).all()


def test_a_density_is_that_of_the_scored_part_of_a_prediction() -> None:
    """H_p = 4, H_q = 3: what the policy says of the fourth action reaches no proposal and no weight."""
    p = problem()
    policy = {**p.state["policy"]}
    for name in ("out.weight", "out.bias"):
        rows = policy[name].clone().unflatten(0, (2, SPEC.pred_horizon, SPEC.action_dim))
        rows[:, 3] += 1
        policy[name] = rows.flatten(0, 2)
    one, two = updated(p)[1], updated(p._replace(state={**p.state, "policy": policy}))[1]
    assert one["log_pi"] != two["log_pi"]
    assert one["cql_diff"] == two["cql_diff"]


def lagrange(gap: float, log: float = 0.0, count: int = 1) -> tuple[State, dict[str, Tensor]]:
    p = problem({"lagrange_gap": gap})
    state, metrics = {**p.state, "alpha_prime": {"log": torch.tensor(log, dtype=torch.float64)}}, {}
    for _ in range(count):
        state, metrics = p.alg.update(state, p.batch, p.noise, p.hp)
    return state, metrics


def test_alpha_prime_rises_while_delta_is_above_the_gap_and_falls_below_it() -> None:
    """A flat Q has at least 6 ln 2 + ln 2 = 4.9 here. Adam's first step is as long as its rate."""
    assert lagrange(0.5)[0]["alpha_prime"]["log"].item() == pytest.approx(1e-3, rel=1e-5)
    assert lagrange(50.0)[0]["alpha_prime"]["log"].item() == pytest.approx(-1e-3, rel=1e-5)


def test_the_penalty_weighs_alpha_prime_times_cql_alpha() -> None:
    (state, metrics), (double, _), (other_gap, _) = lagrange(2.0), lagrange(2.0, math.log(2)), lagrange(3.0)
    without, _ = updated(problem())
    twice, _ = updated(problem({"cql_alpha": 1.0}))
    assert not different(state["critic_opt"], without["critic_opt"])
    assert not different(state["critic_opt"], other_gap["critic_opt"])
    assert relative_error(double["critic_opt"], twice["critic_opt"])["m"] < 1e-12
    excess = metrics["cql_penalty"] - 2 * 2.0
    assert metrics["critic_loss"].item() == pytest.approx((metrics["td_loss"] + 0.5 * excess).item(), rel=1e-12)
    assert metrics["alpha_prime_loss"].item() == pytest.approx(-0.5 * excess.item() / 2, rel=1e-12)


def test_alpha_prime_stays_below_its_bound_and_comes_back_from_it() -> None:
    bound = math.log(1e6)
    state, metrics = lagrange(0.5, bound - 1e-4, count=3)
    assert state["alpha_prime"]["log"].item() == pytest.approx(bound, abs=1e-12)
    assert metrics["alpha_prime"].item() == pytest.approx(1e6)
    assert lagrange(1e3, bound)[0]["alpha_prime"]["log"] < bound


def test_without_a_gap_alpha_prime_is_one_and_rests() -> None:
    alg, hp = algorithm("cql")
    start = alg.init(generator())
    state, metrics = alg.update(start, *steps(alg, 1)[0], hp)
    assert start["alpha_prime"]["log"] == 1
    assert not different(state["alpha_prime"], start["alpha_prime"])
    assert metrics["alpha_prime"] == 1
    assert metrics["alpha_prime_loss"] == 0


def test_a_delta_below_the_clamp_is_not_pushed_down() -> None:
    p, off = problem({"cql_clip_diff_min": 100.0}), problem({"cql_alpha": 0.0})
    assert updated(p)[1]["cql_diff"] == 100
    assert not different(updated(p)[0]["critic"], updated(off)[0]["critic"])


def test_the_backup_takes_the_best_of_its_actions() -> None:
    p, alone = problem({"max_target_backup": True, "num_samples": 3}), problem({"num_samples": 3})

    def value(p: Problem, eps: Tensor) -> Tensor:
        noise = {**p.noise, "eps_next": eps, "next": eps.expand(3, *eps.shape)}
        return updated(p._replace(noise=noise))[1]["q_next_mean"]

    singles = torch.stack([value(alone, eps) for eps in p.noise["next"]])
    torch.testing.assert_close(torch.stack([value(p, eps) for eps in p.noise["next"]]), singles)
    assert updated(p)[1]["q_next_mean"] > singles.max()


def test_the_policy_imitates_first_and_does_not_see_the_critics_until_then() -> None:
    p = problem({"bc_steps": 2.0})
    other = {**p.state, "critic": fn.tree_map(torch.neg, p.state["critic"])}
    states = [p.state, other]
    for count in (1, 2, 3):
        states = [p.alg.update(state, p.batch, p.noise, p.hp)[0] for state in states]
        assert bool(different(states[0]["policy"], states[1]["policy"])) == (count == 3)


def test_imitation_alone_raises_the_datas_likelihood() -> None:
    alg, hp = algorithm("cql", {"bc_steps": 1e3, "init_temperature": 1e-3, "lr": 1e-2})
    start, data = alg.init(generator()), steps(alg, 1) * 100
    state = advance(alg, hp, start, data)
    before, after = (alg.update(s, *data[0], hp)[1]["bc_loss"] for s in (start, state))
    assert after < before - 5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_samples", 0),
        ("cql_temp", 0.0),
        ("cql_alpha", -1.0),
        ("lagrange_gap", -1.0),
        ("lagrange_gap", 0.0),
        ("cql_clip_diff_min", float("inf")),
        ("bc_steps", -1.0),
        ("form", "max"),
        ("num_min", 3),
    ],
)
def test_bad_settings_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{field}.*{value}"):
        run_config("cql", {field: value})


def test_predictions_are_as_long_as_what_is_executed_by_default() -> None:
    cfg = run_config("cql")
    assert cfg.data.pred_horizon == cfg.data.act_horizon == 8
