import csv
import errno
import math
from pathlib import Path
from typing import Any

import filelock
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from offrl_ray.errors import UsageError
from offrl_ray.records import FILE
from offrl_ray.sweep import derived, events, study
from offrl_ray.sweep.derived import EVENTS, TABLE, rebuild
from offrl_ray.sweep.events import EventFiles
from offrl_ray.sweep.status import LOCK
from tests import ledgers
from tests.ledgers import after, end, evaluation, fault, note, numbered, plan, point, session, start, train, whole, work

Record = dict[str, Any]
BEGIN = [plan([point("00"), point("01")]), session()]


def scalars(folder: Path, trial: str = "00", seed: int = 0) -> dict[str, list[tuple[int, float]]]:
    """tag -> [(step, value)], as TensorBoard itself reads them."""
    events = EventAccumulator(str(folder / trial / f"seed_{seed}"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def live(folder: Path, *drivers: list[Record]) -> None:
    """What drivers write, each knowing what those before it recorded."""
    log: list[Record] = []
    for records in drivers:
        files = EventFiles(folder, numbered(log))
        for r in numbered([*log, *records])[len(log) :]:
            files.add(r)
        log += records  # no close: the driver is killed


# -- event files


def test_tensorboard_reads_every_metric_at_its_step_for_each_seed(tmp_path: Path) -> None:
    live(tmp_path, [*work("00", 6), evaluation("00", 8, seed=1)])
    assert scalars(tmp_path)["train/q_mean"] == [(2, 2.0), (4, 4.0), (6, 6.0)]
    assert scalars(tmp_path)["train/loss"] == [(2, -1.0), (4, -1.0), (6, -1.0)]
    assert scalars(tmp_path, seed=1)["train/q_mean"] == [(2, 2.5), (4, 4.5), (6, 6.5)]
    evals = {k: v for k, v in scalars(tmp_path, seed=1).items() if k.startswith("eval/")}
    expected = {"success_once": 0.5, "success_at_end": 0.0, "return": 2.0, "length": 4.0}
    expected |= {"q_start": 1.5, "discounted_return": 0.5, "q_gap": 1.0}
    assert evals == {f"eval/{k}": [(4, v), (8, v)] for k, v in expected.items()}


def test_without_critic_there_is_nothing_of_one_to_draw(tmp_path: Path) -> None:
    live(tmp_path, [start("00"), evaluation("00", 4, q_start=None, discounted_return=None)])
    assert scalars(tmp_path).keys() == {f"eval/{k}" for k in ("success_once", "success_at_end", "return", "length")}


def test_a_q_that_is_not_finite_is_told_beside_the_return_that_came(tmp_path: Path) -> None:
    live(tmp_path, [start("00"), evaluation("00", 4, q_start=[math.inf, 1.0])])
    found = scalars(tmp_path)
    assert found["eval/discounted_return"] == [(4, 0.5)]
    assert found["nonfinite/q_start"] == found["nonfinite/q_gap"] == [(4, 1.0)]
    assert not {"eval/q_start", "eval/q_gap"} & found.keys()


def test_a_trial_that_no_plan_knows_has_its_curves_alone(tmp_path: Path) -> None:
    live(tmp_path, [start("00"), note("00", ""), evaluation("00", 4, once=[1]), end("00"), fault("00")])
    assert list(tmp_path.iterdir()) == []
    live(tmp_path, [start("00"), train("00", 2), end("00")])
    assert [p.name for p in tmp_path.rglob("*.0*")] == ["events.out.tfevents.00001"]
    assert set(scalars(tmp_path)) == {"train/q_mean", "train/loss"}


def test_numbers_that_are_not_finite_are_told_and_not_drawn(tmp_path: Path) -> None:
    ended = end("00", "diverged", step=2, diverged={"0": "a is nan"})
    live(tmp_path, [start("00"), train("00", 2, a=math.nan, b=-math.inf, c=1.0), ended])
    assert scalars(tmp_path) == {
        "train/c": [(2, 1.0)],
        "nonfinite/a": [(2, 1.0)],
        "nonfinite/b": [(2, 1.0)],
        "diverged": [(2, 1.0)],
    }


def test_how_far_q_lies_above_its_bound_is_a_curve(tmp_path: Path) -> None:
    high = [train("00", s, q_mean=5.0 * s, q_bound_high=b) for s, b in ((2, 4.0), (4, math.inf))]
    live(tmp_path, [*high, train("00", 6, q_mean=1.0)])
    assert scalars(tmp_path)["train/q_excess"] == [(2, 6.0)]
    assert scalars(tmp_path)["nonfinite/q_excess"] == [(4, 1.0)]


KILLED = [*BEGIN, *work("00", 10)]
STORIES: dict[str, list[list[Record]]] = {
    "from the newest checkpoint": [KILLED, [session(), *work("00", attempt=2, begin=8), end("00", attempt=2)]],
    "from an older checkpoint": [KILLED, [session(), *work("00", attempt=2, begin=4), end("00", attempt=2)]],
    "lost within one driver": [[*KILLED, fault("00"), *work("00", attempt=2, begin=8), end("00", attempt=2)]],
    "begun again within one driver": [[*KILLED, *work("00", attempt=2, begin=8), end("00", attempt=2)]],
    "killed three times": [KILLED, work("00", 10, 2, 8), work("00", 8, 3, 4), work("00", attempt=4, begin=8)],
    "an evaluation of the checkpoint is done again": [
        [*BEGIN, *work("00", 10)],
        [start("00", 2, 8), evaluation("00", 8, 0, 2), evaluation("00", 8, 1, 2), *work("00", 12, 2, 8)[1:]],
    ],
    "an evaluation of the checkpoint was still to come": [
        [*BEGIN, *(r for r in work("00", 10) if not (r["kind"] == "eval" and r["step"] == 8))],
        [start("00", 2, 8), evaluation("00", 8, 0, 2), evaluation("00", 8, 1, 2), *work("00", 12, 2, 8)[1:]],
    ],
    "a report after the end": [[*BEGIN, *work("00", 10), end("00"), *work("00")[-4:]]],
}


@pytest.mark.parametrize("story", STORIES)
def test_each_step_appears_once_after_a_resumed_attempt(story: str, tmp_path: Path) -> None:
    live(tmp_path, *STORIES[story])
    for seed in (0, 1):
        found = scalars(tmp_path, seed=seed)
        assert [s for s, _ in found["train/q_mean"]] == [2, 4, 6, 8, 10, 12]
        assert [s for s, _ in found["eval/return"]] == [4, 8, 12]


def test_a_report_can_be_read_at_once_and_few_files_stay_open(tmp_path: Path) -> None:
    files, open_files = EventFiles(tmp_path), Path("/proc/self/fd")
    before = len(list(open_files.iterdir()))
    for i in range(20):
        for r in numbered([start(f"{i:02d}"), train(f"{i:02d}", 2)]):
            files.add(r)
        assert scalars(tmp_path, f"{i:02d}")["train/loss"] == [(2, -1.0)]
        files.add(numbered([end(f"{i:02d}")])[0])
    assert len(list(open_files.iterdir())) == before


# -- rebuild


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("story", STORIES)
def test_rebuilt_event_files_show_what_the_driver_showed(story: str, tmp_path: Path) -> None:
    ledgers.write(tmp_path, [r for records in STORIES[story] for r in records])
    live(tmp_path / "live", *STORIES[story])
    rebuild(tmp_path)
    for seed in (0, 1):
        assert scalars(tmp_path / EVENTS, seed=seed) == scalars(tmp_path / "live", seed=seed)


def test_rebuilding_again_changes_nothing_and_leaves_nothing_beside(tmp_path: Path) -> None:
    ledgers.write(tmp_path, [*BEGIN, *whole("00"), *work("01", 4)])
    rebuild(tmp_path)
    before = content(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {FILE, EVENTS, TABLE, study.FILE}
    rebuild(tmp_path)
    after = content(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {FILE, EVENTS, TABLE, study.FILE}
    assert {k: v for k, v in after.items() if k != study.FILE} == {k: v for k, v in before.items() if k != study.FILE}


def test_a_resumed_driver_goes_on_after_a_rebuild(tmp_path: Path) -> None:
    log = ledgers.write(tmp_path, KILLED)
    rebuild(tmp_path)
    files = EventFiles(tmp_path / EVENTS, log)
    for r in numbered([*KILLED, *work("00", attempt=2, begin=8)])[len(KILLED) :]:
        files.add(r)
    assert [s for s, _ in scalars(tmp_path / EVENTS)["train/q_mean"]] == [2, 4, 6, 8, 10, 12]


def test_the_event_files_of_a_running_driver_are_left_alone(tmp_path: Path) -> None:
    ledgers.write(tmp_path, [*BEGIN, *whole("00")])
    live(tmp_path / EVENTS, [*BEGIN, *work("00", 4)])
    before = content(tmp_path / EVENTS)
    with filelock.FileLock(tmp_path / LOCK):
        assert [p.name for p in rebuild(tmp_path)] == [study.FILE, TABLE]
    assert content(tmp_path / EVENTS) == before
    assert {TABLE, study.FILE} <= {p.name for p in tmp_path.iterdir()}


@pytest.mark.parametrize("place", [(study, "write"), (events, "write"), (derived, "table")])
def test_a_rebuild_that_cannot_write_leaves_the_old_file(
    place: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledgers.write(tmp_path, [*BEGIN, *whole("00")])
    rebuild(tmp_path)
    before = content(tmp_path)

    def full(path: Any, *args: Any) -> str:
        if isinstance(path, Path):
            path.mkdir()
            (path / "part").write_text("part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*place, full)
    with pytest.raises(OSError, match="No space"):
        rebuild(tmp_path)
    after = content(tmp_path)
    assert after.keys() == before.keys()
    assert {k for k in after if after[k] != before[k]} <= {study.FILE} - ({study.FILE} if place[0] is study else set())


@pytest.mark.parametrize("name", ["../../evil", "a/b", "/tmp/evil", ".."])
def test_names_that_lead_out_of_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    ledgers.write(folder, [plan([point(name)]), session(), *whole(name)])
    before = content(tmp_path)
    with pytest.raises(UsageError, match="name must match"):
        rebuild(folder)
    assert content(tmp_path) == before


# -- the table


def test_the_table_has_a_row_for_every_trial_and_seed(tmp_path: Path) -> None:
    points = [point("00", {"algo.alpha": 0.1}), point("01", {"algo.beta": [8, 8]}), point("02", same_as="00")]
    lost = end("01", "failed", 2, 4, failure="oom", reason="out of\nmemory, twice")
    log = [*work("00", seeds=[0]), train("00", 6, 1, loss=math.nan), end("00", diverged={"1": "loss is nan"})]
    ledgers.write(tmp_path, [plan(points), session(), *log, *work("01", 4), fault("01"), start("01", 2), lost])
    rebuild(tmp_path)
    with (tmp_path / TABLE).open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert [(r["trial"], r["seed"], r["status"]) for r in rows] == [
        ("00", "0", "completed"),
        ("00", "1", "diverged"),
        ("01", "0", "failed"),
        ("01", "1", "failed"),
    ]
    first, second, third, _ = rows
    assert (first["algo.alpha"], first["eval/success_once"], first["train/q_mean"]) == ("0.1", "0.5", "12.0")
    assert (first["reason"], first["cost/wall_seconds"]) == ("", "20.0")
    assert (second["reason"], second["eval/success_once"], second["train/loss"]) == ("loss is nan", "", "nan")
    assert (third["failure"], third["reason"], third["attempts"]) == ("oom", "out of\nmemory, twice", "2")
    assert (third["step"], third["algo.alpha"], third["algo.beta"]) == ("4", "", "[8, 8]")


# -- the study


def studies(folder: Path) -> dict[str, optuna.Study]:
    storage = JournalStorage(JournalFileBackend(str(folder / study.FILE)))
    return {n: optuna.load_study(study_name=n, storage=storage) for n in optuna.get_all_study_names(storage)}


def test_a_grid_is_one_study_of_all_ends(tmp_path: Path) -> None:
    axes = {"algo.alpha": [0.1, 0.2], "algo.hidden": [[8], [8, 8]]}
    at = [{"algo.alpha": a, "algo.hidden": h} for a in (0.1, 0.2) for h in ([8], [8, 8])]
    points = [point(f"{i:02d}", p, cell=i) for i, p in enumerate([*at, {"algo.alpha": 0.1}])]
    log = [plan(points, axes=axes), session(), *whole("00"), *work("01", 4), end("01", "pruned", step=4, reason="rung")]
    log += [end("02", "diverged", step=2, reason="q", diverged={"0": "q", "1": "q"})]
    ledgers.write(tmp_path, [*log, end("03", "failed", failure="oom", reason="lost"), start("04")])
    rebuild(tmp_path)
    (only,) = studies(tmp_path).values()
    assert [t.state.name for t in only.trials] == ["COMPLETE", "PRUNED", "PRUNED", "FAIL"]
    done, pruned, diverged, failed = only.trials
    assert (done.params, done.values) == ({"algo.alpha": 0.1, "algo.hidden": "[8]"}, [0.5])
    assert (done.intermediate_values, pruned.intermediate_values) == ({4: 0.5, 8: 0.5, 12: 0.5}, {4: 0.5})
    assert (pruned.user_attrs["trial"], pruned.user_attrs["reason"], pruned.user_attrs["step"]) == ("01", "rung", 4)
    assert (diverged.user_attrs["status"], failed.user_attrs["failure"]) == ("diverged", "oom")
    assert only.best_trial.user_attrs["trial"] == "00"
    assert done.duration is not None
    assert done.duration.total_seconds() == 20.0


def test_a_search_is_a_study_for_every_cell_with_its_domains(tmp_path: Path) -> None:
    domains = {
        "algo.lr": {"kind": "float", "low": 1e-5, "high": 1e-2, "log": True},
        "algo.n": {"kind": "int", "low": 1, "high": 8, "log": False},
        "algo.kind": {"kind": "choice", "values": ["a", [1, 2]]},
    }
    found = {"algo.lr": 0.001, "algo.n": 3, "algo.kind": [1, 2]}
    asked = [
        {"kind": "point", **point(f"{i:02d}", found | {"algo.mode": m}, cell=i, number=0)} for i, m in enumerate("xy")
    ]
    asked.append({"kind": "point", **point("02", found | {"algo.mode": "x"}, cell=0, number=1, same_as="00")})
    more = {"objectives": after("success_once", "q_excess"), "search": {"trials": 2}}
    begin = [plan([], axes={"algo.mode": ["x", "y"]}, domains=domains, **more), session(), *asked]
    q = [train("00", 12, s, q_mean=3.0, q_bound_high=1.0) for s in (0, 1)]
    ledgers.write(tmp_path, [*begin, *work("00"), *q, end("00"), *whole("01")])
    rebuild(tmp_path)
    first, second = (s for _, s in sorted(studies(tmp_path).items()))
    (done,), (lacking,) = first.trials, second.trials
    assert [d.name for d in first.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert (done.state.name, done.values) == ("COMPLETE", [0.5, 2.0])
    assert done.params == {"algo.lr": 0.001, "algo.n": 3, "algo.kind": "[1, 2]", "algo.mode": "x"}
    assert done.distributions["algo.lr"] == optuna.distributions.FloatDistribution(1e-5, 1e-2, log=True)
    assert done.distributions["algo.n"] == optuna.distributions.IntDistribution(1, 8)
    assert (lacking.state.name, lacking.user_attrs["status"]) == ("FAIL", "completed")  # it reported no bound
