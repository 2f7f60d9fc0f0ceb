"""What a person does to a sweep without a driver; beside one it is tested in tests/distributed."""

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from offrl_ray.distributed import manage
from offrl_ray.errors import UsageError
from offrl_ray.records import read
from offrl_ray.sweep import requests
from offrl_ray.sweep.fsck import check
from offrl_ray.sweep.ledger import Ledger
from offrl_ray.sweep.state import State
from tests import ledgers
from tests.ledgers import Record, after, end, fault, plan, point, session, start, whole, work

POINTS = [point(t) for t in ("00", "01", "02", "03")]
LOG = [
    plan(POINTS),
    session(),
    *whole("00"),
    *work("01", 6),
    start("02"),
    end("02", "failed", step=0, failure="oom", reason="too big"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ledgers.write(tmp_path, LOG)
    return tmp_path


@pytest.fixture
def resumed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Folders that were gone on with, the Ray they were to use, and what was asked of them."""
    found: list[tuple[Any, ...]] = []
    monkeypatch.setattr(manage, "resume", lambda *asked: found.append(asked) or 0)
    return found


def added(folder: Path) -> list[Record]:
    return read(folder).records[len(LOG) :]


@pytest.mark.parametrize(("trial", "step"), [("01", 6), ("03", 0)])
def test_a_trial_is_ended_without_a_driver(trial: str, step: int, folder: Path) -> None:
    assert manage.stop(folder, trial) == 0
    stop, ended = added(folder)
    assert (stop["kind"], stop["reason"]) == ("stop", requests.USER)
    assert (ended["status"], ended["reason"], ended["step"]) == ("pruned", requests.USER, step)
    assert State.read(folder).trials[trial].status == "pruned"
    assert check(folder).violations == []


@pytest.mark.parametrize(("trial", "word"), [("00", "has ended"), ("02", "has ended"), ("nope", "does not exist")])
def test_what_has_ended_or_never_was_is_not_stopped(trial: str, word: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=word):
        manage.stop(folder, trial)
    assert added(folder) == []


def test_without_a_driver_there_is_no_sweep_to_stop(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert manage.stop(folder, None) == 0
    assert "no driver runs" in capsys.readouterr().out
    assert not (folder / requests.FOLDER).exists()


@pytest.mark.parametrize("reason", [None, "oom"])
def test_failed_trials_are_opened_again(reason: str | None, folder: Path, resumed: list[tuple[Any, ...]]) -> None:
    assert manage.retry(folder, reason, "here:1") == 0
    assert resumed == [(folder, "here:1", [{"kind": "retry", "trial": "02"}])]
    assert added(folder) == []  # the driver writes it, if nothing refuses it


def test_a_class_that_no_trial_failed_by_names_those_there_are(folder: Path, resumed: list[tuple[Any, ...]]) -> None:
    with pytest.raises(UsageError, match=r"of class 'hang'.*class oom"):
        manage.retry(folder, "hang")
    assert (added(folder), resumed) == ([], [])


def test_with_nothing_failed_nothing_is_retried(tmp_path: Path, resumed: list[tuple[Any, ...]]) -> None:
    ledgers.write(tmp_path, [plan(POINTS[:1]), session(), fault("00"), *whole("00")])
    with pytest.raises(UsageError, match="none of its trials failed"):
        manage.retry(tmp_path, None)
    assert resumed == []


def test_a_search_may_ask_for_more(tmp_path: Path, resumed: list[tuple[Any, ...]]) -> None:
    ledgers.write(tmp_path, [plan([], search={"trials": 2}, objectives=after("success_once")), session()])
    assert manage.extend(tmp_path, 5, "here:1") == 0
    assert resumed == [(tmp_path, "here:1", [{"kind": "extend", "trials": 5}])]
    assert State.read(tmp_path).extended == 0


def test_a_grid_has_no_more_points_and_less_is_none(folder: Path, resumed: list[tuple[Any, ...]]) -> None:
    with pytest.raises(UsageError, match="is a grid"):
        manage.extend(folder, 5)
    with pytest.raises(UsageError, match=r"--trials must be >= 1, but got 0"):
        manage.extend(folder, 0)
    assert (added(folder), resumed) == ([], [])


@pytest.mark.parametrize("what", ["stop", "retry", "extend"])
def test_a_folder_without_a_sweep_is_refused_and_left_alone(what: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no sweep"):
        getattr(manage, what)(tmp_path / "none", 1)
    assert list(tmp_path.iterdir()) == []


def test_beside_a_driver_nothing_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manage, "plan_of", lambda record: None)
    monkeypatch.setattr(manage, "load", lambda work: (None, None))
    with Ledger(folder), pytest.raises(UsageError, match="is being written by process 7"):
        manage.retry(folder, None)
    assert added(folder) == []


def test_a_driver_is_asked_and_waited_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Ledger(folder):
        asked = threading.Thread(target=manage.stop, args=(folder, "01"))
        asked.start()
        deadline = time.monotonic() + 20
        while not (request := folder / requests.FOLDER / "stop.01").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        request.unlink()
        asked.join(20)
    assert "01: will end at the next report" in capsys.readouterr().out
    assert added(folder) == []


def test_a_driver_that_dies_is_not_waited_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Ledger(folder):
        asked = threading.Thread(target=manage.stop, args=(folder, None))
        asked.start()
        deadline = time.monotonic() + 20
        while not (folder / requests.FOLDER / "stop").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    asked.join(20)
    assert not asked.is_alive()
    assert "its driver ended meanwhile" in capsys.readouterr().out
    shutil.rmtree(folder / requests.FOLDER)


def test_who_waits_returns_when_the_driver_has_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = iter([True, True, True, False])
    monkeypatch.setattr(manage, "driver_runs", lambda folder: next(runs))
    monkeypatch.setattr(manage, "_ask", lambda folder, trial: 0)
    monkeypatch.setattr(manage, "POLL_SECONDS", 0)
    assert manage.stop(folder, None, wait=True) == 0
    assert list(runs) == []
