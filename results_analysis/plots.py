"""The one plotting module: takes numbers and words, gives PNG bytes; knows nothing of records."""

import io
import math
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

COLOURS = colormaps["viridis"]  # even in lightness: readable in grey and with any colour vision
GREY = (0.87, 0.87, 0.87, 1.0)
DECADES = 1.5  # a panel whose sizes span more gets a logarithmic colour scale


class Tile(NamedTuple):
    """One point of a sweep; it covers several rows or columns where their axis has no effect."""

    rows: range
    columns: range
    value: float | None  # grey where None or not finite
    lines: list[str]  # the first is the headline
    complete: bool  # hatched if not


class Panel(NamedTuple):
    title: str
    unit: str
    tiles: list[Tile]
    limits: tuple[float, float] | None  # of the colour scale; None: from the values


class Ticks(NamedTuple):
    name: str
    labels: list[str]


def heatmap(title: str, caption: str, rows: Ticks, columns: Ticks, panels: Sequence[Panel]) -> bytes:
    """The panels side by side, or below each other where they are wide, as PNG."""
    columns = Ticks(columns.name, [textwrap.fill(label, 24) for label in columns.labels])
    panel_width = _tile_width(columns, panels) * len(columns.labels) + 0.8
    beside = len(panels) * panel_width < 10
    across, down = (len(panels), 1) if beside else (1, len(panels))
    width = max(6.5, across * panel_width + 0.5)
    head, foot = _wrap(title, width * 11), _wrap(caption, width * 15)
    height = down * (0.74 * len(rows.labels) + 0.85) + 0.18 * (head + foot).count("\n") + 0.3
    figure = Figure((width, height), dpi=200, layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    for i, (axes, panel) in enumerate(zip(grid.flat, panels, strict=True)):
        _draw(figure, axes, panel, rows, columns)
        if beside and i:
            axes.set(ylabel="", yticklabels=[])
    figure.suptitle(head, fontsize=10.5, x=0.01, ha="left")
    figure.supxlabel(foot, fontsize=8, x=0.01, ha="left", color="0.35")
    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    return png.getvalue()


def _tile_width(columns: Ticks, panels: Sequence[Panel]) -> float:
    """Inches that the longest text of one column needs."""
    lines = [line for p in panels for t in p.tiles if len(t.columns) == 1 for line in t.lines]
    return max(1.2, *(0.068 * len(line) for label in columns.labels for line in [*label.split("\n"), *lines]))


def _wrap(text: str, width: float) -> str:
    return "\n".join(textwrap.fill(line, int(width)) for line in text.split("\n"))


def _draw(figure: Figure, axes: Axes, panel: Panel, rows: Ticks, columns: Ticks) -> None:
    values = [t.value for t in panel.tiles if t.value is not None and math.isfinite(t.value)]
    norm = _norm(values, panel.limits)
    for tile in panel.tiles:
        _draw_tile(axes, tile, COLOURS(norm(tile.value)) if tile.value in values else GREY)
    axes.set(xlim=(0, len(columns.labels)), ylim=(len(rows.labels), 0), xlabel=columns.name, ylabel=rows.name)
    axes.set_xticks([i + 0.5 for i in range(len(columns.labels))], columns.labels)
    axes.set_yticks([i + 0.5 for i in range(len(rows.labels))], rows.labels)
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    axes.set_title(panel.title, fontsize=10, loc="left")
    if panel.limits or len(set(values)) > 1:
        bar = figure.colorbar(ScalarMappable(norm, COLOURS), ax=axes, pad=0.02, fraction=0.05, aspect=30)
        bar.set_label(panel.unit, fontsize=8)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)


def _draw_tile(axes: Axes, tile: Tile, colour: tuple[float, float, float, float]) -> None:
    dark = _luminance(colour) < 0.18  # where white and black contrast alike
    corner, width, height = (tile.columns.start, tile.rows.start), len(tile.columns), len(tile.rows)
    patch = axes.add_patch(Rectangle(corner, width, height, facecolor=colour, edgecolor="white", linewidth=2.5))
    if not tile.complete:
        patch.set(hatch="///", hatchcolor=(1, 1, 1, 0.35) if dark else (0, 0, 0, 0.22))
    middle = corner[0] + width / 2, corner[1] + height / 2
    for i, line in enumerate(tile.lines):
        points = 11.5 * ((len(tile.lines) - 1) / 2 - i)
        text = axes.annotate(line, middle, (0, points), textcoords="offset points", ha="center", va="center")
        text.set(fontsize=8 if i else 10, fontweight="normal" if i else "bold", color="white" if dark else "black")
        text.set_path_effects([withStroke(linewidth=2.5, foreground=colour)])


def _norm(values: list[float], limits: tuple[float, float] | None) -> Normalize:
    if limits or not values:
        return Normalize(*(limits or (0, 1)))
    low, high, sizes = min(values), max(values), [abs(v) for v in values if v]
    if low == high:
        return Normalize(low - 1, high + 1)
    if math.log10(max(sizes) / min(sizes)) < DECADES:
        return Normalize(low, high)
    return LogNorm(low, high) if low > 0 else SymLogNorm(max(min(sizes), max(sizes) / 1e3), vmin=low, vmax=high)


def _luminance(colour: tuple[float, float, float, float]) -> float:
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
