"""What a dry run promises, on the toy run."""

import dataclasses
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from offrl_ray import checkpoint, probe
from offrl_ray.algos import make
from offrl_ray.config import RunConfig
from offrl_ray.data.dataset import Dataset
from offrl_ray.run import KEEP, Data, Loaded, load_data
from offrl_ray.store import place
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


def several(tiny: MakeRun, *changes: dict[str, Any]) -> tuple[Plan, Loaded]:
    """A plan of one point for each dict of changes, with data that travels to another process."""
    cfgs = [tiny(**c)[0] for c in changes]
    cells = [Fixed(i, {}, {"cfg": cfg}, {}) for i, cfg in enumerate(cfgs)]
    points = [Point(f"{i:02d}", {}, cfg, i) for i, cfg in enumerate(cfgs)]
    loaded = Loaded([load_data(cfgs[0])], {(cfg.data, cfg.env): 0 for cfg in cfgs})
    return Plan({}, {}, {}, None, [*cells], points, 0, (Objective("success_once"),)), loaded


BIG = {"train__batch_size": 4096, "algo__network__width": 256, "algo__critic_hidden": [256]}


def test_memory_is_that_of_a_process_of_its_own_and_of_each_point(tiny: MakeRun) -> None:
    ballast = b"x" * 2**30
    big, small = probe.probes(*several(tiny, BIG, {}))
    assert big is not None
    assert small is not None
    assert len(ballast) > big.memory > small.memory + 20 * 2**20
    assert small.memory > 20 * 2**20
    assert (big.gpu_memory, small.gpu_memory) == (0, 0)
    assert big.seconds > small.seconds


def test_the_data_that_trials_share_is_no_memory_of_theirs(tiny: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    _, loaded, cfg, _ = work(tiny)
    monkeypatch.setattr(probe, "probe", lambda cfg, data: probe.Probe(1.0, 1, 1000))
    data = loaded.data[0]._replace(arrays={"reward": np.zeros(100, np.float32)})
    (found,) = probe._probes([cfg], loaded._replace(data=[data]))
    assert found is not None
    assert found.memory == 600


def test_a_rehearsal_goes_on_where_it_was(tiny: MakeRun) -> None:
    _, loaded, cfg, _ = work(tiny)
    rehearsal = probe.Rehearsal(cfg, loaded.data[0])
    assert rehearsal._snapshot.step == probe.UPDATES
    found = rehearsal.run(7)
    assert rehearsal._snapshot.step == probe.UPDATES + 7
    assert 0 < found.seconds < 10


def test_a_machine_without_a_gpu_lacks_the_device(tiny: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert probe.device_here(several(tiny, {})[0])
    assert not probe.device_here(several(tiny, {}, {"train__device": "cuda:1"})[0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert probe.device_here(several(tiny, {"train__device": "cuda"})[0])


@pytest.mark.parametrize(("trials", "points"), [(0, 1), (7, 7)])
def test_the_report_counts_every_point(trials: int, points: int, tiny: MakeRun) -> None:
    plan, loaded, cfg, _ = work(tiny, trials)
    assert f" {points} points need about " in probe.report(plan, [probe.probe(cfg, loaded.data[0])], slots=2)


def test_the_time_is_that_of_all_updates_on_the_slots(tiny: MakeRun) -> None:
    plan, _, cfg, _ = work(tiny, 6)
    text = probe.report(plan, [probe.Probe(10.0, 2**20, 300 * 2**20, 5 * 2**29)], slots=3)
    assert cfg.train.steps == 12
    assert "12:00 min of training, 4:00 min on 3 side by side" in text
    assert "a trial takes up to 300 MiB of memory and 2.5 GiB of the GPU" in text
    assert re.search(rf"all that stay {6 * KEEP} MiB", text)


def test_what_acts_itself_has_no_time(tiny: MakeRun) -> None:
    assert "time not measured" in probe.report(work(tiny)[0], [None], slots=1)


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


def test_of_a_sweep_at_a_url_a_checkpoint_on_its_way_needs_room(
    tiny: MakeRun, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, loaded, cfg, data = work(tiny, 100)
    each = checkpoint.estimate(start(cfg, make(cfg.algo, data.spec)))
    usage = shutil.disk_usage("/")
    for free in (KEEP * each, KEEP * each - 1):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))  # noqa: B023
        assert len(probe.room_problems(plan, loaded, place(url), None)) == (free < KEEP * each)


def test_the_disk_is_weighed_on_the_cpu(tiny: MakeRun, tmp_path: Path) -> None:
    plan, loaded, cfg, _ = work(tiny)
    far = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, device="cuda"))
    plan = plan._replace(cells=[Fixed(0, {}, {"cfg": far}, {})])
    assert probe.room_problems(plan, loaded._replace(of_setting={(far.data, far.env): 0}), tmp_path, None) == []


@pytest.mark.parametrize(("seconds", "shown"), [(59.9, "0:59 min"), (61, "1:01 min"), (3661, "1:01:01 h")])
def test_clock(seconds: float, shown: str) -> None:
    assert probe.clock(seconds) == shown
