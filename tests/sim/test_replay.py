"""Raw files by ManiSkill's own replayer: a file made here, and the official planner's."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from offrl_ray import cli
from offrl_ray.collect import collect
from offrl_ray.data import hdf5
from tests.conftest import REPOSITORY, SHARED

pytestmark = pytest.mark.sim

TASK, NOISE, EPISODES = "PushCube-v1", (0.0, 2.0), 4
CONTACTS = 0.05  # setting a state loses what the engine knew of contacts
PLANNED = SHARED / "LiftPegUpright-v1.none.pd_joint_pos.physx_cpu.h5"


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The replayer's processes take this package, wherever the tests run."""
    with pytest.MonkeyPatch.context() as m:
        m.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two successes and two failures, with everything in them."""
    return collect(TASK, EPISODES, NOISE, 5, tmp_path_factory.mktemp("whole") / "push.h5", max_steps=30).out


def make_raw(whole: Path, folder: Path, actions: Any = None, **env_kwargs: Any) -> Path:
    """The same as the official tools leave it: no observations, no rewards, no checksums."""
    path, meta = folder / "trajectory.h5", json.loads(whole.with_suffix(".json").read_text())
    with h5py.File(whole) as old, h5py.File(path, "w") as new:
        for name in old:
            for key in ("actions", "env_states", "success", "terminated", "truncated"):
                old.copy(old[name][key], new.require_group(name), key)
            if actions:
                new[name]["actions"][...] = actions(new[name]["actions"][()])
    del meta["sha256"]
    meta["env_info"]["env_kwargs"] |= {"obs_mode": "none", "reward_mode": "dense"} | env_kwargs
    meta["source_type"] = "rl"
    path.with_suffix(".json").write_text(json.dumps(meta))
    return path


def replay(raw: Path, out: Path, *options: str) -> int:
    return cli.main(["data", "replay", str(raw), "--out", str(out), *options])


@pytest.fixture(scope="module")
def replayed(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replayed")
    assert replay(make_raw(whole, folder), folder / "out.h5", "--workers", "2") == 0
    assert {p.name for p in folder.iterdir()} == {"trajectory.h5", "trajectory.json", "out.h5", "out.json"}
    return folder / "out.h5"


def test_the_result_passes_the_check_and_is_what_was_collected(whole: Path, replayed: Path) -> None:
    """On the same simulator, from the same states, the same actions give the same episodes, contacts aside."""
    found, before = hdf5.inspect(replayed), hdf5.inspect(whole)
    assert found.problems == []
    assert len(found.episodes) == EPISODES
    clean = [e.obs["state"] for f in (found, before) for e in f.episodes[:1]]
    np.testing.assert_allclose(*clean, atol=CONTACTS)
    for new, old in zip(found.episodes, before.episodes, strict=True):
        np.testing.assert_array_equal(new.action, old.action)
        np.testing.assert_allclose(new.obs["state"][:5], old.obs["state"][:5], atol=1e-3)
        for key in ("reward", "success", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(new, key), getattr(old, key))


def test_failures_stay_and_are_marked_unless_asked_otherwise(whole: Path, replayed: Path, tmp_path: Path) -> None:
    episodes = json.loads(replayed.with_suffix(".json").read_text())["episodes"]
    assert [e["success"] for e in episodes] == [True, False] * 2
    assert replay(make_raw(whole, tmp_path), tmp_path / "out.h5", "--only-successes", "--episodes", "3") == 0
    assert [bool(e.success.any()) for e in hdf5.inspect(tmp_path / "out.h5").episodes] == [True, True]


def test_the_states_begin_where_the_recorded_ones_do(whole: Path, replayed: Path) -> None:
    """ManiSkill's replayer writes the second state twice; a replay of the replay would start a step late."""
    with h5py.File(whole) as old, h5py.File(replayed) as new:
        for name in old:
            body = old[name]["env_states/articulations/panda"]
            assert not np.array_equal(body[0], body[1])
            np.testing.assert_array_equal(new[name]["env_states/articulations/panda"][0], body[0])
            np.testing.assert_allclose(new[name]["env_states/articulations/panda"][1], body[1], atol=1e-3)


def test_the_file_is_sealed_names_where_it_comes_from_and_does_not_depend_on_workers(
    whole: Path, replayed: Path, tmp_path: Path
) -> None:
    meta = json.loads(replayed.with_suffix(".json").read_text())
    kwargs = meta["env_info"]["env_kwargs"]
    assert (kwargs["obs_mode"], kwargs["reward_mode"], kwargs["sim_backend"]) == ("state", "sparse", "physx_cpu")
    assert meta["source_type"] == "rl"
    assert "mani_skill" in meta["source_desc"]
    assert [e["episode_seed"] for e in meta["episodes"]] == [5, 6, 7, 8]
    assert replay(make_raw(whole, tmp_path), tmp_path / "one.h5", "--workers", "1") == 0
    for suffix in (".h5", ".json"):
        assert (tmp_path / "one").with_suffix(suffix).read_bytes() == replayed.with_suffix(suffix).read_bytes()
    with h5py.File(tmp_path / "one.h5", "r+") as f:
        f["traj_0/rewards"][0] = 1
    assert "checksum" in hdf5.inspect(tmp_path / "one.h5").problems[0]


def test_the_rewards_are_those_of_the_mode_that_is_asked_for(whole: Path, tmp_path: Path) -> None:
    raw = make_raw(whole, tmp_path)
    assert replay(raw, tmp_path / "out.h5", "--reward-mode", "normalized_dense", "--episodes", "1") == 0
    found = hdf5.inspect(tmp_path / "out.h5", reward_mode="normalized_dense")
    assert found.problems == []
    assert len(np.unique(found.episodes[0].reward)) > 5


def test_a_file_of_another_simulator_follows_its_recorded_states(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its actions alone lead elsewhere: here they are none at all, and the cube still gets to the goal."""
    raw = make_raw(whole, tmp_path, lambda a: np.zeros_like(a), sim_backend="gpu")
    assert replay(raw, tmp_path / "out.h5", "--episodes", "1") == 0
    out = capsys.readouterr().out
    assert "1 of 1 episodes succeed" in out
    assert "note: recorded on another simulator, physx_cuda; evaluate on physx_cpu" in out
    old, new = (hdf5.inspect(p).episodes[0].obs["state"] for p in (whole, tmp_path / "out.h5"))
    np.testing.assert_allclose(new[:, 18:21], old[:, 18:21], atol=0.05)


def test_nothing_is_written_where_every_success_is_lost(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = make_raw(whole, tmp_path, lambda a: np.zeros_like(a))
    assert replay(raw, tmp_path / "out.h5") == 1
    assert "none of 4 episodes succeeds, as recorded 2 did" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"trajectory.h5", "trajectory.json"}


def test_actions_beyond_the_range_are_written_as_executed(
    whole: Path, replayed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A policy's raw outputs: where the controller limits them anyway, the episode is the same."""
    raw = make_raw(whole, tmp_path, lambda a: np.where(np.abs(a) == 1, 3 * a, a))
    with h5py.File(raw) as f:
        far = sum(int((np.abs(f[n]["actions"][()]) > 1).any(1).sum()) for n in list(f)[:1])
        turns = any((np.abs(f[n]["actions"][()])[:, 3:6] > 1).any() for n in list(f)[:1])
    assert far
    assert not turns
    assert replay(raw, tmp_path / "out.h5", "--episodes", "1") == 0
    assert f"{far} actions reached outside [-1, 1]" in capsys.readouterr().out
    found, same = hdf5.inspect(tmp_path / "out.h5"), hdf5.inspect(replayed)
    assert found.problems == []
    np.testing.assert_array_equal(found.episodes[0].action, same.episodes[0].action)
    np.testing.assert_allclose(found.episodes[0].obs["state"], same.episodes[0].obs["state"], atol=1e-4)


def test_what_the_replayer_says_when_it_fails_is_told(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = make_raw(whole, tmp_path)
    with h5py.File(raw, "r+") as f:
        f["traj_0/env_states/actors"].move("cube", "sphere")
    assert replay(raw, tmp_path / "out.h5", "--workers", "1") == 1
    err = capsys.readouterr().err
    assert "ManiSkill's replayer failed (exit code 1)" in err
    assert "sphere" in err
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize(
    ("options", "env_kwargs", "words"),
    [
        (["--control-mode", "pd_joint_pos"], {"control_mode": "pd_joint_pos"}, ["[-1, 1]", "pd_joint_pos"]),
        (["--control-mode", "pd_joint_delta_pos"], {}, ["ManiSkill converts pd_joint_pos only", "pd_ee_delta_pose"]),
        (["--control-mode", "pd_ee_delta_pse"], {}, ["control_mode", "did you mean pd_ee_delta_pose"]),
        (["--reward-mode", "sparce"], {}, ["reward_mode", "sparce"]),
        (["--reward-mode", "none"], {}, ["--reward-mode must record rewards, but got 'none'"]),
        (["--sim-backend", "physx_cuda", "--workers", "2"], {}, ["--workers are processes of physx_cpu"]),
        (["--episodes", "0"], {}, ["--episodes must be at least 1, but got 0"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) and v and v[0].startswith("--") else "",
)
def test_what_cannot_be_is_refused_before_anything_is_started(
    options: list[str],
    env_kwargs: dict[str, Any],
    words: list[str],
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raw = make_raw(whole, tmp_path, **env_kwargs)
    meta = json.loads(raw.with_suffix(".json").read_text())
    for e in meta["episodes"]:
        e["control_mode"] = meta["env_info"]["env_kwargs"]["control_mode"]
    raw.with_suffix(".json").write_text(json.dumps(meta))
    assert replay(raw, tmp_path / "out.h5", *options) == 2
    err = capsys.readouterr().err
    for word in words:
        assert word in err
    assert {p.name for p in tmp_path.iterdir()} == {"trajectory.h5", "trajectory.json"}


@pytest.mark.skipif(not PLANNED.exists(), reason=f"{PLANNED.name} is not on this machine")
def test_the_official_planners_file_is_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Joint positions of up to 3 rad, 170 steps and more, a cap of 50: no observation, another control mode."""
    assert replay(PLANNED, tmp_path / "out.h5") == 0
    assert "3 of 3 episodes succeed, as recorded 3" in capsys.readouterr().out
    found = hdf5.inspect(tmp_path / "out.h5")
    assert found.problems == []
    for e in found.episodes:
        assert e.action.shape[1] == 7
        assert len(e.action) > 150
        assert not e.truncated[:-1].any()
        assert e.reward.any()


def test_the_replayer_never_loads_the_planner_which_crashes_under_numpy_2() -> None:
    code = (
        "import sys; from offrl_ray.envs import maniskill; maniskill.load(); "
        "import mani_skill.trajectory.replay_trajectory; print('mplib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"
