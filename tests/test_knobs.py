import itertools
import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from offrl_ray.errors import UsageError
from offrl_ray.intervals import t_interval
from results_analysis.knobs import Domain, Point, best_by_budget, coordinates, domains_of, importance, sensitivity

LR: Domain = {"kind": "float", "low": 1e-4, "high": 1.0, "log": True}
WIDTH: Domain = {"kind": "int", "low": 1, "high": 9, "log": False}
MODE: Domain = {"kind": "choice", "values": ["a", "b", [1, 2]]}
SPACE = {"algo.lr": LR, "algo.width": WIDTH, "algo.mode": MODE}


def drawn(n: int, value: Callable[[dict[str, Any]], float], noise: float = 0.05) -> list[Point]:
    """Points all over SPACE, each with three seeds."""
    random = np.random.default_rng(0)
    points = []
    for _ in range(n):
        p: dict[str, Any] = {"algo.lr": 10 ** random.uniform(-4, 0), "algo.width": int(random.integers(1, 10))}
        p["algo.mode"] = MODE["values"][random.integers(3)]
        points.append(Point(p, (value(p) + random.normal(0, noise, 3)).tolist()))
    return points


def peak(p: dict[str, Any]) -> float:
    """Best at lr = 0.01; nothing else matters."""
    return -((math.log10(p["algo.lr"]) + 2) ** 2)


GRID: dict[str, Domain] = {
    "x": {"kind": "choice", "values": [0.0, 0.1, 1.0]},
    "y": {"kind": "choice", "values": ["p", "q"]},
}
CELLS = [
    Point({"x": 0.0, "y": "p"}, [0.1, 0.3]),
    Point({"x": 0.0, "y": "q"}, [0.5, 0.5]),
    Point({"x": 0.1, "y": "p"}, [0.2, math.nan]),
    Point({"x": 0.1, "y": "q"}, [0.9, 0.7]),
    Point({"x": 1.0}, [0.6, 0.6]),
]


def test_a_plan_has_axes_and_domains() -> None:
    plan = {"axes": {"algo.alpha": [0.0, 1.0], "algo.one": [3]}, "domains": {"algo.lr": LR}}
    assert domains_of(plan) == {"algo.alpha": {"kind": "choice", "values": [0.0, 1.0]}, "algo.lr": LR}
    assert list(domains_of({"axes": {"x": [1, 2]}, "domains": None})) == ["x"]


# -- sensitivity


def test_mean_and_best_over_the_others_by_hand() -> None:
    x, y = sensitivity(CELLS, GRID)
    assert [(level.low, level.high, level.points, level.diverged) for level in x.levels] == [
        (0.0, 0.0, 2, 0),
        (0.1, 0.1, 2, 1),
        (1.0, 1.0, 1, 0),
    ]
    # the diverged seed counts 0.1, the worst of all seeds
    assert [level.mean.mean for level in x.levels] == pytest.approx([0.35, (0.15 + 0.8) / 2, 0.6])
    assert [level.best.mean for level in x.levels] == pytest.approx([0.5, 0.8, 0.6])
    assert x.levels[1].best.interval == pytest.approx(t_interval([0.9, 0.7]))
    assert {level.mean.n for level in x.levels} == {2}
    assert (x.inert, y.inert) == (0, 1)
    assert [level.points for level in y.levels] == [2, 2]


def test_what_is_better_may_be_less() -> None:
    x, _ = sensitivity(CELLS, GRID, "min")
    assert [level.best.mean for level in x.levels] == pytest.approx([0.2, (0.2 + 0.9) / 2, 0.6])


def test_intervals_stay_in_their_bounds() -> None:
    x, _ = sensitivity(CELLS, GRID, low=0.0, high=1.0)
    assert x.levels[1].best.interval == (0.0, 1.0)
    free, _ = sensitivity(CELLS, GRID)
    assert free.levels[1].best.interval
    assert free.levels[1].best.interval[1] > 1


def test_one_seed_has_no_interval() -> None:
    x, _ = sensitivity([Point(p.point, p.values[:1]) for p in CELLS], GRID)
    assert [(level.mean[1:], level.best[1:]) for level in x.levels] == [((None, 1), (None, 1))] * 3


def test_a_range_has_quantile_bins() -> None:
    points = drawn(62, peak)
    lr, width, mode = sensitivity(points, SPACE)
    assert [level.points for level in lr.levels] == pytest.approx([62 / 6] * 6, abs=1)
    assert sum(level.points for level in lr.levels) == 62
    assert all(a.high < b.low for axis in (lr, width) for a, b in itertools.pairwise(axis.levels))
    middle = [fmean(p.values) for p in points if lr.levels[2].low <= p.point["algo.lr"] <= lr.levels[2].high]
    assert lr.levels[2].mean.mean == pytest.approx(fmean(middle))
    assert lr.levels[2].best.mean == pytest.approx(max(middle))
    assert [level.low for level in mode.levels] == MODE["values"]
    assert len(sensitivity(points[:12], SPACE)[0].levels) == 2
    assert len(sensitivity(points[:3], SPACE)[0].levels) == 1


def test_a_range_of_which_few_values_were_tried_has_a_level_for_each() -> None:
    """Quantiles of ten values, six of them 1, would put them all into one bin."""
    points = [Point({"algo.width": w}, [float(w)]) for w in [1] * 6 + [7] * 4]
    (width,) = sensitivity(points, {"algo.width": WIDTH})
    assert [(level.low, level.high, level.points) for level in width.levels] == [(1, 1, 6), (7, 7, 4)]


def test_a_range_that_is_inert_everywhere_has_no_levels() -> None:
    (found,) = sensitivity([Point({}, [1.0])], {"algo.lr": LR})
    assert (found.levels, found.inert) == ([], 1)


# -- importance


def test_the_knob_that_matters_is_first() -> None:
    found = importance(drawn(120, peak), SPACE)
    assert next(iter(found.shares)) == "algo.lr"
    assert found.shares["algo.lr"] > 0.8
    assert sum(found.shares.values()) == pytest.approx(1)
    assert list(found.shares.values()) == sorted(found.shares.values(), reverse=True)
    assert (found.points, found.top, found.diverged, found.refused, found.inert) == (120, 48, 0, "", {})
    assert found.p["algo.lr"] == 0.01
    assert min(found.p["algo.width"], found.p["algo.mode"]) > 0.05


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_choice_outranks_noise_in_axes_of_many_values(mode: str) -> None:
    """Among the best tenth of 60 points, as Optuna would have it, width comes first, whatever is better."""
    points = drawn(60, lambda p: -1.0 if p["algo.mode"] == [1, 2] else 0.0)
    found = importance(points, SPACE, mode)
    assert next(iter(found.shares)) == "algo.mode"
    assert found.p["algo.mode"] == 0.01
    assert found.top == 24
    mirror = [Point(p.point, [-v for v in p.values]) for p in points]
    assert importance(mirror, SPACE, {"min": "max", "max": "min"}[mode]).shares == pytest.approx(found.shares)


def test_noise_has_shares_but_no_small_p() -> None:
    found = importance(drawn(60, lambda p: 0.0), SPACE)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert min(found.p.values()) > 0.05


def test_refused_below_thirty() -> None:
    found = importance(drawn(29, peak), SPACE)
    assert (found.shares, found.p) == ({}, {})
    assert found.refused == "few points"
    assert importance(drawn(30, peak), SPACE).shares
    assert importance(drawn(30, peak), SPACE).top == 12
    assert (importance([], SPACE).refused, importance([], SPACE).points) == ("few points", 0)


def test_points_that_are_all_alike_have_no_importance() -> None:
    alike = [Point(p.point, [0.0, 0.0]) for p in drawn(40, peak)]
    found = importance(alike, SPACE)
    assert found.shares == {}
    assert found.refused == "equal values"


def test_the_knob_that_makes_runs_diverge_is_seen() -> None:
    """Where they live, points are alike up to noise; left out, the diverged ones would tell nothing about lr."""
    lost = [Point(p.point, [math.nan] * 3) if p.point["algo.lr"] > 3e-3 else p for p in drawn(120, lambda p: 1.0)]
    found = importance(lost, SPACE)
    assert next(iter(found.shares)) == "algo.lr"
    assert found.p["algo.lr"] == 0.01
    assert found.diverged == sum(p.point["algo.lr"] > 3e-3 for p in lost) > 60
    known = [p for p in lost if not math.isnan(p.values[0])]
    assert importance(known, SPACE).p["algo.lr"] > 0.05


def test_the_best_are_never_the_worst() -> None:
    """Of 40 points only those with width 9 ever succeed: the best two fifths would hold every failure."""
    points = [Point(p.point, [float(p.point["algo.width"] == 9)]) for p in drawn(40, peak)]
    found = importance(points, SPACE)
    assert found.top == sum(p.values[0] for p in points) < 16
    assert next(iter(found.shares)) == "algo.width"


def test_an_infinite_value_has_diverged() -> None:
    points = drawn(40, peak)
    points[0] = Point(points[0].point, [math.inf, 0.0, 0.0])
    assert importance(points, SPACE).diverged == 1
    assert max(r.value for r in coordinates(points, SPACE)) < 0.2


def gated(n: int) -> list[Point]:
    """Where width is at most 5 there is no lr, and values vary as much as where there is one, for no reason."""
    points = drawn(n, peak)
    return [p if p.point["algo.width"] > 5 else Point(_without(p.point, "algo.lr"), p.values) for p in points]


def _without(point: Any, key: str) -> dict[str, Any]:
    return {k: v for k, v in point.items() if k != key}


def test_an_axis_that_is_inert_somewhere_is_judged_where_it_acts() -> None:
    points = gated(120)
    found = importance(points, SPACE)
    assert next(iter(found.shares)) == "algo.lr"
    assert found.p["algo.lr"] == 0.01
    assert found.inert == {"algo.lr": sum(p.point["algo.width"] <= 5 for p in points)}
    assert sensitivity(points, SPACE)[0].inert == found.inert["algo.lr"]


def test_an_axis_that_is_inert_everywhere_has_no_share() -> None:
    points = [Point(_without(p.point, "algo.mode"), p.values) for p in drawn(60, peak)]
    found = importance(points, SPACE)
    assert found.shares["algo.mode"] == 0.0
    assert list(found.shares)[-1] == "algo.mode"
    assert found.inert == {"algo.mode": 60}
    nothing = importance([Point({}, p.values) for p in points], SPACE)
    assert nothing.shares == {}
    assert nothing.refused == "no axis differs"


# -- budget and coordinates


def test_best_by_budget_is_that_of_all_draws() -> None:
    means = [0.2, 0.5, 0.15, 0.8, 0.6]
    found = best_by_budget(CELLS)
    every = [fmean(map(max, itertools.combinations(means, k))) for k in range(1, 6)]
    assert found == [(k, pytest.approx(v)) for k, v in enumerate(every, 1)]
    least = [fmean(map(min, itertools.combinations([*means[:2], 0.55, *means[3:]], k))) for k in range(1, 6)]
    assert best_by_budget(CELLS, "min") == [(k, pytest.approx(v)) for k, v in enumerate(least, 1)]
    assert best_by_budget([]) == []


def test_coordinates() -> None:
    space = {**SPACE, "algo.alpha": {"kind": "choice", "values": [0.0, 0.05, 3.0]}}
    point = {"algo.lr": 0.01, "algo.width": 3, "algo.alpha": 0.05}
    (row,) = coordinates([Point(point, [0.2, math.nan, 0.6])], space)
    assert row.coordinates == {"algo.lr": pytest.approx(0.5), "algo.width": 0.25, "algo.mode": None, "algo.alpha": 0.5}
    assert (row.value, row.n, row.diverged) == (pytest.approx((0.2 + 0.2 + 0.6) / 3), 3, 1)
    ends = coordinates([Point({"algo.lr": v}, [1.0]) for v in (1e-4, 1.0)], space)
    assert [r.coordinates["algo.lr"] for r in ends] == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("use", [sensitivity, importance, coordinates])
def test_points_that_their_plan_does_not_know(use: Callable[..., Any]) -> None:
    bad = [Point({"algo.lr": 2.0}, [1.0]), Point({"algo.mode": "c"}, [1.0]), Point({"algo.lr": "high"}, [1.0])]
    with pytest.raises(UsageError) as e:
        use(bad, SPACE)
    assert len(e.value.problems) == 3
    assert "algo.lr = 2.0" in e.value.problems[0]


def test_points_without_any_value() -> None:
    for bad in ([Point({}, [math.nan])], [Point({}, []), Point({}, [1.0])]):
        with pytest.raises(ValueError, match="needs a seed"):
            best_by_budget(bad)
