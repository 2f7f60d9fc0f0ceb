"""What the findings' checks have in common."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from offrl_ray.claim import Ask, Check, Direction, Selection

SUCCESS = "success_once_late"
MATTERS = 0.05  # share of episodes
OFTEN = {"eval.every": "250", "eval.episodes": "50"}
"""for quick presets, which judge twice: eight evaluations, of which two are late"""


def with_levels(
    measure: str, over: str, direction: Direction, least: float, where: Selection, order: Sequence[Any] = ()
) -> tuple[Check, Check]:
    """It changes by more than `least` from the lowest to the highest level, and from each to the next the same way."""
    trend = Check(kind="trend", measure=measure, direction=direction, over=over, where=where, order=order)
    ends = Check(kind="ends", measure=measure, direction=direction, least=least, over=over, where=where, order=order)
    return ends, trend


def asks(
    script: str, settings: Mapping[str, str], axes: Sequence[str] = (), quick: Mapping[str, str] = OFTEN
) -> tuple[Ask, ...]:
    """A script's grid takes lists of its own `axes` alone: values A,B of another setting are runs of their own."""
    apart = {k: v.split(",") for k, v in settings.items() if "," in v and k not in axes}
    rest = {k: v for k, v in settings.items() if k not in apart}
    at = [dict(zip(apart, values, strict=True)) for values in itertools.product(*apart.values())]
    return tuple(Ask(script, rest | own, quick) for own in at)
