import errno
import io
import json
import math
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from offrl_ray import checkpoint
from offrl_ray.algos import make
from offrl_ray.checkpoint import HISTORY, MANIFEST, TENSORS, clean, estimate, load, newest, path_of, save, steps
from offrl_ray.config import RunConfig
from offrl_ray.data.dataset import Dataset
from offrl_ray.errors import CheckpointError, DiskFull, UsageError
from offrl_ray.train import Snapshot, start
from tests.conftest import MakeRun

Run = tuple[RunConfig, Dataset]
HARD = [math.nan, math.inf, -math.inf, -0.0, 0.1, 1 / 3, 5e-324, 1.7976931348623157e308]
PAST: checkpoint.History = {3: [[5, {"q": x, "loss": 1.0}] for x in HARD], 0: []}
FILES = [TENSORS, HISTORY, MANIFEST]


def bits(history: checkpoint.History) -> Any:
    """A history with its floats as their bytes."""
    return {s: [[n, {k: struct.pack("d", v) for k, v in m.items()}] for n, m in rows] for s, rows in history.items()}


@pytest.fixture(scope="module")
def run(tiny: MakeRun) -> Run:
    return tiny(algo__q_grad_mode="last_2", algo__alpha=0.25)


def snapshot(run: Run, step: int) -> Snapshot:
    cfg, data = run
    return start(cfg, make(cfg.algo, data.spec))._replace(step=step)


def put(folder: Path, given: Snapshot, run: Run) -> str:
    return save(folder, given, run[0], run[1].spec, 1.5, PAST)


@pytest.fixture(scope="module")
def saved_once(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (10, 20):
        put(folder, snapshot(run, step), run)
    return folder


@pytest.fixture
def saved(saved_once: Path, tmp_path: Path) -> Path:
    """A folder with checkpoints at 10 and 20."""
    return shutil.copytree(saved_once, tmp_path / "trial")


def assert_equal(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert list(a) == list(b)
        for k in a:
            assert_equal(a[k], b[k])
    else:
        assert a.dtype == b.dtype
        assert a.equal(b)


def assert_only_10_is_good(folder: Path, run: Run) -> None:
    """`load` names the damage of 20; `newest` gives 10 and keeps the bad one aside."""
    with pytest.raises(CheckpointError, match="step_00000020 is damaged"):
        load(path_of(folder, 20))
    content = {p.name: p.read_bytes() for p in path_of(folder, 20).iterdir()}
    found, problems = newest(folder)
    assert found is not None
    assert found.snapshot.step == 10
    assert_equal(found.snapshot.state, snapshot(run, 10).state)
    assert len(problems) == 1
    assert "step_00000020" in problems[0]
    assert steps(folder) == [10]
    (aside,) = folder.glob("*.corrupt")
    assert aside.name.startswith("step_00000020.")
    assert {p.name: p.read_bytes() for p in aside.iterdir()} == content


def test_load_gives_what_save_was_given(run: Run, tmp_path: Path) -> None:
    cfg, data = run
    given = snapshot(run, 20)
    digest = put(tmp_path, given, run)
    found = load(path_of(tmp_path, 20))
    assert (found.cfg, found.spec, found.digest, found.snapshot.step) == (cfg, data.spec, digest, 20)
    assert_equal(found.snapshot.state, given.state)
    assert found.snapshot.generators.equal(given.generators)
    assert (found.seconds, bits(found.history)) == (1.5, bits(PAST))


def test_the_digest_is_the_same_for_the_same_content_at_any_speed_and_after_a_resume(run: Run, tmp_path: Path) -> None:
    cfg, data = run
    digest = put(tmp_path / "a", snapshot(run, 20), run)
    found = load(path_of(tmp_path / "a", 20))
    mixed = {s: [[n, dict(reversed(m.items()))] for n, m in rows] for s, rows in reversed(found.history.items())}
    assert save(tmp_path / "b", found.snapshot, found.cfg, found.spec, 99.0, mixed) == digest
    others = [{}, {3: PAST[3]}, {**PAST, 3: PAST[3][:-1]}, {**PAST, 3: [[6, m] for _, m in PAST[3]]}]
    digests = {save(tmp_path / f"c{i}", snapshot(run, 20), cfg, data.spec, 1.5, h) for i, h in enumerate(others)}
    assert len(digests | {digest}) == 5


def test_steps_are_listed_oldest_first_without_strangers(saved: Path, run: Run) -> None:
    put(saved, snapshot(run, 100_000_000), run)
    for name in ("step_x", "step_00000030.1234.corrupt", ".step_00000040.abc", "other"):
        (saved / name).mkdir()
    assert steps(saved) == [10, 20, 100_000_000]
    assert steps(saved / "nowhere") == []


@pytest.mark.parametrize("stranger", ["step_30", "step_²"])
def test_a_folder_that_save_never_made_is_no_checkpoint(stranger: str, saved: Path) -> None:
    (saved / stranger).mkdir()
    found, _ = newest(saved)
    assert found is not None
    assert found.snapshot.step == 20
    assert steps(saved) == [10, 20]


def test_no_checkpoints_are_no_problem(tmp_path: Path) -> None:
    assert newest(tmp_path / "nowhere") == (None, [])


def test_saving_a_step_again_replaces_it(saved: Path, run: Run) -> None:
    again = snapshot(run, 20)
    again.state["policy_opt"]["t"].add_(7)
    put(saved, again, run)
    assert_equal(load(path_of(saved, 20)).snapshot.state, again.state)
    assert steps(saved) == [10, 20]
    assert sorted(p.name for p in saved.iterdir()) == ["step_00000010", "step_00000020"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "cut", [lambda n: 0, lambda n: 10, lambda n: n // 2, lambda n: n - 1], ids=["0", "10", "n/2", "n-1"]
)
def test_a_cut_file_is_found_and_the_older_checkpoint_taken(
    name: str, cut: Callable[[int], int], saved: Path, run: Run
) -> None:
    path = path_of(saved, 20) / name
    content = path.read_bytes()
    path.write_bytes(content[: cut(len(content))])
    assert_only_10_is_good(saved, run)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found_and_the_older_checkpoint_taken(name: str, saved: Path, run: Run) -> None:
    (path_of(saved, 20) / name).unlink()
    assert_only_10_is_good(saved, run)


def edit(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest.update(changes)


def without(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        for k in keys[:-1]:
            manifest = manifest[k]
        del manifest[keys[-1]]

    return change


KEYS = ("format", "step", "digest", "config", "spec")
CHANGES = {
    **{f"without {k}": without(k) for k in KEYS},
    **{f"{k} = {v!r}": edit(**{k: v}) for k in KEYS[1:] for v in (None, "x", [])},
    "without spec.action_std": without("spec", "action_std"),
    "step of another folder": edit(step=30),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_manifest_with_missing_or_wrong_keys_is_found(
    change: Callable[[dict[str, Any]], None], saved: Path, run: Run
) -> None:
    path = path_of(saved, 20) / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    sealed(path.parent, manifest)
    assert_only_10_is_good(saved, run)


@pytest.mark.parametrize("other", [1, 3, "x"])
def test_another_format_is_refused_and_not_taken_for_damage(other: Any, saved: Path) -> None:
    path = path_of(saved, 20) / MANIFEST
    sealed(path.parent, json.loads(path.read_text()) | {"format": other})
    for refused in (lambda: load(path.parent), lambda: newest(saved)):
        with pytest.raises(UsageError, match=rf"is of format {other}, this version reads 2.*'torch'") as e:
            refused()
        assert not isinstance(e.value, CheckpointError)
    assert steps(saved) == [10, 20]


@pytest.mark.parametrize("content", ["[]", "1", "null", "[" * 100_000])
def test_a_manifest_that_is_none_is_found(content: str, saved: Path, run: Run) -> None:
    (path_of(saved, 20) / MANIFEST).write_text(content)
    assert_only_10_is_good(saved, run)


def plant(folder: Path, tensors: bytes) -> None:
    """Other tensors, with the digests that fit them."""
    (folder / TENSORS).write_bytes(tensors)
    manifest = json.loads((folder / MANIFEST).read_text())
    seconds = manifest.pop("seconds")
    del manifest["sha256"], manifest["digest"]
    manifest |= {"digest": checkpoint.digest_of(manifest, folder), "seconds": seconds}
    sealed(folder, manifest)


def sealed(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest whose own checksum is right."""
    manifest = {k: v for k, v in manifest.items() if k != "sha256"}
    manifest["sha256"] = checkpoint._sha256(manifest).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def torch_file(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "tensors",
    [pickle.dumps(Bomb(), 2), torch_file(Bomb()), torch_file({"state": Bomb()})],
    ids=["pickle", "torch", "torch dict"],
)
def test_a_pickle_in_place_of_tensors_is_refused_and_not_executed(
    tensors: bytes, saved: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plant(path_of(saved, 20), tensors)
    try:
        assert_only_10_is_good(saved, run)
    finally:
        assert not Path("executed").exists()


@pytest.mark.parametrize("content", [{}, {"state": {}}, [1]], ids=str)
def test_tensors_of_another_layout_are_refused(content: Any, saved: Path, run: Run) -> None:
    plant(path_of(saved, 20), torch_file(content))
    assert_only_10_is_good(saved, run)


@pytest.mark.parametrize("broken", ["torch.save", "os.fsync", "pathlib.Path.write_bytes", "pathlib.Path.rename"])
@pytest.mark.parametrize("step", [20, 30])
def test_a_save_that_fails_leaves_the_earlier_checkpoints_and_no_litter(
    broken: str, step: int, saved: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("killed")

    with monkeypatch.context() as m:
        m.setattr(broken, fail)
        with pytest.raises(OSError, match="killed"):
            put(saved, snapshot(run, step), run)
    assert sorted(p.name for p in saved.iterdir()) == ["step_00000010", "step_00000020"]
    found, problems = newest(saved)
    assert found is not None
    assert (found.snapshot.step, problems) == (20, [])


def test_what_a_killed_save_left_is_no_checkpoint_and_cleaned_away(saved: Path) -> None:
    path_of(saved, 20).rename(saved / f".step_00000030.{'0123456789abcdef' * 2}")
    others = {"step_00000010", "step_00000005.1234.corrupt", ".step_x", ".lock"}
    for name in others - {"step_00000010"}:
        (saved / name).mkdir()
    found, problems = newest(saved)
    assert found is not None
    assert (found.snapshot.step, problems) == (10, [])
    clean(saved)
    assert {p.name for p in saved.iterdir()} == others
    clean(saved / "nowhere")


@pytest.mark.parametrize("again", [True, False], ids=["replaced", "not yet replaced"])
def test_a_save_killed_while_it_replaces_loses_nothing(
    again: bool, saved: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, calls = Path.rename, list[Path]()

    def killed(path: Path, target: Path) -> Any:
        calls.append(path)
        if len(calls) == 2 and not again:
            raise KeyboardInterrupt
        done = rename(path, target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as m:
        m.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            put(saved, snapshot(run, 20), run)
    assert len(list(saved.glob(".step_*.replaced"))) == 1
    clean(saved)
    assert sorted(p.name for p in saved.iterdir()) == ["step_00000010", "step_00000020"]
    assert_equal(load(path_of(saved, 20)).snapshot.state, snapshot(run, 20).state)


def test_a_failed_step_back_keeps_the_one_to_be_replaced(
    saved: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, calls = Path.rename, list[Path]()

    def fail(path: Path, target: Path) -> Any:
        calls.append(path)
        if len(calls) > 1:
            raise OSError(errno.EIO, "broken")
        return rename(path, target)

    with monkeypatch.context() as m:
        m.setattr(Path, "rename", fail)
        with pytest.raises(OSError, match="broken"):
            put(saved, snapshot(run, 20), run)
    clean(saved)
    assert steps(saved) == [10, 20]


def test_only_the_newest_good_one_is_loaded_and_older_damage_is_left_alone(saved: Path) -> None:
    (path_of(saved, 10) / TENSORS).write_bytes(b"")
    found, problems = newest(saved)
    assert found is not None
    assert (found.snapshot.step, problems, steps(saved)) == (20, [], [10, 20])


def test_all_damaged_is_an_error_that_stays_until_the_folder_is_deleted(saved: Path, run: Run) -> None:
    for step in (10, 20):
        (path_of(saved, step) / TENSORS).write_bytes(b"")
    with pytest.raises(CheckpointError, match="delete the folder") as e:
        newest(saved)
    assert ["00000020" in e.value.problems[0], "00000010" in e.value.problems[1]] == [True, True]
    bad = sorted(p.name for p in saved.glob("*.corrupt"))
    assert len(bad) == 2
    with pytest.raises(CheckpointError, match="delete the folder") as e:
        newest(saved)
    assert all(name in str(e.value) for name in bad)
    shutil.rmtree(saved)
    assert newest(saved) == (None, [])
    put(saved, snapshot(run, 10), run)
    assert newest(saved)[1] == []


def transient(error: OSError, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.open

    def fail(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == name:
            raise error
        return original(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", fail)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES, errno.ESTALE])
def test_what_cannot_be_read_now_is_not_damaged(
    number: int, name: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as m:
        transient(OSError(number, "for now", name), name, m)
        for refused in (lambda: newest(saved), lambda: load(path_of(saved, 20))):
            with pytest.raises(OSError, match="for now") as e:
                refused()
            assert e.value.errno == number
    assert sorted(p.name for p in saved.iterdir()) == ["step_00000010", "step_00000020"]


def test_a_folder_that_cannot_be_listed_is_not_empty(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> Any:
        raise PermissionError(errno.EACCES, "for now", str(folder))

    monkeypatch.setattr(os, "listdir", fail)
    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(PermissionError):
        newest(saved)


def test_too_little_memory_is_no_damage(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(RuntimeError, match="allocate"):
        newest(saved)
    assert steps(saved) == [10, 20]


@pytest.mark.parametrize("name", FILES)
def test_one_that_is_removed_meanwhile_is_not_damaged(name: str, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.open

    def removed_first(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == name:
            checkpoint.remove(saved, 20)
        return original(path, *args, **kwargs)

    with monkeypatch.context() as m:
        m.setattr(Path, "open", removed_first)
        with pytest.raises(UsageError, match="is no checkpoint") as e:
            newest(saved)
    assert not isinstance(e.value, CheckpointError)
    assert [p.name for p in saved.iterdir()] == ["step_00000010"]


def test_a_removal_that_is_killed_leaves_no_half_of_a_checkpoint(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as m:
        m.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        checkpoint.remove(saved, 20)
    assert steps(saved) == [10]
    clean(saved)
    assert [p.name for p in saved.iterdir()] == ["step_00000010"]


# -- room


def test_the_estimate_is_what_lies_on_the_disk(saved: Path, run: Run) -> None:
    given = snapshot(run, 20)
    source = {"0": {"counts": torch.zeros(3, dtype=torch.int64), "replay": {"obs.state": torch.zeros(100_000)}}}
    put(saved, given._replace(source=source, step=30), run)
    for step, asked in ((20, given), (30, given._replace(source=source))):
        size = (path_of(saved, step) / TENSORS).stat().st_size
        assert size <= estimate(asked) < 1.5 * size
    assert estimate(given._replace(source=source)) - estimate(given) == 400_000 + 24 + 2 * checkpoint.PER_TENSOR


def free(size: int) -> Callable[[Path], Any]:
    return lambda folder: shutil._ntuple_diskusage(10**15, 10**15 - size, size)  # type: ignore[attr-defined]


def test_nothing_is_written_where_less_than_twice_the_size_is_free(
    saved: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = snapshot(run, 30)
    size = estimate(given) + len(json.dumps(PAST))
    with monkeypatch.context() as m:
        m.setattr(shutil, "disk_usage", free(2 * size - 1))
        m.setattr(torch, "save", pytest.fail)
        with pytest.raises(DiskFull, match=r"about 0\.1 MiB .*make room") as e:
            put(saved, given, run)
    assert (e.value.errno, e.value.filename) == (errno.ENOSPC, str(saved))
    assert sorted(p.name for p in saved.iterdir()) == ["step_00000010", "step_00000020"]
    monkeypatch.setattr(shutil, "disk_usage", free(2 * size))
    put(saved, given, run)


def test_a_save_that_does_not_fit_after_all_leaves_the_earlier_ones_and_no_litter(saved: Path, run: Run) -> None:
    """In a process whose files may not grow beyond a limit: torch, the history and the manifest hit it."""
    before = {p: p.read_bytes() for p in saved.rglob("*") if p.is_file()}
    size = (path_of(saved, 20) / TENSORS).stat().st_size
    program = f"""
import pathlib, resource
from offrl_ray.checkpoint import load, path_of, save
from offrl_ray.errors import DiskFull
folder = pathlib.Path({str(saved)!r})
_, cfg, spec, *_ = found = load(path_of(folder, 20))
for limit, rows in ((0, 1), (1000, 1), ({size // 2}, 1), ({size - 1}, 1), ({size + 100}, 20_000)):
    for step in (20, 30):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            save(folder, found.snapshot._replace(step=step), cfg, spec, 0.0, {{0: [[1, {{"q": 0.5}}]] * rows}})
        except DiskFull as e:
            print("full", e.errno)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == [f"full {errno.ENOSPC}"] * 10 + [""]
    assert {p: p.read_bytes() for p in saved.rglob("*") if p.is_file()} == before
    assert sorted(p.name for p in saved.iterdir()) == ["step_00000010", "step_00000020"]


def test_torchs_own_error_for_a_full_disk_is_named(saved: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904, as torch does

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(DiskFull):
        put(saved, snapshot(run, 30), run)
    assert sorted(p.name for p in saved.iterdir()) == ["step_00000010", "step_00000020"]


def test_another_failure_of_a_save_is_not_called_a_full_disk(
    saved: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="broken") as e:
        put(saved, snapshot(run, 30), run)
    assert not isinstance(e.value, DiskFull)


def test_errors_say_the_same_in_another_process() -> None:
    for error in (CheckpointError(["a b", "c"]), UsageError(["x"]), DiskFull(errno.ENOSPC, "text", "folder")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.__dict__) == (type(error), str(error), error.__dict__)


@pytest.mark.parametrize("path", ["nowhere", "", "a\0b", "a" * 300])
def test_a_path_without_a_checkpoint_is_named(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        load(path)


def test_remove_takes_one_away_and_minds_no_absence(saved: Path) -> None:
    checkpoint.remove(saved, 10)
    checkpoint.remove(saved, 10)
    assert steps(saved) == [20]
