"""What a dry run promises, on the toy run."""

import dataclasses
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from offrl_ray import checkpoint, probe
from offrl_ray.algos import make
from offrl_ray.config import RunConfig
from offrl_ray.data.dataset import Dataset
from offrl_ray.run import KEEP, Data, Loaded
from offrl_ray.sweep.plan import Cell, Plan, Point
from offrl_ray.sweep.space import Float
from offrl_ray.sweep.spec import Objective, SearchSpec
from offrl_ray.train import start
from tests.conftest import MakeRun


class Fixed(Cell):
    """A cell whose config is at hand."""

    @property
    def cfg(self) -> RunConfig:
        return self.base["cfg"]


def work(tiny: MakeRun, trials: int = 0) -> tuple[Plan, Loaded, RunConfig, Dataset]:
    """A plan of one point, or of one searched cell."""
    cfg, data = tiny()
    space = {"algo.lr": Float(1e-4, 1e-2)} if trials else {}
    cell = Fixed(0, {}, {"cfg": cfg}, space)
    points = [] if trials else [Point("00", {}, cfg, 0)]
    spec = SearchSpec("random", trials) if trials else None
    plan = Plan({}, {}, space, spec, [cell], points, 0, (Objective("success_once"),))
    arrays = Data(data_arrays(data), data.spec, "Toy-v1", [])
    return plan, Loaded([arrays], {(cfg.data, cfg.env): 0}), cfg, data


def data_arrays(data: Dataset) -> Any:
    return {"dataset": data}


@pytest.fixture(autouse=True)
def at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "Dataset", lambda arrays, spec, device: arrays["dataset"])


def test_a_probe_times_updates_and_weighs_a_checkpoint(tiny: MakeRun, tmp_path: Path) -> None:
    _, loaded, cfg, data = work(tiny)
    found = probe.probe(cfg, loaded.data[0])
    assert found is not None
    assert 0 < found.seconds < 10
    snapshot = start(cfg, make(cfg.algo, data.spec))
    checkpoint.save(tmp_path, snapshot, cfg, data.spec, 0.0, {})
    real = checkpoint.sizes(tmp_path)[0]
    assert real / 3 < found.bytes < 3 * real


def test_a_run_that_acts_itself_is_not_timed(tiny: MakeRun) -> None:
    loaded = work(tiny)[1]
    assert probe.probe(SimpleNamespace(online=object()), loaded.data[0]) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(("trials", "points"), [(0, 1), (7, 7)])
def test_the_report_counts_every_point(trials: int, points: int, tiny: MakeRun) -> None:
    plan, loaded, _, _ = work(tiny, trials)
    assert f" {points} points need about " in probe.report(plan, loaded, slots=2)


def test_the_time_is_that_of_all_updates_on_the_slots(tiny: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "probe", lambda cfg, data: probe.Probe(10.0, 2**20))
    plan, loaded, cfg, _ = work(tiny, 6)
    text = probe.report(plan, loaded, slots=3)
    assert cfg.train.steps == 12
    assert "12:00 min of training, 4:00 min on 3 side by side" in text
    assert re.search(rf"all that stay {6 * KEEP} MiB", text)


def test_a_disk_without_room_is_a_problem(tiny: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, loaded, cfg, data = work(tiny, 100)
    each = checkpoint.estimate(start(cfg, make(cfg.algo, data.spec)))
    usage = shutil.disk_usage(tmp_path)

    def problems(free: int, keep_top: int | None = None) -> list[str]:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
        return probe.room_problems(plan, loaded, tmp_path / "new" / "folder", keep_top)

    assert problems(100 * KEEP * each) == []
    (told,) = problems(100 * KEEP * each - 1)
    assert str(tmp_path) in told
    assert "--keep-top" in told
    assert problems(5 * KEEP * each, keep_top=5) == []
    assert len(problems(5 * KEEP * each - 1, keep_top=5)) == 1


def test_the_disk_is_weighed_on_the_cpu(tiny: MakeRun, tmp_path: Path) -> None:
    plan, loaded, cfg, _ = work(tiny)
    far = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, device="cuda"))
    plan = plan._replace(cells=[Fixed(0, {}, {"cfg": far}, {})])
    assert probe.room_problems(plan, loaded._replace(of_setting={(far.data, far.env): 0}), tmp_path, None) == []


@pytest.mark.parametrize(("seconds", "shown"), [(59.9, "0:59 min"), (61, "1:01 min"), (3661, "1:01:01 h")])
def test_clock(seconds: float, shown: str) -> None:
    assert probe.clock(seconds) == shown
