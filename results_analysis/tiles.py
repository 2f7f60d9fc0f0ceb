"""What stands in a cell of a grid: its number, interval, seeds, and the mark of one that is not complete."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from offrl_ray.errors import plain
from offrl_ray.intervals import wilson
from results_analysis import plots
from results_analysis.grid import Axis, Cell, Grid, short
from results_analysis.load import Seed, Sweep, Trial
from results_analysis.measures import estimate, measure
from results_analysis.stats import Estimate
from results_analysis.words import Say

RATES = ("success_once", "success_at_end")
STOPPED = "stopped"  # the share of the seeds that a rule stopped
MARKS = ("diverged", "partly diverged", "failed", "pruned", "unfinished", "not started", "not planned")


class Shown(NamedTuple):
    """A cell and the trial whose number it shows: its own, or the median point of a search."""

    cell: Cell
    trial: Trial
    tile: plots.Tile


def status(trial: Trial) -> str:
    """One of MARKS, or completed."""
    return trial.status if trial.started or trial.end or _begun(trial) else "not started"


def of_trial(trial: Trial, name: str) -> Estimate | None:
    """As `measures.estimate`; "stopped" is the share of the seeds that began, with Wilson's interval."""
    if name != STOPPED:
        return estimate(trial, name)
    begun = [s.diverged is not None for s in _begun(trial)]
    return Estimate(fmean(begun), wilson(sum(begun), len(begun)), len(begun)) if begun else None


def _begun(trial: Trial) -> list[Seed]:
    return [s for s in trial.seeds if s.diverged is not None or len(s.train.steps) or s.evals]


def number(name: str, value: float) -> str:
    return f"{value:.2f}" if name in (*RATES, STOPPED) else f"{float(f'{value:.3g}'):g}"


def written(name: str, e: Estimate | None, say: Say) -> list[str]:
    """The number and its interval; nothing where there is none."""
    if e is None:
        return []
    interval = f"[{', '.join(number(name, v) for v in e.interval)}]" if e.interval else say("no interval")
    return [number(name, e.mean), interval]


def shown(grid: Grid, cell: Cell, name: str, say: Say) -> Shown:
    """A cell as drawn. Of a search it is the median of the points that have a value (of two, the lower)."""
    found = {t.name: e for t in cell.trials if (e := of_trial(t, name)) is not None}
    ranked = sorted((t for t in cell.trials if t.name in found), key=lambda t: found[t.name].mean)
    trial = ranked[(len(ranked) - 1) // 2] if ranked else cell.trials[0]
    e, mark = found.get(trial.name), _mark(cell.trials)
    lines = written(name, e, say) or [say("no {name}", name=name) if trial.finished else say(status(trial))]
    lines.append(_seeds(trial, name, say))
    if mark and (e is not None or trial.finished):
        lines.append(say(mark))
    inert = [short(a.key) for a in (grid.rows, grid.columns) if a.key and a.key not in trial.point]
    if inert:
        lines[-1] += say(", any {axes}", axes=plain(" & ".join(inert)))
    if len(cell.trials) > 1:
        lost = len(cell.trials) - len(ranked)
        lines += [say("median of {n} points", n=len(ranked))] * bool(ranked)
        lines += [say("{n} more without", n=lost) if ranked else say("{n} points", n=lost)] * bool(lost)
    value = e.mean if e else None
    return Shown(cell, trial, plots.Tile(cell.rows, cell.columns, value, lines, mark))


def _mark(trials: Sequence[Trial]) -> str:
    """Of the points together: the rungs of a search stop some of them by design."""
    found = {status(t) for t in trials}
    if len(found) == 1:
        return (found - {"completed"} or {""}).pop()
    if found & {"diverged", "partly diverged"}:
        return "partly diverged"
    return next((m for m in ("failed", "unfinished", "not started") if m in found), "")


def _seeds(trial: Trial, name: str, say: Say) -> str:
    n, planned = len(_begun(trial) if name == STOPPED else trial.finished), len(trial.seeds)
    return say("n = {n}", n=n) if n == planned else say("n = {n} of {planned}", n=n, planned=planned)


def panel(grid: Grid, name: str, say: Say) -> tuple[plots.Panel, list[Shown]]:
    """A measure over the whole grid, as a picture draws it and as a page shows it."""
    m, cells = measure(name), [shown(grid, c, name, say) for c in grid.cells]
    limits = (
        (0.0, 1.0) if name == STOPPED else m.limits or _limits([e for s in cells if (e := of_trial(s.trial, name))])
    )
    known = "scaled return" if name in ("q_mean", "q_policy_mean") else m.unit
    unit = say("share of seeds") if name == STOPPED else unit_text(known, say)
    return plots.Panel(title(name, say), unit, [s.tile for s in cells], limits), cells


def _limits(found: Sequence[Estimate]) -> tuple[float, float] | None:
    """Of a colour scale under which what lies within the usual interval does not look like a difference."""
    widths = sorted(e.interval[1] - e.interval[0] for e in found if e.interval)
    means = [e.mean for e in found if math.isfinite(e.mean)]
    if not widths or max(means) - min(means) >= (width := widths[len(widths) // 2]) or not width:
        return None
    middle = (max(means) + min(means)) / 2
    return middle - width / 2, middle + width / 2


def unit_text(unit: str, say: Say) -> str:
    """A measure's unit in the report's language."""
    known = {
        "share of episodes": say("share of episodes"),
        "reward per episode": say("reward per episode"),
        "scaled return": say("scaled return"),
        "squared scaled return": say("squared scaled return"),
        "as logged": say("as logged"),
    }
    return known.get(unit, unit)


def title(name: str, say: Say) -> str:
    """What a measure is, for a reader who does not know its name."""
    known = {
        "success_once": say("success_once at the last step"),
        "success_at_end": say("success_at_end at the last step"),
        "return": say("return at the last step"),
        "q_gap": say("q_gap: Q at the start, less the discounted return"),
        "q_excess": say("q_excess: Q, less its provable bound"),
        "q_mean": say("q_mean in the last training report"),
        STOPPED: say("seeds that a stop rule ended"),
    }
    return known.get(name, name)


def native(sweep: Sweep) -> bool:
    """True where the environment pays its own reward, and success is no aim."""
    return any(e.env.get("reward_mode") == "native" for t in sweep.trials for s in t.seeds for e in s.evals)


def ticks(axis: Axis) -> plots.Ticks:
    return plots.Ticks(plain(short(axis.key)), list(map(plain, axis.values))) if axis.key else plots.Ticks("", [""])


def heading(sweep: Sweep, grid: Grid, say: Say) -> str:
    """What the cells have in common, in two lines."""
    seeds = [s for t in grid.trials for s in t.seeds]
    steps, numbers = {t.steps for t in grid.trials}, sorted({s.seed for s in seeds})
    env = ", ".join(sorted({e.env["id"] for s in seeds for e in s.evals}))
    episodes = {len(s.final.episodes["success_once"]) for s in seeds if s.final}
    listed = ", ".join(map(str, numbers))
    facts = [
        say("{n} evaluation episodes per seed", n=_span(episodes)) if episodes else say("no final evaluation yet"),
        say("seed {numbers}", numbers=listed) if len(numbers) == 1 else say("seeds {numbers}", numbers=listed),
        say("step {n}", n=_span(steps)),
        *(f"{short(k)} = {v}" for k, v in grid.fixed.items()),
    ]
    return "\n".join(map(plain, (f"{sweep.label}{env and ': '}{env}", ", ".join(facts))))


def _span(values: set[int]) -> str:
    return str(min(values)) if len(values) == 1 else f"{min(values)} to {max(values)}"
