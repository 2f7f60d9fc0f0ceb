"""SAC against the slow reference, against numbers worked by hand, and against the identities between its modes."""

import math
from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
from torch import Tensor

from offrl_ray.algos import functional as fn
from offrl_ray.algos import sac
from offrl_ray.errors import UsageError
from offrl_ray.types import Batch, Spec, State
from tests import compare
from tests.compare import Problem, agree
from tests.reference import sac as ref
from tests.rows import ROWS
from tests.rows.kinds import Flat
from tests.rows.sac import AWR, GAP, IQL, MODES, SAC
from tests.test_probes import trained
from tests.toys import (
    SPEC,
    advance,
    algorithm,
    batch,
    different,
    generator,
    half_missing,
    relative_error,
    run,
    run_config,
    steps,
)

T = torch.tensor
SIZE = 5
CASES: dict[str, Flat] = MODES | {
    "sac, mean Q, entropy in the target": {**SAC, "actor_q_mode": "mean", "backup_entropy": True},
    "sac, all critics, given target entropy": {**SAC, "num_min": 3, "target_entropy": -3.0},
    "sac, penalty": {**SAC, "cql_alpha": 0.7},
    "sac, clipped target": {**SAC, "q_target_clip": 0.05},
    "td3bc, small floor": {"q_norm_eps": 1e-3},
    "td3bc, w = 0": {"bc_weight": 0.0, "q_norm_eps": 1e-3},
    "td3bc, penalty, relu, no norm": {"cql_alpha": 0.5, "activation": "relu", "layer_norm": False},
    "awr, clipped weights": {**AWR, "weight_clip": 1.5, "awr_temperature": 0.3},
    "iql, clipped, penalty": {**IQL, "iql_clip": 0.2, "iql_temperature": 0.1, "cql_alpha": 1.0},
    "iql, one hidden layer": {**IQL, "expectile": 0.2, "critic_hidden": (16,), "hidden": (8, 4, 8)},
}
CASE = pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
MODE = pytest.mark.parametrize("settings", MODES.values(), ids=MODES)
COMMON: Flat = {"lr_temperature": 0.01, "init_temperature": 0.4}
METRICS = {
    *("loss", "actor_loss", "critic_loss", "temperature_loss", "value_loss", "q_mean", "q_std", "td_target_mean"),
    *("temperature", "entropy", "target_entropy", "actor_q", "actor_entropy", "actor_lam", "bc_loss"),
    *("awr_advantage_mean", "awr_weights_mean", "awr_weights_max", "v_mean", "v_loss"),
    *("iql_v_mean", "iql_advantage_mean", "iql_weights_mean", "iql_weights_max"),
    *("cql_penalty", "cql_q_policy", "cql_q_random", "cql_q_data"),
}


def different_networks(state: State) -> State:
    """Values and deviations that differ and are not small."""

    def louder(p: fn.Params) -> fn.Params:
        return {k: 50 * v if k in ("w_out", "out.weight") else v for k, v in p.items()}

    critic, policy = louder(state["critic"]), louder(state["policy"])
    more = {"value": louder(state["value"])} if "value" in state else {}
    if "value_target" in state:
        more["value_target"] = {k: 1.2 * v for k, v in louder(state["value"]).items()}
    return {
        **state,
        **more,
        "critic": critic,
        "critic_target": {k: 1.1 * v for k, v in critic.items()},
        "policy": policy,
        "acting": {"policy": policy},
        "temperature": {"log_factor": T(0.3)},
    }


problem = partial(compare.problem, "sac", COMMON, prepare=different_networks, size=SIZE)


def losses(p: Problem, after: State) -> dict[str, tuple[str, Callable[[ref.Params], Tensor]]]:
    """Metric -> whose parameters it trains, and the reference's loss as a function of them.

    `after` is the state after the update: the actor sees the critics and V that this update has made.
    """
    s, new, b, z = ref.double(p.state), ref.double(after), Batch(*map(ref.double, p.batch)), ref.double(p.noise)
    cfg, about = p.cfg, (p.cfg, SPEC)
    ys = ref.targets(s, b, z, *about)
    temperature = ref.temperature(s, cfg)
    w: list[float] = []
    if cfg.actor_loss in ("awr", "iql"):
        w = ref.weights(ref.advantages(new.get("value"), s["critic_target"], new["critic"], b, cfg), cfg)
    log_pi = float(ref.mean(ref.log_pis(s["policy"], b, z, *about)))
    found: dict[str, tuple[str, Callable[[ref.Params], Tensor]]] = {
        "td_loss": ("critic", lambda x: ref.td_loss(x, ys, b, cfg)),
        "critic_loss": ("critic", lambda x: ref.critic_loss(x, ys, s["policy"], b, z, *about)),
        "actor_loss": (
            "policy",
            lambda x: ref.actor_loss(x, s["policy"], new["critic"], w, temperature, b, z, *about),
        ),
        "temperature_loss": ("temperature", lambda x: ref.temperature_loss(x["log_factor"], log_pi, *about)),
    }
    if "value" in s:
        found["value_loss"] = ("value", lambda x: ref.value_loss(x, s["critic_target"], b, cfg))
    return found


PRECISION = pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])


@PRECISION
@CASE
def test_values_agree_with_the_reference(settings: Flat, dtype: torch.dtype, bound: float) -> None:
    p = problem(settings, dtype=dtype)
    after, metrics = p.alg.update(p.state, p.batch, p.noise, p.hp)
    for name, (params, loss) in losses(p, after).items():
        expected = loss(ref.double(p.state[params])).item()
        assert metrics[name].item() == pytest.approx(expected, rel=bound, abs=bound * 1e-1), name


@PRECISION
@CASE
def test_gradients_agree_with_the_reference(settings: Flat, dtype: torch.dtype, bound: float) -> None:
    """Read off Adam's first moments, which are a tenth of the first gradient."""
    p = problem(settings, dtype=dtype)
    after, _ = p.alg.update(p.state, p.batch, p.noise, p.hp)
    for name, (params, loss) in losses(p, after).items():
        if name != "td_loss":
            mine = fn.unravel(10 * after[f"{params}_opt"]["m"], p.state[params])
            agree(mine, ref.gradient(loss, ref.double(p.state[params])), bound)


@CASE
def test_the_references_gradients_are_finite_differences(settings: Flat) -> None:
    p = problem(settings)
    after, _ = p.alg.update(p.state, p.batch, p.noise, p.hp)
    for params, loss in losses(p, after).values():
        start = ref.double(p.state[params])
        grad = ref.gradient(loss, start)
        up, down = ({k: v + sign * 1e-7 * grad[k] for k, v in start.items()} for sign in (1, -1))
        slope = (loss(up) - loss(down)) / 2e-7
        assert slope.item() == pytest.approx(sum(g.square().sum().item() for g in grad.values()), rel=1e-4)


@pytest.mark.parametrize("settings", [*MODES.values(), CASES["sac, penalty"]], ids=[*MODES, "sac, penalty"])
def test_a_run_of_20_updates_is_the_references(settings: Flat) -> None:
    p = problem(settings, {"grad_clip": 0.5, "tau": 0.3, "backup_entropy": True})
    reference, state = ref.Reference(p.state, p.cfg, SPEC), p.state
    for i in range(20):
        data = Batch(*(fn.tree_map(Tensor.double, field) for field in batch(generator(i), 3)))
        noise = fn.tree_map(Tensor.double, p.alg.update_noise(generator(100 + i), 3))
        state, _ = p.alg.update(state, data, noise, p.hp)
        reference.update(data, noise)
    assert max(relative_error({k: state[k] for k in reference.state}, reference.state).values()) < 1e-5


@MODE
def test_every_mode_has_all_metrics(settings: Flat) -> None:
    p = problem(settings, dtype=torch.float32)
    _, metrics = p.alg.update(p.state, p.batch, p.noise, p.hp)
    assert metrics.keys() >= METRICS
    m = {k: v.item() for k, v in metrics.items()}
    mode = p.cfg.actor_loss
    assert m["q_mean"] == m["q_data_mean"]
    assert m["actor_lam"] == pytest.approx({"sac": 1.0, "td3bc": m["actor_lam"]}.get(mode, 0.0))
    assert m["entropy"] == -m["log_pi"]
    assert m["actor_entropy"] == (m["entropy"] if mode != "iql" or p.cfg.entropy_bonus else 0.0)
    assert (m["bc_loss"] > 0) == (mode == "td3bc")
    learns = "value" in p.state
    assert m["value_loss"] == m["v_loss"]
    assert (m["value_loss"] > 0) == (m["v_mean"] != 0) == learns
    for prefix in ("awr", "iql"):
        used = {k for k, v in m.items() if k.startswith(prefix) and v != 0}
        assert used == ({k for k in METRICS if k.startswith(prefix)} if mode == prefix else set())
    assert not any(v for k, v in m.items() if k.startswith("cql"))
    assert m["loss"] == pytest.approx(m["critic_loss"] + m["actor_loss"] + m["temperature_loss"] + m["value_loss"])
    assert m["target_entropy"] == -SPEC.pred_horizon * SPEC.action_dim / 2
    assert m["temperature"] == pytest.approx(0.4 * math.exp(0.3))


def test_only_modes_that_read_a_value_have_one() -> None:
    names = {mode: run("sac", settings, count=1).keys() for mode, settings in MODES.items()}
    assert {m for m, keys in names.items() if "value" in keys} == {"awr", "iql", "iql, entropy bonus"}
    assert {m for m, keys in names.items() if "value_target" in keys} == {"iql", "iql, entropy bonus"}


def test_the_penalty_s_metrics_are_its_parts() -> None:
    p = problem({"cql_alpha": 0.5})
    _, m = p.alg.update(p.state, p.batch, p.noise, p.hp)
    assert m["cql_q_data"] == m["q_data_mean"]
    assert m["critic_loss"] == m["td_loss"] + 0.5 * m["cql_penalty"]
    q = sac.conservative_penalty(*(T([[x]]) for x in (0.0, 0.0)), T(0.0))
    assert q.item() == pytest.approx(math.log(2)), "a flat Q is penalised by ln 2"


def test_awr_weights_by_hand() -> None:
    """Advantages 1, 3, 5: mean 3, deviation sqrt(8/3), z = -1.2247, 0, 1.2247."""
    hp = {"awr_temperature": T(0.5), "weight_clip": T(2.0)}
    z = 2 / math.sqrt(8 / 3)
    assert sac.awr_weight(T([1.0, 3.0, 5.0]), hp).tolist() == pytest.approx([math.exp(-2 * z), 1.0, 2.0])
    assert sac.awr_weight(T([7.0, 7.0, 7.0]), hp).tolist() == [1.0, 1.0, 1.0]
    assert sac.awr_weight(T([0.0, 1000.0]), {**hp, "weight_clip": T(100.0)}).isfinite().all()


def test_iql_weights_by_hand() -> None:
    """A / T = 0, 2, 4 clipped at 2: 1, e^2, e^2 over their mean."""
    hp = {"iql_temperature": T(0.5), "iql_clip": T(2.0)}
    e = math.exp(2)
    expected = [3 / (1 + 2 * e), 3 * e / (1 + 2 * e), 3 * e / (1 + 2 * e)]
    assert sac.iql_weight(T([0.0, 1.0, 2.0]), hp).tolist() == pytest.approx(expected)


def test_iql_weights_have_mean_one_and_no_weight_is_larger_than_the_batch() -> None:
    p = problem(IQL, {"iql_temperature": 1e-3}, size=32)
    _, m = p.alg.update(p.state, p.batch, p.noise, p.hp)
    assert m["iql_weights_mean"].item() == pytest.approx(1.0, rel=1e-12)
    assert 1 < m["iql_weights_max"] <= 32


def test_the_gap_of_an_ensemble_is_never_positive() -> None:
    p = problem(GAP)
    _, m = p.alg.update(p.state, p.batch, p.noise, p.hp)
    assert m["awr_advantage_mean"] < 0
    assert m["awr_weights_max"] <= 100


def test_td3bc_without_cloning_is_sac_bit_for_bit() -> None:
    plain, without, cloning = (
        run("sac", s, count=20) for s in (SAC, {"bc_weight": 0.0, "q_norm_eps": 1e-6}, {"bc_weight": 0.1})
    )
    assert not different(plain, without)
    assert different(plain, cloning)


def test_a_member_that_does_not_clone_is_sac_beside_one_that_does() -> None:
    (alg, hp), (plain, _) = algorithm("sac"), algorithm("sac", SAC)
    start, data = alg.init(generator()), steps(alg, 5)
    both = {k: v.expand(2) for k, v in hp.items()} | {"bc_weight": T([0.0, 2.0])}
    state = fn.stack([start, start])
    for b, noise in data:
        state, _ = torch.vmap(alg.update, in_dims=(0, None, None, 0))(state, b, noise, both)
    for i, (single, weight) in enumerate(((plain, 0.0), (alg, 2.0))):
        alone = advance(single, {**hp, "bc_weight": T(weight)}, start, data)
        assert max(relative_error(fn.select(state, i), alone).values()) < 1e-5


@pytest.mark.parametrize(("w", "lam"), [(0.0, 1.0), (1.0, 1 / 2), (2.0, 1 / 3), (9.0, 1 / 10)])
def test_lam_by_hand(w: float, lam: float) -> None:
    p = problem({"bc_weight": w})
    assert p.alg.update(p.state, p.batch, p.noise, p.hp)[1]["actor_lam"].item() == pytest.approx(lam, rel=1e-12)


def test_the_adaptive_lam_is_the_seed_s_and_goes_to_zero_as_q_grows() -> None:
    p = problem({"lam_mode": "adaptive", "num_critics": 2})
    constant = {**p.state["critic"], "w_out": 0 * p.state["critic"]["w_out"]}
    for q, lam in ((0.0, 1.0), (1.86, 0.35), (-1.86, 0.35), (99.0, 0.01)):
        critic = {**constant, "b_out": torch.full_like(constant["b_out"], q)}
        hp = {**p.hp, "init_temperature": T(1.0), "lr_critic": T(0.0)}
        state = {**p.state, "critic": critic, "temperature": {"log_factor": T(0.0)}}
        _, m = p.alg.update(state, p.batch, p.noise, hp)
        assert m["actor_lam"].item() == pytest.approx(lam, abs=1e-3)
        assert m["actor_q"].item() == pytest.approx(q)


def test_a_small_q_is_not_normalised_and_a_large_one_is() -> None:
    """Doubling all values doubles Q's part of the loss only while mean |Q| is below the floor."""
    p = problem({"bc_weight": 1.0}, dtype=torch.float64)

    def part(scale: float, floor: float) -> float:
        w = p.state["critic"]
        critic = {**w, "w_out": scale * w["w_out"], "b_out": scale * w["b_out"]}
        hp = {**p.hp, "q_norm_eps": T(floor), "lr_critic": T(0.0)}
        m = p.alg.update({**p.state, "critic": critic}, p.batch, p.noise, hp)[1]
        return (m["actor_loss"] - m["temperature"] * m["log_pi"] - 0.5 * m["bc_loss"]).item()

    assert part(2.0, 1e3) == pytest.approx(2 * part(1.0, 1e3), rel=1e-9)
    assert part(2.0, 1e-9) == pytest.approx(part(1.0, 1e-9), rel=1e-9)


@pytest.mark.parametrize("expectile", [0.5, 0.9])
def test_iql_s_value_regresses_to_the_expectile_of_q(expectile: float) -> None:
    """Q = 0 and 1 at equal observations: the mean is 1/2, the expectile kappa itself."""
    q = T([0.0, 1.0])
    alg = sac._Sac(run_config("sac", IQL, {"expectile": expectile, "lr_critic": 1e-2}).algo, SPEC)
    cond, hp = torch.ones(2, fn.condition_dim(SPEC)), {k: T(1e-2) for k in ("lr_critic",)}
    hp |= {"expectile": T(expectile), "grad_clip": T(math.inf)}
    state = alg.init(generator())
    for _ in range(500):
        state, _ = alg.value_step(state, q, cond, hp)
    assert alg.value(state["value"], cond).tolist() == pytest.approx([expectile] * 2, abs=1e-3)


def test_awr_s_value_is_the_mean_whatever_the_expectile() -> None:
    p = problem(AWR)
    kappas = [{**p.hp, "expectile": T(k)} for k in (0.1, 0.9)]
    one, two = (p.alg.update(p.state, p.batch, p.noise, hp)[0] for hp in kappas)
    assert not different(one, two)


def test_a_target_of_all_critics_is_the_smallest_of_all() -> None:
    p, some = problem({**SAC, "num_min": 3}), problem({**SAC, "num_min": 1})
    shuffled = p._replace(noise={**p.noise, "subset": p.noise["subset"].flip(0)})
    one, two = (x.alg.update(x.state, x.batch, x.noise, x.hp)[0] for x in (p, shuffled))
    assert not different(one, two)
    lowest = p.alg.update(p.state, p.batch, p.noise, p.hp)[1]["q_next_mean"]
    for chosen in range(3):
        noise = {**some.noise, "subset": torch.roll(T([0.0, 0.5, 0.9], dtype=torch.float64), chosen)}
        assert lowest < some.alg.update(some.state, some.batch, noise, some.hp)[1]["q_next_mean"]


def test_chunks_of_one_step_are_one_step_td() -> None:
    spec = Spec(**{**SPEC.__dict__, "pred_horizon": 1, "act_horizon": 1, "q_horizon": 1, "act_offset": 0})
    p = problem(SAC, spec=spec)
    s, b, z = p.state, p.batch, p.noise
    model = sac._Sac(p.cfg, spec)
    v = model.next_value(s, fn.encode(b.next_obs), z, p.hp)
    _, m = p.alg.update(s, b, z, p.hp)
    assert b.reward.shape == (SIZE, 1)
    y = b.reward[:, 0] + 0.99 * (1 - b.terminal) * v
    assert m["td_target_mean"].item() == pytest.approx(y.mean().item(), rel=1e-6)


def test_entropy_in_the_target_is_discounted_and_stops_at_a_terminal() -> None:
    off, on = problem(SAC), problem(SAC, {"backup_entropy": True})
    s, b, z = ref.double(off.state), off.batch, off.noise
    bonus = []
    for i in range(SIZE):
        _, log_pi = ref.sample(s["policy"], ref.condition(b.next_obs, i), z["eps_next"][i], off.cfg, SPEC)
        tau = int(b.mask[i].sum())
        bonus.append(-(1 - float(b.terminal[i])) * 0.99**tau * ref.temperature(s, off.cfg) * float(log_pi))
    m_off, m_on = (p.alg.update(p.state, p.batch, p.noise, p.hp)[1] for p in (off, on))
    difference = (m_on["td_target_mean"] - m_off["td_target_mean"]).item()
    assert difference == pytest.approx(ref.mean(bonus), rel=1e-9)


@MODE
def test_log_temperature_moves_by_at_most_its_step_size(settings: Flat) -> None:
    """So a ramp from 1 to 15 takes 27,100 steps of 1e-4, whatever drives it."""
    alg, hp = algorithm("sac", settings, {"lr_temperature": 0.01, "target_entropy": 1000.0})
    state = alg.init(generator())
    for i, (b, noise) in enumerate(steps(alg, 20)):
        state, m = alg.update(state, b, noise, hp)
        assert m["temperature"].log().item() == pytest.approx(0.01 * i, rel=1e-4, abs=1e-6)
        assert m["temperature_loss"].item() == pytest.approx(
            -0.01 * i * (m["log_pi"] + 1000).item(), rel=1e-3, abs=1e-2
        )


def test_the_temperature_means_nothing_in_iql() -> None:
    alg, hp = algorithm("sac", IQL)
    start, data = alg.init(generator()), steps(alg, 5)
    hot = {**hp, "init_temperature": T(100.0), "lr_temperature": T(1.0)}
    one, two = (advance(alg, h, start, data) for h in (hp, hot))
    assert {k.split(".")[0] for k in different(one, two)} == {"temperature"}


def test_iql_s_policy_and_value_never_see_the_trained_critics() -> None:
    """Their advantages come from the averaged ones, so that not even a NaN arrives within an update."""
    p = problem(IQL)
    sick = {**p.state, "critic": fn.tree_map(lambda t: t * torch.nan, p.state["critic"])}
    healthy, other = (p.alg.update(s, p.batch, p.noise, p.hp)[0] for s in (p.state, sick))
    assert not different(healthy["policy"], other["policy"])
    assert not different(healthy["value"], other["value"])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"expectile": 0.0}, "expectile"),
        ({"expectile": 1.0}, "expectile"),
        ({"bc_weight": -1.0}, "bc_weight"),
        ({"iql_temperature": 0.0}, "iql_temperature"),
        ({"awr_temperature": 0.0}, "awr_temperature"),
        ({"num_min": 4}, "num_min must be <= num_critics"),
        ({"actor_loss": "AWAC"}, "actor_loss"),
        ({"actor_loss": "awr", "awr_advantage": "ensemble_gap", "num_critics": 1, "num_min": 1}, "num_critics"),
        ({"target_entropy": float("inf")}, "target_entropy"),
        ({"cql_alpha": -1.0}, "cql_alpha"),
    ],
)
def test_bad_settings_are_refused(settings: Flat, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        run_config("sac", settings)


def test_what_is_predicted_is_what_is_executed_by_default() -> None:
    assert run_config("sac").data.pred_horizon == run_config("sac").data.act_horizon == 8


def test_the_sweep_s_known_duplicates_are_inert_settings() -> None:
    def inert(**settings: object) -> frozenset[str]:
        return run_config("sac", settings).algo.inert()

    assert {"init_temperature", "lr_temperature", "target_entropy", "backup_entropy"} <= inert(actor_loss="iql")
    assert "init_temperature" not in inert(actor_loss="iql", entropy_bonus=True)
    assert inert(actor_loss="sac") & {"bc_weight", "awr_temperature", "expectile"}
    assert "target_entropy" in inert(lr_temperature=0.0)
    one = {"num_critics": 1, "num_min": 1}
    assert "actor_q_mode" in inert(**one)
    assert not different(run("sac", one), run("sac", one, {"actor_q_mode": "mean"}))


HELD: Flat = {"lr": 3e-3, "lr_temperature": 0.0, "iql_temperature": 0.1}


@cache
def without_the_upper_half(mode: str) -> tuple[float, float]:
    """The raw action after data of the lower half alone, and the critic's value of it."""
    data = half_missing()
    agent = trained("sac", data, 400, ROWS["sac"].probes["sac"], HELD, {"actor_loss": mode})
    obs, state = data.batch(torch.arange(64)), fn.select(agent.snapshot.state, 0)
    chunk = agent.alg.act(state, obs.obs, {}) * data.spec.action_std[0] + data.spec.action_mean[0]
    cond = fn.encode(obs.obs)
    q = sac._Sac(run_config("sac", ROWS["sac"].probes["sac"]).algo, data.spec).q
    normalised = (chunk - data.spec.action_mean[0]) / data.spec.action_std[0]
    return chunk.mean().item(), q(state["critic"], cond, normalised).mean().item()


def test_plain_sac_goes_where_there_are_no_data_and_believes_in_it() -> None:
    """No reward is above 1; the critic's slope goes on beyond the data, and the policy follows it to the end."""
    action, q = without_the_upper_half("sac")
    assert action > 0.5
    assert q > 1.4


@pytest.mark.parametrize("mode", ["td3bc", "awr", "iql"])
def test_policies_held_by_the_data_stay_among_them(mode: str) -> None:
    action, q = without_the_upper_half(mode)
    assert -1 < action < 0
    assert 0 < q < 1


def test_weighted_imitation_prefers_the_better_actions() -> None:
    """Uniform actions in [-1, 0] are -0.5 on average."""
    assert without_the_upper_half("awr")[0] > -0.45
    assert without_the_upper_half("iql")[0] > -0.45
    assert without_the_upper_half("td3bc")[0] == pytest.approx(-0.5, abs=0.15)
