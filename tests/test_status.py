import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest

from offrl_ray.sweep import status
from offrl_ray.sweep.forecast import Survival
from offrl_ray.sweep.state import State
from offrl_ray.sweep.status import LOCK, Progress, Summary, best, clock, driver_runs, interval, line, summary, text
from results_analysis.stats import mean_over_seeds, rate_over_seeds
from tests import ledgers
from tests.ledgers import T0, after, end, evaluation, numbered, plan, point, session, start, train, whole, work

Record = dict[str, Any]
POINTS = [point("00"), point("01"), point("02"), point("03")]


def state(*log: Record, **more: Any) -> State:
    """A driver's session of four trials that began at T0, after `log`."""
    return State(numbered([session(), plan(POINTS, **more), *log]))


def at(seconds: float, *log: Record, running: bool = True, **more: Any) -> Summary:
    return summary(state(*log, **more), T0 + seconds, running)


# -- counts


def test_every_trial_is_counted_once() -> None:
    failed = end("01", "failed", step=2, failure="oom", reason="too big")
    s = at(60, *whole("00"), failed, *work("02", 4))
    assert s.counts == {"completed": 1, "pruned": 0, "diverged": 0, "failed": 1, "running": 1, "queued": 1}
    assert (s.total, s.ended, s.failures) == (4, 2, {"oom": 1})


def test_without_a_driver_nothing_runs() -> None:
    s = at(60, *work("00", 4), running=False)
    assert (s.counts["running"], s.counts["queued"], s.driver, s.eta_seconds) == (0, 4, None, None)
    assert at(60, *work("00", 4)).driver == {"host": "here", "pid": 7, "since": T0}


def test_a_search_still_has_to_ask_for_points() -> None:
    more = {"objectives": after("success_once"), "search": {"trials": 10}}
    asked = [{"kind": "point", **point(f"1{i}", number=i, cell=i % 2)} for i in range(3)]
    s = at(60, *asked, axes={"a": [1, 2]}, **more)
    assert (s.unasked, s.total, s.ended) == (17, 24, 0)


def test_reasons_are_quoted_and_cut_short() -> None:
    evil = "\x1b[2J" + "x" * 1000
    log = [end(f"0{i}", "failed", failure="code", reason=evil) for i in range(2)]
    log += [end("02", "diverged", step=2, reason="q"), end("03", diverged={"1": "loss is nan"})]
    s = at(60, *log)
    assert "\x1b" not in text(s)
    assert all(len(r) < 400 for r in s.reasons)
    assert s.reasons[2:] == ["02: diverged at step 2: 'q'", "03: seed 1 diverged: 'loss is nan'"]


def test_at_most_ten_reasons_are_shown() -> None:
    points = [point(f"{i:02d}") for i in range(12)]
    log = [end(p["trial"], "failed", failure="oom", reason="oom") for p in points]
    shown = text(summary(State(numbered([session(), plan(points), *log])), T0))
    assert shown.count("'oom'") == 10
    assert shown.endswith("  and 2 more")


# -- best


def test_the_best_completed_trial_is_told_with_its_interval() -> None:
    pruned = [*work("01", 8, once=[1, 1]), end("01", "pruned", reason="rung", step=8)]
    s = at(99, *whole("00"), *pruned, *whole("02", once=[1, 1]), *work("03"))
    assert s.best
    assert (s.best.trial, s.best.metric, s.best.value, s.best.seeds) == ("02", "success_once", 1.0, 2)
    assert f"best success_once 1 [{s.best.interval[0]:.3g}, 1] at 02" in line(s)  # type: ignore[index]


def test_a_search_is_judged_by_its_first_objective() -> None:
    more = {"objectives": after("q_excess", "success_once"), "search": {"trials": 1}}
    high = [train("00", 12, s, q_mean=9.0, q_bound_high=1.0) for s in (0, 1)]
    low = [train("01", 12, s, q_mean=2.0, q_bound_high=1.0) for s in (0, 1)]
    s = at(99, *work("00"), *high, end("00"), *work("01"), *low, end("01"), **more)
    assert s.best
    assert (s.best.trial, s.best.metric, s.best.value, s.best.interval) == ("01", "q_excess", 1.0, None)


def test_the_smallest_gap_between_q_and_truth_can_be_the_aim() -> None:
    aim = [{"metric": "q_gap", "mode": "min"}]
    closer = [r | {"q_start": [0.5, 1.5]} if r["kind"] == "eval" else r for r in whole("01", once=[0, 0])]
    s = at(99, *whole("00"), *closer, objectives=aim)
    assert s.best == ("01", "q_gap", 0.5, (0.5, 0.5), 2)


def test_a_native_environment_is_judged_by_its_return() -> None:
    config = ledgers.CONFIG | {"env": ledgers.CONFIG["env"] | {"reward_mode": "native"}}
    points = [point(t, config=config) for t in ("00", "01")]
    better = [r | {"return": [9.0, 9.0]} if r["kind"] == "eval" else r for r in whole("01", once=[0, 0])]
    s = summary(State(numbered([session(), plan(points, objectives=[]), *whole("00"), *better])), T0 + 99)
    assert s.best
    assert (s.best.trial, s.best.metric, s.best.value) == ("01", "return", 9.0)


def test_a_value_that_is_no_number_is_never_the_best() -> None:
    bad = [r | {"return": ["inf", 1.0]} if r["kind"] == "eval" else r for r in whole("00")]
    found = state(*bad, *whole("01"), objectives=after("return"))
    assert best(found) is found.trials["01"]
    assert best(state(*bad, objectives=after("return"))) is None


@pytest.mark.parametrize("episodes", [([1, 0], [1, 1]), ([0, 0], [0, 0]), ([1, 1], [1, 1])])
def test_intervals_are_those_of_the_analysis(episodes: tuple[list[int], list[int]]) -> None:
    log = [evaluation("00", 12, seed, once=once) for seed, once in enumerate(episodes)]
    trial = state(start("00"), *log).trials["00"]
    rate, ret = rate_over_seeds(episodes), mean_over_seeds([2.0, 2.0])
    assert rate
    assert ret
    assert interval(trial, "success_once") == pytest.approx(rate.interval)
    assert interval(trial, "return") == pytest.approx(ret.interval)
    trial.seeds = [0]
    assert interval(trial, "success_once") is None


# -- the time that is left


def shares(*found: tuple[float, bool]) -> Survival:
    """Trials of 100 steps: how far each came, and whether it has ended there."""
    points = [point(f"{i:02d}", steps=100) for i in range(len(found))]
    log: list[Record] = []
    for i, (share, ended) in enumerate(found):
        step = int(100 * share)
        log += [start(f"{i:02d}"), train(f"{i:02d}", step)]
        log += [end(f"{i:02d}", "pruned" if share < 1 else "completed", step=step)] * ended
    return Survival(State(numbered([plan(points), *log])).trials.values())


def test_without_early_stops_a_trial_trains_all_its_steps() -> None:
    assert shares().left(0) == 1
    assert shares((1, True), (0.3, False)).left(0.3) == pytest.approx(0.7)


def test_stopped_trials_shorten_what_is_expected() -> None:
    survival = shares((0.25, True), (0.25, True), (1, True), (1, True))
    assert survival.left(0) == pytest.approx(0.25 + 0.5 * 0.75)  # the mean of what they trained
    assert survival.left(0.5) == pytest.approx(0.5)  # none was ever stopped later
    assert survival.left(1) == 0


def test_trials_that_still_run_count_as_far_as_they_are() -> None:
    survival = shares((0.25, True), (0.5, False), (0.5, False), (0.5, False))
    assert survival.left(0) == pytest.approx(0.25 + 0.75 * 0.75)


def test_trials_that_end_at_once_leave_nothing_to_expect() -> None:
    assert shares((0.0, True), (0.0, True)).left(0) == 0


def test_eta_follows_the_pace_and_counts_every_trial() -> None:
    log = [start("00"), train("00", 6), start("01"), train("01", 6)]
    assert at(60, *log).eta_seconds == pytest.approx(60 * (48 - 12) / 12)


def test_eta_knows_early_stopping() -> None:
    log = [start("00"), train("00", 6), end("00", "pruned", step=6, cost={}), start("01"), train("01", 6)]
    # one of two was stopped at a half: so will half of those that come, and 01 is past it
    assert at(60, *log).eta_seconds == pytest.approx(60 * (6 + 9 + 9) / 12)
    assert at(60, *log).eta_seconds < at(60, *log[:2], *log[3:]).eta_seconds  # type: ignore[operator]


def test_eta_waits_for_the_last_evaluations() -> None:
    done = [r for t in ("00", "01", "02") for r in whole(t)]
    s = at(100, *done, *work("03"))
    assert s.eta_seconds == pytest.approx(4.0)  # what others waited
    alone = summary(State(numbered([session(), plan(POINTS[:1]), *work("00")])), T0 + 9)
    assert alone.eta_seconds is None
    assert "no estimate yet" in line(alone)
    assert "0:00" not in line(s) + line(alone)


def test_the_last_trial_has_its_own_pace() -> None:
    """Three together trained 36 steps in a minute, but one trial takes a minute for its 12."""
    slow = [start("03"), train("03", 6) | {"seconds": 30.0}]
    done = [r for t in ("00", "01", "02") for r in work(t)] + [end(t, cost={}) for t in ("00", "01", "02")]
    assert at(60, *done, *slow).eta_seconds == pytest.approx(30.0)


def test_what_an_earlier_driver_did_is_not_this_ones_pace() -> None:
    log = numbered([session(), plan(POINTS[:2]), *work("00", 8), session()])
    began = log[-1]["time"]
    found = State([*log, *({"time": began, **r} for r in (start("00", 2, 8), train("00", 12, 0, 2)))])
    assert summary(found, began + 60).eta_seconds == pytest.approx(60 * 12 / 4)


def test_nothing_is_left_of_a_finished_sweep() -> None:
    s = at(99, *(r for t in ("00", "01", "02", "03") for r in whole(t)))
    assert s.eta_seconds == 0
    assert "left" not in line(s)
    assert "left      nothing" in text(s)


def test_a_clock_that_was_set_back_breaks_nothing() -> None:
    s = at(-1000, *work("00", 4))
    assert s.eta_seconds is None
    assert s.age == 0


@pytest.mark.parametrize(("seconds", "told"), [(0, "0:01"), (59.2, "1:00"), (3599, "59:59"), (3723, "1:02:03")])
def test_a_clock_never_shows_nothing(seconds: float, told: str) -> None:
    assert clock(seconds) == told


# -- cost


def test_cost_is_told_so_far_and_to_go() -> None:
    log = [start("00"), train("00", 6), start("01"), train("01", 6)]  # a second of training per step
    s = at(60, *log)
    assert s.so_far == (12.0, 60.0, None)
    assert s.to_go == pytest.approx((36.0, 180.0, None))
    resources = {"gpus_per_trial": 0.5, "evaluators": 2, "gpus_per_evaluator": 0.25}
    s = at(60, *log, resources=resources)
    assert s.so_far.gpu_hours == pytest.approx((12 * 0.5 + 60 * 2 * 0.25) / 3600)
    assert s.to_go.gpu_hours == pytest.approx((36 * 0.5 + 180 * 2 * 0.25) / 3600)


def test_cost_counts_what_the_newest_driver_reserves() -> None:
    planned = {"gpus_per_trial": 0.25, "evaluators": None, "gpus_per_evaluator": 0.5}
    log = [start("00"), train("00", 6)]
    assert at(60, *log, resources=planned).so_far.gpu_hours == pytest.approx((6 * 0.25 + 60 * 0.5) / 3600)
    used = planned | {"gpus_per_trial": 0.5, "evaluators": 4}
    state = State(numbered([plan(POINTS, resources=planned), session(resources=used), *log]))
    assert state.session
    cost = summary(state, state.session["time"] + 60).so_far
    assert cost.gpu_hours == pytest.approx((6 * 0.5 + 60 * 4 * 0.5) / 3600)


def test_the_wall_time_of_all_drivers_adds_up_and_pauses_do_not_count() -> None:
    log = numbered([session(), plan(POINTS), *work("00", 4)])
    first = len(log) - 1
    second = [r | {"time": r["time"] + 1e6} for r in numbered([*log, session(), start("00", 2, 4)])[len(log) :]]
    s = summary(State([*log, *second]), second[0]["time"] + 60)
    assert s.so_far.wall_seconds == pytest.approx(first + 60)
    stopped = summary(State([*log, *second]), second[0]["time"] + 1e6, running=False)
    assert stopped.so_far.wall_seconds == pytest.approx(first + 1)


def test_what_was_copied_has_cost_nothing() -> None:
    assert at(60, start("00", cached="old:07"), *work("00")[1:]).so_far.train_seconds == 0


# -- told


def test_json_is_strict_and_counts_are_integers() -> None:
    log = [
        *whole("00"),
        end("01", "failed", failure="oom", reason="x", step=0),
        start("02"),
        train("02", 2, a=math.nan),
    ]
    told = json.loads(json.dumps(at(60, *log).json(), allow_nan=False))
    keys = ("completed", "pruned", "diverged", "failed", "running", "queued", "unasked", "total")
    assert [told[k] for k in keys] == [1, 0, 0, 1, 1, 1, 0, 4]
    assert all(type(told[k]) is int for k in keys)
    assert told["failures"] == {"oom": 1}
    assert told["best"]["trial"] == "00"
    assert told["cost"]["so_far"].keys() == told["cost"]["to_go"].keys()
    assert {"eta_seconds", "driver", "age_seconds", "reasons", "name"} <= told.keys()


@pytest.mark.parametrize("log", [[], [start("00")], [session()]])
def test_a_sweep_that_has_just_begun_is_told(log: list[Record]) -> None:
    for s in (at(5, *log), at(5, *log, running=False), summary(State(numbered([plan([])])), T0)):
        assert json.dumps(s.json(), allow_nan=False)
        assert line(s)
        assert text(s)


def test_a_drivers_lock_is_seen_and_not_disturbed(tmp_path: Path) -> None:
    assert not driver_runs(tmp_path)
    lock = filelock.FileLock(tmp_path / LOCK)
    with lock:
        assert driver_runs(tmp_path)
        assert driver_runs(tmp_path)
    assert not driver_runs(tmp_path)
    lock.acquire(timeout=0)  # the look left nothing behind
    lock.release()


def test_a_driver_is_followed_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    monkeypatch.setattr(status.time, "sleep", naps.append)
    running: Iterator[bool] = iter([True, True, False])
    said: list[str] = []
    status.follow(lambda: at(9, *whole("00"), running=next(running)), said.append, lambda s: "…", text)
    assert said[:2] == ["…", "…"]
    assert said[2].startswith("toy: 1 of 4 done")
    assert naps == [2.0, 2.0]


# -- the driver's lines


class Driver:
    def __init__(self) -> None:
        self.state, self.now, self.lines = state(), T0, list[str]()
        self.progress = Progress(self.state, self.lines.append, lambda: self.now)

    def at(self, seconds: float, *log: Record) -> list[str]:
        """The lines that records cause at a time since the beginning."""
        self.now, self.lines[:] = T0 + seconds, []
        for r in log:
            self.state.add(r | {"time": self.now})
            self.progress.add(r)
        return list(self.lines)


def test_lines_come_at_most_every_ten_seconds() -> None:
    driver = Driver()
    driver.at(0, start("00"))
    assert sum(len(driver.at(s, train("00", 2))) for s in range(1, 60)) == 5


def test_the_end_of_a_trial_is_told_with_its_score_and_the_best_so_far() -> None:
    driver = Driver()
    driver.at(0, *work("00"), *work("01", once=[0, 0]))
    first, second = driver.at(5, end("00"))
    assert first == "  00: completed at 12 updates, success_once 0.5"
    assert second.startswith("1/4 done, 1 running, 0:05 gone, ")
    assert "best success_once 0.5 [" in second
    (only,) = driver.at(5.5, end("01", "diverged", step=4, reason="loss\nis nan"))
    assert only == "  01: diverged at 4 updates, success_once 0 (loss\\nis nan)"
