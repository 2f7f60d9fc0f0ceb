"""95 % intervals of means and of success rates, for the sweep's own summary and for the analysis of its records."""

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

LEVEL = 0.95
Interval = tuple[float, float]


def t_quantile(degrees: float) -> float:
    """How many standard errors Student's t interval reaches to either side."""
    from scipy.special import stdtrit  # the command line answers without it

    return float(stdtrit(degrees, 0.5 + LEVEL / 2))


def t_interval(values: Sequence[float], low: float = -math.inf, high: float = math.inf) -> Interval | None:
    """Student's t interval of the mean, clipped to [low, high]; None for fewer than two values or any not finite."""
    n = len(values)
    if n < 2 or not all(map(math.isfinite, values)):
        return None
    half = t_quantile(n - 1) * stdev(values) / math.sqrt(n)
    return max(low, fmean(values) - half), min(high, fmean(values) + half)


def wilson(successes: float, n: int) -> Interval:
    """Wilson's score interval of a success rate, from `successes` in `n` > 0 independent episodes."""
    z, p = NormalDist().inv_cdf(0.5 + LEVEL / 2), successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    return max(0.0, centre - half), min(1.0, centre + half)


def newcombe(successes: tuple[float, float], n: tuple[int, int]) -> Interval:
    """Interval of the first success rate minus the second, from Wilson's of each, independent episodes.

    Newcombe, Statistics in Medicine 17:873 (1998), method 10.
    """
    p, q = successes[0] / n[0], successes[1] / n[1]
    (p_low, p_high), (q_low, q_high) = wilson(successes[0], n[0]), wilson(successes[1], n[1])
    return p - q - math.hypot(p - p_low, q_high - q), p - q + math.hypot(p_high - p, q - q_low)


def hull(a: Interval, b: Interval) -> Interval:
    """The shortest interval that holds both."""
    return min(a[0], b[0]), max(a[1], b[1])


def rate_interval(rates: Sequence[float], successes: float, episodes: int) -> Interval | None:
    """Interval of the mean success rate of seeds: Student's t over them, widened to hold Wilson's for all their
    episodes together; None for fewer than two seeds.

    Seeds that agree by luck (0 of 20 twice) give Student's t no width, which would claim certainty.
    """
    interval = t_interval(rates, 0.0, 1.0)
    return interval and hull(interval, wilson(successes, episodes))
