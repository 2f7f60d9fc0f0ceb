"""Which knob matters: sensitivity, importance, expected best against the budget, parallel coordinates."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from results_analysis.plots.base import COLOURS, brief, clean, png, style

ACROSS = 3
DARK, LIGHT = COLOURS(0.1), COLOURS(0.62)
Ends = tuple[float, float, float]  # a mean and the ends of its interval, NaN where there is none


class Sense(NamedTuple):
    """One axis: at each level the mean over the other axes, and the best."""

    axis: str
    levels: Sequence[str]
    mean: Sequence[Ends]
    best: Sequence[Ends]


@style
def sensitivity(axes: Sequence[Sense], y: str) -> bytes:
    """One small multiple per axis; levels stand evenly, in their order."""
    across = min(ACROSS, len(axes))
    down = math.ceil(len(axes) / across)
    figure = Figure((max(5.5, 3.3 * across + 0.4), 2.6 * down + 0.4), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharey=True).flat
    for at, sense in zip(grid, axes, strict=False):
        clean(at)
        for values, colour, mark, name, shift in (
            (sense.mean, DARK, "o-", "mean over the others", -0.06),
            (sense.best, LIGHT, "s--", "best of the others", 0.06),
        ):
            xs = [i + shift for i in range(len(values))]
            below, above = ([abs(v[0] - v[k]) if math.isfinite(v[k]) else 0.0 for v in values] for k in (1, 2))
            means = [v[0] for v in values]
            at.errorbar(xs, means, (below, above), fmt=mark, color=colour, label=name, markersize=4, capsize=2)
        steep = max(map(len, sense.levels)) * len(sense.levels) > 36
        at.set_xticks(
            range(len(sense.levels)),
            [brief(v, 20) for v in sense.levels],
            rotation=40 if steep else 0,
            ha="right" if steep else "center",
        )
        at.set_xlabel(brief(sense.axis))
    for at in grid[len(axes) :]:
        at.set_axis_off()
    figure.supylabel(y, fontsize=9)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return png(figure)


@style
def bars(names: Sequence[str], shares: Sequence[float], notes: Sequence[str], x: str) -> bytes:
    """The first name on top, each with its note at the bar's end."""
    figure = Figure((6.5, 0.34 * len(names) + 0.8), layout="constrained")
    at = figure.subplots()
    clean(at)
    found = at.barh(range(len(names)), shares, color=DARK, height=0.6)
    at.bar_label(found, notes, padding=4, fontsize=8)
    at.set_yticks(range(len(names)), list(map(brief, names)))
    at.invert_yaxis()
    at.set(xlim=(0, 1.25 * max(shares)), xlabel=x)
    return png(figure)


@style
def budget(best: Sequence[tuple[int, float]], y: str) -> bytes:
    """The expected best of k points."""
    figure = Figure((5.5, 2.8), layout="constrained")
    at = figure.subplots()
    clean(at)
    at.plot(*zip(*best, strict=True), "o-" if len(best) <= 30 else "-", color=DARK, markersize=3)
    at.set(xlabel="points evaluated (k)", ylabel=y)
    if len(best) > 30:
        at.set_xscale("log")
        at.xaxis.set_major_formatter("{x:g}")
        at.xaxis.set_minor_formatter("")
    return png(figure)


@style
def parallel(
    axes: Sequence[tuple[str, str, str]], rows: Sequence[tuple[Sequence[float | None], float]], value: str
) -> bytes:
    """Axes as (name, text at 0, text at 1); rows as coordinates (None: no effect, the line leaves a gap) and value."""
    figure = Figure((max(5.5, 1.5 * len(axes) + 1.5), 3.4), layout="constrained")
    at: Axes = figure.subplots()
    values = [v for _, v in rows]
    norm = Normalize(min(values), max(values) if max(values) > min(values) else min(values) + 1)
    for coordinates, v in sorted(rows, key=lambda row: row[1]):
        ys = [math.nan if c is None else c for c in coordinates]
        at.plot(range(len(ys)), ys, color=COLOURS(norm(v)), linewidth=1.1, alpha=0.8, marker="o", markersize=2.5)
    for i, (_, low, high) in enumerate(axes):
        at.axvline(i, color="0.6", linewidth=0.8, zorder=0)
        at.annotate(brief(low, 20), (i, 0), (0, -4), textcoords="offset points", ha="center", va="top", fontsize=8)
        at.annotate(brief(high, 20), (i, 1), (0, 4), textcoords="offset points", ha="center", va="bottom", fontsize=8)
    at.set_xticks(range(len(axes)), [brief(name, 20) for name, _, _ in axes])
    at.tick_params(length=0, pad=14)
    at.set(ylim=(-0.02, 1.02), yticks=[])
    at.spines[:].set_visible(False)
    figure.colorbar(ScalarMappable(norm, COLOURS), ax=at, pad=0.03, aspect=30).set_label(value, fontsize=8)
    return png(figure)
