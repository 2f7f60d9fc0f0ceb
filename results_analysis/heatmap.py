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
from results_analysis.grid import Grid, find_grid, short
from results_analysis.load import Sweep, Trial, load
from results_analysis.measures import estimate
from results_analysis.tiles import RATES, heading, native, panel, ticks, written
from results_analysis.words import speaker

ENGLISH = speaker("en")
METRICS = (*RATES, "return", "q_mean")
CAPTION = (
    "Cells: mean over the n finished seeds with its 95 % interval "
    "(Student's t over seeds, never narrower than Wilson's over their episodes).\n"
    "Hatched: not completed; seeds that diverged or lack the last evaluation are left out."
)
OF_SEARCH = "\nOf a search: the median of the points in the cell."


def table_csv(sweep: Sweep, trials: Sequence[Trial]) -> str:
    """One row a cell; numbers with six digits, empty where undefined."""
    rows = []
    for t in trials:
        row = {short(k): str(t.point.get(k, "any")) for k in (*sweep.axes, *sweep.domains)}
        row |= {"n": str(len(t.finished)), "seeds_planned": str(len(t.seeds)), "status": t.status, "trial": t.name}
        for m in METRICS:
            e = estimate(t, m)
            low, high = (e and e.interval) or ("", "")
            for name, v in ((m, e.mean if e else ""), (f"{m}_low", low), (f"{m}_high", high)):
                row[name] = v if isinstance(v, str) else f"{v:.6g}"
        rows.append(row | {"reason": t.reason})
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def picture(sweep: Sweep, grid: Grid, names: Sequence[str]) -> bytes:
    """The heatmap of these measures as PNG."""
    panels = [panel(grid, name, ENGLISH)[0] for name in names]
    caption = CAPTION + OF_SEARCH * bool(sweep.domains)
    return plots.heatmap(heading(sweep, grid, ENGLISH), caption, ticks(grid.rows), ticks(grid.columns), panels)


def main_measures(sweep: Sweep) -> list[str]:
    """Success, or the return where the environment pays its own reward, and Q if there is one."""
    q = any("q_mean" in s.train.metrics for t in sweep.trials for s in t.seeds)
    return ["return" if native(sweep) else "success_once"] + ["q_mean"] * q


def table(sweep: Sweep, trials: Sequence[Trial]) -> str:
    """The cells for a terminal, with what went wrong below."""
    lines = [[*map(plain, map(short, (*sweep.axes, *sweep.domains))), "seeds", *METRICS, "status"]]
    for t in trials:
        cells = [" ".join(written(m, estimate(t, m), ENGLISH)) or "-" for m in METRICS]
        point = [plain(t.point.get(k, "any")) for k in (*sweep.axes, *sweep.domains)]
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
        write_atomic(args.folder / "heatmap.png", picture(sweep, grid, main_measures(sweep)))
    except OSError as e:
        print(f"heatmap.py: could not write: {e}", file=sys.stderr)
        return 1
    print(heading(sweep, grid, ENGLISH))
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
