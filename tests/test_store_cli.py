"""What a person does to a sweep at a URL."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest

from offrl_ray import cli, records, store
from offrl_ray.distributed import launch
from offrl_ray.errors import UsageError
from offrl_ray.records import Writer
from offrl_ray.store import place
from offrl_ray.sweep import requests
from offrl_ray.sweep.ledger import Ledger
from offrl_ray.sweep.state import State
from results_analysis.load import load
from tests import ledgers
from tests.stores import failing, objects
from tune_configs.tune_cpql import SWEEP

Capture = pytest.CaptureFixture[str]
PLAN = ledgers.plan([ledgers.point("00"), ledgers.point("01")], name="toy", versions={}, claims=[])
LOG = [PLAN, ledgers.session(), *ledgers.whole("00"), ledgers.start("01")]


@pytest.fixture
def sweep(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Made by another machine."""
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("XDG_CACHE_HOME", str(place(url).parents[5] / "elsewhere"))
        with Writer(place(url)) as writer:
            for record in LOG:
                writer.write_all([record])
    assert not store.copies().exists()
    return url


def test_status_and_fsck(sweep: str, capsys: Capture) -> None:
    assert cli.main(["status", sweep, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["completed"], told["queued"], told["driver"]) == ("toy", 1, 1, None)
    assert cli.main(["fsck", sweep]) == 0
    assert capsys.readouterr().out == "clean so far: 1 open\n"
    with Writer(place(sweep)) as writer:
        writer.write_all([ledgers.session()])
    name = max(n for n in objects(sweep) if n.startswith("records/"))
    fsspec.filesystem("memory").pipe_file(f"/bucket/runs/sweep/{name}", b"not a record\n")
    assert cli.main(["fsck", sweep]) == 1
    assert "N1: " in capsys.readouterr().out


@pytest.mark.parametrize("command", ["status", "fsck", "rebuild", "stop"])
def test_a_url_without_a_sweep_and_a_store_that_is_away(command: str, url: str, capsys: Capture) -> None:
    assert cli.main([command, url]) == 2
    assert f"{url} is no sweep's folder" in capsys.readouterr().err

    def gone(name: str, path: Any) -> None:
        raise PermissionError("403")

    with failing(before=gone):
        assert cli.main([command, url]) == 1
    assert f"{url} refuses: PermissionError: 403" in capsys.readouterr().err


def test_a_malformed_url_is_bad_input(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as e:
        cli.main(["status", "s3://bucket/../x"])
    assert e.value.code == 2
    assert "got '..' in 's3://bucket/../x'" in capsys.readouterr().err


def test_a_trial_is_stopped_without_a_driver(sweep: str) -> None:
    assert cli.main(["stop", sweep, "01"]) == 0
    assert State.read(place(sweep)).trials["01"].status == "pruned"
    assert sum(n.startswith("records/") for n in objects(sweep)) == len(LOG) + 1
    assert "driver.json" not in objects(sweep)


def test_a_driver_elsewhere_is_asked_on_the_store(sweep: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("offrl_ray.distributed.manage.ANSWER_SECONDS", 0)
    with Ledger(place(sweep)):
        assert cli.main(["stop", sweep]) == 1
        assert f"it will when it looks at {sweep}/requests/stop" in capsys.readouterr().out
        assert objects(sweep)["requests/stop"] == b""
        monkeypatch.setattr("offrl_ray.distributed.manage.ANSWER_SECONDS", 30)
        monkeypatch.setattr("offrl_ray.distributed.manage.time.sleep", lambda seconds: requests.clear(place(sweep)))
        assert cli.main(["stop", sweep]) == 0


def test_pull_makes_an_ordinary_folder(sweep: str, tmp_path: Path, capsys: Capture) -> None:
    fsspec.filesystem("memory").pipe_file("/bucket/runs/sweep/trials/00/error_1.txt", b"Traceback")
    with Writer(place(f"{sweep}/confirm")) as writer:
        writer.write_all([PLAN])
    to = tmp_path / "here"
    for more in ([], [ledgers.session()]):  # the second time it has grown
        with Writer(place(sweep)) as writer:
            writer.write_all(more)
        assert cli.main(["pull", sweep, str(to)]) == 0
        assert records.read(to) == records.read(place(sweep))
    assert (to / "trials/00/error_1.txt").read_bytes() == b"Traceback"
    assert (to / "trials.csv").exists()
    assert any((to / "tb").rglob("*tfevents*"))
    assert load(to).confirmation
    assert store.store(to) is None
    ledgers.write(to, [PLAN])
    capsys.readouterr()
    assert cli.main(["pull", sweep, str(to)]) == 2
    assert f"{to} holds records that {sweep} has not" in capsys.readouterr().err
    assert cli.main(["pull", str(to), str(tmp_path / "other")]) == 2
    assert cli.main(["pull", sweep, str(place(sweep))]) == 2


def test_a_pull_that_nobody_watches_is_whole(sweep: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").pipe_file("/bucket/runs/sweep/trials/00/error_1.txt", b"Traceback")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as unread:
        monkeypatch.setattr(sys, "stdout", unread)
        assert cli.main(["pull", sweep, str(tmp_path / "here")]) == 0
    assert (tmp_path / "here/trials/00/error_1.txt").read_bytes() == b"Traceback"


def test_the_analysis_names_pull() -> None:
    with pytest.raises(UsageError, match="`offrl-ray pull URL DIR` makes a folder of it"):
        load(Path("s3://bucket/runs/x"))


def test_a_store_that_cannot_be_written_is_told_with_all_other_problems(
    url: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(name: str, path: Any) -> None:
        raise PermissionError("403")

    monkeypatch.setattr(launch, "drive", None)
    monkeypatch.setattr(launch, "collect", None)
    bad = ["--set", "algo.gamma=1.0", "--trials", "0"]
    with failing(before=gone):
        assert launch.main(SWEEP, ["--preset", "smoke", "--out", "memory://bucket/runs", *bad]) == 2
    err = capsys.readouterr().err
    assert "--out: memory://bucket/runs/cpql-smoke refuses: PermissionError: 403" in err
    assert "--out: memory://bucket/runs/cpql-smoke is gone with this process" in err
    assert "algo.gamma" in err
    assert "--trials" in err
    assert objects("memory://bucket") == {}


@pytest.mark.parametrize(
    "command",
    [
        ["train", "cpql", "--out", "s3://b/x"],
        ["evaluate", "s3://b/x/trials/t/step_00000010"],
        ["pull", "s3://b/x", "s3://b/y"],
        ["export", "s3://b/x", "--best", "s3://b/y"],
    ],
)
def test_where_no_url_will_do_none_is_taken_for_a_folder(command: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    assert stop.value.code == 2
    assert "must be a folder of this machine, but got 's3://b/" in capsys.readouterr().err
