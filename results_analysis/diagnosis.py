"""Why trials failed, diverged or were stopped, the metrics that show it, and what to try.

One finding is one rule or failure in one seed or trial; findings of one kind are told together, since a sweep with a
bad region has hundreds of the same.
"""

import math
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from results_analysis import behind
from results_analysis.advice import FAILURES, RULES, Q, as_set, changes
from results_analysis.blocks import Block, Section, Table, Text, Value
from results_analysis.grid import point_text
from results_analysis.header import shortened
from results_analysis.load import Curves, Seed, Sweep, Trial
from results_analysis.q_traps import bound, largest
from results_analysis.words import Say

FULL = 20  # points that are told in full
LONGEST = 300  # characters of a reason
REASON = re.compile(r"(\w+): (.*)", re.DOTALL)
NOTE = re.compile(r"seed (\d+) at step (\d+): (\w+): (.*)", re.DOTALL)
Mood = Literal["plain", "warning", "good", "bad"]
KINDS = {
    "stop": "{sweep}: the rule {rule} stopped {seeds} of {of} seeds, in {n} of {total} points",
    "failed": "{sweep}: failed ({rule}) are {n} of {total} points",
    "note": "{sweep}: the rule {rule} noted {seeds} of {of} seeds, in {n} of {total} points",
    "pruned": "{sweep}: pruned, which is no fault, are {n} of {total} points; their values are not of the last step",
    "fault": "{sweep}: an attempt was lost ({rule}) and tried again in {n} of {total} points",
    "remark": "{sweep}: other notes are there for {n} of {total} points",
}
"""What kinds of findings there are, and how each is told; worst first."""
MOODS: dict[str, Mood] = {"stop": "bad", "failed": "bad", "note": "warning"}


class Finding(NamedTuple):
    kind: str  # of KINDS
    rule: str  # or failure class
    trial: Trial
    seed: Seed | None
    step: int | None
    reason: str


def section(sweeps: Sequence[Sweep], say: Say) -> Section:
    blocks: list[Block] = []
    for sweep in sweeps:
        compared = behind.find(sweep)
        well = compared.well if compared else set()
        blocks += [*behind.blocks(sweep, compared, say), *_fired(sweep, well, say)]
    return Section("diagnosis", say("What went wrong, and what to try"), blocks)


def _fired(sweep: Sweep, well: set[str], say: Say) -> Iterator[Block]:
    """What ended trials, and what rules noted; of the points that do `well` nothing is advised against a note."""
    everything = [f for t in sweep.trials for f in findings(t)]
    if not everything:
        what = "{sweep}: no point failed, diverged or was pruned, and no rule left a note."
        yield Text(say(what, sweep=sweep.label))
    quiet = [f for f in everything if f.kind == "note" and f.trial.name in well]
    found = [f for f in everything if f not in quiet]
    groups = grouped(found)
    yield from (_told(sweep, g, say) for g in groups)
    yield from _evidence(sweep.label, found, say)
    yield from _advice(sweep, groups, say)
    if quiet:
        rules = "; ".join(f"{g[0].rule}: {_names(g)}" for g in grouped(quiet))
        yield Text(say("{sweep}: notes of points that do well: {rules}", sweep=sweep.label, rules=rules))


def findings(trial: Trial) -> Iterator[Finding]:
    for s in trial.seeds:
        if s.diverged is not None:
            m = REASON.match(s.diverged)
            yield Finding("stop", m[1] if m else "unknown", trial, s, s.diverged_at, m[2] if m else s.diverged)
    for text in trial.notes:
        if m := NOTE.match(text):
            seed = next((s for s in trial.seeds if s.seed == int(m[1])), None)
            yield Finding("note", m[3], trial, seed, int(m[2]), m[4])
        else:
            yield Finding("remark", "", trial, None, None, text)
    end = trial.end or {}
    if end.get("status") in ("failed", "pruned"):
        yield Finding(end["status"], end.get("failure", ""), trial, None, end["step"], end["reason"])
    for f in trial.faults:
        yield Finding("fault", f["failure"], trial, None, f["step"], f["reason"])


def grouped(found: Sequence[Finding]) -> list[list[Finding]]:
    """Those of one kind and rule together; the worst kind first, then the most frequent."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for f in found:
        groups.setdefault((f.kind, f.rule), []).append(f)
    kinds = list(KINDS)
    return sorted(groups.values(), key=lambda g: (kinds.index(g[0].kind), -len(g)))


def _names(group: Sequence[Finding]) -> str:
    return shortened(list(dict.fromkeys(point_text(f.trial) for f in group)), FULL)


def _told(sweep: Sweep, group: Sequence[Finding], say: Say) -> Text:
    first = group[0]
    seeds = {(f.trial.name, f.seed.seed) for f in group if f.seed}
    places = {"n": len({f.trial.name for f in group}), "total": len(sweep.trials)}
    places |= {"seeds": len(seeds), "of": sum(len(t.seeds) for t in sweep.trials)}
    what, when = say(KINDS[first.kind], sweep=sweep.label, rule=first.rule, **places), ""
    if steps := sorted({f.step for f in group if f.step is not None}):
        span = ", at steps {first} to {last}" if len(steps) > 1 else ", at step {first}"
        when = say(span, first=steps[0], last=steps[-1])
    example = {"point": point_text(first.trial)}
    example |= {"seed": say(", seed {seed}", seed=first.seed.seed) if first.seed else ""}
    example |= {"what": what, "when": when, "names": _names(group), "reason": first.reason[:LONGEST]}
    told = say("{what}{when}: {names}. For example {point}{seed}: {reason}", **example)
    return Text(told, MOODS.get(first.kind, "plain"))


def _evidence(sweep: str, found: Sequence[Finding], say: Say) -> Iterator[Table]:
    """Of one seed for every point and rule, the first that it told."""
    once = {(f.trial.name, f.rule): f for f in reversed(found) if f.seed and f.step is not None}
    shown = sorted(once.values(), key=lambda f: list(KINDS).index(f.kind))[:FULL]
    columns = ["point", "seed", "rule", "step", "metric", "at 1/4 of it", "at 1/2", "there", "limit"]
    rows = [row for f in shown for row in _values(f)]
    if rows:
        caption = say(
            "{sweep}: the metrics that show it, on the way to the step at which the rule fired, for {n} of {total}. "
            "Limit: the provable bound of Q, or what the rule derives from it.",
            **{"sweep": sweep, "n": len(shown), "total": len(once)},
        )
        yield Table(f"diagnosis-{sweep}", caption, [say(c) for c in columns], rows)


def _values(f: Finding) -> Iterator[Sequence[Value]]:
    assert f.seed
    assert f.step is not None
    train = f.seed.train
    named = (f.reason.partition(" is ")[0],) if f.rule == "non_finite" else ()
    for metric in dict.fromkeys((*named, *(RULES[f.rule].metrics if f.rule in RULES else ()))):
        if metric in train.metrics:
            then = [_at(train, metric, f.step * share) for share in (0.25, 0.5, 1)]
            yield [point_text(f.trial), f.seed.seed, f.rule, f.step, metric, *then, _limit(f, metric)]


def _at(train: Curves, metric: str, step: float) -> float:
    """In the newest report at a step, or the first one."""
    i = int(np.searchsorted(train.steps, step, side="right")) - 1
    return float(train.metrics[metric][max(0, i)])


def _limit(f: Finding, metric: str) -> float | None:
    """What the rule holds against the metric; None where it is not known."""
    b, stop = f.seed and bound(f.seed), f.trial.config.get("stop", {})
    width = b.high - b.low if b else math.nan
    spread = stop.get("q_spread_share", math.nan) * width
    limits = dict.fromkeys(Q, b.high if b else None) | dict.fromkeys(("td_loss", "critic_loss"), width**2)
    limits |= {"q_std": spread, "q_data_std": spread, "actor_lam": stop.get("lam_low")}
    limits |= {"effective_sample_share": stop.get(f"{f.rule}_share")}
    limits |= {"entropy": f.seed.train.last("target_entropy") if f.seed else None}
    found = limits.get(metric)
    return None if found is None or math.isnan(found) else found


def _advice(sweep: Sweep, groups: Sequence[Sequence[Finding]], say: Say) -> Iterator[Block]:
    rows: list[Sequence[Value]] = []
    for g in groups:
        if g[0].kind in ("stop", "note") and g[0].rule in RULES:
            yield Text(f"{g[0].rule}: {say(RULES[g[0].rule].meaning)}")
            for variant in sorted({f.trial.variant for f in g}):
                first = next(f for f in g if f.trial.variant == variant)
                tries = changes(
                    first.rule, first.trial.config, largest(first.trial, first.seed) if first.seed else None
                )
                rows += [[first.rule, variant, key, as_set(now), as_set(new)] for key, now, new in tries]
        elif g[0].rule in FAILURES and any(f.kind == "failed" or f.trial.end is None for f in g):
            yield Text(f"{g[0].rule}: {say(FAILURES[g[0].rule], **_commands(sweep, g[0].rule, say))}")
    if rows:
        caption = say(
            "{sweep}: what to try, one change at a time, with --set SETTING=VALUE for the sweep script; the values of "
            "now are those of the first point that the rule found.",
            sweep=sweep.label,
        )
        columns = ["rule", "variant", "setting", "now", "try"]
        yield Table(f"advice-{sweep.label}", caption, [say(c) for c in columns], list(dict.fromkeys(map(tuple, rows))))


def _commands(sweep: Sweep, failure: str, say: Say) -> dict[str, str]:
    folder = shlex.quote(str(sweep.folder))
    retry = say("Then: {command}", command=f"offrl-ray retry {folder} --failed --reason {failure}")
    return {"retry": retry, "resume": say("Then: {command}", command=f"offrl-ray resume {folder}"), "folder": folder}
