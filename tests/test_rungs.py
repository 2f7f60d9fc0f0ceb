import itertools
import math
import random
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.schedulers.async_hyperband import _Bracket

from offrl_ray.sweep.rungs import Rungs, RungSpec


def test_by_hand() -> None:
    """Rungs at 2 and 6 of 10. The best third of 1 value is that value; of 0.2, 0.5, 0.8 it is at or above 0.6."""
    rungs = Rungs(RungSpec(2, 3), 10)
    assert rungs.decide("a", 1, 0.0) is None, "below the first rung"
    assert rungs.decide("a", 2, 0.5) is None, "the first to come"
    assert rungs.decide("b", 2, 0.2) == "rung 2: 0.2 is below 0.5, the best 1/3 of 1"
    assert rungs.decide("c", 3, 0.8) is None
    assert rungs.decide("d", 2, 0.59) == "rung 2: 0.59 is below 0.6, the best 1/3 of 3"
    assert rungs.decide("e", 2, 0.62) is None
    assert rungs.decide("c", 6, 0.1) is None, "the first at 6"
    assert rungs.decide("a", 9, 0.05) == "rung 6: 0.05 is below 0.1, the best 1/3 of 1"


def test_as_good_as_the_cutoff_goes_on() -> None:
    rungs = Rungs(RungSpec(1, 2), 10)
    assert [rungs.decide(t, 1, 0.0) for t in "abcd"] == [None] * 4


@pytest.mark.parametrize(("last", "decides"), [(6, False), (7, True)])
def test_nothing_is_stopped_at_its_end(last: int, decides: bool) -> None:
    rungs = Rungs(RungSpec(6, 3), last)
    rungs.decide("a", 6, 1.0)
    assert (rungs.decide("b", 6, 0.0) is not None) == decides


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_neither_stops_nor_competes(bad: float) -> None:
    rungs = Rungs(RungSpec(1, 2), 10)
    assert rungs.decide("lost", 1, bad) is None
    assert rungs.decide("a", 1, 0.1) is None, "nobody was there before"
    assert rungs.decide("b", 1, 0.05) == "rung 1: 0.05 is below 0.1, the best 1/2 of 1"
    assert rungs.decide("lost", 1, 0.01) is not None, "it meets the rung with its first finite value"


def test_a_late_evaluation_meets_the_rung_of_its_own_step() -> None:
    rungs = Rungs(RungSpec(2, 3), 10)
    rungs.decide("a", 2, 0.5)
    rungs.decide("a", 6, 0.9)
    assert rungs.decide("b", 6, 0.95) is None
    assert rungs.decide("b", 2, 0.1) == "rung 2: 0.1 is below 0.5, the best 1/3 of 1"


@pytest.mark.parametrize("again", [6, 7])
def test_a_rung_is_met_once_and_never_a_lower_one_with_a_later_value(again: int) -> None:
    """b comes to 6 without a value at 2. Neither a redone evaluation nor a later one is compared at 2."""
    rungs = Rungs(RungSpec(2, 3), 10)
    rungs.decide("a", 2, 0.9)
    assert rungs.decide("b", 6, 0.5) is None
    assert rungs.decide("b", again, 0.5) is None
    assert rungs.decide("c", 2, 0.89) == "rung 2: 0.89 is below 0.9, the best 1/3 of 1", "b is not among those at 2"


def test_a_redone_evaluation_changes_nothing() -> None:
    once, twice = (Rungs(RungSpec(1, 2), 20) for _ in range(2))
    g = random.Random(0)
    for trial, step in itertools.product("abcdefgh", range(1, 20, 3)):
        value = g.random()
        found = once.decide(trial, step, value)
        assert twice.decide(trial, step, value) == found
        assert twice.decide(trial, step, value) is None


@pytest.mark.parametrize("seed", range(20))
def test_decides_as_ray_does(seed: int) -> None:
    """Random curves that reach their reports in random order, some of which skip rungs; stop_last_trials=False is the
    form in which a trial that has met a rung does not fall to a lower one.
    """
    g = random.Random(seed)
    grace, eta, last = g.choice([1, 2, 5]), g.choice([2, 3, 4]), g.choice([35, 70, 90])
    ours = Rungs(RungSpec(grace, eta), last)
    theirs = _Bracket(grace, last, eta, 0, stop_last_trials=False)
    every = g.choice([1, 2, 7])
    curves = {t: [(s, g.gauss(0.02 * s, 0.3)) for s in range(every, last, every)] for t in range(30)}
    decided = 0
    while curves:
        trial = g.choice(list(curves))
        step, value = curves[trial].pop(0)
        stop = theirs.on_result(SimpleNamespace(trial_id=str(trial)), step, value) == TrialScheduler.STOP
        assert (ours.decide(str(trial), step, value) is not None) == stop, (trial, step)
        decided += stop
        if stop or not curves[trial]:
            del curves[trial]
    assert decided > 5
