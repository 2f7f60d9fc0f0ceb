"""What may be said of values over a few seeds: means, differences, trends, and pools of cells, with 95 % intervals.

One cell has too few seeds for a bootstrap: it gets Student's t. Pools of cells get the stratified bootstrap. A value
that the data do not determine is nan; an interval or a p that they do not determine is None.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
from scipy import stats

from offrl_ray.intervals import LEVEL, Interval, hull, newcombe, rate_interval, t_interval, t_quantile, wilson

RESAMPLES = 2000
MOST_SEEDS = 1000
ROUNDING = 1e-9  # relative

Resampled = list[np.ndarray]  # one array (..., values) a stratum
Statistic = Callable[[Resampled], np.ndarray]  # -> (...)
Pair = tuple[Mapping[int, float], Mapping[int, float]]  # two arms, each {seed: value}


class Estimate(NamedTuple):
    mean: float
    interval: Interval | None  # none for fewer than two seeds, or values that are not finite
    n: int  # seeds; of a pool, those of its smallest cell


class Test(NamedTuple):
    effect: float
    interval: Interval | None  # none for fewer than two seeds, values that are not finite, or seeds that agree exactly
    p: float | None  # two-sided, of no effect
    n: int  # seeds or pairs; of two independent arms, the smaller one's
    method: str


def mean_over_seeds(values: Sequence[float], low: float = -math.inf, high: float = math.inf) -> Estimate | None:
    """Mean of one value a seed, each from `low` to `high`; None without values."""
    return Estimate(sum(values) / len(values), t_interval(values, low, high), len(values)) if values else None


def rate_over_seeds(episodes: Sequence[Sequence[float]]) -> Estimate | None:
    """Mean success rate of seeds, each given by its episodes' 0 or 1; None without seeds."""
    if not episodes:
        return None
    rates = [fmean(e) for e in episodes]
    interval = rate_interval(rates, sum(map(sum, episodes)), sum(map(len, episodes)))
    return Estimate(fmean(rates), interval, len(rates))


def sign_rate(values: Sequence[float]) -> Estimate:
    """Share of values above zero, with Wilson's interval; nan if one of them is."""
    n, positive = len(values), sum(v > 0 for v in values)
    if n == 0 or any(map(math.isnan, values)):
        return Estimate(math.nan, None, n)
    return Estimate(positive / n, wilson(positive, n) if n > 1 else None, n)


# Pools of cells


def iqm(values: Sequence[float]) -> float:
    """Interquartile mean: of the middle half, the lowest and the highest floor(n / 4) values left out.

    Agarwal et al., NeurIPS 2021, section 4.3. Of fewer than four values it is the mean.
    """
    return float(iqm_of_pool([np.asarray(values, float)])) if len(values) else math.nan


def iqm_of_pool(strata: Resampled) -> np.ndarray:
    """Interquartile mean of all values of all strata together."""
    return stats.trim_mean(np.concatenate(strata, axis=-1), 0.25, axis=-1)


def mean_of_cells(strata: Resampled) -> np.ndarray:
    """Mean over the strata of their means, however many values each has."""
    return np.mean([s.mean(axis=-1) for s in strata], axis=0)


def stratified_bootstrap(strata: Sequence[Sequence[float]], statistic: Statistic = iqm_of_pool) -> Estimate:
    """A statistic of several cells (strata), each given by its seeds' values.

    The interval is the percentile interval over RESAMPLES resamples, in each of which every stratum draws its own seeds
    anew, independently of the others (Agarwal et al., NeurIPS 2021, section 4.1). It is too narrow for few seeds in few
    strata. Every call draws the same random numbers. A pool with an empty stratum is nan: a missing cell is the
    caller's to leave out.
    """
    arrays = [np.asarray(s, float) for s in strata]
    n = min(map(len, arrays), default=0)
    if n == 0:
        return Estimate(math.nan, None, 0)
    value = float(statistic(arrays))
    if n < 2 or not all(np.isfinite(a).all() for a in arrays):
        return Estimate(value, None, n)
    random = np.random.default_rng(0)
    drawn = statistic([a[random.integers(len(a), size=(RESAMPLES, len(a)))] for a in arrays])
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, (float(low), float(high)), n)


def probability_of_improvement(
    a: Sequence[float] | Sequence[Sequence[float]], b: Sequence[float] | Sequence[Sequence[float]]
) -> Estimate:
    """P(A > B) + P(A = B) / 2 for a seed of A and one of B, averaged over matched cells if given lists of cells.

    Agarwal et al., NeurIPS 2021, section 4.3. The interval is of `stratified_bootstrap`; where every seed of A beats
    every one of B it has no width, however few they are. Raises ValueError if the cells do not match.
    """
    cells_a, cells_b = _cells(a), _cells(b)
    if len(cells_a) != len(cells_b):
        raise ValueError(f"{len(cells_a)} cells of A, but {len(cells_b)} of B")

    def improved(strata: Resampled) -> np.ndarray:
        pairs = zip(strata[: len(cells_a)], strata[len(cells_a) :], strict=True)
        gaps = [np.sign(x[..., :, None] - y[..., None, :]) for x, y in pairs]
        return np.mean([(1 + g.mean(axis=(-2, -1))) / 2 for g in gaps], axis=0)

    return stratified_bootstrap([*cells_a, *cells_b], improved)


def _cells(values: Sequence[float] | Sequence[Sequence[float]]) -> list[Sequence[float]]:
    cells = [v for v in values if isinstance(v, Sequence)]
    return cells or [[float(v) for v in values if not isinstance(v, Sequence)]]


def expected_best(values: Sequence[float], budgets: Sequence[int]) -> list[float]:
    """Expected maximum of k configurations drawn from the N tried, for every k of `budgets`: all of them without
    replacement and equally likely, which is exact and reaches the maximum at k = N.

    Expected online performance (Kurenkov & Kolesnikov, ICML 2022) under uniform selection, except that their code draws
    with replacement, which never reaches the maximum. The i-th smallest value is the maximum with probability
    C(i - 1, k - 1) / C(N, k). Raises ValueError for a budget outside 1..N.
    """
    ordered, n = np.sort(np.asarray(values, float)), len(values)
    if wrong := [k for k in budgets if not 1 <= k <= n]:
        raise ValueError(f"budgets must be from 1 to {n}, the values given, but got {wrong}")
    i = np.arange(n, 1, -1)  # the probability of the (i - 1)-th smallest is that of the i-th times (i - k) / (i - 1)
    weights = [k / n * np.cumprod(np.append(1.0, np.maximum(i - k, 0) / (i - 1)))[::-1] for k in budgets]
    return [float(w @ ordered) for w in weights]


# Two arms


def difference(a: Sequence[float], b: Sequence[float], episodes: int | None = None) -> Test:
    """mean(a) - mean(b) of independent seeds, by Welch's t with Welch and Satterthwaite's degrees of freedom.

    `episodes`: for success rates, those of each seed; the interval is then never narrower than Newcombe's over all.
    """
    n, method = min(len(a), len(b)), "Welch's t over seeds"
    if n == 0:
        return Test(math.nan, None, None, 0, method)
    found = Test(fmean(a) - fmean(b), None, None, n, method)
    if n > 1 and math.isfinite(found.effect):
        u, v = stdev(a) ** 2 / len(a), stdev(b) ** 2 / len(b)
        if not _agree(math.sqrt(u + v), [*a, *b]):
            degrees = (u + v) ** 2 / (u**2 / (len(a) - 1) + v**2 / (len(b) - 1))
            found = _student(found, math.sqrt(u + v), degrees)
    return found if episodes is None else _widened(found, (a, b), episodes)


def paired_difference(a: Mapping[int, float], b: Mapping[int, float], episodes: int | None = None) -> Test:
    """Mean of a - b over the seeds that both arms have, by Student's t; `episodes` as for `difference`."""
    return pooled_paired([(a, b)], episodes)


def pooled_paired(pairs: Sequence[Pair], episodes: int | None = None) -> Test:
    """`paired_difference` of several matched cells: Student's t over the seeds' means over the cells.

    The seeds count, not seeds times cells: cells share their seeds, and so are not independent.
    """
    values, method = differences(pairs), "Student's t over pairs by seed"
    n = len(values)
    if n == 0:
        return Test(math.nan, None, None, 0, method)
    seeds = _common(pairs)
    arms = [x[s] for x, _ in pairs for s in seeds], [y[s] for _, y in pairs for s in seeds]
    found = Test(fmean(values), None, None, n, method)
    if n > 1 and math.isfinite(found.effect):
        error = stdev(values) / math.sqrt(n)
        if not _agree(error, [*arms[0], *arms[1]]):
            found = _student(found, error, n - 1)
    return found if episodes is None else _widened(found, arms, episodes)


def differences(pairs: Sequence[Pair]) -> list[float]:
    """Per seed, the mean of a - b over the cells; only of seeds that every cell has in both arms."""
    return [fmean(x[s] - y[s] for x, y in pairs) for s in _common(pairs)]


def _common(pairs: Sequence[Pair]) -> list[int]:
    return sorted(set.intersection(*(set(x) & set(y) for x, y in pairs))) if pairs else []


def _agree(error: float, values: Sequence[float]) -> bool:
    """True if a standard error is the values' rounding, and no spread of the seeds."""
    return error <= ROUNDING * max(map(abs, values))


def _student(test: Test, error: float, degrees: float) -> Test:
    half = t_quantile(degrees) * error
    p = 2 * float(stats.t.sf(abs(test.effect) / error, degrees))
    return test._replace(interval=(test.effect - half, test.effect + half), p=p)


def _widened(test: Test, arms: tuple[Sequence[float], Sequence[float]], episodes: int) -> Test:
    """Seeds that agree by luck leave t no width: the interval must hold Newcombe's, with every episode for itself."""
    if test.n < 2 or not math.isfinite(test.effect):
        return test
    totals = len(arms[0]) * episodes, len(arms[1]) * episodes
    wide = newcombe((sum(arms[0]) * episodes, sum(arms[1]) * episodes), totals)
    low, high = hull(test.interval, wide) if test.interval else wide
    method = f"{test.method}, never narrower than Newcombe's over episodes"
    return test._replace(interval=(max(-1.0, low), min(1.0, high)), method=method)


def minimal_detectable(effect: float, sd: float, threshold: float = 0.0) -> int | None:
    """How many seeds would decide on which side of `threshold` an effect lies, were it and its `sd` over seeds (of
    `differences`, for pairs) as observed: the fewest whose 95 % t half-width is below the distance.

    An order of magnitude: the sd of a few seeds is itself uncertain. None if MOST_SEEDS would not do, or one is nan.
    """
    distance = abs(effect - threshold)
    enough = (n for n in range(2, MOST_SEEDS + 1) if t_quantile(n - 1) * sd / math.sqrt(n) < distance)
    return next(enough, None)


# Trends


def trend(rows: Mapping[int, Sequence[float]], x: Sequence[float]) -> Test:
    """Whether values rise (+1) or fall (-1) with the level: Spearman's rho with x per seed, averaged over seeds.

    rows {seed: one value at each level}, x the levels. A seed whose values are all equal has rho 0; where all seeds are
    such, there is no interval. It is Student's t over seeds, clipped to [-1, 1] (Fisher's z is infinite where rho is 1,
    as it often is with few levels); p is of Page's L test, the smaller side doubled. Where p exceeds 5 % the interval
    is widened to hold 0: seeds that agree by luck would leave it no width. nan for fewer than three levels, or a value
    that is. Raises ValueError for a row of another length than x, and for equal levels.
    """
    if len(set(x)) < len(x) or any(len(r) != len(x) for r in rows.values()):
        raise ValueError(f"every seed needs one value at each of the different levels {list(x)}")
    n, method = len(rows), "Spearman's rho per seed, Student's t over seeds; Page's L"
    if len(x) < 3 or n == 0:
        return Test(math.nan, None, None, n, method)
    ranks = stats.rankdata(list(rows.values()), axis=1)
    rhos = [_correlation(r, stats.rankdata(x)) for r in ranks]
    interval = t_interval(rhos, -1.0, 1.0)
    if interval is None:
        return Test(fmean(rhos), None, None, n, method)
    up = stats.rankdata(x).astype(int)
    sides = [stats.page_trend_test(ranks, ranked=True, predicted_ranks=r) for r in (up, len(x) + 1 - up)]
    p = min(1.0, 2 * min(float(s.pvalue) for s in sides))
    flat = (ranks == ranks[:, :1]).all()
    wide = None if flat else hull(interval, (0.0, 0.0)) if p > 1 - LEVEL else interval
    return Test(fmean(rhos), wide, p, n, f"{method} ({sides[0].method})")


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / math.sqrt((a @ a) * (b @ b))) if a.any() else 0.0


def slope(curve: Sequence[tuple[float, float]]) -> float:
    """Theil-Sen slope of one seed's (x, y) curve: the median of all slopes between two of its points.

    nan for fewer than two different x, or values that are not finite.
    """
    x, y = np.array(curve, float).reshape(-1, 2).T
    if len(set(x)) < 2 or not np.isfinite([x, y]).all():
        return math.nan
    i, j = np.triu_indices(len(x), 1)
    i, j = i[x[i] != x[j]], j[x[i] != x[j]]
    return float(np.median((y[j] - y[i]) / (x[j] - x[i])))  # scipy's has intervals, and takes three times as long
