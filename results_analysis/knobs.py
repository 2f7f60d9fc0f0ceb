"""Which knob matters: sensitivity, importance, expected best and coordinates of the points that a sweep tried.

Everywhere a seed that diverged counts as the worst value that any seed of the given points reached (Optuna's default,
to leave it out, hides the knob that makes runs diverge), and the number of such seeds stands beside the result.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from offrl_ray.errors import UsageError
from results_analysis.stats import Estimate, expected_best, mean_of_cells, mean_over_seeds, stratified_bootstrap

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

BINS = 6
POINTS_A_BIN = 5
FEWEST_POINTS = 30
TOP_SHARE = 0.4
PERMUTATIONS = 99

Domain = Mapping[str, Any]  # as the plan records it: {kind: choice, values} or {kind: float | int, low, high, log}


class Point(NamedTuple):
    """A point that was run to its end. Others are the caller's to leave out, and to count."""

    point: Mapping[str, Any]  # lacks the axes that are inert here
    values: Sequence[float]  # one a seed; nan or infinite: it diverged


class Level(NamedTuple):
    """A value of an axis, or a part of its range, from `low` to `high`; they are one at a single value."""

    low: Any
    high: Any
    points: int
    diverged: int  # seeds
    mean: Estimate  # over the points here: how good the value is when the others are as tried
    best: Estimate  # of the best point here: how good it is when the others are tuned


class Sensitivity(NamedTuple):
    axis: str
    levels: list[Level]
    inert: int  # points where the axis has no effect; they are at none of the levels


Refusal = Literal["", "few points", "equal values", "no axis differs"]


class Importance(NamedTuple):
    shares: dict[str, float]  # the largest first; they sum to 1, or there are none
    refused: Refusal  # why there are none
    p: dict[str, float]  # axis -> how often shuffled values give it as much; above 0.05 its share may be noise
    points: int
    top: int  # the best ones, which the shares explain
    diverged: int  # points with at least one seed that diverged
    inert: dict[str, int]  # axis -> points where it has no effect, for the axes that have some


class Row(NamedTuple):
    """A line of a parallel-coordinates plot."""

    point: Mapping[str, Any]
    coordinates: dict[str, float | None]  # axis -> 0 to 1; None where it is inert
    value: float  # mean over the seeds
    n: int
    diverged: int  # seeds


def domains_of(plan: Mapping[str, Any]) -> dict[str, Domain]:
    """What every axis could be: the values of the grid's, and the domains that were searched."""
    grid = {k: {"kind": "choice", "values": list(v)} for k, v in plan["axes"].items() if len(v) > 1}
    return {**grid, **(plan.get("domains") or {})}


def sensitivity(
    points: Sequence[Point],
    domains: Mapping[str, Domain],
    mode: str = "max",
    low: float = -math.inf,
    high: float = math.inf,
) -> list[Sensitivity]:
    """Per axis, at each of its values or quantile bins, the mean and the best over the other axes.

    Both, since the best alone hides how brittle a value is (Patterson et al., JMLR 2024). A searched range has up to
    BINS bins of about equally many points, POINTS_A_BIN or more on average, or a level for each of its values if those
    are as few. The mean's interval is a bootstrap over seeds inside points: the points themselves are taken as they
    were tried. The best's is Student's t over that point's seeds, clipped to [low, high] and not corrected for its
    having been selected. `mode`: max or min, what is better.
    Raises UsageError for a point outside the domains.
    """
    _check(points, domains)
    filled = _filled(points, mode)
    return [_sensitivity(axis, domain, points, filled, mode, low, high) for axis, domain in domains.items()]


def importance(points: Sequence[Point], domains: Mapping[str, Domain], mode: str = "max") -> Importance:
    """How much each axis decides whether a point is among the best TOP_SHARE, as shares of 1.

    PED-ANOVA (Watanabe, Bansal & Hutter, IJCAI 2023), by Optuna: how far the distribution of the axis among the best
    points is from that among all, so that a search's own preferences cancel. Optuna's own choice, the best tenth, is
    too few of some dozens of points: noise in an axis of many values then outranks one of few that matters. The shares
    sum to 1 even where no axis matters: `p`, of a permutation test with PERMUTATIONS draws, tells which to believe.

    An axis that is inert at some points is judged by the others, weighted by how many of the best are among them
    (conditional PED-ANOVA); one that is inert at all has share 0. Raises UsageError for a point outside the domains.
    """
    _check(points, domains)
    losses = [fmean(v) if mode == "min" else -fmean(v) for v in _filled(points, mode)]
    top = _top(losses) if losses else 0
    refused: Refusal = ""
    shares, p = dict[str, float](), dict[str, float]()
    if len(points) < FEWEST_POINTS:
        refused = "few points"
    elif top == 0:
        refused = "equal values"
    else:
        shares, p = _shares(points, losses, domains, top)
        if not shares:
            refused = "no axis differs"
    diverged = sum(_diverged(point) > 0 for point in points)
    gone = {k: sum(k not in point.point for point in points) for k in domains}
    return Importance(shares, refused, p, len(points), top, diverged, {k: n for k, n in gone.items() if n})


def best_by_budget(points: Sequence[Point], mode: str = "max") -> list[tuple[int, float]]:
    """(k, the expected best of k points drawn from those tried), k = 1..N; see `stats.expected_best`.

    Optimistic: the seeds that choose the best also score it.
    """
    sign = -1 if mode == "min" else 1
    budgets = range(1, len(points) + 1)
    found = expected_best([sign * fmean(v) for v in _filled(points, mode)], budgets)
    return [(k, sign * v) for k, v in zip(budgets, found, strict=True)]


def coordinates(points: Sequence[Point], domains: Mapping[str, Domain], mode: str = "max") -> list[Row]:
    """One row a point: each axis scaled to 0..1, a searched range by its (log) ends, listed values evenly in order.

    Raises UsageError for a point outside the domains.
    """
    _check(points, domains)
    rows = []
    for p, values in zip(points, _filled(points, mode), strict=True):
        at = {k: _coordinate(d, p.point[k]) if k in p.point else None for k, d in domains.items()}
        rows.append(Row(p.point, at, fmean(values), len(values), _diverged(p)))
    return rows


def _check(points: Sequence[Point], domains: Mapping[str, Domain]) -> None:
    problems = [
        f"a point has {k} = {p.point[k]!r}, but the plan has {dict(d)}: the records disagree with their plan"
        for p in points
        for k, d in domains.items()
        if k in p.point and not _holds(d, p.point[k])
    ]
    if problems:
        raise UsageError(problems)


def _holds(domain: Domain, value: Any) -> bool:
    if domain["kind"] == "choice":
        return value in domain["values"]
    return isinstance(value, int | float) and bool(domain["low"] <= value <= domain["high"])


def _diverged(point: Point) -> int:
    return sum(not math.isfinite(v) for v in point.values)


def _filled(points: Sequence[Point], mode: str) -> list[list[float]]:
    """The points' values, the worst finite one in place of those that diverged.

    Raises ValueError if there is no finite one, or a point without seeds.
    """
    known = [v for p in points for v in p.values if math.isfinite(v)]
    if points and (not known or not all(p.values for p in points)):
        raise ValueError("every point needs a seed, and at least one seed a value")
    worst = (max if mode == "min" else min)(known, default=math.nan)
    return [[v if math.isfinite(v) else worst for v in p.values] for p in points]


def _sensitivity(
    axis: str,
    domain: Domain,
    points: Sequence[Point],
    filled: list[list[float]],
    mode: str,
    low: float,
    high: float,
) -> Sensitivity:
    active = [i for i, p in enumerate(points) if axis in p.point]
    levels = []
    for part in _parts([points[i].point[axis] for i in active], domain):
        here = [active[i] for i in part]
        ends = [points[i].point[axis] for i in here]
        values = [filled[i] for i in here]
        best = mean_over_seeds((min if mode == "min" else max)(values, key=fmean), low, high)
        assert best is not None  # `_filled` leaves no point without a seed
        diverged = sum(_diverged(points[i]) for i in here)
        span = (ends[0], ends[0]) if domain["kind"] == "choice" else (min(ends), max(ends))
        levels.append(Level(*span, len(here), diverged, stratified_bootstrap(values, mean_of_cells), best))
    return Sensitivity(axis, levels, len(points) - len(active))


def _parts(values: Sequence[Any], domain: Domain) -> list[list[int]]:
    """Which of the values stand at each listed value, or in each quantile bin of a range; without the empty ones."""
    bins = max(1, min(BINS, len(values) // POINTS_A_BIN))
    known = domain["values"] if domain["kind"] == "choice" else sorted(set(values))
    if domain["kind"] == "choice" or len(known) <= bins:
        found = [[i for i, v in enumerate(values) if v == k] for k in known]
    else:
        inner = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1])
        place = np.searchsorted(inner, values)
        found = [np.flatnonzero(place == b).tolist() for b in range(bins)]
    return [part for part in found if part]


def _coordinate(domain: Domain, value: Any) -> float:
    if domain["kind"] == "choice":
        return domain["values"].index(value) / max(1, len(domain["values"]) - 1)
    scale = math.log if domain["log"] else float
    low, high = scale(domain["low"]), scale(domain["high"])
    return (scale(value) - low) / (high - low)


def _top(losses: Sequence[float]) -> int:
    """How many points are the best: TOP_SHARE of them and their equals, but none that is as bad as the worst."""
    worst, cutoff = max(losses), sorted(losses)[math.ceil(TOP_SHARE * len(losses)) - 1]
    return sum(v <= cutoff and v < worst for v in losses)


def _shares(
    points: Sequence[Point], losses: Sequence[float], domains: Mapping[str, Domain], top: int
) -> tuple[dict[str, float], dict[str, float]]:
    """PED-ANOVA's shares, the largest first, and their p; none if no axis has any."""
    import optuna  # only large sweeps need it

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    active = [k for k in domains if any(k in p.point for p in points)]
    spread = {k: _distribution(domains[k]) for k in active}
    for p, loss in zip(points, losses, strict=True):
        at = {k: _label(domains[k], p.point[k]) for k in active if k in p.point}
        study.add_trial(optuna.create_trial(params=at, distributions={k: spread[k] for k in at}, value=loss))
    target = (top - 0.5) / len(points)  # which Optuna rounds up to the top-th
    evaluator, random = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=target), np.random.default_rng(0)

    def divergence(values: Sequence[float]) -> dict[str, float]:
        return evaluator.evaluate(study, active, target=lambda trial: float(values[trial.number]))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of `target`, and of axes inert at all points but one, which `inert` tells
        found = divergence(losses)
        total = sum(found.values())
        if not total:
            return {}, {}
        chance = [divergence(random.permutation(losses).tolist()) for _ in range(PERMUTATIONS)]
    shares = {k: found.get(k, 0.0) / total for k in domains}
    p_values = {k: (1 + sum(c[k] >= v for c in chance)) / (1 + PERMUTATIONS) for k, v in found.items()}
    return dict(sorted(shares.items(), key=lambda share: -share[1])), p_values


def _label(domain: Domain, value: Any) -> Any:
    """The value as Optuna takes it, which knows no lists: one of a few by its place."""
    return domain["values"].index(value) if domain["kind"] == "choice" else value


def _distribution(domain: Domain) -> "BaseDistribution":
    from optuna import distributions

    if domain["kind"] == "choice":
        return distributions.CategoricalDistribution(range(len(domain["values"])))
    kind = distributions.IntDistribution if domain["kind"] == "int" else distributions.FloatDistribution
    return kind(domain["low"], domain["high"], log=domain["log"])
