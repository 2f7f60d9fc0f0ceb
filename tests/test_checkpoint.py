import io
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from offrl_ray import checkpoint
from offrl_ray.algos import make
from offrl_ray.checkpoint import MANIFEST, TENSORS, load, newest, path_of, save, steps
from offrl_ray.config import RunConfig
from offrl_ray.data.dataset import Dataset
from offrl_ray.errors import UsageError
from offrl_ray.train import Snapshot, start
from tests.conftest import MakeRun

Run = tuple[RunConfig, Dataset]


@pytest.fixture(scope="module")
def run(tiny: MakeRun) -> Run:
    return tiny(algo__q_grad_mode="last_2", algo__alpha=0.25)


def snapshot(run: Run, step: int) -> Snapshot:
    cfg, data = run
    return start(cfg, make(cfg.algo, data.spec))._replace(step=step)


@pytest.fixture(scope="module")
def saved_once(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (10, 20):
        save(folder, snapshot(run, step), run[0], run[1].spec)
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
    with pytest.raises(UsageError, match="step_00000020"):
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
    digest = save(tmp_path, given, cfg, data.spec)
    found = load(path_of(tmp_path, 20))
    assert (found.cfg, found.spec, found.digest, found.snapshot.step) == (cfg, data.spec, digest, 20)
    assert_equal(found.snapshot.state, given.state)
    assert found.snapshot.generators.equal(given.generators)


def test_steps_are_listed_oldest_first_without_strangers(saved: Path, run: Run) -> None:
    save(saved, snapshot(run, 100_000_000), *[run[0], run[1].spec])
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
    save(saved, again, run[0], run[1].spec)
    assert_equal(load(path_of(saved, 20)).snapshot.state, again.state)
    assert steps(saved) == [10, 20]
    assert sorted(p.name for p in saved.iterdir()) == ["step_00000010", "step_00000020"]


@pytest.mark.parametrize("name", [TENSORS, MANIFEST])
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


@pytest.mark.parametrize("name", [TENSORS, MANIFEST])
def test_a_missing_file_is_found_and_the_older_checkpoint_taken(name: str, saved: Path, run: Run) -> None:
    (path_of(saved, 20) / name).unlink()
    assert_only_10_is_good(saved, run)


def test_a_flipped_bit_of_the_tensors_is_found(saved: Path, run: Run) -> None:
    path = path_of(saved, 20) / TENSORS
    content = path.read_bytes()
    rng = random.Random(0)
    for place in [0, len(content) - 1] + [rng.randrange(len(content)) for _ in range(50)]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :])
        with pytest.raises(UsageError, match="step_00000020 is damaged"):
            load(path.parent)
    assert_only_10_is_good(saved, run)


def test_a_flipped_bit_of_the_manifest_is_found(saved: Path) -> None:
    """Wherever it matters: what is loaded is either refused or what was saved."""
    path = path_of(saved, 20) / MANIFEST
    content, good, wrong = path.read_bytes(), load(path.parent), set[str]()
    for place in [*range(0, len(content), 5), *range(len(content) - 40, len(content))]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            found = load(path.parent)
        except UsageError:
            continue
        except Exception as e:
            wrong.add(f"{e!r} escaped")
            continue
        same = (found.snapshot.step, *found[1:]) == (good.snapshot.step, *good[1:])
        wrong |= set() if same else {content[:place].rsplit(b'"', 2)[-2].decode()}
    assert wrong == set()


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
    **{f"{k} = {v!r}": edit(**{k: v}) for k in KEYS for v in (None, "x", [])},
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
    manifest |= {"digest": checkpoint.digest_of(manifest, folder / TENSORS), "seconds": seconds}
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


@pytest.mark.parametrize("broken", ["torch.save", "os.fsync", "json.dump", "pathlib.Path.rename"])
@pytest.mark.parametrize("step", [20, 30])
def test_a_save_that_fails_leaves_the_earlier_checkpoints_and_no_litter(
    broken: str, step: int, saved: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("killed")

    with monkeypatch.context() as m:
        m.setattr(broken, fail)
        with pytest.raises(OSError, match="killed"):
            save(saved, snapshot(run, step), run[0], run[1].spec)
    assert sorted(p.name for p in saved.iterdir()) == ["step_00000010", "step_00000020"]
    found, problems = newest(saved)
    assert found is not None
    assert (found.snapshot.step, problems) == (20, [])


def test_what_a_killed_save_left_is_no_checkpoint(saved: Path) -> None:
    path_of(saved, 20).rename(saved / ".step_00000030.0123456789abcdef")
    found, problems = newest(saved)
    assert found is not None
    assert (found.snapshot.step, problems) == (10, [])


def test_only_the_newest_good_one_is_loaded_and_older_damage_is_left_alone(saved: Path) -> None:
    (path_of(saved, 10) / TENSORS).write_bytes(b"")
    found, problems = newest(saved)
    assert found is not None
    assert (found.snapshot.step, problems, steps(saved)) == (20, [], [10, 20])


def test_all_damaged_gives_none_and_every_reason(saved: Path) -> None:
    for step in (10, 20):
        (path_of(saved, step) / TENSORS).write_bytes(b"")
    found, problems = newest(saved)
    assert found is None
    assert ["00000020" in problems[0], "00000010" in problems[1]] == [True, True]
    assert len(list(saved.glob("*.corrupt"))) == 2


@pytest.mark.parametrize("path", ["nowhere", "", "a\0b", "a" * 300])
def test_a_path_without_a_checkpoint_is_named(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        load(path)


def test_remove_takes_one_away_and_minds_no_absence(saved: Path) -> None:
    checkpoint.remove(saved, 10)
    checkpoint.remove(saved, 10)
    assert steps(saved) == [20]
