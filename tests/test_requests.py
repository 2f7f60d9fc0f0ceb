from pathlib import Path
from typing import Any

import pytest

from offrl_ray.errors import UsageError
from offrl_ray.sweep import requests


class Heard:
    """In place of a conductor."""

    def __init__(self, error: BaseException | None = None):
        self.calls: list[Any] = []
        self.error = error

    def drain(self, reason: str) -> None:
        self.calls.append(reason)

    def stop(self, name: str, reason: str) -> None:
        if self.error:
            raise self.error
        self.calls.append((name, reason))


def obeyed(folder: Path, error: BaseException | None = None) -> list[Any]:
    heard = Heard(error)
    requests.obey(folder, heard)  # type: ignore[arg-type]
    return heard.calls


def left(folder: Path) -> list[str]:
    return [p.name for p in (folder / "requests").iterdir()]


def test_a_trial_or_the_sweep_is_stopped_once(tmp_path: Path) -> None:
    assert requests.ask(tmp_path, "b.1").exists()
    assert obeyed(tmp_path) == [("b.1", requests.USER)]
    requests.ask(tmp_path, None)
    assert obeyed(tmp_path) == [requests.USER]
    assert obeyed(tmp_path) == []
    assert left(tmp_path) == []


def test_a_folder_without_requests(tmp_path: Path) -> None:
    assert obeyed(tmp_path) == []
    requests.clear(tmp_path)


def test_what_is_no_request_is_not_obeyed(tmp_path: Path) -> None:
    requests.ask(tmp_path, None).rename(tmp_path / "requests" / "stopped")
    assert obeyed(tmp_path) == []


def test_a_trial_that_ended_meanwhile_is_no_error(tmp_path: Path) -> None:
    requests.ask(tmp_path, "a")
    assert obeyed(tmp_path, UsageError(["has ended"])) == []
    assert left(tmp_path) == []


def test_a_request_stands_until_it_is_done(tmp_path: Path) -> None:
    """A driver that is killed in between has not answered."""
    requests.ask(tmp_path, "a")
    with pytest.raises(KeyboardInterrupt):
        obeyed(tmp_path, KeyboardInterrupt())
    assert left(tmp_path) == ["stop.a"]


def test_a_new_driver_forgets_what_the_last_one_was_asked(tmp_path: Path) -> None:
    requests.ask(tmp_path, None)
    requests.clear(tmp_path)
    assert obeyed(tmp_path) == []
