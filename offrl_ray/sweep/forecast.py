"""How much is left to do, when trials may be stopped early."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from offrl_ray.sweep.space import from_record, size
from offrl_ray.sweep.state import State, Trial


class Survival:
    """The share of trials that still train at a share of their steps: the Kaplan-Meier estimate.

    Those that were stopped early are events, all others are censored where they are. The mean over ended trials alone
    would be too low while a sweep runs, since the first to end are those that are stopped first.
    """

    def __init__(self, trials: Iterable[Trial]):
        known = [(t.step / t.steps, t.ended) for t in trials if t.attempt]
        shares = sorted(share for share, _ in known)
        stopped = Counter(share for share, ended in known if ended and share < 1)
        self._curve = [(0.0, 1.0)]
        for share, count in sorted(stopped.items()):
            at_risk = len(shares) - bisect_left(shares, share)
            self._curve.append((share, self._curve[-1][1] * (1 - count / at_risk)))

    def left(self, done: float) -> float:
        """Expected share of its steps that a trial will train, after a share `done`."""
        area = sum(alive * max(0.0, end - max(begin, done)) for (begin, alive), (end, _) in pairwise(self._ends()))
        now = next(alive for begin, alive in reversed(self._curve) if begin <= done) if done else 1.0
        return area / now if now else 1 - done

    def _ends(self) -> list[tuple[float, float]]:
        return [*self._curve, (1.0, 0.0)]


def unasked(state: State) -> int:
    """Points that a search has still to ask for: its trials in every cell of the grid, less those that it has."""
    search = (state.plan or {}).get("search")
    if not state.plan or not search:
        return 0
    spaces = ({k: from_record(d) for k, d in c["space"].items()} for c in state.plan["cells"] if c["space"])
    wanted = search["trials"] + state.extended
    asked = sum(t.number >= 0 and t.same_as is None for t in state.trials.values())
    return max(0, sum(min(wanted, size(s) or wanted) for s in spaces) - asked)


def steps_left(state: State) -> tuple[dict[str, float], float]:
    """Expected steps of every trial that has not ended, and of all points still to be asked together."""
    trials = [t for t in state.trials.values() if t.same_as is None]
    survival = Survival(trials)
    shares = {t.name: min(1.0, t.step / t.steps) for t in trials if not t.ended}
    left = {share: survival.left(share) for share in {0.0, *shares.values()}}
    longest = max((t.steps for t in trials), default=0)
    return {t: left[share] * state.trials[t].steps for t, share in shares.items()}, unasked(state) * left[0.0] * longest


def seconds_left(state: State, elapsed: float, own: dict[str, float], asked: float) -> float | None:
    """Wall seconds to the end of the sweep at the pace of its newest driver, `elapsed` seconds after that began.

    `own` and `asked` are `steps_left`. At least what the slowest running trial needs by itself, and one trial's wait
    for its last evaluations. None: no trial has told its pace yet.
    """
    if not own and not asked:
        return 0.0
    total = sum(own.values()) + asked
    if total and not (state.worked and elapsed > 0):
        return None
    running = [t for t in state.trials.values() if t.status == "running" and t.step and t.seconds]
    alone = max((own[t.name] * t.seconds / t.step for t in running), default=0.0)
    together = total * elapsed / state.worked if total else 0.0
    waits = [float(t.end["cost"].get("wait_seconds", 0)) for t in state.trials.values() if t.end]
    wait = sum(waits) / len(waits) if waits else 0.0
    return max(together, alone) + wait or None
