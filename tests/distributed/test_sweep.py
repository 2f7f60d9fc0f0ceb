"""The sweep as a user types it: real Ray, real physics, real event files."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from offrl_ray import records

pytestmark = [pytest.mark.ray, pytest.mark.sim]
ROOT = Path(__file__).parents[2]
POINTS = 10


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches and Ray's token of these tests alone."""
    return tmp_path_factory.mktemp("home")


def command(home: Path, out: Path, *extra: str) -> tuple[list[str], dict[str, str]]:
    script = [sys.executable, str(ROOT / "tune_configs/tune_cpql.py"), "--preset", "smoke", "--out", str(out), *extra]
    own = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "RAY_ADDRESS": "local"}
    return script, {**os.environ, **own}


def run(home: Path, out: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    script, env = command(home, out, *extra)
    return subprocess.run(script, env=env, capture_output=True, text=True, timeout=500)


@pytest.fixture(scope="module")
def swept(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    done = run(home, out)
    assert done.returncode == 0, done.stderr
    return out / "cpql-smoke"


def test_every_point_ends_once_with_every_seed_trained_and_evaluated(swept: Path) -> None:
    log, problems = records.read(swept)
    assert not problems
    (plan,) = (r for r in log if r["kind"] == "plan")
    assert len(plan["points"]) == POINTS
    ends = Counter((r["trial"], r["status"]) for r in log if r["kind"] == "end")
    assert ends == Counter({(p["trial"], "completed"): 1 for p in plan["points"]})
    for p in plan["points"]:
        for seed in p["seeds"]:
            mine = [r for r in log if r.get("trial") == p["trial"] and r.get("seed") == seed]
            assert [r["step"] for r in mine if r["kind"] == "train"] == [10, 20]
            (final,) = (r for r in mine if r["kind"] == "eval")
            assert final["step"] == p["steps"]
            assert len(final["success_once"]) == len(final["episode_seeds"]) == 1
            assert len(final["q_start"]) == len(final["discounted_return"]) == 1
            assert final["q_start"] != [0.0]


def test_event_files_hold_each_seed_on_the_axis_of_updates(swept: Path) -> None:
    runs = sorted((swept / "tb").glob("*/seed_*"))
    assert len(runs) == 2 * POINTS
    events = EventAccumulator(str(runs[0]))
    events.Reload()
    assert [e.step for e in events.Scalars("train/q_mean")] == [10, 20]
    assert [e.step for e in events.Scalars("eval/success_once")] == [20]


def test_points_of_equal_alpha_start_alike_and_train_apart(swept: Path) -> None:
    """Same seeds and data everywhere; what differs is what the axes name."""
    log = records.read(swept).records
    first = {r["trial"]: r["metrics"] for r in log if r["kind"] == "train" and r["step"] == 20 and r["seed"] == 0}
    assert len({(m["policy_loss"], m["grad_norm_q_policy"]) for m in first.values()}) == POINTS


def test_heatmap_of_the_sweep(swept: Path) -> None:
    script = [sys.executable, str(ROOT / "results_analysis/heatmap.py"), str(swept)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with (swept / "heatmap.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == POINTS
    assert {r["n"] for r in rows} == {"2"}
    assert [r["q_grad_mode"] for r in rows if float(r["alpha"]) == 0] == ["any"]
    assert (swept / "heatmap.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_command_again_does_nothing(home: Path, swept: Path) -> None:
    before = (swept / records.FILE).read_bytes()
    done = run(home, swept.parent)
    assert done.returncode == 0
    assert (swept / records.FILE).read_bytes() == before


def test_another_sweep_does_not_enter_the_folder(home: Path, swept: Path) -> None:
    before = (swept / records.FILE).read_bytes()
    done = run(home, swept.parent, "--set", "train.batch_size=32")
    assert done.returncode == 2
    assert "holds another run or sweep, its plan differs: train.batch_size was " in done.stderr
    assert " and is 32; choose" in done.stderr
    assert (swept / records.FILE).read_bytes() == before


def test_a_killed_driver_is_continued_by_the_same_command(home: Path, tmp_path: Path) -> None:
    """SIGKILL after the first ends; what had ended is not run again. A second driver beside it is refused."""
    extra = ["--set", "algo.alpha=0.05,0.2", "--set", "train.steps=100"]
    script, env = command(home, tmp_path, *extra)
    driver = subprocess.Popen(script, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / "cpql-smoke"

    def ended() -> list[str]:
        path = folder / records.FILE
        return [r["trial"] for r in records.read(folder).records if r["kind"] == "end"] if path.exists() else []

    deadline = time.monotonic() + 200
    while len(ended()) < 2 and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert driver.poll() is None
    beside = run(home, tmp_path, *extra)
    assert beside.returncode == 2
    assert f"is being written by process {driver.pid} on" in beside.stderr
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    survived = (folder / records.FILE).read_bytes()
    done = run(home, tmp_path, *extra)
    assert done.returncode == 0, done.stderr
    assert (folder / records.FILE).read_bytes().startswith(survived[: survived.rfind(b"\n") + 1])
    log, problems = records.read(folder)
    assert not problems
    ends = Counter(r["trial"] for r in log if r["kind"] == "end")
    assert len(ends) == 6
    assert set(ends.values()) == {1}
