"""`data fetch` and the reading of raw files, without a simulator: what comes from a network, and what stays."""

import errno
import json
import threading
import urllib.error
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from offrl_ray import cli
from offrl_ray.collect import official, raw
from offrl_ray.collect.parts import Ask
from offrl_ray.collect.replayed import executed
from offrl_ray.envs import maniskill
from offrl_ray.errors import UsageError
from tests.conftest import write_demonstrations

TASK = "PickCube-v1"
RL = f"{TASK}/rl/trajectory.none.pd_ee_delta_pose.physx_cuda"


def make_raw(folder: Path, name: str, damage: Any = None, **env_kwargs: Any) -> Path:
    """A raw file, with what its maker left out."""

    def strip(f: h5py.File, meta: dict[str, Any]) -> None:
        for group in f.values():
            del group["obs"], group["rewards"]
        for e in meta["episodes"]:
            e |= {"episode_seed": 7 + e["episode_id"], "reset_kwargs": {"seed": [3]}}
        meta["source_type"] = "rl"
        if damage:
            damage(f, meta)

    path = folder / f"{name}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_demonstrations(path.parent, name=path.stem, damage=strip, env_id=TASK, obs_mode="none", **env_kwargs)


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """A task's folder as the official archive has it."""
    cuda = {"sim_backend": "physx_cuda", "num_envs": 1024}
    make_raw(tmp_path / "made", RL, **cuda)
    make_raw(tmp_path / "made", f"{TASK}/rl/trajectory.none.pd_joint_delta_pos.physx_cuda", control_mode="j", **cuda)
    make_raw(tmp_path / "made", f"{TASK}/motionplanning/trajectory", control_mode="pd_joint_pos")
    (tmp_path / "made" / TASK / "rl" / "sample.h5").touch()
    return tmp_path / "made" / TASK


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    maniskill.load()
    monkeypatch.setattr("mani_skill.DEMO_DIR", tmp_path / "cache" / "demos")
    return tmp_path / "cache" / "demos"


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were handed to the replayer."""
    seen: list[Path] = []
    monkeypatch.setattr(official, "replay", lambda path, out, ask, progress: seen.append(path))
    return seen


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes | None], list[str]]]:
    """A web server in the place of the official one; gives the list of the paths that were asked for."""
    asked: list[str] = []
    web = tmp_path / "web"

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(web)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def start(content: bytes | None) -> list[str]:
        web.mkdir()
        if content is not None:
            (web / f"{TASK}.zip").write_bytes(content)
        url = f"http://127.0.0.1:{server.server_port}/{TASK}.zip?download=true"
        download_from(url, monkeypatch)
        return asked

    yield start
    server.shutdown()
    thread.join()
    server.server_close()


def download_from(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    maniskill.load()
    from mani_skill.utils import download_demo

    monkeypatch.setitem(download_demo.DATASET_SOURCES, TASK, download_demo.DemoDatasetSource(url))


def packed(folder: Path) -> bytes:
    """The folder and all in it."""
    archive = folder.parent / "made.zip"
    with zipfile.ZipFile(archive, "w") as z:
        for p in folder.rglob("*"):
            z.write(p, p.relative_to(folder.parent))
    return archive.read_bytes()


def fetch(out: Path, source: str | None = None, **ask: Any) -> Any:
    return official.fetch(TASK, out, Ask(**ask), source, print)


# -- downloads


def test_a_download_is_kept_and_used_again_without_a_network(
    serve: Any, download: Path, cache: Path, replayed: list[Path], tmp_path: Path
) -> None:
    asked = serve(packed(download))
    for _ in range(2):
        fetch(tmp_path / "out.h5")
    assert len(asked) == 1
    assert replayed == [cache / f"{RL}.h5"] * 2
    assert [p.name for p in cache.iterdir()] == [TASK]
    assert (cache / f"{RL}.json").read_bytes() == download.parent.joinpath(f"{RL}.json").read_bytes()


def cut_off(*args: Any, **kwargs: Any) -> Any:
    raise urllib.error.ContentTooShortError("got only 3 out of 9 bytes", None)  # type: ignore[arg-type]


def half(work: str) -> None:
    """An archive whose last file is damaged."""
    Path(work, TASK, "rl").mkdir(parents=True)
    raise zipfile.BadZipFile("bad CRC")


@pytest.mark.parametrize("content", [None, b"<html>log in</html>"], ids=["404", "no zip"])
def test_what_cannot_be_downloaded_leaves_nothing_and_offers_the_other_ways(
    content: bytes | None, serve: Any, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(content)
    out = tmp_path / "out.h5"
    assert cli.main(["data", "fetch", TASK, "--out", str(out)]) == 1
    err = capsys.readouterr().err
    assert f"/{TASK}.zip could not be downloaded: " in err
    assert ("404" if content is None else "zip") in err
    assert f"offrl-ray collect --env-id {TASK} --episodes 200 --out {out}" in err
    assert f"mani_skill.utils.download_demo {TASK}" in err
    assert f"offrl-ray data replay FILE.h5 --out {out}" in err
    assert list(cache.iterdir()) == []
    assert not out.exists()


@pytest.mark.parametrize("broken", ["retrieve", "unpack", "interrupt", "other"])
def test_an_interrupted_download_leaves_nothing_half(
    broken: str, serve: Any, download: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken == "other":
        download = download.rename(download.with_name("Other-v1"))
    serve(packed(download))
    expected: type[BaseException] = official.FetchError
    if broken == "retrieve":
        monkeypatch.setattr("urllib.request.urlretrieve", cut_off)
    if broken == "unpack":
        monkeypatch.setattr(zipfile.ZipFile, "extractall", lambda z, folder: half(folder))
    if broken == "interrupt":
        expected = KeyboardInterrupt

        def interrupt(z: Any, folder: str) -> None:
            Path(folder, TASK).mkdir()
            raise KeyboardInterrupt

        monkeypatch.setattr(zipfile.ZipFile, "extractall", interrupt)
    with pytest.raises(expected):
        fetch(tmp_path / "out.h5")
    assert list(cache.iterdir()) == []


def test_a_full_disk_is_no_closed_network(
    serve: Any, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    serve(b"")
    monkeypatch.setattr("urllib.request.urlretrieve", full)
    assert cli.main(["data", "fetch", TASK, "--out", str(tmp_path / "out.h5")]) == 74
    assert "the disk is full" in capsys.readouterr().err


def test_a_server_that_says_nothing_is_given_up(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/{TASK}.zip"
        download_from(url, monkeypatch)
        monkeypatch.setattr(official, "PATIENCE", 0.5)
        assert cli.main(["data", "fetch", TASK, "--out", str(tmp_path / "out.h5")]) == 1
    assert "timed out" in capsys.readouterr().err
    assert socket.getdefaulttimeout() is None


def test_a_task_without_demonstrations_is_refused_before_any_download(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "fetch", "PickCube-v2", "--out", str(tmp_path / "no" / "out.txt")]) == 2
    err = capsys.readouterr().err
    for word in ("3 problems", "'PickCube-v2'; did you mean PickCube-v1", "end in .h5", "existing folder"):
        assert word in err


def test_a_task_without_an_expert_is_not_offered_collecting() -> None:
    assert "offrl-ray collect" not in official._otherwise("RollBall-v1", "host/x.zip", "why", Path("o.h5"))


# -- which file


@pytest.mark.parametrize(
    ("control_mode", "source", "name"),
    [
        ("pd_ee_delta_pose", None, f"{RL}.h5"),
        ("pd_ee_delta_pose", "motionplanning", f"{TASK}/motionplanning/trajectory.h5"),
        ("pd_ee_delta_pos", None, f"{TASK}/motionplanning/trajectory.h5"),
    ],
)
def test_the_file_that_needs_the_least_change_is_taken(
    control_mode: str, source: str | None, name: str, download: Path
) -> None:
    assert official.choose(download, control_mode, source) == download.parent / name


def test_a_source_that_was_not_downloaded_is_refused(download: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--source .* 'teleop'; known: motionplanning, rl"):
        official.choose(download, "pd_ee_delta_pose", "teleop")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="remove it, and it is downloaded again"):
        official.choose(tmp_path / "empty", "pd_ee_delta_pose", None)


# -- raw files


def test_only_facts_are_read_of_a_raw_file(tmp_path: Path) -> None:
    found = raw.read(make_raw(tmp_path, "raw", sim_backend="gpu", shader_dir="/etc"))
    assert (found.env_id, found.sim_backend, found.kind) == (TASK, "physx_cuda", "rl")
    assert found.episodes == (raw.Taken(0, 7, 4, True), raw.Taken(1, 8, 6, False), raw.Taken(2, 9, 3, True))


@pytest.mark.parametrize(
    ("named", "backend"),
    [
        ({"sim_backend": "auto"}, "physx_cpu"),
        ({"sim_backend": "auto", "num_envs": 1024}, "physx_cuda"),
        ({"sim_backend": "cpu"}, "physx_cpu"),
        ({"sim_backend": "physx_gpu"}, "physx_cuda"),
    ],
)
def test_older_names_of_simulators_are_known(named: dict[str, Any], backend: str, tmp_path: Path) -> None:
    assert raw.read(make_raw(tmp_path, "raw", **named)).sim_backend == backend


def no_states(f: h5py.File, meta: dict[str, Any]) -> None:
    del f["traj_1/env_states"]


def outside(f: h5py.File, meta: dict[str, Any]) -> None:
    f["traj_2/env_states/actors/peg2"] = h5py.ExternalLink("/etc/passwd", "/")


def texts(f: h5py.File, meta: dict[str, Any]) -> None:
    f["traj_0/env_states/actors/peg2"] = np.array([b"a"])


def no_seed(f: h5py.File, meta: dict[str, Any]) -> None:
    meta["episodes"][1]["episode_seed"] = None


def other_mode(f: h5py.File, meta: dict[str, Any]) -> None:
    meta["episodes"][2]["control_mode"] = "pd_joint_pos"


def one_too_many(f: h5py.File, meta: dict[str, Any]) -> None:
    meta["episodes"].append({"episode_id": 9, "elapsed_steps": 1})


def native(f: h5py.File, meta: dict[str, Any]) -> None:
    meta["env_info"]["env_kwargs"]["control_mode"] = "native"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (no_states, ["env_states are missing", "traj_1"]),
        (outside, ["in the file itself", "traj_2/env_states/actors/peg2"]),
        (texts, ["in the file itself", "traj_0/env_states/actors/peg2"]),
        (no_seed, ["episode_seed", "traj_1: None"]),
        (other_mode, ["one control mode"]),
        (one_too_many, ["must agree", "traj_9"]),
        (native, ["gymnasium"]),
    ],
)
def test_a_raw_file_that_cannot_be_replayed_is_refused(damage: Any, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as e:
        raw.read(make_raw(tmp_path, "raw", damage))
    for word in words:
        assert word in str(e.value)


def test_a_damaged_raw_file_is_refused(tmp_path: Path) -> None:
    path = make_raw(tmp_path, "raw")
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UsageError, match="truncated or damaged"):
        raw.read(path)
    path.with_suffix(".json").write_text(json.dumps({"episodes": []}))
    with pytest.raises(UsageError, match="not ManiSkill's"):
        raw.read(path)


# -- actions


def test_actions_are_limited_as_the_controllers_do() -> None:
    a = np.array([[2, -0.5, 0, 3, 4, 0, -7], [0.5, 0, 0, 0.9, 0.9, 0, 1]], np.float32)
    limited = [[1, -0.5, 0, 0.6, 0.8, 0, -1], [0.5, 0, 0, 0.9, 0.9, 0, 1]]
    np.testing.assert_allclose(executed(a, "pd_ee_delta_pose"), limited, rtol=1e-6)
    np.testing.assert_array_equal(executed(a, "pd_joint_delta_pos")[0], [1, -0.5, 0, 1, 1, 0, -1])
