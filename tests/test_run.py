import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from offrl_ray import checkpoint
from offrl_ray.checkpoint import TENSORS, path_of, steps
from offrl_ray.config import RunConfig, resolve
from offrl_ray.data.dataset import Dataset
from offrl_ray.errors import CheckpointError, UsageError
from offrl_ray.evaluate import EvalRequest, EvalResult, Evaluator, LocalEvaluator, evaluate_members
from offrl_ray.records import Writer, read
from offrl_ray.run import KEEP, Record, Update, load_data, run
from offrl_ray.sweep.state import COLUMNS
from tests.conftest import TINY, MakeRun, ToyEnv, WriteFile

Run = tuple[RunConfig, Dataset]


class Held:
    """Answers nothing until it is told to; `error` is what it answers then."""

    def __init__(self, error: str = "", held: bool = True):
        self.requests, self.open, self.error, self.held = list[EvalRequest](), list[EvalRequest](), error, held

    def submit(self, request: EvalRequest) -> None:
        self.requests.append(request)
        self.open.append(request)

    def poll(self, timeout: float) -> list[EvalResult]:
        if self.held:
            return []
        done, self.open = self.open, []
        if self.error:
            return [EvalResult(r.step, r.digest, {}, 0.0, self.error) for r in done]
        return [evaluate_members(r, ToyEnv()) for r in done]

    @property
    def pending(self) -> int:
        return len(self.open)


def updates(
    of: Run, folder: Path, evaluator: Evaluator | None = None, known: Sequence[Record] = ()
) -> Generator[Update]:
    """The run as a driver sees it, after it has recorded `known`."""
    evaluated = frozenset(r["step"] for r in known if r["kind"] == "eval")
    reported = {r["seed"]: r["step"] for r in known if r["kind"] == "train"}
    return run(of[0], of[1], folder, evaluator or LocalEvaluator(ToyEnv), "00", evaluated, reported)


def killed(of: Run, folder: Path, pauses: int, evaluator: Evaluator | None = None) -> list[Record]:
    """What a run told up to a pause, and `folder` as a SIGKILL leaves it there."""
    living = folder.with_name("living")
    living.mkdir()
    with closing(updates(of, living, evaluator)) as going:
        found = records(islice(going, pauses))
        shutil.copytree(living, folder)
    return found


def closed(of: Run, folder: Path, pauses: int) -> list[Record]:
    """What a run told up to a pause at which it is asked to end."""
    with closing(updates(of, folder)) as going:
        return records(islice(going, pauses))


def records(found: Iterator[Update]) -> list[Record]:
    return [r for u in found for r in u.records]


def kinds(found: list[Record]) -> list[tuple[Any, ...]]:
    return [(r["kind"], r.get("step"), *([r["seed"]] if "seed" in r else [])) for r in found]


def evals(found: list[Record]) -> dict[tuple[int, int], Record]:
    """By step and seed, without what a clock says and who was evaluated beside."""
    return {(r["step"], r["seed"]): {**r, "seconds": 0, "members": []} for r in found if r["kind"] == "eval"}


def tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, dict):
        for v in tree.values():
            yield from tensors(v)
    else:
        yield tree


def assert_same_end(folder: Path, other: Path, member: int | None = None) -> None:
    """Equal bit for bit: weights, optimisers, targets and random streams."""
    a, b = (checkpoint.load(path_of(f, 12)).snapshot for f in (folder, other))
    pairs = list(zip(tensors(a.state), tensors(b.state), strict=True)) + [(a.generators, b.generators)]
    assert len(pairs) > 10
    assert all(x.equal(y) if member is None else x[member].equal(y[member]) for x, y in pairs)


@pytest.fixture(scope="module")
def whole(tiny: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path, list[Record]]:
    """A run that nothing disturbed."""
    of, folder = tiny(), tmp_path_factory.mktemp("whole")
    return of, folder, records(updates(of, folder))


def test_a_run_tells_its_records_in_order(whole: tuple[Run, Path, list[Record]]) -> None:
    expected: list[tuple[Any, ...]] = [("start", 0)]
    for step in (2, 4, 6, 8, 10, 12):
        expected += [("train", step, s) for s in (0, 1)]
        expected += [("eval", step, s) for s in (0, 1) if step % 4 == 0]
    assert kinds(whole[2]) == [*expected, ("end", 12)]


def test_the_last_update_alone_is_done(tiny: MakeRun, tmp_path: Path) -> None:
    found = list(updates(tiny(), tmp_path / "x"))
    assert [u.done for u in found] == [False] * (len(found) - 1) + [True]
    assert [u.step for u in found] == sorted(u.step for u in found)


def test_records_hold_what_the_format_promises(whole: tuple[Run, Path, list[Record]], tmp_path: Path) -> None:
    promised = {
        "start": {"trial", "step"},
        "train": {"trial", "seed", "step", "metrics", "seconds"},
        "eval": {"trial", "seed", "step", "digest", "env", "episode_seeds", "success_once", "success_at_end"}
        | {"return", "length", "q_start", "discounted_return", "seconds"},
        "end": {"trial", "status", "reason", "step", "diverged", "cost"},
    }
    with Writer(tmp_path / "records") as w:
        for r in whole[2]:
            w.write(**r)
    log = read(tmp_path / "records")
    assert log.problems == []
    missing = {(r["kind"], key) for r in log.records for key in promised[r["kind"]] - set(r)}
    assert missing == set()


def test_an_evaluation_is_bound_to_its_checkpoint_environment_and_seeds(whole: tuple[Run, Path, list[Record]]) -> None:
    (cfg, _), folder, found = whole
    for step in steps(folder):
        digest = checkpoint.load(path_of(folder, step)).digest
        for seed in (0, 1):
            record = evals(found)[step, seed]
            assert (record["digest"], record["env"]["id"]) == (digest, "Toy-v1")
            assert record["episode_seeds"] == [cfg.eval.seed, cfg.eval.seed + 1]
            assert {len(record[k]) for k in COLUMNS} == {2}


def test_the_end_says_completed_and_what_it_cost(whole: tuple[Run, Path, list[Record]]) -> None:
    end = whole[2][-1]
    assert (end["status"], end["reason"], end["step"], end["diverged"]) == ("completed", "", 12, {})
    assert all(v >= 0 for v in end["cost"].values())
    assert end["cost"]["wall_seconds"] >= end["cost"]["train_seconds"] > 0


@pytest.mark.parametrize("pauses", range(7))
@pytest.mark.parametrize("stop", [killed, closed])
def test_a_run_stopped_at_any_pause_ends_as_if_it_never_had(
    stop: Callable[..., list[Record]], pauses: int, whole: tuple[Run, Path, list[Record]], tmp_path: Path
) -> None:
    of, reference, uninterrupted = whole
    first = stop(of, tmp_path / "x", pauses)
    second = records(updates(of, tmp_path / "x", known=first))
    reached = max(0, 2 * (pauses - 1))
    saved = reached if stop is closed else reached // 4 * 4
    assert kinds(second)[0] == ("start", saved)
    assert_same_end(tmp_path / "x", reference)
    assert evals(first) | evals(second) == evals(uninterrupted)
    assert not evals(first).keys() & evals(second).keys()
    assert trains(first) | trains(second) == trains(uninterrupted)
    again = {step for step, _ in trains(first).keys() & trains(second).keys()}
    assert again == {step for step in range(2, reached + 1, 2) if step > saved}
    assert second[-1]["status"] == "completed"


def test_what_a_checkpoint_knows_and_no_record_tells_is_told_again(
    whole: tuple[Run, Path, list[Record]], tmp_path: Path
) -> None:
    """A driver may die between a trial's checkpoint and the record of what led to it."""
    of, _, uninterrupted = whole
    first = killed(of, tmp_path / "x", 5)
    lost = [r for r in first if r.get("step", 0) <= 4]
    second = records(updates(of, tmp_path / "x", known=lost))
    assert kinds(second)[:5] == [("start", 8), *[("train", s, m) for s in (6, 8) for m in (0, 1)]]
    assert trains(lost) | trains(second) == trains(uninterrupted)


def trains(found: list[Record]) -> dict[tuple[int, int], Any]:
    return {(r["step"], r["seed"]): r["metrics"] for r in found if r["kind"] == "train"}


def test_the_seconds_of_training_count_on_after_a_resume(tiny: MakeRun, tmp_path: Path) -> None:
    of = tiny()
    first = killed(of, tmp_path / "x", 5)
    second = records(updates(of, tmp_path / "x", known=first))
    before = max(r["seconds"] for r in first if r["kind"] == "train" and r["step"] <= 8)
    assert min(r["seconds"] for r in second if r["kind"] == "train") > before


def test_a_finished_run_has_nothing_left_to_train(whole: tuple[Run, Path, list[Record]], tmp_path: Path) -> None:
    of, folder, found = whole
    assert kinds(records(updates(of, shutil.copytree(folder, tmp_path / "x"), known=found))) == [
        ("start", 12),
        ("end", 12),
    ]


def test_evaluations_that_were_never_recorded_are_asked_again(
    whole: tuple[Run, Path, list[Record]], tmp_path: Path
) -> None:
    of, reference, uninterrupted = whole
    lost = Held()
    first = killed(of, tmp_path / "x", 6, lost)
    assert [r.step for r in lost.requests] == [4, 8]
    assert evals(first) == {}
    second = records(updates(of, tmp_path / "x"))
    assert evals(second) == evals(uninterrupted)
    assert_same_end(tmp_path / "x", reference)


def test_what_a_run_tells_that_goes_on_at_its_last_step_is_told_once(
    whole: tuple[Run, Path, list[Record]], tmp_path: Path
) -> None:
    """It has nothing to train, and waits for evaluations that were lost."""
    of, folder, _ = whole
    found = kinds(records(islice(updates(of, shutil.copytree(folder, tmp_path / "x"), Held()), 4)))
    assert found[0] == ("start", 12)
    assert len(found) == len(set(found)) > 1


def test_an_evaluation_in_flight_at_the_end_is_waited_for(tiny: MakeRun, tmp_path: Path) -> None:
    held = Held()
    going = updates(tiny(), tmp_path / "x", held)
    first = records(islice(going, 9))
    assert kinds(first)[-1] == ("train", 12, 1)
    held.held = False
    assert kinds(records(going)) == [("eval", s, m) for s in (4, 8, 12) for m in (0, 1)] + [("end", 12)]


def test_a_checkpoint_lies_on_the_disk_before_its_evaluation_is_asked(tiny: MakeRun, tmp_path: Path) -> None:
    class Checking(Held):
        def submit(self, request: EvalRequest) -> None:
            assert checkpoint.load(path_of(tmp_path / "x", request.step)).digest == request.digest
            super().submit(request)

    checking = Checking(held=False)
    records(updates(tiny(), tmp_path / "x", checking))
    assert [r.step for r in checking.requests] == [4, 8, 12]


def test_only_the_newest_checkpoints_are_kept(whole: tuple[Run, Path, list[Record]]) -> None:
    assert steps(whole[1]) == [4, 8, 12][-KEEP:]


def test_a_checkpoint_is_kept_until_its_evaluation_is_reported(tiny: MakeRun, tmp_path: Path) -> None:
    of = tiny(train__steps=24)
    held = Held()
    going = updates(of, tmp_path / "x", held)
    for _ in islice(going, 9):
        pass
    assert steps(tmp_path / "x") == [4, 8, 12, 16]
    held.held = False
    records(going)
    assert steps(tmp_path / "x") == [20, 24]


def damage(folder: Path, step: int) -> None:
    path = path_of(folder, step) / TENSORS
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_a_damaged_newest_checkpoint_is_noted_and_the_older_one_taken(
    whole: tuple[Run, Path, list[Record]], tmp_path: Path
) -> None:
    of, reference, uninterrupted = whole
    first = killed(of, tmp_path / "x", 6)
    damage(tmp_path / "x", 8)
    second = records(updates(of, tmp_path / "x", known=first))
    assert kinds(second)[0] == ("start", 4)
    assert ["step_00000008 is damaged" in r["text"] for r in second if r["kind"] == "note"] == [True]
    assert_same_end(tmp_path / "x", reference)
    assert evals(first) | evals(second) == evals(uninterrupted)
    assert len(list((tmp_path / "x").glob("step_00000008.*.corrupt"))) == 1


@pytest.mark.parametrize("recorded", [True, False])
def test_a_damaged_older_checkpoint_stops_nothing(
    recorded: bool, whole: tuple[Run, Path, list[Record]], tmp_path: Path
) -> None:
    of, reference, _ = whole
    first = killed(of, tmp_path / "x", 6, None if recorded else Held())
    damage(tmp_path / "x", 4)
    second = records(updates(of, tmp_path / "x", known=first))
    assert kinds(second)[0] == ("start", 8)
    assert_same_end(tmp_path / "x", reference)


def test_with_all_checkpoints_damaged_nothing_is_trained_again_from_0(tiny: MakeRun, tmp_path: Path) -> None:
    of, folder = tiny(), tmp_path / "x"
    first = killed(of, folder, 6)
    for step in (4, 8):
        damage(folder, step)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"step_00000008.*\.corrupt; delete the folder"):
            records(updates(of, folder, known=first))
    assert steps(folder) == []


def test_a_folder_of_another_config_is_refused(tiny: MakeRun, tmp_path: Path) -> None:
    records(updates(tiny(), tmp_path / "x"))
    before = sorted(p.name for p in (tmp_path / "x").iterdir())
    with pytest.raises(UsageError, match="another config"):
        records(updates(tiny(algo__alpha=0.5), tmp_path / "x"))
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == before


# -- divergence


def test_a_diverged_run_stops_early_and_says_why_for_each_seed(tiny: MakeRun, tmp_path: Path) -> None:
    found = records(updates(tiny(algo__lr_critic=1e30), tmp_path / "x"))
    end = found[-1]
    assert (end["kind"], end["status"], list(end["diverged"])) == ("end", "diverged", ["0", "1"])
    assert end["step"] < 12
    for seed, why in end["diverged"].items():
        assert f"seed {seed}: {why}" in end["reason"]
        assert "nan" in why or "inf" in why
        assert str(end["step"]) in why
    assert not any(r["kind"] == "eval" and r["step"] == end["step"] for r in found)


def plant(of: Run, folder: Path, step: int, part: str, member: int) -> None:
    """NaN in one member's weights of a saved state."""
    saved = checkpoint.load(path_of(folder, step))
    tree = saved.snapshot.state["acting"] if part == "policy_ema" else saved.snapshot.state
    next(tensors(tree[part]))[member].fill_(torch.nan)
    checkpoint.save(folder, saved.snapshot, of[0], of[1].spec, 0.0, {})


@pytest.mark.parametrize("part", ["policy", "policy_ema", "critic", "critic_target"])
def test_one_diverged_member_leaves_the_other_as_it_was(
    part: str, whole: tuple[Run, Path, list[Record]], tmp_path: Path
) -> None:
    of, reference, uninterrupted = whole
    first = killed(of, tmp_path / "x", 3)
    plant(of, tmp_path / "x", 4, part, member=1)
    second = records(updates(of, tmp_path / "x", known=first))
    end = second[-1]
    assert (end["status"], end["step"], list(end["diverged"])) == ("completed", 12, ["1"])
    assert "seed 1" in end["reason"]
    assert_same_end(tmp_path / "x", reference, member=0)
    expected = {k: {**v, "digest": ""} for k, v in evals(uninterrupted).items() if k[0] > 4 and k[1] == 0}
    assert {k: {**v, "digest": ""} for k, v in evals(second).items()} == expected
    assert {r["step"] for r in second if r["kind"] == "train" and r["seed"] == 1} <= {6}


def test_a_diverged_member_is_not_evaluated_after_a_resume_either(tiny: MakeRun, tmp_path: Path) -> None:
    """Its critic is NaN and its policy, which the critic does not touch at alpha 0, is finite."""
    of = tiny(algo__alpha=0)
    first = killed(of, tmp_path / "x", 3)
    plant(of, tmp_path / "x", 4, "critic", member=1)
    lost = Held()
    with closing(updates(of, tmp_path / "x", lost, known=first)) as going:
        assert kinds(records(islice(going, 3)))[-1] == ("train", 8, 0)
    assert [(r.step, list(r.members)) for r in lost.requests] == [(8, [0])]
    again = Held()
    with closing(updates(of, tmp_path / "x", again, known=first)) as going:
        next(going)
    assert [(r.step, list(r.members)) for r in again.requests] == [(8, [0])]


def test_a_failed_evaluation_is_noted_and_a_missing_final_one_is_no_success(tiny: MakeRun, tmp_path: Path) -> None:
    found = records(updates(tiny(), tmp_path / "x", Held("attempt 3: the simulator died", held=False)))
    notes = [r["text"] for r in found if r["kind"] == "note"]
    assert [("at step " + s in n, "the simulator died" in n) for s, n in zip(("4", "8", "12"), notes, strict=True)] == [
        (True, True)
    ] * 3
    assert (found[-1]["status"], found[-1]["reason"]) == ("failed", "the final evaluation is missing")
    assert steps(tmp_path / "x") == [4, 8, 12]


# -- data


def test_load_data_names_the_environment_and_what_is_in_each_file(tiny: MakeRun, write_file: WriteFile) -> None:
    path = write_file([5, 7], name="other")
    data = load_data(resolve(TINY | {"data.files": [str(path)]}))
    assert (data.env_id, data.spec.action_dim, len(data.files)) == ("Toy-v1", 7, 1)
    assert (data.files[0]["episodes"], data.files[0]["steps"], data.files[0]["problems"]) == (2, 12, [])


def test_a_network_that_does_not_fit_the_chunk_is_found_with_the_data(write_file: WriteFile) -> None:
    flat = {"algo.name": "cpql", "algo.network.kind": "unet", "data.act_horizon": 2, "data.pred_horizon": 5}
    with pytest.raises(UsageError, match="pred_horizon"):
        load_data(resolve(flat | {"data.files": [str(write_file())]}))


def test_bad_data_is_refused_with_the_problems_of_every_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as e:
        load_data(resolve(TINY | {"data.files": [str(tmp_path / "a.h5"), str(tmp_path / "b.h5")]}))
    assert {"a.h5" in p for p in e.value.problems} == {True, False}
