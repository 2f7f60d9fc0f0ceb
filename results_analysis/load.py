"""A sweep folder's records as trials and seeds, and its points as cells of a grid."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from offrl_ray import records
from offrl_ray.errors import UsageError, did_you_mean

Record = dict[str, Any]


@dataclass(frozen=True)
class Seed:
    seed: int
    train: list[Record]  # by step
    evals: list[Record]  # by step
    final: Record | None  # the evaluation at the last planned step
    diverged: str | None  # the reason

    @property
    def finished(self) -> bool:
        return self.final is not None and self.diverged is None


@dataclass(frozen=True)
class Trial:
    name: str
    point: dict[str, Any]  # lacks the axes that are inert here
    config: dict[str, Any]
    steps: int
    seeds: list[Seed]
    end: Record | None

    @property
    def finished(self) -> list[Seed]:
        return [s for s in self.seeds if s.finished]

    @property
    def status(self) -> str:
        """completed, unfinished, diverged, partly diverged, or the end record's own word: failed or pruned."""
        if self.end is None:
            return "unfinished"
        if self.end["status"] not in ("completed", "diverged"):
            return str(self.end["status"])
        diverged = sum(s.diverged is not None for s in self.seeds)
        if diverged == len(self.seeds) or (self.end["status"] == "diverged" and not self.finished):
            return "diverged"
        if diverged or self.end["status"] == "diverged":
            return "partly diverged"
        return "completed" if len(self.finished) == len(self.seeds) else "unfinished"

    @property
    def reason(self) -> str:
        """Why seeds are missing; empty for a completed trial."""
        if self.status == "completed":
            return ""
        why = [str(self.end["reason"])] if self.end and self.end.get("reason") else []
        why += [f"seed {s.seed}: {s.diverged}" for s in self.seeds if s.diverged is not None]
        missing = [str(s.seed) for s in self.seeds if s.final is None and s.diverged is None]
        if missing:
            why.append(f"no evaluation at step {self.steps} for seed {', '.join(missing)}")
        return "; ".join(why)


@dataclass(frozen=True)
class Sweep:
    folder: Path
    name: str
    question: str
    axes: dict[str, list[Any]]
    trials: list[Trial]
    problems: list[str]  # damaged lines


def load(folder: str | Path) -> Sweep:
    """The sweep of a folder, running or done. Raises UsageError if the folder holds none."""
    expected = f"expected a sweep's folder, with a {records.FILE} that holds a plan"
    try:
        log = records.read(folder)
    except FileNotFoundError:
        what = f"no {records.FILE} in it" if Path(folder).is_dir() else "no such folder"
        raise UsageError([f"{folder}: {what}; {expected}"]) from None
    except OSError as e:
        raise UsageError([f"{folder}: {e.strerror}; {expected}"]) from None
    plan = next((r for r in reversed(log.records) if r["kind"] == "plan"), None)
    points = _points(log.records, plan) if plan else []
    if plan is None or not points:
        damaged = f", {len(log.problems)} damaged lines (first: {log.problems[0]})" if log.problems else ""
        what = "no plan in its records" if plan is None else "its plan has no points, and none was asked for"
        raise UsageError([f"{folder}: {what}{damaged}; {expected}"])
    trials = _trials(points, log.records)
    return Sweep(Path(folder), plan["name"], plan.get("question") or "", plan["axes"], trials, log.problems)


def _points(log: list[Record], plan: Record) -> list[Record]:
    """Those of the grid and those that a search asked for, without those that are the same run as another."""
    asked = [r for r in log if r["kind"] == "point"]
    return [p for p in (*plan["points"], *asked) if p.get("same_as") is None]


def _trials(points: list[Record], log: list[Record]) -> list[Trial]:
    # After a resume the same step may be recorded again: the later record replaces the earlier. A part of an
    # evaluation is none.
    runs: dict[tuple[str, str, int], dict[int, Record]] = {}
    ends: dict[str, Record] = {}
    for r in log:
        if r["kind"] == "train" or (r["kind"] == "eval" and len(r["success_once"]) == r["episodes"]):
            runs.setdefault((r["kind"], r["trial"], r["seed"]), {})[r["step"]] = r
        elif r["kind"] == "end":
            ends[r["trial"]] = r
        elif r["kind"] in ("start", "retry"):
            ends.pop(r["trial"], None)

    def by_step(kind: str, trial: str, seed: int) -> list[Record]:
        return [r for _, r in sorted(runs.get((kind, trial, seed), {}).items())]

    trials = []
    for p in points:
        name, end, seeds = p["trial"], ends.get(p["trial"]), []
        for seed in p["seeds"]:
            evals = by_step("eval", name, seed)
            final = next((r for r in evals if r["step"] == p["steps"]), None)
            diverged = ((end or {}).get("diverged") or {}).get(str(seed))
            seeds.append(Seed(seed, by_step("train", name, seed), evals, final, diverged))
        trials.append(Trial(name, p["point"], p["config"], p["steps"], seeds, end))
    return trials


class Axis(NamedTuple):
    key: str | None  # None: the grid has no such axis, but one nameless value
    values: list[Any]

    def covers(self, point: dict[str, Any]) -> range:
        """Where the point lies: at one value, or at all of them where the axis is inert."""
        if self.key not in point:
            return range(len(self.values))
        i = self.values.index(point[self.key])
        return range(i, i + 1)


class Grid(NamedTuple):
    rows: Axis
    columns: Axis
    fixed: dict[str, Any]  # the other axes, each at one value
    trials: list[Trial]


def short(key: str) -> str:
    """An axis as tables and pictures name it."""
    return key.removeprefix("algo.")


def find_grid(sweep: Sweep, x: str | None = None, y: str | None = None, where: Sequence[str] = ()) -> Grid:
    """Columns `x` and rows `y`, by default the plan's first axes with a choice; `where` fixes others, "key=value".

    Raises UsageError for an axis left to average over, and for points that are no cells of a grid.
    """
    fixed = _fixed(sweep, where)
    columns, rows = x and _key(sweep, x), y and _key(sweep, y)
    if columns and columns == rows:
        raise UsageError([f"--x and --y are both {columns}: choose two axes"])
    free = [k for k in sweep.axes if k not in (columns, rows, *fixed)]
    if not rows and len(free) + bool(columns) > 1:
        rows = free.pop(0)
    if not columns and free:
        columns = free.pop(0)
    if free:
        raise UsageError(
            f"{k} varies beside {rows} and {columns}, and is never averaged over: fix it with "
            f"--where {short(k)}=VALUE ({_listed(sweep.axes[k])}), or show it with --x or --y"
            for k in free
        )
    fixed = {k: v for k, v in fixed.items() if k not in (columns, rows)}
    trials = [t for t in sweep.trials if all(t.point.get(k, v) == v for k, v in fixed.items())]
    axes = {k: sweep.axes[k] if k else [None] for k in (rows, columns)}
    grid = Grid(Axis(rows, axes[rows]), Axis(columns, axes[columns]), fixed, trials)
    _check(sweep, grid)
    return grid


def _key(sweep: Sweep, text: str) -> str:
    for key in sweep.axes:
        if text in (key, short(key)):
            return key
    raise UsageError([f"{text!r} is no axis of sweep {sweep.name}; {did_you_mean(text, sweep.axes)}"])


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
        f"trial {t.name} has {k} = {v}, no value of that axis: a heatmap needs a grid, not a search"
        for t in sweep.trials
        for k, v in t.point.items()
        if v not in sweep.axes.get(k, [])
    ]
    if not problems and not grid.trials:
        problems = [f"the plan has no point with {', '.join(f'{k} = {v}' for k, v in grid.fixed.items())}"]
    places: dict[tuple[range, range], Trial] = {}
    for t in [] if problems else grid.trials:
        other = places.setdefault((grid.rows.covers(t.point), grid.columns.covers(t.point)), t)
        if other is not t:
            problems.append(f"trials {other.name} and {t.name} fall into one cell, {t.point}")
    if problems:
        raise UsageError(problems)
