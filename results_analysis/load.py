"""A sweep folder's records as trials and seeds."""

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from offrl_ray import records
from offrl_ray.errors import UsageError

Record = dict[str, Any]
Array = np.ndarray[Any, np.dtype[Any]]
CONFIRMATION = "confirm"  # the folder within a sweep's
EPISODE = ("success_once", "success_at_end", "return", "length", "q_start", "discounted_return")


class Curves(NamedTuple):
    """The train reports of one seed, by step."""

    steps: Array  # [R]
    metrics: dict[str, Array]  # name -> [R]; NaN where a report lacks it

    def last(self, name: str) -> float | None:
        """Of the newest report; None if no report has it."""
        return float(self.metrics[name][-1]) if name in self.metrics and len(self.steps) else None

    def late(self, name: str) -> Array:
        """Its values in the last quarter of the reports, one at least; empty if no report has it."""
        values = self.metrics.get(name, np.empty(0))
        return values[-max(1, len(values) // 4) :]


class Evaluation(NamedTuple):
    step: int
    env: dict[str, Any]
    episodes: dict[str, Array]  # name of EPISODE -> one entry per episode; q_start only where there is a critic
    seconds: float = 0.0  # of all seeds that were evaluated together

    def mean(self, name: str) -> float | None:
        """Over the episodes; q_gap is q_start less the discounted return of the same episodes."""
        if name == "q_gap":
            if "q_start" not in self.episodes:
                return None
            return float(np.mean(self.episodes["q_start"] - self.episodes["discounted_return"]))
        return float(np.mean(self.episodes[name])) if name in self.episodes else None


@dataclass(frozen=True)
class Seed:
    seed: int
    train: Curves
    evals: list[Evaluation]  # by step
    final: Evaluation | None  # the one at the last planned step
    diverged: str | None  # the reason
    diverged_at: int | None = None  # the step of the report that stopped it

    @property
    def finished(self) -> bool:
        return self.final is not None and self.diverged is None

    def eval_curve(self, name: str) -> list[tuple[int, float]]:
        """Step and mean over the episodes of each evaluation."""
        return [(e.step, v) for e in self.evals if (v := e.mean(name)) is not None]


@dataclass(frozen=True)
class Trial:
    name: str
    point: dict[str, Any]  # lacks the axes that are inert here
    config: dict[str, Any]
    steps: int
    seeds: list[Seed]
    end: Record | None
    started: bool = False
    notes: list[str] = field(default_factory=list)
    faults: list[Record] = field(default_factory=list)  # attempts that were lost
    starts: list[Record] = field(default_factory=list)
    train_seconds: float = 0.0  # of all seeds together; what was lost and done again counts once

    @property
    def variant(self) -> str:
        return str(self.config["algo"]["name"])

    @property
    def finished(self) -> list[Seed]:
        return [s for s in self.seeds if s.finished]

    @property
    def status(self) -> str:
        """completed, unfinished, diverged, partly diverged, pruned or, with any other word at its end, failed."""
        if self.end is None:
            return "unfinished"
        if self.end["status"] not in ("completed", "diverged"):
            return "pruned" if self.end["status"] == "pruned" else "failed"
        diverged = sum(s.diverged is not None for s in self.seeds)
        if diverged == len(self.seeds) or (self.end["status"] == "diverged" and not self.finished):
            return "diverged"
        if diverged or self.end["status"] == "diverged":
            return "partly diverged"
        return "completed" if len(self.finished) == len(self.seeds) else "unfinished"

    @property
    def reason(self) -> str:
        """Why seeds are missing; empty for a completed trial."""
        if self.status == "completed":
            return ""
        why = [str(self.end["reason"])] if self.end and self.end.get("reason") else []
        seeds = [f"seed {s.seed}: {s.diverged}" for s in self.seeds if s.diverged is not None]
        why += [told for told in seeds if not any(told in known for known in why)]
        missing = [str(s.seed) for s in self.seeds if s.final is None and s.diverged is None]
        if missing:
            why.append(f"no evaluation at step {self.steps} for seed {', '.join(missing)}")
        return "; ".join(why)


@dataclass(frozen=True)
class Sweep:
    folder: Path
    plan: Record  # the newest, without its points
    trials: list[Trial]
    sessions: list[Record]  # each driver's start, and `until`, the time of its newest record
    problems: list[str]  # damaged lines
    confirmation: "Sweep | None" = None
    planned: int = 0  # points; of a search, the most that it may ask for

    @property
    def label(self) -> str:
        """Its folder: sweeps of one script share their name."""
        return self.folder.resolve().name.removesuffix(".gz").removesuffix(".jsonl")

    @property
    def question(self) -> str:
        return self.plan.get("question") or ""

    @property
    def axes(self) -> dict[str, list[Any]]:
        """Of the grid."""
        return self.plan["axes"]

    @property
    def domains(self) -> dict[str, Record]:
        """What a search chose from inside every cell; empty for a plain grid."""
        return self.plan.get("domains") or {}


def load(folder: str | Path) -> Sweep:
    """The sweep of a folder, running or done, or of a copy of its records, *.gz. Raises UsageError if it holds none.

    Reports are kept as arrays: a thousand trials of five seeds and a hundred reports take 0.2 GB.
    """
    expected = f"expected a sweep's folder, with a {records.FILE} that holds a plan"
    try:
        fold = _Fold()
        fold.add_all(records.stream(folder, fold.problems))
    except FileNotFoundError:
        what = f"no {records.FILE} in it" if Path(folder).is_dir() else "no such folder"
        if ":/" in str(folder):
            what = "a URL is not read from here, `offrl-ray pull URL DIR` makes a folder of it"
        raise UsageError([f"{folder}: {what}; {expected}"]) from None
    except (OSError, EOFError, zlib.error) as e:
        raise UsageError([f"{folder}: {getattr(e, 'strerror', None) or e}; {expected}"]) from None
    plan, problems = fold.plan, fold.problems
    if plan is None or not fold.points:
        damaged = f", {len(problems)} damaged lines (first: {problems[0]})" if problems else ""
        what = "no plan in its records" if plan is None else "its plan has no points, and none was asked for"
        raise UsageError([f"{folder}: {what}{damaged}; {expected}"])
    inner = Path(folder) / CONFIRMATION
    confirmation = load(inner) if (inner / records.FILE).is_file() else None
    trials = [fold.trial(p) for p in fold.points.values()]
    return Sweep(Path(folder), plan, trials, fold.sessions, problems, confirmation, fold.planned)


class _Run:
    """The reports of one seed while they are read; after a resume the later of the same step replaces the earlier."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.reports: dict[int, Array] = {}
        self.evals: dict[int, Evaluation] = {}

    def report(self, step: int, metrics: Mapping[str, Any]) -> None:
        if tuple(metrics) != tuple(self.names):  # most often they are the same as before
            for name in metrics:
                self.names.setdefault(name, len(self.names))
            metrics = {name: metrics.get(name, math.nan) for name in self.names}
        self.reports[step] = np.fromiter(map(float, metrics.values()), float, len(metrics))

    def curves(self) -> Curves:
        steps = sorted(self.reports)
        table = np.full((len(steps), len(self.names)), np.nan)
        for i, step in enumerate(steps):
            table[i, : len(self.reports[step])] = self.reports[step]
        return Curves(np.array(steps, dtype=int), {name: table[:, k] for name, k in sorted(self.names.items())})


class _Fold:
    """All that the analysis keeps of a folder's records."""

    def __init__(self) -> None:
        self.plan: Record | None = None
        self.points: dict[str, Record] = {}
        self.sessions: list[Record] = []
        self.problems: list[str] = []
        self._listed = self._searched = 0  # points of the plan, cells with a search
        self._extended = 0  # points that every one of these may be asked beyond the plan's
        self._seconds: dict[str, float] = {}
        self._runs: dict[tuple[str, int], _Run] = {}
        self._ends: dict[str, Record] = {}
        self._of: dict[str, dict[str, list[Record]]] = {"note": {}, "fault": {}, "start": {}, "diverged": {}}

    def add_all(self, log: Iterable[Record]) -> None:
        for r in log:
            self._add(r)
            if self.sessions:
                self.sessions[-1]["until"] = r["time"]

    @property
    def planned(self) -> int:
        search = (self.plan or {}).get("search")
        return self._listed + (self._searched * (search["trials"] + self._extended) if search else 0)

    def _add(self, r: Record) -> None:
        kind = r["kind"]
        if kind == "train":
            self._run(r).report(r["step"], r["metrics"])
            self._seconds[r["trial"]] = r["seconds"]
        elif kind == "eval":
            if len(r["success_once"]) == r["episodes"]:  # a part of an evaluation is none
                values = {k: np.array([float(v) for v in r[k]]) for k in EPISODE if r.get(k) is not None}
                self._run(r).evals[r["step"]] = Evaluation(r["step"], r["env"], values, r["seconds"])
        elif kind == "plan":
            self.plan = {k: v for k, v in r.items() if k not in ("points", "cells")}
            asked = {n: p for n, p in self.points.items() if p.get("kind") == "point"}
            self.points = {p["trial"]: p for p in r["points"] if p.get("same_as") is None} | asked
            self._listed = len(self.points) - len(asked)
            self._searched = sum(bool(c["space"]) for c in r.get("cells", ()))
        elif kind == "point":
            if r.get("same_as") is None:
                self.points[r["trial"]] = r
        elif kind == "session":
            self.sessions.append(r)
        elif kind == "extend":
            self._extended += r["trials"]
        elif kind == "end":
            self._ends[r["trial"]] = r
        elif kind in ("start", "retry"):
            self._ends.pop(r["trial"], None)
        if kind in self._of:
            self._of[kind].setdefault(r["trial"], []).append(r)

    def _run(self, r: Record) -> _Run:
        return self._runs.setdefault((r["trial"], r["seed"]), _Run())

    def trial(self, p: Record) -> Trial:
        name, end = p["trial"], self._ends.get(p["trial"])
        told = {kind: found.get(name, []) for kind, found in self._of.items()}
        seeds = []
        for seed in p["seeds"]:
            run = self._runs.pop((name, seed), _Run())
            evals = [e for _, e in sorted(run.evals.items())]
            final = next((e for e in evals if e.step == p["steps"]), None)
            diverged = ((end or {}).get("diverged") or {}).get(str(seed))
            steps = [r["step"] for r in told["diverged"] if r["seed"] == seed]
            at = steps[-1] if diverged is not None and steps else None
            seeds.append(Seed(seed, run.curves(), evals, final, diverged, at))
        notes = list(dict.fromkeys(r["text"] for r in told["note"]))
        more = notes, told["fault"], told["start"], self._seconds.get(name, 0.0)
        return Trial(name, p["point"], p["config"], p["steps"], seeds, end, bool(told["start"]), *more)
