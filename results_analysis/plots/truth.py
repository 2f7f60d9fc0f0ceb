"""The picture of Q against truth."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from results_analysis.plots.base import COLOURS, png, style
from results_analysis.stats import Estimate

DARK, LIGHT = COLOURS(0.15), COLOURS(0.65)
FEW = 12
LARGE = 30.0  # Q this many times as large as the returns gets an axis that is logarithmic beyond them


class Mark(NamedTuple):
    """One point of a sweep."""

    x: Estimate
    y: Estimate
    complete: bool  # hollow if not
    label: str  # shown where marks are few


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
    for m in marks if len(marks) <= FEW else ():
        axes.annotate(m.label, (m.x.mean, m.y.mean), (5, 4), textcoords="offset points", fontsize=6.5)
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
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return png(figure)


def _reach(estimates: Sequence[Estimate]) -> np.ndarray:
    """How far each interval goes below and above its mean, [2, n]; no interval has no reach."""
    found = [e.interval or (e.mean, e.mean) for e in estimates]
    return (
        np.array([[e.mean - low, high - e.mean] for e, (low, high) in zip(estimates, found, strict=True)])
        .reshape(-1, 2)
        .T
    )
