"""The statistic of each kind of check (claim.py), on the runs of a pool."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata

from offrl_ray.claim import Check
from offrl_ray.intervals import rate_interval
from results_analysis.arms import VARIANT, Missing, Pool, Run, Values, describe, is_share, one_context
from results_analysis.stats import Estimate, Test, difference, mean_over_seeds, paired_difference, pooled_paired, trend

WEIGHT = "effective_q_weight"
ALPHA = "algo.alpha"  # the setting that moves it


class Contrast(NamedTuple):
    test: Test
    what: str  # the effect, in words that are the same in every language
    arms: Sequence[Sequence[Run]]  # two, or one
    chosen: str = ""  # of how many runs the best was taken


def split(check: Check, pool: Pool) -> list[Check]:
    """The check at every value of `each`. Raises Missing if there are too few of them."""
    if not check.each:
        return [check]
    found = {json.dumps(r.settings[check.each]) for r in pool.select(check.where) if check.each in r.settings}
    if len(found) < check.values:
        told = f"{check.each} = {', '.join(sorted(found))}"
        raise Missing("not asked by these sweeps: only {told}, and it takes {n} values", told=told, n=check.values)
    values = sorted(map(json.loads, found), key=lambda v: (str(type(v)), v))
    return [dataclasses.replace(check, each="", where={**check.where, check.each: v}) for v in values]


def pair(check: Check, pool: Pool) -> Contrast:
    ours, theirs = pool.select(check.where, check.a), pool.select(check.where, check.b)
    return _difference(check, pool, ours, theirs, {*check.a, *check.b}, (describe(check.a), describe(check.b)))


def ends(check: Check, pool: Pool) -> Contrast:
    runs = _placed(check, pool)
    levels = _enough(check, _levels(check, runs), least=2)
    arms = [[r for r in runs if r.settings[check.over] == v] for v in (levels[-1], levels[0])]
    told = f"{check.over} = {levels[-1]}", str(levels[0])
    return _difference(check, pool, arms[0], arms[1], {check.over}, told)


def rising(check: Check, pool: Pool) -> Contrast:
    """Ranks are taken within each group of runs that are alike but for the level, then averaged over the groups."""
    groups = pool.alike(_placed(check, pool), {check.over})
    levels = max((_levels(check, g) for g in groups), key=len, default=[])
    _enough(check, levels, least=3)
    rows = [[next((r for r in g if r.settings[check.over] == v), None) for v in levels] for g in groups]
    whole = [[r for r in row if r] for row in rows if all(row)]
    tables = [_by_seed([_known(pool, r, check.measure) for r in row]) for row in whole]
    tables = [t for t in tables if t]  # without groups that have no seed at all levels yet
    seeds = sorted(set.intersection(*map(set, tables))) if tables else []
    ranks = {s: np.mean([_ranks(t[s]) for t in tables], axis=0).tolist() for s in seeds}
    test = trend(ranks, list(range(len(levels))))
    told = f"Spearman's rho, {check.measure}, {check.over} = {', '.join(map(str, levels))}"
    return Contrast(test, told, [[r for row in whole for r in row]])


def matched(check: Check, pool: Pool) -> Contrast:
    """Per seed, the measure at the highest level less that at the lowest, each interpolated linearly over the log of
    the effective weight of the Q term and averaged over the weights that both levels reach."""
    runs = [r for r in _placed(check, pool) if ALPHA in r.settings]
    levels = _enough(check, _levels(check, runs), least=2)
    found: list[tuple[Values, Values]] = []
    for group in pool.alike(runs, {check.over, ALPHA}):
        arms = [[r for r in group if r.settings[check.over] == v] for v in (levels[-1], levels[0])]
        curves = [_curves(pool, arm, check.measure) for arm in arms]
        both = {s: _overlap(curves[0][s], curves[1][s]) for s in curves[0].keys() & curves[1].keys()}
        known = {s: means for s, means in both.items() if means}
        if known:
            found.append(({s: m[0] for s, m in known.items()}, {s: m[1] for s, m in known.items()}))
    told = f"{check.measure}, ({check.over} = {levels[-1]}) - ({levels[0]}) | {WEIGHT}"
    if not found:
        raise Missing("at no effective weight of the Q term are there runs of both levels of {over}", over=check.over)
    test = pooled_paired(found, _episodes(check, runs))
    return Contrast(test, told, [runs])


def level(check: Check, pool: Pool) -> Contrast:
    runs = one_context(pool.select(check.where), lambda r: r.context)
    values = _mean([_known(pool, r, check.measure) for r in runs])
    told = ", ".join(filter(None, (check.measure, describe(check.where))))
    if (episodes := _episodes(check, runs)) is not None:
        total = episodes * len(runs) * len(values)
        rates = list(values.values())
        interval = rate_interval(rates, fmean(rates) * total, total) if rates else None
        test = Test(fmean(rates) if rates else math.nan, interval, None, len(rates), "Student's t, Wilson's at least")
        return Contrast(test, told, [runs])
    p = paired_difference(values, dict.fromkeys(values, check.level)).p
    found = mean_over_seeds(list(values.values())) or Estimate(math.nan, None, 0)
    return Contrast(Test(found.mean, found.interval, p, found.n, "Student's t over seeds"), told, [runs])


KINDS: dict[str, Callable[[Check, Pool], Contrast]] = {
    "pair": pair,
    "ends": ends,
    "trend": rising,
    "matched": matched,
    "level": level,
}


def _difference(
    check: Check, pool: Pool, ours: Sequence[Run], theirs: Sequence[Run], named: set[str], told: tuple[str, str]
) -> Contrast:
    partners = pool.partners(ours, theirs, named)
    arms = [list({id(p[side].trial): p[side] for p in partners}.values()) for side in (0, 1)]
    chosen = ""
    if VARIANT in named:
        if check.best:
            chosen = " / ".join(str(len(arm)) for arm in arms)
            arms = [[max(arm, key=lambda r: _height(pool, r, check.measure))] for arm in arms]
        pairs = [tuple(_mean([_known(pool, r, check.measure) for r in arm]) for arm in arms)]
    else:
        pairs = _averaged(partners, arms, pool, check.measure)
    episodes, known = _episodes(check, [*arms[0], *arms[1]]), [(x, y) for x, y in pairs if x and y]
    test = pooled_paired(known, episodes)
    if len(known) == 1 and not known[0][0].keys() & known[0][1].keys():
        test = difference(list(known[0][0].values()), list(known[0][1].values()), episodes)
    if test.interval is None and test.n > 1 and test.effect == 0:  # equal in every seed: the same runs
        test = test._replace(interval=(0.0, 0.0))
    return Contrast(test, f"{check.measure}, ({told[0]}) - ({told[1]})", arms, chosen)


def _averaged(
    partners: Sequence[tuple[Run, Run]], arms: Sequence[Sequence[Run]], pool: Pool, name: str
) -> list[tuple[Values, ...]]:
    """A run that has several partners stands against their mean: counted once, not once for each."""
    few = 0 if len(arms[0]) < len(arms[1]) else 1
    found: list[tuple[Values, ...]] = []
    for run in arms[few]:
        others = _mean([_known(pool, p[1 - few], name) for p in partners if p[few] is run])
        found.append((_known(pool, run, name), others) if few == 0 else (others, _known(pool, run, name)))
    return found


def _height(pool: Pool, run: Run, name: str) -> float:
    values = list(pool.values(run, name).values())
    return fmean(values) if values else -math.inf


def _known(pool: Pool, run: Run, name: str) -> Values:
    """Its values. Raises Missing if its seeds have finished without any."""
    values = pool.values(run, name)
    if not values and run.trial.finished:
        raise Missing("{variant} does not record {measure}", variant=run.trial.variant, measure=name)
    return values


def _placed(check: Check, pool: Pool) -> list[Run]:
    """Runs that stand at one level of `over`."""
    runs = [r for r in pool.select(check.where) if check.over not in r.inert and check.over in r.settings]
    return [r for r in runs if not check.order or r.settings[check.over] in check.order]


def _levels(check: Check, runs: Sequence[Run]) -> list[Any]:
    found = {json.dumps(r.settings[check.over]): r.settings[check.over] for r in runs}
    try:
        return sorted(found.values(), key=list(check.order).index if check.order else lambda v: v)
    except TypeError:
        raise Missing("the levels of {over} have no order of their own: give it as `order`", over=check.over) from None


def _enough(check: Check, levels: list[Any], least: int) -> list[Any]:
    if len(levels) < least:
        told = f"{check.over} = {', '.join(map(str, levels))}"
        raise Missing("not asked by these sweeps: only {told}, and it takes {n} values", told=told, n=least)
    return levels


def _by_seed(columns: Sequence[Values]) -> dict[int, list[float]]:
    seeds = sorted(set.intersection(*(set(c) for c in columns)))
    return {s: [c[s] for c in columns] for s in seeds}


def _mean(columns: Sequence[Values]) -> Values:
    """Over the runs that have finished seeds; of the seeds that all of these have."""
    known = [c for c in columns if c]
    return {s: fmean(v) for s, v in _by_seed(known).items()} if known else {}


def _ranks(values: Sequence[float]) -> Any:
    return rankdata(values) if not any(map(math.isnan, values)) else np.full(len(values), math.nan)


Curve = list[tuple[float, float]]  # log weight, value


def _curves(pool: Pool, runs: Sequence[Run], name: str) -> dict[int, Curve]:
    found: dict[int, Curve] = {}
    for r in runs:
        weights, values = pool.values(r, WEIGHT), _known(pool, r, name)
        for s in weights.keys() & values.keys():
            if weights[s] > 0:
                found.setdefault(s, []).append((math.log(weights[s]), values[s]))
    return {s: sorted(curve) for s, curve in found.items()}


def _overlap(a: Curve, b: Curve) -> tuple[float, float] | None:
    """Means of two curves over the weights that both reach; None if there are none."""
    low, high = max(a[0][0], b[0][0]), min(a[-1][0], b[-1][0])
    if low >= high:
        return None
    knots = np.array(sorted({low, high, *(w for w, _ in a + b if low < w < high)}))
    lines = [np.interp(knots, [w for w, _ in curve], [y for _, y in curve]) for curve in (a, b)]
    x, y = (float(np.trapezoid(line, knots)) / (high - low) for line in lines)
    return x, y


def _episodes(check: Check, runs: Sequence[Run]) -> int | None:
    """Of a seed's evaluation, if the measure is a success rate; others have none."""
    counts = [len(s.final.episodes["success_once"]) for r in runs for s in r.trial.seeds if s.final]
    return min(counts) if counts and is_share(check.measure) else None
