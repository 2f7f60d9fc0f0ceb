import math

import pytest

from results_analysis.stats import mean_over_seeds, rate_over_seeds, t_interval, wilson


def test_t_interval_of_students_sleep_data() -> None:
    """Student (1908): extra sleep under two drugs; R's t.test(paired = TRUE) prints 0.7001142 and 2.4598858."""
    gain = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    assert t_interval(gain) == pytest.approx((0.7001142, 2.4598858), abs=1e-7)


def test_t_interval_of_two_by_hand() -> None:
    """For two values the half width is tan(0.475 pi) times half their distance, as t with one degree is Cauchy's."""
    half = math.tan(0.475 * math.pi) * 0.5
    assert t_interval([2.0, 3.0]) == pytest.approx((2.5 - half, 2.5 + half), rel=1e-12)
    assert t_interval([0.4, 0.6], 0.0, 1.0) == (0.0, 1.0)


@pytest.mark.parametrize("values", [[], [0.5], [0.5, math.nan], [1.0, math.inf, -math.inf]])
def test_no_t_interval(values: list[float]) -> None:
    assert t_interval(values) is None


@pytest.mark.parametrize(
    ("successes", "n", "interval"),
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_wilson_against_newcombe(successes: int, n: int, interval: tuple[float, float]) -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3; and all successes mirror all failures."""
    assert wilson(successes, n) == pytest.approx(interval, abs=5e-5)
    low, high = wilson(n - successes, n)
    assert (1 - high, 1 - low) == pytest.approx(interval, abs=5e-5)


def test_seeds_that_agree_are_not_certain() -> None:
    estimate = rate_over_seeds([[0] * 10, [0] * 10])
    assert estimate is not None
    assert estimate.mean == 0.0
    assert estimate.interval == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_seeds_count_alike_whatever_their_episodes() -> None:
    estimate = rate_over_seeds([[1, 1, 1, 1], [0, 0], [1, 0]])
    assert estimate is not None
    assert estimate.mean == 0.5


def test_without_an_interval() -> None:
    assert rate_over_seeds([]) is None
    assert mean_over_seeds([]) is None
    assert rate_over_seeds([[1, 0]]) == (0.5, None)
    assert mean_over_seeds([7.0]) == (7.0, None)
    assert mean_over_seeds([math.inf, 1.0]) == (math.inf, None)
