"""Section: two axes of every sweep against success, overestimation and divergence; a cell opens its curves."""

from collections.abc import Sequence
from typing import Any

from results_analysis import plots
from results_analysis.blocks import Block, Raw, Section, Table, Text, Value
from results_analysis.cards import Card, card, embed
from results_analysis.curves import quantities
from results_analysis.grid import Grid, find_grids, short
from results_analysis.heatmap import picture
from results_analysis.load import Sweep
from results_analysis.page import text
from results_analysis.tiles import MARKS, STOPPED, Shown, heading, native, of_trial, panel, status
from results_analysis.words import Say


def measures(sweep: Sweep) -> list[str]:
    """Of the heatmaps: success or the environment's own return, overestimation if there is a critic, stopped seeds."""
    seeds = [s for t in sweep.trials for s in t.seeds]
    found = ["return"] if native(sweep) else ["success_once", "success_at_end"]
    if any("q_start" in e.episodes for s in seeds for e in s.evals):
        found.append("q_gap")
    elif any("q_bound_high" in s.train.metrics for s in seeds):
        found.append("q_excess")
    return [*found, STOPPED]


def section(
    sweeps: Sequence[Sweep], say: Say, x: str | None = None, y: str | None = None, where: Sequence[str] = ()
) -> Section:
    """Heatmaps of every sweep. Raises UsageError as `find_grids`."""
    blocks: list[Block] = [
        Text(
            say(
                "A cell is the mean over its n finished seeds with its 95 % interval (Student's t over seeds, for "
                "success never narrower than Wilson's over their episodes). A patterned edge and a word mark what is "
                "not complete. Point at a cell, or press it, for its curves."
            )
        )
    ]
    for i, sweep in enumerate(sweeps):
        names, curves = measures(sweep), quantities(sweep)[:2]
        if len(names) < (3 if native(sweep) else 4):
            blocks.append(Text(say("{sweep}: no Q values were recorded, so none can be too high.", sweep=sweep.label)))
        grids = find_grids(sweep, x, y, where)
        blocks += [_block(sweep, i, grid, names, say) for grid in grids] or [_too_many(sweep, say)]
        drawn = {t.name: t for grid in grids for t in grid.trials}
        cards: dict[str, Card] = {f"{i}/{name}": card(t, names, curves, say) for name, t in drawn.items()}
        if cards:
            last = blocks[-1]
            assert isinstance(last, Raw)
            blocks[-1] = last._replace(html=last.html + embed(cards, say))
    return Section("heatmaps", say("Heatmaps"), blocks)


def _too_many(sweep: Sweep, say: Say) -> Text:
    axes = "; ".join(f"{short(k)}: {', '.join(map(str, v))}" for k, v in sweep.axes.items() if len(v) > 1)
    advice = say(
        "{sweep}: more than two axes vary, in too many combinations to show each, and none is averaged over. Fix some "
        "with --where KEY=VALUE, or choose two with --x and --y. The axes are {axes}.",
        **{"sweep": sweep.label, "axes": axes},
    )
    return Text(advice, "warning")


def _block(sweep: Sweep, index: int, grid: Grid, names: Sequence[str], say: Say) -> Raw:
    panels = [(name, *panel(grid, name, say)) for name in names]
    maps = "".join(_map(index, grid, p, cells) for _, p, cells in panels)
    head = "<br>".join(text(line) for line in heading(sweep, grid, say).split("\n"))
    marks = [m for m in MARKS if any(s.tile.mark == m for _, _, cells in panels for s in cells)] + _holes(grid)
    legend = "".join(f'<li><i class="mark {_class(m)}"></i> {text(say(m))}</li>' for m in marks)
    html = f'<div class="heatmaps"><h3>{head}</h3><ul class="legend">{legend}</ul>{maps}</div>\n'
    others = (f"{short(k)}_{v}" for k, v in grid.fixed.items() if len(sweep.axes[k]) > 1)
    name = "_".join(["heatmap", sweep.label, *others])
    return Raw(html, _table(name, sweep, grid, names, say), picture(sweep, grid, names))


def _table(name: str, sweep: Sweep, grid: Grid, names: Sequence[str], say: Say) -> Table:
    axes = [*sweep.axes, *sweep.domains]
    columns = [*map(short, axes), *names, "n", "seeds", "status", "reason", "trial"]
    rows: list[list[Value]] = [
        [
            *(_plain_value(t.point.get(k, "any")) for k in axes),
            *(of_trial(t, m) for m in names),
            *(len(t.finished), len(t.seeds), status(t), t.reason, t.name),
        ]
        for t in grid.trials
    ]
    return Table(name, heading(sweep, grid, say), columns, rows)


def _plain_value(value: Any) -> Value:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _holes(grid: Grid) -> list[str]:
    planned = sum(len(c.rows) * len(c.columns) for c in grid.cells)
    return ["not planned"] if planned < len(grid.rows.values) * len(grid.columns.values) else []


def _map(index: int, grid: Grid, p: plots.Panel, cells: Sequence[Shown]) -> str:
    """One measure as a table whose cells are buttons."""
    shades = plots.shades([s.tile.value for s in cells], p.limits)
    tiles = {(s.cell.rows.start, s.cell.columns.start): _tile(index, s, c) for s, c in zip(cells, shades, strict=True)}
    taken = {(r, c) for s in cells for r in s.cell.rows for c in s.cell.columns}
    rows, columns = grid.rows, grid.columns
    corner = f"{short(rows.key) if rows.key else ''} \\ {short(columns.key) if columns.key else ''}".strip(" \\")
    head = "".join(f'<th scope="col">{text(v)}</th>' for v in columns.values if columns.key)
    body = ""
    for r, value in enumerate(rows.values):
        line = [tiles.get((r, c), "" if (r, c) in taken else HOLE) for c in range(len(columns.values))]
        body += f'<tr><th scope="row">{text(value) if rows.key else ""}</th>{"".join(line)}</tr>\n'
    return (
        f'<div class="scroll"><table class="map"><caption>{text(p.title)} <small>({text(p.unit)})</small></caption>'
        f'<thead><tr><th scope="col">{text(corner)}</th>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'
    )


HOLE = '<td class="not-planned"></td>'


def _tile(index: int, shown: Shown, shade: tuple[str, str]) -> str:
    cell, tile = shown.cell, shown.tile
    first, *rest = tile.lines
    lines = f"<b>{text(first)}</b>" + "".join(f"<span>{text(line)}</span>" for line in rest)
    span = f' rowspan="{len(cell.rows)}"' * (len(cell.rows) > 1) + f' colspan="{len(cell.columns)}"' * (
        len(cell.columns) > 1
    )
    edge = f'<i class="mark {_class(tile.mark)}"></i>' if tile.mark else ""
    key = text(f"{index}/{shown.trial.name}")
    return (
        f'<td{span} style="background:{shade[0]};color:{shade[1]}">'
        f'<button type="button" data-cell="{key}" aria-expanded="false">{edge}{lines}</button></td>'
    )


def _class(mark: str) -> str:
    return mark.replace(" ", "-")
