"""Who drives a sweep at a URL."""

import itertools
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest

from offrl_ray import store
from offrl_ray.errors import UsageError
from offrl_ray.objects import Fenced
from offrl_ray.store import place
from offrl_ray.sweep import lease, requests
from offrl_ray.sweep.ledger import Ledger
from offrl_ray.sweep.status import driver_runs
from tests import ledgers
from tests.stores import failing, objects


@pytest.fixture
def folder(url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("offrl_ray.objects.PAUSES", (0.0, 0.0))
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.02)
    return place(url)


def hold(url: str, age: float, **more: Any) -> None:
    """Another machine's lease, of so many seconds ago."""
    about = {"host": "there", "pid": 7, "space": "elsewhere", "token": "x", "time": time.time() - age, **more}
    fsspec.filesystem("memory").pipe_file("/bucket/runs/sweep/driver.json", json.dumps(about).encode())


def test_a_driver_elsewhere_is_named_and_not_disturbed(folder: Path, url: str) -> None:
    hold(url, 3)
    with pytest.raises(UsageError, match=f"{url} is being written by process 7 on 'there', which said so 3 s ago"):
        Ledger(folder)
    assert driver_runs(folder)
    assert json.loads(objects(url)["driver.json"])["token"] == "x"


@pytest.mark.parametrize(("age", "dead"), [(61, {}), (0, {"pid": 2**22 + 1, "space": None})])
def test_a_driver_that_is_gone_is_not_waited_for(age: float, dead: dict[str, Any], folder: Path, url: str) -> None:
    hold(url, age, **{**dead, **({"space": lease._space()} if dead else {})})
    assert not driver_runs(folder)
    with Ledger(folder):
        assert json.loads(objects(url)["driver.json"])["pid"] == os.getpid()
    assert objects(url) == {}


def test_one_that_has_been_silent_is_waited_for(
    folder: Path, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hold(url, 30)
    ages = iter([61])
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: [hold(url, age) for age in itertools.islice(ages, 1)])
    Ledger(folder).close()
    assert "waiting until that is a minute" in capsys.readouterr().err
    hold(url, 30)
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: hold(url, 1))
    with pytest.raises(UsageError, match="is being written"):
        Ledger(folder)


def test_one_whose_clock_is_behind_is_not_taken_for_dead(
    folder: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(url, 300)
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: hold(url, 290))
    with pytest.raises(UsageError, match="its clock is behind ours, but it lives"):
        Ledger(folder)


def test_a_word_that_was_lost_is_told_again(folder: Path, url: str) -> None:
    with Ledger(folder):
        store.store(folder).remove("driver.json")
        eventually(lambda: "driver.json" in objects(url))


def eventually(what: Any) -> None:
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_is_told_again_and_again_also_after_the_store_was_away(folder: Path, url: str) -> None:
    def gone(name: str, path: Any) -> None:
        raise ConnectionError("away")

    with Ledger(folder):
        first = objects(url)["driver.json"]
        eventually(lambda: objects(url)["driver.json"] != first)
        with failing(before=gone):
            time.sleep(0.1)
        later = objects(url)["driver.json"]
        eventually(lambda: objects(url)["driver.json"] != later)
    assert "lease" not in {t.name for t in threading.enumerate()}


def test_a_lease_that_another_has_taken_is_left_to_it(folder: Path, url: str) -> None:
    with Ledger(folder):
        hold(url, 0)
        time.sleep(0.1)
        assert json.loads(objects(url)["driver.json"])["token"] == "x"
    assert json.loads(objects(url)["driver.json"])["token"] == "x"


def test_what_is_asked_on_the_store_is_heard_and_done_once(folder: Path, url: str) -> None:
    heard: list[Any] = []

    class Heard:
        def drain(self, reason: str) -> None:
            heard.append(reason)

        def stop(self, name: str, reason: str) -> None:
            heard.append(name)

    with Ledger(folder):
        place_ = requests.ask(folder, "b.1")
        assert requests.stands(place_)
        eventually(lambda: place_.exists())
        requests.obey(folder, Heard())  # type: ignore[arg-type]
        assert not requests.stands(place_)
        assert heard == ["b.1"]
    requests.ask(folder, None)
    requests.clear(folder)
    assert objects(url) == {}


def test_what_is_written_after_the_log_was_read_fences_the_other_driver_off(
    folder: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger(folder) as first:
        first.write([ledgers.plan([ledgers.point("a")]), ledgers.session()])
        with pytest.MonkeyPatch.context() as patch:  # another machine, whose lease was lost to clocks or the network
            patch.setattr(lease.Lease, "take", lambda self: None)
            patch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
            other = Ledger(place(url))
        first.write(ledgers.work("a"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
            with pytest.raises(Fenced, match="has been written by another driver"):
                other.write([ledgers.session()])
            other._lock.release()


def test_a_request_that_was_taken_back_meanwhile_is_not_obeyed(folder: Path) -> None:
    class Deaf:
        def drain(self, reason: str) -> None:
            raise AssertionError(reason)

    (folder / "requests").mkdir(parents=True)
    (folder / "requests" / "stop").touch()
    requests.obey(folder, Deaf())  # type: ignore[arg-type]
    assert list((folder / "requests").iterdir()) == []
