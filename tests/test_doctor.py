"""`offrl-ray doctor`: every check in a bad world, and the whole of it here."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from offrl_ray import cli, doctor
from offrl_ray.distributed import address, drive, preflight, session
from offrl_ray.doctor import cluster, files, machine, packages, rays, simulator
from offrl_ray.doctor.check import Check, GiB, fail, ok
from offrl_ray.errors import UsageError
from tests.conftest import WriteFile

CARD = machine.Card("NVIDIA X", 1024, 81920, "3", "550.54")
HERE = {"offrl-ray": "0.1.0", "ray": "2.60.0", "torch": "2.13.0+cpu", "python": "3.11.7", "code": "abc"}
TOKEN = "0123456789abcdef" * 4


def only(checks: list[Check], status: str, *words: str) -> None:
    """There is one check, and it says this."""
    (check,) = checks
    assert check.status == status, check
    for word in words:
        assert word in str(check)


# -- versions


def test_an_old_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    only(packages.python(), "ok", "3.")
    monkeypatch.setattr(packages.platform, "python_version", lambda: "3.9.2")
    only(packages.python(), "fail", "3.9.2, needed is 3.11")


def test_packages_are_held_against_what_the_project_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["torch>=2.13.0", "ray[train,tune]>=2.60.0", "h5py>=3.16", "numpy>=2.4.6", 'ray[default]>=9; extra == "x"']
    here = {"offrl-ray": "0.1", "torch": "2.13.0+cpu", "ray": "2.60.1", "h5py": "3.16.0", "numpy": "2.10.0rc1"}

    def version(name: str) -> str:
        if name not in here:
            raise metadata.PackageNotFoundError(name)
        return here[name]

    monkeypatch.setattr(metadata, "requires", lambda name: needs)
    monkeypatch.setattr(metadata, "version", version)
    only(packages.installed(), "ok", "the 4 that it needs")
    here["ray"] = "2.9.0"
    del here["h5py"]
    old, missing = packages.installed()
    only([old], "fail", "ray", "2.9.0, needed is 2.60.0", "pip install --constraint constraints.txt 'ray>=2.60.0'")
    only([missing], "fail", "h5py", "missing")


@pytest.mark.parametrize(
    ("cuda", "sees", "hidden", "status", "words"),
    [
        (None, False, None, "fail", ["a CPU build, sees none of 1 GPU", "CUDA build"]),
        ("13.0", False, None, "fail", ["CUDA 13.0", "driver 550.54"]),
        ("13.0", False, "", "fail", ["CUDA_VISIBLE_DEVICES is ''", "unset"]),
        ("13.0", True, None, "ok", []),
    ],
)
def test_a_gpu_that_torch_does_not_see_is_told(
    cuda: str | None, sees: bool, hidden: str | None, status: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: sees)
    monkeypatch.setattr(machine, "cards", lambda: [CARD])
    only(packages.torch_build(), status, *words)
    monkeypatch.setattr(machine, "cards", list)
    only(packages.torch_build(), "ok")


# -- the machine


def test_gpus_are_read_as_the_driver_tells_them(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (
        "NVIDIA H200, 512, 143771, 0, 570.1\nNVIDIA GB10, [N/A], [N/A], 97, 570.1\nNVIDIA X, 9000, 10000, 80, 570.1\n"
    )
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(machine, "output", lambda command, seconds: lines)
    free, shared, busy = machine.gpus()
    only([free], "ok", "NVIDIA H200, 0.5 of 140.4 GiB in use", "driver 570.1")
    only([shared], "ok", "NVIDIA GB10")
    only([busy], "warn", "8.8 of 9.8 GiB in use", "CUDA_VISIBLE_DEVICES without 2")
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    monkeypatch.setattr(machine.Path, "exists", lambda path: True)
    only(machine.gpus(), "warn", "/dev/nvidia0 is there, but no nvidia-smi")


@pytest.mark.parametrize(
    ("threads", "mine", "status", "words"),
    [
        (None, 8, "ok", ["8, OMP_NUM_THREADS is not set"]),
        ("1", 8, "ok", []),
        ("16", 8, "warn", ["export OMP_NUM_THREADS=1"]),
        ("many", 8, "warn", ["export OMP_NUM_THREADS=1"]),
        ("1", 2, "warn", ["may use 2", "--num-cpus 2"]),
    ],
)
def test_cores_that_cannot_be_used_are_told(
    threads: str | None, mine: int, status: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(mine)))
    only(machine.cores(), status, *words)


@pytest.mark.parametrize(("free", "status"), [(0.5, "fail"), (2, "warn"), (8, "ok")])
def test_little_memory_is_told(free: float, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: (16 * GiB, int(free * GiB)))
    only(machine.memory(), status, f"{free:.1f} of 16.0 GiB free")


def test_the_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """meminfo speaks of the whole machine."""
    texts = {"/proc/meminfo": f"MemTotal: {64 * 2**20} kB\nMemAvailable: {60 * 2**20} kB\n"}
    texts |= {"/sys/fs/cgroup/memory.max": str(4 * GiB), "/sys/fs/cgroup/memory.current": str(GiB)}
    monkeypatch.setattr(machine.Path, "read_text", lambda path: texts[str(path)])
    assert machine.memory_bytes() == (4 * GiB, 3 * GiB)
    texts["/sys/fs/cgroup/memory.max"] = "max\n"
    assert machine.memory_bytes() == (64 * GiB, 60 * GiB)


def test_a_small_shared_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: (10 * GiB, 8 * GiB))
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda p: SimpleNamespace(free=2**26))
    only(machine.shared_memory(), "warn", "0.1 GiB free", "Ray would take 3.0", "--shm-size=3g")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda p: SimpleNamespace(free=4 * GiB))
    only(machine.shared_memory(), "ok")


# -- places


@pytest.mark.parametrize(
    ("free", "status", "word"), [(0.1, "fail", "make room"), (2, "warn", "--keep-top"), (50, "ok", "")]
)
def test_a_full_disk_is_told(
    free: float, status: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda p: SimpleNamespace(free=free * GiB))
    only([files.disk("results", tmp_path / "not" / "yet")], status, f"{free:.1f} GiB free in {tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    only([files.disk("results", Path("/proc/offrl"))], "fail", "/proc cannot be written to")


def test_a_url_is_no_disk_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("offrl_ray.objects.Store.problems", lambda self: [])
    results, cache = files.disks("s3://bucket/sweeps")
    only([results], "ok", "s3://bucket/sweeps can be written to")
    assert str(tmp_path) in cache.found
    monkeypatch.setattr("offrl_ray.objects.Store.problems", lambda self: ["--out: it refuses"])
    only([files.disks("s3://bucket/sweeps")[0]], "fail", "it refuses")


def test_a_data_file_is_examined_in_its_own_modes(write_file: WriteFile, tmp_path: Path) -> None:
    path = write_file(control_mode="pd_joint_delta_pos", reward_mode="dense")
    only(files.trajectories(path), "ok", "3 episodes of Toy-v1, pd_joint_delta_pos, dense, physx_cpu", "67% succeed")
    only(files.trajectories(tmp_path / "none.h5"), "fail", "no such file")


# -- the simulator


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import os; os.kill(os.getpid(), 11)", "SAPIEN crashed with SIGSEGV"),
        ("import time; time.sleep(60)", "no step within 1 s"),
        ("raise RuntimeError('no device')", "RuntimeError: no device"),
        ("raise SystemExit(3)", "exit code 3, without a word"),
    ],
)
def test_a_simulator_that_does_not_step_is_told(code: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = subprocess.run
    monkeypatch.setattr(simulator.subprocess, "run", lambda command, **how: run([sys.executable, "-c", code], **how))
    monkeypatch.setattr(simulator, "SECONDS", 1.0 if "sleep" in code else 60.0)
    monkeypatch.setattr(machine, "cards", list)
    only(simulator.simulators(), "fail", f"PushCube-v1 does not step: {why}", "pip install")


def test_a_gpu_is_stepped_on_too(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"physx_cpu": {"renders": True, "speed": 300.0}, "physx_cuda": {"failed": "no CUDA"}}
    monkeypatch.setattr(simulator, "stepping", found.__getitem__)
    monkeypatch.setattr(machine, "cards", lambda: [CARD])
    cpu, cuda, renderer = simulator.simulators()
    only([cpu], "ok", "300 steps a second")
    only([cuda], "warn", "no CUDA", "env.sim_backend=physx_cpu")
    only([renderer], "ok", "can render")


# -- Ray


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without a token and without Ray's variables."""
    for name in [n for n in os.environ if n.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def write_token(path: Path, text: str = TOKEN, mode: int = 0o600, folder: int = 0o700) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    path.parent.chmod(folder)
    return path


def test_the_tokens_place_and_modes(home: Path) -> None:
    only(rays.token(), "warn", "none yet", "ray get-auth-token --generate")
    path = write_token(home / ".ray" / "auth_token")
    only(rays.token(), "ok", str(path), "for this user alone")
    write_token(path, mode=0o644)
    only(rays.token(), "fail", "mode 644", f"chmod 600 {path}")
    write_token(path, folder=0o755)
    only(rays.token(), "fail", "mode 755", f"chmod 700 {path.parent}")


def test_variables_that_contradict_each_other(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "mine"))
    only(rays.token(), "fail", f"RAY_AUTH_TOKEN_PATH is {home}/mine, which holds none")
    write_token(home / "mine", folder=0o755)
    write_token(home / ".ray" / "auth_token")
    only(rays.token(), "ok", f"{home}/mine")
    write_token(home / ".ray" / "auth_token", "another")
    mine, other = rays.token()
    only([mine], "ok")
    only([other], "warn", f"{home}/.ray/auth_token holds another one than {home}/mine")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "third")
    assert [c.status for c in rays.token()] == ["ok", "warn", "warn"]
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    only(rays.token(), "fail", "RAY_AUTH_MODE is 'disabled'", "unset RAY_AUTH_MODE")


def test_the_token_itself_is_never_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_token(home / ".ray" / "auth_token", "another" + TOKEN, mode=0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert TOKEN not in str(rays.token())


def test_rays_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SimpleNamespace(used=10, total=100)
    monkeypatch.setattr(rays.shutil, "disk_usage", lambda p: disk)
    monkeypatch.setattr(rays, "LONGEST", len(f"{home}/{rays.SOCKET}"))
    monkeypatch.setenv("RAY_TMPDIR", str(home))
    only(rays.folder(), "ok", f"{home}, 10% of its disk")
    disk.used = 97
    only(rays.folder(), "warn", "beyond 95% Ray writes no objects")
    home.chmod(0o755)
    (home / "ray").mkdir()
    (home / "ray").chmod(0o777)
    only(rays.folder(), "warn", f"{home}/ray is open to other users (mode 777)", f"chmod 700 {home}/ray")
    home.chmod(0o700)
    only(rays.folder(), "warn", "95%")
    monkeypatch.setenv("RAY_TMPDIR", f"{home}/x")
    only(rays.folder(), "fail", "too long for a socket's path")
    monkeypatch.setattr(rays, "LONGEST", 500)
    only(rays.folder(), "fail", "cannot be written to")


def test_a_port_that_is_taken_is_told_with_whose_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
        monkeypatch.setattr(rays, "PORTS", {port: "a head"})
        only(rays.ports(), "warn", f"port {port}", f"process {os.getpid()} (", "give a head another port")
        monkeypatch.setattr(rays, "listening", lambda process: [])
        only(rays.ports(), "warn", "another user's process")
        monkeypatch.undo()
        monkeypatch.setattr(rays, "PORTS", {port: "a head"})
        monkeypatch.setattr(rays, "processes", lambda: [(Path("/proc/self"), ["/x/ray/gcs/gcs_server"])])
        only(rays.ports(), "ok")
    only(rays.ports(), "ok", f"{port} are free")


def test_a_machine_on_which_nothing_may_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(socket.socket):
        def listen(self, *args: Any) -> None:
            raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(rays.socket, "socket", Closed)
    only(rays.ports(), "fail", "no program may listen here: Operation not permitted")


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        ("open", "fail", ["is open", "RAY_AUTH_MODE=token"]),
        ("closed", "ok", ["wants a token"]),
        ("silent", "warn", ["does not answer"]),
    ],
)
def test_a_ray_that_runs_here_is_asked_without_a_token(
    answer: str, status: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def ask(at: str, token: str | None) -> str:
        asked.append((at, token))
        return answer

    monkeypatch.setattr(address, "ask", ask)
    own = [(Path("/proc/1"), ["python"]), (Path("/proc/2"), [])]
    monkeypatch.setattr(rays, "processes", lambda: own)
    only(rays.running(), "ok", "none runs here")
    monkeypatch.setattr(
        rays, "processes", lambda: [*own, (Path("/proc/3"), ["/a/gcs_server", "--gcs_server_port=6380"])]
    )
    only(rays.running(), status, "6380", *words)
    assert asked == [("127.0.0.1:6380", None)]


def test_a_ray_of_a_driver_is_found_by_what_it_listens_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "ask", lambda at, token: "open" if at.endswith(":41") else "silent")
    monkeypatch.setattr(rays, "processes", lambda: [(Path("/proc/3"), ["/a/gcs_server", "--gcs_server_port=0"])])
    monkeypatch.setattr(rays, "listening", lambda process: [40, 41])
    only(rays.running(), "fail", "127.0.0.1:41 is open")


# -- a cluster


def node(**changes: Any) -> preflight.Node:
    of: dict[str, Any] = {"name": "n1", "address": "10.0.0.1", "resources": {"CPU": 8.0}, "versions": dict(HERE)}
    return preflight.Node(**{**of, "gpus": [], "sees": {"/shared": True}, **changes})


def test_a_node_like_this_one_is_well() -> None:
    only(cluster.judge(node(), HERE, Path("/shared")), "ok", "node n1", "10.0.0.1: 8 CPU, 0 GPU")
    gpus = node(resources={"CPU": 8.0, "GPU": 2.0}, gpus=["NVIDIA H200"] * 2)
    only(cluster.judge(gpus, HERE, None), "ok", "8 CPU, 2 GPU, NVIDIA H200, NVIDIA H200")


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"versions": {}}, "fail", ["10.0.0.1: does not answer"]),
        ({"versions": HERE | {"code": "xyz"}}, "fail", ["code xyz, here abc", "install the same there"]),
        ({"versions": HERE | {"ray": "2.59.0"}}, "fail", ["ray 2.59.0, here 2.60.0"]),
        (
            {"versions": {"python": "3.11.7", "offrl-ray": "none (ImportError)"}},
            "fail",
            ["offrl-ray none (ImportError)"],
        ),
        ({"versions": HERE | {"torch": "2.13.0+cu130"}}, "warn", ["torch 2.13.0+cu130, here 2.13.0+cpu"]),
        ({"sees": {"/shared": False}}, "fail", ["does not see /shared", "storage that all nodes share"]),
        ({"resources": {"GPU": 1.0}}, "warn", ["0 CPU, 1 GPU, but nvidia-smi shows no GPU"]),
    ],
)
def test_what_is_wrong_with_a_node_is_told(changes: dict[str, Any], status: str, words: list[str]) -> None:
    checks = cluster.judge(node(**changes), HERE, Path("/shared"))
    only(checks[:1], status, *words)


def test_a_cluster_is_joined_and_every_node_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    @contextmanager
    def joined(found: address.Found, namespace: str) -> Iterator[None]:
        asked.append(found.address)
        yield

    def nodes(paths: Any = ()) -> list[preflight.Node]:
        asked.append(paths)
        return [node(sees=dict.fromkeys(map(str, paths), True)), node(name="n2", versions={})]

    monkeypatch.setattr(session, "ray_session", joined)
    monkeypatch.setattr(preflight, "nodes", nodes)
    monkeypatch.setattr(drive, "versions", lambda: HERE)
    head, first, second = cluster.nodes("10.0.0.1:6379", str(tmp_path / "not" / "yet"))
    only([head], "ok", "10.0.0.1:6379 (--address)")
    only([first], "ok", "node n1")
    only([second], "fail", "node n2", "does not answer")
    assert asked == ["10.0.0.1:6379", [tmp_path]]
    cluster.nodes("10.0.0.1:6379", "s3://bucket/x")
    assert asked[3] == []


def test_a_cluster_that_may_not_be_joined_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(found: address.Found, namespace: str) -> Any:
        raise UsageError(["no token", "another Ray"])

    monkeypatch.setattr(session, "ray_session", refuse)
    assert cluster.nodes("10.0.0.1:6379", "runs") == [fail("cluster", "no token"), fail("cluster", "another Ray")]
    monkeypatch.setattr(address, "find", lambda at: address.Found("local", "you started none here"))
    only(cluster.nodes("auto", "runs"), "warn", "none to join (you started none here)")


# -- the command


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """All local checks are well, but for those that are given."""

    def world(**changes: Any) -> None:
        parts = {
            packages: ["python", "installed", "torch_build"],
            machine: ["gpus", "cores", "memory", "shared_memory"],
        }
        parts |= {simulator: ["simulators"], rays: ["folder", "ports", "token", "running"]}
        for module, names in parts.items():
            for name in names:
                monkeypatch.setattr(module, name, changes.get(name, lambda name=name: [ok(name, "well")]))
        monkeypatch.setattr(files, "disks", lambda out: [ok("results", out)])

    return world


def test_one_failure_fails_and_a_warning_does_not(healthy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    healthy(token=lambda: [Check("token", "warn", "none yet", "make one")])
    assert cli.main(["doctor", "--out", "place"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in lines].count("warn") == 1
    assert "warn  token          none yet; make one" in lines
    assert lines[7] == "ok    results        place"
    healthy(token=lambda: [fail("token", "open")])
    assert cli.main(["doctor"]) == 1


def test_a_check_that_crashes_is_one_failed_line(healthy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def crash() -> list[Check]:
        raise RuntimeError("\x1b[2J")

    healthy(memory=crash)
    assert cli.main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert [c for c in found["checks"] if c["status"] != "ok"] == [
        {"name": "memory", "status": "fail", "found": "could not be found out: RuntimeError: \x1b[2J", "fix": ""}
    ]
    assert len(found["checks"]) == 13
    assert cli.main(["doctor"]) == 1
    assert "\\x1b[2J" in capsys.readouterr().out


@pytest.mark.parametrize("at", ["local", "here", "10.0.0.1", "http://10.0.0.1:8265"])
def test_an_address_that_is_none_is_refused(at: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--address", at]) == 2
    assert f"--address must be auto or HOST:PORT, but got {at!r}" in capsys.readouterr().err


def test_a_data_file_and_a_cluster_come_last(healthy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    healthy()
    monkeypatch.setattr(cluster, "nodes", lambda at, out: [ok("cluster", f"{at} {out}")])
    found = list(doctor.examine("place", tmp_path / "none.h5", "auto"))
    assert [(c.name, c.status) for c in found[-2:]] == [("data", "fail"), ("cluster", "ok")]
    assert found[-1].found == "auto place"


@pytest.mark.sim
def test_here_it_really_steps_a_simulator(tmp_path: Path, write_file: WriteFile) -> None:
    """The real command; what else this machine lacks is not of this test."""
    command = [
        sys.executable,
        "-m",
        "offrl_ray",
        "doctor",
        "--json",
        "--out",
        str(tmp_path),
        "--data",
        str(write_file()),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    found = json.loads(done.stdout)
    of = {c["name"]: c for c in found["checks"]}
    assert done.returncode == int(any(c["status"] == "fail" for c in found["checks"])) == int(not found["ok"])
    for name in ("python", "packages", "physx_cpu", "renderer", "data"):
        assert of[name]["status"] == "ok", of[name]
    assert "steps a second" in of["physx_cpu"]["found"]
    assert {
        "torch",
        "cores",
        "memory",
        "results",
        "cache",
        "shared memory",
        "ray's folder",
        "ports",
        "token",
    } <= of.keys()
