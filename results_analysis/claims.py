"""The report's section on claims: the seeds' findings and those that the sweeps declare, each with its verdict."""

import dataclasses
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from offrl_ray.claim import Check, Claim, own_claims
from offrl_ray.errors import UsageError, did_you_mean
from results_analysis.arms import VARIANT, Pool
from results_analysis.blocks import Block, Fold, Kind, Section, Table, Text, Word
from results_analysis.findings import FINDINGS
from results_analysis.load import Sweep
from results_analysis.stats import Estimate, mean_over_seeds
from results_analysis.verdicts import SEEDS, Verdict, judge
from results_analysis.words import Say

COLOURS: dict[str, Kind] = {"supported": "good", "refuted": "bad", "undecided": "plain"}
COLUMNS = ("id", "claim", "verdict", "effect", "n", "p", "p (Holm)", "test")


class Judged(NamedTuple):
    """The claims about some sweeps."""

    pool: Pool
    shown: Sequence[Verdict]  # the sweeps' own, then the findings about their variants; those that are not asked last
    rest: Sequence[str]  # ids of the findings about other variants
    problems: Sequence[str]  # of declared claims

    def count(self, word: str) -> int:
        return sum(v.verdict == word for v in self.shown)


def judged(sweeps: Sequence[Sweep], say: Say) -> Judged:
    """On the runs of all sweeps together."""
    declared, problems = own(sweeps)
    pool = Pool(sweeps)
    found = judge([*declared, *FINDINGS], pool, say)
    variants = {t.variant for s in sweeps for t in s.trials}
    shown = [v for v in found if v.claim.own or v.asked or variants & _variants(v.claim)]
    rest = [v.claim.id for v in found if v not in shown]
    return Judged(pool, sorted(shown, key=lambda v: not v.heard), rest, problems)


def section(sweeps: Sequence[Sweep], say: Say, found: Judged | None = None) -> Section:
    """`found`: what `judged` returns, if it is there already."""
    found = found or judged(sweeps, say)
    blocks: list[Block] = [Text(p, "bad") for p in found.problems]
    blocks += [_intro(found, say), _table(found.shown, say), *_inflation(found.pool, say)]
    blocks += [_fold(v, say) for v in found.shown if v.heard]
    if silent := [v for v in found.shown if not v.heard]:
        title = say("{n} claims that these sweeps do not ask, and the runs that would", n=len(silent))
        blocks.append(Fold(title, [b for v in silent for b in _silent(v, say)]))
    if found.rest:
        told = "About variants that are not in these sweeps, and not judged: {ids}."
        blocks.append(Text(say(told, ids=", ".join(found.rest))))
    return Section("claims", say("Claims"), blocks)


def own(sweeps: Sequence[Sweep]) -> tuple[list[Claim], list[str]]:
    """The claims that the sweeps declare, and what is wrong with others: no finished sweep's report may fail by it."""
    found: list[Claim] = []
    problems: list[str] = []
    for sweep in sweeps:
        place = f"{sweep.folder}: claims"
        try:
            claims = own_claims(sweep.plan.get("claims") or [], place)
        except UsageError as e:
            problems += e.problems
            continue
        settings = {k for run in Pool([sweep] if claims else []).runs for k in run.settings}
        unknown = {c.id: [k for check in c.checks for k in _settings(check) if k not in settings] for c in claims}
        problems += [
            f"{place}: {name}: no run has a setting {k!r}; {did_you_mean(k, settings)}"
            for name, keys in unknown.items()
            for k in dict.fromkeys(keys)
        ]
        here = [_of_variant(c, str(sweep.plan.get("variant"))) for c in claims if not unknown[c.id]]
        found += [c for c in here if c not in found]
    return found, problems


def _of_variant(claim: Claim, variant: str) -> Claim:
    """About the sweep's own variant, unless it says which."""
    checks = [
        c if VARIANT in {**c.where, **c.a} else dataclasses.replace(c, where={VARIANT: variant, **c.where})
        for c in claim.checks
    ]
    return claim._replace(checks=checks)


def _settings(check: Check) -> list[str]:
    return [*check.where, *check.a, *check.b, *filter(None, (check.over, check.each))]


def _variants(claim: Claim) -> set[str]:
    wanted = [s[VARIANT] for c in claim.checks for s in (c.where, c.a) if VARIANT in s]
    return {name for w in wanted for name in (w if isinstance(w, list) else [w])}


def _intro(found: Judged, say: Say) -> Text:
    told = (
        "{n} claims: {supported} supported, {refuted} refuted, {undecided} undecided, {tested} of them by a test. "
        "Supported: the whole 95 % interval over seeds lies beyond the smallest effect that counts, in the claimed "
        "direction. Refuted: all of it lies on the other side. Undecided: neither, or fewer than {least} seeds. A "
        "claim of several checks is supported if all of them are, and refuted if one is. Success and return are means "
        "over the evaluations in the last quarter of the training; a run that a rule stopped counts as no success."
    )
    counts = {w: found.count(w) for w in COLOURS}
    tested = sum(v.p is not None for v in found.shown)
    return Text(say(told, n=len(found.shown), **counts, tested=tested, least=SEEDS))


def _table(shown: Sequence[Verdict], say: Say) -> Table:
    rows = [
        (
            v.claim.id,
            _said(v.claim, v.claim.text, say),
            Word(say(v.verdict), COLOURS[v.verdict]),
            None if v.effect is None else Estimate(v.effect, v.interval, v.n),
            v.n,
            v.p,
            v.holm,
            v.method,
        )
        for v in shown
    ]
    caption = say(
        "Claims, with the effect of the check that decided or failed to; p, of no effect, is the largest of its checks."
    )
    return Table("claims", caption, [say(c) for c in COLUMNS], rows)


def _fold(v: Verdict, say: Say) -> Fold:
    """Each check, control and caveat on a line of its own, then what would decide it."""
    places = {"id": v.claim.id, "verdict": say(v.verdict), "claim": _said(v.claim, v.claim.text, say)}
    title = say("{id} {verdict}: {claim}", **places)
    blocks: list[Block] = [Text(sentence) for sentence in v.details]
    for control in v.controls:
        blocks += [Text(control.text, "warning"), *_code(control.run)]
    blocks += [Text(c, "warning") for c in v.caveats]
    if v.decide or v.run:
        blocks += [Text(say("What would decide it: {run}", run=v.decide)), *_code(v.run)]
    return Fold(title, blocks, COLOURS[v.verdict])


def _silent(v: Verdict, say: Say) -> list[Text]:
    why = v.details if v.claim.own else ()
    told = f"{v.claim.id}: {' '.join(filter(None, [_said(v.claim, v.claim.text, say), *why, v.decide]))}"
    return [Text(told), *_code(v.run)]


def _code(run: Sequence[str]) -> list[Text]:
    return [Text("\n".join(run), "code")] if run else []


def _said(claim: Claim, text: str, say: Say) -> str:
    return text if claim.own else say(text)


def _inflation(pool: Pool, say: Say) -> list[Block]:
    columns = [pool.values(r, "success_once_best_gain") for r in pool.runs]
    seeds = sorted({s for c in columns for s in c})
    gain = mean_over_seeds([fmean(c[s] for c in columns if s in c) for s in seeds])
    if gain is None or not gain.mean:
        return []
    told = (
        "Telling the best of all evaluations of a run instead of the late ones' mean would add {gain} to success_once, "
        "on average over {n} seeds' means, without any policy being better."
    )
    return [Text(say(told, gain=f"{gain.mean:.3f}", n=gain.n))]
