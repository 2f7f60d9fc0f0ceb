"""Decides what runs next, what stops, and what a failure means; knows nothing of Ray.

All that it knows follows from the records, so that a new driver that replays them decides as the old one would have.
"""

import math
from collections import deque
from collections.abc import Sequence

from offrl_ray.config import digest, from_dict
from offrl_ray.errors import DiskFull
from offrl_ray.objects import StoreError
from offrl_ray.store import called
from offrl_ray.sweep.ledger import Ledger, Record
from offrl_ray.sweep.plan import Plan, point
from offrl_ray.sweep.reuse import Cached, Earlier
from offrl_ray.sweep.rungs import Rungs
from offrl_ray.sweep.search import Outcome, Search
from offrl_ray.sweep.spec import Objective
from offrl_ray.sweep.state import State, Trial

RETRIES = {"infra": 5, "gpu": 2, "oom": 1, "hang": 1}
"""How often a trial may lose an attempt to a class of failure; to all others, never."""
SUSPECT = 3
"""So many trials failed by their own fault while none ended well: the sweep is wrong, not its trials."""
FULL = "the disk is full"
PATIENCE = 20
"""A cell whose search repeats itself so often in a row has nothing new to ask."""


class Job:
    """One attempt at a trial. No tuple: Tune would take that apart."""

    def __init__(self, trial: Trial):
        self.trial, self.attempt, self.cfg = trial.name, trial.attempt + 1, from_dict(trial.config)
        self.evaluated, self.reported = trial.evaluated(), trial.reported

    def __repr__(self) -> str:
        return f"{self.trial} attempt {self.attempt}"


class Conductor:
    """The driver asks for the `next` job, hands in what trials report (`take`), and which attempts were `lost`."""

    def __init__(self, plan: Plan, ledger: Ledger, earlier: Earlier | None = None):
        self.ledger, self.plan, self._earlier = ledger, plan, earlier
        self.draining = ""  # why no more jobs are given out
        self.out: dict[str, Job] = {}  # given out and not back
        self._stopping: dict[str, str] = {}
        self._asked = {c.index: 0 for c in plan.cells}  # points, without those that repeat another
        self._asking = False
        self._repeats = dict.fromkeys(self._asked, 0)  # of these, in a row and up to now
        self._numbers = dict.fromkeys(self._asked, 0)  # points asked in all
        self._aliases: dict[str, list[Trial]] = {}  # trial -> those that repeat it
        self._names: dict[str, str] = {}  # digest of a config -> the trial that runs it
        self._queue = deque[str]()  # open trials; those that began and were lost come first
        self._search = {c.index: Search(plan.search, c.space, c.index) for c in plan.cells if plan.search and c.space}
        self._sizes = {c.index: c.size for c in plan.cells if c.index in self._search}
        self._rungs = _rungs(plan) if plan.rungs else {}
        ledger.replay(self._learn)
        left = [t for t in self.state.trials.values() if not (t.ended or t.same_as)]
        self._queue = deque(t.name for t in sorted(left, key=lambda t: not t.attempt))

    @property
    def state(self) -> State:
        return self.ledger.state

    @property
    def disk_full(self) -> bool:
        return self.draining.startswith(FULL)

    def write(self, *batch: Record) -> None:
        """If the disk is full or the store lost, nothing is learned and the sweep drains: trials tell it again."""
        try:
            self.ledger.write(batch, self._learn)
        except DiskFull as e:
            self.drain(f"{FULL}: {e}")
        except StoreError as e:
            self.drain(str(e))

    # what the records teach: of this session and of earlier ones

    def _learn(self, record: Record) -> None:
        trial = self.state.trials.get(record.get("trial", ""))
        if record["kind"] == "plan":
            for t in self.state.trials.values():
                self._names[digest(from_dict(t.config))] = t.name
                self._queue.append(t.name)
            for p in record.get("priors", ()):
                self._search[p["cell"]].restore(p["number"], p["params"])
                self._search[p["cell"]].tell(p["number"], _told(p["outcome"]))
        elif record["kind"] == "extend":  # what had nothing new to ask may try again
            self._repeats = dict.fromkeys(self._repeats, 0)
        elif trial is None:
            return
        elif record["kind"] == "point":
            self._learn_point(trial)
        elif record["kind"] == "eval" and trial.has_evaluated(record["step"]):
            self._learn_value(trial, record["step"])
        elif record["kind"] == "stop":
            self._stopping[trial.name] = record["reason"]
        elif record["kind"] == "end":
            self._learn_end(trial)
        elif record["kind"] == "retry":
            self._queue.append(trial.name)
            for t in self._same(trial):
                self._search[t.cell].restore(t.number, t.params)
            for step in sorted(trial.evaluated()):
                self._learn_value(trial, step)

    def _same(self, trial: Trial) -> list[Trial]:
        """The trial, and those that repeat it, in whatever cell: of these, the points of a search."""
        return [t for t in (trial, *self._aliases.get(trial.name, [])) if t.cell in self._search]

    def _learn_point(self, trial: Trial) -> None:
        self._names.setdefault(digest(from_dict(trial.config)), trial.name)
        if not self._asking:
            self._search[trial.cell].restore(trial.number, trial.params)
        self._numbers[trial.cell] += 1
        if trial.same_as is None:
            self._asked[trial.cell] += 1
            self._repeats[trial.cell] = 0
            self._queue.append(trial.name)
            return
        self._repeats[trial.cell] += 1
        self._aliases.setdefault(trial.same_as, []).append(trial)
        original = self.state.trials[trial.same_as]
        if original.ended:
            self._search[trial.cell].tell(trial.number, outcome(original, self.plan.objectives))

    def _learn_value(self, trial: Trial, step: int) -> None:
        """All seeds of an evaluation are in: what a search and a rung see, unless it is not finite."""
        first = self.plan.objectives[0]
        value = trial.value(first.metric, step)
        if value is None:
            return
        if trial.cell in self._search:
            self._search[trial.cell].report(trial.number, step, value)
        if trial.cell in self._rungs:
            reason = self._rungs[trial.cell].decide(trial.name, step, first.sign * value)
            if reason:
                self._stopping[trial.name] = reason

    def _learn_end(self, trial: Trial) -> None:
        self.out.pop(trial.name, None)
        self._stopping.pop(trial.name, None)
        for t in self._same(trial):
            self._search[t.cell].tell(t.number, outcome(trial, self.plan.objectives))

    # what runs next

    def next(self) -> Job | None:
        """The next attempt; None if there is none now (`finished` says whether there may be one later)."""
        while not self.draining:
            trial = self._waiting() or self._ask()
            if trial is None:
                return None
            if trial.name in self._stopping:
                self._prune(trial)
            elif self._earlier and (not trial.attempt or trial.cached) and (cached := self._earlier.get(trial.config)):
                self._copy(trial, cached)
            else:
                self.out[trial.name] = Job(trial)
                return self.out[trial.name]
        return None

    def _copy(self, trial: Trial, cached: Cached) -> None:
        """The results of an earlier sweep become this one's: for the search and the rungs as if it had run here."""
        fields = {"trial": trial.name, "attempt": trial.attempt + 1}
        start = {"kind": "start", **fields, "step": 0, "cached": f"{called(cached.folder)}:{cached.trial}"}
        self.write(start, *({**r, **fields} for r in cached.records))

    @property
    def finished(self) -> bool:
        return bool(self.draining) or not (self.out or self._waiting() or self._may_ask())

    def _waiting(self) -> Trial | None:
        while self._queue and (self.state.trials[self._queue[0]].ended or self._queue[0] in self.out):
            self._queue.popleft()
        return self.state.trials[self._queue[0]] if self._queue else None

    def _may_ask(self) -> list[int]:
        """Cells that still have points to ask, the one that has asked least first."""
        if self.plan.search is None:
            return []
        wanted = self.plan.search.trials + self.state.extended
        limits = {c: wanted if size is None else min(wanted, size) for c, size in self._sizes.items()}
        open_ = [c for c in limits if self._asked[c] < limits[c] and self._repeats[c] < PATIENCE]
        return sorted(open_, key=self._asked.__getitem__)

    def _ask(self) -> Trial | None:
        """A new point, or None; a point that is the same run as another takes its result and is not counted."""
        while cells := self._may_ask():
            cell = self.plan.cells[cells[0]]
            number = self._numbers[cell.index]
            params = self._search[cell.index].ask(number)
            new = point(cell, number, params)
            same = self._names.get(digest(new.cfg))
            self._asking = True
            self.write({"kind": "point", **new.record(), "number": number, "params": params, "same_as": same})
            self._asking = False
            if same is None or self.draining:
                return self.state.trials.get(new.trial)
        return None

    # what a trial reports

    def take(self, name: str, batch: Sequence[Record]) -> bool:
        """Record what a trial says. True if it has ended, or shall end here."""
        trial, job = self.state.trials[name], self.out.get(name)
        if job is None:
            return True  # its end is written; what it says late counts no more
        self.write(*({**r, "attempt": job.attempt} for r in batch))
        if not trial.ended and name in self._stopping:
            self._prune(trial)
        if trial.status == "failed":
            self._doubt()
        return trial.ended or bool(self.draining)

    def stop(self, name: str, reason: str) -> None:
        """End a trial at its next report, or now if it does not run. Raises UsageError if there is no such trial."""
        trial = self.state.open_trial(name)
        self.write({"kind": "stop", "trial": name, "reason": reason})
        if name not in self.out and name in self._stopping:
            self._prune(trial)

    def _prune(self, trial: Trial) -> None:
        self.write(*pruned(trial, self._stopping[trial.name]))

    def lost(self, name: str, failure: str, reason: str) -> None:
        """An attempt was lost to a class of failure: it is tried again as often as the class allows."""
        trial, job = self.state.trials[name], self.out.pop(name, None)
        if job is None or self.draining:
            return
        fields = {"trial": name, "attempt": job.attempt, "failure": failure, "reason": reason, "step": trial.step}
        if failure == "disk":
            self.drain(f"{FULL}: {reason}")
        if failure == "disk" or trial.faults.get(failure, 0) < RETRIES.get(failure, 0):
            self._queue.appendleft(name)
            self.write({"kind": "fault", **fields})
        else:
            cost = {"train_seconds": trial.seconds}
            self.write({"kind": "end", **fields, "status": "failed", "diverged": trial.diverged, "cost": cost})
            self._doubt()

    def _doubt(self) -> None:
        """Drain if the sweep seems to be wrong, not its trials."""
        ends = [t.end for t in self.state.trials.values() if t.end]
        own = [e for e in ends if e["status"] == "failed" and e["failure"] not in RETRIES]
        if len(own) >= SUSPECT and not any(e["status"] in ("completed", "diverged") for e in ends):
            self.drain(f"{len(own)} trials failed by themselves and none ended well; one of them: {own[-1]['reason']}")

    def drain(self, reason: str) -> None:
        """Give out no more jobs; those that are out save themselves and go on with the next driver."""
        self.draining = self.draining or reason


def pruned(trial: Trial, reason: str) -> list[Record]:
    """The records that end a trial because somebody decided so."""
    end = {"status": "pruned", "failure": "", "reason": reason, "step": trial.step, "diverged": trial.diverged}
    cost = {"train_seconds": trial.seconds}
    return [
        *([] if trial.stop else [{"kind": "stop", "trial": trial.name, "reason": reason}]),
        {"kind": "end", "trial": trial.name, "attempt": trial.attempt, **end, "cost": cost},
    ]


def outcome(trial: Trial, objectives: Sequence[Objective]) -> Outcome:
    """What a search learns of a trial that has ended."""
    values = [trial.value(o.metric) for o in objectives]
    known = tuple(v for v in values if v is not None and math.isfinite(v))
    excess = 1.0 if trial.diverged else trial.value("q_excess") or 0.0
    reason = trial.end["reason"] if trial.end else ""
    return Outcome(trial.status, known if len(known) == len(values) else None, excess, trial.step, reason)


def _told(record: Record) -> Outcome:
    values = record["values"]
    return Outcome(**{**record, "values": values and tuple(values), "violation": float(record["violation"])})


def _rungs(plan: Plan) -> dict[int, Rungs]:
    """By cell. The points of a search compete within their cell, those of the grid with each other."""
    assert plan.rungs
    steps = plan.steps
    grid = Rungs(plan.rungs, steps)
    return {c.index: Rungs(plan.rungs, steps) if c.space else grid for c in plan.cells}
