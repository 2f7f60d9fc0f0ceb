"""Claims judged on the runs of sweeps: supported, refuted, or undecided with the run that would decide.

The rule, for every claim alike. The effect is `Check`'s statistic; seeds, not runs, are its sample, and its interval is
the 95 % one of stats.py. A check is supported if the whole interval lies beyond the smallest effect that counts, in the
claimed direction; refuted if the whole interval lies on the other side of it, which is no effect, too small a one, or
the opposite one; undecided otherwise, and always with fewer than three seeds. A claim is supported if all its checks
are, and refuted if one is. Verdicts are not corrected for the number of claims: beside each p (two-sided, of no effect
at all; of several checks the largest) stands Holm's (Scandinavian Journal of Statistics 6:65, 1979), and a supported
claim whose Holm p exceeds 5 % says so. A seed that a rule stopped counts as no success, as in `offrl-ray status`;
claims on train metrics use its reports up to the stop; of other measures of episodes it has none.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from offrl_ray.claim import Ask, Check, Claim, Control
from offrl_ray.intervals import LEVEL, Interval, t_quantile
from results_analysis import contrasts
from results_analysis.arms import Missing, Pool, Run, differences
from results_analysis.contrasts import Contrast
from results_analysis.stats import Test, minimal_detectable
from results_analysis.words import Say

Word = Literal["supported", "refuted", "undecided"]
SEEDS = 3  # at least
PLENTY = 40  # seeds of a run that one would still start


class Beside(NamedTuple):
    """What a control says."""

    text: str
    run: Sequence[str] = ()  # commands that would tell, where these sweeps do not


class Verdict(NamedTuple):
    claim: Claim
    verdict: Word
    effect: float | None  # of the check that decided, or of the one that did not
    interval: Interval | None
    n: int  # seeds
    p: float | None
    holm: float | None
    method: str
    details: Sequence[str]  # a sentence for each check, with the numbers
    decide: str  # what would, in words; empty if it is decided
    run: Sequence[str]  # the commands of it
    controls: Sequence[Beside]
    caveats: Sequence[str]
    asked: bool  # the sweeps hold all that it needs
    heard: bool  # the sweeps hold some of it


class Outcome(NamedTuple):
    check: Check
    verdict: Word
    contrast: Contrast | None  # None: there was nothing to test
    sentence: str
    seeds: int | None = None  # that would decide, were effect and spread as observed


def judge(claims: Iterable[Claim], pool: Pool, say: Say) -> list[Verdict]:
    """Every claim's verdict on the runs of all sweeps of the pool together, confirmations left out."""
    found = [_verdict(c, pool, say) for c in claims]
    corrected = holm([v.p for v in found])
    tested = sum(p is not None for p in corrected)
    return [_corrected(v, p, tested, say) for v, p in zip(found, corrected, strict=True)]


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment of those that exist."""
    order = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted, largest = list(ps), 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[i] = largest
    return adjusted


def rule(check: Check, interval: Interval) -> Word:
    """The verdict on one check, from the 95 % interval of its effect."""
    low, high = interval[0] - check.level, interval[1] - check.level
    if check.direction == "down":
        low, high = -high, -low
    if check.direction in ("up", "down"):
        return "supported" if low > check.least else "refuted" if high <= check.least else "undecided"
    inside, outside = -check.least < low and high < check.least, low >= check.least or high <= -check.least
    if check.direction == "differs":
        inside, outside = outside, inside
    return "supported" if inside else "refuted" if outside else "undecided"


def _verdict(claim: Claim, pool: Pool, say: Say) -> Verdict:
    outcomes = [o for check in claim.checks for o in _each(check, pool, say)]
    words = [o.verdict for o in outcomes]
    word: Word = "refuted" if "refuted" in words else "undecided" if "undecided" in words else "supported"
    shown = next(o for o in outcomes if o.verdict == word)
    asked = all(o.contrast is not None for o in outcomes)
    test = shown.contrast.test if shown.contrast else Test(math.nan, None, None, 0, "")
    ps = [o.contrast.test.p for o in outcomes if o.contrast and o.check.direction != "same"]
    p = max((p for p in ps if p is not None), default=None) if asked else None
    decide, run = ("", []) if word != "undecided" else _decision(claim, outcomes, pool.presets, say)
    heard = any(o.contrast for o in outcomes)
    return Verdict(
        claim=claim,
        verdict=word,
        effect=None if math.isnan(test.effect) else test.effect,
        interval=test.interval,
        n=test.n,
        p=p,
        holm=None,
        method=test.method,
        details=[o.sentence for o in outcomes],
        asked=asked,
        heard=heard,
        decide=decide,
        run=run,
        controls=[_control(c, claim, word, pool, say) for c in claim.controls] if heard else [],
        caveats=_caveats(claim, outcomes, say) if heard else [],
    )


def _each(check: Check, pool: Pool, say: Say) -> list[Outcome]:
    try:
        checks = contrasts.split(check, pool)
    except Missing as e:
        return [_unasked(check, e, say)]
    return [outcome(c, pool, say) for c in checks]


def outcome(check: Check, pool: Pool, say: Say) -> Outcome:
    """One check on the runs of a pool."""
    try:
        found = contrasts.KINDS[check.kind](check, pool)
    except Missing as e:
        return _unasked(check, e, say)
    test, word = found.test, _word(check, found.test)
    numbers = f"{_interval(test)}, n = {test.n}" + (f", p = {test.p:.2g}" if test.p is not None else "")
    if word != "undecided":
        return Outcome(check, word, found, _sentence(check, found.what, numbers, say))
    if test.n < SEEDS:
        why, seeds = say("{n} seeds, and it takes {least} at least", n=test.n, least=SEEDS), None
    elif test.interval is None:
        why, seeds = say("values that are not finite, or seeds that agree exactly, give no interval"), None
    elif seeds := _seeds_needed(check, test):
        why = say("about {n} seeds would decide it, were effect and spread as they are here", n=seeds)
    else:
        why = say("not even {n} seeds would decide it, were effect and spread as they are here", n=PLENTY)
    return Outcome(check, "undecided", found, _sentence(check, found.what, f"{numbers}; {why}", say), seeds)


def _word(check: Check, test: Test) -> Word:
    return "undecided" if test.n < SEEDS or test.interval is None else rule(check, test.interval)


def _seeds_needed(check: Check, test: Test) -> int | None:
    """From the interval's reach towards what it would have to exclude, which the episodes may have set."""
    assert test.interval is not None
    signs = {"up": (1,), "down": (-1,)}.get(check.direction, (1, -1))
    nearest = min((check.level + sign * check.least for sign in signs), key=lambda b: abs(test.effect - b))
    reach = test.interval[1] - test.effect if nearest > test.effect else test.effect - test.interval[0]
    found = minimal_detectable(test.effect, reach * math.sqrt(test.n) / t_quantile(test.n - 1), nearest)
    return max(found, test.n + 1) if found is not None and found <= PLENTY else None


def _unasked(check: Check, why: Missing, say: Say) -> Outcome:
    return Outcome(check, "undecided", None, _sentence(check, check.measure, say(why.text, **why.places), say))


def _sentence(check: Check, what: str, told: str, say: Say) -> str:
    return say("{what}: {told} (holds if {need}).", what=what, told=told, need=need(check))


def need(check: Check) -> str:
    """What a check asks of its effect: > 0.05."""
    low, high = f"{check.level - check.least:.3g}", f"{check.level + check.least:.3g}"
    told = {"up": f"> {high}", "down": f"< {low}", "same": f"{low} .. {high}", "differs": f"< {low}, > {high}"}
    return told[check.direction]


def _interval(test: Test) -> str:
    return f"{test.effect:.3g}" + (f" [{test.interval[0]:.3g}, {test.interval[1]:.3g}]" if test.interval else "")


def _decision(
    claim: Claim, outcomes: Sequence[Outcome], presets: Mapping[str, str], say: Say
) -> tuple[str, Sequence[str]]:
    needed = [o.seeds for o in outcomes if o.verdict == "undecided" and o.seeds]
    asks = [_with_levels(ask, outcomes) for ask in claim.ask]
    return claim.decide if claim.own else say(claim.decide), commands(asks, claim.id, presets, max([5, *needed]))


def _with_levels(ask: Ask, outcomes: Sequence[Outcome]) -> Ask:
    """What these runs have left open is open at their levels: a run that is to decide it has these, too."""
    settings = dict(ask.settings)
    for o in outcomes:
        key = o.check.over
        asked = settings.get(key, "").split(",")
        if o.contrast and len(asked) > 1:
            seen = [r.settings.get(key) for arm in o.contrast.arms for r in arm if key not in r.inert]
            levels = {*map(float, asked), *(float(v) for v in seen if isinstance(v, int | float))}
            settings[key] = ",".join(f"{v:g}" for v in sorted(levels))
    return ask._replace(settings=settings)


def commands(asks: Sequence[Ask], name: str, presets: Mapping[str, str], seeds: int = 5) -> list[str]:
    """What to type; `presets`: of the variants' sweeps that are there, whose scale the answer should have."""
    scripts = [a.script for a in asks]
    found = []
    for i, ask in enumerate(asks):
        number = f"-{scripts[: i + 1].count(ask.script)}" if scripts.count(ask.script) > 1 else ""
        preset = "full" if presets.get(ask.script) == "full" else "quick"
        settings = {"train.seeds": ",".join(map(str, range(seeds))), **(ask.quick if preset == "quick" else {})}
        told = " ".join(f"--set {k}={v}" for k, v in {**settings, **ask.settings}.items())
        script, folder = f"tune_configs/tune_{ask.script}.py", f"{name.lower()}-{ask.script}{number}"
        found.append(f"python {script} --preset {preset} --name {folder} {told}")
    return found


def _caveats(claim: Claim, outcomes: Sequence[Outcome], say: Say) -> list[str]:
    found = [c for o in outcomes if o.contrast for c in _of_runs(o.contrast, say)]
    return list(dict.fromkeys(found + [c if claim.own else say(c) for c in claim.caveats]))


def _control(control: Control, claim: Claim, word: Word, pool: Pool, say: Say) -> Beside:
    """Where the claim is not supported there is no effect that could have vanished, and none is said to have."""
    found = outcome(control.check, pool, say)
    if found.contrast is None:
        number = claim.controls.index(control) + 1
        run = commands(control.ask, f"{claim.id}-control{number}", pool.presets)
        return Beside(f"{say(control.about)}: {say('not controlled for. {why}', why=found.sentence)}", run)
    told = f"{say(control.about)}: {found.sentence}"
    if found.verdict == "undecided":
        return Beside(f"{told} {say('These runs do not tell.')}")
    if found.verdict == "supported":
        return Beside(f"{told} {say(control.holds)}")
    if word == "supported":
        return Beside(f"{told} {say(control.fails)}")
    return Beside(f"{told} {say('The claim itself is not supported: there is no effect that this could explain.')}")


def _of_runs(contrast: Contrast, say: Say) -> list[str]:
    """What to know of the runs behind a contrast."""
    told: list[str] = []
    every: Mapping[int, Run] = {id(r.trial): r for arm in contrast.arms for r in arm}
    seeds = [s for r in every.values() for s in r.trial.seeds]
    if stopped := sum(s.diverged is not None for s in seeds):
        how = "{k} of {n} seeds' runs were stopped by a rule: no success, or the reports up to the stop."
        told.append(say(how, k=stopped, n=len(seeds)))
    if open_ := sum(s.diverged is None and not s.finished for s in seeds):
        told.append(say("{k} of {n} seeds' runs have not finished: left out.", k=open_, n=len(seeds)))
    if len({r.code for r in every.values()}) > 1:
        told.append(say("The runs were made by different versions of the code."))
    if len(contrast.arms) == 2 and (keys := differences(*contrast.arms)):
        told.append(say("The arms also differ in {keys}.", keys=", ".join(keys)))
    if contrast.chosen:
        told.append(say("Each arm is its best run of {k}, chosen after the fact.", k=contrast.chosen))
    return told


def _corrected(v: Verdict, p: float | None, tested: int, say: Say) -> Verdict:
    if v.verdict != "supported" or p is None or p <= 1 - LEVEL:
        return v._replace(holm=p)
    told = say("Not significant after Holm's correction for {k} claims: p = {p}.", k=tested, p=f"{p:.2g}")
    return v._replace(holm=p, caveats=[told, *v.caveats])
