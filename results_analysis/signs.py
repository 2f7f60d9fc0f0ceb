"""What may explain that a point is behind the best one: rules over the measures of both."""

from collections.abc import Callable
from typing import NamedTuple

from results_analysis.advice import TIGHTER, Try
from results_analysis.confirmation import in_words
from results_analysis.load import Trial
from results_analysis.measures import estimate, values
from results_analysis.stats import paired_difference

TIMES = 2  # the best point's imitation loss
LESS_Q = (
    Try("algo.alpha", 1 / 3, when=("algo.name", "cpql")),
    Try("algo.beta", 1 / 3, when=("algo.name", "awcp")),
    Try("algo.actor_loss", value="td3bc", when=("algo.actor_loss", "sac")),
    Try("algo.bc_weight", 3, when=("algo.actor_loss", "td3bc")),
    Try("algo.awr_temperature", 3, when=("algo.actor_loss", "awr")),
    Try("algo.bounded_critic", value=True),
    Try("algo.cql_alpha", value=1.0, when=("algo.cql_alpha", 0)),
    Try("algo.cql_alpha", 3),
)
COOL = (Try("algo.init_temperature", value=1e-4), Try("algo.lr_temperature", value=0.0))


class Sign(NamedTuple):
    shows: Callable[[Trial, Trial], dict[str, object] | None]  # the point, the best -> its numbers, where it shows
    numbers: str
    meaning: str
    tries: tuple[Try, ...]


def signs(trial: Trial, best: Trial) -> dict[str, dict[str, object]]:
    """Name in SIGNS -> its numbers, of those that show."""
    return {name: numbers for name, sign in SIGNS.items() if (numbers := sign.shows(trial, best)) is not None}


def _promised(trial: Trial, best: Trial) -> dict[str, object] | None:
    """Not of a soft Q or an upper expectile's, whose gap is no error, nor in units other than the best point's."""
    algo, own, other = trial.config["algo"], estimate(trial, "q_gap"), estimate(best, "q_gap")
    if algo.get("backup_entropy") or algo.get("actor_loss") == "iql" or algo["name"] == "dqc":
        return None
    if not own or not own.interval or own.interval[0] <= 0:
        return None
    if other:
        more = paired_difference(values(trial, "q_gap"), values(best, "q_gap")).interval
        if algo.get("reward_scale") != best.config["algo"].get("reward_scale") or more is None or more[0] <= 0:
            return None
    q, given = _mean(trial, "q_start"), _mean(trial, "discounted_return")
    return {"q": q, "given": given, "gap": in_words(own), "best": in_words(other)}


def _exceeding(trial: Trial, best: Trial) -> dict[str, object] | None:
    excess = estimate(trial, "q_excess")
    above = excess and excess.interval and excess.interval[0] > 0
    return {"excess": in_words(excess)} if above else None


def _drowned(trial: Trial, best: Trial) -> dict[str, object] | None:
    """A loss that a variant does not have is logged as 0."""
    for loss in ("bc_loss", "flow_loss"):
        own, other = _mean(trial, loss), _mean(best, loss)
        if trial.variant == best.variant and own and other and other > 0 and own > TIMES * other:
            return {"loss": loss, "own": own, "best": other}
    return None


def _spread(trial: Trial, best: Trial) -> dict[str, object] | None:
    """Above the target entropy, and above the best point's by more than its size: by default a nat a dimension."""
    own, other, target = _mean(trial, "entropy"), _mean(best, "entropy"), _mean(trial, "target_entropy")
    if own is None or other is None or target is None or own <= max(target, other + abs(target)):
        return None
    return {"own": own, "best": other}


def _mean(trial: Trial, name: str) -> float | None:
    found = estimate(trial, name)
    return found.mean if found else None


SIGNS = {
    "q_gap": Sign(
        _promised,
        "Q {q:.2g}, return {given:.2g}: a gap of {gap}, the best point's {best}",
        "Q promises what the episodes do not give: the policy lives off the critic's errors.",
        LESS_Q,
    ),
    "q_excess": Sign(
        _exceeding,
        "Q is above its provable bound by {excess}",
        "Q is above any value that the rewards allow.",
        TIGHTER,
    ),
    "imitation": Sign(
        _drowned,
        "{loss} {own:.3g}, the best point's {best:.3g}",
        "The imitation loss is far above the best point's: the other terms (entropy, Q) drown the data.",
        (*COOL, *LESS_Q[:4]),
    ),
    "entropy": Sign(
        _spread,
        "entropy {own:.3g}, the best point's {best:.3g}",
        "The policy's entropy is far above the best point's: it spreads its actions where the other does not.",
        COOL,
    ),
}
"""What may explain that a point is behind; each names no cause, only what its records show."""
