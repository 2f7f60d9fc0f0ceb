import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from offrl_ray.records import FILE, Writer
from results_analysis.grid import Grid, find_grid
from results_analysis.heatmap import main
from results_analysis.load import Trial, load
from results_analysis.plots import Tile
from results_analysis.tiles import panel, shown
from results_analysis.words import speaker

SCRIPT = Path(__file__).parents[1] / "results_analysis" / "heatmap.py"
ALPHAS, MODES = [0.0, 0.05], ["single_step", "last_5"]
AXES = {"algo.alpha": ALPHAS, "algo.q_grad_mode": MODES}
POINTS = [{"algo.alpha": 0.0}, *({"algo.alpha": 0.05, "algo.q_grad_mode": m} for m in MODES)]
EPISODES = {0: [1, 1, 0, 0], 1: [1, 1, 1, 0], 2: [1, 1, 0, 0]}
STEPS = 300


def plan(w: Writer, axes: dict[str, list[Any]] = AXES, points: list[dict[str, Any]] = POINTS) -> None:
    rows = [
        {"trial": f"{i:02d}", "point": p, "config": {}, "seeds": [0, 1, 2], "steps": STEPS}
        for i, p in enumerate(points)
    ]
    w.write("plan", name="toy", question="", axes=axes, points=rows, data=[], versions={})


def evaluate(w: Writer, trial: str, seed: int, once: list[int], step: int = STEPS) -> None:
    rest = {
        "digest": "d",
        "env": {"id": "Toy-v1"},
        "episodes": 4,
        "episode_seeds": [0, 1, 2, 3],
        "return": once,
        "length": once,
        "q_start": None,
        "discounted_return": None,
        "seconds": 1.0,
    }
    w.write("eval", trial=trial, seed=seed, step=step, success_once=once, success_at_end=[0] * len(once), **rest)


def run(w: Writer, trial: str, seeds: tuple[int, ...] = (0, 1, 2)) -> None:
    """Training and evaluation of some seeds; seed s ends with q_mean s + 1."""
    w.write("start", trial=trial, attempt=0, step=0)
    for seed in seeds:
        for step, q in ((100, 99.0), (STEPS, seed + 1.0)):
            w.write("train", trial=trial, seed=seed, step=step, metrics={"q_mean": q, "critic_loss": 1.0}, seconds=1.0)
        evaluate(w, trial, seed, [1, 1, 1, 1], step=100)
        evaluate(w, trial, seed, EPISODES[seed])


def end(
    w: Writer, trial: str, status: str = "completed", reason: str = "", diverged: dict[str, str] | None = None
) -> None:
    w.write("end", trial=trial, status=status, reason=reason, step=STEPS, diverged=diverged or {}, cost={})


def tile(grid: Grid, trial: Trial, name: str) -> Tile:
    cell = next(c for c in grid.cells if trial in c.trials)
    return shown(grid, cell, name, speaker("en")).tile


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "heatmap.csv").open(newline="")))


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    with Writer(tmp_path) as w:
        plan(w)
        for trial in ("00", "01", "02"):
            run(w, trial)
            end(w, trial)
    return tmp_path


# Rates 0.5, 0.75, 0.5 and Q values 1, 2, 3; t(0.975, 2 degrees) = 4.302653.
NUMBERS = {
    **{"success_once": "0.583333", "success_once_low": "0.224779", "success_once_high": "0.941888"},
    **{"success_at_end": "0", "success_at_end_low": "0", "success_at_end_high": "0.242494"},  # z^2 / (12 + z^2)
    **{"return": "0.583333", "return_low": "0.224779", "return_high": "0.941888"},
    **{"q_mean": "2", "q_mean_low": "-0.484138", "q_mean_high": "4.48414"},
}


def test_complete_sweep(complete: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(complete)]) == 0
    same = {"n": "3", "seeds_planned": "3", "status": "completed", **NUMBERS, "reason": ""}
    assert table(complete) == [
        {"alpha": "0.0", "q_grad_mode": "any", "trial": "00", **same},
        {"alpha": "0.05", "q_grad_mode": "single_step", "trial": "01", **same},
        {"alpha": "0.05", "q_grad_mode": "last_5", "trial": "02", **same},
    ]
    out, err = capsys.readouterr()
    assert "0.05   last_5       3/3    0.58 [0.22, 0.94]  0.00 [0.00, 0.24]  0.583 [0.225, 0.942]  2 [-0.484" in out
    assert f"tensorboard --logdir {complete / 'tb'}" in out
    assert err == ""


def test_picture_is_the_same_every_time_and_nothing_else_is_left(complete: Path) -> None:
    main([str(complete)])
    first = (complete / "heatmap.png").read_bytes()
    main([str(complete)])
    assert first.startswith(b"\x89PNG")
    assert first == (complete / "heatmap.png").read_bytes()
    assert {p.name for p in complete.iterdir()} == {FILE, "heatmap.csv", "heatmap.png"}


def test_inert_point_covers_its_row(complete: Path) -> None:
    sweep = load(complete)
    grid = find_grid(sweep)
    drawn = [tile(grid, t, "success_once") for t in sweep.trials]
    assert [(t.rows, t.columns) for t in drawn] == [
        (range(0, 1), range(0, 2)),
        (range(1, 2), range(0, 1)),
        (range(1, 2), range(1, 2)),
    ]
    assert drawn[0].lines == ["0.58", "[0.22, 0.94]", "n = 3, any q_grad_mode"]
    turned = find_grid(sweep, x="alpha", y="algo.q_grad_mode")
    assert tile(turned, sweep.trials[0], "q_mean").rows == range(0, 2)


def _unstarted(w: Writer) -> None:
    pass


def _running(w: Writer) -> None:
    run(w, "00", (0, 1))


def _one_diverged(w: Writer) -> None:
    run(w, "00")
    end(w, "00", diverged={"2": "q_mean above 1e4"})


def _all_diverged(w: Writer) -> None:
    run(w, "00", ())
    end(w, "00", "diverged", diverged=dict.fromkeys("012", "nan"))


def _failed(w: Writer) -> None:
    run(w, "00", (1,))
    end(w, "00", "failed", "out of memory")


def _reopened(w: Writer) -> None:
    _failed(w)
    w.write("start", trial="00", attempt=1, step=100)


def _retried(w: Writer) -> None:
    _failed(w)
    w.write("retry", trial="00")


def _pruned(w: Writer) -> None:
    run(w, "00", (1,))
    end(w, "00", "pruned", "rung 1 at step 100")


def _evaluated_in_part(w: Writer) -> None:
    run(w, "00", (0, 1))
    evaluate(w, "00", 2, [1, 1])
    evaluate(w, "00", 1, [0, 0])


def _evaluation_lost(w: Writer) -> None:
    run(w, "00", (0, 1))
    end(w, "00")


@pytest.mark.parametrize(
    ("story", "n", "status", "reason", "success"),
    [
        (_unstarted, "0", "unfinished", "no evaluation at step 300 for seed 0, 1, 2", ""),
        (_running, "2", "unfinished", "no evaluation at step 300 for seed 2", "0.625"),
        (_one_diverged, "2", "partly diverged", "seed 2: q_mean above 1e4", "0.625"),
        (_all_diverged, "0", "diverged", "seed 0: nan; seed 1: nan; seed 2: nan", ""),
        (_failed, "1", "failed", "out of memory; no evaluation at step 300 for seed 0, 2", "0.75"),
        (_reopened, "1", "unfinished", "no evaluation at step 300 for seed 0, 2", "0.75"),
        (_retried, "1", "unfinished", "no evaluation at step 300 for seed 0, 2", "0.75"),
        (_pruned, "1", "pruned", "rung 1 at step 100; no evaluation at step 300 for seed 0, 2", "0.75"),
        (_evaluated_in_part, "2", "unfinished", "no evaluation at step 300 for seed 2", "0.625"),
        (_evaluation_lost, "2", "unfinished", "no evaluation at step 300 for seed 2", "0.625"),
    ],
)
def test_missing_seeds_are_told_not_averaged_away(
    tmp_path: Path, story: Any, n: str, status: str, reason: str, success: str
) -> None:
    with Writer(tmp_path) as w:
        plan(w)
        story(w)
    assert main([str(tmp_path)]) == 0
    row = table(tmp_path)[0]
    assert (row["n"], row["seeds_planned"], row["status"], row["reason"]) == (n, "3", status, reason)
    assert row["success_once"] == success
    assert (row["success_once_low"] == "") == (int(n) < 2)
    sweep = load(tmp_path)
    drawn = tile(find_grid(sweep), sweep.trials[0], "success_once")
    mark = "not started" if story is _unstarted else status
    assert drawn.mark == mark
    assert any(mark in line for line in drawn.lines)
    assert any(f"n = {n} of 3" in line for line in drawn.lines)


def test_q_that_is_not_finite_stays_visible(tmp_path: Path) -> None:
    with Writer(tmp_path) as w:
        plan(w)
        run(w, "00")
        w.write("train", trial="00", seed=1, step=STEPS, metrics={"q_mean": float("inf")}, seconds=1.0)
        end(w, "00")
    assert main([str(tmp_path)]) == 0
    row = table(tmp_path)[0]
    assert (row["status"], row["q_mean"], row["q_mean_low"]) == ("completed", "inf", "")


def test_later_records_and_the_last_plan_count(complete: Path) -> None:
    with Writer(complete) as w:
        w.write("start", trial="01", attempt=1, step=100)
        evaluate(w, "01", 1, [1, 1, 0, 0])
        end(w, "01")
        plan(w, points=POINTS[:2])
    assert main([str(complete)]) == 0
    rows = table(complete)
    assert [r["trial"] for r in rows] == ["00", "01"]
    assert rows[1]["success_once"] == "0.5"
    assert rows[0]["success_once"] == "0.583333"


def test_damaged_lines_are_reported_not_fatal(complete: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (complete / FILE).read_bytes().splitlines(keepends=True)
    found = [i for i, line in enumerate(lines) if b'"kind":"eval","trial":"00","seed":0,"step":300' in line]
    lines[found[0]] = lines[found[0]].replace(b'"d"', b'"e"')
    (complete / FILE).write_bytes(b"".join(lines)[:-20])
    assert main([str(complete)]) == 0
    err = capsys.readouterr().err.splitlines()
    assert [f"{FILE}:{n}:" in e for n, e in zip((found[0] + 1, len(lines)), err, strict=True)] == [True, True]
    assert "torn end" in err[1]
    assert [(r["n"], r["status"]) for r in table(complete)] == [
        ("2", "unfinished"),
        ("3", "completed"),
        ("3", "unfinished"),
    ]


@pytest.mark.parametrize("kind", ["missing", "a file", "empty", "foreign", "no plan", "no points"])
def test_folder_without_a_sweep(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sweep"
    if kind == "a file":
        folder.write_text("")
    elif kind != "missing":
        folder.mkdir()
    if kind == "foreign":
        (folder / FILE).write_text('{"loss": 1}\nhello\n')
    elif kind in ("no plan", "no points"):
        with Writer(folder) as w:
            _ = run(w, "00") if kind == "no plan" else plan(w, points=[])
    before = sorted(tmp_path.rglob("*"))
    assert main([str(folder)]) == 2
    err = capsys.readouterr().err
    assert str(folder) in err
    assert f"expected a sweep's folder, with a {FILE} that holds a plan" in err
    assert sorted(tmp_path.rglob("*")) == before


LR = {**AXES, "train.lr": [0.001, 0.0003]}
CUBE = [{**p, "train.lr": lr} for p in POINTS for lr in LR["train.lr"]]


@pytest.fixture
def cube(tmp_path: Path) -> Path:
    with Writer(tmp_path) as w:
        plan(w, LR, CUBE)
    return tmp_path


def test_third_axis_is_never_averaged(cube: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(cube)]) == 2
    assert "--where train.lr=VALUE (0.001, 0.0003)" in capsys.readouterr().err
    assert not (cube / "heatmap.csv").exists()
    assert main([str(cube), "--where", "train.lr=0.0003"]) == 0
    assert [(r["trial"], r["train.lr"]) for r in table(cube)] == [("01", "0.0003"), ("03", "0.0003"), ("05", "0.0003")]
    assert main([str(cube), "--x", "train.lr", "--y", "alpha", "--where", "q_grad_mode=last_5"]) == 0
    assert [r["trial"] for r in table(cube)] == ["00", "01", "04", "05"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--x", "q_grad_mod"], "did you mean algo.q_grad_mode?"),
        (["--x", "alpha", "--y", "algo.alpha"], "both algo.alpha"),
        (["--where", "alpha=7"], "the sweep has algo.alpha at 0.0, 0.05"),
        (["--where", "train.lr"], "the sweep has train.lr at 0.001, 0.0003"),
    ],
)
def test_wrong_options(cube: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(cube), *options]) == 2
    assert message in capsys.readouterr().err


def test_points_off_the_grid_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Writer(tmp_path) as w:
        plan(w, AXES, [{"algo.alpha": 0.031, "algo.q_grad_mode": "last_5"}])
    assert main([str(tmp_path)]) == 2
    assert "trial 00 has algo.alpha = 0.031" in capsys.readouterr().err


def test_points_of_a_search_are_read_and_repetitions_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"config": {}, "seeds": [0, 1, 2], "steps": STEPS, "cell": 0}
    with Writer(tmp_path) as w:
        plan(w, {}, [])
        for i, same_as in enumerate([None, "00"]):
            w.write("point", trial=f"0{i}", point={"algo.lr": 0.1}, number=i, same_as=same_as, **asked)
        run(w, "00")
        end(w, "00")
    (trial,) = load(tmp_path).trials
    assert (trial.name, trial.status, trial.point) == ("00", "completed", {"algo.lr": 0.1})
    assert main([str(tmp_path)]) == 2
    assert "algo.lr = 0.1, no value of that axis and nothing that a search chose" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("axes", "points"),
    [({}, [{}]), ({"algo.alpha": ALPHAS}, [{"algo.alpha": a} for a in ALPHAS])],
    ids=["no axis", "one axis"],
)
def test_fewer_axes_make_one_row(tmp_path: Path, axes: dict[str, list[Any]], points: list[dict[str, Any]]) -> None:
    with Writer(tmp_path) as w:
        plan(w, axes, points)
        run(w, "00")
        end(w, "00")
    assert main([str(tmp_path)]) == 0
    rows = table(tmp_path)
    assert len(rows) == len(points)
    assert rows[0].items() >= NUMBERS.items()
    assert len(find_grid(load(tmp_path)).rows.values) == 1


def test_runs_as_a_script_from_anywhere(complete: Path) -> None:
    done = subprocess.run([sys.executable, SCRIPT, "."], cwd=complete, capture_output=True, text=True, check=True)
    assert "wrote heatmap.png" in done.stdout
    assert done.stderr == ""


def test_points_that_claim_the_same_place_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Writer(tmp_path) as w:
        plan(w, AXES, [{"algo.alpha": 0.0}, {"algo.alpha": 0.0, "algo.q_grad_mode": "last_5"}])
    assert main([str(tmp_path)]) == 2
    assert "trials 00 and 01 fall into one cell" in capsys.readouterr().err


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    with Writer(tmp_path) as w:
        plan(w, {"algo.alpha": ["$\\frac$", "$x^"]}, [{"algo.alpha": "$\\frac$"}, {"algo.alpha": "$x^"}])
        run(w, "00")
        end(w, "00")
    assert main([str(tmp_path)]) == 0


def test_a_search_has_its_median_point_in_every_cell(tmp_path: Path) -> None:
    domains = {"algo.lr": {"kind": "float", "low": 0.0, "high": 1.0, "log": False}}
    points = [{"algo.alpha": a, "algo.lr": lr} for a in ALPHAS for lr in (0.1, 0.2, 0.3)]
    with Writer(tmp_path) as w:
        rows = [
            {"trial": f"{i:02d}", "point": p, "config": {}, "seeds": [i], "steps": STEPS} for i, p in enumerate(points)
        ]
        w.write("plan", name="toy", question="", axes={"algo.alpha": ALPHAS}, domains=domains, points=rows, data=[])
        for i, rate in enumerate((2, 4, 3)):
            evaluate(w, f"{i:02d}", i, [1] * rate + [0] * (4 - rate))
            end(w, f"{i:02d}")
    assert main([str(tmp_path)]) == 0
    assert [r["lr"] for r in table(tmp_path)] == ["0.1", "0.2", "0.3"] * 2
    grid = find_grid(load(tmp_path))
    first, second = (shown(grid, c, "success_once", speaker("en")) for c in grid.cells)
    assert first.trial.name == "02"
    assert first.tile.lines == ["0.75", "no interval", "n = 1", "median of 3 points"]
    assert second.tile.lines == ["not started", "n = 0 of 1", "3 points"]
    assert second.tile.mark == "not started"


def test_colours_do_not_exaggerate_differences_within_the_intervals(complete: Path) -> None:
    with Writer(complete) as w:
        w.write("train", trial="02", seed=2, step=STEPS, metrics={"q_mean": 3.1}, seconds=1.0)
    drawn, _ = panel(find_grid(load(complete)), "q_mean", speaker("en"))
    assert drawn.limits is not None
    low, high = drawn.limits
    assert high - low == pytest.approx(2 * 2.484138, rel=0.05)
    assert low < 2.0 < high
