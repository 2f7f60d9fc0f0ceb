"""CPQL against the slow reference, against numbers worked by hand, and against the identities between its modes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from offrl_ray.algos import cpql, flow
from offrl_ray.algos import functional as fn
from offrl_ray.errors import UsageError
from offrl_ray.types import Batch, Spec, State
from tests import compare
from tests.compare import Problem, agree
from tests.reference import cpql as ref
from tests.rows.kinds import Flat
from tests.toys import (
    SPEC,
    advance,
    algorithm,
    batch,
    different,
    generator,
    relative_error,
    run,
    run_config,
    steps,
)

SIZE = 5
ENDING = Spec(**{**SPEC.__dict__, "reward_ends_episode": True})
CASES: dict[str, Flat] = {
    "single step": {},
    "last 1": {"q_grad_mode": "last_1"},
    "last 2": {"q_grad_mode": "last_2"},
    "last 3": {"q_grad_mode": "last_3"},
    "last 4": {"q_grad_mode": "last_4"},
    "whole": {"q_grad_mode": "whole_grad"},
    "coinflip": {"q_norm": "coinflip"},
    "coinflip, last 2, three critics": {"q_norm": "coinflip", "q_grad_mode": "last_2", "num_critics": 3},
    "abs": {"q_norm": "abs"},
    "abs at its floor": {"q_norm": "abs", "q_norm_eps": 10.0},
    "bounded": {"bounded_critic": True},
    "bounded, abs, whole, penalty": {
        "bounded_critic": True,
        "q_norm": "abs",
        "q_grad_mode": "whole_grad",
        "random_action_penalty": 0.5,
    },
    "penalty": {"random_action_penalty": 0.5},
    "clipped target": {"q_target_clip": 0.05},
    "two layers, other times": {
        "network.blocks": 2,
        "critic_hidden": (16, 8, 4),
        "teacher_steps": 3,
        "cons_t_min": 0.3,
        "cons_t_max": 0.6,
        "cons_delta_min": 0.1,
        "cons_delta_max": 0.4,
    },
}
CASE = pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
COMMON: Flat = {"num_flow_steps": 4, "alpha": 0.7, "bc_weight": 0.9, "consistency_weight": 0.6}


def different_networks(state: State) -> State:
    """Critics that differ and are not small."""
    critic = {**state["critic"], "w_out": 50 * state["critic"]["w_out"]}
    return {
        **state,
        "critic": critic,
        "critic_target": {k: 1.1 * v for k, v in critic.items()},
        "acting": {"policy_ema": {k: 0.9 * v for k, v in state["policy"].items()}},
    }


problem = partial(compare.problem, "cpql", COMMON, prepare=different_networks, size=SIZE)


def gradients(p: Problem, **weights: float) -> dict[str, ref.Params]:
    """Gradients of one update, read off Adam's first moment; unnamed weights of the policy's loss are 0."""
    off = {"alpha": 0.0, "bc_weight": 0.0, "consistency_weight": 0.0}
    hp = {**p.hp, **{k: p.hp["alpha"].new_tensor(w) for k, w in {**off, **weights}.items()}}
    state, _ = p.alg.update(p.state, p.batch, p.noise, hp)
    return {name: fn.unravel(10 * state[f"{name}_opt"]["m"], p.state[name]) for name in ("policy", "critic")}


def losses(p: Problem, spec: Spec = SPEC) -> dict[str, tuple[str, Callable[[ref.Params], Tensor]]]:
    """Name of the metric -> whose parameters it trains, and the reference's loss as a function of them."""
    s, b, z = ref.double(p.state), Batch(*map(ref.double, p.batch)), ref.double(p.noise)
    ys = ref.targets(s["acting"]["policy_ema"], s["critic_target"], b, z, p.cfg, spec)
    return {
        "flow_loss": ("policy", lambda x: ref.flow_loss(x, b, z, p.cfg)),
        "consistency_loss": (
            "policy",
            lambda x: ref.consistency_loss(x, s["acting"]["policy_ema"], b, z, p.cfg),
        ),
        "q_policy_loss": ("policy", lambda x: ref.q_loss(x, s["policy"], s["critic"], b, z, p.cfg, spec)),
        "policy_loss": ("policy", lambda x: ref.policy_loss(x, s, b, z, p.cfg, spec)),
        "td_loss": ("critic", lambda x: ref.td_loss(x, ys, b, p.cfg, spec)),
        "critic_loss": ("critic", lambda x: ref.critic_loss(x, s, b, z, p.cfg, spec)),
    }


PRECISION = pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])


@PRECISION
@CASE
@pytest.mark.parametrize("spec", [SPEC, ENDING], ids=["reward anywhere", "reward at the end"])
def test_values_agree_with_the_reference(settings: Flat, spec: Spec, dtype: torch.dtype, bound: float) -> None:
    p = problem(settings, spec=spec, dtype=dtype)
    _, metrics = p.alg.update(p.state, p.batch, p.noise, p.hp)
    for name, (params, loss) in losses(p, spec).items():
        expected = loss(ref.double(p.state[params])).item()
        assert metrics[name].item() == pytest.approx(expected, rel=bound, abs=bound * 1e-2), name


@PRECISION
@CASE
def test_gradients_agree_with_the_reference(settings: Flat, dtype: torch.dtype, bound: float) -> None:
    p = problem(settings, dtype=dtype)
    weights = {"flow_loss": "bc_weight", "consistency_loss": "consistency_weight", "q_policy_loss": "alpha"}
    expected = losses(p)
    for name, weight in weights.items():
        params, loss = expected[name]
        agree(gradients(p, **{weight: 1.0})[params], ref.gradient(loss, ref.double(p.state[params])), bound)
    together = gradients(p, **{w: p.hp[w].item() for w in weights.values()})
    for name in ("policy_loss", "critic_loss"):
        params, loss = expected[name]
        agree(together[params], ref.gradient(loss, ref.double(p.state[params])), bound)


def test_the_teacher_gets_no_gradient() -> None:
    p = problem()
    v = fn.stateless(flow.velocity_module(p.cfg.network, SPEC))
    student, teacher = p.state["policy"], p.state["acting"]["policy_ema"]
    args = (p.noise["x_0"], p.batch.action, p.noise["t"], fn.encode(p.batch.obs), 2)
    both = torch.func.grad(lambda x, y: flow.consistency_loss(v, x, y, *args).mean(), argnums=(0, 1))
    of_student, of_teacher = both(student, teacher)
    assert all(g.any() for g in of_student.values())
    assert not any(g.any() for g in of_teacher.values())


def test_actions_are_the_references_samples_of_the_averaged_policy() -> None:
    p = problem()
    z = p.alg.act_noise(generator(), SIZE)["z"].double()
    chunk = p.alg.act(p.state, p.batch.obs, {"z": z})
    ema = ref.double(p.state["acting"]["policy_ema"])
    for b in range(SIZE):
        s = ref.condition(p.batch.obs, b)
        x_1 = ref.clamp(ref.sample(ema, ema, z[b], s, p.cfg.num_flow_steps, 0, p.cfg.network.time_dim), SPEC)
        agree({"": chunk[b]}, {"": x_1[SPEC.act_offset : SPEC.act_offset + SPEC.act_horizon]}, 1e-9)


@pytest.mark.parametrize("settings", [{}, {"num_critics": 3, "q_grad_mode": "last_2"}], ids=["2", "3"])
@pytest.mark.parametrize("coin", [0.1, 0.9])
def test_the_coin_decides_which_critic_is_climbed_and_which_scales(settings: Flat, coin: float) -> None:
    p = problem(settings, {"q_norm": "coinflip"})
    p = p._replace(noise={**p.noise, "coin": torch.tensor(coin, dtype=torch.float64)})
    _, loss = losses(p)["q_policy_loss"]
    agree(gradients(p, alpha=1.0)["policy"], ref.gradient(loss, ref.double(p.state["policy"])), 1e-9)
    other = p._replace(noise={**p.noise, "coin": torch.tensor(1 - coin, dtype=torch.float64)})
    assert different(gradients(p, alpha=1.0)["policy"], gradients(other, alpha=1.0)["policy"])


@CASE
def test_the_references_gradients_are_finite_differences(settings: Flat) -> None:
    p = problem(settings)
    for params, loss in losses(p).values():
        start = ref.double(p.state[params])
        grad = ref.gradient(loss, start)
        up, down = ({k: v + sign * 1e-6 * grad[k] for k, v in start.items()} for sign in (1, -1))
        slope = (loss(up) - loss(down)) / 2e-6
        assert slope.item() == pytest.approx(sum(g.square().sum().item() for g in grad.values()), rel=1e-5)


def test_push_down_and_pull_up_agree_each_by_itself() -> None:
    def penalty(p: Problem) -> ref.Params:
        off = problem({"random_action_penalty": 0.0})
        off = off._replace(batch=p.batch, noise=p.noise)
        return fn.tree_map(torch.sub, gradients(p)["critic"], gradients(off)["critic"])

    def reference(part: Callable[..., Tensor], *args: Any) -> ref.Params:
        return ref.gradient(lambda x: part(x, *args), ref.double(here.state["critic"]))

    here = problem({"random_action_penalty": 1.0})
    elsewhere = here._replace(noise={**here.noise, "random_action": 1 - here.noise["random_action"]})
    other_data = here._replace(batch=here.batch._replace(q_action=-here.batch.q_action))
    down = [reference(ref.push_down, p.batch, p.noise, p.cfg, SPEC) for p in (here, elsewhere)]
    up = [reference(ref.pull_up, p.batch, p.cfg, SPEC) for p in (here, other_data)]
    agree(penalty(here), fn.tree_map(torch.add, down[0], up[0]), 1e-9)
    agree(fn.tree_map(torch.sub, penalty(here), penalty(elsewhere)), fn.tree_map(torch.sub, *down), 1e-9)
    agree(fn.tree_map(torch.sub, penalty(here), penalty(other_data)), fn.tree_map(torch.sub, *up), 1e-9)


@pytest.mark.parametrize(
    "settings",
    [
        {"grad_clip": 0.5, "warmup_steps": 5, "q_norm": "coinflip", "q_grad_mode": "last_2", "ema_decay": 0.9},
        {
            "bounded_critic": True,
            "random_action_penalty": 0.5,
            "q_norm": "abs",
            "q_grad_mode": "whole_grad",
            "tau": 0.3,
        },
    ],
    ids=["coinflip", "bounded"],
)
def test_a_run_of_20_updates_is_the_references(settings: Flat) -> None:
    p = problem(settings)
    reference, state = ref.Reference(p.state, p.cfg, SPEC), p.state
    for i in range(20):
        data = Batch(*(fn.tree_map(Tensor.double, field) for field in batch(generator(i), 3)))
        noise = fn.tree_map(Tensor.double, p.alg.update_noise(generator(100 + i), 3))
        state, _ = p.alg.update(state, data, noise, p.hp)
        reference.update(data, noise)
    assert max(relative_error({k: state[k] for k in reference.state}, reference.state).values()) < 1e-5


def test_last_n_is_the_whole_gradient() -> None:
    assert not different(*(run("cpql", {"q_grad_mode": mode}, count=20) for mode in ("last_3", "whole_grad")))
    assert different(*(run("cpql", {"q_grad_mode": mode}, count=20) for mode in ("last_2", "whole_grad")))


def test_all_gradient_modes_of_a_one_step_sampler_are_the_same_run() -> None:
    last, single, whole = (
        run("cpql", {"num_flow_steps": 1, "q_grad_mode": mode}, count=20)
        for mode in ("last_1", "single_step", "whole_grad")
    )
    assert not different(last, single)
    assert not different(single, whole)


def test_the_gradient_mode_of_a_one_step_sampler_is_inert() -> None:
    assert "q_grad_mode" in run_config("cpql", {"num_flow_steps": 1}).algo.inert()


def test_two_different_k_are_refused() -> None:
    with pytest.raises(UsageError):
        run_config("cpql", {"q_grad_mode": "last_2", "q_grad_steps": 1})


def test_the_samplers_time_is_as_precise_as_its_noise() -> None:
    times: list[Tensor] = []

    def v(params: fn.Params, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        times.append(t)
        return torch.zeros_like(x)

    flow.sample(v, {}, torch.zeros(1, 1, 1, dtype=torch.float64), torch.zeros(1, 1), 5, 5)
    assert [t.item() for t in times] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8], rel=1e-12)


POLICY = ("policy", "policy_opt", "acting")


def test_alpha_zero_trains_the_policy_as_if_there_were_no_q_term(monkeypatch: pytest.MonkeyPatch) -> None:
    alg, hp = algorithm("cpql", {"alpha": 0.0})
    start, data = alg.init(generator()), steps(alg, 20)
    without = advance(alg, hp, start, data)
    sick = {**start, **{k: fn.tree_map(lambda t: t * torch.nan, start[k]) for k in ("critic", "critic_target")}}
    beside_nan = advance(alg, hp, sick, data)
    monkeypatch.setattr(cpql, "q_loss", lambda q, coin, cfg: (0 * q.sum(), q.mean(), q.mean()))
    removed = advance(alg, {**hp, "alpha": torch.tensor(0.7)}, start, data)
    for part in POLICY:
        assert not different(without[part], removed[part])
        assert not different(without[part], beside_nan[part])
    assert beside_nan["critic"]["b_out"].isnan().all()


def test_a_nan_critic_reaches_the_policy_when_alpha_is_positive() -> None:
    alg, hp = algorithm("cpql")
    start = alg.init(generator())
    sick = {**start, "critic": fn.tree_map(lambda t: t * torch.nan, start["critic"])}
    assert advance(alg, hp, sick, steps(alg, 1))["policy"]["out.bias"].isnan().all()


def test_q_of_the_policy_sees_only_the_executed_part_of_a_prediction() -> None:
    """H_p = 4, H = 3: what the network says of the fourth action gets no gradient from Q."""
    grad = gradients(problem({"q_grad_mode": "last_1"}), alpha=1.0)["policy"]["out.bias"].view(4, 2)
    assert (grad[:3] != 0).any(1).all()
    assert (grad[3] == 0).all()


def test_saturated_actions_get_no_gradient_from_q() -> None:
    p = problem()
    p = p._replace(noise={**p.noise, "z": p.noise["z"] + 100})
    assert not any(g.any() for g in gradients(p, alpha=1.0)["policy"].values())
    _, metrics = p.alg.update(p.state, p.batch, p.noise, p.hp)
    assert metrics["action_saturation"] == 1.0


def test_q_loss_and_q_mean_by_hand() -> None:
    """Q_1 = 1, 3 and Q_2 = -2, -6: means 2, -4, mean absolutes 2, 4, mean minimum -4; together -0.5, -1.5."""
    q = torch.tensor([[1.0, 3.0], [-2.0, -6.0]])
    heads, tails = torch.tensor(True), torch.tensor(False)

    def loss(coin: Tensor, **settings: Any) -> list[float]:
        return [t.item() for t in cpql.q_loss(q, coin, run_config("cpql", settings).algo)]

    assert loss(heads) == loss(tails) == [-2.0, 2.0, 1.0]
    assert loss(heads, q_norm="coinflip") == [-2.0 / 4, -4.0, 4.0]
    assert loss(tails, q_norm="coinflip") == [4.0 / 2, -4.0, 2.0]
    assert loss(heads, q_norm="abs") == loss(tails, q_norm="abs") == [1.0, -1.0, 1.0]
    assert loss(heads, q_norm="abs", q_norm_eps=8.0) == [1.0 / 8, -1.0, 8.0]


def test_warmup_raises_the_policys_step_linearly_to_its_full_size() -> None:
    p = problem({"warmup_steps": 4.0, "lr": 1e-3})
    for done, share in ((0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0), (9, 1.0)):
        before = {**p.state, "policy_opt": {**p.state["policy_opt"], "t": torch.tensor(done, dtype=torch.float64)}}
        state, _ = p.alg.update(before, p.batch, p.noise, p.hp)
        m, v = (state["policy_opt"][k] / (1 - b ** (done + 1)) for k, b in (("m", 0.9), ("v", 0.999)))
        step = fn.ravel(p.state["policy"]) - fn.ravel(state["policy"])
        torch.testing.assert_close(step, share * 1e-3 * m / (v.sqrt() + 1e-8), rtol=1e-9, atol=1e-12)
