"""Section: success, Q and critic loss over training, with intervals over seeds (never over episodes)."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from offrl_ray.errors import plain
from results_analysis import plots
from results_analysis.blocks import Block, Figure, Section, Table, Text, Value
from results_analysis.grid import Grid, find_grids, point_text, short
from results_analysis.load import EPISODE, Array, Seed, Sweep, Trial
from results_analysis.measures import estimate, measure
from results_analysis.stats import mean_over_seeds, rate_over_seeds
from results_analysis.tiles import native, unit_text
from results_analysis.words import Say

LINES = 12  # of a figure
POINTS = 60  # of a line


class Quantity(NamedTuple):
    name: str
    unit: str
    logarithmic: bool


def quantities(sweep: Sweep) -> list[Quantity]:
    """Success, or the return where the environment pays its own reward; Q of the policy's actions; critic loss."""
    known = {name for t in sweep.trials for s in t.seeds for name in s.train.metrics}
    main = "return" if native(sweep) else "success_once"
    found = [Quantity(main, measure(main).unit, False)]
    q = next((q for q in ("q_policy_mean", "q_mean") if q in known), None)
    found += [Quantity(q, "scaled return", True)] if q else []
    return found + [Quantity("critic_loss", "squared scaled return", True)] * ("critic_loss" in known)


def series(seed: Seed, name: str) -> tuple[Array, Array]:
    """Steps and values: of the evaluations, or of the train reports; without what is not finite."""
    if name in EPISODE:
        curve = seed.eval_curve(name)
        steps, values = np.array([s for s, _ in curve], dtype=int), np.array([v for _, v in curve], dtype=float)
    else:
        steps, values = seed.train.steps, seed.train.metrics.get(name, np.full(len(seed.train.steps), np.nan))
    good = np.isfinite(values)
    return steps[good], values[good]


def thinned(steps: Array, keep: Sequence[int] = ()) -> Array:
    """At most POINTS of the sorted steps: the first, the last, those to keep, and others evenly between."""
    if len(steps) <= POINTS:
        return steps
    even = np.linspace(0, len(steps) - 1, max(2, POINTS - len(keep))).round().astype(int)
    return np.union1d(steps[even], np.intersect1d(steps, np.array(keep, dtype=int)))


def line(trial: Trial, name: str, label: str) -> plots.Line:
    """Of one point. Seeds that a rule stopped are drawn faint and marked, and are in no mean, as in the cells."""
    every = [(s, *series(s, name)) for s in trial.seeds]
    drawn = [(seed, x, y) for seed, x, y in every if len(x)]
    stops = [(float(x[-1]), float(y[-1])) for seed, x, y in drawn if seed.diverged is not None]
    going = [(seed, x, y) for seed, x, y in drawn if seed.diverged is None]
    steps = thinned(functools.reduce(np.intersect1d, [x for _, x, _ in going])) if going else np.empty(0, dtype=int)
    values = [y[np.isin(x, steps)].tolist() for _, x, y in going]
    if measure(name).rate:
        found = [rate_over_seeds([_episodes(seed, name, step) for seed, _, _ in going]) for step in steps]
    else:
        found = [mean_over_seeds(at) for at in zip(*values, strict=True)]
    rows = [(e.mean, *(e.interval or (math.nan, math.nan))) for e in found if e]
    mean, low, high = np.array(rows).reshape(-1, 3).T
    faint = [(x[keep], y[keep]) for _, x, y in drawn for keep in [np.isin(x, thinned(x))]]
    return plots.Line(label, steps, mean, low, high, faint, stops)


def _episodes(seed: Seed, name: str, step: int) -> list[float]:
    return next(e.episodes[name].tolist() for e in seed.evals if e.step == step)


def chosen(trials: Sequence[Trial], name: str, say: Say) -> tuple[list[Trial], str]:
    """The trials to draw, in their order, and what the reader must know when they are not all."""
    if len(trials) <= LINES:
        return list(trials), ""
    third = LINES // 3
    finals = {t.name: e.mean for t in trials if (e := estimate(t, name)) is not None}
    ranked = sorted((t for t in trials if t.name in finals), key=lambda t: -finals[t.name])
    stopped = [t for t in trials if any(s.diverged is not None for s in t.seeds)]
    parts = (ranked[:third], ranked[third:][-third:], stopped[:third])
    names = {t.name for part in parts for t in part}
    note = say(
        "Too many lines for one figure: of {all} points these are the {best} best and the {worst} worst by {name}, "
        "and {shown} of the {stopped} with seeds that a rule stopped.",
        **{"all": len(trials), "best": len(parts[0]), "worst": len(parts[1]), "name": name},
        **{"shown": len(parts[2]), "stopped": len(stopped)},
    )
    return [t for t in trials if t.name in names], note


def section(
    sweeps: Sequence[Sweep], say: Say, x: str | None = None, y: str | None = None, where: Sequence[str] = ()
) -> Section:
    """Figures of every sweep, and the table of its stops. Raises UsageError as `find_grids`."""
    intro = say(
        "Lines are means over the seeds that no rule stopped, bands their 95 % intervals over seeds; every seed is "
        "drawn faint. On a logarithmic axis a band is cut off at half of the smallest seed's value; the table has all "
        "of it. A cross marks where a rule stopped a seed; such a seed is in no mean."
    )
    blocks: list[Block] = [Text(intro)]
    for sweep in sweeps:
        grids: list[Grid | None] = [*find_grids(sweep, x, y, where)]
        blocks += [block for grid in grids or [None] for block in _of_grid(sweep, grid, say)]
        blocks += _stops(sweep, say)
    return Section("curves", say("Curves"), blocks)


def _of_grid(sweep: Sweep, grid: Grid | None, say: Say) -> list[Block]:
    main, *_ = every = quantities(sweep)
    trials, note = chosen(grid.trials if grid else sweep.trials, main.name, say)
    blocks: list[Block] = [Text(note)] if note else []
    fixed = ", ".join(f"{short(k)} = {v}" for k, v in grid.fixed.items()) if grid else ""
    where = ": ".join(filter(None, (sweep.label, fixed)))
    for q in every:
        frames = _frames(grid, trials, q.name)
        if any(line.seeds for f in frames for line in f.lines):
            blocks.append(
                _figure(sweep.label, where, q, frames, _bound(trials) if q.name.startswith("q_") else None, say)
            )
        else:
            blocks.append(Text(say("{where}: no {name} was recorded.", where=where, name=q.name)))
    return blocks


def _frames(grid: Grid | None, trials: Sequence[Trial], name: str) -> list[plots.Frame]:
    """One for each row of the grid; a point on which the row's axis has no effect has one of its own."""
    row, column = (grid.rows.key, grid.columns.key) if grid else (None, None)
    hidden = [row, *(grid.fixed if grid else [])]
    found: dict[str, list[plots.Line]] = {}
    for t in trials:
        title = plain(f"{short(row)} = {t.point.get(row, 'any')}") if row else ""
        label = point_text(t, hidden)
        if column and column not in t.point:
            label = plain(f"any {short(column)}")
        found.setdefault(title, []).append(line(t, name, label))
    return [plots.Frame(title, lines) for title, lines in found.items()]


def _bound(trials: Sequence[Trial]) -> float | None:
    """Above which no true Q lies, if it is one number for all that is drawn."""
    found = {b for t in trials for s in t.seeds if (b := s.train.last("q_bound_high")) is not None}
    return max(found) if found and max(found) - min(found) <= 1e-3 * abs(max(found)) else None


def _figure(sweep: str, where: str, q: Quantity, frames: list[plots.Frame], bound: float | None, say: Say) -> Figure:
    label = f"{q.name} ({unit_text(q.unit, say)})"
    png = plots.curves(frames, f"{q.name} ({q.unit})", q.logarithmic, measure(q.name).limits, bound)
    caption = say("{where}: {name} over training steps", where=where, name=label)
    if bound is not None:
        caption += say("; dashed: the provable bound of Q, {bound}", bound=f"{bound:.4g}")
    rows: list[list[Value]] = [
        [f.title, one.label, int(step), *map(_cell, (mean, low, high))]
        for f in frames
        for one in f.lines
        for step, mean, low, high in zip(one.steps, one.mean, one.low, one.high, strict=True)
    ]
    table = Table(f"curves_{q.name}_{sweep}", caption, ["row", "point", "step", q.name, "low", "high"], rows)
    return Figure(table.name, caption, png, table)


def _cell(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _stops(sweep: Sweep, say: Say) -> list[Block]:
    rows: list[list[Value]] = [
        [point_text(t), s.seed, s.diverged_at, s.diverged]
        for t in sweep.trials
        for s in t.seeds
        if s.diverged is not None
    ]
    if not rows:
        return [Text(say("{sweep}: no rule stopped a seed.", sweep=sweep.label), "good")]
    caption = say("{sweep}: {n} seeds that a rule stopped, and why", sweep=sweep.label, n=len(rows))
    return [Table(f"stops_{sweep.label}", caption, [say("point"), say("seed"), say("step"), say("reason")], rows)]
