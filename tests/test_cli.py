import dataclasses
import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from offrl_ray import checkpoint, cli
from offrl_ray.algos import VARIANTS
from offrl_ray.config import describe
from offrl_ray.distributed import launch
from offrl_ray.errors import UsageError
from offrl_ray.records import FILE, read
from offrl_ray.sweep.confirmation import Ask
from offrl_ray.sweep.plan import Sweep
from offrl_ray.sweep.spec import Objective
from tests import ledgers
from tests.conftest import ACTION, TINY, Length, ToyEnv, WriteFile
from tests.test_plan import CPQL, CQL_DQN

Capture = pytest.CaptureFixture[str]
LENGTHS = [6, Length(9, ()), 12]
FOLDER_COMMANDS = {
    "status": [],
    "fsck": [],
    "rebuild": [],
    "resume": [],
    "stop": [],
    "retry": ["--failed"],
    "extend": ["--trials", "5"],
    "confirm": [],
    "export": ["--best", "exported"],
}
COMMAND_NAMES = ("collect", "data", "train", "evaluate", "describe", "doctor", *FOLDER_COMMANDS)


class Forbidden:
    """Stands in for what must not be reached."""

    def __init__(self, *args: Any, **kwargs: Any):
        pytest.fail("something was started")


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No simulator, no Ray, no collecting, and relative paths lead to an empty folder."""
    monkeypatch.setattr("offrl_ray.evaluate.open_env", lambda env: ToyEnv(env.num_envs, env.max_steps))
    monkeypatch.setattr(launch, "drive", Forbidden)
    monkeypatch.setattr(launch, "collect", Forbidden)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def settings(**changes: Any) -> list[str]:
    """TINY with changes, without those that are None."""
    tiny = TINY | {"algo.name": None} | {k.replace("__", "."): v for k, v in changes.items()}
    return [word for k, v in tiny.items() if v is not None for word in ("--set", f"{k}={json.dumps(v)}")]


def train(path: Path, *more: str, out: str = "out", **changes: Any) -> int:
    return cli.main(["train", "cpql", "--data", str(path), "--out", out, *settings(**changes), *more])


def sweep(*argv: str, of: Sweep = CPQL) -> int:
    return launch.main(of, list(argv))


@pytest.fixture
def refused(tmp_path: Path, capsys: Capture) -> Callable[..., list[str]]:
    """Runs a command that must exit with 2 in time, in one message, with nothing written; gives the problems."""

    def check(command: Callable[[], int]) -> list[str]:
        before = files(tmp_path)
        code = command()
        stderr = capsys.readouterr().err
        assert code == 2, stderr
        assert files(tmp_path) == before
        head, *lines = stderr.splitlines()
        assert head == f"{len(lines)} problem{'s' * (len(lines) > 1)}:"
        assert all(line.startswith("- ") for line in lines)
        return [line[2:] for line in lines]

    return check


def spoilt(kind: str, write_file: WriteFile, tmp_path: Path) -> Path:
    if kind == "control mode differs":
        return write_file(control_mode="pd_joint_pos")
    path = write_file()
    if kind == "missing":
        path.unlink()
        path.with_suffix(".json").unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "another program's":
        path.write_bytes(b"not HDF5" * 100)
    else:
        assert kind == "good"
    return path


BAD_SETTINGS = {
    "algo.alpa=0.1": ["algo.alpa", "did you mean algo.alpha"],
    "algo.alpha=-1": ["algo.alpha", "-1"],
    "algo.alpha=strong": ["algo.alpha", "strong"],
    "algo.alpha=": ["algo.alpha"],
    "algo.q_grad_mode=last_50": ["50 > 10"],
    "algo.name=[1]": ["algo.name", "1"],
    "algo.gamma=1.0": ["algo.gamma", "1.0"],
    "train.seeds=1,1": ["train.seeds", "[1, 1]"],
    "train.device=abacus": ["train.device", "abacus"],
    "eval.episodes=0": ["eval.episodes"],
    "nonsense": ["key=value", "nonsense"],
}
BAD_FILES = {
    "missing": ["demos.h5", "no such file"],
    "empty": ["demos.h5", "truncated or damaged"],
    "another program's": ["demos.h5", "damaged"],
    "control mode differs": ["control mode is 'pd_joint_pos'", "'pd_ee_delta_pose'"],
}
COMMANDS = {
    "train": lambda path, *sets: cli.main(
        ["train", "cpql", "--data", str(path), "--out", "out", *(w for s in sets for w in ("--set", s))]
    ),
    "sweep": lambda path, *sets: sweep(*(w for s in [f'data.files=["{path}"]', *sets] for w in ("--set", s))),
}


def assert_named(problems: list[str], words: list[str]) -> None:
    assert any(all(w in p for w in words) for p in problems), problems


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("setting", BAD_SETTINGS)
def test_a_bad_setting_is_refused(
    command: str, setting: str, write_file: WriteFile, refused: Callable[..., list[str]]
) -> None:
    path = write_file()
    problems = refused(lambda: COMMANDS[command](path, setting))
    assert len(problems) == 1
    assert_named(problems, BAD_SETTINGS[setting])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_refused(
    command: str, kind: str, write_file: WriteFile, tmp_path: Path, refused: Callable[..., list[str]]
) -> None:
    path = spoilt(kind, write_file, tmp_path)
    assert_named(refused(lambda: COMMANDS[command](path)), BAD_FILES[kind])


@pytest.mark.parametrize("command", COMMANDS)
def test_all_problems_come_in_one_message(
    command: str, write_file: WriteFile, tmp_path: Path, refused: Callable[..., list[str]]
) -> None:
    path = spoilt("empty", write_file, tmp_path)
    problems = refused(lambda: COMMANDS[command](path, "algo.alpa=1", "algo.gamma=1.0"))
    for words in (["algo.alpa"], ["algo.gamma"], BAD_FILES["empty"]):
        assert_named(problems, words)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_item_without_equals_sign_does_not_hide_the_other_problems(
    command: str, write_file: WriteFile, refused: Callable[..., list[str]]
) -> None:
    path = write_file()
    problems = refused(lambda: COMMANDS[command](path, "algo.alpa=1", "nonsense"))
    assert_named(problems, ["nonsense"])
    assert_named(problems, ["algo.alpa"])


def test_data_in_the_control_mode_of_a_config_with_a_typo_is_no_problem(
    write_file: WriteFile, refused: Callable[..., list[str]]
) -> None:
    path = write_file(control_mode="pd_ee_delta_pos")
    (problem,) = refused(lambda: COMMANDS["train"](path, "env.control_mode=pd_ee_delta_pos", "algo.alpa=1"))
    assert "algo.alpa" in problem


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_in_place_of_the_folder_is_refused(
    command: str, write_file: WriteFile, refused: Callable[..., list[str]]
) -> None:
    path = write_file()
    Path("out").write_text("precious")
    Path("runs").write_text("precious")
    (problem,) = refused(lambda: COMMANDS[command](path))
    assert "--out" in problem


def test_an_environment_that_this_machine_cannot_build_is_refused_before_training(
    write_file: WriteFile, refused: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_env(env: Any) -> Any:
        raise UsageError(["sim_backend 'physx_cuda' needs a GPU"])

    monkeypatch.setattr("offrl_ray.evaluate.open_env", open_env)
    path = write_file(LENGTHS)
    assert refused(lambda: train(path)) == ["sim_backend 'physx_cuda' needs a GPU"]


@pytest.mark.parametrize("variant", ["cpq", "", "../cpql"])
def test_an_unknown_variant_is_refused(variant: str, write_file: WriteFile, refused: Callable[..., list[str]]) -> None:
    path = write_file()
    for argv in (["train", variant, "--data", str(path), "--out", "out"], ["describe", variant]):
        assert_named(refused(lambda: cli.main(argv)), [repr(variant), "cpql"])  # noqa: B023


@pytest.mark.parametrize(
    "argv", [[], ["nope"], ["train", "cpql"], ["train", "cpql", "--data", "a", "--out", "b", "--seeds", "x"], ["data"]]
)
def test_wrong_usage_exits_with_2(argv: list[str], tmp_path: Path) -> None:
    before = files(tmp_path)
    with pytest.raises(SystemExit) as e:
        cli.main(argv)
    assert e.value.code == 2
    assert files(tmp_path) == before


def test_bad_demonstrations_are_refused_with_every_problem(refused: Callable[..., list[str]]) -> None:
    numbers = ["--episodes", "0", "--workers", "0", "--noise=-1,nan", "--seed", "-1"]
    problems = refused(lambda: cli.main(["collect", "--env-id", "PushCub-v1", "--out", "a/b.txt", *numbers]))
    for word in ("PushCube-v1", "episodes", "workers", "noise", "seed", ".h5", "folder"):
        assert_named(problems, [word])


# -- sweeps


@pytest.mark.parametrize("name", ["../evil", "a/b", "/tmp/evil", "a\nb", "a\n", ".hidden", "-x", "ü", "x" * 65])
def test_a_name_that_is_no_plain_folder_name_is_refused(name: str, refused: Callable[..., list[str]]) -> None:
    (problem,) = refused(lambda: sweep("--dry-run", f"--name={name}"))
    assert "--name" in problem
    assert repr(name) in problem


def test_a_bad_name_comes_with_the_other_problems(refused: Callable[..., list[str]]) -> None:
    problems = refused(lambda: sweep("--name", "../evil", "--set", "algo.alpa=1", "--set", "data.files=/nowhere/a.h5"))
    for word in ("--name", "algo.alpa", "/nowhere/a.h5"):
        assert_named(problems, [word])


def test_a_point_to_try_without_equals_sign_is_refused(
    write_file: WriteFile, refused: Callable[..., list[str]]
) -> None:
    write_file()
    argv = ("--search", "tpe", "--vary", "algo.lr=1e-4:1e-2:log", "--try", "algo.lr=1e-3;algo.tau")
    assert_named(refused(lambda: sweep(*argv)), ["--try takes key=value", "algo.tau"])


def test_an_unknown_preset_is_refused(refused: Callable[..., list[str]]) -> None:
    (problem,) = refused(lambda: sweep("--preset", "quik"))
    assert "'quik'; did you mean quick?" in problem


@pytest.mark.parametrize(
    "setting", ["algo.alpha=[]", "algo.alpha=,", "data.files=5", "data.files=[[1]]", "data.files=[]"]
)
def test_an_empty_axis_or_no_file_name_is_refused(setting: str, refused: Callable[..., list[str]]) -> None:
    (problem,) = refused(lambda: sweep("--dry-run", "--set", setting))
    assert setting.split("=")[0] in problem


def test_a_dry_run_shows_every_point_and_writes_nothing(tmp_path: Path, capsys: Capture) -> None:
    before = files(tmp_path)
    assert sweep("--dry-run") == 0
    out = capsys.readouterr().out
    assert out.count("alpha_0.05-q_grad_mode_") == 3
    assert "10 points (2 more were the same run as one of these) x seeds 0, 1" in out
    assert files(tmp_path) == before


@pytest.mark.parametrize("spelling", ["demos.h5", '["demos.h5"]', "demos.h5,demos.h5"])
def test_files_are_given_by_one_name_or_by_several(
    spelling: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "load", lambda work: (None, work))
    monkeypatch.setattr("offrl_ray.probe.probes", lambda *about: [])
    monkeypatch.setattr("offrl_ray.probe.report", lambda *about: "")
    assert sweep("--dry-run", "--set", f"data.files={spelling}") == 0
    assert str(Path("demos.h5").resolve()) in capsys.readouterr().out


def test_a_network_of_a_later_point_that_does_not_fit_is_found_at_once(
    write_file: WriteFile, refused: Callable[..., list[str]]
) -> None:
    path = write_file()
    axes = {"algo.network.kind": ["resmlp", "unet"]}
    small = {"data.act_horizon": 2, "data.pred_horizon": 5}
    preset = dataclasses.replace(CPQL.presets["quick"], overrides=small)
    of = dataclasses.replace(CPQL, axes=axes, presets={"quick": preset})
    assert_named(refused(lambda: sweep("--set", f'data.files=["{path}"]', of=of)), ["pred_horizon"])


@pytest.mark.parametrize(
    "argv",
    [[], ["data", "check"], ["data", "replay"], ["data", "fetch"], *([c] for c in COMMAND_NAMES)],
    ids=" ".join,
)
def test_every_command_explains_itself(argv: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as e:
        cli.main([*argv, "--help"])
    assert e.value.code == 0
    assert "usage: offrl-ray" in capsys.readouterr().out


def test_a_sweep_explains_its_question_axes_and_presets(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as e:
        sweep("--help")
    out = capsys.readouterr().out
    assert e.value.code == 0
    assert all(word in out for word in (CPQL.question, *CPQL.axes, *CPQL.presets, "--dry-run", "describe cpql"))


def test_describe_lists_every_setting(capsys: Capture) -> None:
    assert cli.main(["describe", "cpql"]) == 0
    told = capsys.readouterr().out
    rows = told[told.index("algo.name") :].splitlines()
    assert [line.split()[0] for line in rows] == [s.key for s in describe("cpql")]
    for words in ("Sources:", "Deviations from", "number > 0, < 1", "single_step | last_k | whole_grad"):
        assert words in told


def test_describe_tells_of_all_variants(capsys: Capture) -> None:
    assert cli.main(["describe"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[:-1]] == list(VARIANTS)
    assert cli.main(["describe", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.keys() == VARIANTS.keys()
    for name, one in told.items():
        assert "ource" in one["about"], f"{name} names no source"
        assert [s["key"] for s in one["settings"]] == [s.key for s in describe(name)]
        for s in one["settings"]:
            assert s["meaning"], s
            assert s["range"], s


# -- data check


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=pytest.fail)


def test_data_check_prints_one_json_object(write_file: WriteFile, capsys: Capture) -> None:
    path = write_file(LENGTHS)
    assert cli.main(["data", "check", str(path), "--json"]) == 0
    found = strict(capsys.readouterr().out)
    assert (found["episodes"], found["steps"], found["problems"]) == (3, 27, [])
    assert found["success_rate"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("kind", BAD_FILES)
def test_data_check_tells_the_problems_and_exits_with_2(
    kind: str, write_file: WriteFile, tmp_path: Path, capsys: Capture
) -> None:
    command = ["data", "check", str(spoilt(kind, write_file, tmp_path)), "--control-mode", "pd_ee_delta_pose"]
    assert cli.main([*command, "--json"]) == 2
    assert_named(strict(capsys.readouterr().out)["problems"], BAD_FILES[kind])
    assert cli.main(command) == 2
    assert_named([capsys.readouterr().out], BAD_FILES[kind])


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_data_check_prints_strict_json_of_enormous_numbers(write_file: WriteFile, capsys: Capture) -> None:
    huge = np.full((3, ACTION), 3e38, np.float32) * np.float32([[1], [-1], [1]])
    path = write_file([3], damage=lambda f, meta: f["traj_0/actions"].write_direct(huge))
    assert cli.main(["data", "check", str(path), "--json"]) == 2
    assert_named(strict(capsys.readouterr().out)["problems"], ["[-1, 1]", "traj_0[0, 0]"])


@pytest.mark.parametrize(
    ("told", "code"),
    [
        ([], 0),
        (["--control-mode", "pd_ee_delta_pos"], 0),
        (["--reward-mode", "dense"], 0),
        (["--control-mode", "pd_ee_delta_pose"], 2),
        (["--reward-mode", "sparse"], 2),
    ],
)
def test_data_check_takes_the_files_modes_unless_it_is_told_others(
    told: list[str], code: int, write_file: WriteFile
) -> None:
    path = write_file(control_mode="pd_ee_delta_pos", reward_mode="dense")
    assert cli.main(["data", "check", str(path), *told]) == code


@pytest.mark.parametrize("mode", ["control_mode", "reward_mode"])
def test_data_check_refuses_a_file_that_names_no_mode(mode: str, write_file: WriteFile, capsys: Capture) -> None:
    path = write_file(damage=lambda f, meta: meta["env_info"]["env_kwargs"].pop(mode))
    assert cli.main(["data", "check", str(path)]) == 2
    assert f"{mode.replace('_', ' ')} is None" in capsys.readouterr().out


@pytest.mark.parametrize("path", ["", ".", "/", "nowhere.h5", "a" * 300])
def test_data_check_of_no_file_exits_with_2(path: str, capsys: Capture) -> None:
    assert cli.main(["data", "check", path]) == 2
    assert "no such file" in capsys.readouterr().out


# -- train and evaluate


def final(folder: Path = Path("out")) -> list[dict[str, Any]]:
    """The last evaluation of every seed, without what a clock says or how often it was started."""
    last = {r["seed"]: r for r in read(folder).records if r["kind"] == "eval" and r["step"] == 12}
    clock = ("seq", "time", "seconds", "attempt")
    return [{k: v for k, v in last[s].items() if k not in clock} for s in sorted(last)]


def ends(folder: Path = Path("out")) -> list[str]:
    return [r["status"] for r in read(folder).records if r["kind"] == "end"]


def test_train_writes_a_plan_and_everything_that_happened(write_file: WriteFile, capsys: Capture) -> None:
    path = write_file(LENGTHS)
    assert train(path) == 0
    log = read("out")
    assert log.problems == []
    plan = log.records[0]
    assert (plan["kind"], plan["points"][0]["seeds"], plan["points"][0]["steps"]) == ("plan", [0, 1], 12)
    assert (plan["data"][0]["file"], plan["data"][0]["episodes"]) == (str(path), 3)
    assert {"digest", "versions", "name"} <= set(plan)
    assert (plan["claims"], plan["confirms"]) == ([], None)
    assert [len(final()), ends()] == [2, ["completed"]]
    out = capsys.readouterr().out
    assert "step 12 seed 1: success_once" in out
    assert str(Path("out") / FILE) in out


def test_flags_are_settings(write_file: WriteFile) -> None:
    flags = ["--steps", "4", "--seeds", "7"]
    assert train(write_file(LENGTHS), *flags, train__steps=None, train__seeds=None) == 0
    (point,) = read("out").records[0]["points"]
    assert (point["steps"], point["seeds"]) == (4, [7])


class Stopping(ToyEnv):
    """An environment in which somebody presses Ctrl-C at the n-th episode."""

    left = 0

    def reset(self, seeds: Any) -> Any:
        Stopping.left -= 1
        if Stopping.left == 0:
            raise KeyboardInterrupt
        return super().reset(seeds)


@pytest.mark.parametrize("episode", [1, 2, 4, 7, 12])
def test_a_run_that_was_interrupted_goes_on(
    episode: int, write_file: WriteFile, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    path = write_file(LENGTHS)
    assert train(path, out="whole") == 0
    monkeypatch.setattr("offrl_ray.evaluate.open_env", lambda env: Stopping(1, env.max_steps))
    Stopping.left = episode
    assert train(path) == 130
    assert "interrupted" in capsys.readouterr().err
    assert train(path) == 0
    assert read("out").problems == []
    assert final() == final(Path("whole"))
    assert ends() == ["completed"]
    capsys.readouterr()
    assert cli.main(["fsck", "out"]) == 0, capsys.readouterr().out
    assert capsys.readouterr().out == "clean: 1 of 1 ended\n"
    evaluated = [(r["step"], r["seed"]) for r in read("out").records if r["kind"] == "eval"]
    assert sorted(evaluated) == [(s, m) for s in (4, 8, 12) for m in (0, 1)]


def cut_after(kind: str, **fields: Any) -> None:
    """The records as a kill right after one of them leaves them."""
    path = Path("out") / FILE
    lines = path.read_bytes().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if (json.loads(line) | fields | {"kind": kind}) == json.loads(line))
    path.write_bytes(b"".join(lines[: at + 1]))


@pytest.mark.parametrize("step", [8, 12])
def test_a_kill_between_the_records_of_two_seeds_loses_neither(step: int, write_file: WriteFile) -> None:
    path = write_file(LENGTHS)
    assert train(path) == 0
    whole = final()
    cut_after("eval", step=step, seed=0)
    assert train(path) == 0
    assert final() == whole
    assert {(r["step"], r["seed"]) for r in read("out").records if r["kind"] == "eval"} == {
        (s, m) for s in (4, 8, 12) for m in (0, 1)
    }


def test_a_finished_run_is_left_as_it_is(write_file: WriteFile) -> None:
    path = write_file(LENGTHS)
    assert train(path) == 0
    before = files(Path("out"))
    assert train(path) == 0
    assert files(Path("out")) == before


@pytest.mark.parametrize("content", [b"", b'{"v":1,"seq":0,"kind":"plan"'])
def test_a_run_killed_before_its_first_record_begins_again(content: bytes, write_file: WriteFile) -> None:
    Path("out").mkdir()
    (Path("out") / FILE).write_bytes(content)
    assert train(write_file(LENGTHS)) == 0
    assert read("out").problems == []


def test_the_folder_of_another_run_is_refused(write_file: WriteFile, refused: Callable[..., list[str]]) -> None:
    path = write_file(LENGTHS)
    assert train(path) == 0
    (problem,) = refused(lambda: train(path, algo__alpha=0.5))
    assert "another run" in problem


def test_data_that_changed_since_the_run_began_is_refused(
    write_file: WriteFile, refused: Callable[..., list[str]]
) -> None:
    assert train(write_file(LENGTHS)) == 0
    cut_after("train", step=10, seed=1)
    path = write_file([7, 8, 9])
    assert any("demos.h5" in p for p in refused(lambda: train(path)))


def test_a_diverged_run_exits_with_1(write_file: WriteFile, capsys: Capture) -> None:
    assert train(write_file(LENGTHS), algo__lr_critic=1e30) == 1
    assert ends() == ["diverged"]
    assert "diverged" in capsys.readouterr().out


@pytest.fixture
def trained(write_file: WriteFile, capsys: Capture) -> Path:
    assert train(write_file(LENGTHS)) == 0
    capsys.readouterr()
    return Path("out") / "trials" / "train" / "step_00000012"


def test_evaluate_repeats_the_final_evaluation_of_the_run(trained: Path, capsys: Capture) -> None:
    assert cli.main(["evaluate", str(trained), "--episodes", "2", "--json"]) == 0
    found = strict(capsys.readouterr().out)
    for record in final():
        episodes = found["seeds"][str(record["seed"])]
        assert episodes["seed"] == record["episode_seeds"]
        assert (episodes["success_once"], episodes["ret"]) == (record["success_once"], record["return"])
        assert episodes["q_start"] == record["q_start"] != [0.0, 0.0]
        assert episodes["discounted_return"] == record["discounted_return"]
    assert found["digest"] == final()[0]["digest"]


def test_evaluate_prints_rates_with_intervals(trained: Path, capsys: Capture) -> None:
    assert cli.main(["evaluate", str(trained), "--episodes", "3", "--seed", "5"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "3 episodes from seed 5" in out[0]
    assert [line.split(":")[0] for line in out[1:]] == ["seed 0", "seed 1"]
    assert all("success_once" in line and "[" in line for line in out[1:])
    assert all(re.search(r"length [\d.]+, q_start \S+, discounted_return \S+, q_gap \S+$", line) for line in out[1:])


def test_evaluate_tells_what_a_diverged_critic_says_of_a_policy_that_is_not(trained: Path, capsys: Capture) -> None:
    saved = checkpoint.load(trained)
    saved.snapshot.state["critic"]["b_out"][1].fill_(torch.inf)
    checkpoint.save(trained.parent, saved.snapshot, saved.cfg, saved.spec, 0.0, {})
    assert cli.main(["evaluate", str(trained), "--episodes", "2", "--json"]) == 0
    assert strict(capsys.readouterr().out)["seeds"]["1"]["q_start"] == ["inf", "inf"]
    assert cli.main(["evaluate", str(trained), "--episodes", "2"]) == 0
    assert "q_start inf, discounted_return 0" in capsys.readouterr().out.splitlines()[2]


def test_evaluate_of_a_checkpoint_with_a_diverged_member_tells_of_the_others(trained: Path, capsys: Capture) -> None:
    saved = checkpoint.load(trained)
    next(iter(saved.snapshot.state["acting"]["policy_ema"].values()))[1].fill_(torch.nan)
    checkpoint.save(trained.parent, saved.snapshot, saved.cfg, saved.spec, 0.0, {})
    assert cli.main(["evaluate", str(trained), "--episodes", "2"]) in (0, 1)
    out = capsys.readouterr().out
    assert "seed 0: success_once" in out


@pytest.mark.parametrize("damage", ["missing", "cut", "numbers"])
def test_evaluate_refuses_bad_input(damage: str, trained: Path, refused: Callable[..., list[str]]) -> None:
    numbers = ["--episodes", "0", "--seed", "-1"] if damage == "numbers" else []
    if damage == "missing":
        shutil.rmtree(trained)
    elif damage == "cut":
        os.truncate(trained / "state.pt", 100)
    (problem,) = refused(lambda: cli.main(["evaluate", str(trained), *numbers]))
    assert ("--episodes" if numbers else "step_00000012") in problem


def test_settings_that_collected_demonstrations_cannot_meet_are_named_with_all_else(capsys: Capture) -> None:
    assert sweep("--set", "env.control_mode=pd_joint_pos", "--set", "algo.alpha=-1") == 2
    message = capsys.readouterr().err
    assert "2 problems" in message
    assert "env.control_mode is 'pd_joint_pos'" in message
    assert "data.files" in message


def test_a_sweep_of_another_kind_of_environment_collects_in_its_modes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    asked: list[tuple[Any, ...]] = []

    def collect(*args: Any, **options: Any) -> None:
        asked.append((*args[:4], options["workers"]))
        raise UsageError(["enough"])

    monkeypatch.setattr(launch, "collect", collect)
    assert sweep("--preset", "smoke", of=CQL_DQN) == 2
    assert asked == [("CartPole-v1", 10, (), 0, None)]
    assert "CartPole-v1.state.native.10.seed0.h5" in capsys.readouterr().out
    assert sweep("--preset", "smoke", "--set", "env.control_mode=pd_ee_delta_pose", of=CQL_DQN) == 2
    assert "env.control_mode is 'pd_ee_delta_pose', but the demonstrations" in capsys.readouterr().err


def test_a_typo_in_a_sweep_does_not_make_good_data_look_bad(write_file: WriteFile, capsys: Capture) -> None:
    path = write_file(control_mode="native", reward_mode="native")
    given = ["--set", f"data.files={path}", "--set", "algo.cql_alpa=1"]
    assert sweep(*given, of=CQL_DQN) == 2
    assert capsys.readouterr().err.startswith("1 problem:\n- algo.cql_alpa")


# -- a sweep's folder


@pytest.fixture
def folder() -> Path:
    """A sweep of three trials, two completed and one failed, that nobody drives."""
    more = {"objectives": ledgers.after("return"), "search": {"trials": 3}}
    points = [{"kind": "point", **ledgers.point(f"0{i}", number=i)} for i in range(3)]
    failed = ledgers.end("02", "failed", step=2, failure="oom", reason="too big")
    log = [*ledgers.whole("00"), *ledgers.whole("01", once=[1, 1]), ledgers.start("02"), failed]
    ledgers.write(Path("runs/toy"), [ledgers.plan([], **more), ledgers.session(), *points, *log])
    return Path("runs/toy")


@pytest.mark.parametrize("command", FOLDER_COMMANDS)
@pytest.mark.parametrize("kind", ["missing", "no records", "a file", "no plan", "foreign"])
def test_a_folder_without_a_sweep_is_refused(command: str, kind: str, refused: Callable[..., list[str]]) -> None:
    path = Path("x")
    if kind == "a file":
        path.write_text("precious")
    elif kind != "missing":
        path.mkdir()
    if kind == "no plan":
        ledgers.write(path, [ledgers.session()])
    elif kind == "foreign":
        (path / FILE).write_text("hello\n")
    if command == "fsck" and kind in ("no plan", "foreign"):
        assert cli.main(["fsck", "x"]) == (kind == "foreign")
        return
    (problem,) = refused(lambda: cli.main([command, "x", *FOLDER_COMMANDS[command]]))
    assert "x is no sweep's folder" in problem


def test_status_is_told_to_people_and_to_programs(folder: Path, capsys: Capture) -> None:
    before = files(folder)
    assert cli.main(["status", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "toy: 3 of 3 done" in told
    assert "2 completed" in told
    assert "1 failed (1 oom)" in told
    assert cli.main(["status", str(folder), "--json"]) == 0
    found = strict(capsys.readouterr().out)
    assert (found["completed"], found["failed"], found["failures"]) == (2, 1, {"oom": 1})
    assert (found["best"]["trial"], found["best"]["metric"], found["driver"]) == ("00", "return", None)
    assert files(folder) == before


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_status_is_watched_until_no_driver_runs(options: list[str], folder: Path, capsys: Capture) -> None:
    assert cli.main(["status", str(folder), "--watch", *options]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert ("toy: 3 of 3 done" in out) is not bool(options)
    assert (json.loads(out)["total"] == 3) if options else True


def test_fsck_tells_what_is_wrong(folder: Path, capsys: Capture) -> None:
    assert cli.main(["fsck", str(folder)]) == 0
    assert capsys.readouterr().out == "clean: 3 of 3 ended\n"
    (folder / FILE).write_bytes((folder / FILE).read_bytes().replace(b"too big", b"too bad"))
    assert cli.main(["fsck", str(folder)]) == 1
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("N1: ")
    assert last == "1 violation"
    assert cli.main(["fsck", str(folder), "--json"]) == 1
    found = strict(capsys.readouterr().out)
    assert (found["clean"], len(found["violations"]), found["open"]) == (False, 1, ["02"])


def test_fsck_reads_every_checkpoint_unless_it_is_told_to_be_quick(trained: Path, capsys: Capture) -> None:
    content = bytearray((trained / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    assert cli.main(["fsck", "out"]) == 0
    (trained / "state.pt").write_bytes(content)
    assert cli.main(["fsck", "out", "--quick"]) == 0
    capsys.readouterr()
    assert cli.main(["fsck", "out"]) == 1
    told = capsys.readouterr().out
    assert told.startswith("N5: ")
    assert "step_00000012 is damaged" in told


def test_rebuild_writes_what_is_derived(folder: Path, capsys: Capture) -> None:
    records = (folder / FILE).read_bytes()
    assert cli.main(["rebuild", str(folder)]) == 0
    assert {p.name for p in folder.iterdir()} == {FILE, "tb", "optuna.journal", "trials.csv"}
    assert capsys.readouterr().out.count("wrote ") == 3
    assert (folder / FILE).read_bytes() == records
    assert cli.main(["fsck", str(folder)]) == 0


def test_a_full_disk_has_its_exit_code(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("offrl_ray.sweep.derived.rebuild", full)
    assert cli.main(["rebuild", str(folder)]) == 74
    assert "the disk is full" in capsys.readouterr().err


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is asked of the module that drives sweeps, which answers with exit code 1, and of the one that exports."""
    calls: list[tuple[Any, ...]] = []

    def answer(name: str) -> Callable[..., int]:
        return lambda *args: calls.append((name, *args)) or 1  # type: ignore[func-returns-value]

    names = ("resume", "stop", "retry", "extend", "confirm")
    monkeypatch.setitem(
        sys.modules, "offrl_ray.distributed.manage", SimpleNamespace(**{name: answer(name) for name in names})
    )
    monkeypatch.setitem(sys.modules, "offrl_ray.export", SimpleNamespace(export=answer("export")))
    return calls


def test_commands_on_a_folder_are_handed_on(folder: Path, called: list[tuple[Any, ...]]) -> None:
    path = str(folder)
    commands = [["resume", path], ["stop", path], ["stop", path, "01"], ["retry", path, "--failed"]]
    commands += [["retry", path, "--failed", "--reason", "oom"], ["extend", path, "--trials", "5"]]
    commands += [["resume", path, "--address", "head:6379"]]
    assert [cli.main(c) for c in commands] == [1] * 7
    asked = [("resume", folder, "auto"), ("stop", folder, None, False), ("stop", folder, "01", False)]
    asked += [("retry", folder, None, "auto"), ("retry", folder, "oom", "auto"), ("extend", folder, 5, "auto")]
    assert called == [*asked, ("resume", folder, "head:6379")]


@pytest.mark.parametrize("command", ["resume", "retry --failed", "extend --trials 5", "confirm"])
def test_an_address_is_that_of_a_ray(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, *options = command.split()
    with pytest.raises(SystemExit) as e:
        cli.main([name, str(folder), *options, "--address", "http://head:8265"])
    assert e.value.code == 2
    assert "must be auto, local or HOST:PORT, but is 'http://head:8265'" in capsys.readouterr().err


def test_a_confirmation_is_handed_on_as_it_is_asked(folder: Path, called: list[tuple[Any, ...]]) -> None:
    assert cli.main(["confirm", str(folder)]) == 1
    options = ["--top", "2", "--seeds", "4", "--episodes", "50", "--metric", "q_excess:min"]
    assert cli.main(["confirm", str(folder), *options, "--address", "local", "--dry-run"]) == 1
    asked = Ask(2, 4, 50, Objective("q_excess", "min"))
    assert called == [
        ("confirm", folder, Ask(3, 5, None, None), "auto", False),
        ("confirm", folder, asked, "local", True),
    ]


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("stop", ["03"], ["no trial '03'", "known: 00, 01, 02"]),
        ("stop", ["../00"], ["name must match", "'../00'"]),
        ("retry", ["--failed", "--reason", "omm"], ["--reason", "did you mean oom"]),
        ("extend", ["--trials", "0"], ["--trials", "0"]),
        ("export", ["../00", "out"], ["name must match"]),
        ("export", ["05", "out"], ["no trial '05'"]),
        ("export", ["out"], ["--best or the name"]),
        ("export", ["00", "out", "--best"], ["--best or the name"]),
        ("export", ["02", "out"], ["02 has no checkpoint"]),
    ],
)
def test_what_a_folder_does_not_hold_is_refused(
    command: str,
    options: list[str],
    words: list[str],
    folder: Path,
    called: list[tuple[Any, ...]],
    refused: Callable[..., list[str]],
) -> None:
    assert_named(refused(lambda: cli.main([command, str(folder), *options])), words)
    assert called == []


def test_a_grid_cannot_be_extended(refused: Callable[..., list[str]]) -> None:
    ledgers.write(Path("grid"), [ledgers.plan([ledgers.point("00")])])
    assert_named(refused(lambda: cli.main(["extend", "grid", "--trials", "5"])), ["holds a grid"])


def test_nothing_is_best_before_a_trial_completes(refused: Callable[..., list[str]]) -> None:
    ledgers.write(Path("new"), [ledgers.plan([ledgers.point("00")])])
    assert_named(refused(lambda: cli.main(["export", "new", "--best", "out"])), ["no trial has completed"])


@pytest.mark.parametrize(
    ("options", "trial"), [(["--best", "out"], "00"), (["out", "--best"], "00"), (["01", "out"], "01")], ids=str
)
def test_export_takes_the_newest_checkpoint_of_a_trial(
    options: list[str], trial: str, folder: Path, called: list[tuple[Any, ...]]
) -> None:
    for step in (4, 12):
        checkpoint.path_of(folder / "trials" / trial, step).mkdir(parents=True)
    assert cli.main(["export", str(folder), *options]) == 0
    ((_, path, out, about),) = called
    assert (path, out) == (checkpoint.path_of(folder / "trials" / trial, 12), Path("out"))
    assert (about["trial"], about["return"], about["sweep"]) == (trial, 2.0, "toy")


def test_export_tells_a_value_that_is_not_finite_as_records_do(tmp_path: Path, called: list[tuple[Any, ...]]) -> None:
    evals = [ledgers.evaluation("00", 12, s, q_start=["inf", 1.0]) for s in (0, 1)]
    asked = ledgers.plan([ledgers.point("00")], objectives=[{"metric": "q_gap", "mode": "min"}])
    ledgers.write(tmp_path / "x", [asked, ledgers.session(), ledgers.start("00"), *evals, ledgers.end("00")])
    checkpoint.path_of(tmp_path / "x" / "trials" / "00", 12).mkdir(parents=True)
    assert cli.main(["export", str(tmp_path / "x"), "00", "out"]) == 0
    ((*_, about),) = called
    assert about["q_gap"] == "inf"


def test_export_takes_nothing_from_outside_the_folder(
    folder: Path, called: list[tuple[Any, ...]], refused: Callable[..., list[str]]
) -> None:
    checkpoint.path_of(Path("elsewhere"), 12).mkdir(parents=True)
    (folder / "trials").mkdir()
    (folder / "trials" / "00").symlink_to(Path("elsewhere").resolve())
    assert_named(refused(lambda: cli.main(["export", str(folder), "--best", "out"])), ["leads out of"])
    assert called == []


def test_a_run_is_a_folder_too(write_file: WriteFile, capsys: Capture) -> None:
    path = write_file(LENGTHS)
    assert train(path) == 0
    starts = [r["attempt"] for r in read("out").records if r["kind"] == "start"]
    assert starts == [1]
    assert all(r["episodes"] == 2 for r in read("out").records if r["kind"] == "eval")
    cut_after("train", step=10, seed=1)
    assert train(path) == 0
    assert [r["attempt"] for r in read("out").records if r["kind"] == "start"] == [1, 2]
    capsys.readouterr()
    assert cli.main(["status", "out", "--json"]) == 0
    assert strict(capsys.readouterr().out)["completed"] == 1
