"""Two axes of a sweep against final success and Q values: DIR/heatmap.png, DIR/heatmap.csv and a table.

A cell is the mean over its finished seeds, those that did not diverge and were evaluated at the last planned step.
"""

import argparse
import csv
import io
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script: its own folder's modules are not the top level
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from offrl_ray.errors import UsageError, plain
from results_analysis import plots
from results_analysis.grid import Axis, Grid, find_grid, short
from results_analysis.load import Sweep, Trial, load
from results_analysis.measures import estimate
from results_analysis.stats import Estimate

RATES = ("success_once", "success_at_end")
METRICS = (*RATES, "return", "q_mean")
CAPTION = (
    "Cells: mean over the n finished seeds with its 95 % interval "
    "(Student's t over seeds, never narrower than Wilson's over their episodes).\n"
    "Hatched: not completed; seeds that diverged or lack the last evaluation are left out."
)


def table_csv(sweep: Sweep, trials: Sequence[Trial]) -> str:
    """One row a cell; numbers with six digits, empty where undefined."""
    rows = []
    for t in trials:
        row = {short(k): str(t.point.get(k, "any")) for k in sweep.axes}
        row |= {"n": str(len(t.finished)), "seeds_planned": str(len(t.seeds)), "status": t.status, "trial": t.name}
        for m in METRICS:
            e = estimate(t, m)
            low, high = (e and e.interval) or ("", "")
            for name, v in ((m, e.mean if e else ""), (f"{m}_low", low), (f"{m}_high", high)):
                row[name] = v if isinstance(v, str) else f"{v:.6g}"
        rows.append(row | {"reason": t.reason})
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _number(metric: str, value: float) -> str:
    return f"{value:.2f}" if metric in RATES else f"{float(f'{value:.3g}'):g}"


def _text(metric: str, e: Estimate | None) -> list[str]:
    if e is None:
        return []
    interval = f"[{', '.join(_number(metric, v) for v in e.interval)}]" if e.interval else "no interval"
    return [_number(metric, e.mean), interval]


def tile(grid: Grid, trial: Trial, metric: str) -> plots.Tile:
    """A cell as drawn."""
    e, n, planned = estimate(trial, metric), len(trial.finished), len(trial.seeds)
    complete = trial.status == "completed"
    lines = _text(metric, e) or [f"no {metric}" if n else plain(trial.status)]
    lines.append(f"n = {n}" if n == planned else f"n = {n} of {planned}")
    if n and not complete:
        lines.append(plain(trial.status))
    inert = [short(a.key) for a in (grid.rows, grid.columns) if a.key and a.key not in trial.point]
    if inert:
        lines[-1] += f", any {' and '.join(inert)}"
    place = grid.rows.covers(trial.point), grid.columns.covers(trial.point)
    return plots.Tile(*place, e.mean if e else None, lines, complete)


def title(sweep: Sweep, grid: Grid) -> str:
    """What the cells have in common."""
    seeds = [s for t in grid.trials for s in t.seeds]
    finals = [s.final for s in seeds if s.final]
    steps, numbers = {t.steps for t in grid.trials}, sorted({s.seed for s in seeds})
    env = ", ".join(sorted({r.env["id"] for s in seeds for r in s.evals}))
    episodes = {len(f.episodes["success_once"]) for f in finals}
    facts = [
        f"{_span(episodes)} evaluation episodes per seed" if episodes else "no final evaluation yet",
        f"seed{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}",
        f"step {_span(steps)}",
        *(f"{short(k)} = {v}" for k, v in grid.fixed.items()),
    ]
    return "\n".join(map(plain, (f"{sweep.name}{env and ': '}{env}", ", ".join(facts))))


def _span(values: set[int]) -> str:
    return str(min(values)) if len(values) == 1 else f"{min(values)} to {max(values)}"


def _ticks(axis: Axis) -> plots.Ticks:
    return plots.Ticks(plain(short(axis.key)), list(map(plain, axis.values))) if axis.key else plots.Ticks("", [""])


def picture(sweep: Sweep, grid: Grid) -> bytes:
    """The heatmap as PNG: success, or the return where the environment pays its own reward, and Q if there is one."""
    tiles = {m: [tile(grid, t, m) for t in grid.trials] for m in METRICS}
    native = any(r.env.get("reward_mode") == "native" for t in grid.trials for s in t.seeds for r in s.evals)
    panels = [
        plots.Panel("return at the last step", "reward per episode", tiles["return"], None)
        if native
        else plots.Panel("success_once at the last step", "share of episodes", tiles["success_once"], (0.0, 1.0))
    ]
    if any("q_mean" in s.train.metrics for t in grid.trials for s in t.seeds):
        panels.append(plots.Panel("q_mean in the last training report", "units of return", tiles["q_mean"], None))
    return plots.heatmap(title(sweep, grid), CAPTION, _ticks(grid.rows), _ticks(grid.columns), panels)


def table(sweep: Sweep, trials: Sequence[Trial]) -> str:
    """The cells for a terminal, with what went wrong below."""
    lines = [[*map(plain, map(short, sweep.axes)), "seeds", *METRICS, "status"]]
    for t in trials:
        cells = [" ".join(_text(m, estimate(t, m))) or "-" for m in METRICS]
        point = [plain(t.point.get(k, "any")) for k in sweep.axes]
        lines.append([*point, f"{len(t.finished)}/{len(t.seeds)}", *cells, plain(t.status)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join(text + [plain(f"{t.name}: {t.status}: {t.reason}") for t in trials if t.reason])


def write_atomic(path: Path, content: bytes) -> None:
    """A reader sees the old file or the new one, never a part."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Heatmap of a sweep: DIR/heatmap.png, DIR/heatmap.csv and a table.")
    parser.add_argument("folder", metavar="DIR", type=Path, help="the sweep's folder, running or done")
    parser.add_argument("--x", metavar="KEY", help="axis of the columns, such as algo.q_grad_mode or q_grad_mode")
    parser.add_argument("--y", metavar="KEY", help="axis of the rows")
    parser.add_argument(
        "--where", metavar="KEY=VALUE", action="append", default=[], help="fix another axis (repeatable)"
    )
    args = parser.parse_args(argv)
    try:
        sweep = load(args.folder)
        for problem in sweep.problems:
            print(f"skipped a damaged record: {plain(problem)}", file=sys.stderr)
        grid = find_grid(sweep, args.x, args.y, args.where)
    except UsageError as e:
        print(f"heatmap.py: nothing written\n{e}", file=sys.stderr)
        return 2
    try:
        write_atomic(args.folder / "heatmap.csv", table_csv(sweep, grid.trials).encode())
        write_atomic(args.folder / "heatmap.png", picture(sweep, grid))
    except OSError as e:
        print(f"heatmap.py: could not write: {e}", file=sys.stderr)
        return 1
    print(title(sweep, grid))
    print(table(sweep, grid.trials))
    print(f"wrote {args.folder / 'heatmap.png'} and heatmap.csv")
    tensorboard = Path(sys.executable).with_name("tensorboard")
    command = [
        os.path.relpath(tensorboard) if tensorboard.exists() else "tensorboard",
        "--logdir",
        str(args.folder / "tb"),
    ]
    print(f"curves: {shlex.join(command)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
