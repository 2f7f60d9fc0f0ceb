"""Completed points that are behind the best one by more than luck, and the signs that explain it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from results_analysis.advice import as_set, taken
from results_analysis.blocks import Block, Table, Text, Value
from results_analysis.confirmation import lead, objective, ranked
from results_analysis.grid import point_text
from results_analysis.header import shortened
from results_analysis.load import Sweep, Trial
from results_analysis.measures import measure
from results_analysis.q_traps import largest
from results_analysis.signs import SIGNS, signs
from results_analysis.stats import Estimate
from results_analysis.words import Say

MOST = 20  # points that are listed


class Behind(NamedTuple):
    trial: Trial
    gap: Estimate  # how much better the best point is
    signs: dict[str, dict[str, object]]  # name in SIGNS -> its numbers


class Found(NamedTuple):
    best: Trial
    compared: int  # other completed points that the seeds allow an interval for
    behind: list[Behind]
    well: set[str]  # names of the compared points that are not behind, and of the best; none where no episode succeeds


def find(sweep: Sweep) -> Found | None:
    """None for fewer than two completed points with a value of the objective."""
    aim = objective(sweep)
    points = [(t, v) for t, v in ranked(sweep, aim) if t.status == "completed"]
    if len(points) < 2:
        return None
    best, top = points[0]
    gaps = [(t, *lead(aim, top, v)) for t, v in points[1:]]
    told = [(t, gap, apart) for t, gap, apart in gaps if gap.interval]
    late = [Behind(t, gap, signs(t, best)) for t, gap, apart in told if apart]
    failed = measure(aim.metric).rate and top.mean == 0
    well = set() if failed or not told else {best.name, *(t.name for t, _, apart in told if not apart)}
    return Found(best, len(told), late, well)


def blocks(sweep: Sweep, found: Found | None, say: Say) -> Iterator[Block]:
    if found is None:
        return
    places = {"sweep": sweep.label, "n": len(found.behind), "total": found.compared + 1, "best": point_text(found.best)}
    if not found.compared:
        what = "{sweep}: whether a point is behind the best by more than luck cannot be told: it takes two seeds."
        yield Text(say(what, **places))
    elif not found.behind:
        yield Text(say("{sweep}: no completed point is behind the best by more than luck.", **places), "good")
    else:
        what = "{sweep}: {n} of {total} completed points are behind the best, {best}, by more than luck."
        yield Text(say(what, **places), "bad")
        groups: dict[tuple[str, ...], list[Behind]] = {}
        for b in found.behind:
            groups.setdefault(tuple(b.signs), []).append(b)
        ordered = sorted(groups.items(), key=lambda g: (not g[0], -len(g[1])))
        for names, group in ordered:
            why = " ".join(say(SIGNS[n].meaning) for n in names) or say("Nothing recorded here explains it.")
            yield Text(f"{shortened([point_text(b.trial) for b in group], MOST)}: {why}", "warning")
        listed = [b for _, group in ordered for b in group]
        yield _table(sweep, listed, say)
        yield from _advice(sweep, listed, say)


def _table(sweep: Sweep, listed: Sequence[Behind], say: Say) -> Table:
    caption = say(
        "{sweep}: how far the best point is ahead in {metric}, paired by seed, not corrected for the number of points, "
        "and what shows why, for {n} of {total}.",
        **{"sweep": sweep.label, "metric": objective(sweep).metric, "n": len(listed[:MOST]), "total": len(listed)},
    )
    columns = ["point", "behind by", "signs"]
    rows: list[Sequence[Value]] = []
    for b in listed[:MOST]:
        why = "; ".join(say(SIGNS[n].numbers, **numbers) for n, numbers in b.signs.items())
        rows.append([point_text(b.trial), b.gap, why or say("nothing recorded")])
    return Table(f"behind-{sweep.label}", caption, [say(c) for c in columns], rows)


def _advice(sweep: Sweep, listed: Sequence[Behind], say: Say) -> Iterator[Table]:
    rows: list[Sequence[Value]] = []
    for b in listed[:MOST]:
        bound = next((x for s in b.trial.seeds if (x := largest(b.trial, s)) is not None), None)
        tries = tuple(dict.fromkeys(t for name in b.signs for t in SIGNS[name].tries))
        changes = dict.fromkeys(taken(tries, b.trial.config, bound))
        rows += [[point_text(b.trial), key, as_set(now), as_set(new)] for key, now, new in changes]
    if rows:
        caption = say("{sweep}: what to try for the points that are behind, one change at a time.", sweep=sweep.label)
        columns = ["point", "setting", "now", "try"]
        yield Table(f"advice-behind-{sweep.label}", caption, [say(c) for c in columns], rows)
