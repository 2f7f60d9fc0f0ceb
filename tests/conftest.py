"""Small ManiSkill files, a toy environment and a tiny run, written or built on the fly."""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import h5py
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from torch import Tensor

from offrl_ray.config import RunConfig, resolve
from offrl_ray.data.dataset import Dataset
from offrl_ray.run import in_env, load_data
from offrl_ray.types import EnvStep, Obs

REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared" / "data"
OBS, ACTION, SEEDS = 5, 7, (0, 1)
Damage = Callable[[h5py.File, dict[str, Any]], Any]

TINY: dict[str, Any] = {
    "algo.name": "cpql",
    "algo.network.width": 8,
    "algo.network.blocks": 1,
    "algo.network.time_dim": 4,
    "algo.critic_hidden": [8],
    "algo.num_flow_steps": 2,
    "algo.teacher_steps": 1,
    "algo.warmup_steps": 1,
    "data.act_horizon": 2,
    "data.pred_horizon": 4,
    "env.max_steps": 5,
    "train.steps": 12,
    "train.report_every": 2,
    "train.batch_size": 4,
    "train.seeds": SEEDS,
    "eval.every": 4,
    "eval.episodes": 2,
}
"""A run of 12 updates with evaluations at 4, 8 and 12, a fraction of a second in all."""


class Length(NamedTuple):
    """An episode of `steps` steps with successes (and `terminated`) at `ends`; None: at its last step alone."""

    steps: int
    ends: Sequence[int] | None = None


class WriteFile(Protocol):
    def __call__(
        self, lengths: Iterable[int | Length] = ..., name: str = ..., damage: Damage | None = ..., **env: Any
    ) -> Path: ...


def trajectory(rng: np.random.Generator, length: Length, action_dim: int = ACTION) -> dict[str, np.ndarray]:
    steps, ends = length.steps, [length.steps - 1] if length.ends is None else list(length.ends)
    success = np.isin(np.arange(steps), ends)
    truncated = np.zeros(steps, bool)
    truncated[-1:] = not success[-1:].any()
    return {
        "actions": rng.uniform(-1, 1, (steps, action_dim)).astype(np.float32),
        "obs": rng.normal(size=(steps + 1, OBS)).astype(np.float32),
        "rewards": success.astype(np.float32),
        "success": success,
        "terminated": success.copy(),
        "truncated": truncated,
        "env_states/actors/peg": rng.normal(size=(steps + 1, 13)).astype(np.float32),
    }


def write_demonstrations(
    folder: Path,
    lengths: Iterable[int | Length] = (4, Length(6, ()), 3),
    name: str = "demos",
    damage: Damage | None = None,
    **env: Any,
) -> Path:
    """NAME.h5 and NAME.json as ManiSkill writes them, after `damage` has changed their content."""
    rng, path = np.random.default_rng(0), folder / f"{name}.h5"
    all_lengths = [Length(n) if isinstance(n, int) else n for n in lengths]
    kwargs = {"obs_mode": "state", "control_mode": "pd_ee_delta_pose", "reward_mode": "sparse"}
    kwargs |= {"sim_backend": "physx_cpu"} | {k: v for k, v in env.items() if k != "env_id"}
    meta = {
        "env_info": {"env_id": env.get("env_id", "Toy-v1"), "env_kwargs": kwargs, "max_episode_steps": 50},
        "episodes": [{"episode_id": i, "elapsed_steps": n.steps} for i, n in enumerate(all_lengths)],
    }
    with h5py.File(path, "w") as f:
        for i, length in enumerate(all_lengths):
            for key, values in trajectory(rng, length).items():
                f[f"traj_{i}/{key}"] = values
        if damage:
            damage(f, meta)
    path.with_suffix(".json").write_text(json.dumps(meta))
    return path


def overwrite(path: Path, content: bytes) -> None:
    """`write_bytes` without emptying the file first, which some file systems answer with a flush to the disk."""
    with path.open("r+b") as f:
        f.write(content)
        f.truncate()


@pytest.fixture
def write_file(tmp_path: Path) -> WriteFile:
    """`write_demonstrations` into this test's folder."""
    return partial(write_demonstrations, tmp_path)


@pytest.fixture(params=["state.pd_ee_delta_pose"])
def official(request: pytest.FixtureRequest) -> Path:
    """A file that ManiSkill's own tools wrote."""
    path = SHARED / f"LiftPegUpright-v1.{request.param}.physx_cpu.h5"
    if not path.exists():
        pytest.skip(f"{path.name} is not on this machine")
    return path


class MakeRun(Protocol):
    def __call__(self, **changes: Any) -> tuple[RunConfig, Dataset]: ...


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """A small run on a small file; `algo__alpha=0` changes `algo.alpha`."""
    path = write_demonstrations(tmp_path_factory.mktemp("tiny"), [6, Length(9, ()), 12])

    def make(**changes: Any) -> tuple[RunConfig, Dataset]:
        flat = TINY | {"data.files": [str(path)]} | {k.replace("__", "."): v for k, v in changes.items()}
        cfg = resolve(flat)
        data = load_data(cfg)
        return in_env(cfg, data.env_id), Dataset(data.arrays, data.spec)

    return make


class ToyEnv:
    """Position in [0, 1) from the seed, moved by the first action; it is the reward, and a success above 0.7."""

    def __init__(self, num_envs: int = 1, max_steps: int = 5):
        self.num_envs, self.max_steps, self.resets = num_envs, max_steps, list[list[int]]()
        self.action_dim, self.num_actions = ACTION, 0

    def _obs(self) -> Obs:
        return {"state": self.x[:, None].repeat(1, OBS)}

    def reset(self, seeds: Sequence[int]) -> Obs:
        assert len(seeds) == self.num_envs
        self.resets.append(list(seeds))
        self.t, self.x = 0, torch.tensor([(s * 0.37) % 1 for s in seeds])
        return self._obs()

    def step(self, action: Tensor) -> EnvStep:
        if not action.isfinite().all():
            raise ValueError("actions must be finite")  # as ManiSkillEnv does
        assert action.abs().max() <= 1
        assert self.t < self.max_steps, "stepped beyond the episode's end"
        self.t, self.x = self.t + 1, self.x + 0.1 * action[:, 0]
        success = self.x > 0.7
        late = torch.full((self.num_envs,), self.t == self.max_steps)
        return EnvStep(self._obs(), self.x, success, success, late)

    def close(self) -> None: ...


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty store in memory, whose working copies are this test's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    return "memory://bucket/runs/sweep"
