"""The header: what was asked, what it cost, what is missing, and where n is too small."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from offrl_ray.data.hdf5 import TrajectoryFile
from offrl_ray.records import FILE
from results_analysis.header import cost, section
from results_analysis.load import Sweep
from results_analysis.words import speaker
from tests.story import by_first, only, read, table, texts
from tests.synthetic import T0, Record, Run, sweep

SAY = speaker("en")
AXES = {"algo.alpha": [0.0, 0.1, 0.2]}
FILE_ENTRY = {"file": "/a/b/demos.h5", "digest": "0123456789abcdef", "env_id": "Lift-v1", "episodes": 50, "steps": 900}
FILE_ENTRY |= {"reward_mode": "sparse", "success_rate": 0.8}


def make(point: Record, seed: int) -> Run:
    return Run(0.5)


def log(**more: Any) -> list[Record]:
    return list(sweep(make, AXES, **({"seeds": (0, 1, 2), "episodes": 100} | more)))


def facts(s: Sweep) -> dict[str, Any]:
    return {k: row["toy"] for k, row in by_first(table(section([s], SAY), "header")).items()}


def without(records: list[Record], trial: str, *kinds: str) -> list[Record]:
    return [r for r in records if not (r.get("trial") == trial and r["kind"] in kinds)]


def test_it_says_what_was_asked_of_which_data_and_code(tmp_path: Path) -> None:
    s = read(tmp_path, log(data=[FILE_ENTRY], versions={"offrl-ray": "0.1.0", "torch": "2", "code": "c0de"}))
    found = facts(s)
    assert (found["question"], found["variant"], found["code"]) == ("What does it do?", "cpql", "c0de")
    assert (found["libraries"], found["objective"]) == ("offrl-ray 0.1.0, torch 2", "success_once (max)")
    assert (found["training seeds"], found["updates per seed"]) == ("0, 1, 2", "1000")
    assert found["evaluation episodes per seed"] == "20"
    (row,) = table(section([s], SAY), "data").rows
    assert row == ["toy", "demos.h5", "0123456789ab", "Lift-v1", "sparse", 50, 0.8, 900]


def test_a_sweep_records_what_the_header_tells_of_its_data() -> None:
    recorded = TrajectoryFile(Path("x.h5"), "Lift-v1", {}, (), "", 0, []).summary()
    assert FILE_ENTRY.keys() <= recorded.keys()


def test_a_sweep_that_gathers_its_own_data_says_so(tmp_path: Path) -> None:
    (row,) = table(section([read(tmp_path, log(data=[]))], SAY), "data").rows
    assert row[1] == "none: it gathers its own"


def test_every_point_is_in_one_state_and_the_missing_are_named(tmp_path: Path) -> None:
    points = [{"algo.alpha": a} for a in (0.0, 0.1, 0.2, 0.3, 0.4)]
    records = log(points=points)
    records = without(records, "0001", "start", "train", "eval", "end")
    records = without(records, "0002", "end")
    records = [r for r in records if not (r["kind"] == "eval" and r["trial"] == "0003" and r["step"] == 1000)]
    for r in records:
        if r["kind"] == "end" and r["trial"] == "0004":
            r |= {"status": "failed", "failure": "oom", "reason": "MemoryError"}
    s = read(tmp_path, records)
    found = facts(s)
    states = ("completed", "not started", "not finished", "not evaluated at the end", "failed")
    assert [found[f"points {state}"] for state in states] == [1] * 5
    warnings = texts(section([s], SAY), "warning")
    assert only(warnings, "failed") == "toy: 1 of 5 points failed: 0004"
    assert only(warnings, "not started").endswith(": 0001")
    assert only(warnings, "not finished").endswith(": 0002")
    assert only(warnings, "not evaluated").endswith(": 0003")


def test_a_search_says_how_many_points_it_may_still_ask_for(tmp_path: Path) -> None:
    cells = [{"index": 0, "axes": {}, "base": {}, "space": {"algo.lr": {}}}, {"index": 1, "axes": {}, "space": {}}]
    records = log(search={"sampler": "tpe", "trials": 4}, cells=cells)
    s = read(tmp_path, [*records, {"kind": "extend", "trials": 2}])
    assert facts(s)["points planned (of a search: at most)"] == 3 + 4 + 2
    assert only(texts(section([s], SAY)), "asked for") == "toy: 6 points of the search have not been asked for."


def test_a_damaged_line_is_told(tmp_path: Path) -> None:
    read(tmp_path, log())
    lines = (tmp_path / "toy" / FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / "toy" / FILE).write_bytes(b"".join([*lines[:5], b"damaged\n", *lines[6:]]))
    from results_analysis.load import load

    assert "records.jsonl:6" in only(
        texts(section([load(tmp_path / "toy")], SAY), "warning"), "problems in its records"
    )


def costly() -> list[Record]:
    """Trial 0 lost an attempt at 700 and went on from 400; 1 was pruned at 300; 2 is a copy. Two drivers, a pause."""
    records = []
    for r in log(seeds=(0, 1), episodes=20):
        if r["kind"] == "end" and r["trial"] == "0001":
            r |= {"status": "pruned", "step": 300}
        if r["kind"] == "end" and r["trial"] == "0000":
            fault = {"kind": "fault", "trial": "0000", "attempt": 1, "failure": "infra", "reason": "lost", "step": 700}
            records += [fault, {"kind": "start", "trial": "0000", "attempt": 2, "step": 400}]
        if r["kind"] == "start" and r["trial"] == "0002":
            r |= {"cached": "earlier:0002"}
        records.append(r)
    for i, r in enumerate(records):
        r["time"] = T0 + i
    pause = records[-1]["time"] + 1000
    return [
        *records,
        {"kind": "session", "versions": {}, "time": pause},
        {"kind": "note", "trial": "0000", "text": "", "time": pause + 20},
    ]


def test_the_cost_by_hand(tmp_path: Path) -> None:
    records = costly()
    found = facts(read(tmp_path, records))
    assert found["training time, summed over trials"] == "0:00:20"  # 10 s a trial, the copy cost nothing
    assert found["evaluation time, summed over trials"] == "0:00:10"  # 5 a trial of 1 s, both seeds together
    first = records[1]["time"]
    ran = records[-3]["time"] - first + 20  # the pause between the drivers does not count
    assert found["wall time of the drivers"] == f"0:0{int(ran) // 60}:{int(ran) % 60:02d}"
    assert found["updates lost to faults (over all seeds)"] == 2 * 300
    assert found["updates saved by stops (over all seeds)"] == 2 * 700
    assert found["GPU hours"] == "no GPU"


def test_gpu_hours_are_those_of_trials_while_they_train_and_of_evaluators_all_the_time(tmp_path: Path) -> None:
    records = log(resources={"gpus_per_trial": 0.5, "evaluators": 2, "gpus_per_evaluator": 0.25})
    records[-1]["time"] = T0 + 1 + 7200
    hours = (0.5 * 30 + 7200 * 0.5) / 3600
    assert facts(read(tmp_path, records))["GPU hours"] == f"{hours:.2f}"


def test_seeds_of_a_stack_that_goes_on_save_nothing(tmp_path: Path) -> None:
    def half(point: Record, seed: int) -> Run:
        return Run(0.5, stopped=0.5 if seed == 0 or point["algo.alpha"] == 0.2 else None)

    records = list(sweep(half, AXES, seeds=(0, 1)))
    for r in records:
        if r["kind"] == "end" and r["status"] == "diverged":
            r |= {"step": 500}
    assert facts(read(tmp_path, records))["updates saved by stops (over all seeds)"] == 2 * 500


@pytest.mark.parametrize(
    ("seeds", "said"), [((0,), "1 seed per point"), ((0, 1), "2 seeds per point"), ((0, 1, 2), "")]
)
def test_fewer_than_three_seeds_are_warned_of(tmp_path: Path, seeds: tuple[int, ...], said: str) -> None:
    found = [t for t in texts(section([read(tmp_path, log(seeds=seeds))], SAY), "warning") if "per point" in t]
    assert [said in t for t in found] == [True] * bool(said)


def enough(records: list[Record], episodes: int) -> list[Record]:
    for p in records[0]["points"]:
        p["config"]["eval"]["episodes"] = episodes
    return records


def test_few_episodes_are_warned_of_with_their_standard_error(tmp_path: Path) -> None:
    told = texts(section([read(tmp_path / "20", log())], SAY), "warning")
    assert "0.11; with 100 episodes it would be 0.05" in only(told, "20 evaluation episodes")  # sqrt(.45 * .55 / 20)
    many = read(tmp_path / "100", enough(log(), 100))
    assert texts(section([many], SAY), "warning") == []


def test_a_point_that_failed_saved_nothing(tmp_path: Path) -> None:
    records = log()
    for r in records:
        if r["kind"] == "end" and r["trial"] == "0001":
            r |= {"status": "failed", "failure": "code", "reason": "x", "step": 300}
    assert cost(read(tmp_path, records)).saved_updates == 0


def test_the_best_of_five_noisy_evaluations(tmp_path: Path) -> None:
    """The expected maximum of five normals is 1.163; the standard error with 20 episodes is 0.1112."""
    assert "by about 0.13 through" in only(texts(section([read(tmp_path, log())], SAY)), "up to 5 evaluations")


def test_the_best_of_many_evaluations_is_named_for_what_it_is(tmp_path: Path) -> None:
    """The seeds' case: the best of 20 evaluations of 100 episodes lies 0.09 above a flat 0.45."""
    s = read(tmp_path, enough(log(reports=20, evals=20), 100))
    assert "by about 0.09 through noise alone" in only(texts(section([s], SAY)), "up to 20 evaluations")


def test_versions_that_changed_on_the_way_are_told(tmp_path: Path) -> None:
    later: Mapping[str, Any] = {"kind": "session", "versions": {"offrl-ray": "0.1.0", "code": "f00d"}}
    told = texts(section([read(tmp_path, [*log(), dict(later)])], SAY), "warning")
    assert "code changed while it ran: c0de, f00d" in only(told, "changed")


def test_sweeps_stand_side_by_side(tmp_path: Path) -> None:
    both = [read(tmp_path, log(), n) for n in ("one", "two")]
    found = section(both, SAY)
    assert table(found, "header").columns == ["fact", "one", "two"]
    assert [row[0] for row in table(found, "data").rows] == ["one", "two"]


def test_counts_of_nothing_are_not_listed(tmp_path: Path) -> None:
    def half(point: Record, seed: int) -> Run:
        return Run(0.5, stopped=0.5 if point["algo.alpha"] else None)

    whole, lost = read(tmp_path, log(), "whole"), read(tmp_path, list(sweep(half, AXES, seeds=(0, 1, 2))), "lost")
    alone = {row[0] for row in table(section([whole], SAY), "header").rows}
    assert "points completed" in alone
    assert not alone & {"points diverged", "points failed", "updates lost to faults (over all seeds)"}
    both = by_first(table(section([whole, lost], SAY), "header"))
    assert both["points diverged"] == {"fact": "points diverged", "whole": 0, "lost": 2}
