"""Checkpoints of a trial at a URL: there is all of one or nothing, and no copy of it on any machine."""

import shutil
from pathlib import Path

import fsspec
import pytest
import torch

from offrl_ray import checkpoint, store
from offrl_ray.algos import make
from offrl_ray.checkpoint import clean, load, newest, path_of, remove, save, set_aside, sizes, steps
from offrl_ray.config import RunConfig
from offrl_ray.data.dataset import Dataset
from offrl_ray.errors import CheckpointError, UsageError
from offrl_ray.objects import StoreError
from offrl_ray.store import place
from offrl_ray.sweep import fsck
from offrl_ray.train import Snapshot, start
from tests import ledgers
from tests.conftest import MakeRun
from tests.stores import Crash, at, failing, objects

Run = tuple[RunConfig, Dataset]
PAST: checkpoint.History = {0: [[10, {"q": 0.5}]], 1: []}


@pytest.fixture(scope="module")
def run(tiny: MakeRun) -> Run:
    return tiny()


@pytest.fixture
def trial(url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("offrl_ray.objects.PAUSES", (0.0, 0.0))
    monkeypatch.setattr(store, "PATIENCE_SECONDS", 0.0)
    folder = place(f"{url}/trials/a")
    folder.mkdir(parents=True)
    return folder


def snapshot(run: Run, step: int) -> Snapshot:
    cfg, data = run
    return start(cfg, make(cfg.algo, data.spec))._replace(step=step)


def put(folder: Path, step: int, run: Run) -> str:
    return save(folder, snapshot(run, step), run[0], run[1].spec, 1.5, PAST)


def stored(trial: Path, step: int) -> str:
    return store.called(path_of(trial, step)).removeprefix("memory:/")


def test_what_is_saved_is_on_the_store_alone_and_loads_as_it_was(run: Run, trial: Path, url: str) -> None:
    digest = put(trial, 10, run)
    put(trial, 20, run)
    assert list(trial.iterdir()) == []
    assert set(objects(url)) == {"trials/a/step_00000010", "trials/a/step_00000020"}
    shutil.rmtree(store.copies())
    assert steps(trial) == [10, 20]
    assert sizes(trial) == {s: len(objects(url)[f"trials/a/step_{s:08d}"]) for s in (10, 20)}
    found = load(path_of(trial, 10))
    assert (found.digest, found.seconds, found.history) == (digest, 1.5, PAST)
    given = snapshot(run, 10)
    assert all(torch.equal(a, b) for a, b in zip(leaves(found.snapshot.state), leaves(given.state), strict=True))
    best, problems = newest(trial)
    assert best
    assert (best.snapshot.step, problems) == (20, [])
    assert not trial.exists()
    with pytest.raises(UsageError, match=f"{url}/trials/a/step_00000030 is no checkpoint"):
        load(path_of(trial, 30))


def leaves(tree: object) -> list[torch.Tensor]:
    if isinstance(tree, dict):
        return [t for k in sorted(tree) for t in leaves(tree[k])]
    return [tree] if isinstance(tree, torch.Tensor) else []


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "no tar"])
def test_a_damaged_one_is_set_aside_and_the_one_before_it_taken(damage: str, run: Run, trial: Path, url: str) -> None:
    put(trial, 10, run)
    put(trial, 20, run)
    fs, content = fsspec.filesystem("memory"), bytearray(objects(url)["trials/a/step_00000020"])
    content[len(content) // 2] ^= 1
    made = {"cut": bytes(content[:-20000]), "flipped": bytes(content), "empty": b"", "no tar": b"x" * 2000}
    fs.pipe_file(stored(trial, 20), made[damage])
    best, problems = newest(trial)
    assert best
    assert best.snapshot.step == 10
    assert [p.startswith(f"{url}/trials/a/step_00000020 is damaged: ") for p in problems] == [True]
    assert steps(trial) == [10]
    assert [n.startswith("step_00000020.") for n in store.names(trial)] == [False, True]
    set_aside(trial, 10)
    with pytest.raises(CheckpointError, match=f"{url}/trials/a has no good checkpoint left"):
        newest(trial)


def test_what_is_removed_is_gone_and_may_be_gone_already(run: Run, trial: Path) -> None:
    put(trial, 10, run)
    for _ in range(2):
        remove(trial, 10)
    assert steps(trial) == []


@pytest.mark.parametrize("error", [Crash(), PermissionError("no")])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_save_that_breaks_leaves_the_old_ones_and_all_or_nothing_of_the_new(
    when: str, error: BaseException, run: Run, trial: Path
) -> None:
    put(trial, 10, run)
    raised = pytest.raises(Crash if isinstance(error, Crash) else StoreError)
    with failing(**{when: at(0, error, "put_file")}), raised:
        put(trial, 20, run)
    best, problems = newest(trial)
    assert best
    assert (best.snapshot.step, problems) == (10 if when == "before" else 20, [])
    assert list(trial.iterdir()) == []


def test_a_process_that_was_believed_dead_saves_no_more(run: Run, trial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean(trial)
    put(trial, 10, run)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(checkpoint, "SELF", b"another process")
        clean(trial)
        put(trial, 20, run)
    with pytest.raises(StoreError, match="taken over by another process"):
        put(trial, 30, run)
    assert steps(trial) == [10, 20]
    clean(trial)
    put(trial, 30, run)


def test_what_a_killed_writer_left_here_is_removed(run: Run, trial: Path) -> None:
    left = trial / f".step_00000010.{'0' * 32}"
    left.mkdir()
    clean(trial)
    assert not left.exists()


def test_fsck_reads_the_checkpoints_of_the_store(run: Run, url: str, trial: Path) -> None:
    folder = place(url)
    digest = put(trial, 12, run)
    log = [ledgers.plan([ledgers.point("a")]), *ledgers.whole("a")]
    ledgers.write(folder, [{**r, "digest": digest} if r["kind"] == "eval" and r["step"] == 12 else r for r in log])
    fsspec.filesystem("memory").put_file(str(folder / "records.jsonl"), "/bucket/runs/sweep/records/000000000000.jsonl")
    violations = lambda: fsck.check(folder, lambda p: load(p).digest).violations  # noqa: E731
    assert violations() == []
    put(trial, 12, (run[0], run[1]))
    save(trial, snapshot(run, 12), run[0], run[1].spec, 1.5, {0: [], 1: []})
    assert any("is not the checkpoint that was evaluated" in v for v in violations())
    set_aside(trial, 12)
    assert any(v.startswith("N3") for v in violations())
