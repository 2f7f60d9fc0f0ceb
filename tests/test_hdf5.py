import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from offrl_ray.data.hdf5 import FLAGS, inspect, load
from offrl_ray.errors import UsageError
from tests.conftest import ACTION, OBS, Length, WriteFile

File, Meta = h5py.File, dict[str, Any]


def replace(key: str, values: Any) -> Callable[[File, Meta], None]:
    def damage(f: File, meta: Meta) -> None:
        del f[key]
        f[key] = values

    return damage


def put(key: str, at: tuple[int, ...], value: float) -> Callable[[File, Meta], None]:
    def damage(f: File, meta: Meta) -> None:
        f[key][at] = value

    return damage


def drop(key: str) -> Callable[[File, Meta], None]:
    def damage(f: File, meta: Meta) -> None:
        del f[key]

    return damage


def both(*damages: Callable[[File, Meta], None]) -> Callable[[File, Meta], None]:
    def damage(f: File, meta: Meta) -> None:
        for d in damages:
            d(f, meta)

    return damage


def assert_named(problems: list[str], *words: str) -> None:
    """One of the problems holds all the words."""
    assert any(all(w in p for w in words) for p in problems), problems


# -- good files


def test_the_official_file_passes(official: Path) -> None:
    found = inspect(official)
    summary = found.summary()
    assert found.problems == []
    assert (summary["episodes"], summary["steps"], summary["success_rate"]) == (30, 5155, 1.0)
    assert (found.env_id, summary["control_mode"], summary["obs"]) == (
        "LiftPegUpright-v1",
        "pd_ee_delta_pose",
        {"state": [32]},
    )
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize("official", ["none.pd_joint_pos"], indirect=True)
def test_the_raw_official_file_is_refused_with_the_way_to_replay_it(official: Path) -> None:
    problems = inspect(official).problems
    assert_named(problems, official.name, "control mode", "'pd_joint_pos'", "'pd_ee_delta_pose'", "env.control_mode")
    assert_named(problems, "state observations", "traj_0")
    assert_named(problems, "offrl-ray data replay", "--control-mode pd_ee_delta_pose", "--reward-mode sparse")


def test_a_good_file_is_read_exactly(write_file: WriteFile) -> None:
    path = write_file([3, Length(5, (1, 4)), Length(2, ())])
    found = inspect(path)
    assert found.problems == []
    assert [e.name for e in found.episodes] == ["traj_0", "traj_1", "traj_2"]
    with h5py.File(path) as f:
        for e in found.episodes:
            g = f[e.name]
            for key, values in (("actions", e.action), ("obs", e.obs["state"]), ("rewards", e.reward)):
                assert values.dtype == np.float32
                np.testing.assert_array_equal(values, g[key][()])
            for key in FLAGS:
                np.testing.assert_array_equal(getattr(e, key), g[key][()])
    assert (found.summary()["steps"], found.summary()["success_rate"]) == (10, 2 / 3)


def test_trajectories_come_in_the_order_of_their_numbers(write_file: WriteFile) -> None:
    assert [e.name for e in inspect(write_file([2] * 12)).episodes] == [f"traj_{i}" for i in range(12)]


def test_the_digest_covers_both_files(write_file: WriteFile) -> None:
    path = write_file()
    before = inspect(path).digest
    beside = path.with_suffix(".json")
    beside.write_text(beside.read_text() + " ")
    assert len({before, inspect(path).digest, inspect(write_file([4])).digest}) == 3


def indices(values: Any, name: str = "traj_0") -> Callable[[File, Meta], None]:
    """The file of an environment with two actions, all 0 but those of `name`."""

    def damage(f: File, meta: Meta) -> None:
        meta["env_info"]["num_actions"] = 2
        for group in f.values():
            replace("actions", np.zeros((len(group["rewards"]), 1), np.float32))(group, meta)
        replace("actions", np.asarray(values, np.float32))(f[name], meta)

    return damage


NATIVE = {"control_mode": "native", "reward_mode": "native"}


def test_the_actions_of_a_discrete_environment_are_indices(write_file: WriteFile) -> None:
    found = inspect(write_file([4, 3], damage=indices([[0], [1], [1], [0]]), **NATIVE), **NATIVE)
    assert (found.problems, found.num_actions) == ([], 2)
    for values in ([[0], [2], [0], [0]], [[0], [0.5], [0], [0]], [[0], [-1], [0], [0]], [[0, 1]] * 4):
        problems = inspect(write_file([4, 3], damage=indices(values), **NATIVE), **NATIVE).problems
        assert_named(problems, "one index each, 0 to 1" if len(values[0]) == 1 else "actions", "traj_")


def test_a_native_success_need_not_be_a_termination(write_file: WriteFile) -> None:
    damage = both(indices(np.zeros((4, 1))), replace("traj_0/terminated", np.zeros(4, bool)))
    assert inspect(write_file([4, 3], damage=damage, **NATIVE), **NATIVE).problems == []


def test_modes_that_are_not_asked_for_are_the_files_own(write_file: WriteFile) -> None:
    path = write_file(control_mode="pd_joint_delta_pos", reward_mode="dense")
    assert inspect(path, control_mode=None, reward_mode=None).problems == []
    assert len(inspect(path, control_mode=None).problems) == len(inspect(path, reward_mode=None).problems) == 1
    wild = write_file(damage=put("traj_1/actions", (5, 3), -1.5), control_mode="pd_joint_delta_pos")
    assert_named(inspect(wild, control_mode=None).problems, "[-1, 1]", "traj_1[5, 3]")


# -- damaged content: file, trajectory, key and index are named

WIDE = np.zeros((4, ACTION + 1), np.float32)
DAMAGES: dict[str, tuple[Callable[[File, Meta], None], list[str]]] = {
    "rewards missing": (drop("traj_1/rewards"), ["rewards are missing", "`offrl-ray data replay`", "traj_1"]),
    "obs missing": (drop("traj_1/obs"), ["observations are missing", "`offrl-ray data replay`", "traj_1"]),
    "actions missing": (drop("traj_2/actions"), ["actions", "missing", "traj_2"]),
    **{f"{k} missing": (drop(f"traj_0/{k}"), [k, "missing", "traj_0"]) for k in FLAGS},
    "nan in obs": (put("traj_1/obs", (4, 2), np.nan), ["obs", "finite", "traj_1[4, 2]", "nan"]),
    "inf in actions": (put("traj_0/actions", (3, 6), np.inf), ["actions", "finite", "traj_0[3, 6]", "inf"]),
    "-inf in rewards": (put("traj_2/rewards", (1,), -np.inf), ["rewards", "finite", "traj_2[1]", "-inf"]),
    "infinite as float32": (
        replace("traj_0/obs", np.full((5, OBS), 1e300)),
        ["obs", "finite", "traj_0[0, 0]"],
    ),
    "obs as long as actions": (replace("traj_0/obs", np.zeros((4, OBS), np.float32)), ["obs", "T+1", "traj_0"]),
    "rewards too long": (replace("traj_0/rewards", np.zeros(5, np.float32)), ["rewards", "rows", "traj_0: (5,)"]),
    "flag too short": (replace("traj_0/success", np.zeros(3, bool)), ["success", "rows", "traj_0: (3,)"]),
    "rewards in a column": (replace("traj_0/rewards", np.ones((4, 1), np.float32)), ["rewards", "axes", "traj_0"]),
    "actions flat": (replace("traj_0/actions", np.zeros(4, np.float32)), ["actions", "axes", "traj_0"]),
    "actions a scalar": (replace("traj_0/actions", np.float32(1)), ["actions", "axes", "traj_0"]),
    "obs a scalar": (replace("traj_0/obs", np.float32(1)), ["obs", "axes", "traj_0"]),
    "actions wider": (replace("traj_1/actions", WIDE[[0] * 6]), ["first trajectory", "traj_1"]),
    "actions of no size": (
        both(*(replace(f"traj_{i}/actions", np.zeros((n, 0), "f4")) for i, n in enumerate((4, 6, 3)))),
        ["actions", "traj_0"],
    ),
    "obs of no size": (
        both(*(replace(f"traj_{i}/obs", np.zeros((n + 1, 0), "f4")) for i, n in enumerate((4, 6, 3)))),
        ["obs", "traj_0"],
    ),
    "integer actions": (replace("traj_0/actions", np.zeros((4, ACTION), np.int32)), ["actions", "floating", "int32"]),
    "float flags": (
        replace("traj_0/terminated", np.zeros(4, np.float32)),
        ["terminated", "boolean", "traj_0: float32"],
    ),
    "strings": (replace("traj_0/rewards", np.array([b"a"] * 4)), ["type", "refused", "traj_0/rewards"]),
    "objects": (replace("traj_0/rewards", ["a", "bc", "d", "e"]), ["type object", "refused", "traj_0/rewards"]),
    "compound": (replace("traj_0/rewards", np.zeros(4, [("a", "f4")])), ["type", "refused", "traj_0/rewards"]),
    "null dataspace": (replace("traj_0/rewards", h5py.Empty("f4")), ["traj_0"]),
    "named datatype": (lambda f, meta: f.__setitem__("traj_0/type", np.dtype("f8")), ["traj_0/type"]),
    "no steps": (replace("traj_1/actions", np.zeros((0, ACTION), np.float32)), ["at least one step", "traj_1"]),
    "action beyond 1": (put("traj_1/actions", (5, 3), -1.5), ["[-1, 1]", "traj_1[5, 3] = -1.5"]),
    "success without termination": (
        replace("traj_0/terminated", np.zeros(4, bool)),
        ["success", "terminated", "traj_0"],
    ),
    "all rewards zero": (
        both(*(replace(f"traj_{i}/rewards", np.zeros(n, np.float32)) for i, n in enumerate((4, 6, 3)))),
        ["all rewards are zero"],
    ),
    "no trajectories": (both(*(drop(f"traj_{i}") for i in range(3))), ["no trajectories"]),
    "a number that is none": (lambda f, meta: f.create_group("traj_²"), ["traj_²"]),
    "a name that is no text": (lambda f, meta: f.create_group(b"traj_1\xff"), ["demos.h5"]),
    "h5 has fewer": (drop("traj_2"), ["agree", "traj_2"]),
    "json has fewer": (lambda f, meta: meta["episodes"].pop(), ["agree", "traj_2"]),
    "elapsed_steps differ": (
        lambda f, meta: meta["episodes"][1].update(elapsed_steps=7),
        ["elapsed_steps", "traj_1: 7, 6"],
    ),
    "control mode": (
        lambda f, meta: meta["env_info"]["env_kwargs"].update(control_mode="pd_joint_pos"),
        ["control mode is 'pd_joint_pos'", "offrl-ray data replay", "env.control_mode"],
    ),
    "reward mode": (
        lambda f, meta: meta["env_info"]["env_kwargs"].update(reward_mode="dense"),
        ["reward mode is 'dense'", "'sparse'", "env.reward_mode"],
    ),
    "observation mode": (
        lambda f, meta: meta["env_info"]["env_kwargs"].update(obs_mode="rgb"),
        ["observation mode is 'rgb'", "offrl-ray data replay"],
    ),
    "no environment": (lambda f, meta: meta["env_info"].pop("env_id"), ["env_id"]),
    "no env_kwargs": (lambda f, meta: meta["env_info"].pop("env_kwargs"), ["demos.json", "env_kwargs"]),
    "no episodes": (lambda f, meta: meta.pop("episodes"), ["demos.json", "episodes"]),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_named_with_file_place_and_key(kind: str, write_file: WriteFile) -> None:
    damage, words = DAMAGES[kind]
    path = write_file(damage=damage)
    assert_named(inspect(path).problems, str(path), *words)


def test_all_problems_appear_at_once(write_file: WriteFile) -> None:
    kinds = ["nan in obs", "rewards too long", "float flags", "elapsed_steps differ", "reward mode", "json has fewer"]
    path = write_file(damage=both(*(DAMAGES[k][0] for k in kinds)))
    problems = inspect(path).problems
    for kind in kinds:
        assert_named(problems, *DAMAGES[kind][1])


def test_a_missing_key_does_not_hide_the_other_problems_of_its_trajectory(write_file: WriteFile) -> None:
    problems = inspect(write_file(damage=both(drop("traj_1/rewards"), put("traj_1/obs", (4, 2), np.nan)))).problems
    assert_named(problems, "rewards are missing", "traj_1")
    assert_named(problems, "obs", "finite", "traj_1[4, 2]")


def test_a_thousand_places_make_one_line(write_file: WriteFile) -> None:
    problems = inspect(write_file([2] * 30, damage=both(*(drop(f"traj_{i}/rewards") for i in range(30))))).problems
    assert len(problems) == 1
    assert_named(problems, "traj_0, traj_1, traj_2 and 27 more")


def test_load_names_the_problems_of_every_file(write_file: WriteFile) -> None:
    paths = [str(write_file(name=n, damage=DAMAGES[k][0])) for n, k in (("a", "nan in obs"), ("b", "reward mode"))]
    with pytest.raises(UsageError) as e:
        load([*paths, str(write_file(name="c"))])
    assert len(e.value.problems) == 2
    assert_named(e.value.problems, paths[0], "finite")
    assert_named(e.value.problems, paths[1], "reward mode")


def test_files_of_two_environments_are_refused(write_file: WriteFile) -> None:
    with pytest.raises(UsageError, match="one environment, but they come from A-v1, B-v1"):
        load([str(write_file(name="a", env_id="A-v1")), str(write_file(name="b", env_id="B-v1"))])


def test_files_of_two_widths_are_refused(write_file: WriteFile) -> None:
    wide = both(*(replace(f"traj_{i}/obs", np.ones((n + 1, OBS + 1), "f4")) for i, n in enumerate((4, 6, 3))))
    with pytest.raises(UsageError, match="size"):
        load([str(write_file(name="a")), str(write_file(name="b", damage=wide))])


def test_a_file_of_another_environment_than_the_configs_is_refused(write_file: WriteFile) -> None:
    assert_named(inspect(write_file(), env_id="Other-v1").problems, "'Toy-v1'", "'Other-v1'", "env.id")


# -- the json


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"env_info":[]}', b'{"env_info":{"env_kwargs":1}}', b"[" * 100_000],
    ids=lambda c: repr(c[:20]),
)
def test_a_broken_json_is_named(content: bytes, write_file: WriteFile) -> None:
    path = write_file()
    path.with_suffix(".json").write_bytes(content)
    assert_named(inspect(path).problems, str(path), "demos.json")


def test_a_missing_json_is_named(write_file: WriteFile) -> None:
    path = write_file()
    path.with_suffix(".json").unlink()
    assert_named(inspect(path).problems, str(path), "demos.json", "beside")


def test_a_folder_in_place_of_the_json_is_named(write_file: WriteFile) -> None:
    path = write_file()
    path.with_suffix(".json").unlink()
    path.with_suffix(".json").mkdir()
    assert_named(inspect(path).problems, str(path), "demos.json")


@pytest.mark.parametrize("path", ["nowhere.h5", "", "/", ".", "a" * 300 + ".h5", "a\0b.h5", "demos.h5/x.h5"])
def test_a_path_that_is_no_file_is_named(
    path: str, write_file: WriteFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file()
    monkeypatch.chdir(tmp_path)
    assert_named(inspect(path).problems, "no such file")


# -- files that want more than to be read


def external_link(f: File, meta: Meta) -> None:
    del f["traj_0/obs"]
    f["traj_0/obs"] = h5py.ExternalLink("secret.h5", "/secret")


def soft_link(f: File, meta: Meta) -> None:
    del f["traj_0/obs"]
    f["traj_0/obs"] = h5py.SoftLink("/traj_1/obs")


def virtual(f: File, meta: Meta) -> None:
    layout = h5py.VirtualLayout((5, OBS), np.float32)
    layout[:] = h5py.VirtualSource("secret.h5", "secret", (5, OBS), np.float32)
    del f["traj_0/obs"]
    f.create_virtual_dataset("traj_0/obs", layout)


def external_storage(f: File, meta: Meta) -> None:
    del f["traj_0/obs"]
    where = [("secret.bin", 0, 5 * OBS * 4)]
    f.create_dataset("traj_0/obs", (5, OBS), np.float32, external=where)


@pytest.mark.parametrize("damage", [external_link, soft_link, virtual, external_storage], ids=lambda d: d.__name__)
def test_what_leads_out_of_the_file_is_refused_and_nothing_is_read(
    damage: Callable[[File, Meta], None], write_file: WriteFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    secret = np.full((5, OBS), 42, np.float32)
    with h5py.File("secret.h5", "w") as f:
        f["secret"] = secret
    Path("secret.bin").write_bytes(secret.tobytes())
    path = write_file(damage=damage)
    with h5py.File(path) as f:
        assert damage is soft_link or (f["traj_0/obs"][()] == 42).all()  # it would be read
    read: list[str] = []
    original = h5py.Dataset.__getitem__
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda d, *a: (read.append(d.name), original(d, *a))[1])
    found = inspect(path)
    assert_named(found.problems, str(path), "refused", "traj_0/obs")
    assert found.episodes == ()
    assert read == []


@pytest.mark.timeout(60)
def test_four_declared_terabytes_are_refused_at_once_and_in_no_memory(write_file: WriteFile) -> None:
    def huge(f: File, meta: Meta) -> None:
        del f["traj_0/obs"]
        f.create_dataset("traj_0/obs", (2**36, 16), np.float32, chunks=(1024, 16))

    path = write_file(damage=huge)
    inspect(path)
    tracemalloc.start()
    problems = inspect(path).problems
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert_named(problems, str(path), "4096.0 GiB", "budget", "split")
    assert peak < 2**21


def test_the_budget_counts_what_would_be_read(write_file: WriteFile) -> None:
    steps = 4 + 6 + 3
    size = 4 * (steps * ACTION + (steps + 3) * OBS + steps + 3 * steps)
    assert inspect(write_file(), budget=size).problems == []
    assert_named(inspect(write_file(), budget=size - 1).problems, "budget")


def test_a_group_that_holds_itself_is_walked_once(write_file: WriteFile) -> None:
    def cycle(f: File, meta: Meta) -> None:
        f["traj_0/self"] = f["traj_0"]

    inspect(write_file(damage=cycle))


def test_deep_groups_are_no_crash(write_file: WriteFile) -> None:
    inspect(write_file(damage=lambda f, meta: f.create_group("/".join(["deep"] + ["g"] * 1500))))


@pytest.mark.timeout(60)  # every path took 126 s
def test_a_group_with_many_names_is_walked_once(write_file: WriteFile) -> None:
    """Each of 13 groups holds the next under two names: 2^13 paths."""

    def lattice(f: File, meta: Meta) -> None:
        below = f.create_group("bottom")
        for i in range(13):
            above = f.create_group(f"level_{i}")
            above["a"] = above["b"] = below
            below = above

    path = write_file(damage=lattice)
    inspect(path)


# -- damaged bytes


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_named(share: float, write_file: WriteFile) -> None:
    path = write_file([20, 20])
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert_named(inspect(path).problems, str(path), "truncated or damaged")


@pytest.mark.parametrize("seed", range(10))
def test_no_flipped_or_cut_bytes_raise_anything(seed: int, write_file: WriteFile) -> None:
    path, rng, raised = write_file([2, 3]), random.Random(seed), list[str]()
    content = path.read_bytes()
    for _ in range(15):
        damaged = bytearray(content)
        for _ in range(rng.choice([1, 1, 8, 64])):
            damaged[rng.randrange(len(damaged))] = rng.choice([0, 255, rng.randrange(256)])
        path.write_bytes(damaged[: rng.choice([len(damaged)] * 4 + [rng.randrange(len(damaged))])])
        try:
            inspect(path).summary()
        except Exception as e:
            raised.append(f"{type(e).__name__}: {str(e)[:60]}")
    assert raised == []


def test_no_flipped_bytes_of_the_json_raise_anything(write_file: WriteFile) -> None:
    path, rng, raised = write_file([2]), random.Random(0), list[str]()
    beside = path.with_suffix(".json")
    content = beside.read_bytes()
    for _ in range(80):
        damaged = bytearray(content)
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        beside.write_bytes(damaged)
        try:
            inspect(path).summary()
        except Exception as e:
            raised.append(f"{type(e).__name__}: {str(e)[:60]}")
    assert raised == []
