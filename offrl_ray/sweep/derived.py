"""What others read of a sweep, derived from its records: TensorBoard's event files, Optuna's journal and a table."""

import contextlib
import csv
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from offrl_ray import records
from offrl_ray.sweep import events, study
from offrl_ray.sweep.state import Record, State, Trial, check_names
from offrl_ray.sweep.status import driver_runs

EVENTS, TABLE = "tb", "trials.csv"


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
        _replace(done[2], lambda path: events.write(path, state, log))
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
