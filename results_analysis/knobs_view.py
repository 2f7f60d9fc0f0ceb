"""Section: which knob matters, of the points that a sweep tried."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from offrl_ray.errors import plain
from results_analysis import knobs, plots
from results_analysis.blocks import Block, Figure, Section, Table, Text, Value
from results_analysis.grid import short
from results_analysis.load import Sweep
from results_analysis.measures import measure
from results_analysis.stats import Estimate
from results_analysis.tiles import native, unit_text
from results_analysis.words import Say

ENDED = ("completed", "diverged", "partly diverged")


def section(sweeps: Sequence[Sweep], say: Say) -> Section:
    """Raises UsageError for points outside the domains of their plan."""
    intro = say(
        "Only points that were run to their end. A seed that a rule stopped counts as the worst value that any seed "
        "reached. The mean shows how good a value is when the others are as tried, the best how good it is when they "
        "are tuned; a best is chosen and scored by the same seeds, so it flatters."
    )
    return Section("knobs", say("Which knob matters"), [Text(intro), *(b for s in sweeps for b in _of(s, say))])


def _points(sweep: Sweep, name: str) -> list[knobs.Point]:
    of = measure(name).of
    found = []
    for t in sweep.trials:
        if t.status in ENDED:
            values = [math.nan if s.diverged is not None else of(s) for s in t.seeds]
            found.append(knobs.Point(t.point, [v for v in values if v is not None]))
    return [p for p in found if p.values]


def _of(sweep: Sweep, say: Say) -> Iterator[Block]:
    name = "return" if native(sweep) else "success_once"
    points, domains = _points(sweep, name), knobs.domains_of(sweep.plan)
    if not domains:
        yield Text(say("{sweep}: no axis has a choice.", sweep=sweep.label))
        return
    if not any(math.isfinite(v) for p in points for v in p.values):
        yield Text(say("{sweep}: no point has ended with a value yet.", sweep=sweep.label))
        return
    lost = sum(not math.isfinite(v) for p in points for v in p.values)
    yield Text(
        say(
            "{sweep}: {n} of {planned} points, {lost} stopped seeds among them.",
            **{"sweep": sweep.label, "n": len(points), "planned": len(sweep.trials), "lost": lost},
        )
    )
    label = f"{name} ({unit_text(measure(name).unit, say)})"
    axis = f"{name} ({measure(name).unit})"
    yield _sensitivity(sweep, points, domains, axis, label, say)
    yield _importance(sweep, points, domains, label, say)
    yield _budget(sweep, points, axis, label, say)
    if sweep.domains:
        yield _parallel(sweep, points, domains, axis, label, say)


def _sensitivity(
    sweep: Sweep, points: list[knobs.Point], domains: Mapping[str, Any], axis: str, label: str, say: Say
) -> Figure:
    limits = measure(axis.split()[0]).limits or (-math.inf, math.inf)
    found = [s for s in knobs.sensitivity(points, domains, "max", *limits) if s.levels]
    drawn = [
        plots.Sense(
            short(s.axis),
            list(map(_span, s.levels)),
            [_ends(v.mean) for v in s.levels],
            [_ends(v.best) for v in s.levels],
        )
        for s in found
    ]
    caption = say("{sweep}: {name} at each value of each axis, over the other axes", sweep=sweep.label, name=label)
    inert = [f"{short(s.axis)}: {s.inert}" for s in found if s.inert]
    if inert:
        caption += say("; points on which an axis has no effect are left out: {inert}", inert=", ".join(inert))
    rows: list[list[Value]] = [
        [short(s.axis), _span(v), v.points, v.diverged, v.mean, v.best] for s in found for v in s.levels
    ]
    table = Table(
        f"sensitivity_{sweep.label}", caption, ["axis", "value", "points", "stopped seeds", "mean", "best"], rows
    )
    return Figure(table.name, caption, plots.sensitivity(drawn, axis), table)


def _span(level: knobs.Level) -> str:
    ends = [f"{v:.3g}" if isinstance(v, float) else plain(v) for v in (level.low, level.high)]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]}..{ends[1]}"


def _ends(e: Estimate) -> tuple[float, float, float]:
    return (e.mean, *(e.interval or (math.nan, math.nan)))


def _importance(
    sweep: Sweep, points: list[knobs.Point], domains: Mapping[str, Any], label: str, say: Say
) -> Figure | Text:
    found = knobs.importance(points, domains)
    if found.refused:
        return Text(say("{sweep}: {why}", sweep=sweep.label, why=_refusal(found, say)), "warning")
    caption = say(
        "{sweep}: how much each axis decides whether a point is among the best {top} of {n} by {name} (PED-ANOVA; "
        "shares of 1 even where no axis matters: p, of a permutation test, tells which to believe); {diverged} points "
        "with stopped seeds count as the worst",
        **{"sweep": sweep.label, "top": found.top, "n": found.points, "name": label, "diverged": found.diverged},
    )
    names = [plain(short(k)) for k in found.shares]
    shares = list(found.shares.values())
    notes = [f"{v:.2f}" + (f"  p = {found.p[k]:.2g}" if k in found.p else "") for k, v in found.shares.items()]
    rows: list[list[Value]] = [
        [short(k), v, found.p.get(k), found.points, found.inert.get(k, 0)] for k, v in found.shares.items()
    ]
    table = Table(f"importance_{sweep.label}", caption, ["axis", "share", "p", "n", "points without effect"], rows)
    return Figure(
        table.name, caption, plots.bars(names, shares, notes, f"share of importance, n = {found.points}"), table
    )


def _refusal(found: knobs.Importance, say: Say) -> str:
    if found.refused == "few points":
        return say("importance needs at least {least} points, but n = {n}", least=knobs.FEWEST_POINTS, n=found.points)
    if found.refused == "equal values":
        return say("importance needs points of different value, but all {n} are equal", n=found.points)
    return say("no axis differs between the best {top} points and all {n}", top=found.top, n=found.points)


def _budget(sweep: Sweep, points: list[knobs.Point], axis: str, label: str, say: Say) -> Figure:
    best = knobs.best_by_budget(points)
    caption = say(
        "{sweep}: expected best {name} of k points drawn from those tried (optimistic: the seeds that choose the best "
        "also score it)",
        sweep=sweep.label,
        name=label,
    )
    table = Table(f"expected_best_{sweep.label}", caption, ["points", "expected best"], best)
    return Figure(table.name, caption, plots.budget(best, axis), table)


def _parallel(
    sweep: Sweep, points: list[knobs.Point], domains: Mapping[str, Any], axis: str, label: str, say: Say
) -> Figure:
    rows = knobs.coordinates(points, domains)
    axes = [(plain(short(k)), *_edges(d)) for k, d in domains.items()]
    caption = say(
        "{sweep}: every point as a line through its values, coloured by {name}", sweep=sweep.label, name=label
    )
    listed: list[list[Value]] = [
        [*(_plain(r.point.get(k, "any")) for k in domains), r.value, r.n, r.diverged] for r in rows
    ]
    columns = [*map(short, domains), axis.split()[0], "seeds", "stopped seeds"]
    table = Table(f"points_{sweep.label}", caption, columns, listed)
    lines = [([r.coordinates[k] for k in domains], r.value) for r in rows]
    return Figure(table.name, caption, plots.parallel(axes, lines, axis), table)


def _plain(value: Any) -> Value:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _edges(domain: Mapping[str, Any]) -> tuple[str, str]:
    ends = (
        (domain["values"][0], domain["values"][-1]) if domain["kind"] == "choice" else (domain["low"], domain["high"])
    )
    low, high = (f"{v:.4g}" if isinstance(v, float) else plain(v) for v in ends)
    return low, high
