"""Q against truth: what the critic promises at the start of evaluation episodes, and what these episodes give.

q_start - discounted_return of the same episodes is the overestimation (Fujimoto, van Hoof and Meger, ICML 2018,
figure 1; Kumar et al., NeurIPS 2020), in units of reward_scale x reward. Both are means over a seed's
episodes; a point is the mean over its finished seeds. What makes the two differ without an error is told where it is
so.
"""

import math
from collections.abc import Iterator, Sequence

from results_analysis.blocks import Block, Figure, Section, Table, Text, Value
from results_analysis.grid import point_text
from results_analysis.load import Evaluation, Seed, Sweep, Trial
from results_analysis.measures import estimate
from results_analysis.plots import Mark, against
from results_analysis.q_traps import bound, traps
from results_analysis.stats import Estimate, mean_over_seeds, slope
from results_analysis.words import Say

ROUNDING = 1e-6  # of float32, in widths of the bounds
LINES = 3  # bounds in one picture
COLUMNS = (
    *("point", "q_start", "discounted return", "gap", "seeds", "bound", "seeds above the bound"),
    *("growth of the gap", "verdict", "seeds with NaN or infinite Q"),
)


def section(sweeps: Sequence[Sweep], say: Say) -> Section:
    found: list[Block] = []
    for s in sweeps:
        evaluated = [t for t in s.trials if any(seed.evals for seed in t.seeds)]
        judged = [t for t in evaluated if _has_critic(t)]
        without = [t for t in evaluated if not _has_critic(t)]
        if judged:
            found += [_table(s.label, judged, say), *_figure(s.label, judged, say), *_stopped(s.label, judged, say)]
            found += traps(s.label, judged, say)
        if without:
            what = "{sweep}: {n} points have no critic, so there is nothing to compare ({variants})."
            names = ", ".join(sorted({t.variant for t in without}))
            found.append(Text(say(what, sweep=s.label, n=len(without), variants=names)))
        if not judged and not without:
            found.append(Text(say("{sweep}: nothing has been evaluated yet.", sweep=s.label), "warning"))
    return Section("q-truth", say("Q against truth"), found)


def _has_critic(trial: Trial) -> bool:
    return any("q_start" in e.episodes for seed in trial.seeds for e in seed.evals)


def growth(seed: Seed) -> float | None:
    """How much the gap rose from the first evaluation to the last: Theil and Sen's slope times the steps between.

    None for fewer than two evaluations, nan where one is not finite.
    """
    curve = seed.eval_curve("q_gap")
    return slope(curve) * (curve[-1][0] - curve[0][0]) if len(curve) > 1 else None


def _table(sweep: str, trials: Sequence[Trial], say: Say) -> Table:
    caption = say(
        "{sweep}: Q at the first observation of the evaluation episodes of the last step, mean over the ensemble, and "
        "the discounted return of the same episodes, both in units of reward_scale x reward; mean over finished seeds "
        "with its 95 % interval (Student's t). Gap: the first minus the second; growth: over all evaluations.",
        sweep=sweep,
    )
    return Table(f"q-truth-{sweep}", caption, [say(c) for c in COLUMNS], [_row(t, say) for t in trials])


def _row(trial: Trial, say: Say) -> list[Value]:
    n = say("{n} of {planned}", n=len(trial.finished), planned=len(trial.seeds))
    if trial.status != "completed":
        n += f", {say(trial.status)}"
    cells: list[Value] = [point_text(trial), *(estimate(trial, m) for m in ("q_start", "discounted_return", "q_gap"))]
    if not trial.finished:
        return [*cells, n, _bounds(trial), None, None, None, None]
    known = [(bound(s), _start(s.final)) for s in trial.finished if s.final]
    above = [q > b.high + ROUNDING * (b.high - b.low) for b, q in known if b and q is not None and not math.isnan(q)]
    share = say("{n} of {planned}", n=sum(above), planned=len(above)) if above else None
    rises = [g for s in trial.finished if (g := growth(s)) is not None]
    rise = mean_over_seeds(rises)
    odd = sum(q is not None and not math.isfinite(q) for _, q in known)
    return [*cells, n, _bounds(trial), share, rise, rise and say(_verdict(rise)), odd]


def _start(final: Evaluation | None) -> float | None:
    return final.mean("q_start") if final else None


def _verdict(rise: Estimate) -> str:
    if not math.isfinite(rise.mean):
        return "not finite"
    if rise.interval is None:
        return "one seed: undecided"
    return "growing" if rise.interval[0] > 0 else "shrinking" if rise.interval[1] < 0 else "undecided"


def _bounds(trial: Trial) -> str | None:
    found = [b for s in trial.seeds if (b := bound(s))]
    if not found:
        return None
    return f"{min(b.low for b in found):.3g} .. {max(b.high for b in found):.3g}"


def _figure(sweep: str, trials: Sequence[Trial], say: Say) -> Iterator[Figure]:
    marks, left = [], []
    for t in trials:
        x, y = estimate(t, "discounted_return"), estimate(t, "q_start")
        if x and y and math.isfinite(x.mean) and math.isfinite(y.mean):
            marks.append(Mark(x, y, t.status == "completed", point_text(t)))
        else:
            left.append(point_text(t))
    if not marks:
        return
    highs = sorted({round(b.high, 6) for t in trials for s in t.seeds if (b := bound(s)) and math.isfinite(b.high)})
    lines = {f"no true Q exceeds {h:.3g}": h for h in highs} if len(highs) <= LINES else {}
    caption = say(
        "{sweep}: every mark is a point, with intervals over seeds; above the diagonal Q promises more than the "
        "episodes give. Hollow: not completed. Not drawn, for want of a finite value: {left}",
        **{"sweep": sweep, "left": "; ".join(left) or say("none")},
    )
    yield Figure(f"q-truth-{sweep}-picture", caption, against(lines, marks))


def _stopped(sweep: str, trials: Sequence[Trial], say: Say) -> Iterator[Text]:
    reasons = [s.diverged for t in trials for s in t.seeds if s.diverged is not None]
    if reasons:
        what = (
            "{sweep}: {n} seeds were stopped before their last evaluation and are in no mean above, which flatters "
            "their points; {above} of them by the rule q_bound, because their Q was above the provable bound."
        )
        above = sum(r.startswith("q_bound:") for r in reasons)
        yield Text(say(what, sweep=sweep, n=len(reasons), above=above), "warning")
