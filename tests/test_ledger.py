import fcntl
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from offrl_ray import records
from offrl_ray.errors import UsageError
from offrl_ray.sweep.ledger import Ledger, check, place_problems, safe_trial
from offrl_ray.sweep.state import COLUMNS, State
from offrl_ray.sweep.status import driver_runs

Record = dict[str, Any]
POINT = {"trial": "a", "point": {}, "config": {}, "seeds": [0, 1], "steps": 4}
DATA = [{"file": "x.h5", "digest": "1"}, {"file": "y.h5", "digest": "2"}]
PLAN = {"kind": "plan", "name": "toy", "axes": {}, "points": [POINT], "digest": "d", "data": DATA}
SESSION = {"kind": "session", "host": "here", "pid": 17, "argv": [], "versions": {}}
START = {"kind": "start", "trial": "a", "attempt": 1, "step": 0}
TRAIN = {
    "kind": "train",
    "trial": "a",
    "attempt": 1,
    "seed": 0,
    "step": 2,
    "metrics": {"q": float("nan")},
    "seconds": 1,
}


def test_what_is_written_is_durable_then_known_and_then_shown(tmp_path: Path) -> None:
    seen = []
    with Ledger(tmp_path) as ledger:

        def learn(record: Record) -> None:
            seen.append((record["kind"], ledger.state.count, len(records.read(tmp_path).records)))

        ledger.write([PLAN, START], learn)
        ledger.write([TRAIN], learn)
    assert seen == [("plan", 1, 2), ("start", 2, 2), ("train", 3, 3)]


def test_replaying_shows_every_record_at_the_state_in_which_it_was_written(tmp_path: Path) -> None:
    live, again = [], []
    with Ledger(tmp_path) as ledger:
        ledger.write([PLAN, SESSION], lambda r: live.append((r["kind"], repr(ledger.state.trials))))
        ledger.write([START, TRAIN], lambda r: live.append((r["kind"], repr(ledger.state.trials))))
    with Ledger(tmp_path) as ledger:
        assert ledger.state.count == 4
        ledger.replay(lambda r: again.append((r["kind"], repr(ledger.state.trials))))
    assert again == live


def test_nothing_to_write_leaves_no_trace(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.write([])
        assert not (tmp_path / records.FILE).exists()


def test_a_second_owner_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        with pytest.raises(UsageError, match="by another process; `offrl-ray status"):
            Ledger(tmp_path)
        ledger.write([PLAN, SESSION])
        with pytest.raises(UsageError, match="by process 17 on 'here' since 20"):
            Ledger(tmp_path)
        assert driver_runs(tmp_path)
    assert not driver_runs(tmp_path)
    Ledger(tmp_path).close()


def test_a_folder_that_nobody_ever_drove(tmp_path: Path) -> None:
    assert not driver_runs(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_one_that_only_looks_does_not_keep_a_driver_out(tmp_path: Path) -> None:
    Ledger(tmp_path).close()
    fd = os.open(tmp_path / ".lock", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    look = threading.Timer(0.2, os.close, [fd])
    look.start()
    Ledger(tmp_path).close()
    look.join()


def test_records_that_cannot_be_understood_leave_no_lock_behind(tmp_path: Path) -> None:
    (tmp_path / records.FILE).write_bytes(records.encode({"v": records.VERSION, "seq": 0, "kind": "plan"}))
    with pytest.raises(UsageError, match="not as this version writes it") as e:
        Ledger(tmp_path)
    assert not driver_runs(tmp_path), e


def state(*log: Record) -> State:
    return State(log)


def test_a_free_folder_and_the_same_work_on_the_same_data_are_fine(tmp_path: Path) -> None:
    for held in (state(), state(PLAN)):
        check(tmp_path, held, {"digest": "d", "data": DATA})


@pytest.mark.parametrize(
    ("log", "digest", "data", "message"),
    [
        ([PLAN], "other", DATA, "holds another run or sweep"),
        ([START], "d", DATA, "holds another run or sweep"),  # its plan's line is damaged
        ([PLAN], "d", [DATA[0], {"file": "y.h5", "digest": "3"}], "on other data: y.h5 has changed"),
        ([PLAN], "d", DATA[::-1], "on other data: their order or number has changed"),
        ([PLAN], "d", DATA[:1], "on other data: their order or number has changed"),
    ],
)
def test_other_work_and_other_data_are_refused(
    tmp_path: Path, log: list[Record], digest: str, data: list[Record], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check(tmp_path, state(*log), {"digest": digest, "data": data})


def test_another_sweep_is_told_what_it_has_otherwise(tmp_path: Path) -> None:
    old = {"base": {"data.files": ["/home/a/x.h5"], "train.steps": 10, "env.id": "X-v1"}, "axes": {"algo.lr": [1, 2]}}
    now = {"base": {"data.files": ("/home/b/x.h5",), "train.steps": 10, "eval.every": 5}}
    now |= {"domains": {"algo.lr": {"low": 1}}, "digest": "other", "data": DATA}
    with pytest.raises(UsageError) as e:
        check(tmp_path, state(PLAN | old), now)
    assert (
        "its plan differs: algo.lr was [1, 2] and is {'low': 1}, data.files was ['/home/a/x.h5'] and is "
        "['/home/b/x.h5'], env.id was 'X-v1' and is not set, eval.every was not set and is 5; choose another folder"
    ) in str(e.value)
    with pytest.raises(UsageError, match="its plan differs; choose"):
        check(tmp_path, state(PLAN), now)


@pytest.mark.parametrize("name", ["..", "a/b", "", ".x", "a\n", "x" * 65, None, 3])
def test_a_forged_name_leads_nowhere(tmp_path: Path, name: object) -> None:
    with pytest.raises(UsageError, match="do not trust"):
        safe_trial(tmp_path, name)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    inside, outside = tmp_path / "sweep", tmp_path / "outside"
    (inside / "trials").mkdir(parents=True)
    outside.mkdir()
    (inside / "trials" / "a").symlink_to(outside)
    assert safe_trial(inside, "b") == inside / "trials" / "b"
    with pytest.raises(UsageError, match="is a link"):
        safe_trial(inside, "a")


def test_where_results_cannot_go(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert place_problems(tmp_path / "new" / "deep") == []
    (problem,) = place_problems(tmp_path / "file" / "new")
    assert "is no folder" in problem


def test_an_evaluation_counts_as_done_when_all_its_seeds_are_recorded(tmp_path: Path) -> None:
    """A kill may leave the first records of a report alone."""
    fields = {"attempt": 1, "step": 4, "members": [0, 1], "episodes": 1}
    columns = {k: [1] for k in COLUMNS}
    part = [{"kind": "eval", "trial": "a", "seed": s, **fields, **columns} for s in (0, 1)]
    half, whole = state(PLAN, START, part[0]).trials["a"], state(PLAN, START, *part).trials["a"]
    assert (half.evaluated(), whole.evaluated()) == (frozenset(), frozenset({4}))


def test_reports_are_counted_by_seed(tmp_path: Path) -> None:
    """Likewise: seed 1's report of step 2 is still owed."""
    assert state(PLAN, START, TRAIN).trials["a"].reported == {0: 2}


@pytest.mark.parametrize("kind", ["fault", "end"])
def test_an_attempt_that_is_lost_before_its_start_has_its_number(kind: str) -> None:
    lost = {"kind": kind, "trial": "a", "attempt": 2, "failure": "infra", "reason": "", "step": 0, "status": "failed"}
    assert state(PLAN, START, {**lost, "diverged": {}, "cost": {}}).trials["a"].attempt == 2


def test_a_retry_forgets_that_somebody_wanted_the_trial_stopped() -> None:
    lost = {"kind": "end", "trial": "a", "attempt": 1, "failure": "code", "reason": "", "step": 0, "status": "failed"}
    stop, retry = {"kind": "stop", "trial": "a", "reason": "user"}, {"kind": "retry", "trial": "a"}
    assert state(PLAN, START, stop).trials["a"].stop == "user"
    assert state(PLAN, START, stop, {**lost, "diverged": {}, "cost": {}}, retry).trials["a"].stop is None
