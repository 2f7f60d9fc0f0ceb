"""Curves over training: a line with its interval over seeds, each seed faint behind it, a cross where one stopped."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from results_analysis.plots.base import brief, clean, look, png, scale, style

ACROSS = 3
Array = np.ndarray[Any, np.dtype[Any]]


class Line(NamedTuple):
    label: str
    steps: Array  # [R]
    mean: Array  # [R]
    low: Array  # [R]; NaN where there is no interval
    high: Array
    seeds: Sequence[tuple[Array, Array]]  # steps and values of each
    stops: Sequence[tuple[float, float]]  # step and value where a rule stopped a seed


class Frame(NamedTuple):
    title: str
    lines: Sequence[Line]


def panels(n: int) -> tuple[int, int]:
    """How many panels lie across and down."""
    across = 2 if n == 4 else min(ACROSS, n)
    return across, math.ceil(n / across)


def above_zero(line: Line) -> Array:
    """Lower ends of the band for a logarithmic axis, [R]: not below half of the smallest seed's value at that step."""
    seeds = [np.interp(line.steps, x, y, math.nan, math.nan) for x, y in line.seeds if len(x)]
    least = np.fmin.reduce([np.where(s > 0, s, math.nan) for s in seeds]) if seeds else line.mean
    return np.maximum(line.low, least / 2)


@style
def curves(
    frames: Sequence[Frame], y: str, logarithmic: bool, limits: tuple[float, float] | None, bound: float | None = None
) -> bytes:
    """One small multiple per frame, all on the same axes; `bound` is a horizontal line that no true value exceeds."""
    labels = list(dict.fromkeys(line.label for f in frames for line in f.lines))
    across, down = panels(len(frames))
    width = max(5.5, 3.3 * across + 0.4)
    beside = columns(labels, width)
    legend = math.ceil(len(labels) / beside) * 0.19 + 0.25
    figure = Figure((width, 2.3 * down + legend + 0.25), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat
    values = [v for f in frames for line in f.lines for _, ys in line.seeds for v in ys if math.isfinite(v)]
    if logarithmic:
        scale(grid[0], values + [bound] * (bound is not None))
    for axes, frame in zip(grid, frames, strict=False):
        _draw(axes, frame, labels)
        if bound is not None:
            axes.axhline(bound, color="0.25", linewidth=1, linestyle=(0, (2, 2)))
    for axes in grid[len(frames) :]:
        axes.set_axis_off()
    if limits:
        grid[0].set_ylim(limits[0] - 0.03, limits[1] + 0.03)
    for axes in grid[max(0, len(frames) - across) : len(frames)]:
        axes.set_xlabel("training step (updates)")
        axes.xaxis.set_tick_params(labelbottom=True)
    figure.supylabel(y, fontsize=9)
    found = {line.get_label(): line for axes in grid[: len(frames)] for line in axes.get_lines()}
    named = [(found[label], brief(label)) for label in labels if label in found]
    if named:
        outside: dict[str, Any] = {"loc": "outside lower center", "ncols": beside, "fontsize": 8, "frameon": False}
        figure.legend(*zip(*named, strict=True), **outside)
    return png(figure)


def columns(labels: Sequence[str], width: float) -> int:
    """Of a legend that fits into so many inches: four at most."""
    longest = max((len(brief(label)) for label in labels), default=0)
    return max(1, min(4, len(labels), int(width / (0.065 * longest + 0.55))))


def _draw(axes: Axes, frame: Frame, labels: Sequence[str]) -> None:
    clean(axes)
    axes.set_title(brief(frame.title), fontsize=9, loc="left")
    for line in frame.lines:
        own = look(labels.index(line.label), len(labels))
        faint: dict[str, Any] = {"color": own["color"], "linewidth": 0.7, "alpha": 0.35}
        for steps, values in line.seeds:
            axes.plot(steps, values, label="_seed", **faint)
        low = above_zero(line) if axes.get_yscale() == "log" else line.low
        axes.fill_between(line.steps, low, line.high, color=own["color"], alpha=0.15, linewidth=0)
        every = max(1, len(line.steps) // 6)
        axes.plot(line.steps, line.mean, label=line.label, linewidth=1.6, markersize=4, markevery=every, **own)
        for at, value in line.stops:
            mark: dict[str, Any] = {
                "marker": "x",
                "markersize": 7,
                "markeredgewidth": 1.8,
                "color": "black",
                "linestyle": "none",
            }
            axes.plot([at], [value], label="_stop", zorder=5, **mark)
