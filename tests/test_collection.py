"""What an online learner lives through, written, checked, trained on and evaluated; all in real CartPole.

Scripted experts need the simulator: tests/sim/test_collect.py.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch

from offrl_ray import cli, records
from offrl_ray.algos import cql_dqn
from offrl_ray.collect import collect, learner
from offrl_ray.collect.files import Label
from offrl_ray.data.hdf5 import inspect
from offrl_ray.envs.experts import EXPERTS, Trajectory
from offrl_ray.errors import UsageError
from offrl_ray.types import Batch, EnvStep, State
from tests.toys import generator, same_bits

EPISODES, SEED = 6, 40


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("collect") / "cartpole.h5"
    collect("CartPole-v1", EPISODES, (), SEED, out)
    return out


def meta(path: Path) -> dict[str, Any]:
    return json.loads(path.with_suffix(".json").read_text())


def test_the_layout_is_maniskills_with_the_action_as_an_index(collected: Path) -> None:
    with h5py.File(collected) as f:
        assert set(f) == {f"traj_{i}" for i in range(EPISODES)}
        for group in f.values():
            t = len(group["actions"])
            assert {k: (v.shape, v.dtype.str) for k, v in group.items()} == {
                "obs": ((t + 1, 4), "<f4"),
                "actions": ((t, 1), "<f4"),
                "rewards": ((t,), "<f4"),
                "success": ((t,), "|b1"),
                "terminated": ((t,), "|b1"),
                "truncated": ((t,), "|b1"),
            }
            assert set(np.unique(group["actions"])) == {0.0, 1.0}


def test_the_json_names_environment_modes_and_seeds(collected: Path) -> None:
    found = meta(collected)
    info, kwargs = found["env_info"], found["env_info"]["env_kwargs"]
    assert (info["env_id"], info["num_actions"], info["max_episode_steps"]) == ("CartPole-v1", 2, 200)
    assert [kwargs[k] for k in ("obs_mode", "control_mode", "reward_mode", "sim_backend")] == [
        "state",
        "native",
        "native",
        "native",
    ]
    assert found["source_type"] == "rl"
    assert [e["episode_seed"] for e in found["episodes"]] == [SEED + i for i in range(EPISODES)]
    assert [e["epsilon"] for e in found["episodes"]] == pytest.approx([0.95 * 0.995**i for i in range(EPISODES)])
    assert [e["success"] for e in found["episodes"]] == [False] * EPISODES


def test_every_episode_is_what_gymnasium_says(collected: Path) -> None:
    env, found = gym.make("CartPole-v1", max_episode_steps=200), meta(collected)
    with h5py.File(collected) as f:
        for e in found["episodes"]:
            group = f[f"traj_{e['episode_id']}"]
            frames, outcomes = [env.reset(seed=e["episode_seed"])[0]], []
            for action in group["actions"][:, 0]:
                frame, *outcome, _ = env.step(int(action))
                frames.append(frame)
                outcomes.append(outcome)
            np.testing.assert_array_equal(group["obs"], np.array(frames, np.float32))
            columns = [group[k][()].tolist() for k in ("rewards", "terminated", "truncated")]
            assert columns == [list(column) for column in zip(*outcomes, strict=True)]
            assert outcomes[-1][1] or outcomes[-1][2]
            assert e["elapsed_steps"] == len(outcomes)


def test_the_file_passes_the_check_in_its_own_modes(collected: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(collected, control_mode=None, reward_mode=None, env_id="CartPole-v1")
    assert (found.problems, found.num_actions, len(found.episodes)) == ([], 2, EPISODES)
    assert cli.main(["data", "check", str(collected)]) == 0
    assert "problems      none" in capsys.readouterr().out
    assert cli.main(["data", "check", str(collected), "--control-mode", "pd_ee_delta_pose"]) == 2
    assert "another file or variant" in capsys.readouterr().out


def test_a_file_is_a_function_of_its_arguments(collected: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again.h5", tmp_path / "other.h5"
    collect("CartPole-v1", EPISODES, (), SEED, again)
    collect("CartPole-v1", EPISODES, (), SEED + 1, other)
    for suffix in (".h5", ".json"):
        assert again.with_suffix(suffix).read_bytes() == collected.with_suffix(suffix).read_bytes()
        assert other.with_suffix(suffix).read_bytes() != collected.with_suffix(suffix).read_bytes()


def test_the_command_tells_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demos.h5"
    assert cli.main(["collect", "--env-id", "CartPole-v1", "--episodes", "3", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("3/3 episodes, success 0%, return ")
    steps = sum(e["elapsed_steps"] for e in meta(out)["episodes"])
    assert lines[-2] == f"3 episodes, success 0%, mean length {steps / 3:.1f}, mean return {steps / 3:.4g}"
    assert lines[-1].startswith(f"{out}: {steps} steps in ")


def test_the_help_names_every_environment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["collect", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert all(env_id in out for env_id in (*EXPERTS, *learner.NUM_ACTIONS))


def test_what_does_not_apply_to_a_learner_is_refused_with_all_else(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as e:
        collect("CartPole-v1", 0, (0.1, 0.2), -1, tmp_path / "x.txt", workers=2, max_steps=0)
    text = "\n".join(e.value.problems)
    assert len(e.value.problems) == 6
    for words in (
        "episodes",
        "max_steps",
        "noise is for scripted experts",
        "0.1, 0.2",
        "workers are for",
        "seed",
        ".h5",
    ):
        assert words in text
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_environment_is_named_with_the_one_meant(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'CartPole-v2'; did you mean CartPole-v1\?"):
        collect("CartPole-v2", 1, (), 0, tmp_path / "x.h5")


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect("CartPole-v1", 1, (), 0, tmp_path / "data.h5", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


# -- the learner


def lived(epsilons: Sequence[float], seed: int = 0, max_steps: int = 60) -> list[Trajectory]:
    labels = [Label(i, {"epsilon": e}) for i, e in enumerate(epsilons)]
    return list(learner.MAKER.trajectories(learner.MAKER.origin("CartPole-v1", max_steps), labels, seed, None))


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A learner that begins after so many steps, and learns CartPole within a few hundred."""

    def begin(steps: int) -> None:
        monkeypatch.setattr(learner, "RANDOM_STEPS", steps)
        monkeypatch.setattr(learner, "CONFIG", cql_dqn.Config(cql_alpha=0.0, lr=1e-2, tau=0.1))

    return begin


def test_it_learns_to_keep_the_pole_up(eager: Callable[[int], None]) -> None:
    eager(200)
    lengths = [len(t.actions) for t in lived([0.05] * 35)]
    assert np.mean(lengths[:8]) < 30
    assert np.mean(lengths[-8:]) > 50


def test_it_acts_at_random_first_and_by_its_network_then(eager: Callable[[int], None]) -> None:
    eager(10**9)
    actions = np.concatenate([t.actions for t in lived([0.0] * 15)])
    assert len(actions) > 150
    assert abs(actions.mean() - 0.5) < 0.12
    eager(0)
    greedy = np.concatenate([t.actions for t in lived([0.0] * 3)])
    assert abs(greedy.mean() - 0.5) > 0.3, "an untrained network prefers one side"


def test_every_step_after_the_random_ones_is_one_update(
    eager: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[Batch] = []
    make = cql_dqn.make

    def counting(cfg: cql_dqn.Config, spec: Any) -> Any:
        alg = make(cfg, spec)

        def update(state: State, batch: Batch, *rest: Any) -> Any:
            batches.append(batch)
            return alg.update(state, batch, *rest)

        return alg._replace(update=update)

    monkeypatch.setattr(cql_dqn, "make", counting)
    eager(50)
    steps = sum(len(t.actions) for t in lived([1.0] * 5))
    assert len(batches) == steps - 49
    assert batches[0].obs["state"].shape == (64, 1, 4)
    assert batches[0].q_action.shape == (64, 1, 1)


def test_the_replay_keeps_the_newest_and_the_cap_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "BUFFER", 5)
    replay = learner._Replay(1)
    for i in range(8):
        flags = (torch.tensor([i == 4]), torch.tensor([i == 6]))  # terminated, truncated
        step = EnvStep({"state": torch.tensor([[i + 0.5]])}, torch.tensor([10.0 * i]), flags[1], *flags)
        replay.add(torch.tensor([[float(i)]]), torch.tensor([[i % 2.0]]), step)
    b = replay.sample(generator())
    i = b.obs["state"][:, 0, 0]
    assert set(i.tolist()) == {3.0, 4.0, 5.0, 6.0, 7.0}
    assert same_bits(b.next_obs["state"][:, 0, 0], i + 0.5)
    assert same_bits(b.q_action[:, 0, 0], i % 2)
    assert same_bits(b.reward, 10 * i[:, None])
    assert same_bits(b.terminal, (i == 4).float())
    assert b.mask.all()


# -- from nothing to an evaluation


def test_collect_train_evaluate(collected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    small = ["algo.hidden=[8]", "env.max_steps=20", "eval.episodes=2", "eval.every=2", "train.report_every=2"]
    settings = [word for s in small for word in ("--set", s)]
    run = ["train", "cql_dqn", "--data", str(collected), "--out", str(out), "--steps", "4", "--seeds", "0,1", *settings]
    assert cli.main(run) == 0
    assert "step 4 seed 1: success_once 0.00, success_at_end 0.00, return " in capsys.readouterr().out
    log = records.read(out).records
    final = next(r for r in log if r["kind"] == "eval" and r["step"] == 4 and r["seed"] == 0)
    assert final["length"] == final["return"]
    assert final["env"]["id"] == "CartPole-v1"
    checkpoint = out / "trials" / "train" / "step_00000004"
    assert cli.main(["evaluate", str(checkpoint), "--episodes", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seeds"]["0"]["ret"] == final["return"]


def test_the_wrong_variant_for_a_file_is_refused(
    collected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["train", "cpql", "--data", str(collected), "--out", str(tmp_path / "run")]
    assert cli.main(run) == 2
    assert "control mode is 'native', the config says 'pd_ee_delta_pose'; choose another" in capsys.readouterr().err
    modes = [word for k in ("control_mode", "reward_mode", "sim_backend") for word in ("--set", f"env.{k}=native")]
    assert cli.main([*run, *modes]) == 2
    assert "cpql needs continuous actions, but the data's are discrete" in capsys.readouterr().err


def test_a_typo_does_not_make_good_data_look_bad(
    collected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["train", "cql_dqn", "--data", str(collected), "--out", str(tmp_path / "run"), "--set", "algo.cql_alpa=1"]
    assert cli.main(run) == 2
    assert capsys.readouterr().err.startswith("1 problem:\n- algo.cql_alpa")
