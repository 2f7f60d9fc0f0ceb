import math

import pytest

from offrl_ray.intervals import hull, newcombe, rate_interval, t_interval, t_quantile, wilson


def test_t_quantile_of_the_table() -> None:
    """Student's table, two-sided 5 %: 12.706, 2.776, 2.262 for 1, 4 and 9 degrees; Welch's degrees are no integers."""
    assert [t_quantile(d) for d in (1, 4, 9)] == pytest.approx([12.706, 2.776, 2.262], abs=5e-4)
    assert t_quantile(5) < t_quantile(4.5) < t_quantile(4)


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


@pytest.mark.parametrize(
    ("a", "b", "interval"),
    [
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((6, 7), (2, 7), (0.0582, 0.8062)),
        ((5, 56), (0, 29), (-0.0381, 0.1926)),
        ((0, 10), (0, 20), (-0.1611, 0.2775)),
        ((10, 10), (0, 20), (0.6791, 1.0)),
    ],
)
def test_newcombe_against_his_table(a: tuple[int, int], b: tuple[int, int], interval: tuple[float, float]) -> None:
    """Newcombe, Statistics in Medicine 17:873 (1998), table II, method 10; swapped arms mirror."""
    assert newcombe((a[0], b[0]), (a[1], b[1])) == pytest.approx(interval, abs=5e-5)
    low, high = newcombe((b[0], a[0]), (b[1], a[1]))
    assert (-high, -low) == pytest.approx(interval, abs=5e-5)


def test_hull() -> None:
    assert hull((0.0, 2.0), (1.0, 3.0)) == (0.0, 3.0)
    assert hull((0.0, 3.0), (1.0, 2.0)) == (0.0, 3.0)


def test_a_rate_takes_the_wider_of_both_at_each_end() -> None:
    low, high = wilson(20, 40)
    assert rate_interval([0.5, 0.5], 20, 40) == (low, high)
    assert rate_interval([0.1, 0.9], 20, 40) == (0.0, 1.0)
    assert rate_interval([0.5], 10, 20) is None
