import gzip
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from offrl_ray.algos import VARIANTS
from offrl_ray.config import RunConfig, describe, resolve
from offrl_ray.evaluate import LocalEvaluator
from offrl_ray.run import Record, run
from offrl_ray.sweep.divergence import RULES, Finding, Report, judge, last_finite
from tests.conftest import MakeRun, ToyEnv
from tests.toys import algorithm, batch, generator, run_config, spec_of

TESTS = Path(__file__).parent
BOUNDS = {"q_bound_low": 0.0, "q_bound_high": 0.1}
Series = dict[str, Sequence[float] | float]


def history(series: Series) -> list[Report]:
    """A report every 100 updates; a single number is repeated."""
    length = max(len(v) for v in series.values() if not isinstance(v, float))
    full = {k: [v] * length if isinstance(v, float) else v for k, v in series.items()}
    return [Report(100 * (i + 1), {k: v[i] for k, v in full.items()}) for i in range(length)]


def live(reports: list[Report], cfg: RunConfig) -> list[Finding]:
    """Findings of every report as it comes in."""
    return [f for n in range(1, len(reports) + 1) for f in judge(reports[:n], cfg)]


def alone(rule: str, variant: str = "cpql", **stop: Any) -> RunConfig:
    """A config in which one rule speaks."""
    off = dict.fromkeys((f"stop_{name}" for name in RULES if name != rule), "off")
    return run_config(variant, **off, **{f"stop_{rule}": "stop"}, **{f"stop_{k}": v for k, v in stop.items()})


def q(*values: float, **more: Any) -> Series:
    return {"q_policy_mean": values, "q_data_mean": 0.0, **BOUNDS, **more}


def loss(*values: float) -> Series:
    return {"td_loss": values, **BOUNDS}


def warming(*logs: float) -> Series:
    return {"temperature": [math.exp(x) for x in logs], "entropy": -9.0}


def sharp(*tops: float) -> Series:
    return {"iql_weights_mean": 1.0, "iql_weights_max": tops}


def flat(level: float) -> Series:
    """A range of 1, and a second window whose mean is `level` higher."""
    values = [0.0, 1.0, *[0.5] * 8, *[0.5 + level] * 10]
    return {"actor_loss": values, "q_mean": values}


RAMP = [0.01 * 1.2**i for i in range(9)]  # rises 2.07 times as much in the later half
STEADY = [0.01 * 1.15**i for i in range(9)]  # 1.75 times

HOLDS: list[tuple[str, str, dict[str, Any], Series]] = [
    ("q_bound", "cpql", {}, q(0.2001, 0.2001, 0.2001)),
    ("q_bound", "cpql", {}, {"q_policy_mean": 0.0, "q_data_mean": [0.3] * 3, **BOUNDS}),
    ("q_bound", "cpql", {}, {"q_mean": [0.3] * 3, **BOUNDS}),
    ("q_bound", "cpql", {}, q(0.5, 0.3, 0.4)),
    ("q_bound", "cpql", {"q_bound_margin": 0, "q_bound_reports": 1}, q(0.1001)),
    ("q_bound", "cpql", {}, q(*[0.3] * 3, q_bound_high=0.0, q_bound_low=-0.1)),
    ("q_growth", "cpql", {}, q(*RAMP)),
    ("critic_loss", "cpql", {}, loss(0.001, 0.001, 0.101, 0.101, 0.101)),
    ("critic_loss", "dqc", {}, {"critic_loss": [0.001, 0.101, 0.101, 0.101], **BOUNDS}),
    ("q_spread", "cpql", {}, {"q_data_std": [0.051] * 3, **BOUNDS}),
    ("q_spread", "sac", {}, {"q_std": [0.051] * 3, **BOUNDS}),
    ("temperature", "sac", {}, warming(*[0.091 * i for i in range(11)])),
    ("lam", "sac", {}, {"actor_lam": [0.02, 0.0199]}),
    ("weights_flat", "awcp", {}, {"effective_sample_share": [0.991] * 10}),
    ("weights_flat", "sac", {}, sharp(*[1.01] * 10)),
    ("weights_few", "awcp", {}, {"effective_sample_share": [0.049] * 3}),
    ("weights_few", "sac", {}, sharp(*[71.0] * 3)),
    ("entropy", "sac", {}, {"entropy": [-8.01] * 3, "target_entropy": -4.0}),
    ("plateau", "cpql", {}, flat(0.0099)),
]
SILENT: list[tuple[str, str, dict[str, Any], Series]] = [
    ("q_bound", "cpql", {}, q(0.2, 0.3, 0.3)),
    ("q_bound", "cpql", {}, q(0.3, 0.3)),
    ("q_bound", "dqc", {}, {"q_mean": [0.9, 0.8, 0.7, 0.6], **BOUNDS}),
    ("q_bound", "cpql", {}, q(-9.0, -9.0, -9.0)),
    ("q_bound", "cql", {}, q(0.3, 0.3, 0.3, td_loss=1.0, critic_loss=2.0)),
    ("q_bound", "sac", {}, q(0.3, 0.3, 0.3, q_bound_high=[0.2, 0.1, 0.1])),
    ("q_bound", "cpql", {}, {"q_policy_mean": [9.0] * 3, "q_data_mean": 9.0}),
    ("q_growth", "cpql", {}, q(*STEADY)),
    ("q_growth", "cpql", {}, q(*RAMP[:-2], RAMP[-3], RAMP[-1])),
    ("q_growth", "cpql", {}, q(*[0.01 * 2**i for i in range(8)])),
    ("q_growth", "cpql", {}, q(*[0.2 * x for x in RAMP])),
    ("critic_loss", "cpql", {}, loss(0.001, 0.001, 0.1, 0.101, 0.101)),
    ("critic_loss", "cpql", {}, loss(0.001, 0.001, 0.101, 0.101)),
    ("critic_loss", "cpql", {}, loss(1e-6, 1e-6, 0.01, 0.01, 0.01)),
    ("critic_loss", "cpql", {}, loss(0.5, 0.5, 0.5)),
    ("q_spread", "cpql", {}, {"q_data_std": [0.05, 0.06, 0.06], **BOUNDS}),
    ("temperature", "sac", {}, warming(*[0.089 * i for i in range(11)])),
    ("temperature", "sac", {}, warming(*[0.091 * i for i in range(10)])),
    ("temperature", "sac", {}, warming(0.0, *[0.05 + 0.091 * i for i in range(10)])),
    ("temperature", "sac", {}, warming(*[-0.1 * i for i in range(11)])),
    ("temperature", "cpql", {}, warming(*[0.091 * i for i in range(11)])),
    ("lam", "sac", {}, {"actor_lam": [0.3, 0.02]}),
    ("lam", "sac", {}, {"actor_lam": [0.0199, 0.0]}),
    ("weights_flat", "awcp", {}, {"effective_sample_share": [0.99, *[0.991] * 9]}),
    ("weights_flat", "awcp", {}, {"effective_sample_share": [0.991] * 9}),
    ("weights_flat", "awcp", {}, {"effective_sample_share": [1.0] * 10}),
    ("weights_flat", "sac", {}, {"awr_weights_mean": [0.0] * 10, "awr_weights_max": 0.0}),
    ("weights_few", "awcp", {}, {"effective_sample_share": [0.05, 0.049, 0.049]}),
    ("weights_few", "sac", {}, sharp(*[69.0] * 3)),
    ("entropy", "sac", {}, {"entropy": [-8.0, -9.0, -9.0], "target_entropy": -4.0}),
    ("plateau", "cpql", {}, flat(0.0101)),
    ("plateau", "cpql", {}, {**flat(0.0), "critic_loss": [float(i) for i in range(20)]}),
    ("plateau", "cpql", {}, {"actor_loss": [0.0, 1.0, *[0.5] * 17]}),
]


@pytest.mark.parametrize(("rule", "variant", "stop", "series"), HOLDS)
def test_a_rule_speaks_just_above_its_threshold_and_gives_numbers(
    rule: str, variant: str, stop: dict[str, Any], series: Series
) -> None:
    reports = history(series)
    found = live(reports, alone(rule, variant, **stop))
    assert [(f.rule, f.action, f.step) for f in found] == [(rule, "stop", reports[-1].step)]
    assert any(c.isdigit() for c in found[0].reason)


@pytest.mark.parametrize(("rule", "variant", "stop", "series"), SILENT)
def test_a_rule_is_silent_at_its_threshold_and_below(
    rule: str, variant: str, stop: dict[str, Any], series: Series
) -> None:
    assert live(history(series), alone(rule, variant, **stop)) == []


def test_every_rule_is_tested_on_both_sides_and_has_its_setting() -> None:
    assert {r for r, *_ in HOLDS} == {r for r, *_ in SILENT} == set(RULES)
    assert set(RULES) <= {s.key.removeprefix("stop.") for s in describe("cpql")}


@pytest.mark.parametrize(("rule", "variant", "stop", "series"), HOLDS)
def test_what_still_holds_is_not_told_again(rule: str, variant: str, stop: dict[str, Any], series: Series) -> None:
    reports = history(series)
    more = [Report(reports[-1].step + 100 * i, reports[-1].metrics) for i in range(1, 4)]
    assert len(live(reports + more, alone(rule, variant, **stop))) == 1


@pytest.mark.parametrize("rule", ["temperature", "entropy"])
def test_nothing_aims_at_the_entropy_where_the_temperature_is_held(rule: str) -> None:
    (series,) = (s for name, _, _, s in HOLDS if name == rule)
    assert live(history(series), run_config("sac", {"lr_temperature": 0.0})) == []


def test_a_config_turns_a_stop_into_a_note_and_off() -> None:
    reports = history(q(0.3, 0.3, 0.3))
    assert [f.action for f in live(reports, run_config("cpql"))] == ["stop"]
    assert [f.action for f in live(reports, run_config("cpql", stop_q_bound="note"))] == ["note"]
    assert live(reports, run_config("cpql", stop_q_bound="off")) == []


@pytest.mark.parametrize(("variant", "weight"), [("cpql", "alpha"), ("awcp", "beta")])
def test_a_critic_that_the_policy_does_not_listen_to_stops_nothing(variant: str, weight: str) -> None:
    reports = history(q(0.3, 0.3, 0.3))
    assert [f.action for f in live(reports, run_config(variant, {weight: 0.0}))] == ["note"]
    assert [f.action for f in live(reports, run_config(variant, {weight: 0.01}))] == ["stop"]


def test_stops_come_before_notes() -> None:
    found = live(history(q(*[0.3] * 3, q_std=9.0)), run_config("cpql"))
    assert [(f.rule, f.action) for f in found] == [("q_bound", "stop"), ("q_spread", "note")]


def golden(variant: str) -> list[Report]:
    reports = json.loads((TESTS / "golden" / f"{variant}.json").read_text())
    return [Report(5 * (i + 1), m) for i, m in enumerate(reports)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_value_that_is_not_finite_stops_whatever_metric_it_is(variant: str, bad: float) -> None:
    *before, last = golden(variant)
    cfg = run_config(variant, **dict.fromkeys((f"stop_{name}" for name in RULES), "off"))
    for name in last.metrics:
        (found,) = judge([*before, Report(last.step, {**last.metrics, name: bad})], cfg)
        assert found[:3] == ("non_finite", "stop", last.step)
        assert found.reason == f"{name} is {bad} in the updates up to step {last.step}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_metric_may_be_missing(variant: str) -> None:
    cfg, reports = run_config(variant), golden(variant) * 6
    assert judge([Report(1, {})], cfg) == []
    assert judge(reports[:1], cfg) == []
    for name in reports[0].metrics:
        without = [Report(r.step, {k: v for k, v in r.metrics.items() if k != name}) for r in reports]
        assert not any(f.action == "stop" for f in judge(without, cfg))
        assert not any(f.action == "stop" for f in judge([*reports, without[-1]], cfg))


def test_the_last_finite_report_is_told() -> None:
    reports = history({"q_mean": [0.5, 0.25, math.nan], "critic_loss": [0.5, 1.5, 2.5]})
    assert last_finite(reports) == "last finite report at step 200: q_mean=0.25 critic_loss=1.5"
    assert last_finite(reports[2:]) == last_finite([]) == "no report was finite"


def test_the_bound_of_a_soft_q_counts_entropy() -> None:
    """Against the sum itself: a uniform policy's entropy after a first chunk of one step and then every H steps."""
    spec, found = spec_of("sac"), []
    for with_entropy in (False, True):
        alg, hp = algorithm("sac", {"backup_entropy": with_entropy})
        noise = alg.update_noise(generator(1), 16)
        found.append(alg.update(alg.init(generator()), batch(generator(2), spec=spec), noise, hp)[1])
    most = found[1]["temperature"] * spec.pred_horizon * spec.action_dim * math.log(2)
    added = sum(most * hp["gamma"] ** (1 + k * spec.q_horizon) for k in range(10_000))
    assert found[1]["q_bound_high"] == pytest.approx(float(found[0]["q_bound_high"] + added), rel=1e-4)
    assert found[1]["q_bound_low"] == found[0]["q_bound_low"]


# -- recorded runs: tests/benchmarks/divergence.py made them


def recorded() -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for curve in json.loads(gzip.decompress((TESTS / "curves.json.gz").read_bytes())):
        groups.setdefault(curve["group"], []).append(curve)
    return groups


CURVES = recorded()


def replay(curve: dict[str, Any]) -> tuple[list[Report], RunConfig]:
    return [Report(*r) for r in curve["reports"]], resolve(curve["settings"] | {"data.files": ["a.h5"]})


def name(curve: dict[str, Any]) -> str:
    return f"{curve['name']} seed {curve['seed']}"


def test_the_healthy_runs_are_of_every_variant() -> None:
    assert {c["variant"] for c in CURVES["healthy"]} == set(VARIANTS)
    assert len(CURVES["healthy"]) >= 20


@pytest.mark.parametrize("curve", CURVES["healthy"], ids=name)
def test_no_healthy_run_is_stopped(curve: dict[str, Any]) -> None:
    assert [f for f in live(*replay(curve)) if f.action == "stop"] == []


STOPPED = {
    "cpql raw, alpha 1000, lr_critic 0.03": ("q_bound", 250),
    "cpql raw, lr 1e30": ("non_finite", 50),
    "sac, no LayerNorm": ("q_bound", 250),
    "sac, lr 1e30": ("non_finite", 50),
}
"""Rule and the latest step of 800. The other runs of the group were expected to be lost and kept Q within its bound."""


@pytest.mark.parametrize("curve", CURVES["lost"], ids=name)
def test_a_run_whose_critic_ran_away_is_stopped_early(curve: dict[str, Any]) -> None:
    stops = [(f.rule, f.step) for f in live(*replay(curve)) if f.action == "stop"]
    rule, latest = STOPPED.get(curve["name"], ("", 0))
    assert [r for r, _ in stops[:1]] == [rule] * bool(rule)
    assert all(step <= latest for _, step in stops[:1])


@pytest.mark.parametrize("curve", CURVES["healthy"] + CURVES["lost"], ids=name)
def test_the_past_alone_decides(curve: dict[str, Any]) -> None:
    """Judged in any order, and in a run that was resumed, each report gives what it gave when it came in."""
    reports, cfg = replay(curve)
    first = {n: judge(reports[:n], cfg) for n in range(1, len(reports) + 1)}
    again = list(first)
    random.Random(0).shuffle(again)
    assert {n: judge(tuple(reports)[:n], cfg) for n in again} == first


# -- in a run


def records(of: MakeRun, folder: Path, **changes: Any) -> list[Record]:
    cfg, data = of(**changes)
    return [r for u in run(cfg, data, folder, LocalEvaluator(ToyEnv), "00", frozenset()) for r in u.records]


STILL = {"stop__plateau_share": 1e9, "stop__plateau_reports": 1}
"""Anything is a plateau, from the second report on."""


def test_a_note_is_recorded_once_for_each_seed_and_changes_nothing(tiny: MakeRun, tmp_path: Path) -> None:
    found = records(tiny, tmp_path / "x", **STILL)
    notes = [r["text"] for r in found if r["kind"] == "note"]
    assert [text.split(": ")[:2] for text in notes] == [[f"seed {s} at step 4", "plateau"] for s in (0, 1)]
    assert found[-1]["status"] == "completed"
    assert [r for r in found if r["kind"] == "note" and r["trial"] != "00"] == []


def test_a_rule_that_stops_ends_the_run_as_diverged_with_reason_step_and_last_values(
    tiny: MakeRun, tmp_path: Path
) -> None:
    *before, end = records(tiny, tmp_path / "x", stop__plateau="stop", **STILL)
    assert (end["status"], end["step"], list(end["diverged"])) == ("diverged", 4, ["0", "1"])
    train = {r["seed"]: r["metrics"] for r in before if r["kind"] == "train" and r["step"] == 4}
    for seed, why in end["diverged"].items():
        assert why.startswith("plateau: ")
        assert f"last finite report at step 4: q_mean={train[int(seed)]['q_mean']:.4g}" in why
    assert not any(r["kind"] == "eval" and r["step"] == 4 for r in before)


def test_a_value_that_is_not_finite_ends_with_the_rule_and_the_last_finite_values(
    tiny: MakeRun, tmp_path: Path
) -> None:
    end = records(tiny, tmp_path / "x", algo__lr_critic=1e30)[-1]
    assert end["status"] == "diverged"
    assert all(why.startswith("non_finite: ") for why in end["diverged"].values())
    assert all("last finite report at step" in why or "no report was finite" in why for why in end["diverged"].values())
