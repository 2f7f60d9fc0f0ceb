"""TensorBoard's event files of a sweep: curves as they grow, and the runs of its HParams table."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from offrl_ray.sweep import hparams
from offrl_ray.sweep.hparams import DIVERGED, Table
from offrl_ray.sweep.state import Record, State, means, q_excess

PREFIX = "events.out.tfevents."
REPORTS = ("train", "eval", "diverged")


def scalars(record: Record) -> dict[str, float]:
    """tag -> value of a train or eval record; what is not finite becomes nonfinite/NAME = 1."""
    if record["kind"] == "train":
        metrics = {k: float(v) for k, v in record["metrics"].items()}
        excess = q_excess(metrics)
        found = {f"train/{k}": v for k, v in (metrics if excess is None else metrics | {"q_excess": excess}).items()}
    elif len(record["success_once"]) == record["episodes"]:
        found = {f"eval/{m}": v for m, v in means(record).items()}
    else:
        return {}
    finite = {k: v for k, v in found.items() if math.isfinite(v)}
    return finite | {f"nonfinite/{k.partition('/')[2]}": 1.0 for k in found.keys() - finite.keys()}


class EventFile:
    """One event file of a folder, each of which is a run. `purge`: from this step on readers forget earlier files."""

    def __init__(self, folder: Path, name: str, purge: int | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self.first = not any(p.stat().st_size for p in folder.glob(f"{PREFIX}*"))
        self._file = (folder / f"{PREFIX}{name}").open("ab")  # readers take a folder's files by name
        self._events = RecordWriter(self._file)
        if self._file.tell() == 0:
            self._write(file_version="brain.Event:2")
            if purge is not None:
                self._write(step=purge, session_log=SessionLog(status=SessionLog.START))

    def add(self, record: Record, values: dict[str, float]) -> None:
        """At once in reach of readers, as is what is told."""
        self.tell(record, Summary(value=[Summary.Value(tag=t, simple_value=v) for t, v in sorted(values.items())]))

    def tell(self, record: Record, *summaries: Summary) -> None:
        for summary in summaries:
            self._write(wall_time=record["time"], step=record.get("step", 0), summary=summary)
        self._file.flush()

    def _write(self, **fields: Any) -> None:
        self._events.write(Event(**fields).SerializeToString())

    def close(self) -> None:
        self._file.close()


class EventFiles:
    """Follows a driver's records: one run per trial and seed on the axis of updates, one file per attempt.

    An attempt repeats what was reported after its checkpoint: its file tells readers to forget those steps. How a run
    ended has a file of its own, which goes when the run goes on, since readers keep the first end that they find. `log`
    is what earlier drivers recorded, so that nothing is shown twice.
    """

    def __init__(self, folder: Path, log: Iterable[Record] = ()):
        self._folder = folder
        self._plan: Record | None = None
        self._points: dict[str, Record] = {}
        self._table: Table | None = None
        self._files: dict[tuple[str, int], EventFile] = {}
        self._from: dict[str, int] = {}  # trial -> where its newest attempt starts
        self._told: dict[str, set[tuple[int, int, str]]] = {}  # trial -> step, seed, kind
        for record in log:
            self._learn(record)
        self._declare()

    def add(self, record: Record) -> None:
        new, kind = self._learn(record), record["kind"]
        self._declare()
        if kind in ("train", "eval") and new and (values := scalars(record)):
            self._of(record, record["seed"]).add(record, values)
        elif kind == "diverged" and new:
            self._of(record, record["seed"]).add(record, {DIVERGED: 1.0})
        elif kind == "start":
            self._close(record["trial"])
            self._begin(record)
        elif kind == "end":
            self._end(record)
        if kind in ("fault", "end"):
            self._close(record["trial"])

    def _learn(self, record: Record) -> bool:
        """False for what was told before."""
        kind, told = record["kind"], self._told.setdefault(record.get("trial", ""), set())
        if kind == "plan":
            self._plan = record
            self._points |= {p["trial"]: p for p in record["points"]}
        elif kind == "point":
            self._points[record["trial"]] = record
        elif kind == "start":
            self._from[record["trial"]] = record["step"]
            told -= {t for t in told if t[0] > record["step"]}
        elif kind == "diverged" or (kind == "eval" and scalars(record)):
            key = (record["step"], record["seed"], kind)
            if key in told:
                return False
            told.add(key)
        return True

    def _declare(self) -> None:
        """The table, once a point is known, unless it is another sweep's (hparams.py)."""
        if self._table or not self._plan or not self._points or self._plan.get("confirms"):
            return
        known = self._plan["points"] or list(self._points.values())
        self._table = Table(self._plan, [p["config"] for p in known])
        file = EventFile(self._folder, "00001")
        if file.first:
            file.tell(self._plan, self._table.experiment())
        file.close()

    def _of(self, record: Record, seed: int) -> EventFile:
        trial, attempt = record["trial"], record["attempt"]
        if (trial, seed) not in self._files:
            purge = self._from.get(trial, 0) + 1 if attempt > 1 else None
            file = self._files[trial, seed] = EventFile(self._run(trial, seed), f"{attempt:05d}", purge)
            if file.first and self._table and trial in self._points:
                file.tell(record, self._table.start(self._points[trial], record["time"]))
        return self._files[trial, seed]

    def _run(self, trial: str, seed: int) -> Path:
        return self._folder / trial / f"seed_{seed}"

    def _begin(self, record: Record) -> None:
        for seed in self._points.get(record["trial"], {}).get("seeds", ()):
            file = self._of(record, seed)
            if file.first:
                file.add(record, {DIVERGED: 0.0})
            for old in self._run(record["trial"], seed).glob(f"{PREFIX}*.end"):
                old.unlink()

    def _end(self, record: Record) -> None:
        known = self._points.get(record["trial"], {}).get("seeds", ())
        for seed in sorted({*known, *map(int, record["diverged"])}):
            why = record["diverged"].get(str(seed))
            if (record["step"], seed, "diverged") not in self._told[record["trial"]]:
                self._of(record, seed).add(record, {DIVERGED: float(why is not None)})
            status = record["status"] if why is None else "diverged"
            told = f"{status} at {record['step']} updates: {why or record['reason']}".removesuffix(": ")
            file = EventFile(self._run(record["trial"], seed), f"{record['attempt']:05d}.end")
            file.tell(record, hparams.end(record, seed), text_pb("end", told))
            file.close()

    def _close(self, trial: str) -> None:
        for key in [k for k in self._files if k[0] == trial]:
            self._files.pop(key).close()

    def close(self) -> None:
        for trial in {t for t, _ in self._files}:
            self._close(trial)


def write(folder: Path, state: State, log: Iterable[Record]) -> None:
    """A new folder of what `log` adds up to: all attempts at a trial as one."""
    folder.mkdir()
    plans: list[Record] = []
    found: dict[str, dict[tuple[int, int, str], Record]] = {name: {} for name in state.trials}
    for r in log:
        if r["kind"] in ("plan", "point"):
            plans.append(r)
        elif r["kind"] == "start" and r["trial"] in found:
            found[r["trial"]].setdefault((-1, -1, "start"), r)
        elif r["kind"] in REPORTS and r["trial"] in found and (r["kind"] == "diverged" or scalars(r)):
            found[r["trial"]][r["step"], r["seed"], r["kind"]] = r  # the newest attempt comes last
    files = EventFiles(folder, plans)
    for name, of in found.items():
        end = state.trials[name].end
        for r in [*(of[key] for key in sorted(of)), *([end] if end else [])]:
            files.add({**r, "attempt": 1})
    files.close()
