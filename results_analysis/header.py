"""What was asked, of which data and code, what it cost, what is missing, and where n is too small."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import PurePath
from typing import Any, NamedTuple

from results_analysis.blocks import Block, Section, Table, Text, Value
from results_analysis.confirmation import expected_maximum
from results_analysis.load import Record, Sweep, Trial
from results_analysis.words import Say

FEW_SEEDS = 3
FEW_EPISODES = 100
TYPICAL_RATE = 0.45  # the success rate that errors are told at
MISSING = ("failed", "not evaluated at the end", "not finished", "not started")
STATES = ("completed", "partly diverged", "diverged", "pruned", *MISSING)
SHOWN = 10


def section(sweeps: Sequence[Sweep], say: Say) -> Section:
    """One column a sweep, without counts that are 0, then their data, then what to know before believing the rest."""
    facts = [list(_facts(s, say)) for s in sweeps]
    rows = [[row[0][0], *(v for _, v in row)] for row in zip(*facts, strict=True) if any(v != 0 for _, v in row)]
    about: list[Block] = [
        Table("header", say("What was run."), [say("fact"), *(s.label for s in sweeps)], rows),
        _data(sweeps, say),
    ]
    told = [text for s in sweeps for text in (*_versions(s, say), *_missing(s, say), *_warnings(s, say))]
    return Section("header", say("What was asked, and of what"), [*about, *told])


def state(trial: Trial) -> str:
    """One of STATES: a trial's status, told apart further where it is unfinished."""
    if trial.status != "unfinished":
        return trial.status
    if trial.end:
        return "not evaluated at the end"
    return "not finished" if trial.started else "not started"


def _facts(sweep: Sweep, say: Say) -> Iterator[tuple[str, Value]]:
    trials, plan = sweep.trials, sweep.plan
    told = Counter(map(state, trials))
    yield say("question"), sweep.question or None
    yield say("variant"), _listed(t.variant for t in trials)
    yield say("environment"), _listed(t.config.get("env", {}).get("id") or "" for t in trials)
    aims = ", ".join(f"{o['metric']} ({o['mode']})" for o in plan.get("objectives") or [])
    yield say("objective"), aims or None
    versions = plan.get("versions") or {}
    yield say("code"), versions.get("code")
    yield say("libraries"), ", ".join(f"{k} {v}" for k, v in versions.items() if k != "code") or None
    yield say("points planned (of a search: at most)"), sweep.planned
    yield say("points asked"), len(trials)
    for name in STATES:
        yield say("points {state}", state=say(name)), told[name]
    yield say("training seeds"), _listed(s.seed for t in trials for s in t.seeds)
    yield say("updates per seed"), _listed(t.steps for t in trials)
    yield say("evaluation episodes per seed"), _listed(_episodes(trials))
    yield from cost(sweep).rows(say)


class Cost(NamedTuple):
    """Of a sweep so far; what was copied from an earlier one cost nothing here. Updates count once for every seed."""

    train_seconds: float  # of all trials, one after the other
    eval_seconds: float
    wall_seconds: float  # while a driver ran
    gpu_hours: float | None  # trials while they train, evaluators all the time; None without GPUs
    lost_updates: int  # done again after a fault
    saved_updates: int  # not done, since a trial was pruned or all of its seeds were stopped

    def rows(self, say: Say) -> Iterator[tuple[str, Value]]:
        yield say("training time, summed over trials"), _clock(self.train_seconds)
        yield say("evaluation time, summed over trials"), _clock(self.eval_seconds)
        yield say("wall time of the drivers"), _clock(self.wall_seconds)
        yield say("GPU hours"), say("no GPU") if self.gpu_hours is None else f"{self.gpu_hours:.2f}"
        yield say("updates lost to faults (over all seeds)"), self.lost_updates
        yield say("updates saved by stops (over all seeds)"), self.saved_updates


def cost(sweep: Sweep) -> Cost:
    own = [t for t in sweep.trials if not (t.starts and t.starts[-1].get("cached"))]
    train = sum(t.train_seconds for t in own)
    wall = sum(s["until"] - s["time"] for s in sweep.sessions)
    evaluations = {(t.name, e.step): e.seconds for t in own for s in t.seeds for e in s.evals}
    used = [s["resources"] for s in sweep.sessions if s.get("resources")]
    r = used[-1] if used else sweep.plan.get("resources") or {}
    trial, evaluators = r.get("gpus_per_trial", 0), (r.get("evaluators") or 1) * r.get("gpus_per_evaluator", 0)
    gpu = (train * trial + wall * evaluators) / 3600 if trial or evaluators else None
    lost, saved = sum(map(_lost, own)), sum(map(_saved, own))
    return Cost(train, sum(evaluations.values()), wall, gpu, lost, saved)


def _lost(trial: Trial) -> int:
    """Between the last report of a lost attempt and the checkpoint from which the next one went on."""
    later = {f["attempt"]: [s["step"] for s in trial.starts if s["attempt"] > f["attempt"]] for f in trial.faults}
    steps = [f["step"] - later[f["attempt"]][0] for f in trial.faults if later[f["attempt"]]]
    return len(trial.seeds) * sum(max(0, s) for s in steps)


def _saved(trial: Trial) -> int:
    """A stack trains until none of its seeds is left, so a single stopped seed saves nothing."""
    ended = trial.end is not None and trial.status in ("pruned", "diverged")
    return len(trial.seeds) * (trial.steps - trial.end["step"]) if ended and trial.end else 0


def _data(sweeps: Sequence[Sweep], say: Say) -> Table:
    columns = ["sweep", "file", "SHA-256", "environment", "reward", "episodes", "success rate", "steps"]
    rows: list[Sequence[Value]] = []
    for s in sweeps:
        for f in s.plan.get("data") or []:
            keys = ("env_id", "reward_mode", "episodes", "success_rate", "steps")
            rows.append([s.label, PurePath(f["file"]).name, f["digest"][:12], *(f.get(k) for k in keys)])
        if not s.plan.get("data"):
            rows.append([s.label, say("none: it gathers its own"), *[None] * 6])
    return Table("data", say("The data that was learnt from."), [say(c) for c in columns], rows)


def _versions(sweep: Sweep, say: Say) -> Iterator[Text]:
    every = [sweep.plan.get("versions") or {}, *(s.get("versions") or {} for s in sweep.sessions)]
    for name in sorted({k for v in every for k in v}):
        if len(found := list(dict.fromkeys(str(v[name]) for v in every if name in v))) > 1:
            what = "{sweep}: {name} changed while it ran: {versions}. Points before and after are not alike."
            yield Text(say(what, sweep=sweep.label, name=name, versions=", ".join(found)), "warning")


def _missing(sweep: Sweep, say: Say) -> Iterator[Text]:
    for name in MISSING:
        found = [t.name for t in sweep.trials if state(t) == name]
        if found:
            places = {"n": len(found), "total": len(sweep.trials), "state": say(name), "names": shortened(found)}
            yield Text(say("{sweep}: {n} of {total} points {state}: {names}", sweep=sweep.label, **places), "warning")
    if sweep.planned > len(sweep.trials):
        places = {"n": sweep.planned - len(sweep.trials)}
        yield Text(say("{sweep}: {n} points of the search have not been asked for.", sweep=sweep.label, **places))
    if sweep.problems:
        text = say(
            "{sweep}: {n} problems in its records; what a damaged line said is missing here: {names}",
            **{"sweep": sweep.label, "n": len(sweep.problems), "names": shortened(sweep.problems, 3)},
        )
        yield Text(text, "warning")


def _warnings(sweep: Sweep, say: Say) -> Iterator[Text]:
    seeds = min(len(t.seeds) for t in sweep.trials)
    if seeds < FEW_SEEDS:
        what = (
            "{sweep}: {n} seed per point: there are no intervals, and no difference is shown to be more than luck."
            if seeds == 1
            else "{sweep}: {n} seeds per point: an interval over two seeds reaches 12.7 standard errors to each side."
        )
        yield Text(say(what, sweep=sweep.label, n=seeds), "warning")
    episodes = min(_episodes(sweep.trials), default=FEW_EPISODES)
    error = math.sqrt(TYPICAL_RATE * (1 - TYPICAL_RATE) / episodes)
    if episodes < FEW_EPISODES:
        what = (
            "{sweep}: {n} evaluation episodes per seed: at a success rate of {rate} the standard error of a seed's is "
            "{error:.2f}; with {enough} episodes it would be {better:.2f}."
        )
        better = math.sqrt(TYPICAL_RATE * (1 - TYPICAL_RATE) / FEW_EPISODES)
        places = {"n": episodes, "rate": TYPICAL_RATE, "error": error, "enough": FEW_EPISODES, "better": better}
        yield Text(say(what, sweep=sweep.label, **places), "warning")
    evaluations = max((len(s.evals) for t in sweep.trials for s in t.seeds), default=0)
    if evaluations > 1:
        what = (
            "{sweep}: up to {n} evaluations per seed. The best of them would exceed a success rate that stays at "
            "{rate} by about {bias:.2f} through noise alone; this report takes the last one."
        )
        bias = expected_maximum(evaluations) * error
        yield Text(say(what, sweep=sweep.label, n=evaluations, rate=TYPICAL_RATE, bias=bias))


def shortened(names: Sequence[str], most: int = SHOWN) -> str:
    """The first of them, and how many more there are."""
    more = f", +{len(names) - most}" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _episodes(trials: Sequence[Trial]) -> set[int]:
    configured: list[Record] = [t.config["eval"] for t in trials if "eval" in t.config]
    return {int(e["episodes"]) for e in configured}


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, sorted(set(values))))


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
