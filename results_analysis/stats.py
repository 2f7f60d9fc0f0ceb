"""Means over seeds with 95 % intervals: small samples, so no bootstrap."""

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple

from scipy.special import stdtrit

LEVEL = 0.95


class Estimate(NamedTuple):
    mean: float
    interval: tuple[float, float] | None  # none for fewer than two seeds, or values that are not finite


def t_interval(values: Sequence[float], low: float = -math.inf, high: float = math.inf) -> tuple[float, float] | None:
    """Student's t interval of the mean, clipped to [low, high]; None for fewer than two values or any not finite."""
    n = len(values)
    if n < 2 or not all(map(math.isfinite, values)):
        return None
    half = float(stdtrit(n - 1, 0.5 + LEVEL / 2)) * stdev(values) / math.sqrt(n)
    return max(low, fmean(values) - half), min(high, fmean(values) + half)


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a success rate, from `successes` in `n` > 0 independent episodes."""
    z, p = NormalDist().inv_cdf(0.5 + LEVEL / 2), successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_over_seeds(values: Sequence[float]) -> Estimate | None:
    """Mean of one value a seed; None without values."""
    return Estimate(sum(values) / len(values), t_interval(values)) if values else None


def rate_over_seeds(episodes: Sequence[Sequence[float]]) -> Estimate | None:
    """Mean success rate of seeds, each given by its episodes' 0 or 1; None without seeds.

    Seeds that agree by luck (0 of 20 twice) give Student's t no width, which would claim certainty: the interval is
    widened to hold Wilson's for all episodes together.
    """
    if not episodes:
        return None
    rates = [fmean(e) for e in episodes]
    interval = t_interval(rates, 0.0, 1.0)
    if interval is not None:
        low, high = wilson(sum(map(sum, episodes)), sum(map(len, episodes)))
        interval = min(interval[0], low), max(interval[1], high)
    return Estimate(fmean(rates), interval)
