"""Trials packed on a real Ray, whose GPU is one in name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, write_demonstrations
from tests.distributed.user import Session, log_of

pytestmark = pytest.mark.ray
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def test_what_is_chosen_fits_beside_the_evaluator_and_no_more(home: Path) -> None:
    demos = write_demonstrations(home, [6, 9, 12])
    env = {**os.environ, "HOME": str(home), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE / "packs.py"), str(demos)], env=env, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["count"] in (1, 2)  # of two cores; what was measured on a busy machine decides
    assert found["shares"] == [1, 0.75 / found["count"]]
    assert (found["slots"], found["beside_evaluator"], found["more"]) == (found["count"], found["count"], 0)
    assert len(found["probes"]) == 2
    assert all(50 * 2**20 < memory < 2**30 for memory in found["probes"])
    assert "the heaviest of 2 points" in found["told"]
    assert found["cpu"] == 1


def test_a_sweep_is_packed_before_it_begins(home: Path) -> None:
    """One at a time on two cores: the second trial begins when the first has ended."""
    session = Session(home, HERE / "faulty.py", "--preset", "smoke", "--out", home / "out", "--pack", "1")
    try:
        assert session.ended() == 0, session.text
    finally:
        session.close()
    assert "1 side by side, each reserving 2 CPU and 0 GPU: as asked" in session.text
    kinds = [r["kind"] for r in log_of(home / "out" / "faulty-smoke") if r["kind"] in ("start", "end")]
    assert kinds == ["start", "end"] * 2
