"""Asynchronous successive halving, the stopping form (ASHA; Li et al., MLSys 2020, algorithm 2), on evaluated steps."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class RungSpec(NamedTuple):
    """Rungs at `grace`, `grace * eta`, `grace * eta**2`, ... evaluated updates; 1 of `eta` goes on from each."""

    grace: int
    eta: int = 3


class Rungs:
    """The values that have reached each rung. Higher is better; every value is an aggregate over seeds.

    A trial meets the highest rung at or below its evaluated step, once. It stops there if it is below the best
    1/`eta` of those that were there before it.
    """

    def __init__(self, spec: RungSpec, last: int):
        self._spec = spec
        self._rungs: dict[int, dict[str, float]] = {m: {} for m in _milestones(spec, last)}

    def decide(self, trial: str, step: int, value: float) -> str | None:
        """Why the trial should stop, or None. A value that is not finite is nobody's competitor."""
        for milestone, reached in self._rungs.items():
            if step < milestone:
                continue
            if trial in reached or not math.isfinite(value):
                return None
            others = list(reached.values())
            reached[trial] = value
            cutoff = np.percentile(others, 100 * (1 - 1 / self._spec.eta)) if others else -math.inf
            if value < cutoff:
                return (
                    f"rung {milestone}: {value:.4g} is below {cutoff:.4g}, the best 1/{self._spec.eta} of {len(others)}"
                )
            return None
        return None


def _milestones(spec: RungSpec, last: int) -> Iterator[int]:
    """From the highest, which lies below `last`: what has trained to the end is not stopped."""
    levels = []
    milestone = spec.grace
    while milestone < last:
        levels.append(milestone)
        milestone *= spec.eta
    yield from reversed(levels)
