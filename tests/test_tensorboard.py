"""A real TensorBoard on a sweep: what a person sees of its runs, and of its table."""

import contextlib
import json
import math
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Value
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import SessionStartInfo

from offrl_ray.sweep.derived import EVENTS
from offrl_ray.sweep.events import EventFile, EventFiles
from offrl_ray.sweep.hparams import summary
from offrl_ray.sweep.state import EPISODE
from tests.ledgers import CONFIG, end, evaluation, fault, numbered, plan, point, session, start, train, whole, work

Record = dict[str, Any]
DEADLINE = 60.0  # seconds for what takes one
LR = {"kind": "float", "low": 1e-4, "high": 1e-1, "log": True}
N = {"kind": "int", "low": 1, "high": 16, "log": False}


class TensorBoard:
    """A TensorBoard on a port of its own; `output` takes what it prints."""

    def __init__(self, logdir: Path, output: Path):
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", "0"]
        self._output = output
        with output.open("wb") as log:
            self._process = subprocess.Popen([*command, "--reload_interval", "1"], stdout=log, stderr=log)

    def wait(self) -> None:
        """Until it answers."""
        self._url = poll(lambda: re.search(r"http://\S+:\d+/", self._output.read_text()), bool)[0]

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def ask(self, route: str, body: Record | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._url}data/{route}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def refusal(self, **column: Any) -> int:
        """The status with which it refuses to show a column so."""
        with pytest.raises(urllib.error.HTTPError) as refused:
            self.rows(**column)
        return refused.value.code

    def runs(self) -> list[str]:
        return sorted(self.ask("runs"))

    def curve(self, run: str, tag: str) -> list[tuple[int, float]]:
        return [(step, value) for _, step, value in self.ask(f"plugin/scalars/scalars?run={run}&tag={tag}")]

    def columns(self) -> dict[str, Record]:
        return {c["name"]: c for c in self.ask("plugin/hparams/experiment", {})["hparamInfos"]}

    def metrics(self) -> list[str]:
        return [m["name"]["tag"] for m in self.ask("plugin/hparams/experiment", {})["metricInfos"]]

    def rows(self, **column: Any) -> dict[str, Record]:
        """The table's rows in their order, group -> row; `column` sorts or filters, as the page asks for it."""
        body = {"allowedStatuses": [f"STATUS_{s}" for s in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")]}
        asked = {"colParams": [column] if column else [], "startIndex": 0, "sliceSize": 1000}
        return {g["name"]: g for g in self.ask("plugin/hparams/session_groups", body | asked)["sessionGroups"]}

    def statuses(self) -> dict[str, str]:
        """Run -> how its session ended; UNKNOWN while it runs."""
        sessions = [s for row in self.rows().values() for s in row["sessions"]]
        return {s["name"]: s["status"].removeprefix("STATUS_") for s in sessions}


def poll(read: Callable[[], Any], enough: Callable[[Any], bool]) -> Any:
    until = time.monotonic() + DEADLINE
    while not enough(found := read()):
        assert time.monotonic() < until, f"still {found!r}"
        time.sleep(0.1)
    return found


@contextlib.contextmanager
def tensorboard(logdir: Path, runs: int, output: Path) -> Iterator[TensorBoard]:
    board = TensorBoard(logdir, output)
    try:
        board.wait()
        poll(board.runs, lambda found: len(found) == runs)
        yield board
    finally:
        board.stop()


# -- a sweep of two variants that searches lr in every cell and n in those of the first variant


BOTH = {"algo.lr": LR, "algo.n": N}
CELLS: list[Record] = [
    {"index": 0, "axes": {"algo.name": "a", "algo.alpha": 0.0}, "space": BOTH},
    {"index": 1, "axes": {"algo.name": "a", "algo.alpha": 2.5, "algo.clip": True}, "space": BOTH},
    {"index": 2, "axes": {"algo.name": "a", "algo.alpha": 10, "algo.clip": False}, "space": BOTH},
    {"index": 3, "axes": {"algo.name": "b"}, "space": {"algo.lr": LR}},
]
AXES = {"algo.name": ["a", "b"], "algo.alpha": [0.0, 2.5, 10], "algo.clip": [True, False]}
ASKED: list[Record] = [
    {"algo.lr": 0.0003, "algo.n": 3},
    {"algo.lr": 0.02, "algo.n": 12},
    {"algo.lr": 0.1, "algo.n": 5},
    {"algo.lr": 0.005},
    {"algo.lr": 0.0001, "algo.n": 16},
]


def asked(number: int, cell: int) -> Record:
    at = CELLS[cell]["axes"] | ASKED[number]
    algo = {k.removeprefix("algo."): v for k, v in at.items()} | {"gamma": 0.9}
    return {"kind": "point", **point(f"{number:02d}", at, cell=cell, config=CONFIG | {"algo": algo})}


PLAN = {
    **plan([], axes=AXES, domains=BOTH, search={}),
    "cells": CELLS,
    "objectives": [{"metric": "q_excess", "mode": "min"}, {"metric": "success_once", "mode": "max"}],
}
HEALTHY = {"critic_loss": 0.5, "q_mean": 3.0, "q_bound_high": 1.0}
FIRST: list[Record] = [PLAN, session(), *(asked(i, i) for i in range(4))]
FIRST += [*whole("00"), *(train("00", 12, s, **HEALTHY) for s in (0, 1))]
SICK: list[Record] = [start("01"), *(train("01", 2, s, **HEALTHY) for s in (0, 1)), train("01", 4, 0, **HEALTHY)]
SICK += [train("01", 4, 1, **(HEALTHY | {"q_mean": math.nan, "critic_loss": math.inf}))]
SICK += [{"kind": "diverged", "trial": "01", "attempt": 1, "seed": 1, "step": 4, "reason": "q_mean is nan"}]
SICK += [evaluation("01", s, 0, members=[0]) for s in (4, 8, 12)] + [end("01", diverged={"1": "q_mean is nan"})]
LOST: list[Record] = [start("02"), fault("02"), end("02", "failed", 2, 0, failure="oom", reason="out of memory")]
RUNNING = work("03", 4)
LATER: list[Record] = [asked(4, 2), *work("03", 6)[-2:], *work("04", 4)]
EARLIER = [*FIRST, *SICK, *LOST, *RUNNING]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TensorBoard, EventFiles]]:
    """A TensorBoard that was there before the sweep's first trial, and what the driver follows its records with."""
    folder = tmp_path_factory.mktemp("sweep")
    log = numbered(EARLIER)
    with tensorboard(folder, 0, folder.parent / "output") as board:
        files = EventFiles(folder / EVENTS, log[:2])
        for r in log[2:]:
            files.add(r)
        files.close()
        confirming = {**plan([point("00", {"algo.lr": 0.1})], axes={"algo.lr": [0.1]}), "confirms": {"folder": ".."}}
        other = EventFiles(folder / "confirm" / EVENTS)
        for r in numbered([confirming, *whole("00")]):
            other.add(r)
        poll(board.statuses, lambda found: [*found.values()].count("UNKNOWN") == 2 and len(found) == 8)
        poll(lambda: board.ask("plugin/text/tags"), lambda found: len(found) == 8)
        for run in names("03"):
            poll(lambda run=run: board.curve(run, "eval/return"), bool)
        files = EventFiles(folder / EVENTS, log)
        yield board, files
        files.close()


def names(*trials: str) -> list[str]:
    return [f"{EVENTS}/{t}/seed_{s}" for t in trials for s in (0, 1)]


def test_every_run_has_its_curves(live: tuple[TensorBoard, EventFiles]) -> None:
    board, _ = live
    confirming = [f"confirm/{n}" for n in names("00")]
    assert [r for r in board.runs() if r not in names("04")] == [*confirming, EVENTS, *names("00", "01", "02", "03")]
    tags = {run: set(found) for run, found in board.ask("plugin/scalars/tags").items()}
    evaluated = {f"eval/{m}" for m in EPISODE}
    trained = {"train/critic_loss", "train/q_mean", "train/q_bound_high", "train/q_excess"}
    assert tags["tb/00/seed_0"] == {"diverged", "train/loss", *evaluated, *trained}
    assert tags["tb/01/seed_1"] == {
        "diverged",
        *trained,
        *(f"nonfinite/{m}" for m in ("q_mean", "critic_loss", "q_excess")),
    }
    assert tags["tb/02/seed_0"] == {"diverged"}
    assert board.curve("tb/03/seed_1", "train/q_mean")[:2] == [(2, 2.5), (4, 4.5)]
    assert board.curve("tb/01/seed_1", "train/q_mean") == [(2, 3.0)]
    assert board.curve("tb/01/seed_1", "nonfinite/q_mean") == [(4, 1.0)]


def test_every_parameter_is_a_column_with_its_domain(live: tuple[TensorBoard, EventFiles]) -> None:
    board, _ = live
    columns = board.columns()
    assert sorted(columns) == ["algo.alpha", "algo.clip", "algo.lr", "algo.n", "algo.name"]
    assert columns["algo.name"]["domainDiscrete"] == ["a", "b"]
    assert columns["algo.alpha"]["domainDiscrete"] == [" 0", " 2.5", "10", "n/a"]
    assert columns["algo.clip"]["domainDiscrete"] == ["true", "false", "n/a"]
    assert columns["algo.lr"]["domainInterval"] == {"minValue": 1e-4, "maxValue": 1e-1}
    several = [" 1", " 3", " 4", " 6", " 8", " 9", "11", "13", "14", "16", "n/a"]
    assert columns["algo.n"]["domainDiscrete"] == several
    assert {c["name"]: c["type"].removeprefix("DATA_TYPE_") for c in columns.values() if c["differs"]} == {
        "algo.alpha": "STRING",
        "algo.clip": "STRING",
        "algo.lr": "FLOAT64",
        "algo.n": "STRING",
        "algo.name": "STRING",
    }


def test_every_trial_is_a_row_with_all_parameters_and_metrics(live: tuple[TensorBoard, EventFiles]) -> None:
    board, _ = live
    shown = ["train/q_excess", "eval/success_once", "diverged", "eval/success_at_end", "eval/return"]
    assert board.metrics() == [*shown, "eval/length", "eval/q_gap", "train/critic_loss"]
    rows = {k: v for k, v in board.rows().items() if k != "04"}
    parameters = [tuple(rows[k]["hparams"][c] for c in sorted(board.columns())) for k in ("00", "01", "02", "03")]
    assert parameters == [
        (" 0", "n/a", 0.0003, " 3", "a"),
        (" 2.5", "true", 0.02, "12", "a"),
        ("10", "false", 0.1, " 5", "a"),
        ("n/a", "n/a", 0.005, "n/a", "b"),
    ]
    values = {k: {m["name"]["tag"]: m["value"] for m in row["metricValues"]} for k, row in rows.items()}
    healthy = {"eval/success_once": 0.5, "eval/success_at_end": 0.0, "eval/return": 2.0, "eval/length": 4.0}
    healthy["eval/q_gap"] = 1.0
    q = {"train/q_excess": 2.0, "train/critic_loss": 0.5}
    assert values["00"] == {**healthy, **q, "diverged": 0.0}
    assert values["01"] == {**healthy, **q, "diverged": 0.5}  # the mean over its seeds
    assert values["02"] == {"diverged": 0.0}
    assert values["03"] == {**healthy, "diverged": 0.0}
    status = {run: s for run, s in board.statuses().items() if run not in names("04")}
    ended = dict.fromkeys(names("00", "01", "02", "03"), "SUCCESS") | dict.fromkeys(names("02"), "FAILURE")
    assert status == ended | {"tb/01/seed_1": "FAILURE"} | dict.fromkeys(names("03"), "UNKNOWN")
    assert board.curve("tb/01/seed_0", "diverged") == [(0, 0.0), (12, 0.0)]
    assert board.curve("tb/01/seed_1", "diverged") == [(0, 0.0), (4, 1.0), (12, 1.0)]
    text = board.ask("plugin/text/text?run=tb/01/seed_1&tag=end")
    assert "diverged at 12 updates: q_mean is nan" in text[0]["text"]


def test_every_column_sorts_and_filters(live: tuple[TensorBoard, EventFiles]) -> None:
    board, _ = live

    def found(column: str, **how: Any) -> list[str]:
        return [k for k in board.rows(hparam=column, **how) if k != "04"]

    assert found("algo.lr", order="ORDER_ASC") == ["00", "03", "01", "02"]
    assert found("algo.n", order="ORDER_ASC") == ["00", "02", "01", "03"]
    assert found("algo.alpha", order="ORDER_DESC") == ["03", "02", "01", "00"]
    assert len(found("algo.clip", order="ORDER_ASC")) == len(found("algo.name", order="ORDER_DESC")) == 4
    assert found("algo.alpha", filterDiscrete=[" 2.5", "n/a"]) == ["01", "03"]
    assert found("algo.n", filterRegexp="^ *[35]$") == ["00", "02"]
    assert found("algo.lr", filterInterval={"minValue": 0.001, "maxValue": 0.05}) == ["01", "03"]
    for metric in board.metrics():
        assert len(board.rows(metric={"group": "", "tag": metric}, order="ORDER_ASC")) >= 4


def test_a_running_sweep_is_followed(live: tuple[TensorBoard, EventFiles]) -> None:
    board, files = live
    for r in numbered([*EARLIER, *LATER])[len(EARLIER) :]:
        files.add(r)
    rows = poll(board.rows, lambda rows: "04" in rows)
    assert rows["04"]["hparams"]["algo.n"] == "16"
    curve = poll(lambda: board.curve("tb/03/seed_1", "train/q_mean"), lambda found: len(found) > 2)
    assert curve == [(2, 2.5), (4, 4.5), (6, 6.5)]
    assert sorted(board.columns()) == ["algo.alpha", "algo.clip", "algo.lr", "algo.n", "algo.name"]


# -- why the table is as it is (hparams.py)


def test_why_a_column_has_one_type_and_a_folder_one_declaration(tmp_path: Path) -> None:
    at = {"time": 0.0}
    column = api_pb2.HParamInfo(name="x", type=api_pb2.DATA_TYPE_FLOAT64)
    for sweep, name in product("ab", ("half", "none")):
        if name == "half":
            root = EventFile(tmp_path / sweep, "1")
            root.tell(at, summary(EXPERIMENT_TAG, experiment=api_pb2.Experiment(hparam_infos=[column])))
        info = SessionStartInfo(group_name=name)
        info.hparams["x"].CopyFrom(Value(number_value=0.5) if name == "half" else Value(string_value="n/a"))
        EventFile(tmp_path / sweep / name, "1").tell(at, summary(SESSION_START_INFO_TAG, session_start_info=info))
    with tensorboard(tmp_path, 6, tmp_path.parent / "output-why") as board:
        poll(board.statuses, lambda found: len(found) == 4)
        assert [len(row["sessions"]) for row in board.rows().values()] == [2, 2]  # two sweeps in one row
        assert board.refusal(hparam="x", order="ORDER_ASC") == 500
        assert board.refusal(hparam="x", filterInterval={"minValue": 0.0, "maxValue": 1.0}) == 400
        assert board.refusal(hparam="x", filterRegexp="0") == 400
