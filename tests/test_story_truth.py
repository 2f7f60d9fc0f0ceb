"""Q against truth: a planted gap is found, and nothing is explained away or averaged away."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from results_analysis.blocks import Figure, Section
from results_analysis.load import Sweep
from results_analysis.q_traps import TRAPS
from results_analysis.q_truth import section
from results_analysis.stats import Estimate
from results_analysis.words import speaker
from tests.story import by_first, only, read, table, texts
from tests.synthetic import Record, Run, sweep

SAY = speaker("en")
PAID = 0.1 * 0.99**50
"""discounted return of a success in tests/synthetic.py"""
BOUNDS = {"q_bound_low": lambda t: 0.0, "q_bound_high": lambda t: 0.1}
AXES = {"algo.alpha": [0.0, 0.2]}
TRAP_PARTS = ("backup_entropy", "conservative", "sigmoid", "expectile", "mode (sac", "chunk", "cut at")
assert len(TRAP_PARTS) == len(TRAPS)


def by_point(s: Sweep) -> dict[str, dict[str, Any]]:
    return by_first(table(section([s], SAY), f"q-truth-{s.label}"))


def planted(q: Callable[[float, int], float | None], success: float = 1.0, **run: Any) -> Callable[[Record, int], Run]:
    """q(alpha, seed)"""
    return lambda point, seed: Run(success, BOUNDS, q(point["algo.alpha"], seed), **run)


def test_a_planted_gap_comes_out_with_its_interval(tmp_path: Path) -> None:
    """Seeds at 0.30, 0.31 and 0.32 against one return: mean 0.31, t(2) = 4.3027, half-width 4.3027 * 0.01 / sqrt(3)."""
    s = read(tmp_path, sweep(planted(lambda a, i: a + 0.1 + 0.01 * i), AXES, seeds=(0, 1, 2)))
    row = by_point(s)["alpha=0.2"]
    half = 4.302653 * 0.01 / math.sqrt(3)
    gap = row["gap"]
    assert isinstance(gap, Estimate)
    assert gap.mean == pytest.approx(0.31 - PAID)
    assert gap.interval == pytest.approx((0.31 - PAID - half, 0.31 - PAID + half), rel=1e-5)
    assert gap.n == 3
    assert row["q_start"].mean == pytest.approx(0.31)
    assert row["discounted return"].mean == pytest.approx(PAID)
    assert (row["bound"], row["seeds above the bound"], row["seeds"]) == ("0 .. 0.1", "3 of 3", "3 of 3")


def test_a_q_at_its_bound_is_not_above_it(tmp_path: Path) -> None:
    s = read(tmp_path, sweep(planted(lambda a, i: 0.1 if i else 0.1001), AXES, seeds=(0, 1, 2)))
    assert by_point(s)["alpha=0"]["seeds above the bound"] == "1 of 3"


def test_one_seed_has_a_gap_and_no_interval(tmp_path: Path) -> None:
    s = read(tmp_path, sweep(planted(lambda a, i: 0.05), AXES, seeds=(0,)))
    row = by_point(s)["alpha=0"]
    assert (row["gap"].mean, row["gap"].interval) == (pytest.approx(0.05 - PAID), None)
    assert row["verdict"] == "one seed: undecided"


@pytest.mark.parametrize(
    ("slope", "verdict", "change"),
    [(0.1, "growing", 0.08), (-0.1, "shrinking", -0.08), (5e-4, "undecided", 4e-4), (-5e-4, "undecided", -4e-4)],
)
def test_a_growing_gap_is_told_from_a_shrinking_one(tmp_path: Path, slope: float, verdict: str, change: float) -> None:
    """Evaluations at 0.2, 0.4 ... 1 of 1000 updates: over them a slope of 0.1 a run adds 0.08."""
    records = list(sweep(planted(lambda a, i: 0.0), AXES, seeds=(0, 1, 2)))
    for r in records:
        if r["kind"] == "eval":
            wiggle = 0.001 * (r["seed"] - 1) * (-1) ** (r["step"] // 200)
            r["q_start"] = [1 + (slope + wiggle) * r["step"] / 1000] * r["episodes"]
    row = by_point(read(tmp_path, records))["alpha=0.2"]
    assert row["verdict"] == verdict
    assert row["growth of the gap"].mean == pytest.approx(change, abs=1e-3)


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_what_is_not_finite_is_shown_and_never_averaged_away(tmp_path: Path, odd: float) -> None:
    s = read(tmp_path, sweep(planted(lambda a, i: odd if a and i == 1 else 0.05), AXES, seeds=(0, 1, 2)))
    row = by_point(s)["alpha=0.2"]
    assert str(row["q_start"].mean) == str(row["gap"].mean) == str(odd)
    assert row["gap"].interval is None
    assert row["seeds with NaN or infinite Q"] == 1
    assert row["verdict"] == "not finite"
    assert row["seeds above the bound"] == ("0 of 2" if math.isnan(odd) else "1 of 3")
    figure = only((b.caption for b in section([s], SAY).blocks if isinstance(b, Figure)), "Not drawn")
    assert figure.endswith("alpha=0.2")


def test_points_without_a_finite_q_have_no_picture(tmp_path: Path) -> None:
    s = read(tmp_path, sweep(planted(lambda a, i: math.inf), AXES, seeds=(0, 1)))
    assert not [b for b in section([s], SAY).blocks if isinstance(b, Figure)]


def test_stopped_seeds_are_marked_and_not_averaged(tmp_path: Path) -> None:
    def make(point: Record, seed: int) -> Run:
        lost = seed < 2 and point["algo.alpha"] > 0
        return Run(1.0, BOUNDS, 9.0 if lost else 0.05, stopped=0.5 if lost or point["algo.alpha"] == 0 else None)

    s = read(tmp_path, sweep(make, AXES, seeds=(0, 1, 2)))
    rows = by_point(s)
    assert rows["alpha=0.2"]["seeds"] == "1 of 3, partly diverged"
    assert rows["alpha=0.2"]["q_start"] == (pytest.approx(0.05), None, 1)
    assert rows["alpha=0"]["seeds"] == "0 of 3, diverged"
    assert [rows["alpha=0"][c] for c in ("q_start", "gap", "verdict")] == [None] * 3
    warning = only(texts(section([s], SAY), "warning"), "were stopped")
    assert "5 seeds" in warning
    assert "5 of them by the rule q_bound" in warning


def test_variants_without_a_critic_are_named_and_have_no_table(tmp_path: Path) -> None:
    s = read(tmp_path, sweep(planted(lambda a, i: None), AXES, variant="flow_bc", seeds=(0, 1)))
    blocks = section([s], SAY).blocks
    assert [b.text for b in blocks] == ["toy: 2 points have no critic, so there is nothing to compare (flow_bc)."]  # type: ignore[union-attr]


def test_a_sweep_that_has_not_evaluated_says_so(tmp_path: Path) -> None:
    records = [r for r in sweep(planted(lambda a, i: 0.0), AXES, seeds=(0,)) if r["kind"] in ("plan", "session")]
    assert texts(section([read(tmp_path, records)], SAY)) == ["toy: nothing has been evaluated yet."]


def traps_of(found: Section) -> list[bool]:
    told = texts(found, "plain")
    return [any(part in t for t in told) for part in TRAP_PARTS]


@pytest.mark.parametrize(
    ("variant", "algo", "data", "holds"),
    [
        ("cpql", {}, {}, ()),
        ("cpql", {"random_action_penalty": 0.0, "bounded_critic": False}, {"act_horizon": 1}, ()),
        ("cpql", {"random_action_penalty": 0.5}, {}, ("conservative",)),
        ("cpql", {"bounded_critic": True}, {"act_horizon": 8}, ("sigmoid", "chunk")),
        ("dqc", {}, {}, ("sigmoid", "expectile")),
        ("sac", {"backup_entropy": True, "cql_alpha": 0.0, "actor_loss": "sac"}, {}, ("backup_entropy", "mode (sac")),
        ("sac", {"backup_entropy": False, "actor_loss": "iql"}, {}, ("expectile", "mode (sac")),
        ("cql", {"cql_alpha": 5.0}, {}, ("conservative", "mode (sac")),
        ("cql", {"cql_alpha": 0.0}, {}, ("mode (sac",)),
        ("cql_dqn", {"cql_alpha": 1.0}, {}, ("conservative",)),
    ],
)
def test_a_trap_is_told_where_it_applies_and_nowhere_else(
    tmp_path: Path, variant: str, algo: Record, data: Record, holds: tuple[str, ...]
) -> None:
    records = list(sweep(planted(lambda a, i: 0.05), AXES, variant=variant, seeds=(0, 1), algo=algo))
    for p in records[0]["points"]:
        p["config"]["data"] |= data
    assert traps_of(section([read(tmp_path, records)], SAY)) == [part in holds for part in TRAP_PARTS]


def test_cut_episodes_are_counted_and_weighed(tmp_path: Path) -> None:
    """Without a success all 100 steps are run: what would come after is worth at most 0.99^100 * 0.1 = 0.0366."""
    s = read(tmp_path, sweep(planted(lambda a, i: 0.05, success=0.0), AXES, seeds=(0, 1)))
    told = only(texts(section([s], SAY)), "cut at env.max_steps")
    assert told.startswith("toy, 2 of 2 points:")
    assert told.endswith("Up to 100% of a point's episodes were cut; here that is at most 0.037 each.")


def test_in_native_rewards_a_success_is_cut_too(tmp_path: Path) -> None:
    records = list(sweep(planted(lambda a, i: 0.05), AXES, seeds=(0, 1)))
    for r in records:
        if r["kind"] == "eval":
            r |= {"length": [100] * r["episodes"], "env": r["env"] | {"reward_mode": "native"}}
    assert "Up to 100%" in only(texts(section([read(tmp_path, records)], SAY)), "cut at env.max_steps")


def test_gaps_in_different_units_are_told(tmp_path: Path) -> None:
    make = lambda point, seed: Run(1.0, BOUNDS, 0.05)  # noqa: E731
    s = read(tmp_path / "a", sweep(make, {"algo.reward_scale": [0.1, 1.0]}, seeds=(0, 1)))
    assert only(texts(section([s], SAY), "warning"), "reward_scale differs")
    same = read(tmp_path / "b", sweep(make, AXES, seeds=(0, 1)))
    assert not [t for t in texts(section([same], SAY)) if "differs" in t]


@pytest.mark.parametrize("height", [0.05, 500.0])
def test_the_picture_is_a_png_whatever_the_size_of_q(tmp_path: Path, height: float) -> None:
    s = read(tmp_path, sweep(planted(lambda a, i: height + a + i), AXES, seeds=(0, 1)))
    (figure,) = (b for b in section([s], SAY).blocks if isinstance(b, Figure))
    assert figure.png.startswith(b"\x89PNG")
    assert figure.caption.endswith("none")
