"""A sweep's points as cells of a grid of two axes."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from offrl_ray.errors import UsageError, did_you_mean, plain
from results_analysis.load import Sweep, Trial

FIRST = ("algo.alpha", "algo.q_grad_mode")  # the rows and columns of the question that this tool is for
COMBINATIONS = 6  # of the other axes' values, each a grid of its own


class Axis(NamedTuple):
    key: str | None  # None: the grid has no such axis, but one nameless value
    values: list[Any]

    def covers(self, point: dict[str, Any]) -> range:
        """Where the point lies: at one value, or at all of them where the axis is inert."""
        if self.key not in point:
            return range(len(self.values))
        i = self.values.index(point[self.key])
        return range(i, i + 1)


class Cell(NamedTuple):
    """A place of the grid and its points: one, or all that a search tried there."""

    rows: range
    columns: range
    trials: list[Trial]


class Grid(NamedTuple):
    rows: Axis
    columns: Axis
    fixed: dict[str, Any]  # the other axes, each at one value
    trials: list[Trial]

    @property
    def cells(self) -> list[Cell]:
        """In the order of the trials; no two share a place."""
        found: dict[tuple[range, range], Cell] = {}
        for t in self.trials:
            place = self.rows.covers(t.point), self.columns.covers(t.point)
            found.setdefault(place, Cell(*place, [])).trials.append(t)
        return list(found.values())


def short(key: str) -> str:
    """An axis as tables and pictures name it."""
    return key.removeprefix("algo.")


def point_text(trial: Trial, without: Sequence[str | None] = ()) -> str:
    """A point as texts and tables name it, less the axes that stand elsewhere; the trial's name if no axis is left."""
    found = (f"{short(k)}={_digits(v)}" for k, v in trial.point.items() if k not in without)
    return plain(", ".join(found) or trial.name)


def _digits(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def find_grid(sweep: Sweep, x: str | None = None, y: str | None = None, where: Sequence[str] = ()) -> Grid:
    """Columns `x` and rows `y`, by default alpha against q_grad_mode, then the plan's first axes with a choice;
    `where` fixes others, "key=value".

    Raises UsageError for an axis left to average over, and for points that are no cells of a grid.
    """
    rows, columns, fixed, free = _axes(sweep, x, y, where)
    if free:
        raise UsageError(
            f"{k} varies beside {rows} and {columns}, and is never averaged over: fix it with "
            f"--where {short(k)}=VALUE ({_listed(sweep.axes[k])}), or show it with --x or --y"
            for k in free
        )
    return _grid(sweep, rows, columns, fixed)


def find_grids(sweep: Sweep, x: str | None = None, y: str | None = None, where: Sequence[str] = ()) -> list[Grid]:
    """As `find_grid`, a grid for every combination of the other axes' values; none if they are more than COMBINATIONS.

    Raises UsageError for points that are no cells of a grid.
    """
    rows, columns, fixed, free = _axes(sweep, x, y, where)
    if math.prod(len(sweep.axes[k]) for k in free) > COMBINATIONS:
        return []
    every = [
        fixed | dict(zip(free, values, strict=True)) for values in itertools.product(*(sweep.axes[k] for k in free))
    ]
    return [_grid(sweep, rows, columns, f) for f in every if _within(sweep, f)]


def _axes(
    sweep: Sweep, x: str | None, y: str | None, where: Sequence[str]
) -> tuple[str | None, str | None, dict[str, Any], list[str]]:
    """Rows, columns, the fixed axes and those that are left."""
    fixed = _fixed(sweep, where)
    columns, rows = x and _key(sweep, x), y and _key(sweep, y)
    if columns and columns == rows:
        raise UsageError([f"--x and --y are both {columns}: choose two axes"])
    free = [k for k in sweep.axes if k not in (columns, rows, *fixed)]
    free.sort(key=lambda k: FIRST.index(k) if k in FIRST else len(FIRST))
    if not rows and len(free) + bool(columns) > 1:
        rows = free.pop(0)
    if not columns and free:
        columns = free.pop(0)
    return rows, columns, {k: v for k, v in fixed.items() if k not in (columns, rows)}, free


def _within(sweep: Sweep, fixed: dict[str, Any]) -> list[Trial]:
    return [t for t in sweep.trials if all(t.point.get(k, v) == v for k, v in fixed.items())]


def _grid(sweep: Sweep, rows: str | None, columns: str | None, fixed: dict[str, Any]) -> Grid:
    axes = {k: sweep.axes[k] if k else [None] for k in (rows, columns)}
    grid = Grid(Axis(rows, axes[rows]), Axis(columns, axes[columns]), fixed, _within(sweep, fixed))
    _check(sweep, grid)
    return grid


def _key(sweep: Sweep, text: str) -> str:
    for key in sweep.axes:
        if text in (key, short(key)):
            return key
    raise UsageError([f"{text!r} is no axis of sweep {sweep.label}; {did_you_mean(text, sweep.axes)}"])


def _fixed(sweep: Sweep, where: Sequence[str]) -> dict[str, Any]:
    fixed = {k: values[0] for k, values in sweep.axes.items() if len(values) == 1}
    for text in where:
        name, _, value = text.partition("=")
        key = _key(sweep, name)
        found = [v for v in sweep.axes[key] if str(v) == value]
        if not found:
            raise UsageError([f"--where {text}: the sweep has {key} at {_listed(sweep.axes[key])}"])
        fixed[key] = found[0]
    return fixed


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def _check(sweep: Sweep, grid: Grid) -> None:
    problems = [
        f"trial {t.name} has {k} = {v}, no value of that axis and nothing that a search chose: a heatmap needs a grid"
        for t in sweep.trials
        for k, v in t.point.items()
        if k not in sweep.domains and v not in sweep.axes.get(k, [])
    ]
    if not problems and not grid.trials:
        problems = [f"the plan has no point with {', '.join(f'{k} = {v}' for k, v in grid.fixed.items())}"]
    claimed: dict[tuple[int, int], Trial] = {}
    for cell in [] if problems else grid.cells:
        first, *more = cell.trials
        if sweep.domains:
            more = []
        at = itertools.product(cell.rows, cell.columns)
        others = [o for place in at if (o := claimed.setdefault(place, first)) is not first]
        pairs = dict.fromkeys([(first.name, t.name) for t in more] + [(o.name, first.name) for o in others])
        problems += [f"trials {a} and {b} fall into one cell, {first.point}" for a, b in pairs]
    if problems:
        raise UsageError(problems)
