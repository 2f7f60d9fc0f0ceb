"""AWCP against the slow reference, against numbers worked by hand, and against CPQL without its Q term."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from offrl_ray.algos import awcp, flow
from offrl_ray.algos import functional as fn
from offrl_ray.errors import UsageError
from offrl_ray.types import Batch, State
from tests import compare, toys
from tests.compare import Problem, agree
from tests.reference import awcp as ref
from tests.reference import cpql as ref_cpql
from tests.rows.kinds import Flat
from tests.toys import advance, algorithm, batch, different, generator, relative_error, run_config, same_bits, steps

COMMON: Flat = {"beta": 1.5, "bc_weight": 0.9, "consistency_weight": 0.6, "cons_step": 0.2, "lr_critic": 2e-3}
CASES: dict[str, Flat] = {
    "value": {},
    "low expectile, velocity": {"expectile": 0.2, "cons_mode": "velocity"},
    "batch mean": {"baseline": "batch_mean"},
    "batch mean, velocity": {"baseline": "batch_mean", "cons_mode": "velocity"},
    "beta 0": {"beta": 0.0},
    "clipped weights": {"baseline": "batch_mean", "weight_clip": 1.1},
    "three critics, bounded, penalty": {"num_critics": 3, "bounded_critic": True, "random_action_penalty": 0.5},
    "two layers, three steps": {"network.blocks": 2, "critic_hidden": (16, 8), "teacher_steps": 3, "cons_step": 0.5},
}
CASE = pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
PRECISION = pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])


def different_networks(state: State) -> State:
    """Critics that differ and are not small."""
    loud = {k: {**state[k], "w_out": 50 * state[k]["w_out"]} for k in ("critic", "value") if k in state}
    return {
        **state,
        **loud,
        "critic_target": {k: 1.1 * v for k, v in loud["critic"].items()},
        "acting": {"policy_ema": {k: 0.9 * v for k, v in state["policy"].items()}},
    }


problem = partial(compare.problem, "awcp", COMMON, prepare=different_networks)


def gradients(p: Problem, **weights: float) -> dict[str, ref.Params]:
    """Gradients of one update, read off Adam's first moment; unnamed weights of the policy's loss are 0."""
    off = {"bc_weight": 0.0, "consistency_weight": 0.0}
    hp = {**p.hp, **{k: p.hp["beta"].new_tensor(w) for k, w in {**off, **weights}.items()}}
    state, _ = p.alg.update(p.state, p.batch, p.noise, hp)
    trained = [name for name in ("policy", "critic", "value") if name in p.state]
    return {name: fn.unravel(10 * state[f"{name}_opt"]["m"], p.state[name]) for name in trained}


def losses(p: Problem) -> dict[str, tuple[str, Callable[[ref.Params], Tensor]]]:
    """Name of the metric -> whose parameters it trains, and the reference's loss as a function of them."""
    s, b, z = ref_cpql.double(p.state), Batch(*map(ref_cpql.double, p.batch)), ref_cpql.double(p.noise)
    w = ref.weights(ref.advantages(s, b, p.cfg, toys.SPEC), p.cfg.beta, p.cfg.weight_clip)
    teacher, args = s["acting"]["policy_ema"], (s, b, z, p.cfg, toys.SPEC)
    form = ref.endpoint_errors if p.cfg.cons_mode == "endpoint" else ref_cpql.consistency_errors
    found: dict[str, tuple[str, Callable[[ref.Params], Tensor]]] = {
        "flow_loss": ("policy", lambda x: ref.flow_loss(x, w, b, z, p.cfg)),
        "flow_loss_unweighted": ("policy", lambda x: ref_cpql.flow_loss(x, b, z, p.cfg)),
        "consistency_loss": ("policy", lambda x: ref.consistency_loss(x, teacher, w, b, z, p.cfg)),
        "consistency_loss_unweighted": ("policy", lambda x: ref_cpql.mean(form(x, teacher, b, z, p.cfg))),
        "policy_loss": ("policy", lambda x: ref.policy_loss(x, *args)),
        "critic_loss": ("critic", lambda x: ref_cpql.critic_loss(x, *args)),
    }
    return found | ({"v_loss": ("value", lambda x: ref.value_loss(x, *args))} if "value" in s else {})


@PRECISION
@CASE
def test_values_agree_with_the_reference(settings: Flat, dtype: torch.dtype, bound: float) -> None:
    p = problem(settings, dtype=dtype)
    _, metrics = p.alg.update(p.state, p.batch, p.noise, p.hp)
    for name, (params, loss) in losses(p).items():
        expected = loss(ref_cpql.double(p.state[params])).item()
        assert metrics[name].item() == pytest.approx(expected, rel=bound, abs=bound * 1e-2), name


@PRECISION
@CASE
def test_gradients_agree_with_the_reference(settings: Flat, dtype: torch.dtype, bound: float) -> None:
    p = problem(settings, dtype=dtype)
    weights = {"flow_loss": "bc_weight", "consistency_loss": "consistency_weight"}
    expected = losses(p)
    for name, weight in weights.items():
        params, loss = expected[name]
        agree(gradients(p, **{weight: 1.0})[params], ref_cpql.gradient(loss, ref_cpql.double(p.state[params])), bound)
    together = gradients(p, **{w: p.hp[w].item() for w in weights.values()})
    for name in {"policy_loss", "critic_loss", "v_loss"} & expected.keys():
        params, loss = expected[name]
        agree(together[params], ref_cpql.gradient(loss, ref_cpql.double(p.state[params])), bound)


@CASE
def test_the_references_gradients_are_finite_differences(settings: Flat) -> None:
    p = problem(settings)
    for params, loss in losses(p).values():
        start = ref_cpql.double(p.state[params])
        grad = ref_cpql.gradient(loss, start)
        up, down = ({k: v + sign * 1e-6 * grad[k] for k, v in start.items()} for sign in (1, -1))
        slope = (loss(up) - loss(down)) / 2e-6
        assert slope.item() == pytest.approx(sum(g.square().sum().item() for g in grad.values()), rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"grad_clip": 0.5, "warmup_steps": 5, "ema_decay": 0.9, "expectile": 0.9},
        {"baseline": "batch_mean", "cons_mode": "velocity", "weight_clip": 1.2, "tau": 0.3},
    ],
    ids=["value", "batch mean"],
)
def test_a_run_of_20_updates_is_the_references(settings: Flat) -> None:
    p = problem(settings)
    reference, state = ref.Reference(p.state, p.cfg, toys.SPEC), p.state
    for i in range(20):
        data = Batch(*(fn.tree_map(Tensor.double, field) for field in batch(generator(i), 3)))
        noise = fn.tree_map(Tensor.double, p.alg.update_noise(generator(100 + i), 3))
        state, _ = p.alg.update(state, data, noise, p.hp)
        reference.update(data, noise)
    assert max(relative_error({k: state[k] for k in reference.state}, reference.state).values()) < 1e-5


def test_weights_by_hand() -> None:
    """exp(A) = 1, 2, 8, of which W = 4 leaves 1, 2, 4 with mean 7/3."""
    advantage = torch.tensor([1.0, 2.0, 8.0]).log()
    one, clip = torch.tensor(1.0), torch.tensor(4.0)
    assert awcp.weights(advantage, one, clip).tolist() == pytest.approx([3 / 7, 6 / 7, 12 / 7])
    assert awcp.weights(advantage, 2 * one, 100 * clip).tolist() == pytest.approx([3 / 69, 12 / 69, 192 / 69])
    assert awcp.weights(advantage, 0 * one, clip).tolist() == [1, 1, 1]


@pytest.mark.parametrize("shift", [-1e6, 0.0, 1e6])
def test_weights_neither_overflow_nor_vanish_together(shift: float) -> None:
    advantage = shift + torch.tensor([-1000.0, 0.0])
    expected = [1.0, 1.0] if shift > 0 else [0.0, 2.0]
    assert awcp.weights(advantage, torch.tensor(1.0), torch.tensor(100.0)).tolist() == expected


def test_metrics_of_the_weights_by_hand() -> None:
    """Weights 0, 1, 2 beside steps 5, 3, 4: covariance (0 * 1 + 0 * -1 + 1 * 0 - 1 * 1) / 3."""
    w, step = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([5.0, 3.0, 4.0])
    found = {k: v.item() for k, v in awcp.weight_metrics(w, torch.tensor([3.0, 0.0, 0.0]), step).items()}
    assert found == pytest.approx(
        {
            "weight_mean": 1.0,
            "weight_std": math.sqrt(2 / 3),
            "weight_max": 2.0,
            "effective_sample_size": 9 / 5,
            "effective_sample_share": 3 / 5,
            "weight_step_corr": -1 / 2,
            "advantage_mean": 1.0,
        }
    )


@pytest.mark.parametrize("constant", ["weights", "steps", "both"])
def test_the_correlation_with_a_constant_is_0(constant: str) -> None:
    x, y = torch.tensor([0.3, 1.2, 1.5]), torch.tensor([7.0, 8.0, 3.0])
    w, step = (torch.full((3,), 0.1) if constant in (name, "both") else t for name, t in (("weights", x), ("steps", y)))
    assert awcp.correlation(w, step) == 0


def test_the_endpoint_form_by_hand() -> None:
    """With a constant velocity c both ends differ by (t+ - t_c) (x_1 - x_0 - c)."""
    x_0, x_1 = torch.zeros(2, 1, 1), torch.tensor([1.0, 3.0]).view(2, 1, 1)
    t_c, t_plus = torch.tensor([0.25, 0.5]), torch.tensor([0.5, 1.0])

    def v(params: fn.Params, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return params["c"].expand_as(x)

    c = {"c": torch.tensor(2.0)}
    loss = flow.endpoint_loss(v, c, c, x_0, x_1, t_c, t_plus, torch.zeros(2, 1), 2)
    assert loss.tolist() == pytest.approx([(0.25 * (1 - 2)) ** 2, (0.5 * (3 - 2)) ** 2])


def test_the_endpoint_forms_teacher_gets_no_gradient() -> None:
    p = problem()
    v = fn.stateless(flow.velocity_module(p.cfg.network, toys.SPEC))
    x_0, x_1, t = p.noise["x_0"], p.batch.action, p.noise["t_c"]
    args = (x_0, x_1, t, (t + 0.2).clamp_max(1), fn.encode(p.batch.obs), 2)
    both = torch.func.grad(lambda x, y: flow.endpoint_loss(v, x, y, *args).mean(), argnums=(0, 1))
    of_student, of_teacher = both(p.state["policy"], p.state["acting"]["policy_ema"])
    assert all(g.any() for g in of_student.values())
    assert not any(g.any() for g in of_teacher.values())


def test_a_student_that_starts_at_the_end_learns_nothing() -> None:
    p = problem({"cons_step": 1.0})
    assert not any(g.any() for g in gradients(p, consistency_weight=1.0)["policy"].values())


LIKE_CPQL: Flat = {"consistency_weight": 0.3, "grad_clip": 0.5, "warmup_steps": 5.0}


@pytest.mark.parametrize("baseline", ["batch_mean", "value"])
def test_beta_zero_is_cpql_without_its_q_term(baseline: str) -> None:
    """The same networks, start and noise by the same names; CPQL's own noise is left over."""
    cpql, hp = algorithm("cpql", LIKE_CPQL, {"alpha": 0.0})
    mine, my_hp = algorithm("awcp", LIKE_CPQL, {"beta": 0.0, "cons_mode": "velocity", "baseline": baseline})
    data = steps(cpql, 20)
    theirs = advance(cpql, hp, cpql.init(generator()), data)
    found = advance(mine, my_hp, mine.init(generator()), data)
    assert not different({k: found[k] for k in theirs}, theirs)


def test_beta_zero_does_not_look_at_the_critic() -> None:
    alg, hp = algorithm("awcp", {"beta": 0.0})
    start, data = alg.init(generator()), steps(alg, 20)
    sick = {**start, **{k: fn.tree_map(lambda t: t * torch.nan, start[k]) for k in ("critic", "critic_target")}}
    well, beside_nan = advance(alg, hp, start, data), advance(alg, hp, sick, data)
    for part in ("policy", "policy_opt", "acting"):
        assert not different(well[part], beside_nan[part])
    assert beside_nan["critic"]["b_out"].isnan().all()


def test_a_nan_critic_reaches_the_policy_when_beta_is_positive() -> None:
    alg, hp = algorithm("awcp")
    start = alg.init(generator())
    sick = {**start, "critic": fn.tree_map(lambda t: t * torch.nan, start["critic"])}
    assert advance(alg, hp, sick, steps(alg, 1))["policy"]["out.bias"].isnan().all()


@CASE
@pytest.mark.parametrize("beta", [0.0, 1.0, 1000.0])
def test_what_holds_of_weights_for_every_beta(settings: Flat, beta: float) -> None:
    p = problem(settings, {"beta": beta})
    _, m = p.alg.update(p.state, p.batch, p.noise, p.hp)
    assert m["weight_mean"] == pytest.approx(1.0)
    assert 1 <= m["weight_max"] <= 5 * (1 + 1e-9)
    assert 1 - 1e-9 <= m["effective_sample_size"] <= 5 * (1 + 1e-9)
    assert m["effective_sample_share"] == m["effective_sample_size"] / 5
    assert m["q_policy_loss"] == 0
    assert m["loss"] == m["policy_loss"] + m["critic_loss"] + m.get("v_loss", 0)
    assert m["q_mean"] <= m["q_data_mean"]
    if p.cfg.baseline == "batch_mean":
        assert abs(m["advantage_mean"]) < 1e-12
    if beta == 0:
        assert (m["weight_std"], m["weight_max"], m["weight_step_corr"]) == (0, 1, 0)


def test_the_advantage_is_q_less_the_batch_mean_or_less_v_and_weights_are_compared_with_time() -> None:
    for baseline in ("batch_mean", "value"):
        p = problem({"baseline": baseline})
        _, m = p.alg.update(p.state, p.batch, p.noise, p.hp)
        args = (ref_cpql.double(p.state), p.batch, p.cfg, toys.SPEC)
        q = ref.data_q(args[0]["critic"], *args[1:])
        assert m["q_mean"].item() == pytest.approx(sum(q) / len(q), rel=1e-9)
        expected = ref.advantages(*args)
        assert m["advantage_mean"].item() == pytest.approx(sum(expected) / len(q), rel=1e-9, abs=1e-12)
        weights = torch.tensor(ref.weights(expected, p.cfg.beta, p.cfg.weight_clip)).double()
        corr = torch.corrcoef(torch.stack([weights, p.batch.step]))[0, 1]
        assert m["weight_step_corr"].item() == pytest.approx(corr.item(), rel=1e-6)
    values = [float(v) for v in ref.state_values(args[0]["value"], p.batch)]
    assert m["v_mean"].item() == pytest.approx(sum(values) / len(values), rel=1e-9)


def test_an_expectile_by_hand() -> None:
    u = torch.tensor([2.0, -2.0, 0.0])
    assert fn.expectile_loss(u, torch.tensor(0.75)).tolist() == [3.0, 1.0, 0.0]


def test_v_exists_for_its_baseline_only_and_changes_no_other_start() -> None:
    batch_mean, value = (algorithm("awcp", {"baseline": b})[0].init(generator()) for b in ("batch_mean", "value"))
    assert value.keys() - batch_mean.keys() == {"value", "value_opt"}
    assert not different(batch_mean, {k: value[k] for k in batch_mean})
    alg, hp = algorithm("awcp", {"baseline": "batch_mean"})
    ((data, noise),) = steps(alg, 1)
    assert not {"v_loss", "v_mean", "grad_norm_value"} & alg.update(batch_mean, data, noise, hp)[1].keys()


def test_only_the_executed_part_of_a_longer_chunk_is_judged() -> None:
    p = problem()
    longer = torch.cat([p.batch.q_action, p.batch.q_action[:, :1] + 9], dim=1)
    for field in ("reward", "mask"):
        assert getattr(p.batch, field).shape[1] == toys.SPEC.act_horizon
    _, one = p.alg.update(p.state, p.batch, p.noise, p.hp)
    _, two = p.alg.update(p.state, p.batch._replace(q_action=longer), p.noise, p.hp)
    assert same_bits(one["q_mean"], two["q_mean"])


DEFAULTS: dict[str, Any] = {
    "beta": 10.0,
    "weight_clip": 100.0,
    "bc_weight": 1.0,
    "consistency_weight": 0.3,
    "cons_mode": "endpoint",
    "cons_step": 0.01,
    "teacher_steps": 2,
    "reward_scale": 0.1,
    "ema_decay": 0.999,
    "baseline": "batch_mean",
}


def test_the_defaults_are_those_of_the_source() -> None:
    assert {k: getattr(awcp.Config(), k) for k in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize(
    "settings",
    [
        {"beta": -1.0},
        {"beta": math.inf},
        {"weight_clip": 0.5},
        {"weight_clip": math.inf},
        {"expectile": 0.0},
        {"expectile": 1.0},
        {"baseline": "mean"},
        {"cons_mode": "chord"},
        {"cons_step": 1.5},
        {"cons_t_min": 0.6, "cons_t_max": 0.5},
        {"alpha": 0.1},
    ],
)
def test_bad_settings_are_refused(settings: Flat) -> None:
    with pytest.raises(UsageError):
        run_config("awcp", settings)
