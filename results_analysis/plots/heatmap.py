"""Grids of coloured tiles, each with its number, its interval and a mark where it is not complete."""

import math
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, SymLogNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from results_analysis.plots.base import COLOURS, DECADES, brief, png, style, threshold

GREY = (0.87, 0.87, 0.87, 1.0)
PIXELS = 6e6  # of a picture, at most
FEWER = "\nToo many cells to write their numbers here; the table has them."
LINE = 11.5  # points from line to line
DENSE = 60  # tiles of a panel; more are coloured and marked alone: text is slow
WIDTH = 10.0  # inches for panels beside each other
HATCHES = {
    **{"diverged": "xxx", "partly diverged": "xx", "failed": "---", "pruned": "..."},
    **{"unfinished": "///", "not started": "|", "not planned": "||"},
}

Colour = tuple[float, float, float, float]


class Tile(NamedTuple):
    """A cell of a sweep; it covers several rows or columns where their axis has no effect."""

    rows: range
    columns: range
    value: float | None  # grey where None or not finite
    lines: list[str]  # the first is the headline
    mark: str = ""  # one of HATCHES, or "" for a complete cell


class Panel(NamedTuple):
    title: str
    unit: str
    tiles: list[Tile]
    limits: tuple[float, float] | None  # of the colour scale; None: from the values


class Ticks(NamedTuple):
    name: str
    labels: list[str]


@style
def heatmap(title: str, caption: str, rows: Ticks, columns: Ticks, panels: Sequence[Panel]) -> bytes:
    """The panels as PNG, as many beside each other as fit."""
    columns = Ticks(columns.name, [textwrap.fill(brief(label, 72), 24) for label in columns.labels])
    rows = Ticks(rows.name, [textwrap.fill(brief(label, 72), 24) for label in rows.labels])
    panel_width = _tile_width(columns, panels) * len(columns.labels) + 0.8
    across = min(len(panels), max(1, int(WIDTH / panel_width)))
    down = math.ceil(len(panels) / across)
    width = max(6.5, across * panel_width + 0.5)
    dense = any(len(p.tiles) > DENSE for p in panels)
    head, foot = _wrap(title, width * 11), _wrap(caption + FEWER * dense, width * 15)
    height = down * (0.74 * len(rows.labels) + 0.85) + 0.18 * (head + foot).count("\n") + 0.3
    figure = Figure((width, height), dpi=min(200, math.sqrt(PIXELS / (width * height))), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).flat
    for i, (axes, panel) in enumerate(zip(grid, panels, strict=False)):
        _draw(figure, axes, panel, rows, columns, dense)
        if i % across:
            axes.set(ylabel="", yticklabels=[])
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    figure.suptitle(head, fontsize=10.5, x=0.01, ha="left")
    figure.supxlabel(foot, fontsize=8, x=0.01, ha="left", color="0.35")
    return png(figure)


def shades(values: Sequence[float | None], limits: tuple[float, float] | None) -> list[tuple[str, str]]:
    """Of each value, as in the picture: background and the text colour that contrasts with it, as #rrggbb."""
    shown = [v for v in values if v is not None and math.isfinite(v)]
    norm = _norm(shown, limits)
    found = [COLOURS(norm(v)) if v is not None and math.isfinite(v) else GREY for v in values]
    return [(to_hex(c), "#ffffff" if _is_dark(c) else "#000000") for c in found]


def _tile_width(columns: Ticks, panels: Sequence[Panel]) -> float:
    """Inches that the longest text of one column needs."""
    lines = [line for p in panels for t in p.tiles if len(t.columns) == 1 for line in t.lines]
    return max(1.2, *(0.068 * len(line) for label in columns.labels for line in [*label.split("\n"), *lines]))


def _wrap(text: str, width: float) -> str:
    return "\n".join(textwrap.fill(line, int(width)) for line in text.split("\n"))


def _draw(figure: Figure, axes: Axes, panel: Panel, rows: Ticks, columns: Ticks, dense: bool) -> None:
    values = [t.value for t in panel.tiles if t.value is not None and math.isfinite(t.value)]
    norm = _norm(values, panel.limits)
    for tile in panel.tiles:
        colour = COLOURS(norm(tile.value)) if tile.value in values else GREY
        _draw_tile(axes, tile, colour, dense)
    axes.set(
        xlim=(0, len(columns.labels)), ylim=(len(rows.labels), 0), xlabel=brief(columns.name), ylabel=brief(rows.name)
    )
    axes.set_xticks([i + 0.5 for i in range(len(columns.labels))], columns.labels)
    axes.set_yticks([i + 0.5 for i in range(len(rows.labels))], rows.labels)
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    axes.set_title(panel.title, fontsize=10, loc="left")
    if panel.limits or len(set(values)) > 1:
        digits = None if type(norm) is Normalize else "{x:g}"
        bar = figure.colorbar(ScalarMappable(norm, COLOURS), ax=axes, pad=0.02, fraction=0.05, aspect=30, format=digits)
        bar.set_label(panel.unit, fontsize=8)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)


def _draw_tile(axes: Axes, tile: Tile, colour: Colour, dense: bool) -> None:
    dark = _is_dark(colour)
    corner, width, height = (tile.columns.start, tile.rows.start), len(tile.columns), len(tile.rows)
    patch = axes.add_patch(Rectangle(corner, width, height, facecolor=colour, edgecolor="white", linewidth=2.5))
    if tile.mark:
        patch.set(hatch=HATCHES[tile.mark], hatchcolor=(1, 1, 1, 0.35) if dark else (0, 0, 0, 0.22))
    patch.set_in_layout(False)
    if dense:
        return
    middle = corner[0] + width / 2, corner[1] + height / 2
    head, rest = tile.lines[0], "\n".join(tile.lines[1:])
    parts = [(head, LINE * (len(tile.lines) - 1) / 2, 10), (rest, -LINE / 2, 8)]
    for part, points, size in parts:
        text = axes.annotate(part, middle, (0, points), textcoords="offset points", ha="center", va="center")
        text.set(fontsize=size, fontweight="bold" if size == 10 else "normal", color="white" if dark else "black")
        text.set(linespacing=1.3, annotation_clip=False, in_layout=False)  # layout would ask for thousands of extents
        if tile.mark:
            text.set_path_effects([withStroke(linewidth=2.5, foreground=colour)])  # slow, and needed on a hatch only


def _norm(values: list[float], limits: tuple[float, float] | None) -> Normalize:
    if limits or not values:
        return Normalize(*(limits or (0, 1)))
    low, high, sizes = min(values), max(values), [abs(v) for v in values if v]
    if low == high:
        return Normalize(low - 1, high + 1)
    if math.log10(max(sizes) / min(sizes)) < DECADES:
        return Normalize(low, high)
    return LogNorm(low, high) if low > 0 else SymLogNorm(threshold(sizes), vmin=low, vmax=high)


def _is_dark(colour: Colour) -> bool:
    """By WCAG's relative luminance: 0.18 is where white and black contrast alike."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.18
