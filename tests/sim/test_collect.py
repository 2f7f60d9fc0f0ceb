import json

import h5py
import numpy as np
import pytest
import torch

from offrl_ray.collect import collect
from offrl_ray.envs.maniskill import ManiSkillEnv
from offrl_ray.errors import UsageError

pytestmark = pytest.mark.sim

TASK = "PushCube-v1"
EPISODES, NOISE, SEED = 4, (0.0, 2.0), 11


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    lines: list[str] = []
    out = tmp_path_factory.mktemp("collect") / "push.h5"
    summary = collect(TASK, EPISODES, NOISE, SEED, out, max_steps=30, progress=lines.append)
    return summary, lines


def layout(group: h5py.Group) -> dict[str, tuple]:
    found = {}
    group.visititems(
        lambda name, o: found.update({name: (o.shape, o.dtype.str)}) if isinstance(o, h5py.Dataset) else None
    )
    return found


def test_layout_is_the_official_one(collected):
    with h5py.File(collected[0].out) as file:
        assert set(file) == {f"traj_{i}" for i in range(EPISODES)}
        for trajectory in file.values():
            t = len(trajectory["actions"])
            assert layout(trajectory) == {
                "obs": ((t + 1, 35), "<f4"),
                "actions": ((t, 7), "<f4"),
                "rewards": ((t,), "<f4"),
                "success": ((t,), "|b1"),
                "terminated": ((t,), "|b1"),
                "truncated": ((t,), "|b1"),
                "env_states/actors/cube": ((t + 1, 13), "<f4"),
                "env_states/actors/goal_region": ((t + 1, 13), "<f4"),
                "env_states/actors/table-workspace": ((t + 1, 13), "<f4"),
                "env_states/articulations/panda": ((t + 1, 31), "<f4"),
            }


def test_episodes_end_at_success_and_failures_are_kept(collected):
    summary = collected[0]
    meta = json.loads(summary.out.with_suffix(".json").read_text())
    with h5py.File(summary.out) as file:
        for episode in meta["episodes"]:
            trajectory = file[f"traj_{episode['episode_id']}"]
            success, terminated, truncated = (trajectory[k][:] for k in ("success", "terminated", "truncated"))
            assert not success[:-1].any()
            assert bool(success[-1]) == bool(terminated[-1]) == episode["success"]
            assert trajectory["rewards"][-1] == episode["success"]
            assert len(success) == episode["elapsed_steps"]
            assert episode["success"] or (truncated[-1] and len(success) == 30)
    outcomes = [(e["noise"], e["success"]) for e in meta["episodes"]]
    assert outcomes == [(0.0, True), (2.0, False)] * 2
    assert [(level.noise, level.episodes, level.successes) for level in summary.levels] == [(0.0, 2, 2), (2.0, 2, 0)]


def test_metadata(collected):
    meta = json.loads(collected[0].out.with_suffix(".json").read_text())
    info = meta["env_info"]
    assert (info["env_id"], info["max_episode_steps"], meta["source_type"]) == (TASK, 30, "scripted")
    kwargs = info["env_kwargs"]
    assert (kwargs["control_mode"], kwargs["reward_mode"], kwargs["obs_mode"]) == (
        "pd_ee_delta_pose",
        "sparse",
        "state",
    )
    assert [e["episode_seed"] for e in meta["episodes"]] == [SEED + i for i in range(EPISODES)]
    assert meta["episodes"][1]["reset_kwargs"] == {"options": None, "seed": SEED + 1}


def test_actions_reproduce_the_episode(collected):
    env = ManiSkillEnv(TASK)
    with h5py.File(collected[0].out) as file:
        obs, actions = file["traj_1/obs"][:], torch.from_numpy(file["traj_1/actions"][:])
    states = [env.reset([SEED + 1])["state"]] + [env.step(a[None]).obs["state"] for a in actions]
    np.testing.assert_array_equal(torch.cat(states).numpy(), obs)


def test_files_do_not_depend_on_workers(collected, tmp_path):
    out = tmp_path / "two.h5"
    collect(TASK, EPISODES, NOISE, SEED, out, workers=2, max_steps=30)
    for suffix in (".h5", ".json"):
        assert out.with_suffix(suffix).read_bytes() == collected[0].out.with_suffix(suffix).read_bytes()


def test_progress_counts(collected):
    assert collected[1][-1].startswith("4/4 episodes, success 50%, ")
    assert collected[1][-1].endswith("ETA 0 s")


def test_existing_output_is_refused(collected):
    out = collected[0].out
    before = out.read_bytes()
    with pytest.raises(UsageError, match="exists") as raised:
        collect(TASK, 1, [0.0], 0, out)
    assert len(raised.value.problems) == 2  # the h5 and the json
    assert out.read_bytes() == before


def test_all_problems_at_once(tmp_path):
    out = tmp_path / "missing" / "data.hdf5"
    with pytest.raises(UsageError) as raised:
        collect("PushCube", 0, [0.1, -1.0, float("nan")], -1, out, workers=0, max_steps=0)
    text = "\n".join(raised.value.problems)
    for part in (
        "did you mean PushCube-v1",
        "episodes",
        "workers",
        "max_steps",
        "-1.0, nan",
        "seed -1",
        ".h5",
        "folder",
    ):
        assert part in text
    assert len(raised.value.problems) == 8
    assert list(tmp_path.iterdir()) == []


def test_interrupt_leaves_nothing(tmp_path):
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(TASK, 1, [0.0], 0, tmp_path / "data.h5", progress=interrupt)
    assert list(tmp_path.iterdir()) == []
