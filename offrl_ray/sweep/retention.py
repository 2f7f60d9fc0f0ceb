"""Which checkpoints a sweep keeps: those of its best trials, and not more than a byte budget."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple


class Stored(NamedTuple):
    """A trial and what it has on disk."""

    name: str
    status: str  # completed, pruned, diverged or failed; "" while it is open
    score: float | None  # higher is better; None or NaN: none
    checkpoints: Mapping[int, int]  # step -> bytes


def to_drop(trials: Sequence[Stored], keep_top: int | None, max_bytes: int | None) -> dict[str, list[int]]:
    """Steps to remove, by trial, oldest first; None is no limit.

    The `keep_top` best trials keep their checkpoints, all others that ended none. Over `max_bytes`, of all trials
    together, the worst trial goes first, and of one trial the oldest step. Open and failed trials keep everything: both
    go on from there, the failed after a retry, maybe from an older step and with evaluations still owed. The newest
    checkpoint of the best trial, the sweep's answer, is not given up for bytes either.
    """
    ranked = sorted((t for t in trials if t.status not in ("", "failed")), key=_rank)
    kept = ranked if keep_top is None else [t for t in ranked[:keep_top] if _score(t) > -math.inf]
    drop = {t.name: sorted(t.checkpoints) for t in ranked}
    for t in kept:
        del drop[t.name]
    total = sum(sum(t.checkpoints.values()) for t in trials if t.name not in drop)
    for t, step in _worst_first(kept):
        if max_bytes is None or total <= max_bytes:
            break
        drop.setdefault(t.name, []).append(step)
        total -= t.checkpoints[step]
    return {name: steps for name, steps in drop.items() if steps}


def _score(t: Stored) -> float:
    return -math.inf if t.score is None or math.isnan(t.score) else t.score


def _rank(t: Stored) -> tuple[bool, bool, float, str]:
    """Best first: a score outdoes none, and one at the end every score on the way to it."""
    return _score(t) == -math.inf, t.status != "completed", -_score(t), t.name


def _worst_first(ranked: Sequence[Stored]) -> Iterator[tuple[Stored, int]]:
    for t in reversed(ranked):
        steps = sorted(t.checkpoints)
        yield from ((t, step) for step in (steps[:-1] if t is ranked[0] else steps))
