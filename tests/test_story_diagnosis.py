"""The diagnosis: what fired where, the values that show it, and advice that the variant can take."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from offrl_ray.algos import VARIANTS
from offrl_ray.config import StopConfig, describe, parse_assignments, resolve, to_dict
from offrl_ray.sweep.divergence import RULES as JUDGED
from offrl_ray.sweep.state import FAILURES as CLASSES
from results_analysis.advice import FAILURES, RULES, changes, value_of
from results_analysis.diagnosis import FULL, section
from results_analysis.words import speaker
from tests.story import by_first, only, read, table, texts
from tests.synthetic import Record, Run, sweep

SAY = speaker("en")
RISING = {
    "q_policy_mean": lambda t: t,
    "critic_loss": lambda t: 4 * t,
    "q_bound_low": lambda t: -0.5,
    "q_bound_high": lambda t: 0.1,
}
ALGO = {"lr_critic": 3e-4, "q_target_clip": 100.0, "bounded_critic": False, "random_action_penalty": 0.0}


def grid(n: int) -> dict[str, list[Any]]:
    return {"algo.alpha": [0.01 * i for i in range(n)]}


def healthy(point: Record, seed: int) -> Run:
    return Run(0.5, RISING)


def lost(point: Record, seed: int) -> Run:
    """Every seed stops at 800 of 1000 updates."""
    return Run(0.5, RISING, stopped=0.8)


def ended(records: list[Record], trial: str, **end: Any) -> list[Record]:
    for r in records:
        if r["kind"] == "end" and r["trial"] == trial:
            r |= end
    return records


def test_a_sweep_without_trouble_says_so(tmp_path: Path) -> None:
    found = section([read(tmp_path, sweep(healthy, grid(2), seeds=(0, 1)))], SAY)
    assert texts(found, "good") == ["toy: no completed point is behind the best by more than luck."]
    assert texts(found, "plain") == ["toy: no point failed, diverged or was pruned, and no rule left a note."]


def test_seventeen_points_that_died_of_the_same_are_one_paragraph(tmp_path: Path) -> None:
    s = read(tmp_path, sweep(lost, grid(17), seeds=(0, 1)))
    (told,) = texts(section([s], SAY), "bad")
    assert "q_bound stopped 34 of 34 seeds, in 17 of 17 points, at step 800: alpha=0, " in told
    assert "For example alpha=0, seed 0: Q is 0.3, above 0.11" in told


def test_no_more_than_twenty_are_told_in_full(tmp_path: Path) -> None:
    s = read(tmp_path, sweep(lost, grid(FULL + 5), seeds=(0,)))
    found = section([s], SAY)
    assert texts(found, "bad")[0].count("alpha=") == FULL + 1  # and the example
    assert "+5" in texts(found, "bad")[0]
    shown = table(found, "diagnosis-toy")
    assert len({row[0] for row in shown.rows}) == FULL
    assert "for 20 of 25" in shown.caption


def test_the_values_on_the_way_to_the_stop(tmp_path: Path) -> None:
    """q_policy_mean is the share of training: at a quarter of 800 updates 0.2, at half 0.4. The bounds are 0.6 wide."""
    s = read(tmp_path, sweep(lost, grid(1), seeds=(0, 1)))
    rows = by_first(table(section([s], SAY), "diagnosis-toy"))
    assert rows["alpha=0"] | {"metric": ""} == {
        **{"point": "alpha=0", "seed": 0, "rule": "q_bound", "step": 800, "metric": ""},
        **{"at 1/4 of it": pytest.approx(0.2), "at 1/2": pytest.approx(0.4), "there": pytest.approx(0.8)},
        "limit": pytest.approx(0.1),
    }


@pytest.mark.parametrize(
    ("rule", "metric", "limit"),
    [
        ("critic_loss", "critic_loss", 0.36),
        ("q_spread", "q_std", 0.3),
        ("entropy", "entropy", -28.0),
        ("lam", "actor_lam", 0.02),
        ("weights_few", "effective_sample_share", 0.05),
        ("weights_few", "awr_weights_max", None),
    ],
)
def test_the_limit_is_what_the_rule_compares_with(tmp_path: Path, rule: str, metric: str, limit: float | None) -> None:
    def make(point: Record, seed: int) -> Run:
        return Run(0.5, RISING | {metric: lambda t: 1.0, "target_entropy": lambda t: -28.0})

    records = list(sweep(make, grid(1), seeds=(0,)))
    stop = StopConfig()
    records[0]["points"][0]["config"]["stop"] = {
        k: getattr(stop, k) for k in ("q_spread_share", "lam_low", "weights_few_share")
    }
    note = {"kind": "note", "trial": "0000", "text": f"seed 0 at step 500: {rule}: it is so"}
    found = table(section([read(tmp_path, [*records, note])], SAY), "diagnosis-toy")
    (row,) = (r for r in found.rows if r[4] == metric)
    assert row[3:5] == [500, metric]
    assert row[8] == (limit if limit is None else pytest.approx(limit))


def test_a_value_that_is_not_finite_is_shown_where_it_stands(tmp_path: Path) -> None:
    def make(point: Record, seed: int) -> Run:
        return Run(0.5, {"loss": lambda t: 1.0, "odd_loss": lambda t: math.nan if t > 0.75 else 2.0}, stopped=0.8)

    records = list(sweep(make, grid(1), seeds=(0,)))
    why = "non_finite: odd_loss is nan and 3 other metrics are not finite in the updates up to step 800; last finite"
    records = ended(records, "0000", diverged={"0": why})
    rows = {r[4]: r for r in table(section([read(tmp_path, records)], SAY), "diagnosis-toy").rows}
    assert rows["odd_loss"][5:7] == [2.0, 2.0]
    assert math.isnan(rows["odd_loss"][7])  # type: ignore[arg-type]
    assert rows["loss"][5:] == [1.0, 1.0, 1.0, None]


def test_a_failed_point_is_told_with_the_command_that_opens_it(tmp_path: Path) -> None:
    folder = tmp_path / "a sweep"
    records = ended(
        list(sweep(healthy, grid(3), seeds=(0,))), "0001", status="failed", failure="oom", reason="MemoryError: x"
    )
    found = section([read(tmp_path, records, "a sweep")], SAY)
    (told,) = texts(found, "bad")
    assert told.startswith("a sweep: failed (oom) are 1 of 3 points, at step 1000: alpha=0.01.")
    assert told.endswith("For example alpha=0.01: MemoryError: x")
    assert only(texts(found), "Out of memory").endswith(f"Then: offrl-ray retry '{folder}' --failed --reason oom")


def test_a_full_disk_ends_no_point_but_is_advised_on(tmp_path: Path) -> None:
    records = [r for r in sweep(healthy, grid(2), seeds=(0,)) if not (r["kind"] == "end" and r["trial"] == "0001")]
    fault = {"kind": "fault", "attempt": 1, "failure": "disk", "reason": "full", "step": 300}
    s = read(tmp_path, [*records, {**fault, "trial": "0001"}])
    assert only(texts(section([s], SAY)), "The disk is full").endswith(f"offrl-ray resume {tmp_path}/toy")


def test_an_attempt_that_was_lost_and_made_good_is_told_without_advice(tmp_path: Path) -> None:
    fault = {"kind": "fault", "trial": "0000", "attempt": 1, "failure": "infra", "reason": "node gone", "step": 300}
    s = read(tmp_path, [*sweep(healthy, grid(2), seeds=(0,)), fault])
    assert texts(section([s], SAY)) == [
        "toy: whether a point is behind the best by more than luck cannot be told: it takes two seeds.",
        "toy: an attempt was lost (infra) and tried again in 1 of 2 points, at step 300: alpha=0. "
        "For example alpha=0: node gone",
    ]


def test_a_pruned_point_is_no_fault(tmp_path: Path) -> None:
    records = ended(
        list(sweep(healthy, grid(2), seeds=(0,))), "0000", status="pruned", reason="rung 300: behind", step=300
    )
    (told,) = texts(section([read(tmp_path, records)], SAY))
    assert told.startswith(
        "toy: pruned, which is no fault, are 1 of 2 points; their values are not of the last step, at"
    )


def test_partly_diverged_and_noted_points_are_told_worst_first(tmp_path: Path) -> None:
    def make(point: Record, seed: int) -> Run:
        return Run(0.5, RISING, stopped=0.8 if seed == 1 and point["algo.alpha"] else None)

    notes = [
        "seed 0 at step 500: temperature: it rose",
        "seed 1 at step 700: temperature: it rose",
        "evaluation at step 3: odd",
    ]
    more = [{"kind": "note", "trial": "0000", "text": t} for t in notes]
    told = texts(section([read(tmp_path, [*sweep(make, grid(2), seeds=(0, 1)), *more])], SAY))
    starts = ("toy: the rule q_bound stopped 1 of 4", "toy: the rule temperature noted 2 of 4", "toy: other notes")
    assert [t.startswith(s) for t, s in zip(told, starts, strict=False)] == [True] * 3
    assert "at steps 500 to 700" in told[1]


def test_of_one_kind_the_most_frequent_is_told_first(tmp_path: Path) -> None:
    rules = [("0000", "lam"), ("0000", "plateau"), ("0001", "plateau")]
    notes = [{"kind": "note", "trial": t, "text": f"seed 0 at step 500: {rule}: so"} for t, rule in rules]
    told = texts(section([read(tmp_path, [*sweep(healthy, grid(2), seeds=(0,)), *notes])], SAY), "warning")
    assert ["plateau" in t for t in told] == [True, False]


def test_points_that_never_started_have_no_finding(tmp_path: Path) -> None:
    records = [r for r in sweep(healthy, grid(2), seeds=(0,)) if r["kind"] in ("plan", "session")]
    assert texts(section([read(tmp_path, records)], SAY), "bad") == []


def test_a_rule_that_this_version_does_not_know_is_told_all_the_same(tmp_path: Path) -> None:
    records = ended(list(sweep(lost, grid(1), seeds=(0,))), "0000", diverged={"0": "tomorrow: something new"})
    found = section([read(tmp_path, records)], SAY)
    assert "For example alpha=0, seed 0: something new" in only(texts(found, "bad"), "rule tomorrow")


def test_advice_names_settings_their_value_now_and_the_one_to_try(tmp_path: Path) -> None:
    s = read(tmp_path, sweep(lost, {"algo.alpha": [0.2]}, seeds=(0,), algo=ALGO))
    rows = {row[2]: tuple(row[3:]) for row in table(section([s], SAY), "advice-toy").rows}
    assert rows == {
        "algo.lr_critic": ("0.0003", "0.0001"),
        "algo.q_target_clip": ("100.0", "0.5"),  # the largest absolute value of a true Q
        "algo.bounded_critic": ("false", "true"),
        "algo.random_action_penalty": ("0.0", "1.0"),
        "algo.alpha": ("0.2", "0.067"),
    }


def test_a_soft_q_has_no_largest_value_to_clip_at(tmp_path: Path) -> None:
    algo = {"q_target_clip": 100.0, "backup_entropy": True}
    s = read(tmp_path, sweep(lost, {"algo.gamma": [0.9]}, variant="sac", seeds=(0,), algo=algo))
    assert not [b for b in section([s], SAY).blocks if getattr(b, "name", "") == "advice-toy"]


# The advice against the program it is about


def settings(variant: str) -> Iterator[dict[str, Any]]:
    """Configs of a variant: the default, and each of its choices taken."""
    flat = {"algo.name": variant, "data.files": ["x.h5"], "env.id": "X-v1"}
    choices = {"sac": ("algo.actor_loss", ["sac", "td3bc", "awr", "iql"]), "cpql": ("algo.q_grad_mode", ["whole_grad"])}
    key, values = choices.get(variant, ("train.steps", [30_000]))
    yield from ({**flat, key: v} for v in values)


def test_every_rule_and_every_failure_has_advice_and_no_other() -> None:
    assert RULES.keys() == {*JUDGED, "non_finite"}
    assert FAILURES.keys() == set(CLASSES)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_settings_exist_and_take_what_is_advised(variant: str) -> None:
    for flat in settings(variant):
        config = to_dict(resolve(flat))
        for rule in RULES:
            for key, now, new in changes(rule, config, 0.1):
                assert value_of(config, key) == (True, now), (rule, key)
                assert isinstance(new, int) or not isinstance(now, int), (rule, key)
                text = "none" if new is None else str(new).lower() if isinstance(new, bool) else str(new)
                given, problems = parse_assignments([f"{key}={text}"])
                assert not problems
                changed = to_dict(resolve(flat | given))
                assert value_of(changed, key) == (True, pytest.approx(new)), (rule, key)


def test_every_setting_that_is_advised_is_one_of_some_variant() -> None:
    known = {s.key for v in VARIANTS for s in describe(v)}
    for rule in RULES.values():
        keys = {t.key for t in rule.tries} | {t.when[0] for t in rule.tries if t.when}
        assert keys <= known


LOGGED = {
    "q_bound": ["cpql", "awcp", "dqc", "sac", "cql", "cql_dqn", "rlpd"],
    "critic_loss": ["cpql", "awcp", "sac", "cql", "cql_dqn", "rlpd"],
    "temperature": ["sac", "cql", "rlpd"],
    "weights_flat": ["awcp"],
    "weights_few": ["awcp"],
    "entropy": ["sac", "cql", "rlpd"],
    "non_finite": list(VARIANTS),
}


@pytest.mark.parametrize(("rule", "variant"), [(r, v) for r, variants in LOGGED.items() for v in variants])
def test_a_rule_that_can_fire_leaves_something_to_try(rule: str, variant: str) -> None:
    assert list(changes(rule, to_dict(resolve(next(settings(variant)))), 0.1))


@pytest.mark.parametrize(
    ("rule", "flat", "key", "try_"),
    [
        ("weights_flat", {"algo.name": "awcp"}, "algo.beta", 30.0),
        ("weights_flat", {"algo.name": "sac", "algo.actor_loss": "awr"}, "algo.awr_temperature", 0.33),
        ("weights_few", {"algo.name": "sac", "algo.actor_loss": "iql"}, "algo.iql_temperature", 3.0),
        ("temperature", {"algo.name": "sac"}, "algo.lr_temperature", 0.0),
        ("lam", {"algo.name": "sac", "algo.lam_mode": "adaptive"}, "algo.lam_mode", "const"),
        ("q_bound", {"algo.name": "cql"}, "algo.cql_alpha", 15.0),
        ("q_bound", {"algo.name": "cql_dqn"}, "algo.lr", 0.00018),
        ("q_bound", {"algo.name": "cpql"}, "algo.bounded_critic", True),
        ("critic_loss", {"algo.name": "cql"}, "algo.grad_clip", 1.0),
    ],
)
def test_the_advice_goes_the_right_way(rule: str, flat: dict[str, Any], key: str, try_: Any) -> None:
    config = to_dict(resolve({**flat, "data.files": ["x.h5"]}))
    assert {k: new for k, _, new in changes(rule, config, 0.1)}[key] == try_


def test_what_is_already_so_is_not_advised() -> None:
    flat = {"algo.name": "cpql", "data.files": ["x.h5"], "algo.bounded_critic": True, "algo.q_target_clip": 0.05}
    keys = {k for k, *_ in changes("q_bound", to_dict(resolve(flat)), 0.1)}
    assert "algo.lr_critic" in keys
    assert not keys & {"algo.bounded_critic", "algo.q_target_clip", "algo.q_grad_mode"}
