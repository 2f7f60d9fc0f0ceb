import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from offrl_ray.records import FILE
from offrl_ray.sweep import study
from offrl_ray.sweep.fsck import check
from offrl_ray.sweep.state import State
from offrl_ray.sweep.status import LOCK
from tests import ledgers
from tests.ledgers import end, evaluation, fault, note, numbered, plan, point, session, start, train, whole, work

Record = dict[str, Any]
POINTS = [point("00"), point("01")]
BEGIN = [plan(POINTS), session()]
DAMAGED = "/x/step_00000008 is damaged: state.pt differs; use another checkpoint"


def resumed(*between: Record, begin: int = 4) -> list[Record]:
    """Trial 00 is killed after step 10, whose evaluation at 8 is recorded, and goes on from `begin`."""
    second = [*work("00", attempt=2, begin=begin), end("00", attempt=2)]
    return [*BEGIN, *work("00", 10), *between, session(), *second, *whole("01")]


def digest_of(path: Path) -> str:
    return f"digest-{int(path.name[5:])}"


def checkpoint(folder: Path, trial: str, name: str) -> None:
    (folder / "trials" / trial / name).mkdir(parents=True)


# -- what is no violation

CLEAN: dict[str, list[Record]] = {
    "whole": [*BEGIN, *whole("00"), *whole("01")],
    "a variant without critic": [
        r | {"q_start": None, "discounted_return": None} if r["kind"] == "eval" else r
        for r in [*BEGIN, *whole("00"), *whole("01")]
    ],
    "a Q that is not finite": [
        r | {"q_start": ["inf", "nan"]} if r["kind"] == "eval" else r for r in [*BEGIN, *whole("00"), *whole("01")]
    ],
    "resumed from the newest checkpoint": resumed(begin=8),
    "lost and retried by the driver": resumed(fault("00"), begin=8),
    "resumed from an older checkpoint, for the newest was damaged": resumed(note("00", DAMAGED)),
    "lost before it could start": [*BEGIN, fault("00", 1), *work("00", attempt=2), end("00", attempt=2), *whole("01")],
    "failed in its setup": [*BEGIN, end("00", "failed", failure="data", reason="no file", step=0), *whole("01")],
    "failed, and opened again": [
        *[*BEGIN, *work("00", 6), end("00", "failed", failure="oom", reason="oom", step=6), *whole("01")],
        *[{"kind": "retry", "trial": "00"}, *work("00", attempt=2, begin=4), end("00", attempt=2)],
    ],
    "lost all checkpoints, and opened again by a person": [
        *[*BEGIN, *work("00", 6), note("00", DAMAGED), end("00", "failed", failure="checkpoint", reason="all bad")],
        *[*whole("01"), {"kind": "retry", "trial": "00"}, *work("00", attempt=2), end("00", attempt=2)],
    ],
    "retention cleared a failed trial that was opened again": [
        *[*BEGIN, *work("00", 6), end("00", "failed", failure="code", reason="bug"), *whole("01")],
        *[{"kind": "dropped", "trial": "00", "steps": [4], "bytes": 1}, {"kind": "retry", "trial": "00"}],
        *[*work("00", attempt=2), end("00", attempt=2)],
    ],
    "stopped before it was started": [*BEGIN, *whole("00"), end("01", "pruned", attempt=0, step=0, reason="user")],
    "a seed that diverged": [
        *[*BEGIN, *work("00", seeds=[0]), train("00", 6, 1, loss=float("nan"))],
        *[end("00", diverged={"1": "loss is nan"}), *whole("01")],
    ],
    "diverged": [
        *[*BEGIN, *whole("00"), start("01"), train("01", 2, loss=float("nan"))],
        end("01", "diverged", step=2, reason="seed 0: loss is nan", diverged={"0": "nan", "1": "nan"}),
    ],
    "an evaluation that was done in part, then in full": [
        *[*BEGIN, *work("00", 6), evaluation("00", 8, once=[1]), *work("00", attempt=2, begin=4), end("00", attempt=2)],
        *whole("01"),
    ],
    "a search that asked for the same run twice": [
        *[plan([], search={"objectives": ["success_once"], "trials": 2}), session()],
        *[{"kind": "point", **point("00", number=0)}, *whole("00")],
        {"kind": "point", **point("01", number=1, same_as="00")},
    ],
    "results copied from an earlier sweep": [
        *[*BEGIN, start("00", cached="old:07"), *work("00")[1:], end("00"), *whole("01")]
    ],
}


@pytest.mark.parametrize("story", CLEAN)
def test_a_ledger_that_lost_nothing_is_clean(story: str, tmp_path: Path) -> None:
    ledgers.write(tmp_path, CLEAN[story])
    report = check(tmp_path, digest_of)
    assert report.violations == []
    assert report.open == []
    total = 1 if "search" in story else 2
    assert report.verdict == f"clean: {total} of {total} ended"


def test_at_every_moment_of_a_sweep_it_is_clean_so_far(tmp_path: Path) -> None:
    log = resumed(fault("00"), begin=8)
    for count in range(1, len(log)):
        ledgers.write(tmp_path, log[:count])
        report = check(tmp_path)
        assert report.violations == [], count
        assert report.verdict == f"clean so far: {len(report.open)} open"
        assert set(report.open) == {"00", "01"} - {r["trial"] for r in log[:count] if r["kind"] == "end"}


def test_a_torn_end_is_a_note_unless_it_is_just_being_written(tmp_path: Path) -> None:
    ledgers.write(tmp_path, BEGIN)
    with (tmp_path / FILE).open("ab") as f:
        f.write(b'{"v":1,"seq":2')
    report = check(tmp_path)
    assert report.violations == []
    (told,) = report.notes
    assert "torn end" in told
    with filelock.FileLock(tmp_path / LOCK):
        assert check(tmp_path)[:3] == ([], ["00", "01"], [])


# -- what is

OTHER_ENV = ledgers.CONFIG["env"] | {"reward_mode": "dense"}
WHOLE = CLEAN["whole"]


def changed(log: list[Record], index: int, **fields: Any) -> list[Record]:
    """With the record at `index` of trial 00's last evaluation of seed 0 (or any other place) changed."""
    return [*log[:index], log[index] | fields, *log[index + 1 :]]


LAST = WHOLE.index(evaluation("00", 12))
END = WHOLE.index(end("00"))
BROKEN: dict[str, tuple[str, list[Record]]] = {
    "an end twice": ("N0", [*WHOLE, end("00")]),
    "a trial that nobody planned": ("N0", [*WHOLE, note("02", "hello")]),
    "an end that is none": ("N0", changed(WHOLE, END, status="vanished")),
    "a failure without a class": ("N0", changed(WHOLE, END, status="failed")),
    "a class without a failure": ("N0", changed(WHOLE, END, failure="oom")),
    "a start after the end": ("N0", [*WHOLE, start("00", 2, 12)]),
    "a repetition that is run": ("N0", [plan([*POINTS, point("02", same_as="00")]), *WHOLE[1:], start("02")]),
    "a repetition of nothing": ("N0", [plan([*POINTS, point("02", same_as="09")]), *WHOLE[1:]]),
    "a record that lacks a part": ("N1", [*WHOLE, {"kind": "note", "trial": "00"}]),
    "redo of more than a period": ("N2", resumed(begin=4)),
    "from 0 in spite of a checkpoint": (
        "N2",
        [*BEGIN, *work("00", 4), *work("00", attempt=2), end("00", attempt=2), *whole("01")],
    ),
    "an excuse that is used up": (
        "N2",
        [*BEGIN, *work("00", 6), note("00", DAMAGED), *work("00", 10, 2, 4), *work("00", attempt=3, begin=4)],
    ),
    "begun anew when all checkpoints were damaged": ("N3", resumed(note("00", DAMAGED), begin=0)),
    "a report that differs when it is repeated": (
        "N4",
        [r | {"metrics": {"q_mean": 0.1}} if r == train("00", 10, 1, 2) else r for r in resumed(begin=8)],
    ),
    "an evaluation that differs when it is repeated": (
        "N4",
        [r | {"return": [1.5, 2.6]} if r == evaluation("00", 8, 0, 2) else r for r in resumed(note("00", DAMAGED))],
    ),
    "a Q that differs when it is repeated": (
        "N4",
        [r | {"q_start": [2.0, 1.1]} if r == evaluation("00", 8, 0, 2) else r for r in resumed(note("00", DAMAGED))],
    ),
    "another checkpoint after the same steps": (
        "N4",
        [
            r | {"digest": "x"} if (r["kind"], r.get("attempt"), r.get("step")) == ("eval", 2, 8) else r
            for r in resumed(note("00", DAMAGED))
        ],
    ),
    "an evaluation of no checkpoint": (
        "N5",
        [r | {"digest": ""} if r.get("step") == 12 and r["kind"] == "eval" else r for r in WHOLE],
    ),
    "seeds from two checkpoints": ("N5", changed(WHOLE, LAST, digest="x")),
    "another environment": ("N5", changed(WHOLE, LAST, env=OTHER_ENV)),
    "another environment's name": ("N5", changed(WHOLE, LAST, env=OTHER_ENV | {"id": "X", "reward_mode": "sparse"})),
    "other episodes": ("N5", changed(WHOLE, LAST, episode_seeds=[100, 102])),
    "columns of different lengths": ("N5", changed(WHOLE, LAST, length=[3])),
    "a Q without what came": ("N5", changed(WHOLE, LAST, discounted_return=None)),
    "a Q of fewer episodes": ("N5", changed(WHOLE, LAST, q_start=[2.0])),
    "fewer episodes asked for": ("N5", changed(WHOLE, LAST, **evaluation("00", 12, once=[1], episodes=1))),
    "an attempt left out": (
        "N6",
        [*BEGIN, *work("00", 10), *work("00", attempt=3, begin=8), end("00", attempt=3), *whole("01")],
    ),
    "a loss of an attempt that never was": ("N6", resumed(fault("00", 5), begin=8)),
    "the end of an attempt that never was": ("N6", changed(WHOLE, END, attempt=5)),
    "a step twice in one attempt": ("N6", [*WHOLE[:END], train("00", 12), *WHOLE[END:]]),
    "a report of an attempt that was given up": (
        "N6",
        [r | {"attempt": 1} if r == train("00", 12, 0, 2) else r for r in resumed(begin=8)],
    ),
    "completed without the last evaluation": ("N8", WHOLE[:LAST] + WHOLE[LAST + 1 :]),
    "completed without an earlier one of one seed": (
        "N8",
        [r for r in WHOLE if r != evaluation("00", 8, 1)],
    ),
    "completed with a part of it": ("N8", changed(WHOLE, LAST, **evaluation("00", 12, once=[1]))),
    "completed with a number that is none": ("N8", changed(WHOLE, WHOLE.index(train("00", 12)), metrics={"q": "nan"})),
    "completed without a metric": ("N8", [r for r in WHOLE if not (r["kind"] == "train" and r["seed"] == 1)]),
    "completed when all seeds had diverged": ("N8", changed(WHOLE, END, diverged={"0": "nan", "1": "nan"})),
}


@pytest.mark.parametrize("story", BROKEN)
def test_only_its_own_invariant_catches_a_violation(story: str, tmp_path: Path) -> None:
    invariant, log = BROKEN[story]
    ledgers.write(tmp_path, log)
    report = check(tmp_path, digest_of)
    assert {v.partition(":")[0] for v in report.violations} == {invariant}, report.violations
    assert report.verdict.endswith(("violation", "violations"))


def test_what_a_gpu_repeats_may_differ(tmp_path: Path) -> None:
    config = ledgers.CONFIG | {"train": {"device": "cuda"}}
    log = BROKEN["a report that differs when it is repeated"][1]
    ledgers.write(tmp_path, [plan([p | {"config": config} for p in POINTS]), *log[1:]])
    assert check(tmp_path).violations == []


def test_every_flipped_byte_of_the_records_is_a_violation(tmp_path: Path) -> None:
    ledgers.write(tmp_path, [*BEGIN, note("00", "x"), note("00", "y")])
    content = (tmp_path / FILE).read_bytes()
    first = content.index(b'"text":"x"') - 60
    for at in range(first, first + 60):
        (tmp_path / FILE).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        found = check(tmp_path).violations
        assert found, at
        assert all(v.startswith("N1: ") for v in found)


def test_a_line_that_is_missing_is_a_violation(tmp_path: Path) -> None:
    ledgers.write(tmp_path, [*BEGIN, note("00", "x"), note("00", "y")])
    lines = (tmp_path / FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / FILE).write_bytes(b"".join([*lines[:2], *lines[3:]]))
    (told,) = check(tmp_path).violations
    assert told.startswith("N1: ")
    assert told.endswith("records.jsonl:3: record 3 comes after record 1")


def test_a_checkpoint_set_aside_needs_its_note(tmp_path: Path) -> None:
    ledgers.write(tmp_path, [*BEGIN, *work("00", 8), session(), start("00", 2, 8)])
    checkpoint(tmp_path, "00", "step_00000008.0a1b2c3d.corrupt")
    (told,) = check(tmp_path).violations
    assert told == "N3: trial 00: step_00000008 was set aside as damaged without a note"
    with filelock.FileLock(tmp_path / LOCK):  # the note may be on its way
        assert check(tmp_path).violations == []
    ledgers.write(tmp_path, [*BEGIN, *work("00", 8), session(), start("00", 2, 4), note("00", DAMAGED)])
    assert check(tmp_path).violations == []


@pytest.mark.parametrize("damage", ["another digest", "unreadable"])
def test_the_checkpoint_on_disk_is_the_one_that_was_evaluated(damage: str, tmp_path: Path) -> None:
    def read(path: Path) -> str:
        if damage == "unreadable":
            raise ValueError(f"- {path} is damaged")
        return "other"

    ledgers.write(tmp_path, WHOLE)
    assert check(tmp_path, read).violations == []
    checkpoint(tmp_path, "00", "step_00000012")
    assert check(tmp_path).violations == []
    (told,) = check(tmp_path, read).violations
    assert told.startswith("N5: ")
    assert "step_00000012 is " in told


def storage(folder: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(folder / study.FILE)))


def _ask(folder: Path, log: list[Record]) -> None:
    optuna.load_study(study_name="toy", storage=storage(folder)).ask()


def _other_status(folder: Path, log: list[Record]) -> None:
    (folder / study.FILE).unlink()
    study.write(folder / study.FILE, State(numbered([*WHOLE[:-1], end("01", "pruned", reason="rung")])))


def _other_value(folder: Path, log: list[Record]) -> None:
    (folder / study.FILE).unlink()
    study.write(folder / study.FILE, State(numbered(changed(WHOLE, LAST, success_once=[0, 0]))))


def _of_more_records(folder: Path, log: list[Record]) -> None:
    (folder / study.FILE).unlink()
    study.write(folder / study.FILE, State(numbered([*WHOLE, note("00", "")])))


def _cut(folder: Path, log: list[Record]) -> None:
    content = (folder / study.FILE).read_bytes()
    (folder / study.FILE).write_bytes(content.replace(b"op_code", b"op_cod", 1))


@pytest.mark.parametrize("damage", [_ask, _other_status, _other_value, _of_more_records, _cut])
def test_the_study_is_what_its_records_make(damage: Callable[[Path, list[Record]], None], tmp_path: Path) -> None:
    log = ledgers.write(tmp_path, WHOLE)
    study.write(tmp_path / study.FILE, State(log))
    assert check(tmp_path).violations == []
    damage(tmp_path, log)
    found = check(tmp_path).violations
    assert found
    assert all(v.startswith("N7: optuna.journal") for v in found)


def test_a_study_of_an_earlier_moment_is_no_violation(tmp_path: Path) -> None:
    study.write(tmp_path / study.FILE, State(numbered(WHOLE[: END + 1])))
    ledgers.write(tmp_path, WHOLE)
    assert check(tmp_path).violations == []


def test_a_report_is_plain_data(tmp_path: Path) -> None:
    ledgers.write(tmp_path, [*BEGIN, *whole("00")])
    told = json.loads(json.dumps(check(tmp_path)._asdict()))
    assert told["open"] == ["01"]
    assert told["counts"]["completed"] == 1
