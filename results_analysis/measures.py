"""What a trial's seeds are measured by, each name in one place: cells, curves, claims and tables all ask here."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from results_analysis.load import Seed, Trial
from results_analysis.stats import Estimate, mean_over_seeds, rate_over_seeds

LAST = 3  # evaluations of the window that smooths without choosing the best


class Measure(NamedTuple):
    name: str
    unit: str
    of: Callable[[Seed], float | None]  # of a seed that finished
    rate: bool = False  # a share of evaluation episodes
    train: bool = False  # of train reports: a seed that a rule stopped has it, too
    limits: tuple[float, float] | None = None  # of its colour scale


def _final(name: str) -> Callable[[Seed], float | None]:
    return lambda seed: seed.final.mean(name) if seed.final else None


def _window(name: str) -> Callable[[Seed], float | None]:
    def of(seed: Seed) -> float | None:
        values = [v for _, v in seed.eval_curve(name)[-LAST:]]
        return float(np.mean(values)) if values else None

    return of


def _last(name: str) -> Callable[[Seed], float | None]:
    return lambda seed: seed.train.last(name)


def _late(name: str, fold: Callable[[np.ndarray], float] = np.mean) -> Callable[[Seed], float | None]:
    def of(seed: Seed) -> float | None:
        values = seed.train.late(name)
        return float(fold(values)) if len(values) else None

    return of


def _excess(seed: Seed) -> float | None:
    q, high = seed.train.last("q_policy_mean"), seed.train.last("q_bound_high")
    return None if q is None or high is None else q - high


MEASURES = {
    m.name: m
    for m in (
        Measure("success_once", "share of episodes", _final("success_once"), rate=True, limits=(0.0, 1.0)),
        Measure("success_at_end", "share of episodes", _final("success_at_end"), rate=True, limits=(0.0, 1.0)),
        Measure("return", "reward per episode", _final("return")),
        Measure("length", "environment steps", _final("length")),
        Measure("success_once_last3", "share of episodes", _window("success_once"), limits=(0.0, 1.0)),
        Measure("return_last3", "reward per episode", _window("return")),
        Measure("q_start", "scaled return", _final("q_start")),
        Measure("discounted_return", "scaled return", _final("discounted_return")),
        Measure("q_gap", "scaled return", _final("q_gap")),
        Measure("q_excess", "scaled return", _excess, train=True),
        Measure("critic_loss_late_max", "squared scaled return", _late("critic_loss", np.max), train=True),
    )
}
"""By name. Of the last evaluation; with _last3, the mean of the last three. q_gap = q_start - discounted_return is the
overestimation; q_excess is how far Q at the policy's actions exceeds its provable bound in the last report. Any other
name is a train metric in the last report, and NAME_late its mean over the last quarter of the reports."""


def measure(name: str) -> Measure:
    """The measure of a name; one that is not listed is a train metric, which not every variant has."""
    if name in MEASURES:
        return MEASURES[name]
    metric = name.removesuffix("_late")
    return Measure(name, "as logged", _late(metric) if metric != name else _last(name), train=True)


def values(trial: Trial, name: str) -> dict[int, float]:
    """seed -> value of the seeds that finished and have it; inf and NaN stay."""
    of = measure(name).of
    return {s.seed: v for s in trial.finished if (v := of(s)) is not None}


def estimate(trial: Trial, name: str) -> Estimate | None:
    """Over the trial's finished seeds; None if none has it, or not all of them."""
    m, finished = measure(name), trial.finished
    if m.rate:
        return rate_over_seeds([s.final.episodes[name].tolist() for s in finished if s.final])
    found = list(values(trial, name).values())
    return mean_over_seeds(found) if found and len(found) == len(finished) else None


def finite(found: dict[int, float]) -> dict[int, float]:
    """Without the seeds whose value is NaN or infinite."""
    return {seed: v for seed, v in found.items() if math.isfinite(v)}
