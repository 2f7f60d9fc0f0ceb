"""A variant that steps environments, under Ray and without it: real actors, real physics, the same weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from offrl_ray import records
from offrl_ray.config import from_dict
from offrl_ray.data.replay import prior
from offrl_ray.evaluate import LocalEvaluator, open_env
from offrl_ray.run import load_data, run

pytestmark = [pytest.mark.ray, pytest.mark.sim]
ROOT = Path(__file__).parents[2]


def test_where_the_environments_run_changes_nothing(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "tune_configs/tune_rlpd.py"), "--preset", "smoke", "--out", str(tmp_path)]
    for setting in ("algo.cta_ratio=2", "algo.num_critics=2", "online.demo_ratio=0.5"):
        script += ["--set", setting]
    own = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "RAY_ADDRESS": "local"}
    env = {**os.environ, **own}
    done = subprocess.run(script, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    log, problems = records.read(tmp_path / "rlpd-smoke")
    assert not problems
    (point,) = next(r for r in log if r["kind"] == "plan")["points"]
    cfg = from_dict(point["config"])
    data = load_data(cfg)
    evaluator = LocalEvaluator(lambda: open_env(cfg.env))
    updates = run(cfg, prior(data.arrays, data.spec), tmp_path / "here", evaluator, "here", frozenset())
    local = [r for u in updates for r in u.records]
    for kind, keys in (("train", ["seed", "step", "metrics"]), ("eval", ["seed", "step", "digest", "return"])):
        there, here = ([[r[k] for k in keys] for r in rs if r["kind"] == kind] for rs in (log, local))
        assert sorted(there, key=str) == sorted(here, key=str)
        assert len(here) == {"train": 4, "eval": 2}[kind]
