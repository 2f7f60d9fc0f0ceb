"""What every variant promises to the rest of the program. What differs between variants stands in `toys.ROWS`."""

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from offrl_ray.algos import VARIANTS
from offrl_ray.algos.functional import polyak, select, stack, tree_map, unravel
from offrl_ray.config import describe, from_dict, to_dict
from offrl_ray.fields import swept_fields
from offrl_ray.policy import acting_and_critic
from offrl_ray.types import Algorithm, Batch, Critic, Hparams, State
from tests.rows import ROWS
from tests.rows.kinds import Flat, Knob, Part
from tests.toys import (
    Step,
    advance,
    algorithm,
    different,
    generator,
    leaves,
    outcome,
    relative_error,
    run,
    run_config,
    same_bits,
    spec_of,
    steps,
    window,
)

VARIANT = pytest.mark.parametrize("variant", VARIANTS)
KNOBS = [(v, k, knob) for v, row in ROWS.items() for k, knob in row.knobs.items()]
KNOB = pytest.mark.parametrize(("variant", "field", "knob"), KNOBS, ids=[f"{v}-{k}" for v, k, _ in KNOBS])
SWEPT = [(v, k, knob) for v, k, knob in KNOBS if k in swept_fields(VARIANTS[v][0])]
SWEPT_KNOB = pytest.mark.parametrize(("variant", "field", "knob"), SWEPT, ids=[f"{v}-{k}" for v, k, _ in SWEPT])
PARTS = [(v, part) for v, row in ROWS.items() for part in row.parts.values()]
PART_IDS = [f"{v}-{k}" for v, row in ROWS.items() for k in row.parts]
NETWORKS = [(v, network) for v, row in ROWS.items() for network in row.networks.values()]
NETWORK_IDS = [f"{v}-{k}" for v, row in ROWS.items() for k in row.networks]
SWITCHED = [(v, s, k, knob) for v, k, knob in KNOBS for s in ROWS[v].switches if k not in s and "." not in k]
SWITCHED_IDS = ["-".join((v, *(f"{s}={x}" for s, x in switch.items()), k)) for v, switch, k, _ in SWITCHED]

CRITICS: list[tuple[str, Flat]] = [(v, {}) for v in VARIANTS if algorithm(v)[0].critic]
BOUNDED: Flat = {"bounded_critic": True, "gamma": 0.9, "reward_scale": 2.0}
CRITICS += [(v, BOUNDED) for v in ("cpql", "awcp")] + [("sac", {"backup_entropy": True, "num_critics": 5})]
CRITIC = pytest.mark.parametrize(("variant", "settings"), CRITICS)

Stacked = tuple[State, list[list[Step]], list[Hparams]]


def members(variant: str, settings: Sequence[Flat], count: int) -> tuple[Any, Stacked]:
    """Algorithm, and for each member its start, its data and its hyperparameters."""
    built = [algorithm(variant, s) for s in settings]
    alg = built[0][0]
    data = [steps(alg, count, seed=i + 1, spec=spec_of(variant)) for i in range(len(settings))]
    state = stack([alg.init(generator(i)) for i in range(len(settings))])
    return alg, (state, data, [hp for _, hp in built])


def advance_stacked(alg: Any, start: Stacked) -> State:
    state, data, hps = start
    update = torch.vmap(alg.update)
    for moment in zip(*data, strict=True):
        batches, noise = zip(*moment, strict=True)
        state, _ = update(
            state, Batch(*(stack(list(field)) for field in zip(*batches, strict=True))), stack(list(noise)), stack(hps)
        )
    return state


def spread(variant: str) -> list[Flat]:
    """Three members: no swept field changed, all of them, every other one."""
    changed = {k: knob.value for v, k, knob in SWEPT if v == variant}
    return [{}, changed, dict(list(changed.items())[::2])]


def critic_of(alg: Algorithm) -> Critic:
    assert alg.critic
    return alg.critic


def numbers(tree: Mapping[str, Any]) -> bool:
    return all(t.dtype == torch.float32 and bool(t.isfinite().all()) for t in leaves(dict(tree)).values())


def test_every_variant_has_a_row_and_every_setting_a_knob() -> None:
    assert ROWS.keys() == VARIANTS.keys()
    for variant, row in ROWS.items():
        assert row.knobs.keys() == {
            s.key.removeprefix("algo.") for s in describe(variant) if s.key.startswith("algo.")
        } - {"name"}


@VARIANT
def test_an_update_keeps_names_shapes_and_types_and_is_finite(variant: str) -> None:
    alg, hp = algorithm(variant)
    start = alg.init(generator())
    ((batch, noise),) = steps(alg, 1, spec=spec_of(variant))
    state, metrics = alg.update(start, batch, noise, hp)
    assert {k: t.shape for k, t in leaves(state).items()} == {k: t.shape for k, t in leaves(start).items()}
    assert numbers(start)
    assert numbers(state)
    assert numbers(metrics)
    assert {m.shape for m in metrics.values()} == {()}
    assert not any(t.requires_grad for t in [*leaves(state).values(), *metrics.values()])


@VARIANT
def test_an_update_leaves_its_arguments_as_they_were(variant: str) -> None:
    alg, hp = algorithm(variant)
    start = alg.init(generator())
    ((batch, noise),) = steps(alg, 1, spec=spec_of(variant))
    given = {"state": start, "batch": batch._asdict(), "noise": noise, "hp": hp}
    before = tree_map(torch.clone, given)
    alg.update(start, batch, noise, hp)
    alg.act(start, batch.obs, alg.act_noise(generator(), 16))
    assert not different(given, before)


@VARIANT
def test_executed_chunks_lie_within_the_action_bounds_and_reach_them(variant: str) -> None:
    alg, _ = algorithm(variant)
    spec = spec_of(variant)
    state = tree_map(lambda t: 1000 * t, alg.init(generator()))
    chunk = alg.act(state, window(generator(1), 200, spec), alg.act_noise(generator(2), 200))
    low, high = torch.tensor(spec.action_low), torch.tensor(spec.action_high)
    assert chunk.shape == (200, spec.act_horizon, spec.action_dim)
    assert chunk.dtype == torch.float32
    assert bool(((low <= chunk) & (chunk <= high)).all())
    assert same_bits(chunk.amin((0, 1)), low)
    assert same_bits(chunk.amax((0, 1)), high)
    if spec.num_actions:
        assert set(chunk.flatten().tolist()) == set(range(spec.num_actions))


@VARIANT
def test_equal_inputs_give_bitwise_equal_results(variant: str) -> None:
    alg, hp = algorithm(variant)
    obs = window(generator(1), 5, spec_of(variant))
    one, again, other = (
        advance(alg, hp, alg.init(generator(seed)), steps(alg, 3, spec=spec_of(variant))) for seed in (0, 0, 1)
    )
    assert not different(one, again)
    assert different(one, other)
    assert same_bits(*(alg.act(state, obs, alg.act_noise(generator(2), 5)) for state in (one, again)))


@VARIANT
def test_the_global_generator_is_neither_read_nor_changed(variant: str) -> None:
    alg, hp = algorithm(variant)
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        state = advance(alg, hp, alg.init(generator()), steps(alg, 2, spec=spec_of(variant)))
        chunk = alg.act(state, window(generator(1), 5, spec_of(variant)), alg.act_noise(generator(2), 5))
        assert same_bits(torch.get_rng_state(), before)
        results.append({"state": state, "chunk": chunk})
    assert not different(*results)


@VARIANT
def test_members_with_different_hyperparameters_stacked_equal_single_runs(variant: str) -> None:
    alg, start = members(variant, spread(variant), count=20)
    stacked = advance_stacked(alg, start)
    for i, (data, hp) in enumerate(zip(*start[1:], strict=True)):
        single = advance(alg, hp, select(start[0], i), data)
        assert max(relative_error(select(stacked, i), single).values()) < 1e-5


@pytest.fixture
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(("variant", "network"), NETWORKS, ids=NETWORK_IDS)
def test_stacking_is_exact_up_to_rounding_for_every_network(variant: str, network: Flat) -> None:
    alg, start = members(variant, [{**network, **s} for s in spread(variant)], count=3)
    stacked = advance_stacked(alg, start)
    for i, (data, hp) in enumerate(zip(*start[1:], strict=True)):
        single = advance(alg, hp, select(start[0], i), data)
        assert max(relative_error(select(stacked, i), single).values()) < 1e-9


@SWEPT_KNOB
def test_a_swept_field_changes_its_member_and_no_other(variant: str, field: str, knob: Knob) -> None:
    alg, start = members(variant, [knob.given] * 2, count=4)
    _, changed = members(variant, [knob.given, {**knob.given, field: knob.value}], count=4)
    before, after = advance_stacked(alg, start), advance_stacked(alg, changed)
    assert not different(select(after, 0), select(before, 0))
    assert different(select(after, 1), select(before, 1))


@KNOB
def test_every_setting_changes_the_result(variant: str, field: str, knob: Knob) -> None:
    assert different(outcome(variant, knob.given), outcome(variant, knob.given, {field: knob.value, **knob.along}))


@pytest.mark.parametrize(("variant", "switch", "field", "knob"), SWITCHED, ids=SWITCHED_IDS)
def test_exactly_the_inert_settings_change_nothing(variant: str, switch: Flat, field: str, knob: Knob) -> None:
    one, two = (knob.given, switch), (knob.given, {field: knob.value, **knob.along}, switch)
    inert = run_config(variant, *one).algo.inert()
    assert (field in inert) == (not different(outcome(variant, *one), outcome(variant, *two)))
    assert (field in inert) == (field in run_config(variant, *two).algo.inert())


@pytest.mark.parametrize(("variant", "part"), PARTS, ids=PART_IDS)
def test_a_part_of_the_loss_trains_its_own_parameters_and_no_others(
    variant: str, part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    on, off = (run(variant, settings, count=1) for settings in (part.on, part.off))
    if part.stopped:
        module = sys.modules[VARIANTS[variant][0].__module__]
        term = getattr(module, part.stopped)
        monkeypatch.setattr(module, part.stopped, lambda *args: term(*args).detach())
        alg, hp = algorithm(variant, part.off)
        off = advance(alg, hp, alg.init(generator()), steps(alg, 1, spec=spec_of(variant)))
    for params, optimiser in ROWS[variant].optimisers.items():
        if params != part.trains:
            assert not different(on[params], off[params])
            assert not different(on[optimiser], off[optimiser])
    moment = ROWS[variant].optimisers[part.trains]
    change = unravel(on[moment]["m"] - off[moment]["m"], on[part.trains])
    largest = max(float(g.abs().max()) for g in change.values())
    assert {k for k, g in change.items() if float(g.abs().max()) < 1e-6 * largest} == part.spares


@VARIANT
def test_averaged_parameters_follow_and_are_not_trained(variant: str) -> None:
    alg, hp = algorithm(variant)
    start = alg.init(generator())
    state = advance(alg, hp, start, steps(alg, 1, spec=spec_of(variant)))
    averages = ROWS[variant].averages
    for path, (online, rate) in averages.items():
        old, new = start, state
        for name in path:
            old, new = old[name], new[name]
        assert not different(new, polyak(old, state[online], rate(hp)))
    trained = {*ROWS[variant].optimisers, *ROWS[variant].optimisers.values()}
    assert trained | {path[0] for path in averages} == state.keys()


@VARIANT
def test_noise_is_normal_or_uniform_and_independent(variant: str) -> None:
    alg, _ = algorithm(variant, ROWS[variant].noisy)
    g, draws = generator(), 400
    acting = [{f"act {k}": v for k, v in alg.act_noise(g, 16).items()} for _ in range(draws)]
    noise = stack([alg.update_noise(g, 16) | more for more in acting])
    if not noise:
        return
    firsts = {k: t.reshape(draws, -1)[:, 0] for k, t in noise.items()}
    for name, t in noise.items():
        normal = name.removeprefix("act ") in ROWS[variant].normal
        mean, std = (0.0, 1.0) if normal else (0.5, 12**-0.5)
        assert abs(t.mean() - mean) < 5 * std / t.numel() ** 0.5
        assert t.std().item() == pytest.approx(std, abs=5 * std / t.numel() ** 0.5)
        assert normal or 0 <= t.min() < 0.05 < 0.95 < t.max() < 1
        assert t.unique().numel() > 0.99 * t.numel()
    correlations = torch.corrcoef(torch.stack(list(firsts.values()))) - torch.eye(len(firsts))
    assert correlations.abs().max() < 5 / draws**0.5


@VARIANT
def test_acting_reads_only_the_acting_part(variant: str) -> None:
    alg, _ = algorithm(variant)
    state, obs, noise = run(variant), window(generator(1), 5, spec_of(variant)), alg.act_noise(generator(2), 5)
    assert same_bits(alg.act({"acting": state["acting"]}, obs, noise), alg.act(state, obs, noise))


def test_every_variant_but_the_imitators_has_a_critic() -> None:
    assert {v for v in VARIANTS if algorithm(v)[0].critic is None} == {"flow_bc", "gaussian_bc"}


@CRITIC
def test_a_critic_gives_one_finite_number_a_chunk_in_the_units_that_it_names(variant: str, settings: Flat) -> None:
    alg, hp = algorithm(variant, settings)
    critic, state = critic_of(alg), run(variant, settings)
    obs = window(generator(1), 5, spec_of(variant))
    q = critic.q(state, obs, alg.act(state, obs, alg.act_noise(generator(2), 5)))
    assert (q.shape, bool(q.isfinite().all())) == ((5,), True)
    scale = hp.get("reward_scale", torch.ones(()))
    assert (critic.gamma, critic.reward_scale) == (pytest.approx(float(hp["gamma"])), pytest.approx(float(scale)))


@CRITIC
def test_a_critic_is_the_one_that_the_metric_of_the_datas_chunks_averages(variant: str, settings: Flat) -> None:
    alg, hp = algorithm(variant, settings)
    ((b, noise),) = steps(alg, 1, seed=5, spec=spec_of(variant))
    state = run(variant, settings)
    _, metrics = alg.update(state, b, noise, hp)
    q = critic_of(alg).q(state, b.obs, b.q_action[:, : spec_of(variant).act_horizon])
    assert q.std() > 0
    torch.testing.assert_close(q.mean(), metrics["q_data_mean"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("variant", "settings"), [c for c in CRITICS if c[0] not in ("awcp", "dqc")])
def test_the_policys_own_chunks_are_worth_the_metric_q_policy_mean(variant: str, settings: Flat) -> None:
    """The metric's chunks are those of the trained policy, as it was before the update, and not cut at an offset."""
    one_sampler = {"q_grad_mode": "whole_grad"} if variant == "cpql" else {}
    spec = dataclasses.replace(spec_of(variant), act_offset=0)
    alg, hp = algorithm(variant, settings, one_sampler, spec=spec)
    ((b, noise),) = steps(alg, 1, seed=5, spec=spec)
    state = run(variant, settings)
    if "policy_ema" in state["acting"]:
        state = {**state, "acting": {"policy_ema": state["policy"]}}
    after, metrics = alg.update(state, b, noise, hp)
    if "temperature" in state:  # a soft policy climbs the critic after its step
        state = {**state, "critic": after["critic"]}
    q = critic_of(alg).q(state, b.obs, alg.act(state, b.obs, noise))
    torch.testing.assert_close(q.mean(), metrics["q_policy_mean"], rtol=1e-5, atol=1e-7)


@CRITIC
def test_a_critic_reads_what_an_evaluation_gets_and_changes_nothing(variant: str, settings: Flat) -> None:
    alg, _ = algorithm(variant, settings)
    state, obs = run(variant, settings), window(generator(1), 5, spec_of(variant))
    chunk = alg.act(state, obs, alg.act_noise(generator(2), 5))
    given = {"state": acting_and_critic(stack([state]), 0), "obs": obs, "chunk": chunk}
    before = tree_map(torch.clone, given)
    assert same_bits(critic_of(alg).q(given["state"], obs, chunk), critic_of(alg).q(state, obs, chunk))
    assert not different(given, before)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if spec_of(v).pred_horizon > spec_of(v).act_horizon])
def test_the_executed_chunk_starts_at_the_offset(variant: str) -> None:
    state, obs = run(variant), window(generator(1), 5, spec_of(variant))
    chunks = []
    for offset in (0, 1):
        spec = dataclasses.replace(spec_of(variant), act_offset=offset)
        alg, _ = algorithm(variant, ROWS[variant].unchosen, spec=spec)
        chunks.append(alg.act(state, obs, alg.act_noise(generator(2), 5)))
    assert same_bits(chunks[0][:, 1:], chunks[1][:, :-1])
    assert not same_bits(chunks[0], chunks[1])


@VARIANT
def test_an_agent_acts_alike_alone_and_among_others(variant: str) -> None:
    alg, _ = algorithm(variant)
    state, obs, noise = run(variant), window(generator(1), 5, spec_of(variant)), alg.act_noise(generator(2), 5)
    together = alg.act(state, obs, noise)
    for i in range(5):
        alone = alg.act(state, *(select(tree, slice(i, i + 1)) for tree in (obs, noise)))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=1e-6)


@VARIANT
def test_a_nan_stays_in_its_member(variant: str) -> None:
    alg, start = members(variant, [{}] * 3, count=4)

    def poison(t: Tensor) -> Tensor:
        return torch.cat([t[:1], torch.full_like(t[1:2], torch.nan), t[2:]])

    healthy, sick = advance_stacked(alg, start), advance_stacked(alg, (tree_map(poison, start[0]), *start[1:]))
    for i in (0, 2):
        assert not different(select(sick, i), select(healthy, i))
    assert all(bool(t.isnan().any()) for t in leaves(select(sick, 1)).values())


@KNOB
def test_a_config_survives_json(variant: str, field: str, knob: Knob) -> None:
    cfg = run_config(variant, knob.given, {field: knob.value, **knob.along})
    assert from_dict(to_dict(cfg)) == cfg
    assert cfg != run_config(variant, knob.given)
