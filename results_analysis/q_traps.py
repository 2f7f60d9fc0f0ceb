"""What makes Q and the return of the same episodes differ without any error of the critic, told where it is so."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from results_analysis.blocks import Text
from results_analysis.load import Seed, Trial
from results_analysis.words import Say


class Bound(NamedTuple):
    """Of any true Q, as the variant logged it in a seed's last report."""

    low: float
    high: float


def bound(seed: Seed) -> Bound | None:
    low, high = seed.train.last("q_bound_low"), seed.train.last("q_bound_high")
    return None if low is None or high is None else Bound(low, high)


def largest(trial: Trial, seed: Seed) -> float | None:
    """The largest absolute value of a true Q. None where it is not known, and of a soft Q, which has no least value."""
    b = bound(seed)
    if not b or trial.config["algo"].get("backup_entropy") or not math.isfinite(b.high):
        return None
    return max(abs(b.low), abs(b.high))


def _algo(key: str) -> Callable[[Trial], Any]:
    return lambda t: t.config["algo"].get(key)


def _cut(trial: Trial) -> float:
    """Share of the last episodes that the time limit ended, with reward perhaps still to come."""
    shares = []
    for f in (s.final for s in trial.finished if s.final):
        late = f.episodes["length"] >= f.env.get("max_steps", math.inf)
        shares.append(
            np.mean(late if f.env.get("reward_mode") == "native" else late & (f.episodes["success_once"] == 0))
        )
    return float(np.mean(shares)) if shares else 0.0


class Trap(NamedTuple):
    """Why the gap is not zero, or not positive, though nothing is wrong."""

    holds: Callable[[Trial], Any]
    text: str


TRAPS = (
    Trap(
        _algo("backup_entropy"),
        "algo.backup_entropy: Q is a soft Q, with the policy's discounted entropy in it, which the return has not; a "
        "gap, of either sign, is no error of the critic. The bound has the most entropy in it.",
    ),
    Trap(
        lambda t: _algo("cql_alpha")(t) or _algo("random_action_penalty")(t),
        "A conservative term (algo.cql_alpha or algo.random_action_penalty) pushes Q down on purpose: a negative gap "
        "is what it is for, and with algo.cql_alpha the data's own Q may be lifted.",
    ),
    Trap(
        lambda t: _algo("bounded_critic")(t) or t.variant == "dqc",
        "The critic is bounded by a sigmoid (algo.bounded_critic, dqc) and cannot exceed the bound: that it does not "
        "says nothing. The gap still does.",
    ),
    Trap(
        lambda t: t.variant == "dqc" or (t.variant == "sac" and _algo("actor_loss")(t) == "iql"),
        "Q is of an upper quantile or expectile of the data's actions (dqc; sac with algo.actor_loss=iql), not of the "
        "policy that is evaluated: a gap may be the policy's shortfall.",
    ),
    Trap(
        lambda t: t.variant in ("sac", "cql", "rlpd"),
        "The critic values actions drawn from the policy, but the evaluation executes the policy's mode (sac, cql, "
        "rlpd).",
    ),
    Trap(
        lambda t: t.config.get("data", {}).get("act_horizon", 1) > 1,
        "Q is of the whole chunk that is executed (data.act_horizon > 1), discounted step by step within it: the same "
        "actions as the return's.",
    ),
    Trap(
        _cut,
        "Episodes are cut at env.max_steps, but Q counts what would come after (time limits bootstrap): for an episode "
        "that was cut, gamma^max_steps times the bound may be added to its return.",
    ),
)


def traps(sweep: str, trials: Sequence[Trial], say: Say) -> Iterator[Text]:
    for trap in TRAPS:
        if found := [t for t in trials if trap.holds(t)]:
            where = say("{sweep}, {n} of {total} points:", sweep=sweep, n=len(found), total=len(trials))
            more = f" {_rest(found, say)}" if trap.holds is _cut else ""
            yield Text(f"{where} {say(trap.text)}{more}")
    scales = {t.config["algo"].get("reward_scale", 1.0) for t in trials}
    if len(scales) > 1:
        what = "{sweep}: algo.reward_scale differs between points, and with it the unit of their gaps."
        yield Text(say(what, sweep=sweep), "warning")


def _rest(trials: Sequence[Trial], say: Say) -> str:
    """How much that may be at most."""
    worst = [
        t.config["algo"]["gamma"] ** f.env["max_steps"] * b.high
        for t in trials
        for s in t.finished
        if (b := bound(s)) and (f := s.final) and "gamma" in t.config["algo"] and "max_steps" in f.env
    ]
    share = max(map(_cut, trials))
    if not worst:
        return say("Up to {share:.0%} of a point's episodes were cut.", share=share)
    return say(
        "Up to {share:.0%} of a point's episodes were cut; here that is at most {rest:.2g} each.",
        share=share,
        rest=max(worst),
    )
