"""What a trial's seeds are measured by, each name in one place: cells, curves, claims and tables all ask here."""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from results_analysis.load import Curves, Seed, Trial
from results_analysis.stats import Estimate, mean_over_seeds, rate_over_seeds, slope

LAST = 3  # evaluations of the window that smooths without choosing the best
QUARTER = 0.25  # of the training, which the _late and the _early ones are over
SHARE = "share of episodes"
WIDTHS = "widths of the bounds of Q"


class Measure(NamedTuple):
    name: str
    unit: str
    of: Callable[[Seed], float | None]  # of a seed that finished
    rate: bool = False  # a share of evaluation episodes
    train: bool = False  # of train reports: a seed that a rule stopped has it, too
    limits: tuple[float, float] | None = None  # of its colour scale
    metrics: tuple[str, ...] = ()  # train metrics that it is made of


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


def late_evaluations(seed: Seed, name: str) -> list[float]:
    """Of the last quarter of the training: with few evaluations the last one alone, never one from its middle."""
    curve = seed.eval_curve(name)
    return [v for step, v in curve if step > (1 - QUARTER) * curve[-1][0]]


def _late_evaluation(name: str) -> Callable[[Seed], float | None]:
    def of(seed: Seed) -> float | None:
        found = late_evaluations(seed, name)
        return float(np.mean(found)) if found else None

    return of


def _lost_since_best(name: str) -> Callable[[Seed], float | None]:
    def of(seed: Seed) -> float | None:
        n, values = len(late_evaluations(seed, name)), [v for _, v in seed.eval_curve(name)]
        if len(values) <= n or not n:
            return None
        means = np.convolve(values, np.ones(n) / n, mode="valid")
        return float(means.max() - means[-1])

    return of


def _best_of_all(name: str) -> Callable[[Seed], float | None]:
    def of(seed: Seed) -> float | None:
        found = late_evaluations(seed, name)
        return max(v for _, v in seed.eval_curve(name)) - float(np.mean(found)) if found else None

    return of


def _early(name: str) -> Callable[[Seed], float | None]:
    def of(seed: Seed) -> float | None:
        values = seed.train.metrics.get(name, np.empty(0))
        return float(np.mean(values[: max(1, int(QUARTER * len(values)))])) if len(values) else None

    return of


def _rise(name: str) -> Callable[[Seed], float | None]:
    def of(seed: Seed) -> float | None:
        steps, values = seed.train.steps, seed.train.metrics.get(name)
        if values is None or len(steps) < 2:
            return None
        return slope(list(zip(steps.tolist(), values.tolist(), strict=True))) * float(steps[-1] - steps[0])

    return of


def _max(name: str) -> Callable[[Seed], float | None]:
    def of(seed: Seed) -> float | None:
        values = seed.train.metrics.get(name, np.empty(0))
        return float(np.max(values)) if len(values) else None

    return of


def _combined(fold: Callable[..., float], *parts: Callable[[Seed], float | None]) -> Callable[[Seed], float | None]:
    def of(seed: Seed) -> float | None:
        found = [part(seed) for part in parts]
        known = [v for v in found if v is not None]
        return float(fold(*known)) if len(known) == len(found) else None

    return of


def _in_widths(value: float, low: float, high: float) -> float:
    return value / (high - low)


def _above_in_widths(value: float, low: float, high: float) -> float:
    return (value - high) / (high - low)


def _log10(value: float) -> float:
    return math.log10(value) if value > 0 else math.nan


def _excess(seed: Seed) -> float | None:
    q, high = seed.train.last("q_policy_mean"), seed.train.last("q_bound_high")
    return None if q is None or high is None else q - high


BOUND = ("q_bound_low", "q_bound_high")
BOUNDS = tuple(_last(name) for name in BOUND)


def _trained(name: str, unit: str, of: Callable[[Seed], float | None], *metrics: str) -> Measure:
    return Measure(name, unit, of, train=True, metrics=metrics)


MEASURES = {
    m.name: m
    for m in (
        Measure("success_once", SHARE, _final("success_once"), rate=True, limits=(0.0, 1.0)),
        Measure("success_at_end", SHARE, _final("success_at_end"), rate=True, limits=(0.0, 1.0)),
        Measure("return", "reward per episode", _final("return")),
        Measure("length", "environment steps", _final("length")),
        Measure("success_once_last3", SHARE, _window("success_once"), limits=(0.0, 1.0)),
        Measure("return_last3", "reward per episode", _window("return")),
        Measure("q_start", "scaled return", _final("q_start")),
        Measure("discounted_return", "scaled return", _final("discounted_return")),
        Measure("q_gap", "scaled return", _final("q_gap")),
        _trained("q_excess", "scaled return", _excess, "q_policy_mean", "q_bound_high"),
        _trained("critic_loss_late_max", "squared scaled return", _late("critic_loss", np.max), "critic_loss"),
        Measure("success_once_late", SHARE, _late_evaluation("success_once"), limits=(0.0, 1.0)),
        Measure("return_late", "reward per episode", _late_evaluation("return")),
        Measure("return_lost", "reward per episode", _lost_since_best("return")),
        Measure("success_once_best_gain", SHARE, _best_of_all("success_once")),
        _trained("critic_loss_peak", "decades", _combined(_log10, _late("critic_loss", np.max)), "critic_loss"),
        _trained("q_widths", WIDTHS, _combined(_in_widths, _late("q_policy_mean"), *BOUNDS), "q_policy_mean", *BOUND),
        _trained("q_rise", WIDTHS, _combined(_in_widths, _rise("q_policy_mean"), *BOUNDS), "q_policy_mean", *BOUND),
        _trained("actor_q_excess", WIDTHS, _combined(_above_in_widths, _late("actor_q"), *BOUNDS), "actor_q", *BOUND),
        _trained(
            "entropy_gap",
            "nats",
            _combined(operator.sub, _late("entropy"), _late("target_entropy")),
            "entropy",
            "target_entropy",
        ),
    )
}
"""By name. Of the last evaluation; with _last3, the mean of the last three; with _late, of those in the last quarter of
the training. q_gap = q_start - discounted_return is the overestimation; q_excess is how far Q at the policy's actions
exceeds its provable bound in the last report, actor_q_excess the same of actor_q over the last quarter of the reports;
q_widths is Q at the policy's actions over the last quarter, and q_rise its rise over the training: above 1, no true Q
can rise so far. return_lost is
the best mean of as many evaluations in a row as the late ones are, less the late ones' mean; success_once_best_gain
what telling the best of all evaluations would add to the late ones' mean. critic_loss_peak is log10 of
critic_loss_late_max. Any other name is a train metric in the last report; NAME_late its mean over the last quarter of
the reports, NAME_early over the first; NAME_max its largest; NAME_rise its Theil-Sen slope times the training's
length."""

FORMS = {"_late": _late, "_early": _early, "_rise": _rise, "_max": _max}


def measure(name: str) -> Measure:
    """The measure of a name; one that is not listed is a train metric, which not every variant has."""
    if name in MEASURES:
        return MEASURES[name]
    for end, form in FORMS.items():
        if name.endswith(end):
            metric = name.removesuffix(end)
            return _trained(name, "as logged", form(metric), metric)
    return _trained(name, "as logged", _last(name), name)


class Configured(NamedTuple):
    """A measure that needs the trial's settings, too."""

    name: str
    unit: str
    of: Callable[[Mapping[str, Any], Seed], float | None]
    metrics: tuple[str, ...]


def _q_weight(config: Mapping[str, Any], seed: Seed) -> float | None:
    algo, metrics = config["algo"], seed.train.metrics
    norms = [metrics.get(name) for name in ("grad_norm_q_policy", "grad_norm_flow")]
    if any(n is None or not len(n) for n in norms) or not algo.get("bc_weight"):
        return None
    pull, hold = (float(np.mean(n)) for n in norms if n is not None)
    return algo["alpha"] * pull / (algo["bc_weight"] * hold) if hold else None


def _ramp(config: Mapping[str, Any], seed: Seed) -> float | None:
    values, steps = seed.train.metrics.get("temperature"), seed.train.steps
    if values is None or len(steps) < 2 or not config["algo"].get("lr_temperature"):
        return None
    return math.log(values[-1] / values[0]) / (config["algo"]["lr_temperature"] * float(steps[-1] - steps[0]))


CONFIGURED = {
    c.name: c
    for c in (
        Configured("effective_q_weight", "of the data's pull", _q_weight, ("grad_norm_q_policy", "grad_norm_flow")),
        Configured("temperature_ramp", "of Adam's fastest", _ramp, ("temperature",)),
    )
}
"""effective_q_weight = alpha |grad L_Q| / (bc_weight |grad L_flow|), norms averaged over the training: what the Q term
weighs in a step of the policy. temperature_ramp: the rise of log temperature, as a share of lr_temperature a step."""


def up_to_the_stop(curves: Curves) -> Curves:
    """The reports before the first in which a metric that began finite no longer is."""
    table = np.array([v for v in curves.metrics.values() if len(v) and np.isfinite(v[0])])
    bad = ~np.isfinite(table).all(axis=0) if table.size else np.ones(len(curves.steps), bool)
    end = int(bad.argmax()) if bad.any() else len(bad)
    return Curves(curves.steps[:end], {name: v[:end] for name, v in curves.metrics.items()})


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
