"""What came out, in a few lines, before anything else."""

from collections import Counter
from collections.abc import Iterator, Sequence

from results_analysis.blocks import Block, Section, Table, Text, Value
from results_analysis.claims import Judged
from results_analysis.confirmation import (
    Objective,
    Ranked,
    Values,
    command,
    in_words,
    itself,
    lead,
    no_winner,
    objective,
    ranked,
    values,
)
from results_analysis.grid import point_text
from results_analysis.header import STATES, state
from results_analysis.load import Sweep, Trial
from results_analysis.words import Say


def section(sweeps: Sequence[Sweep], found: Judged, say: Say) -> Section:
    points = [ranked(s, objective(s)) for s in sweeps]
    blocks: list[Block] = []
    for s, best_first in zip(sweeps, points, strict=True):
        blocks += [*_best(s, best_first, say), *_lost(s, say)]
    blocks += _beside(sweeps, points, say)
    what = "Claims: {supported} supported, {refuted} refuted, {undecided} undecided."
    counts = {w: found.count(w) for w in ("supported", "refuted", "undecided")}
    return Section("answer", say("In short"), [*blocks, Text(say(what, **counts), to="claims")])


def _beside(sweeps: Sequence[Sweep], points: Sequence[list[Ranked]], say: Say) -> Iterator[Table]:
    """The winners of several sweeps, of each objective the best first."""
    if len(sweeps) < 2:
        return
    rows: list[tuple[tuple[str, float], list[Value]]] = []
    for sweep, best_first in zip(sweeps, points, strict=True):
        aim = objective(sweep)
        for best, v in best_first[:1]:
            if v.estimate:
                place = (aim.metric, -v.estimate.mean if aim.mode == "max" else v.estimate.mean)
                rows.append((place, [sweep.label, best.variant, point_text(best), aim.metric, v.estimate]))
    what = "The best point of each sweep; chosen after the fact, and comparable where data and episodes are the same."
    columns = ["sweep", "variant", "point", "objective", "value"]
    ordered = [row for _, row in sorted(rows, key=lambda r: r[0])]
    yield Table("winners", say(what), [say(c) for c in columns], ordered)


def _best(sweep: Sweep, found: list[Ranked], say: Say) -> Iterator[Text]:
    aim = objective(sweep)
    if not found:
        yield no_winner(sweep, say)
        return
    (best, v), *others = found
    places = {"sweep": sweep.label, "point": point_text(best), "metric": aim.metric, "value": in_words(v.estimate)}
    what = "{sweep}: of {n} points {point} has the best {metric}: {value}."
    yield Text(say(what, **places, n=len(found)))
    if others:
        yield Text(_ahead(aim, v, others[0], say("the next"), say))
    if len(others) > 1:
        yield Text(_ahead(aim, v, others[-1], say("the worst"), say))
    yield from _confirmed(sweep, best, len(found), say)


def _ahead(aim: Objective, best: Values, other: Ranked, rank: str, say: Say) -> str:
    gap, apart = lead(aim, best, other[1])
    what = (
        "Against {rank}, {other}, it is ahead by {gap}: the interval, paired by seed, excludes 0."
        if apart
        else "Against {rank}, {other}, it is ahead by {gap}: not shown to be more than luck."
    )
    return say(what, rank=rank, other=point_text(other[0]), gap=in_words(gap))


def _confirmed(sweep: Sweep, best: Trial, n: int, say: Say) -> Iterator[Text]:
    if text := itself(sweep, say):
        yield text
    elif sweep.confirmation is None:
        yield Text(say("Not confirmed on fresh seeds yet; this would:"), to="confirmation")
        yield Text(command(sweep, n), "code")
    else:
        metric = objective(sweep.confirmation).metric
        again = values(next((t for t in sweep.confirmation.trials if t.name == best.name), None), metric).estimate
        what = "On fresh seeds its {metric} is {value}." if again else "It has no confirmed value of {metric} yet."
        yield Text(say(what, metric=metric, value=in_words(again)), to="confirmation")


def _lost(sweep: Sweep, say: Say) -> Iterator[Text]:
    """The points that are not complete, if any."""
    counts = Counter(map(state, sweep.trials))
    if open_ := [f"{counts[s]} {say(s)}" for s in STATES[1:] if counts[s]]:
        what = "{sweep}: of {n} points {states}."
        told_ = say(what, sweep=sweep.label, n=len(sweep.trials), states=", ".join(open_))
        yield Text(told_, "warning", to="diagnosis")
