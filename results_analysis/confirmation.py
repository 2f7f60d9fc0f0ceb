"""The best points, and what they gave again on seeds that had no part in the choice.

The best of many noisy values lies above what the same point gives a second time (Cawley and Talbot, JMLR 11:2079, 2010;
for RL, Eimer, Lindauer and Raileanu, ICML 2023): tuned and confirmed values stand side by side.
"""

import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import NormalDist, fmean, variance
from typing import NamedTuple

import numpy as np

from results_analysis.blocks import Block, Section, Table, Text, Value
from results_analysis.grid import point_text
from results_analysis.load import Sweep, Trial
from results_analysis.measures import measure
from results_analysis.stats import Estimate, Test, difference, mean_over_seeds, paired_difference, rate_over_seeds
from results_analysis.words import Say

TOP, SEEDS = 3, 5  # of the command that is recommended


Ranked = tuple[Trial, "Values"]


class Objective(NamedTuple):
    """What points are ranked by."""

    metric: str
    mode: str  # max or min

    def better(self, a: "Values", b: "Values") -> tuple["Values", "Values"]:
        """The two as arms whose difference is above 0 where a is better."""
        return (b, a) if self.mode == "min" else (a, b)

    def best_first(self, found: Iterable[Ranked]) -> list[Ranked]:
        return sorted(found, key=lambda pair: pair[1].mean, reverse=self.mode != "min")


class Values(NamedTuple):
    """Of one point."""

    of: Mapping[int, float]  # seed -> value; empty if a seed lacks it
    estimate: Estimate | None
    episodes: int | None  # each seed's, of a success rate

    @property
    def finite(self) -> bool:
        return bool(self.of) and all(map(math.isfinite, self.of.values()))

    @property
    def mean(self) -> float:
        return fmean(self.of.values())


def section(sweeps: Sequence[Sweep], say: Say) -> Section:
    found: list[Block] = []
    for s in sweeps:
        found += _confirmed(s, s.confirmation, say) if s.confirmation else _unconfirmed(s, say)
    return Section("confirmation", say("The winner, confirmed"), found)


def expected_maximum(n: int) -> float:
    """Of n independent standard normal values: the integral of x n phi(x) Phi(x)^(n - 1).

    Tippett, Biometrika 17:364 (1925), who gives 1.5388 for n = 10; David and Nagaraja, Order Statistics (2003), 2.1.
    """
    normal, x = NormalDist(), np.linspace(-10, 10, 4001)
    below = np.array([normal.cdf(v) for v in x])
    density = np.array([normal.pdf(v) for v in x])
    return float(np.trapezoid(x * n * density * below ** (n - 1), x))


def objective(sweep: Sweep) -> Objective:
    """The sweep's first, or success."""
    first = next(iter(sweep.plan.get("objectives") or []), {"metric": "success_once", "mode": "max"})
    return Objective(first["metric"], first["mode"])


def values(trial: Trial | None, metric: str) -> Values:
    """As the sweep ranks its points: a seed that diverged counts as no success, and leaves no other metric of episodes
    a mean; metrics of training are of the healthy seeds."""
    m, found = measure(metric), dict[int, float]()
    for s in trial.seeds if trial else []:
        value = m.of(s) if s.finished else 0.0 if m.rate and s.diverged is not None else None
        if value is not None:
            found[s.seed] = value
        elif not (m.train and s.diverged is not None):
            return Values({}, None, None)
    if not trial or not found or not m.rate:
        return Values(found, mean_over_seeds(list(found.values())), None)
    finals = [s.final for s in trial.seeds if s.finished and s.final]
    episodes = len(finals[0].episodes[metric]) if finals else int(trial.config["eval"]["episodes"])
    lost = [[0.0] * episodes] * (len(found) - len(finals))
    told = rate_over_seeds([*(f.episodes[metric].tolist() for f in finals), *lost])
    return Values(found, told, episodes)


def ranked(sweep: Sweep, aim: Objective) -> list[Ranked]:
    """The points that ended well and have finite values, the best first."""
    ended = [t for t in sweep.trials if t.status in ("completed", "partly diverged")]
    found = [(t, v) for t in ended if (v := values(t, aim.metric)).finite]
    return aim.best_first(found)


def standard_error(found: Sequence[Values]) -> float | None:
    """Of one point's mean, pooled over the points: over seeds, or over episodes where a rate has but one seed."""
    squares = []
    for v in found:
        if len(v.of) > 1:
            squares.append(variance(v.of.values()) / len(v.of))
        elif v.episodes:
            squares.append(v.mean * (1 - v.mean) / v.episodes)
    return math.sqrt(fmean(squares)) if squares else None


def lead(aim: Objective, best: Values, other: Values) -> tuple[Estimate, bool]:
    """How far the one is ahead of the other, paired by seed, and whether the interval excludes 0."""
    x, y = aim.better(best, other)
    test = paired_difference(x.of, y.of, _fewer_episodes(x, y))
    return Estimate(test.effect, test.interval, test.n), test.interval is not None and test.interval[0] > 0


def command(sweep: Sweep, n: int) -> str:
    """That confirms the best of `n` points; a copy of the records is no folder to train in."""
    folder = "DIR" if sweep.folder.is_file() else shlex.quote(str(sweep.folder))
    return f"offrl-ray confirm {folder} --top {min(TOP, n)} --seeds {SEEDS}"


def in_words(e: Estimate | None) -> str:
    """A value in a sentence."""
    if e is None:
        return "-"
    return f"{e.mean:.3g} [{e.interval[0]:.3g}, {e.interval[1]:.3g}] (n = {e.n})" if e.interval else f"{e.mean:.3g}"


def itself(sweep: Sweep, say: Say) -> Text | None:
    """What is said of a sweep that is a confirmation."""
    told = sweep.plan.get("confirms")
    what = "{sweep} is itself the confirmation of {folder}."
    return Text(say(what, sweep=sweep.label, folder=told["folder"])) if told else None


def no_winner(sweep: Sweep, say: Say) -> Text:
    what = "{sweep}: no point has ended with a value of {metric}, so there is no winner."
    return Text(say(what, sweep=sweep.label, metric=objective(sweep).metric), "warning")


def _unconfirmed(sweep: Sweep, say: Say) -> Iterator[Block]:
    if text := itself(sweep, say):
        yield text
        return
    aim = objective(sweep)
    found = ranked(sweep, aim)
    if not found:
        yield no_winner(sweep, say)
        return
    (best, v), error = found[0], standard_error([v for _, v in found])
    places = {"sweep": sweep.label, "point": point_text(best), "metric": aim.metric, "value": in_words(v.estimate)}
    what = "{sweep}: {point} has the best {metric}, {value}, and was chosen by it. Not confirmed yet: {command}"
    yield Text(say(what, **places, command=command(sweep, len(found))), "warning")
    if (ties := sum(w.mean == v.mean for _, w in found)) > 1:
        yield Text(say("{sweep}: {n} points share this value.", sweep=sweep.label, n=ties), "warning")
    if error and len(found) > 1:
        what = (
            "{sweep}: were all {n} points equally good, noise alone would make the best of them look better by about "
            "{bias:.2g}: {times:.2f} times {error:.2g}, the standard error of a point over its seeds."
        )
        times = expected_maximum(len(found))
        yield Text(say(what, sweep=sweep.label, n=len(found), bias=times * error, times=times, error=error))


def _confirmed(sweep: Sweep, again: Sweep, say: Say) -> Iterator[Block]:
    aim, told = objective(again), again.plan.get("confirms") or {}
    tuned, trials = ({t.name: t for t in s.trials} for s in (sweep, again))
    names = [n for n in told.get("points") or list(trials) if n in trials]
    first = {n: values(tuned.get(n), aim.metric) for n in names}
    second = {n: values(trials[n], aim.metric) for n in names}
    columns = ["rank", "point", "tuned {metric}", "confirmed {metric}", "drop", "status"]
    rows: list[Sequence[Value]] = []
    for i, n in enumerate(names, 1):
        drop = _compare(aim, first[n], second[n])
        gone = drop and Estimate(drop.effect, drop.interval, drop.n)
        status = say(trials[n].status)
        rows.append([i, point_text(trials[n]), first[n].estimate, second[n].estimate, gone, status])
    caption = say(
        "{sweep}: {metric} at the last step, as it was when the points were chosen and on fresh seeds. The drop is how "
        "much worse the second value is (Welch's t, different seeds). A seed that diverged counts as no success.",
        **{"sweep": sweep.label, "metric": aim.metric},
    )
    titles = [say(c, metric=aim.metric) for c in columns]
    yield Table(f"confirmation-{sweep.label}", caption, titles, rows)
    yield from _alike(sweep, again, say)
    yield from _seeds(sweep, again, say)
    left = [point_text(trials[n]) for n in names if trials[n].status not in ("completed", "partly diverged")]
    if left:
        what = "{sweep}: the confirmation is not finished, or has lost points: {names}"
        yield Text(say(what, sweep=sweep.label, names="; ".join(left)), "warning")
    yield from _winner(sweep.label, aim, [(trials[n], second[n]) for n in names if second[n].finite], names, say)


def _compare(aim: Objective, a: Values, b: Values) -> Test | None:
    """How much better a is than b, on different seeds; None where one has no value."""
    if not a.of or not b.of:
        return None
    x, y = aim.better(a, b)
    return difference(list(x.of.values()), list(y.of.values()), _fewer_episodes(x, y))


def _fewer_episodes(a: Values, b: Values) -> int | None:
    """Of two success rates: what widens their difference more."""
    return min(a.episodes, b.episodes) if a.episodes and b.episodes else None


def _winner(sweep: str, aim: Objective, found: list[Ranked], names: Sequence[str], say: Say) -> Iterator[Text]:
    found = aim.best_first(found)
    if len(found) < 2:
        return
    (best, v), (second, w) = found[:2]
    gap, apart = lead(aim, v, w)
    what = (
        "{sweep}: on fresh seeds {point} is best, {value}, and better than the next, {other}, by {gap}: "
        "the interval over seeds excludes 0."
        if apart
        else "{sweep}: on fresh seeds {point} is best, {value}, but its lead over the next, {other}, is {gap}: "
        "not shown to be more than luck."
    )
    places = {
        "point": point_text(best),
        "value": in_words(v.estimate),
        "other": point_text(second),
        "gap": in_words(gap),
    }
    yield Text(say(what, sweep=sweep, **places), "good" if apart else "warning")
    if best.name != names[0]:
        yield Text(say("{sweep}: it is not the point that tuning had put first.", sweep=sweep), "warning")


def _alike(sweep: Sweep, again: Sweep, say: Say) -> Iterator[Text]:
    """Whether the two may be compared at all."""
    digest = (again.plan.get("confirms") or {}).get("digest")
    if digest != sweep.plan.get("digest"):
        what = "{sweep}: the confirmation is of another plan ({digest}, not {own}): its points may not be these."
        yield Text(say(what, sweep=sweep.label, digest=digest, own=sweep.plan.get("digest")), "bad")
    before, after = (s.plan.get("versions") or {} for s in (sweep, again))
    changed = [f"{k} {before.get(k)} -> {after.get(k)}" for k in before | after if before.get(k) != after.get(k)]
    if changed:
        what = "{sweep}: the confirmation ran with other versions, so that seeds are not the only difference: {changed}"
        yield Text(say(what, sweep=sweep.label, changed=", ".join(changed)), "warning")


def _seeds(sweep: Sweep, again: Sweep, say: Say) -> Iterator[Text]:
    training = [{s.seed for t in x.trials for s in t.seeds} for x in (sweep, again)]
    evaluation = [{k for t in x.trials for k in _episode_seeds(t)} for x in (sweep, again)]
    for kind, (a, b) in (("training", training), ("evaluation", evaluation)):
        if both := sorted(a & b):
            what = "{sweep}: NOT a confirmation: {n} {kind} seeds had a part in the choice, {first} the first of them."
            yield Text(say(what, sweep=sweep.label, n=len(both), kind=say(kind), first=both[0]), "bad")
    what = (
        "{sweep}: tuned on training seeds {tuned} and evaluation seeds {episodes}; confirmed on training seeds {fresh} "
        "and evaluation seeds {held_out}."
    )
    told = [_span(x) for x in (*training, *evaluation)]
    places = dict(zip(("tuned", "fresh", "episodes", "held_out"), told, strict=True))
    yield Text(say(what, sweep=sweep.label, **places))


def _episode_seeds(trial: Trial) -> range:
    e = trial.config["eval"]
    return range(e["seed"], e["seed"] + e["episodes"])


def _span(numbers: set[int]) -> str:
    return f"{min(numbers)}-{max(numbers)}"
