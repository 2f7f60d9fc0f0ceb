import itertools
import math
from collections.abc import Sequence
from statistics import fmean, median, stdev

import numpy as np
import pytest
import scipy.stats

from offrl_ray.intervals import newcombe, t_interval, wilson
from results_analysis import stats
from results_analysis.stats import mean_over_seeds, rate_over_seeds


def test_seeds_that_agree_are_not_certain() -> None:
    estimate = rate_over_seeds([[0] * 10, [0] * 10])
    assert estimate is not None
    assert estimate.mean == 0.0
    assert estimate.interval == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_seeds_count_alike_whatever_their_episodes() -> None:
    estimate = rate_over_seeds([[1, 1, 1, 1], [0, 0], [1, 0]])
    assert estimate is not None
    assert estimate.mean == 0.5
    assert estimate.n == 3


def test_without_an_interval() -> None:
    assert rate_over_seeds([]) is None
    assert mean_over_seeds([]) is None
    assert rate_over_seeds([[1, 0]]) == (0.5, None, 1)
    assert mean_over_seeds([7.0]) == (7.0, None, 1)
    assert mean_over_seeds([math.inf, 1.0]) == (math.inf, None, 2)


# -- pools of cells


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 40])
def test_iqm_is_the_trimmed_mean(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n).tolist()
    assert stats.iqm(values) == pytest.approx(scipy.stats.trim_mean(values, 0.25), abs=1e-12)


def test_iqm_by_hand() -> None:
    assert stats.iqm([100, 1, 2, 3, 4, 5, 6, -50]) == (2 + 3 + 4 + 5) / 4
    assert stats.iqm([0, 1, 100]) == pytest.approx(101 / 3)
    assert math.isnan(stats.iqm([]))


def test_the_pool_is_trimmed_as_one() -> None:
    """As rliable's aggregate_iqm, which flattens runs x tasks; not an IQM a cell."""
    cells = [[0.0, 0.0, 1.0, 9.0], [5.0, 6.0, 7.0, 8.0]]
    assert stats.stratified_bootstrap(cells).mean == pytest.approx((1 + 5 + 6 + 7) / 4)


def test_the_bootstrap_of_one_cell_is_that_of_all_its_resamples() -> None:
    """Five seeds have 3125 resamples: the percentiles of 2000 drawn ones are nearly those of all."""
    cell = [1.0, 2.0, 4.0, 8.0, 16.0]
    every = [fmean(r) for r in itertools.product(cell, repeat=5)]
    found = stats.stratified_bootstrap([cell], stats.mean_of_cells)
    assert found == (pytest.approx(6.2), pytest.approx(np.quantile(every, [0.025, 0.975]), abs=0.2), 5)


def test_seeds_are_resampled_inside_their_cells() -> None:
    """Cells far apart whose seeds agree leave nothing to resample; a bootstrap of the pool would be as wide as both."""
    found = stats.stratified_bootstrap([[1.0, 1.0, 1.0], [9.0, 9.0, 9.0]], stats.mean_of_cells)
    assert found == (5.0, (5.0, 5.0), 3)


def test_cells_resample_independently_and_count_alike() -> None:
    cells = [[0.0, 1.0] * 4, [0.0, 1.0] * 16]
    found = stats.stratified_bootstrap(cells, stats.mean_of_cells)
    assert found.interval
    assert found.n == 8
    # the normal approximation of independent cells
    half = 1.96 * math.sqrt(0.25 / 8 + 0.25 / 32) / 2
    assert (found.interval[1] - found.interval[0]) / 2 == pytest.approx(half, rel=0.1)


def test_the_bootstrap_is_deterministic() -> None:
    cells = np.random.default_rng(0).normal(size=(3, 5)).tolist()
    assert stats.stratified_bootstrap(cells) == stats.stratified_bootstrap(cells)


def test_a_pool_without_an_interval() -> None:
    assert stats.stratified_bootstrap([[1.0, 2.0], [3.0]]) == (2.0, None, 1)
    assert stats.stratified_bootstrap([[1.0, math.inf], [3.0, 3.0]])[1:] == (None, 2)
    for cells in ([], [[1.0, 2.0], []]):
        found = stats.stratified_bootstrap(cells)
        assert math.isnan(found.mean)
        assert found[1:] == (None, 0)


def test_probability_of_improvement_is_mann_whitneys() -> None:
    a, b = [0.1, 0.5, 0.5, 0.9], [0.5, 0.2, 0.9]
    u = scipy.stats.mannwhitneyu(a, b).statistic
    found = stats.probability_of_improvement(a, b)
    assert found.mean == pytest.approx(u / 12)
    assert found.n == 3
    assert found.interval
    assert 0 <= found.interval[0] < found.mean < found.interval[1] <= 1


def test_probability_of_improvement_is_averaged_over_matched_cells() -> None:
    """Cells of different scale: pooled, nothing of A's first cell would beat B's second."""
    found = stats.probability_of_improvement([[1.0, 2.0], [10.0, 20.0]], [[0.0, 0.5], [10.0, 20.0]])
    assert found.mean == (1.0 + 0.5) / 2
    assert stats.probability_of_improvement([3.0, 4.0], [1.0, 2.0]) == (1.0, (1.0, 1.0), 2)
    with pytest.raises(ValueError, match="2 cells of A, but 1 of B"):
        stats.probability_of_improvement([[1.0], [2.0]], [[1.0]])


@pytest.mark.parametrize("k", [1, 2, 3, 5, 6])
def test_expected_best_is_that_of_all_draws(k: int) -> None:
    values = [0.3, 0.9, 0.1, 0.4, 0.9, 0.0]
    every = [max(c) for c in itertools.combinations(values, k)]
    assert stats.expected_best(values, [k]) == [pytest.approx(fmean(every), rel=1e-12)]


def test_expected_best_of_many_stays_exact() -> None:
    """Of 1..N the expected maximum of k is k (N + 1) / (k + 1)."""
    found = stats.expected_best(range(1, 1001), [1, 10, 500, 1000])
    assert found == pytest.approx([k * 1001 / (k + 1) for k in (1, 10, 500, 1000)], rel=1e-12)
    with pytest.raises(ValueError, match=r"from 1 to 2, .* got \[0, 3\]"):
        stats.expected_best([1.0, 2.0], [0, 1, 3])


def test_sign_rate() -> None:
    assert stats.sign_rate([0.2, -0.1, 0.0, 0.4]) == (0.5, wilson(2, 4), 4)
    assert stats.sign_rate([0.2]) == (1.0, None, 1)
    assert math.isnan(stats.sign_rate([]).mean)
    assert math.isnan(stats.sign_rate([1.0, math.nan]).mean)


# -- two arms


def test_welch_is_scipys() -> None:
    a, b = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9], [27.1, 22.0, 20.8, 23.4]
    known = scipy.stats.ttest_ind(a, b, equal_var=False)
    found = stats.difference(a, b)
    assert found.effect == pytest.approx(fmean(a) - fmean(b))
    assert found.interval == pytest.approx(tuple(known.confidence_interval(0.95)))
    assert found.p == pytest.approx(known.pvalue)
    assert found.n == 4


def test_pairs_are_those_of_common_seeds() -> None:
    """Student's sleep data, out of order and with seeds that only one arm has; R prints p-value = 0.002833."""
    second = dict(enumerate([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]))
    first = dict(reversed(list(enumerate([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]))))
    found = stats.paired_difference(second | {90: 50.0}, first | {91: -50.0})
    assert found.effect == pytest.approx(1.58)
    assert found.interval == pytest.approx((0.7001142, 2.4598858), abs=1e-7)
    assert found.p == pytest.approx(0.002833, abs=5e-7)
    assert found.n == 10


def test_pools_count_seeds_and_not_cells() -> None:
    cells = [({0: 1.0, 1: 2.0, 2: 4.0}, {0: 0.0, 1: 0.0, 2: 1.0}), ({0: 5.0, 1: 5.0, 7: 9.0}, {0: 2.0, 1: 5.0, 7: 9.0})]
    assert stats.differences(cells) == [2.0, 1.0]  # of the seeds 0 and 1, which both cells have
    found = stats.pooled_paired(cells)
    assert (found.effect, found.interval, found.n) == (1.5, pytest.approx(t_interval([2.0, 1.0])), 2)


def test_arms_too_small_to_compare() -> None:
    for found in (stats.difference([], [1.0]), stats.paired_difference({0: 1.0}, {1: 1.0}), stats.pooled_paired([])):
        assert math.isnan(found.effect)
        assert found[1:4] == (None, None, 0)
    assert stats.difference([3.0], [1.0, 2.0])[:4] == (1.5, None, None, 1)
    assert stats.paired_difference({0: 3.0}, {0: 1.0})[:4] == (2.0, None, None, 1)
    assert stats.difference([math.inf, 1.0], [1.0, 2.0])[:4] == (math.inf, None, None, 2)
    assert stats.paired_difference({0: math.inf, 1: 1.0}, {0: 1.0, 1: 1.0})[:4] == (math.inf, None, None, 2)


@pytest.mark.parametrize("b", [[0.0, 0.0, 0.0], [0.1, 0.1 + 1e-17, 0.1]])
def test_seeds_that_agree_exactly_decide_nothing(b: list[float]) -> None:
    a = [0.3 - 0.1 + x for x in b]
    found = stats.difference(a, b), stats.paired_difference(dict(enumerate(a)), dict(enumerate(b)))
    for test in found:
        assert test[:4] == (pytest.approx(0.2), None, None, 3)


def test_rounding_is_no_spread() -> None:
    """0.3 - 0.1 and 0.2 - 0.0 differ in the last bit; t of that would be certain of anything."""
    found = stats.paired_difference({0: 0.3, 1: 0.2}, {0: 0.1, 1: 0.0})
    assert found[:4] == (pytest.approx(0.2), None, None, 2)


def test_success_rates_are_never_surer_than_their_episodes() -> None:
    a, b = [0.5, 0.5], [0.5, 0.4]
    expected = newcombe((20, 18), (40, 40))
    for test in (stats.difference(a, b, 20), stats.paired_difference(dict(enumerate(a)), dict(enumerate(b)), 20)):
        assert test.interval
        assert test.interval[0] <= expected[0]
        assert test.interval[1] >= expected[1]
        assert -1 <= test.interval[0] < test.interval[1] <= 1
    apart = stats.paired_difference({0: 0.1, 1: 0.9}, {0: 0.5, 1: 0.5}, 20)
    assert apart.interval == (-1.0, 1.0)  # t alone would go to -5 and 5, Newcombe's alone to -0.21 and 0.21
    agreed = stats.paired_difference({0: 1.0, 1: 1.0}, {0: 0.0, 1: 0.0}, 20)
    assert agreed.interval == pytest.approx(newcombe((40, 0), (40, 40)))
    assert agreed.p is None
    assert stats.difference([0.5], [0.4], 20).interval is None
    cells = [({0: 1.0, 1: 1.0}, {0: 0.0, 1: 0.0})] * 3
    assert stats.pooled_paired(cells, 20).interval == pytest.approx(newcombe((120, 0), (120, 120)))


def test_the_seeds_that_would_decide() -> None:
    n = stats.minimal_detectable(0.1, 0.2)
    assert n
    half = lambda n: float(scipy.stats.t.ppf(0.975, n - 1)) * 0.2 / math.sqrt(n)  # noqa: E731
    assert half(n) < 0.1 <= half(n - 1)
    assert stats.minimal_detectable(0.3, 0.2, threshold=0.2) == stats.minimal_detectable(0.1, 0.2, 0.2) == n
    assert stats.minimal_detectable(0.1, 0.0) == 2
    assert stats.minimal_detectable(0.1, 0.2, 0.1) is None
    assert stats.minimal_detectable(0.01, 1.0) is None
    assert stats.minimal_detectable(math.nan, 0.2) is None


# -- trends


def test_trend_of_pages_own_kind() -> None:
    """Three seeds, four levels, by hand: of the 24^3 rankings, those are counted that reach L = 30 + 29 + 29."""
    rows = {0: [1.0, 2.0, 3.0, 4.0], 1: [2.0, 1.0, 3.0, 4.0], 2: [1.0, 2.0, 4.0, 3.0]}
    sums = [sum((i + 1) * r for i, r in enumerate(p)) for p in itertools.permutations(range(1, 5))]
    found = stats.trend(rows, [0.0, 0.1, 1.0, 5.0])
    reached = sum(sum(s) >= 30 + 29 + 29 for s in itertools.product(sums, repeat=3)) / 24**3
    assert found.p == pytest.approx(2 * reached)
    assert found.effect == pytest.approx((1.0 + 0.8 + 0.8) / 3)
    assert found.interval == pytest.approx(t_interval([1.0, 0.8, 0.8], -1, 1))
    assert found.n == 3
    assert "exact" in found.method


def test_trend_of_pages_example() -> None:
    """Page (1963): critical L at 5 % for 3 and 4 seeds over 3 levels are 41 and 54; one less is not significant."""
    up, swapped, even = [1, 2, 3], [1, 3, 2], [2, 1, 3]
    page = scipy.stats.page_trend_test([up, up, swapped], ranked=True)
    assert page.statistic == 41
    assert stats.trend(dict(enumerate([up, up, swapped])), up).p == pytest.approx(2 * page.pvalue)
    assert page.pvalue <= 0.05
    assert scipy.stats.page_trend_test([up, even, swapped], ranked=True).pvalue > 0.05


def test_a_fall_is_a_rise_of_the_mirror_and_levels_need_no_order() -> None:
    rows = {0: [0.1, 0.3, 0.2, 0.9], 1: [0.0, 0.2, 0.6, 0.5], 2: [0.2, 0.1, 0.7, 0.8]}
    up = stats.trend(rows, [1, 2, 3, 4])
    down = stats.trend(rows, [-1, -2, -3, -4])
    assert up.effect == pytest.approx(-down.effect)
    assert up.p == pytest.approx(down.p)
    shuffled = {s: [r[i] for i in (2, 0, 3, 1)] for s, r in rows.items()}
    assert stats.trend(shuffled, [3, 1, 4, 2]) == up


def test_trend_is_spearmans_with_ties() -> None:
    row, x = [0.0, 0.0, 0.5, 0.25, 0.5], [0.0, 0.1, 0.3, 1.0, 3.0]
    found = stats.trend({0: row}, x)
    assert found[:4] == (pytest.approx(scipy.stats.spearmanr(row, x).statistic), None, None, 1)


def test_a_flat_seed_shows_no_trend() -> None:
    found = stats.trend({0: [0.0, 0.0, 0.0], 1: [0.0, 0.0, 0.0]}, [1, 2, 3])
    assert (found.effect, found.p) == (0.0, 1.0)


def test_two_seeds_that_agree_are_not_certain_of_a_trend() -> None:
    """Both rise over three levels by luck once in 36; two-sided that is 0.056."""
    found = stats.trend({0: [1, 2, 3], 1: [1, 2, 3]}, [1, 2, 3])
    assert found[:4] == (1.0, (0.0, 1.0), pytest.approx(2 / 36), 2)
    assert stats.trend({s: [1, 2, 3] for s in range(3)}, [1, 2, 3]).interval == (1.0, 1.0)


def test_no_trend_to_speak_of() -> None:
    for found in (
        stats.trend({0: [1, 2], 1: [1, 2]}, [1, 2]),
        stats.trend({}, [1, 2, 3]),
        stats.trend({0: [1, 2, math.nan], 1: [1, 2, 3]}, [1, 2, 3]),
    ):
        assert math.isnan(found.effect)
        assert (found.interval, found.p) == (None, None)
    for rows, x in (({0: [1, 2]}, [1, 2, 3]), ({0: [1, 2, 3]}, [1, 2, 2])):
        with pytest.raises(ValueError, match="one value at each of the different levels"):
            stats.trend(rows, x)


@pytest.mark.filterwarnings("error")
def test_of_values_that_are_all_equal_no_trend_is_known() -> None:
    found = stats.trend({seed: [0.0, 0.0, 0.0] for seed in range(5)}, [1, 2, 3])
    assert (found.effect, found.interval, found.p) == (0.0, None, 1.0)
    assert stats.trend({0: [0.0, 0.0, 0.0], 1: [0.0, 1.0, 2.0]}, [1, 2, 3]).interval is not None


def test_slope_is_the_median_of_all_slopes() -> None:
    curve = [(0.0, 0.0), (1.0, 1.0), (2.0, 90.0), (4.0, 4.5), (8.0, 7.0)]
    slopes = [(y - v) / (x - u) for (u, v), (x, y) in itertools.combinations(curve, 2)]
    assert stats.slope(curve) == pytest.approx(median(slopes))
    for bad in ([], [(0.0, 1.0)], [(1.0, 1.0), (1.0, 2.0)], [(0.0, 0.0), (1.0, math.inf), (2.0, 1.0)]):
        assert math.isnan(stats.slope(bad))


# -- coverage: of 2000 experiments with a known truth, 95 % of the intervals hold it (1.5 % are three standard errors)


def _covered(intervals: Sequence[tuple[float, float] | None], truth: float) -> float:
    return fmean(i is not None and i[0] <= truth <= i[1] for i in intervals)


def test_paired_t_covers() -> None:
    """Pairs share a large effect of their seed, which pairing takes out: unpaired intervals are three times as wide."""
    random = np.random.default_rng(1)
    shared = random.normal(0, 3, (2000, 5))
    a, b = shared + random.normal(0.5, 1, (2000, 5)), shared + random.normal(0, 1, (2000, 5))
    found = [stats.paired_difference(dict(enumerate(x)), dict(enumerate(y))) for x, y in zip(a, b, strict=True)]
    assert _covered([t.interval for t in found], 0.5) == pytest.approx(0.95, abs=0.015)


def test_welch_covers_unequal_arms() -> None:
    random = np.random.default_rng(2)
    a, b = random.normal(0.5, 3, (2000, 4)), random.normal(0, 1, (2000, 8))
    found = [stats.difference(x.tolist(), y.tolist()).interval for x, y in zip(a, b, strict=True)]
    assert _covered(found, 0.5) == pytest.approx(0.95, abs=0.02)


def test_seeds_times_cells_would_claim_too_much() -> None:
    """Cells share their seeds' effect: pooled over seeds 95 % hold the truth, taken as seeds times cells far fewer."""
    random = np.random.default_rng(3)
    gaps = random.normal(0, 1, (1000, 4, 1)) + random.normal(0.5, 0.3, (1000, 4, 6))  # experiments, seeds, cells
    zero = dict.fromkeys(range(4), 0.0)
    found = [stats.pooled_paired([(dict(enumerate(c)), zero) for c in g.T]).interval for g in gaps]
    assert _covered(found, 0.5) == pytest.approx(0.95, abs=0.02)
    assert _covered([t_interval(g.ravel().tolist()) for g in gaps], 0.5) < 0.7


def test_the_bootstrap_covers_a_pool_of_many_cells_but_not_one_cell() -> None:
    """Ten cells of five seeds: near 95 %. One of three: far below, which is why cells get Student's t."""
    random = np.random.default_rng(4)
    pools = random.normal(0, 1, (300, 10, 5)).tolist()
    assert _covered([stats.stratified_bootstrap(p, stats.mean_of_cells).interval for p in pools], 0.0) > 0.88
    cells = random.normal(0, 1, (300, 1, 3)).tolist()
    assert _covered([stats.stratified_bootstrap(c, stats.mean_of_cells).interval for c in cells], 0.0) < 0.85


def test_pages_p_is_not_too_small_under_no_trend() -> None:
    random = np.random.default_rng(5)
    found = [stats.trend(dict(enumerate(r)), [1, 2, 3, 4]).p for r in random.normal(size=(1000, 4, 4)).tolist()]
    assert fmean(p is not None and p <= 0.05 for p in found) <= 0.05
    assert stdev([p for p in found if p is not None]) > 0.2
