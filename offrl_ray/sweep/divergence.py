"""Rules that say from one seed's train reports whether it is lost. Pure: equal histories, equal findings.

A rule holds or not at the newest report of a history, and is told once: at the first report where it holds. Thresholds
and what each rule leads to stand in `config.StopConfig`; a rule is silent where its metrics are not logged.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import Literal, NamedTuple

from offrl_ray.config import Action, RunConfig

KEY_METRICS = ("q_mean", "critic_loss", "actor_loss", "loss")


class Report(NamedTuple):
    """A train record of one seed."""

    step: int
    metrics: Mapping[str, float]  # means over the updates since the report before


class Finding(NamedTuple):
    rule: str
    action: Literal["stop", "note"]
    step: int
    reason: str  # one sentence: value, threshold, how many reports


History = Sequence[Report]
Rule = Callable[[History, RunConfig], str | None]
"""Why the rule holds at the newest report, or None."""


def judge(history: History, cfg: RunConfig) -> list[Finding]:
    """What the newest report of a history adds to what the earlier ones have told; stops come first.

    Where the policy does not listen to the critic, only a value that is not finite stops.
    """
    newest = history[-1]
    if reason := non_finite(newest):
        return [Finding("non_finite", "stop", newest.step, reason)]
    found, idle = [], _idle_critic(cfg)
    for name, rule in RULES.items():
        action: Action = getattr(cfg.stop, name)
        if action == "stop" and idle:
            action = "note"
        if action != "off" and (reason := rule(history, cfg)) and not _told(rule, history, cfg):
            found.append(Finding(name, action, newest.step, reason))
    return sorted(found, key=lambda f: f.action != "stop")


def _idle_critic(cfg: RunConfig) -> bool:
    """The policy learns nothing from the critic, so that no critic can spoil it."""
    return any(getattr(cfg.algo, weight, None) == 0 for weight in ("alpha", "beta"))


def _told(rule: Rule, history: History, cfg: RunConfig) -> bool:
    # newest first: what holds now most often held a report ago
    return any(rule(history[:n], cfg) for n in range(len(history) - 1, 0, -1))


def last_finite(history: History) -> str:
    """The key metrics of the newest report whose metrics are all finite."""
    for step, metrics in reversed(history):
        if all(map(math.isfinite, metrics.values())):
            values = " ".join(f"{k}={metrics[k]:.4g}" for k in KEY_METRICS if k in metrics)
            return f"last finite report at step {step}: {values}"
    return "no report was finite"


def non_finite(report: Report) -> str | None:
    bad = [name for name, value in report.metrics.items() if not math.isfinite(value)]
    if not bad:
        return None
    more = f" and {len(bad) - 1} other metrics are not finite" if len(bad) > 1 else ""
    return f"{bad[0]} is {report.metrics[bad[0]]}{more} in the updates up to step {report.step}"


def _series(history: History, *names: str) -> list[float] | None:
    """Values of the first of the metrics that every report has."""
    for name in names:
        if all(name in r.metrics for r in history):
            return [r.metrics[name] for r in history]
    return None


def _q(history: History) -> list[float] | None:
    """The larger of Q at the policy's and at the data's actions."""
    policy, data = _series(history, "q_policy_mean", "q_mean"), _series(history, "q_data_mean", "q_mean")
    return None if policy is None or data is None else [max(p, d) for p, d in zip(policy, data, strict=True)]


def _bounds(history: History) -> tuple[float, float] | None:
    """Widest provable bounds so far: those of a soft Q move with the temperature, and Q lags behind."""
    low, high = _series(history, "q_bound_low"), _series(history, "q_bound_high")
    return None if not low or not high or max(high) <= min(low) else (min(low), max(high))


def _conservative(report: Report) -> bool:
    """A term beside the TD error lifts the data's Q over every fixed point of the backup."""
    m = report.metrics
    return "td_loss" in m and m.get("critic_loss", m["td_loss"]) != m["td_loss"]


def q_bound(history: History, cfg: RunConfig) -> str | None:
    """A Q that has only fallen so far is its initialisation on its way in: a sigmoid starts at one half."""
    n, q, bounds = cfg.stop.q_bound_reports, _q(history), _bounds(history)
    if len(history) < n or q is None or bounds is None or _conservative(history[-1]):
        return None
    low, high = bounds
    limit = high + cfg.stop.q_bound_margin * (high - low)
    if min(q[-n:]) <= limit or q[-1] < min(q[:-1], default=limit):
        return None
    return f"Q is {q[-1]:.4g}, above {limit:.4g} for {n} reports; no true Q exceeds {high:.4g}"


def q_growth(history: History, cfg: RunConfig) -> str | None:
    n, q, bounds = cfg.stop.q_growth_reports, _q(history), _bounds(history)
    if len(history) <= n or q is None or bounds is None:
        return None
    late = q[-n - 1 :]
    earlier, later = late[n // 2] - late[0], late[-1] - late[n // 2]
    rising = all(a < b for a, b in pairwise(late))
    share = (later + earlier) / (bounds[1] - bounds[0])
    if not rising or later < cfg.stop.q_growth_factor * earlier or share < cfg.stop.q_growth_share:
        return None
    return f"Q rose at {n} reports in a row, {late[0]:.4g} -> {late[n // 2]:.4g} -> {late[-1]:.4g}, faster and faster"


def critic_loss(history: History, cfg: RunConfig) -> str | None:
    n, loss, bounds = cfg.stop.critic_loss_reports, _series(history, "td_loss", "critic_loss"), _bounds(history)
    if len(history) <= n or loss is None or bounds is None:
        return None
    before, width = median(loss[:-n]), bounds[1] - bounds[0]
    # Q within its bounds misses a target within them by no more than their width
    limit = max(cfg.stop.critic_loss_factor * before, width**2)
    if min(loss[-n:]) <= limit:
        return None
    return f"the critic's loss is {loss[-1]:.4g}, above {limit:.4g} for {n} reports; its median before is {before:.4g}"


def q_spread(history: History, cfg: RunConfig) -> str | None:
    n, spread, bounds = cfg.stop.q_spread_reports, _series(history, "q_std", "q_data_std"), _bounds(history)
    if len(history) < n or spread is None or bounds is None:
        return None
    limit = cfg.stop.q_spread_share * (bounds[1] - bounds[0])
    if min(spread[-n:]) <= limit:
        return None
    return f"the critics differ by {spread[-1]:.4g}, above {limit:.4g} for {n} reports; true Qs span {_span(bounds)}"


def _span(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.4g} to {bounds[1]:.4g}"


def temperature(history: History, cfg: RunConfig) -> str | None:
    """A step of Adam moves log temperature by its step size at most, and by that only under a gradient of one sign."""
    n, rate = cfg.stop.temperature_reports, getattr(cfg.algo, "lr_temperature", 0.0)
    values, entropy = _series(history, "temperature"), _series(history, "entropy")
    if len(history) <= n or not rate or values is None or entropy is None or min(values) <= 0:
        return None
    steps = [0, *(r.step for r in history)]
    middle = [(a + b) / 2 for a, b in pairwise(steps)]  # a report is a mean over its updates
    late = list(zip(middle, map(math.log, values), strict=True))[-n - 1 :]
    slopes = [(y1 - y0) / (x1 - x0) / rate for (x0, y0), (x1, y1) in pairwise(late)]
    if min(slopes) < cfg.stop.temperature_share:
        return None
    return (
        f"the temperature rose to {values[-1]:.4g} at {min(slopes):.0%} or more of what its step size allows, for {n} "
        f"reports; the entropy, {entropy[-1]:.4g}, never met its target"
    )


def lam(history: History, cfg: RunConfig) -> str | None:
    values, limit = _series(history, "actor_lam"), cfg.stop.lam_low
    if values is None or values[-1] >= limit or max(values) < limit:
        return None
    return f"actor_lam, the weight of Q, is {values[-1]:.4g}, below {limit:.4g}; it was {max(values):.4g}"


def _effective(history: History, cfg: RunConfig) -> Iterator[tuple[float, float]]:
    """Bounds on the share of a batch that its advantage weights rest on, report by report."""
    size = cfg.train.batch_size
    for _, m in history:
        if "effective_sample_share" in m:
            yield m["effective_sample_share"], m["effective_sample_share"]
        elif mode := next((k for k in ("awr", "iql") if m.get(f"{k}_weights_mean", 0.0) > 0), ""):
            top = max(1.0, m[f"{mode}_weights_max"] / m[f"{mode}_weights_mean"])
            rest = max(0.0, size - top) ** 2 / max(1, size - 1)  # all others equal
            yield 1 / top, size / (top**2 + rest)
        else:
            return


def weights_flat(history: History, cfg: RunConfig) -> str | None:
    """Weights that are all exactly 1 were asked for (beta = 0)."""
    n, shares = cfg.stop.weights_flat_reports, [low for low, _ in _effective(history, cfg)]
    if not n <= len(shares) == len(history) or min(shares[-n:]) <= cfg.stop.weights_flat_share or shares[-1] == 1:
        return None
    return f"the weights are as good as equal: {shares[-1]:.2%} of the batch counts, for {n} reports"


def weights_few(history: History, cfg: RunConfig) -> str | None:
    n, shares = cfg.stop.weights_few_reports, [high for _, high in _effective(history, cfg)]
    if not n <= len(shares) == len(history) or max(shares[-n:]) >= cfg.stop.weights_few_share:
        return None
    return f"the weights rest on {shares[-1]:.2%} of the batch, below {cfg.stop.weights_few_share:.2%} for {n} reports"


def entropy(history: History, cfg: RunConfig) -> str | None:
    """Where the temperature is held, or is no part of the loss, nothing aims at the target."""
    n, values, target = cfg.stop.entropy_reports, _series(history, "entropy"), _series(history, "target_entropy")
    held = not getattr(cfg.algo, "lr_temperature", 0.0)
    if len(history) < n or held or values is None or target is None:
        return None
    limit = target[-1] - cfg.stop.entropy_share * abs(target[-1])
    if max(values[-n:]) >= limit:
        return None
    return (
        f"the policy's entropy is {values[-1]:.4g}, below {limit:.4g} for {n} reports; its target is {target[-1]:.4g}"
    )


def plateau(history: History, cfg: RunConfig) -> str | None:
    n = cfg.stop.plateau_reports
    found = [s for name in ("actor_loss", "critic_loss", "q_mean") if (s := _series(history, name))]
    if len(history) < 2 * n or not found:
        return None
    for values in found:
        moved = abs(fmean(values[-n:]) - fmean(values[-2 * n : -n]))
        if moved > cfg.stop.plateau_share * (max(values) - min(values)):
            return None
    return f"losses and Q moved less than {cfg.stop.plateau_share:.2%} of their range over {2 * n} reports"


RULES: dict[str, Rule] = {
    f.__name__: f
    for f in (
        *(q_bound, q_growth, critic_loss, q_spread, temperature, lam),
        *(weights_flat, weights_few, entropy, plateau),
    )
}
"""By the name of the setting in `StopConfig` that says what the rule leads to."""
