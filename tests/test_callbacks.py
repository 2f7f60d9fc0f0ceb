import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from offrl_ray.config import resolve
from offrl_ray.distributed import callbacks
from offrl_ray.distributed.callbacks import EventFiles, Progress, RecordKeeper
from offrl_ray.records import Writer, read
from offrl_ray.sweep.plan import Point
from tests.conftest import TINY

POINTS = [Point(t, {}, resolve(TINY | {"data.files": ["a.h5"]})) for t in ("00-a", "01-b")]
Record = dict[str, Any]


def start(trial: str, step: int = 0) -> Record:
    return {"kind": "start", "trial": trial, "step": step}


def train(trial: str, step: int, seed: int = 0, **metrics: float) -> Record:
    return {"kind": "train", "trial": trial, "seed": seed, "step": step, "metrics": metrics, "seconds": 1.0}


def evaluation(trial: str, step: int, once: list[int], seed: int = 0) -> Record:
    columns = {"success_once": once, "success_at_end": [0] * len(once), "return": [1.5, 2.5], "length": [3, 5]}
    return {"kind": "eval", "trial": trial, "seed": seed, "step": step, **columns}


def end(trial: str, status: str = "completed", step: int = 12, reason: str = "") -> Record:
    return {"kind": "end", "trial": trial, "status": status, "reason": reason, "step": step, "diverged": {}, "cost": {}}


def scalars(folder: Path, trial: str, seed: int) -> dict[str, list[tuple[int, float]]]:
    """tag -> [(step, value)], as TensorBoard itself reads them."""
    events = EventAccumulator(str(folder / trial / f"seed_{seed}"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


# -- event files


def test_tensorboard_reads_every_metric_at_its_step_for_each_seed(tmp_path: Path) -> None:
    files = EventFiles(tmp_path)
    for step in (2, 4, 6):
        for seed in (0, 1):
            files.add(train("00-a", step, seed, q_mean=step + seed / 2, loss=-1.0))
    files.add(evaluation("00-a", 4, [1, 0], seed=1))
    files.close()
    assert scalars(tmp_path, "00-a", 0) == {
        "train/q_mean": [(2, 2.0), (4, 4.0), (6, 6.0)],
        "train/loss": [(2, -1.0), (4, -1.0), (6, -1.0)],
    }
    assert scalars(tmp_path, "00-a", 1)["train/q_mean"] == [(2, 2.5), (4, 4.5), (6, 6.5)]
    evals = {k: v for k, v in scalars(tmp_path, "00-a", 1).items() if k.startswith("eval/")}
    expected = {"success_once": 0.5, "success_at_end": 0.0, "return": 2.0, "length": 4.0}
    assert evals == {f"eval/{k}": [(4, v)] for k, v in expected.items()}


def test_a_report_can_be_read_before_the_files_are_closed(tmp_path: Path) -> None:
    EventFiles(tmp_path).add(train("00-a", 2, q_mean=1.0))
    assert scalars(tmp_path, "00-a", 0) == {"train/q_mean": [(2, 1.0)]}


def test_numbers_that_are_not_finite_are_kept(tmp_path: Path) -> None:
    EventFiles(tmp_path).add(train("00-a", 2, a=math.nan, b=math.inf, c=-math.inf, d=1.0))
    found = scalars(tmp_path, "00-a", 0)
    assert math.isnan(found["train/a"][0][1])
    assert [found[f"train/{k}"] for k in "bcd"] == [[(2, math.inf)], [(2, -math.inf)], [(2, 1.0)]]


def test_event_files_can_be_derived_from_what_was_recorded(tmp_path: Path) -> None:
    with Writer(tmp_path) as w:
        w.write(**train("00-a", 2, a=math.nan, d=1.0))
    files = EventFiles(tmp_path / "tb")
    for r in read(tmp_path).records:
        files.add(r)
    assert math.isnan(scalars(tmp_path / "tb", "00-a", 0)["train/a"][0][1])


def test_only_training_and_evaluation_make_event_files(tmp_path: Path) -> None:
    files = EventFiles(tmp_path)
    for r in (start("00-a"), end("00-a"), {"kind": "note", "trial": "00-a", "text": ""}):
        files.add(r)
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_sweep_adds_to_its_event_files(tmp_path: Path) -> None:
    for step in (2, 4):
        files = EventFiles(tmp_path)
        files.add(train("00-a", step, q_mean=float(step)))
        files.close()
    assert scalars(tmp_path, "00-a", 0) == {"train/q_mean": [(2, 2.0), (4, 4.0)]}


# -- progress


class Clock:
    """Says what is printed, and what time it is."""

    def __init__(self) -> None:
        self.now, self.lines = 1000.0, list[str]()

    def monotonic(self) -> float:
        return self.now

    def at(self, seconds: float, progress: Progress, *records: Record) -> list[str]:
        """The lines that records cause at a time since the beginning."""
        self.now, self.lines[:] = 1000.0 + seconds, []
        for r in records:
            progress.add(r)
        return list(self.lines)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(callbacks, "time", clock)
    return clock


@pytest.fixture
def progress(clock: Clock) -> Progress:
    return Progress(POINTS, clock.lines.append)


def test_a_line_tells_what_is_done_and_how_long_it_takes(progress: Progress, clock: Clock) -> None:
    (first,) = clock.at(0, progress, start("00-a"))
    assert first.startswith("0/2 points done")
    assert "no estimate yet" in first
    (line,) = clock.at(60, progress, train("00-a", 6), train("00-a", 6, seed=1))
    assert line == "0/2 points done, 1 running, 1:00 gone, 3:00 left"


def test_lines_come_at_most_every_ten_seconds(progress: Progress, clock: Clock) -> None:
    shown = [len(clock.at(s, progress, train("00-a", 2))) for s in range(0, 60)]
    assert sum(shown) in (5, 6)


def test_what_an_earlier_session_did_is_not_counted_as_this_ones_speed(progress: Progress, clock: Clock) -> None:
    clock.at(0, progress, start("00-a", 8))
    (line,) = clock.at(60, progress, train("00-a", 12))
    assert "1:00 gone, 3:00 left" in line  # 4 updates a minute, 12 of 16 to go


def test_what_a_retry_repeats_is_counted_again(progress: Progress, clock: Clock) -> None:
    clock.at(0, progress, start("00-a"), train("00-a", 8))
    (line,) = clock.at(60, progress, start("00-a", 4))
    assert "1:00 gone, 2:30 left" in line  # 8 updates a minute, 20 of 28 to go


def test_the_end_of_a_point_tells_its_score_and_the_best_so_far(progress: Progress, clock: Clock) -> None:
    clock.at(0, progress, start("00-a"), start("01-b"), train("00-a", 12), train("01-b", 12))
    scores = [evaluation("00-a", 4, [1, 1]), evaluation("00-a", 12, [0, 1]), evaluation("00-a", 12, [1, 1], seed=1)]
    lines = clock.at(5, progress, *scores, end("00-a"))
    assert lines[0].startswith("  00-a: completed at 12 updates, success_once 0.75, return ")
    assert "1/2 points done, 1 running" in lines[1]
    assert "best success_once 0.75 at 00-a" in lines[1]
    lines = clock.at(6, progress, evaluation("01-b", 12, [0, 1]), end("01-b", reason="seed 1: nan"))
    assert lines[0].startswith("  01-b: completed at 12 updates, success_once 0.50, return ")
    assert lines[0].endswith(" (seed 1: nan)")
    assert "2/2 points done, 0 running" in lines[1]
    assert "best success_once 0.75 at 00-a" in lines[1]


def test_a_diverged_point_has_ended_without_a_score(progress: Progress, clock: Clock) -> None:
    lines = clock.at(0, progress, start("00-a"), train("00-a", 2), end("00-a", "diverged", 2, "seed 0: loss is nan"))
    assert "  00-a: diverged at 2 updates (seed 0: loss is nan)" in lines
    assert "1/2 points done, 0 running" in lines[-1]
    assert "best" not in lines[-1]


def test_a_point_runs_from_its_start_to_its_end(progress: Progress, clock: Clock) -> None:
    (line,) = clock.at(0, progress, start("00-a"))
    assert "1 running" in line
    lines = clock.at(20, progress, end("00-a", "failed", 0, "died in its setup"))
    assert "1/2 points done, 0 running" in lines[-1]


# -- the driver's records


@pytest.fixture
def ledger(tmp_path: Path, progress: Progress) -> RecordKeeper:
    return RecordKeeper(Writer(tmp_path), EventFiles(tmp_path / "tb"), progress, POINTS)


def test_every_record_of_a_result_is_written_once_and_taken_out_of_it(
    ledger: RecordKeeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    told = [start("00-a"), train("00-a", 2, a=math.nan), train("00-a", 2, seed=1, a=1.0)]
    result = {"records": list(told), "updates": 2, "done": False}
    ledger.on_trial_result(1, [], None, result)
    assert result == {"updates": 2, "done": False}
    log = read(tmp_path)
    assert log.problems == []
    assert [(r["kind"], r.get("seed"), r["seq"]) for r in log.records] == [
        ("start", None, 0),
        ("train", 0, 1),
        ("train", 1, 2),
    ]
    assert all(r["time"] > 1e9 for r in log.records)
    assert scalars(tmp_path / "tb", "00-a", 1) == {"train/a": [(2, 1.0)]}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("Traceback ...\n\nRuntimeError: out of memory\n", "RuntimeError: out of memory"),
        (None, "unknown"),
        ("", "unknown"),
    ],
)
def test_a_failed_trial_ends_with_the_last_line_of_its_error(
    error: str | None, reason: str, ledger: RecordKeeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    trial = SimpleNamespace(config={"point": 1}, get_error=lambda: error, last_result={"updates": 4})
    ledger.on_trial_error(1, [], trial)
    (record,) = read(tmp_path).records
    assert {k: record[k] for k in ("kind", "trial", "status", "reason", "step")} == {
        "kind": "end",
        "trial": "01-b",
        "status": "failed",
        "reason": reason,
        "step": 4,
    }
