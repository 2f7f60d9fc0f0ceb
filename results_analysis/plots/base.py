"""What all pictures share: fonts, foreign text taken literally, axes whose numbers need no formulas, PNG bytes."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
from matplotlib import colormaps, font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

COLOURS = colormaps["viridis"]  # even in lightness: readable in grey and with any colour vision
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
MARKERS = "osD^vPX*"
DECADES = 1.5  # numbers whose sizes span more get a logarithmic scale
CHINESE = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "PingFang SC",
)  # for foreign names

_fonts = ["DejaVu Sans", *(f for f in CHINESE if f in font_manager.get_font_names())]
style = matplotlib.rc_context(
    {"font.family": _fonts, "text.parse_math": False, "axes.unicode_minus": False, "font.size": 9, "figure.dpi": 160}
)
"""Decorates every function that draws: a dollar sign in a name is a dollar sign."""


@contextlib.contextmanager
def boxes() -> Iterator[None]:
    """Signs that no font has are drawn as boxes, and nothing is said of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def png(figure: Figure) -> bytes:
    out = io.BytesIO()
    with boxes():
        FigureCanvasAgg(figure).print_png(out, metadata={"Software": None})
    return out.getvalue()


def clean(axes: Axes) -> None:
    """Only the two lines that carry numbers, and a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def scale(axes: Axes, values: Sequence[float], which: str = "y") -> None:
    """A logarithmic axis where sizes span decades; symmetric around zero where some are not positive."""
    sizes = [abs(v) for v in values if v]
    if not sizes or max(sizes) / min(sizes) < 10**DECADES:
        return
    axis, of = (axes.yaxis, axes.set_yscale) if which == "y" else (axes.xaxis, axes.set_xscale)
    if min(values) > 0:
        of("log")
    else:
        of("symlog", linthresh=threshold(sizes))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter("")


def threshold(sizes: Sequence[float]) -> float:
    """Below it a symmetric logarithmic scale is linear; at most three decades are logarithmic."""
    return max(min(sizes), max(sizes) / 1e3)


def brief(text: str, most: int = 40) -> str:
    """At most so many characters: of a longer text its beginning and its end, which tell names apart."""
    if len(text) <= most:
        return text
    head = most // 2
    return f"{text[:head]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - (most - head - 1) :]}"


def look(i: int, n: int) -> dict[str, Any]:
    """Of line `i` of `n`: a colour, and a dash and a marker that tell it apart in grey."""
    return {
        "color": COLOURS(0.88 * i / max(n - 1, 1)),
        "linestyle": DASHES[i % len(DASHES)],
        "marker": MARKERS[i % len(MARKERS)],
    }
