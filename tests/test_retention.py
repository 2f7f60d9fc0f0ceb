import math
import random
from pathlib import Path
from typing import Any

import pytest

from offrl_ray import checkpoint
from offrl_ray.checkpoint import path_of, sizes
from offrl_ray.sweep.retention import Stored, to_drop

ENDED = ("completed", "pruned", "diverged")


def stored(name: str, score: float | None = None, status: str = "completed", **sizes: int) -> Stored:
    """`s10=5`: 5 bytes at step 10."""
    return Stored(name, status, score, {int(k[1:]): v for k, v in sizes.items()})


THREE = [stored("a", 0.5, s10=1, s20=1), stored("b", 0.9, s10=1, s20=1), stored("c", 0.7, s10=1, s20=1)]


def test_without_limits_nothing_goes() -> None:
    assert to_drop(THREE, None, None) == {}


@pytest.mark.parametrize(
    ("keep", "gone"), [(0, "abc"), (1, "ac"), (2, "a"), (3, ""), (9, "")], ids=lambda v: str(v) or "none"
)
def test_the_best_keep_what_they_have_and_the_others_nothing(keep: int, gone: str) -> None:
    assert to_drop(THREE, keep, None) == {name: [10, 20] for name in gone}


def test_a_score_at_the_end_outdoes_one_on_the_way() -> None:
    trials = [stored("p", 0.9, "pruned", s10=1), stored("d", 0.8, "diverged", s10=1), stored("c", 0.1, s20=1)]
    assert to_drop(trials, 1, None) == {"p": [10], "d": [10]}
    assert to_drop(trials, 2, None) == {"d": [10]}


@pytest.mark.parametrize("score", [None, math.nan])
def test_without_a_score_no_trial_is_among_the_best(score: float | None) -> None:
    trials = [stored("a", score, s10=1), stored("b", 0.0, "pruned", s10=1)]
    assert to_drop(trials, 2, None) == {"a": [10]}
    assert to_drop(trials, None, 0) == {"a": [10]}


def test_of_equals_the_first_name_is_kept_whatever_the_order() -> None:
    trials = [stored(n, 0.5, s10=1) for n in "dbca"]
    for seed in range(5):
        random.Random(seed).shuffle(trials)
        assert to_drop(trials, 2, None) == {"c": [10], "d": [10]}


@pytest.mark.parametrize(
    ("budget", "gone"),
    [
        (6, {}),
        (5, {"a": [10]}),
        (4, {"a": [10, 20]}),
        (3, {"a": [10, 20], "c": [10]}),
        (2, {"a": [10, 20], "c": [10, 20]}),
        (1, {"a": [10, 20], "c": [10, 20], "b": [10]}),
    ],
)
def test_over_the_budget_the_worst_goes_first_and_of_it_the_oldest(budget: int, gone: dict[str, list[int]]) -> None:
    assert to_drop(THREE, None, budget) == gone


def test_the_newest_checkpoint_of_the_best_is_not_given_up_for_bytes() -> None:
    assert to_drop(THREE, None, 0)["b"] == [10]


def test_the_budget_counts_what_the_best_have_left() -> None:
    assert to_drop(THREE, 2, 4) == {"a": [10, 20]}
    assert to_drop(THREE, 2, 3) == {"a": [10, 20], "c": [10]}


@pytest.mark.parametrize("status", ["", "failed"])
def test_an_open_or_failed_trial_keeps_everything_and_counts(status: str) -> None:
    kept = stored("z", None, status, s10=5, s20=5)
    assert to_drop([kept], 0, 0) == {}
    assert to_drop([*THREE, kept], None, 15) == {"a": [10]}


def test_a_trial_without_checkpoints_is_not_named() -> None:
    assert to_drop([stored("a", 0.1), stored("b", 0.2, s10=1)], 0, None) == {"b": [10]}
    assert to_drop([], 1, 1) == {}


@pytest.mark.parametrize("seed", range(50))
def test_what_is_never_broken(seed: int) -> None:
    r = random.Random(seed)

    def any_trial(i: int) -> Stored:
        checkpoints = {10 * s: r.randint(1, 9) for s in range(r.randint(0, 3))}
        score = r.choice([None, math.nan, 0.1, 0.2, 0.3])
        return Stored(f"{i:02d}", r.choice([*ENDED, "", "failed"]), score, checkpoints)

    trials = [any_trial(i) for i in range(r.randint(0, 12))]
    keep, budget = r.choice([None, 0, 1, 3]), r.choice([None, 0, 10, 40])
    drop = to_drop(trials, keep, budget)
    by_name = {t.name: t for t in trials}
    assert all(by_name[n].status in ENDED and steps for n, steps in drop.items())
    for name, steps in drop.items():
        assert steps == sorted(by_name[name].checkpoints)[: len(steps)]
    left: list[Any] = [
        t._replace(checkpoints={s: b for s, b in t.checkpoints.items() if s not in drop.get(t.name, [])})
        for t in trials
    ]
    assert to_drop(left, keep, budget) == {}
    if keep is not None:
        assert sum(bool(t.checkpoints) for t in left if t.status in ENDED) <= keep
    if budget is not None and sum(sum(t.checkpoints.values()) for t in left) > budget:
        assert sum(len(t.checkpoints) for t in left if t.status in ENDED) <= 1


# -- what there is on disk


def test_sizes_are_of_whole_checkpoints_alone(tmp_path: Path) -> None:
    for step, names in ((30, ("state.pt",)), (20, ("state.pt", "manifest.json"))):
        path_of(tmp_path, step).mkdir()
        for name in names:
            (path_of(tmp_path, step) / name).write_bytes(b"x" * step)
    for stranger in (".step_00000040.ab", "step_00000050.ab.corrupt", "other"):
        (tmp_path / stranger).mkdir()
        (tmp_path / stranger / "state.pt").write_bytes(b"x")
    assert list(sizes(tmp_path).items()) == [(20, 40), (30, 30)]
    assert sizes(tmp_path / "nowhere") == {}


def test_a_file_behind_a_link_counts_no_bytes(tmp_path: Path) -> None:
    path_of(tmp_path, 10).mkdir()
    (tmp_path / "big").write_bytes(b"x" * 10_000)
    (path_of(tmp_path, 10) / "state.pt").symlink_to(tmp_path / "big")
    assert sizes(tmp_path)[10] < 1000


def test_a_checkpoint_that_its_run_removes_meanwhile_counts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (10, 20):
        path_of(tmp_path, step).mkdir()
        (path_of(tmp_path, step) / "state.pt").write_bytes(b"x" * step)
    original = checkpoint.os.walk

    def walk(path: Path) -> Any:
        for found in original(path):
            if path.name == "step_00000010":
                checkpoint.remove(tmp_path, 10)
            yield found

    monkeypatch.setattr(checkpoint.os, "walk", walk)
    assert sizes(tmp_path) == {10: 0, 20: 20}
