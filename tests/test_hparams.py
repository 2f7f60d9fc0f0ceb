import math
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.util import tensor_util

from offrl_ray.sweep.derived import EVENTS, rebuild
from offrl_ray.sweep.events import EventFiles
from offrl_ray.sweep.hparams import Table, end
from tests import ledgers
from tests.ledgers import CONFIG, fault, numbered, plan, point, session, start, train, whole, work

Record = dict[str, Any]
LR = {"kind": "float", "low": 1e-4, "high": 1e-2, "log": True}


def cells(*alive: Record, space: Record | None = None) -> list[Record]:
    return [{"index": i, "axes": at, "space": space or {}} for i, at in enumerate(alive)]


def table(points: list[Record], axes: Record, alive: list[Record], **more: Any) -> Table:
    (asked,) = numbered([{**plan(points, axes=axes, **more), "cells": cells(*alive, space=more.get("domains"))}])
    return Table(asked, [p["config"] for p in points])


def config(**algo: Any) -> Record:
    return CONFIG | {"algo": algo}


def experiment(of: Table) -> api_pb2.Experiment:
    return metadata.parse_experiment_plugin_data(of.experiment().value[0].metadata.plugin_data.content)


def columns(of: Table) -> dict[str, tuple[str, Any]]:
    """Key -> type, values or lowest and highest."""

    def domain(info: api_pb2.HParamInfo) -> Any:
        interval = info.domain_interval
        discrete = info.HasField("domain_discrete")
        return list(info.domain_discrete) if discrete else (interval.min_value, interval.max_value)

    kind = api_pb2.DataType.Name
    return {i.name: (kind(i.type).removeprefix("DATA_TYPE_"), domain(i)) for i in experiment(of).hparam_infos}


def values(of: Table, trial: Record) -> Record:
    """Key -> what a run of the trial says."""
    content = of.start(trial, 5.0).value[0].metadata.plugin_data.content
    info = metadata.parse_session_start_info_plugin_data(content)
    assert (info.group_name, info.start_time_secs) == (trial["trial"], 5.0)
    return {k: getattr(v, v.WhichOneof("kind")) for k, v in info.hparams.items()}


AXES: dict[str, tuple[list[Any], tuple[str, Any], Any]] = {
    "numbers": ([0.5, 2], ("FLOAT64", [0.5, 2.0]), 2.0),
    "many numbers, which TensorBoard would match with a pattern": (list(range(10)), ("FLOAT64", (0.0, 9.0)), 9.0),
    "truth values": ([True, False], ("BOOL", [True, False]), False),
    "a number and a truth value": ([0, True], ("STRING", ["0", "true"]), "true"),
    "texts": (["x", "y"], ("STRING", ["x", "y"]), "y"),
    "a number and none": ([5, None], ("STRING", ["5", "none"]), "none"),
    "lists": ([[8], [8, 16]], ("STRING", ["[8]", "[8, 16]"]), "[8, 16]"),
    "a number that is not finite": ([1.0, math.inf], ("STRING", ["1", "Infinity"]), "Infinity"),
}


@pytest.mark.parametrize("case", AXES)
def test_an_axis_is_a_column_of_one_type(case: str) -> None:
    asked, column, last = AXES[case]
    points = [point(str(i), {"algo.x": v}) for i, v in enumerate(asked)]
    made = table(points, {"algo.x": asked}, [{"algo.x": v} for v in asked])
    assert columns(made) == {"algo.x": column}
    assert values(made, points[-1]) == {"algo.x": last}


def test_an_axis_that_is_inert_somewhere_is_text_in_the_order_of_its_numbers() -> None:
    asked = [0.0, 1e-5, 0.25, 3, 12]
    at = [*({"algo.x": v} for v in asked), {}]
    points = [point(str(i), a) for i, a in enumerate(at)]
    made = table(points, {"algo.x": asked}, at)
    text = [" 0", " 0.00001", " 0.25", " 3", "12", "n/a"]
    assert columns(made) == {"algo.x": ("STRING", text)}
    assert [values(made, p)["algo.x"] for p in points] == text == sorted(text)


RANGES: dict[str, tuple[Record, tuple[float, float], list[str]]] = {
    "float": (
        {"kind": "float", "low": 0.0, "high": 9.0, "log": False},
        (0.0, 9.0),
        [str(i) for i in range(10)],
    ),
    "log": (
        {"kind": "float", "low": 1.0, "high": 512.0, "log": True},
        (1.0, 512.0),
        ["  1", "  2", "  4", "  8", " 16", " 32", " 64", "128", "256", "512"],
    ),
    "few": ({"kind": "int", "low": 7, "high": 11, "log": True}, (7.0, 11.0), [" 7", " 8", " 9", "10", "11"]),
    "many": (
        {"kind": "int", "low": 1, "high": 19, "log": True},
        (1.0, 19.0),
        [" 1", " 3", " 5", " 7", " 9", "11", "13", "15", "17", "19"],
    ),
}


@pytest.mark.parametrize("case", RANGES)
def test_a_range_is_an_interval_unless_it_is_inert_somewhere(case: str) -> None:
    domain, interval, text = RANGES[case]
    more = {"domains": {"algo.x": domain}, "search": {"trials": 2}}
    assert columns(table([], {}, [{}], **more)) == {"algo.x": ("FLOAT64", interval)}
    asked = {**plan([], axes={"algo.y": [1, 2]}, **more), "time": 0.0}
    asked["cells"] = [*cells({"algo.y": 1}, space=more["domains"]), *cells({"algo.y": 2})]
    kind, found = columns(Table(asked, []))["algo.x"]
    assert kind == "STRING"
    assert [f if f == "n/a" else float(f) for f in found] == [*map(pytest.approx, map(float, text)), "n/a"]
    assert found == sorted(found)
    assert {len(f.partition(".")[0]) for f in found[:-1]} == {len(text[-1])}


def test_a_searched_point_that_makes_its_own_number_inert_leaves_it_out() -> None:
    more = {"domains": {"algo.lr": LR}, "search": {"trials": 2}}
    made = table([], {}, [{}], **more)
    assert values(made, point("00", {"algo.lr": 0.005})) == {"algo.lr": 0.005}
    assert values(made, point("01", {})) == values(made, point("02", {"algo.lr": None})) == {}


def test_settings_that_differ_unasked_are_columns_too() -> None:
    configs = [
        config(name="a", alpha=1.0, width=32, net={"kind": "mlp"}),
        config(name="a", alpha=2.0, width=64, net={"kind": "unet"}),
        config(name="b", alpha=2.0, net={"kind": "unet"}),
    ]
    configs[2]["train"] = CONFIG["train"] | {"seeds": [7], "steps": 24}
    at = [{"algo.alpha": 1.0}, {"algo.alpha": 2.0}, {"algo.alpha": 2.0}]
    points = [point(str(i), a, config=c) for i, (a, c) in enumerate(zip(at, configs, strict=True))]
    made = table(points, {"algo.alpha": [1.0, 2.0]}, at)
    assert columns(made) == {
        "algo.alpha": ("FLOAT64", [1.0, 2.0]),
        "algo.name": ("STRING", ["a", "b"]),
        "algo.width": ("STRING", ["32", "64", "n/a"]),
        "algo.net.kind": ("STRING", ["mlp", "unet"]),
        "train.steps": ("FLOAT64", [12.0, 24.0]),
    }
    assert values(made, points[2]) == {
        "algo.alpha": 2.0,
        "algo.name": "b",
        "algo.width": "n/a",
        "algo.net.kind": "unet",
        "train.steps": 24.0,
    }


def test_what_the_default_of_an_inert_axis_is_does_not_matter() -> None:
    points = [point("0", {"algo.x": 1.0}, config=config(x=1.0)), point("1", {}, config=config(x=0.3))]
    made = table(points, {"algo.x": [1.0]}, [{"algo.x": 1.0}, {}])
    assert [values(made, p) for p in points] == [{"algo.x": "1"}, {"algo.x": "n/a"}]


def test_the_columns_that_differ_come_first_in_tensorboard() -> None:
    axes = {"algo.same": [1], "algo.other": [1, 2], "algo.gone": ["x"]}
    alive = [{"algo.same": 1, "algo.other": 1, "algo.gone": "x"}, {"algo.same": 1, "algo.other": 2}]
    made = table([point(str(i), at) for i, at in enumerate(alive)], axes, alive)
    assert {i.name: i.differs for i in experiment(made).hparam_infos} == {
        "algo.same": False,
        "algo.other": True,
        "algo.gone": True,
    }


def test_the_environments_of_searched_cells_are_a_column() -> None:
    asked = {**plan([], domains={"algo.lr": LR}, search={"trials": 2}), "time": 0.0}
    asked["cells"] = [
        {**c, "base": {"env.id": e}} for c, e in zip(cells({}, {}, space={"algo.lr": LR}), "AB", strict=True)
    ]
    made = Table(asked, [])
    assert columns(made) == {"algo.lr": ("FLOAT64", (1e-4, 1e-2)), "env.id": ("STRING", ["A", "B"])}
    at = point("00", {"algo.lr": 0.001}, config=CONFIG | {"env": {"id": "B"}})
    assert values(made, at) == {"algo.lr": 0.001, "env.id": "B"}


def test_the_metrics_are_those_that_the_sweep_records() -> None:
    def tags(made: Table) -> list[str]:
        return [m.name.tag for m in experiment(made).metric_infos]

    always = ["eval/success_at_end", "eval/return", "eval/length"]
    assert tags(table([point("0")], {}, [{}])) == ["eval/success_once", "diverged", *always]
    objectives = ledgers.after("q_excess", "return")
    made = table([point("0"), point("1", config=config(gamma=0.9))], {}, [{}], objectives=objectives)
    rest = ["eval/success_once", "eval/success_at_end", "eval/length", "eval/q_gap", "train/critic_loss"]
    assert tags(made) == ["train/q_excess", "eval/return", "diverged", *rest]


@pytest.mark.parametrize(
    ("status", "seed", "expected"),
    [("completed", 0, "SUCCESS"), ("pruned", 0, "SUCCESS"), ("failed", 0, "FAILURE"), ("completed", 1, "FAILURE")],
)
def test_a_failed_trial_and_a_diverged_seed_are_failures(status: str, seed: int, expected: str) -> None:
    (record,) = numbered([ledgers.end("00", status, diverged={"1": "q"})])
    content = end(record, seed).value[0].metadata.plugin_data.content
    info = metadata.parse_session_end_info_plugin_data(content)
    assert (api_pb2.Status.Name(info.status), info.end_time_secs) == (f"STATUS_{expected}", ledgers.T0)


# -- in the event files


def runs(folder: Path) -> dict[str, dict[str, Any]]:
    """Run -> what TensorBoard reads of it: tag -> steps; of a session, how it ended."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted({p.parent for p in folder.rglob("events.*")}):
        events = EventAccumulator(str(path))
        events.Reload()
        of: dict[str, Any] = found.setdefault(str(path.relative_to(folder)), {})
        for plugin in ("hparams", "text"):
            for tag, content in events.PluginTagToContent(plugin).items() if plugin in events.ActivePlugins() else ():
                of[tag] = [e.step for e in events.Tensors(tag)]
                if tag == metadata.SESSION_END_INFO_TAG:
                    info = metadata.parse_session_end_info_plugin_data(content)
                    of[tag] = api_pb2.Status.Name(info.status).removeprefix("STATUS_")
                if plugin == "text":
                    (of[tag],) = [tensor_util.make_ndarray(e.tensor_proto).item().decode() for e in events.Tensors(tag)]
        tags = events.PluginTagToContent("scalars") if "scalars" in events.ActivePlugins() else {}
        if "diverged" in tags:
            read = [(e.step, tensor_util.make_ndarray(e.tensor_proto).item()) for e in events.Tensors("diverged")]
            of["diverged"] = read
    return found


def follow(folder: Path, *drivers: list[Record]) -> None:
    """What drivers write, each knowing what those before it recorded."""
    log: list[Record] = []
    for records in drivers:
        all_ = numbered([*log, *records])
        files = EventFiles(folder, all_[: len(log)])
        for r in all_[len(log) :]:
            files.add(r)
        log += records


START, END, EXPERIMENT = metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG, metadata.EXPERIMENT_TAG
GRID = [plan([point("00", {"algo.x": 1}), point("01", {"algo.x": 2})], axes={"algo.x": [1, 2]}), session()]
RUNS = {START: [0], "diverged": [(0, 0.0)]}
DONE = {START: [0], END: "SUCCESS", "diverged": [(0, 0.0), (12, 0.0)], "end": "completed at 12 updates"}
FAILED = {"failure": "oom", "reason": "out of memory"}
STORIES: dict[str, tuple[list[list[Record]], Record]] = {
    "nothing has started": ([GRID], {}),
    "one runs and one waits": ([[*GRID, start("00")]], {"00": RUNS}),
    "one has ended": ([[*GRID, *whole("00"), start("01")]], {"00": DONE, "01": RUNS}),
    "the second driver goes on": (
        [[*GRID, *work("00", 10)], [session(), *work("00", attempt=2, begin=8), ledgers.end("00", attempt=2)]],
        {"00": DONE},
    ),
    "the second driver starts over": ([[*GRID, *work("00", 2)], [session(), *whole("00", attempt=2)]], {"00": DONE}),
    "the first driver got no further than the plan": ([GRID, [session(), *whole("00")]], {"00": DONE}),
    "lost before it began": (
        [[*GRID, fault("00"), ledgers.end("00", "failed", 2, 0, **FAILED)]],
        {"00": {START: [0], END: "FAILURE", "diverged": [(0, 0.0)], "end": "failed at 0 updates: out of memory"}},
    ),
    "failed and tried again": (
        [
            [*GRID, *work("00", 4), ledgers.end("00", "failed", 1, 4, **FAILED)],
            [{"kind": "retry", "trial": "00"}, start("00", 2, 4)],
        ],
        {"00": {START: [0], "diverged": [(0, 0.0), (4, 0.0)]}},
    ),
    "stopped early": (
        [[*GRID, *work("00", 4), ledgers.end("00", "pruned", 1, 4, reason="the rung at 4")]],
        {
            "00": {
                START: [0],
                END: "SUCCESS",
                "diverged": [(0, 0.0), (4, 0.0)],
                "end": "pruned at 4 updates: the rung at 4",
            }
        },
    ),
    "asked later": (
        [
            [
                plan([], domains={"x": LR}, search={"trials": 2}),
                session(),
                {"kind": "point", **point("t0", {"x": 1e-3})},
                start("t0"),
            ]
        ],
        {"t0": RUNS},
    ),
    "asked of the second driver": (
        [
            [
                plan([], domains={"x": LR}, search={"trials": 1}),
                session(),
                {"kind": "point", **point("t0", {"x": 1e-3})},
                *whole("t0"),
            ],
            [{"kind": "extend", "trials": 1}, session(), {"kind": "point", **point("t1", {"x": 1e-2})}, start("t1")],
        ],
        {"t0": DONE, "t1": RUNS},
    ),
}


@pytest.mark.parametrize("story", STORIES)
def test_a_trial_is_in_the_table_from_its_start_and_says_how_it_ended(story: str, tmp_path: Path) -> None:
    drivers, trials = STORIES[story]
    expected = {f"{t}/seed_{s}": of for t, of in trials.items() for s in (0, 1)}
    follow(tmp_path / "live", *drivers)
    assert runs(tmp_path / "live") == {".": {EXPERIMENT: [0]}} | expected
    ledgers.write(tmp_path, [r for records in drivers for r in records])
    rebuild(tmp_path)
    found = runs(tmp_path / EVENTS)
    if story == "failed and tried again":  # what a voided end said of divergence is not repeated
        expected = dict.fromkeys(expected, RUNS)
    assert found == {".": {EXPERIMENT: [0]}} | expected


def test_a_seed_that_diverges_says_so_at_once(tmp_path: Path) -> None:
    gone = {"kind": "diverged", "trial": "00", "attempt": 1, "seed": 1, "step": 2, "reason": "q is nan"}
    log = [*GRID, start("00"), train("00", 2, 0), train("00", 2, 1, q_mean=math.nan), gone]
    follow(tmp_path / "a", log)
    assert runs(tmp_path / "a")["00/seed_1"] == {START: [0], "diverged": [(0, 0.0), (2, 1.0)]}
    log += [train("00", 12, 0), ledgers.end("00", diverged={"1": "q is nan"})]
    follow(tmp_path / "b", log)
    ledgers.write(tmp_path, log)
    rebuild(tmp_path)
    for found in (runs(tmp_path / "b"), runs(tmp_path / EVENTS)):
        assert found["00/seed_0"] == DONE
        assert found["00/seed_1"] == {
            START: [0],
            END: "FAILURE",
            "diverged": [(0, 0.0), (2, 1.0), (12, 1.0)],
            "end": "diverged at 12 updates: q is nan",
        }


def test_a_trial_that_ends_as_it_diverges_says_so_once(tmp_path: Path) -> None:
    gone = {"kind": "diverged", "trial": "00", "attempt": 1, "seed": 0, "step": 2, "reason": "q is nan"}
    log = [*GRID, start("00"), gone, ledgers.end("00", "diverged", 1, 2, diverged={"0": "q is nan"})]
    follow(tmp_path, log)
    assert runs(tmp_path)["00/seed_0"]["diverged"] == [(0, 0.0), (2, 1.0)]


def test_a_sweep_that_confirms_another_leaves_the_table_to_that_one(tmp_path: Path) -> None:
    confirms = {"folder": "..", "digest": "d", "points": ["00"]}
    follow(tmp_path, [{**GRID[0], "confirms": confirms}, session(), *whole("00")])
    rest = {k: v for k, v in DONE.items() if k not in (START,)}
    assert runs(tmp_path) == {f"00/seed_{s}": rest for s in (0, 1)}
