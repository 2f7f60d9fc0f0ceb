"""A driver that was told to end: every trial saves itself before Tune, which waits 5 s for no longer, ends it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from offrl_ray.distributed import callbacks
from offrl_ray.distributed.callbacks import Reports, Watch
from offrl_ray.sweep.plan import Resources


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the driver has waited for."""
    found: list[Any] = []
    monkeypatch.setattr(callbacks, "ray", SimpleNamespace(wait=lambda refs, **limits: found.append((refs, limits))))
    return found


def trial(name: str, status: str) -> Any:
    actor = SimpleNamespace(stop=SimpleNamespace(remote=lambda: f"{name} has saved itself"))
    running = actor if status == "RUNNING" else None
    state, config = SimpleNamespace(ray_actor=running), {"job": SimpleNamespace(trial=name)}
    return SimpleNamespace(status=status, temporary_state=state, config=config)


def test_no_trial_is_ended_before_all_have_saved_themselves(tmp_path: Path, waited: list[Any]) -> None:
    conductor: Any = SimpleNamespace(draining="", take=lambda trial, batch: False)
    watch = Watch(conductor, tmp_path, Resources(), lambda: None, print)
    reports = Reports(conductor, watch)
    trials = [trial("00", "RUNNING"), trial("01", "PENDING"), trial("02", "RUNNING"), trial("03", "TERMINATED")]
    watch.on_step_begin(1, trials)
    assert not reports.stop_all()
    assert not reports("x", {"trial": "00", "records": []})
    conductor.draining = "SIGTERM"
    assert not reports.stop_all()
    assert not reports("x", {"trial": "00", "records": []})
    assert waited == []
    for _ in range(2):
        watch.on_step_begin(2, trials)
    assert waited == [(["00 has saved itself", "02 has saved itself"], {"num_returns": 2, "timeout": 1800})]
    assert reports.stop_all()
    assert reports("x", {"trial": "00", "records": []})
