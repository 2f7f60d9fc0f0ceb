"""Bytes cut or flipped anywhere in what a run reads back: it is refused, or it is what was written."""

import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from offrl_ray import checkpoint
from offrl_ray.checkpoint import HISTORY, MANIFEST, TENSORS, path_of
from offrl_ray.collect.files import Label, Origin, new_files
from offrl_ray.data.hdf5 import TrajectoryFile, inspect
from offrl_ray.data.seal import KEY, sealed, sha256
from offrl_ray.envs.experts import Trajectory
from offrl_ray.errors import CheckpointError, UsageError
from offrl_ray.records import FILE, TORN, Writer, read
from offrl_ray.sweep.ledger import Ledger
from offrl_ray.train import Snapshot
from tests.conftest import Length, MakeRun, WriteFile, overwrite, trajectory
from tests.toys import leaves, same_bits

SOME = [300, pytest.param(None, marks=pytest.mark.storm, id="all")]
"""How many places of a file are damaged; None: all."""


def places(size: int, count: int | None, always: range = range(0)) -> list[int]:
    rng = random.Random(0)
    return sorted({*always, *(range(size) if count is None else rng.sample(range(size), min(size, count)))})


def flips(content: bytes, at: list[int]) -> Iterator[bytes]:
    """The content with one bit of one byte changed, for each place."""
    rng = random.Random(1)
    for i in at:
        yield content[:i] + bytes([content[i] ^ 1 << rng.randrange(8)]) + content[i + 1 :]


# -- records

RECORDS: list[dict[str, Any]] = [
    {"kind": "note", "trial": "00", "text": "ünïcode\n"},
    {"kind": "start", "trial": "00", "attempt": 1, "step": 0},
    {"kind": "train", "trial": "00", "seed": 0, "step": 10, "metrics": {"q": 0.1, "loss": float("nan")}},
    {"kind": "eval", "trial": "00", "seed": 0, "step": 10, "success_once": [0, 1], "return": [0.1, 1e-300]},
    {"kind": "end", "trial": "00", "status": "completed", "reason": "", "step": 10},
]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    with Writer(tmp_path) as w:
        w.write_all(RECORDS)
    return tmp_path


def masks(first: int, last: int, content: bytes, all_bits: bool) -> Iterator[bytes]:
    """Bytes `first` to `last`, each in turn with one bit changed, or each of its bits; and each made a line's end."""
    rng = random.Random(2)
    for i in range(first, last):
        for bit in range(8) if all_bits else [rng.randrange(8)]:
            yield content[:i] + bytes([content[i] ^ 1 << bit]) + content[i + 1 :]
        if content[i] != ord("\n"):
            yield content[:i] + b"\n" + content[i + 1 :]


@pytest.mark.parametrize("all_bits", [False, pytest.param(True, marks=pytest.mark.storm)])
@pytest.mark.parametrize("damaged", [1, 3, 4], ids=["in the middle", "last but one", "last"])
def test_a_record_changed_anywhere_is_named_and_costs_no_other(
    damaged: int, all_bits: bool, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offrl_ray.records.os.fsync", lambda fd: None)  # thousands of times, and no kill follows
    path, good = ledger / FILE, read(ledger).records
    content = path.read_bytes()
    ends = [0, *(i + 1 for i, b in enumerate(content) if b == ord("\n"))]
    for changed in masks(ends[damaged], ends[damaged + 1], content, all_bits):
        overwrite(path, changed)
        before = read(ledger)
        end_lost = changed[ends[damaged + 1] - 1] != ord("\n")
        lost = [damaged, *([damaged + 1] if end_lost and damaged < 4 else [])]
        assert before.records == [r for r in good if r["seq"] not in lost]
        assert before.problems[0].startswith(f"{path}:{damaged + 1}: ")
        with Writer(ledger) as w:
            w.write("note", trial="00", text="after")
        after = read(ledger)
        assert after.records[:-1] == before.records
        assert after.records[-1]["text"] == "after"
        assert after.records[-1]["seq"] > max(r["seq"] for r in before.records)
        assert damaged > 1 or after.records[-1]["seq"] == 5
        torn = ledger / TORN
        kept = torn.read_bytes()[:-1] if torn.exists() else b""
        assert path.read_bytes().startswith(changed.removesuffix(kept))
        torn.unlink(missing_ok=True)


# -- checkpoints


@pytest.fixture(scope="module")
def good(tiny: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint of step 20."""
    cfg, data = tiny()
    folder = tmp_path_factory.mktemp("trial")
    history = {s: [[n, {"q": 0.1 * n, "loss": float("nan")}] for n in (10, 20)] for s in cfg.train.seeds}
    state = {"acting": {"weight": torch.randn(2, 3, 4)}, "steps": torch.arange(2)}
    generators = torch.stack([torch.Generator().manual_seed(s).get_state() for s in cfg.train.seeds])
    snapshot = Snapshot(20, state, generators, {"0": {"rows": torch.arange(5, dtype=torch.int32)}})
    checkpoint.save(folder, snapshot, cfg, data.spec, 1.5, history)
    return path_of(folder, 20)


@pytest.fixture
def copied(good: Path, tmp_path: Path) -> Path:
    return shutil.copytree(good, tmp_path / good.name)


def same_tensors(a: dict[str, Any], b: dict[str, Any]) -> bool:
    x, y = leaves(a), leaves(b)
    return list(x) == list(y) and all(same_bits(x[k], y[k]) for k in x)


def content(found: checkpoint.Checkpoint) -> tuple[dict[str, Any], str]:
    """Its tensors, and the rest as text, in which NaN equals itself."""
    s = found.snapshot
    tensors: dict[str, Tensor | Any] = {"state": s.state, "generators": s.generators, "source": s.source}
    return tensors, repr((s.step, *found[1:]))


def wrongly_loaded(path: Path, good: Path, changes: Iterator[bytes]) -> tuple[int, int, list[str]]:
    """How many changes of a file are refused and how many leave what is loaded as it was; and all that is worse."""
    refused, same, wrong = 0, 0, list[str]()
    tensors, rest = content(checkpoint.load(good))
    for changed in changes:
        overwrite(path, changed)
        try:
            found_tensors, found_rest = content(checkpoint.load(path.parent))
        except CheckpointError:
            refused += 1
        except Exception as e:
            wrong.append(repr(e))
        else:
            equal = found_rest == rest and same_tensors(found_tensors, tensors)
            same, wrong = same + equal, wrong + ["a wrong value"] * (not equal)
    return refused, same, wrong


def directory(tensors: Path) -> range:
    """Where the zip's directory lies, to the end of the file."""
    data = tensors.read_bytes()
    end = data.rfind(b"PK\x05\x06")
    return range(int.from_bytes(data[end + 16 : end + 20], "little"), len(data))


@pytest.mark.parametrize("count", SOME)
def test_tensors_changed_anywhere_are_refused(count: int | None, good: Path, copied: Path) -> None:
    data = (good / TENSORS).read_bytes()
    zipped = directory(good / TENSORS)
    assert 300 < len(zipped) < len(data) / 2
    at = places(len(data), count, always=zipped)
    assert wrongly_loaded(copied / TENSORS, good, flips(data, at)) == (len(at), 0, [])


@pytest.mark.parametrize("name", [HISTORY, MANIFEST])
def test_history_and_manifest_changed_anywhere_are_refused_or_the_same(name: str, good: Path, copied: Path) -> None:
    data = (good / name).read_bytes()
    refused, same, wrong = wrongly_loaded(copied / name, good, flips(data, list(range(len(data)))))
    assert (refused + same, wrong) == (len(data), [])
    assert refused > 0.5 * len(data)


@pytest.mark.parametrize("count", [8, pytest.param(None, marks=pytest.mark.storm, id="all")])
@pytest.mark.parametrize("name", [TENSORS, HISTORY, MANIFEST])
def test_a_checkpoint_cut_anywhere_is_refused(name: str, count: int | None, good: Path, copied: Path) -> None:
    data = (good / name).read_bytes()
    cuts = [len(data) * k // 8 for k in range(8)] + [1, len(data) - 1] if count else range(len(data))
    refused, same, wrong = wrongly_loaded(copied / name, good, (data[:cut] for cut in cuts))
    assert (refused, same, wrong) == (len(cuts), 0, [])


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.storm)])
def test_a_writer_killed_at_any_moment_leaves_whole_checkpoints(kills: int, good: Path, tmp_path: Path) -> None:
    program = f"""
import itertools, pathlib, sys, torch
from offrl_ray import checkpoint
_, cfg, spec, *_ = found = checkpoint.load({str(good)!r})
source = {{"buffer": torch.arange(2_000_000.0)}}
folder = pathlib.Path({str(tmp_path)!r})
for number in itertools.count(max([0, *checkpoint.steps(folder)])):
    step = number // 2 * 2  # every other save replaces the one before
    snapshot = found.snapshot._replace(step=step, source=source)
    print(checkpoint.save(folder, snapshot, cfg, spec, 0.0, found.history), flush=True)
    for old in checkpoint.steps(folder)[:-2]:
        checkpoint.remove(folder, old)
"""
    rng, seen = random.Random(0), 0
    for _ in range(kills):
        writer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        with writer.stdout:
            for _ in range(rng.randrange(2, 6)):
                writer.stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                writer.wait(rng.random() * 0.05)
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        checkpoint.clean(tmp_path)
        found, problems = checkpoint.newest(tmp_path)
        assert found is not None
        assert problems == []
        assert found.snapshot.step >= seen
        seen = found.snapshot.step
        assert {p.name for p in tmp_path.iterdir()} == {path_of(tmp_path, s).name for s in checkpoint.steps(tmp_path)}


# -- data

ORIGIN = Origin("Toy-v1", 50, "pd_ee_delta_pose", "sparse", "physx_cpu", 0, "motionplanning", "a toy")


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as `collect` writes it."""
    out, rng = tmp_path_factory.mktemp("data") / "demos.h5", np.random.default_rng(0)
    with new_files(out, ORIGIN, [Label(i, {"noise": 0.1}) for i in range(2)]) as add:
        for steps in (3, 4):
            arrays = {k: v for k, v in trajectory(rng, Length(steps)).items() if not k.startswith("env")}
            add(Trajectory(**arrays, env_states={}))
    return out


def copy(path: Path, to: Path) -> Path:
    for suffix in (".h5", ".json"):
        shutil.copy(path.with_suffix(suffix), to)
    return to / path.name


def told(found: TrajectoryFile) -> Any:
    """All that a run takes from a file, as bytes and text."""
    arrays = [(e.name, *(a.tobytes() for a in (e.obs["state"], e.action, e.reward)), repr(e)) for e in found.episodes]
    flags = [a.tobytes() for e in found.episodes for a in (e.success, e.terminated, e.truncated)]
    return arrays, flags, found.env_id, found.env_kwargs, found.num_actions


def wrongly_read(path: Path, right: TrajectoryFile, suffix: str, changes: Iterator[bytes]) -> tuple[int, int, int]:
    """How many changes are refused, how many leave all as it was, and how many give other values."""
    refused = same = wrong = 0
    for changed in changes:
        overwrite(path.with_suffix(suffix), changed)
        found = inspect(path)
        assert found.digest != right.digest
        if found.problems:
            refused += 1
        elif told(found) == told(right):
            same += 1
        else:
            wrong += 1
    return refused, same, wrong


def test_a_collected_file_has_the_checksums_of_both(collected: Path) -> None:
    meta = json.loads(collected.with_suffix(".json").read_text())
    assert inspect(collected).problems == []
    seal = meta.pop(KEY)
    assert seal["h5"] == sha256(collected)
    assert sealed(meta, seal["h5"])[KEY] == seal


@pytest.mark.parametrize("count", SOME)
def test_a_collected_file_changed_or_cut_anywhere_is_refused(
    count: int | None, collected: Path, tmp_path: Path
) -> None:
    path, right = copy(collected, tmp_path), inspect(collected)
    data = collected.read_bytes()
    at = places(len(data), count)
    assert wrongly_read(path, right, ".h5", flips(data, at)) == (len(at), 0, 0)
    assert wrongly_read(path, right, ".h5", (data[:i] for i in at)) == (len(at), 0, 0)
    (problem,) = inspect(path).problems
    assert problem.startswith(f"{path}: the .h5 differs from the checksum")


@pytest.mark.parametrize("count", SOME)
def test_the_json_of_a_collected_file_changed_or_cut_anywhere_gives_no_wrong_value(
    count: int | None, collected: Path, tmp_path: Path
) -> None:
    path, right = copy(collected, tmp_path), inspect(collected)
    data = collected.with_suffix(".json").read_bytes()
    at = places(len(data), count)
    refused, same, wrong = wrongly_read(path, right, ".json", flips(data, at))
    assert (refused + same, wrong) == (len(at), 0)
    assert refused > 0.5 * len(at)
    cuts = [i for i in at if i < len(data.rstrip())]
    assert wrongly_read(path, right, ".json", (data[:i] for i in cuts)) == (len(cuts), 0, 0)


@pytest.mark.parametrize("count", [60, pytest.param(None, marks=pytest.mark.storm, id="all")])
def test_a_file_without_checksums_that_changed_anywhere_is_found_on_resume(
    count: int | None, write_file: WriteFile, tmp_path: Path
) -> None:
    path = write_file([2, 3])
    right, data = inspect(path), path.read_bytes()
    with Writer(tmp_path / "run") as w:
        w.write("plan", digest="plan", points=[], data=[{"file": str(path), "digest": right.digest}])
    ledger = Ledger(tmp_path / "run")
    ledger.check({"digest": "plan", "data": [{"file": str(path), "digest": right.digest}]})
    read_wrong = 0
    for changed in flips(data, places(len(data), count)):
        overwrite(path, changed)
        found = inspect(path)
        read_wrong += not found.problems and told(found) != told(right)
        with pytest.raises(UsageError, match=r"demos\.h5 has changed"):
            ledger.check({"digest": "plan", "data": [{"file": str(path), "digest": found.digest}]})
    assert read_wrong > 0, "of which the digest is the only witness"


@pytest.mark.parametrize("seal", [None, [], "x", {}, {"h5": 1}, {"h5": "0" * 64, "json": "0" * 64}], ids=repr)
def test_checksums_that_are_none_are_refused(seal: Any, collected: Path, tmp_path: Path) -> None:
    path = copy(collected, tmp_path)
    beside = path.with_suffix(".json")
    beside.write_text(json.dumps(json.loads(beside.read_text()) | {KEY: seal}))
    (problem,) = inspect(path).problems
    assert "differs from its own checksum" in problem


def test_no_depth_of_a_json_is_too_deep_to_be_named(write_file: WriteFile) -> None:
    path = write_file([2])
    beside = path.with_suffix(".json")
    text = json.dumps(json.loads(beside.read_text()) | {KEY: {"h5": "x"}, "deep": "@"})
    found = set()
    for depth in range(700, 1000):
        beside.write_text(text.replace('"@"', "[" * depth + "]" * depth))
        (problem, *_) = inspect(path).problems
        found |= {words for words in ("own checksum", "nested too deeply", "recursion") if words in problem}
    assert found == {"own checksum", "nested too deeply", "recursion"}


def test_a_file_that_cannot_be_read_is_named(collected: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", fail)
    (problem,) = inspect(collected).problems
    assert problem.startswith(f"{collected}: cannot be read: [Errno 13] Permission denied")


def test_what_a_killed_writer_left_is_named(tmp_path: Path, write_file: WriteFile) -> None:
    """The file opens fine: what was not flushed is simply missing."""
    path = write_file([4, 5, 6])
    program = f"""
import h5py, os, signal
f = h5py.File({str(path)!r}, "r+")
del f["traj_2"]
f.flush()
f["traj_2/actions"] = f["traj_1/actions"][()]
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL
    with h5py.File(path) as f:
        assert set(f) == {"traj_0", "traj_1"}
    (problem,) = inspect(path).problems
    assert "h5 and episodes of the json must agree; the writer was probably killed [traj_2]" in problem
