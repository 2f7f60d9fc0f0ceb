"""The GPU benchmark's path, on a machine that needs none."""

import os
import subprocess
import sys

import pytest

from tests.benchmarks import gpu
from tests.conftest import REPOSITORY

SCRIPT = REPOSITORY / "tests" / "benchmarks" / "gpu.py"
SMALL = ("algo.network.kind=resmlp", "algo.network.width=16", "algo.network.blocks=1", "algo.critic_hidden=16,16")
SMALL += ("train.batch_size=8", "train.seeds=0,1", "env.max_steps=16")


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, str(SCRIPT), *argv], env=env, capture_output=True, text=True, timeout=500)


@pytest.mark.sim
def test_it_prints_tables_of_updates_of_neighbours_and_of_episodes() -> None:
    given = [x for s in SMALL for x in ("--set", s)]
    sizes = ["--updates", "3", "--seeds", "2", "--modes", "last_5", "--envs", "1", "--episodes", "2"]
    done = run("--device", "cpu", *sizes, *given)
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("|")]
    trained, alone, beside, evaluated = (r for r in rows if r[0] in ("last_5", "1", "2"))
    assert trained[:2] == ["last_5", "2"]
    assert float(trained[3]) == pytest.approx(2 * float(trained[2]), rel=0.01)
    assert alone[:2] == ["1", "2"]
    each = [float(x) for x in beside[2].split(", ")]
    assert (len(each), float(beside[3])) == (2, pytest.approx(sum(each), rel=0.02))
    assert float(evaluated[1]) > 0
    assert all("MiB" in r[-2] for r in (trained, alone, beside, evaluated))


def test_without_a_gpu_it_says_so_at_once() -> None:
    done = run()
    assert done.returncode == 1
    assert "torch sees no GPU; --device cpu" in done.stderr


def test_what_fails_is_a_row() -> None:
    found = gpu.cost(gpu.Sampler(), 1, failing)
    assert found.error == "MemoryError: no room"
    assert gpu.shown(found)[0] == "MemoryError: no room"


def failing() -> None:
    raise MemoryError("no room")
