"""What others read of a sweep, derived from its records: TensorBoard's event files, Optuna's journal and a table."""

import contextlib
import csv
import io
import math
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from offrl_ray import records
from offrl_ray.sweep import study
from offrl_ray.sweep.state import Record, State, Trial, check_names, means
from offrl_ray.sweep.status import driver_runs

EVENTS, TABLE = "tb", "trials.csv"


def scalars(record: Record) -> dict[str, float]:
    """tag -> value of a train or eval record; what is not finite becomes nonfinite/NAME = 1."""
    if record["kind"] == "train":
        found = {f"train/{k}": float(v) for k, v in record["metrics"].items()}
    elif len(record["success_once"]) == record["episodes"]:
        found = {f"eval/{m}": v for m, v in means(record).items()}
    else:
        return {}
    finite = {k: v for k, v in found.items() if math.isfinite(v)}
    return finite | {f"nonfinite/{k.partition('/')[2]}": 1.0 for k in found.keys() - finite.keys()}


class _Run:
    """One event file. `purge`: the step from which on readers forget what earlier attempts wrote."""

    def __init__(self, folder: Path, attempt: int, purge: int | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"events.out.tfevents.{attempt:05d}"  # readers take a folder's files by name
        new = not path.exists()
        self._file = path.open("ab")
        self._events = RecordWriter(self._file)
        if new:
            self._write(file_version="brain.Event:2")
            if purge is not None:
                self._write(step=purge, session_log=SessionLog(status=SessionLog.START))

    def add(self, record: Record, values: dict[str, float]) -> None:
        summary = Summary(value=[Summary.Value(tag=t, simple_value=v) for t, v in sorted(values.items())])
        self._write(wall_time=record["time"], step=record["step"], summary=summary)

    def _write(self, **fields: Any) -> None:
        self._events.write(Event(**fields).SerializeToString())

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class EventFiles:
    """Follows a driver's records: one run per trial and seed on the axis of updates, one file per attempt.

    An attempt repeats what was reported after its checkpoint: its file tells readers to forget those steps. `log` is
    what earlier drivers recorded, so that an evaluation that is done again is not shown twice.
    """

    def __init__(self, folder: Path, log: Iterable[Record] = ()):
        self._folder = folder
        self._runs: dict[tuple[str, int], _Run] = {}
        self._from: dict[str, int] = {}  # trial -> where its newest attempt starts
        self._evals: dict[str, set[tuple[int, int]]] = {}  # trial -> step, seed
        for record in log:
            self._is_new(record)

    def add(self, record: Record) -> None:
        if not self._is_new(record):
            return
        if record["kind"] in ("train", "eval"):
            if values := scalars(record):
                self._write(record, record["seed"], values)
        elif record["kind"] == "end":
            for seed in record["diverged"]:
                self._write(record, int(seed), {"diverged": 1.0})
        if record["kind"] in ("start", "fault", "end"):
            self._close(record["trial"])

    def _is_new(self, record: Record) -> bool:
        kind, evals = record["kind"], self._evals.setdefault(record.get("trial", ""), set())
        if kind == "start":
            self._from[record["trial"]] = record["step"]
            evals -= {e for e in evals if e[0] > record["step"]}
        elif kind == "eval" and scalars(record):
            key = (record["step"], record["seed"])
            if key in evals:
                return False
            evals.add(key)
        return True

    def _write(self, record: Record, seed: int, values: dict[str, float]) -> None:
        trial, attempt = record["trial"], record["attempt"]
        if (trial, seed) not in self._runs:
            purge = self._from.get(trial, 0) + 1 if attempt > 1 else None
            self._runs[trial, seed] = _Run(self._folder / trial / f"seed_{seed}", attempt, purge)
        self._runs[trial, seed].add(record, values)
        self._runs[trial, seed].flush()

    def _close(self, trial: str) -> None:
        for key in [k for k in self._runs if k[0] == trial]:
            self._runs.pop(key).close()

    def close(self) -> None:
        for trial in {t for t, _ in self._runs}:
            self._close(trial)


def rebuild(folder: Path) -> list[Path]:
    """Write all derived files anew, each atomically; gives their paths. Raises UsageError for names of foreign trials.

    Reads the records alone and never writes them, so it may run at any time. Beside a driver the event files are left
    alone: the driver has them open and keeps them up to date itself.
    """
    log = records.read(folder).records
    state = State(log)
    check_names(state.trials)
    done = [folder / study.FILE, folder / TABLE]
    _replace(done[0], lambda path: study.write(path, state))
    _replace(done[1], lambda path: path.write_text(table(state)))
    if not driver_runs(folder):
        done.append(folder / EVENTS)
        _replace(done[2], lambda path: _event_files(path, state, log))
    return done


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """A reader sees what was there before or all that is new; a folder is missing for an instant."""
    new, old = (path.with_name(f".{path.name}.{os.getpid()}.{word}") for word in ("new", "old"))
    try:
        write(new)
        if path.is_dir():
            path.rename(old)
        new.replace(path)
    finally:
        for part in (new, old):
            shutil.rmtree(part, ignore_errors=True)
            with contextlib.suppress(OSError):
                part.unlink()


def _event_files(folder: Path, state: State, log: list[Record]) -> None:
    folder.mkdir()
    runs: dict[tuple[str, int], dict[tuple[int, str], Record]] = {}
    for r in log:
        if r["kind"] in ("train", "eval") and r["trial"] in state.trials and scalars(r):
            runs.setdefault((r["trial"], r["seed"]), {})[r["step"], r["kind"]] = r  # the newest attempt comes last
    for (trial, seed), found in runs.items():
        run, end = _Run(folder / trial / f"seed_{seed}", 1), state.trials[trial].end
        for _, r in sorted(found.items()):
            run.add(r, scalars(r))
        if end and str(seed) in end["diverged"]:
            run.add(end, {"diverged": 1.0})
        run.close()


def table(state: State) -> str:
    """CSV, one row per trial and seed; metrics of the last step and the newest report, empty where there are none."""
    rows = [_row(t, seed) for t in state.trials.values() if t.same_as is None for seed in t.seeds]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(k for row in rows for k in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _row(t: Trial, seed: int) -> Record:
    end: Record = t.end or {}
    why = t.diverged.get(str(seed))
    return {
        "trial": t.name,
        "seed": seed,
        "status": t.status if why is None else "diverged",
        "failure": end.get("failure", ""),
        "reason": end.get("reason", "") if why is None else why,
        "attempts": t.attempt,
        "step": t.step,
        **t.point,
        **{f"eval/{m}": v for m, v in t.evals.get(t.steps, {}).get(seed, {}).items()},
        **{f"train/{m}": v for m, v in t.metrics.get(seed, {}).items()},
        **{f"cost/{k}": v for k, v in end.get("cost", {}).items()},
    }
