"""The picture of Q against truth."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from results_analysis.plots.base import COLOURS, boxes, brief, png, style
from results_analysis.stats import Estimate

DARK, LIGHT = COLOURS(0.15), COLOURS(0.65)
FEW = 12  # names
LARGE = 30.0  # Q this many times as large as the returns gets an axis that is logarithmic beyond them


class Mark(NamedTuple):
    """One point of a sweep."""

    x: Estimate
    y: Estimate
    complete: bool  # hollow if not
    label: str


@style
def against(lines: Mapping[str, float], marks: Sequence[Mark]) -> bytes:
    """x is the discounted return, y is Q: marks with their intervals, the line y = x, and named horizontal `lines`."""
    figure = Figure((6.5, 4.4), dpi=200, layout="constrained")
    axes = figure.subplots()
    for complete, colour in ((True, DARK), (False, LIGHT)):
        shown = [m for m in marks if m.complete == complete]
        x, y = ([e.mean for e in es] for es in ([m.x for m in shown], [m.y for m in shown]))
        reach = [_reach([m.x for m in shown]), _reach([m.y for m in shown])]
        face = colour if complete else "white"
        axes.errorbar(x, y, reach[1], reach[0], "o", color=colour, markerfacecolor=face, elinewidth=1, markersize=5)
    low, high = min(0.0, *(m.x.mean for m in marks)), max(*(m.x.mean for m in marks), *lines.values(), 0.0)
    axes.plot([low, high], [low, high], color="0.4", linewidth=1, label="Q = return")
    for (name, value), dashes in zip(lines.items(), ("--", ":", "-.") * len(lines), strict=False):
        axes.axhline(value, color="black", linewidth=1, linestyle=dashes, label=name)
    top = max(abs(m.y.mean) for m in marks)
    if top > LARGE * max(abs(low), high, 1e-9):
        axes.set_yscale("symlog", linthresh=max(abs(low), high, 1e-9))
    axes.set_xlabel("discounted return of the episodes (reward_scale x reward)", fontsize=9)
    axes.set_ylabel("Q at their start (the same unit)", fontsize=9)
    axes.tick_params(labelsize=8)
    figure.legend(loc="outside lower center", ncols=1 + len(lines), fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with boxes():
        label(axes, marks)
    return png(figure)


def label(axes: Axes, marks: Sequence[Mark]) -> list[Annotation]:
    """Names the marks farthest from the diagonal, each unless its name would touch another's."""
    figure = axes.get_figure(root=True)
    assert figure
    figure.draw_without_rendering()  # places the axes
    made: list[Annotation] = []
    taken: list[Bbox] = []
    for m in sorted(marks, key=lambda m: -abs(m.y.mean - m.x.mean)):
        if len(made) == FEW:
            break
        right = axes.transData.transform((m.x.mean, m.y.mean))[0] > axes.bbox.x0 + axes.bbox.width / 2
        side: dict[str, Any] = {"ha": "right" if right else "left", "fontsize": 6.5, "in_layout": False}
        text = axes.annotate(
            brief(m.label), (m.x.mean, m.y.mean), (-5 if right else 5, 4), textcoords="offset points", **side
        )
        box = text.get_window_extent()
        if any(box.overlaps(b) for b in taken):
            text.remove()
        else:
            made.append(text)
            taken.append(box)
    return made


def _reach(estimates: Sequence[Estimate]) -> np.ndarray:
    """How far each interval goes below and above its mean, [2, n]; no interval has no reach.

    Rounding may put the mean of equal values just outside of their interval.
    """
    found = [e.interval or (e.mean, e.mean) for e in estimates]
    return (
        np.array(
            [[max(0.0, e.mean - low), max(0.0, high - e.mean)] for e, (low, high) in zip(estimates, found, strict=True)]
        )
        .reshape(-1, 2)
        .T
    )
