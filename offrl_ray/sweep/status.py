"""Where a sweep stands, for a person and for a program."""

import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from offrl_ray.errors import plain
from offrl_ray.intervals import rate_interval, t_interval
from offrl_ray.segments import LOCK
from offrl_ray.store import held
from offrl_ray.sweep.forecast import seconds_left, steps_left, unasked
from offrl_ray.sweep.lease import driven
from offrl_ray.sweep.state import EPISODE, Record, State, Trial

SHOWN = 10
LINE_EVERY_SECONDS = 10.0


class Best(NamedTuple):
    trial: str
    metric: str
    value: float  # mean over its seeds at the last step; one that diverged counts 0
    interval: tuple[float, float] | None  # 95 %, over seeds
    seeds: int


class Cost(NamedTuple):
    train_seconds: float  # inside updates, summed over trials; what was lost and done again counts once
    wall_seconds: float | None  # while a driver ran; None if no pace is known yet
    gpu_hours: float | None  # trials while they train, evaluators all the time; None without GPUs


class Summary(NamedTuple):
    name: str
    counts: dict[str, int]  # trials that are completed, pruned, diverged, failed, running, queued
    unasked: int  # points that a search has still to ask for
    failures: dict[str, int]  # failed trials by class
    best: Best | None
    eta_seconds: float | None  # None: no driver runs, or no pace is known yet
    so_far: Cost
    to_go: Cost
    driver: dict[str, Any] | None  # host, pid and since of the one that runs
    age: float  # seconds since the newest record
    reasons: list[str]  # why trials and seeds failed or diverged, foreign text quoted

    @property
    def total(self) -> int:
        return sum(self.counts.values()) + self.unasked

    @property
    def ended(self) -> int:
        return self.total - self.unasked - self.counts["running"] - self.counts["queued"]

    def json(self) -> dict[str, Any]:
        """As `offrl-ray status --json` prints it; no number in it is NaN or infinite."""
        best = self.best._asdict() if self.best else None
        cost = {"so_far": self.so_far._asdict(), "to_go": self.to_go._asdict()}
        rest = {"eta_seconds": self.eta_seconds, "cost": cost, "driver": self.driver, "age_seconds": self.age}
        counts = {**self.counts, "unasked": self.unasked, "total": self.total, "failures": self.failures}
        return {"name": self.name, **counts, "best": best, **rest, "reasons": self.reasons}


def driver_runs(folder: Path) -> bool:
    """True if a driver holds the folder's lock, or of a working copy the lease of its store."""
    return held(folder / LOCK) or driven(folder)


def objective(state: State) -> str:
    """What "best" is judged by."""
    return state.objectives()[0][0]


def ranked(state: State, metric: str, mode: str) -> list[Trial]:
    """The completed trials with a finite value of the metric, the best first, equals in the order of the plan."""
    found = [(t, t.value(metric)) for t in state.trials.values() if t.status == "completed" and t.same_as is None]
    known = [(v, t) for t, v in found if v is not None and math.isfinite(v)]
    return [t for _, t in sorted(known, key=lambda pair: pair[0] if mode == "min" else -pair[0])]


def best(state: State) -> Trial | None:
    """The completed trial that is best by `objective`, the first of equals."""
    return next(iter(ranked(state, *state.objectives()[0])), None)


def interval(trial: Trial, metric: str) -> tuple[float, float] | None:
    """95 % interval of the mean over seeds at the last step: Student's t, for success rates widened to hold Wilson's.

    None for fewer than two seeds, and for metrics that are not of evaluations.
    """
    n, found = len(trial.seeds), trial.evals.get(trial.steps, {})
    values = [found.get(s, {}).get(metric, 0.0) for s in trial.seeds]
    if metric not in EPISODE:
        return None
    if not metric.startswith("success"):
        return t_interval(values)
    episodes = trial.config["eval"]["episodes"]
    return rate_interval(values, sum(values) * episodes, n * episodes)


def summary(state: State, now: float, running: bool = True) -> Summary:
    """The state at a time in unix seconds. Trials run only while a driver does (`running`), else they are queued."""
    counts, top, session = state.counts(), best(state), state.session
    if not running:
        counts["queued"] += counts["running"]
        counts["running"] = 0
    elapsed = max(0.0, (now if running else state.heard) - session["time"]) if session else 0.0
    own, asked = steps_left(state)
    left = seconds_left(state, elapsed, own, asked)
    trials = [t for t in state.trials.values() if t.same_as is None]
    trained = sum(t.seconds for t in trials if not t.cached)
    steps = sum(t.step for t in trials if not t.cached)
    to_train = (sum(own.values()) + asked) * trained / steps if steps else 0.0
    metric = objective(state)
    since = {k: session[k] for k in ("host", "pid")} | {"since": session["time"]} if session else {}
    return Summary(
        name=plain((state.plan or {}).get("name", "")),
        counts=counts,
        unasked=unasked(state),
        failures=dict(Counter(t.end["failure"] for t in trials if t.end and t.status == "failed")),
        best=Best(plain(top.name), metric, top.value(metric) or 0.0, interval(top, metric), len(top.seeds))
        if top
        else None,
        eta_seconds=left if running else None,
        so_far=_cost(state, trained, state.wall + elapsed),
        to_go=_cost(state, to_train, left),
        driver=since if running else None,
        age=max(0.0, now - state.heard),
        reasons=[r for t in trials if t.end for r in _reasons(t, t.end)],
    )


def _cost(state: State, train: float, wall: float | None) -> Cost:
    r = (state.session or {}).get("resources") or (state.plan or {}).get("resources") or {}
    trial, evaluators = r.get("gpus_per_trial", 0), (r.get("evaluators") or 1) * r.get("gpus_per_evaluator", 0)
    hours = (train * trial + (wall or 0.0) * evaluators) / 3600
    return Cost(train, wall, hours if trial or evaluators else None)


def _reasons(trial: Trial, end: Record) -> list[str]:
    if trial.status in ("failed", "diverged"):
        kind = f"{trial.status} ({end['failure']})" if trial.status == "failed" else trial.status
        return [f"{plain(trial.name)}: {kind} at step {end['step']}: {end['reason'][:300]!r}"]
    return [f"{plain(trial.name)}: seed {plain(s)} diverged: {why[:300]!r}" for s, why in trial.diverged.items()]


def clock(seconds: float) -> str:
    """0:05, 12:34 or 1:02:03; never 0:00, which would say that nothing is left."""
    minutes, s = divmod(max(1, math.ceil(seconds)), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def line(s: Summary) -> str:
    """One line: done, running, time and the best so far."""
    parts = [f"{s.ended}/{s.total} done", f"{s.counts['running']} running", f"{clock(s.so_far.wall_seconds or 0)} gone"]
    parts[1:1] = [f"{n} {k}" for k, n in s.counts.items() if n and k in ("pruned", "diverged", "failed")]
    if s.ended < s.total:
        parts.append("no estimate yet" if s.eta_seconds is None else f"{clock(s.eta_seconds)} left")
    return ", ".join([*parts, f"best {_best(s.best)}"] if s.best else parts)


def _best(b: Best) -> str:
    over = f" [{b.interval[0]:.3g}, {b.interval[1]:.3g}]" if b.interval else ""
    return f"{b.metric} {b.value:.3g}{over} at {b.trial}"


def text(s: Summary) -> str:
    """Several lines, for a person."""
    failed = ", ".join(f"{n} {plain(k)}" for k, n in s.failures.items())
    counts = ", ".join(f"{n} {k}" + (f" ({failed})" if k == "failed" and n else "") for k, n in s.counts.items())
    driver = f"{plain(str(s.driver.get('host')))}, pid {s.driver.get('pid')}" if s.driver else "none"
    best = _best(s.best) + f", {s.best.seeds} seeds" if s.best else "no trial has completed"
    shown = [f"  {r}" for r in s.reasons[:SHOWN]]
    more = [f"  and {len(s.reasons) - SHOWN} more"] * (len(s.reasons) > SHOWN)
    left = "unknown" if s.eta_seconds is None else f"about {clock(s.eta_seconds)}"
    return "\n".join(
        [
            f"{s.name}: {s.ended} of {s.total} done",
            f"trials    {counts}" + (f", {s.unasked} still to be asked" if s.unasked else ""),
            f"best      {best}",
            f"left      {left if s.ended < s.total else 'nothing'}",
            f"cost      so far {_money(s.so_far)}" + (f"; to go {_money(s.to_go)}" if s.ended < s.total else ""),
            f"driver    {driver}; last record {clock(s.age)} ago",
            *(["failed or diverged:", *shown, *more] if shown else []),
        ]
    )


def _money(c: Cost) -> str:
    wall = "unknown" if c.wall_seconds is None else clock(c.wall_seconds)
    gpu = "" if c.gpu_hours is None else f", {c.gpu_hours:.2f} GPU-hours"
    return f"{clock(c.train_seconds)} training, {wall} wall{gpu}"


class Progress:
    """What a person wants to see while a driver runs; takes a record after `state` has."""

    def __init__(self, state: State, say: Callable[[str], None], now: Callable[[], float] = time.time):
        self._state, self._say, self._now, self._last = state, say, now, -math.inf

    def add(self, record: Record) -> None:
        ended = record["kind"] == "end"
        if ended:
            self._say(_end_line(self._state.trials[record["trial"]], record, objective(self._state)))
        if self._now() - self._last > (1 if ended else LINE_EVERY_SECONDS):
            self._last = self._now()
            self._say(line(summary(self._state, self._last)))


def _end_line(trial: Trial, end: Record, metric: str) -> str:
    value = trial.value(metric)
    score = f", {metric} {value:.3g}" if value is not None else ""
    reason = f" ({plain(end['reason'])})" if end["reason"] else ""
    return f"  {plain(trial.name)}: {end['status']} at {end['step']} updates{score}{reason}"


def follow(
    read: Callable[[], Summary],
    say: Callable[[str], None],
    while_running: Callable[[Summary], str],
    at_end: Callable[[Summary], str],
    every: float = 2.0,
) -> None:
    """Tell a summary again every so many seconds until no driver runs."""
    while (s := read()).driver is not None:
        say(while_running(s))
        time.sleep(every)
    say(at_end(s))
