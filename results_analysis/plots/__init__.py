"""The one plotting package: takes numbers and words, gives PNG bytes; knows nothing of records."""

from results_analysis.plots.base import COLOURS
from results_analysis.plots.curves import Frame, Line, curves
from results_analysis.plots.heatmap import Panel, Ticks, Tile, heatmap, shades
from results_analysis.plots.knobs import Sense, bars, budget, parallel, sensitivity
from results_analysis.plots.truth import Mark, against

__all__ = [
    "COLOURS",
    "Frame",
    "Line",
    "Mark",
    "Panel",
    "Sense",
    "Ticks",
    "Tile",
    "against",
    "bars",
    "budget",
    "curves",
    "heatmap",
    "parallel",
    "sensitivity",
    "shades",
]
