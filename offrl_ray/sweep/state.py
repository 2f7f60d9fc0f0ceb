"""What a folder's records add up to. The driver adds records as it writes them, a reader as it finds them: resuming is
replaying."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offrl_ray import records
from offrl_ray.errors import UsageError

Record = dict[str, Any]
VALUES = ("q_start", "discounted_return")
"""Columns of an evaluation that are null for a variant without critic."""
COLUMNS = ("success_once", "success_at_end", "return", "length", *VALUES)
"""What an evaluation has of every episode."""
EPISODE = (*COLUMNS, "q_gap")
"""Metrics of an evaluation: means over its episodes. q_gap is q_start - discounted_return: above 0 Q was too high."""
COUNTED = ("completed", "pruned", "diverged", "failed", "running", "queued")
ENDED = frozenset(COUNTED[:4])
FAILURES = ("infra", "oom", "hang", "eval", "gpu", "disk", "checkpoint", "data", "code")
"""Classes of failures."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Names that become folders."""


def check_names(names: Iterable[str]) -> None:
    """Raises UsageError for those that could lead out of a folder."""
    if wrong := [n for n in names if not NAME.fullmatch(n)]:
        raise UsageError(f"a trial's name must match {NAME.pattern}, but got {n!r}" for n in wrong)


def means(record: Record) -> dict[str, float]:
    """EPISODE of an evaluation's record; those that need a critic are missing without one."""
    found = {m: sum(map(float, record[m])) / len(record[m]) for m in COLUMNS if record[m] is not None}
    if found.keys() >= set(VALUES):
        found["q_gap"] = found["q_start"] - found["discounted_return"]
    return found


@dataclass
class Trial:
    """One point: all its seeds, from its first attempt to its end."""

    name: str
    point: dict[str, Any]
    config: dict[str, Any]
    seeds: list[int]
    steps: int
    cell: int
    number: int = -1  # which of its cell's asked points; -1: a point of the grid
    params: dict[str, Any] = field(default_factory=dict)  # as the search asked them
    same_as: str | None = None  # the same run as that trial, and never run itself
    status: str = "queued"
    attempt: int = 0
    step: int = 0  # of the newest report of the newest attempt
    reported: dict[int, int] = field(default_factory=dict)  # seed -> the newest step reported by any attempt
    faults: dict[str, int] = field(default_factory=dict)  # attempts lost since the last retry, by failure class
    stop: str | None = None  # why somebody decided to end it
    cached: str | None = None  # "folder:trial" whose results these are
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)  # seed -> of its newest report
    evals: dict[int, dict[int, dict[str, float]]] = field(default_factory=dict)  # step -> seed -> EPISODE means
    members: dict[int, set[int]] = field(default_factory=dict)  # step -> the seeds that its evaluation covers
    lost: dict[str, str] = field(default_factory=dict)  # seed -> why it diverged, before there is an end
    end: Record | None = None
    seconds: float = 0.0  # of training, all seeds of a report together

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def diverged(self) -> dict[str, str]:
        """Seed -> reason."""
        return dict(self.end["diverged"]) if self.end else dict(self.lost)

    def evaluated(self) -> frozenset[int]:
        """Steps whose evaluation is recorded. One evaluation covers all seeds that had not diverged by then."""
        return frozenset(filter(self.has_evaluated, self.evals))

    def has_evaluated(self, step: int) -> bool:
        """False also where a kill has left the records of some of its seeds alone."""
        return step in self.evals and self.members[step] <= self.evals[step].keys()

    def value(self, metric: str, step: int | None = None) -> float | None:
        """Mean over the seeds, at `step` or, by default, at the end; None if there is nothing to average.

        A seed without an evaluation has diverged: it counts as no success, and of other metrics of episodes there is no
        mean then, nor of those that need a critic where there is none. `q_excess` is how far Q at the policy's actions
        (or, failing that, q_mean) lies above its provable bound; it and the training metrics are averaged over the
        healthy seeds.
        """
        if metric in EPISODE:
            step = self.steps if step is None else step
            found = self.evals[step] if self.has_evaluated(step) else {}
            whole = len(found) == len(self.seeds) or metric.startswith("success")
            told = [e[metric] for e in found.values() if metric in e]
            return sum(told) / len(self.seeds) if told and whole else None
        values = [_metric(metric, m) for s, m in self.metrics.items() if str(s) not in self.diverged]
        known = [v for v in values if v is not None]
        return sum(known) / len(known) if known else None


def _metric(name: str, metrics: dict[str, float]) -> float | None:
    return q_excess(metrics) if name == "q_excess" else metrics.get(name)


def q_excess(metrics: dict[str, float]) -> float | None:
    """How far Q at the policy's actions, or failing that q_mean, lies above its provable bound; None without one."""
    q = metrics.get("q_policy_mean", metrics.get("q_mean"))
    return None if q is None or "q_bound_high" not in metrics else q - metrics["q_bound_high"]


class State:
    """The fold. `trials` in the order in which they were planned and asked."""

    def __init__(self, log: Iterable[Record] = ()):
        self.plan: Record | None = None
        self.trials: dict[str, Trial] = {}
        self.session: Record | None = None  # the newest driver
        self.heard = 0.0  # time of the newest record
        self.wall = 0.0  # seconds that earlier drivers ran
        self.worked = 0  # steps that the newest driver's trials have trained
        self.extended = 0  # points that every cell may be asked beyond the plan's
        self.count = 0  # records
        for record in log:
            self.add(record)

    @classmethod
    def read(cls, folder: Path) -> "State":
        """The state of a folder now; an empty or absent one owes everything."""
        try:
            return cls(records.read(folder).records)
        except (FileNotFoundError, NotADirectoryError):
            return cls()

    def add(self, record: Record) -> None:
        """Raises UsageError for a record that lacks what it must have."""
        self.count += 1
        trial = self.trials.get(record.get("trial", ""))
        try:
            getattr(self, f"_{record['kind']}", self._other)(record, trial)
        except (KeyError, TypeError, ValueError, AttributeError) as e:  # its checksum fits, but we did not write it
            what = f"record {record.get('seq')} ({record['kind']}) is not as this version writes it: {e!r}"
            raise UsageError([f"{what}; do not trust the folder"]) from e
        self.heard = record.get("time", self.heard)

    def open_trial(self, name: str) -> Trial:
        """Raises UsageError for a trial that does not exist, has ended, or only repeats another."""
        trial = self.trials.get(name)
        if trial is None or trial.ended or trial.same_as:
            why = "does not exist" if trial is None else f"is {trial.same_as}" if trial.same_as else "has ended"
            raise UsageError([f"trial {name!r} {why}; `status` lists them"])
        return trial

    def objectives(self) -> list[tuple[str, str]]:
        """Metric and mode, max or min; the first decides. A run without any is after success, or reward alone."""
        if told := (self.plan or {}).get("objectives"):
            return [(o["metric"], o["mode"]) for o in told]
        modes = {t.config.get("env", {}).get("reward_mode") for t in self.trials.values()}
        return [("return" if modes == {"native"} else "success_once", "max")]

    def counts(self) -> dict[str, int]:
        """How many trials are in each state; those that repeat another one are not counted."""
        found = dict.fromkeys(COUNTED, 0)
        for t in self.trials.values():
            if t.same_as is None and t.status in found:
                found[t.status] += 1
        return found

    def _other(self, record: Record, trial: Trial | None) -> None: ...

    def _plan(self, record: Record, trial: Trial | None) -> None:
        self.plan = record
        for p in record["points"]:
            self._point(p, None)

    def _session(self, record: Record, trial: Trial | None) -> None:
        self.wall += self.heard - self.session["time"] if self.session else 0
        self.session, self.worked = record, 0
        for t in self.trials.values():  # their driver is gone
            if t.status == "running":
                t.status = "queued"

    def _point(self, record: Record, trial: Trial | None) -> None:
        point, config, seeds, steps = (record[k] for k in ("point", "config", "seeds", "steps"))
        t = Trial(record["trial"], point, config, seeds, steps, record.get("cell", 0), record.get("number", -1))
        t.params, t.same_as = record.get("params", {}), record.get("same_as")
        self.trials.setdefault(t.name, t)  # a later plan asks for more

    def _start(self, record: Record, trial: Trial | None) -> None:
        if trial:
            trial.status, trial.attempt, trial.step = "running", record["attempt"], record["step"]
            trial.cached = record.get("cached")

    def _train(self, record: Record, trial: Trial | None) -> None:
        if trial:
            self.worked += 0 if trial.cached else record["step"] - trial.step
            trial.step = record["step"]
            trial.reported[record["seed"]] = max(trial.reported.get(record["seed"], -1), record["step"])
            trial.seconds = record["seconds"]
            trial.metrics[record["seed"]] = {k: float(v) for k, v in record["metrics"].items()}

    def _eval(self, record: Record, trial: Trial | None) -> None:
        if trial and len(record["success_once"]) == record["episodes"]:  # a part is never averaged as if complete
            trial.evals.setdefault(record["step"], {})[record["seed"]] = means(record)
            trial.members[record["step"]] = set(record.get("members", ()))

    def _diverged(self, record: Record, trial: Trial | None) -> None:
        if trial:
            trial.lost[str(record["seed"])] = record["reason"]

    def _stop(self, record: Record, trial: Trial | None) -> None:
        if trial:
            trial.stop = record["reason"]

    def _fault(self, record: Record, trial: Trial | None) -> None:
        if trial:
            trial.faults[record["failure"]] = trial.faults.get(record["failure"], 0) + 1
            trial.status = "queued"
            trial.attempt = max(trial.attempt, record["attempt"])  # lost before it could say that it starts

    def _end(self, record: Record, trial: Trial | None) -> None:
        if trial:
            trial.status, trial.end, trial.step = record["status"], record, record["step"]
            trial.attempt = max(trial.attempt, record["attempt"])

    def _retry(self, record: Record, trial: Trial | None) -> None:
        if trial:
            trial.status, trial.end, trial.stop = "queued", None, None
            trial.faults.clear()

    def _extend(self, record: Record, trial: Trial | None) -> None:
        self.extended += record["trials"]
