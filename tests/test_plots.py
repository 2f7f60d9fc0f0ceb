"""What pictures promise that a reader would notice: names apart, panels full, bands on the page."""

import itertools
import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from results_analysis.plots.base import brief
from results_analysis.plots.curves import Frame, Line, above_zero, columns, curves, panels
from results_analysis.plots.truth import Mark, against, label
from results_analysis.stats import Estimate


def marks(ys: list[float], name: str = "alpha=0.1, q_grad_mode=single_step") -> list[Mark]:
    return [Mark(Estimate(0.0, None, 1), Estimate(y, None, 1), True, f"{i} {name}") for i, y in enumerate(ys)]


def test_names_are_apart_and_the_farthest_from_the_diagonal_come_first() -> None:
    figure = Figure((6.5, 4.4), dpi=200)
    axes = figure.subplots()
    axes.set(xlim=(-1, 1), ylim=(0, 1))
    found = label(axes, marks([0.5, 0.501, 0.502, 0.9, 0.1, *np.linspace(0.2, 0.8, 200)]))
    boxes = [t.get_window_extent() for t in found]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert found[0].get_text().startswith("3 ")
    assert 4 < len(found) <= 12
    assert all(figure.bbox.x0 <= b.x0 and b.x1 <= figure.bbox.x1 for b in boxes)


@pytest.mark.filterwarnings("error")
def test_a_very_long_name_leaves_room_for_the_picture() -> None:
    assert against({"no true Q exceeds 0.1": 0.1}, marks([0.1, 0.9], "\u6d4b" + "x" * 500)).startswith(b"\x89PNG")


@pytest.mark.parametrize("towards", [-1.0, 1.0])
def test_seeds_that_agree_but_for_rounding_are_drawn(towards: float) -> None:
    equal = Estimate(float(np.nextafter(0.05, towards)), (0.05, 0.05), 11)
    assert against({}, [Mark(equal, equal, True, "x")]).startswith(b"\x89PNG")


def test_a_long_name_keeps_both_of_its_ends() -> None:
    assert brief("short") == "short"
    assert brief("a" * 40) == "a" * 40
    found = brief("head" + "-" * 100 + "tail", 20)
    assert len(found) == 20
    assert (found[:4], found[-4:], "\u2026" in found) == ("head", "tail", True)


@pytest.mark.parametrize(
    ("n", "layout"), [(1, (1, 1)), (2, (2, 1)), (3, (3, 1)), (4, (2, 2)), (5, (3, 2)), (6, (3, 2)), (7, (3, 3))]
)
def test_four_panels_are_a_square(n: int, layout: tuple[int, int]) -> None:
    assert panels(n) == layout


def test_a_legend_is_as_wide_as_its_picture() -> None:
    assert columns(["a", "b"], 7.0) == 2
    assert columns([*"abcdefgh"], 7.0) == 4
    assert columns(["x" * 22] * 4, 7.0) == 3
    assert columns(["x" * 500] * 4, 5.5) == 1


@pytest.mark.filterwarnings("error")
def test_curves_below_zero_are_drawn_on_a_logarithmic_axis() -> None:
    steps, values = np.array([1, 2, 3]), np.array([1e3, 1.0, 1e-3])
    line = Line("x" * 500, steps, values, values - 2e3, values + 1, [(steps, values)], [(3.0, 1e-3)])
    assert curves([Frame("y" * 500, [line])] * 4, "loss", True, None, 1.0).startswith(b"\x89PNG")


def test_a_band_on_a_logarithmic_axis_ends_at_half_of_the_smallest_seed() -> None:
    steps = np.array([1, 2, 3])
    seeds = [(steps, np.array([3.0, 1.0, 5.0])), (steps, np.array([1.0, 4.0, 6.0]))]
    low = np.array([-7.0, 0.8, math.nan])
    line = Line("x", steps, np.array([2.0, 2.5, 5.5]), low, np.array([11.0, 4.5, math.nan]), seeds, [])
    assert above_zero(line).tolist()[:2] == [0.5, 0.8]
    assert math.isnan(above_zero(line)[2])
