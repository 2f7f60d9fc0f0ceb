"""The rules of `offrl-ray fsck`: each gives one text for everything that breaks it (fsck.py says what they ask)."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from offrl_ray import records, store
from offrl_ray.sweep.state import COLUMNS, ENDED, FAILURES, VALUES, Record, State, Trial
from offrl_ray.sweep.status import driver_runs

DigestOf = Callable[[Path], str]
"""A checkpoint's digest after a check of its content; raises ValueError for one that is damaged."""
KEYS = {
    "plan": {"name", "axes", "points"},
    "session": {"time", "host", "pid"},
    "point": {"trial", "point", "config", "seeds", "steps"},
    "start": {"trial", "attempt", "step"},
    "train": {"trial", "attempt", "seed", "step", "metrics", "seconds"},
    "eval": {"trial", "attempt", "seed", "step", "digest", "env", "episodes", "episode_seeds", *COLUMNS},
    "note": {"trial", "text"},
    "diverged": {"trial", "attempt", "seed", "step", "reason"},
    "stop": {"trial", "reason"},
    "extend": {"trials"},
    "fault": {"trial", "attempt", "failure", "reason", "step"},
    "end": {"trial", "attempt", "status", "failure", "reason", "step", "diverged", "cost"},
    "retry": {"trial"},
    "dropped": {"trial", "steps"},
}
DAMAGE = re.compile(r"is damaged|is no checkpoint")
ASIDE = re.compile(r"(step_[0-9]{8,})\.[0-9a-f]+\.corrupt")


class Case:
    """What the rules look at. `digest_of` is None where checkpoints are not to be read."""

    def __init__(self, folder: Path, digest_of: DigestOf | None):
        self.folder, self.digest_of = folder, digest_of
        self.driven = driver_runs(folder)  # asked first: what is half done then is not judged
        read = records.read(folder)
        torn = [p for p in read.problems[-1:] if p.endswith("torn end")]
        self.damaged = [p for p in read.problems if p not in torn]
        self.notes = [f"{p}; the next driver cuts it off" for p in torn if not self.driven]
        self.raw = read.records
        self.lacking = {r["seq"]: missing for r in self.raw if (missing := KEYS.get(r["kind"], set()) - r.keys())}
        self.log = [r for r in self.raw if r["kind"] in KEYS and r["seq"] not in self.lacking]
        self.state = State(self.log)

    @cached_property
    def by_name(self) -> dict[str, list[Record]]:
        found: dict[str, list[Record]] = {}
        for r in self.log:
            if "trial" in r:
                found.setdefault(r["trial"], []).append(r)
        return found

    @property
    def trials(self) -> list[tuple[Trial, list[Record]]]:
        """Every trial that is run, with its records."""
        return [(t, self.by_name.get(t.name, [])) for t in self.state.trials.values() if t.same_as is None]

    def aside(self, trial: Trial) -> list[str]:
        """Names of checkpoints that were set aside as damaged."""
        found = map(ASIDE.fullmatch, store.names(self.folder / "trials" / trial.name))
        return [m[1] for m in found if m]


def _ends(case: Case) -> Iterator[str]:
    known = case.state.trials
    for name in case.by_name.keys() - known.keys():
        yield f"records of trial {name!r}, which nobody planned or asked for"
    for t in known.values():
        if t.same_as is not None and t.same_as not in known:
            yield f"trial {t.name} is the same run as {t.same_as}, which is unknown"
        elif t.same_as is not None and any(r["kind"] != "point" for r in case.by_name.get(t.name, [])):
            yield f"trial {t.name} is the same run as {t.same_as}, and has records of its own"
    for trial, log in case.trials:
        ended = False
        for r in log:
            if r["kind"] == "end":
                if ended:
                    yield f"trial {trial.name} ends a second time in record {r['seq']}"
                if r["status"] not in ENDED or (r["status"] == "failed") != (r["failure"] in FAILURES):
                    yield f"trial {trial.name} ends as {r['status']!r} of class {r['failure']!r}, which is no end"
                ended = True
            elif r["kind"] == "retry":
                ended = False
            elif r["kind"] == "start" and ended:
                yield f"trial {trial.name} starts in record {r['seq']} though it has ended"


def _lines(case: Case) -> Iterator[str]:
    yield from case.damaged
    yield from (f"record {seq} lacks {', '.join(sorted(missing))}" for seq, missing in case.lacking.items())


def _redo(case: Case) -> Iterator[str]:
    for trial, log in case.trials:
        for a in _attempts(log):
            period = int(trial.config["eval"]["every"])
            if a.excused or a.reported < 0:
                continue
            if a.reported - a.step > period:
                yield (
                    f"trial {trial.name}, attempt {a.number} starts at step {a.step}, {a.reported - a.step} below what "
                    f"had been reported; a checkpoint is made every {period}"
                )
            elif a.step == 0 and a.evaluated:
                yield f"trial {trial.name}, attempt {a.number} starts at 0 though a checkpoint had been evaluated"


class _Attempt:
    """Where an attempt starts, and what was known before."""

    def __init__(self, number: int, step: int, reported: int, evaluated: bool):
        self.number, self.step, self.reported, self.evaluated = number, step, reported, evaluated
        self.damage = False  # a note about a damaged checkpoint stands before its first report
        self.given_up = False  # its trial had failed because all checkpoints were damaged, and was opened again
        self.dropped = False  # retention had removed checkpoints

    @property
    def excused(self) -> bool:
        return self.damage or self.given_up or self.dropped


def _attempts(log: Iterable[Record]) -> list[_Attempt]:
    found: list[_Attempt] = []
    reported, evaluated, began, damage, given_up, dropped = -1, False, False, False, False, False
    failure, copied = "", False
    for r in log:
        kind = r["kind"]
        if kind == "start":
            if copied:  # results of another sweep, cut short: there is nothing to go on from
                reported, evaluated = -1, False
            copied = "cached" in r
            found.append(_Attempt(r["attempt"], r["step"], reported, evaluated))
            began = True
        elif kind == "train":
            reported, began = max(reported, r["step"]), False
            damage = given_up = dropped = False
        elif kind == "eval":
            evaluated = True
        elif kind == "end":
            failure = r["failure"]
        damage |= kind == "note" and bool(DAMAGE.search(r["text"]))
        given_up |= kind == "retry" and failure == "checkpoint"
        dropped |= kind == "dropped"
        if found and began:
            a = found[-1]
            a.damage, a.given_up, a.dropped = a.damage | damage, a.given_up | given_up, a.dropped | dropped
    return found


def _damaged_checkpoints(case: Case) -> Iterator[str]:
    for trial, log in case.trials:
        notes = [r["text"] for r in log if r["kind"] == "note" and DAMAGE.search(r["text"])]
        notes += [r["reason"] for r in log if r["kind"] == "end" and r["failure"] == "checkpoint"]
        if not (case.driven and trial.status == "running"):
            for name in case.aside(trial):
                if not any(name in text for text in notes):
                    yield f"trial {trial.name}: {name} was set aside as damaged without a note"
        for a in _attempts(log):
            if a.step == 0 and a.damage and a.reported >= 0 and not a.given_up:
                yield (
                    f"trial {trial.name}, attempt {a.number} begins anew though its checkpoints were damaged; "
                    "it must have failed (checkpoint)"
                )


def _repeated(case: Case) -> Iterator[str]:
    for trial, log in case.trials:
        if _on_gpu(trial.config):
            continue
        first: dict[tuple[str, int, int], Record] = {}
        for r in log:
            if r["kind"] == "train" or (r["kind"] == "eval" and len(r["success_once"]) == r["episodes"]):
                other = first.setdefault((r["kind"], r["seed"], r["step"]), r)
                names = ("metrics",) if r["kind"] == "train" else ("digest", "episode_seeds", *COLUMNS)
                differ = [n for n in names if r[n] != other[n]]
                if differ:
                    yield (
                        f"trial {trial.name}, seed {r['seed']}, step {r['step']}: {', '.join(differ)} of record "
                        f"{r['seq']} differ from those of record {other['seq']}"
                    )


def _on_gpu(config: Record) -> bool:
    return not config["train"]["device"].startswith("cpu") or config["env"]["sim_backend"] == "physx_cuda"


def _evaluations(case: Case) -> Iterator[str]:
    for trial, log in case.trials:
        digests: dict[tuple[int, int], str] = {}
        newest: dict[int, str] = {}
        for r in (r for r in log if r["kind"] == "eval"):
            yield from (f"trial {trial.name}, record {r['seq']}: {why}" for why in _unbound(r, trial.config))
            newest[r["step"]] = r["digest"]
            if digests.setdefault((r["attempt"], r["step"]), r["digest"]) != r["digest"]:
                yield f"trial {trial.name}: the seeds of step {r['step']} were evaluated from two checkpoints"
        for step, digest in newest.items() if case.digest_of else ():
            yield from _compare(case, case.folder / "trials" / trial.name / f"step_{step:08d}", digest)


def _unbound(r: Record, config: Record) -> Iterator[str]:
    """What an evaluation is not bound to."""
    asked, first, done = r["episodes"], config["eval"]["seed"], len(r["success_once"])
    if not r["digest"]:
        yield "the evaluation names no checkpoint"
    if {**r["env"], "id": None} != {**config["env"], "id": None} or r["env"]["id"] != (
        config["env"]["id"] or r["env"]["id"]
    ):
        yield f"the evaluation's environment {r['env']} is not the trial's"
    if asked != config["eval"]["episodes"]:
        yield f"{asked} episodes were asked for in place of {config['eval']['episodes']}"
    absent = [k for k in VALUES if r[k] is None]
    if len(absent) == 1:
        yield f"{absent[0]} is null, but the other of {' and '.join(VALUES)} is not"
    if len({len(r[k]) for k in ("episode_seeds", *COLUMNS) if k not in absent}) > 1 or done > asked:
        yield f"the evaluation of {asked} episodes has columns of different lengths, or more"
    if r["episode_seeds"] != [first + i for i in range(len(r["episode_seeds"]))]:
        yield f"the episodes do not start from the seeds {first}, {first + 1}, .."


def _compare(case: Case, path: Path, digest: str) -> Iterator[str]:
    if case.digest_of is None or not store.exists(path):
        return
    try:
        found = case.digest_of(path)
    except ValueError as e:
        if store.exists(path) and not case.driven:  # a driver may be replacing it just now
            yield str(e).removeprefix("- ")
        return
    if found != digest:
        yield f"{path} is not the checkpoint that was evaluated: its digest is {found[:12]}, recorded is {digest[:12]}"


def _numbers(case: Case) -> Iterator[str]:
    for trial, log in case.trials:
        newest, seen = 0, Counter[tuple[Any, ...]]()
        for r in log:
            if r["kind"] == "start":
                if r["attempt"] != newest + 1:
                    yield f"trial {trial.name}: attempt {r['attempt']} follows attempt {newest}"
                newest = r["attempt"]
            elif r["kind"] in ("fault", "end"):  # an attempt may be lost before it could say that it starts
                if r["attempt"] not in (newest, newest + 1):
                    yield f"trial {trial.name}: attempt {newest} runs, but {r['attempt']} is lost or ends"
                newest = max(newest, r["attempt"])
            elif r["kind"] in ("train", "eval"):
                if r["attempt"] != newest:
                    yield f"trial {trial.name}: record {r['seq']} is of attempt {r['attempt']} while {newest} runs"
                if r["kind"] == "train" or len(r["success_once"]) == r["episodes"]:
                    seen[r["kind"], r["attempt"], r["seed"], r["step"]] += 1
        for (kind, attempt, seed, step), count in seen.items():
            if count > 1:
                yield f"trial {trial.name}: attempt {attempt} reports {kind} of seed {seed}, step {step} {count} times"


def _study(case: Case) -> Iterator[str]:
    path = case.folder / "optuna.journal"
    if path.exists() and not case.lacking:
        from offrl_ray.sweep import study

        yield from study.problems(path, case.raw)


def _completed(case: Case) -> Iterator[str]:
    for trial, _ in case.trials:
        if trial.status != "completed":
            continue
        healthy = [s for s in trial.seeds if str(s) not in trial.diverged]
        if not healthy:
            yield f"trial {trial.name} has completed though all its seeds have diverged"
        for seed in healthy:
            for step in sorted({*trial.evals, trial.steps}):
                if seed not in trial.evals.get(step, {}):
                    yield f"trial {trial.name} has completed without the evaluation of seed {seed} at step {step}"
            metrics = trial.metrics.get(seed, {})
            bad = [f"{k} {v}" for k, v in metrics.items() if not abs(v) < float("inf")]
            if bad or not metrics:
                yield f"trial {trial.name} has completed with {', '.join(bad) or 'no metrics'} of seed {seed}"


RULES: dict[str, Callable[[Case], Iterator[str]]] = {
    "N0": _ends,
    "N1": _lines,
    "N2": _redo,
    "N3": _damaged_checkpoints,
    "N4": _repeated,
    "N5": _evaluations,
    "N6": _numbers,
    "N7": _study,
    "N8": _completed,
}
