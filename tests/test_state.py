from pathlib import Path
from typing import Any

import pytest

from offrl_ray.errors import UsageError
from offrl_ray.sweep.state import State, check_names
from tests import ledgers
from tests.ledgers import T0, end, evaluation, fault, numbered, plan, point, session, start, train, whole, work

Record = dict[str, Any]
BEGIN = [plan([point("00"), point("01"), point("02")]), session()]


def state(*log: Record) -> State:
    return State(numbered([*BEGIN, *log]))


def counts(*log: Record) -> dict[str, int]:
    return {k: n for k, n in state(*log).counts().items() if n}


def test_every_trial_is_in_one_state() -> None:
    assert counts() == {"queued": 3}
    assert counts(*whole("00"), start("01")) == {"completed": 1, "running": 1, "queued": 1}
    failed = end("01", "failed", failure="oom")
    assert counts(end("00", "pruned"), failed, end("02", "diverged")) == {"pruned": 1, "failed": 1, "diverged": 1}


def test_a_lost_attempt_waits_for_the_next() -> None:
    found = state(*work("00", 6), fault("00", failure="oom"), fault("00", 2, "oom"))
    trial = found.trials["00"]
    assert (trial.status, trial.faults, trial.attempt, trial.reported) == ("queued", {"oom": 2}, 2, {0: 6, 1: 6})


def test_a_new_driver_finds_nothing_running() -> None:
    assert counts(start("00"), session()) == {"queued": 3}


def test_retry_opens_an_end() -> None:
    log = [*work("00", 6), fault("00"), end("00", "failed", failure="infra", reason="lost")]
    assert counts(*log) == {"failed": 1, "queued": 2}
    trial = state(*log, {"kind": "retry", "trial": "00"}).trials["00"]
    assert (trial.status, trial.end, trial.faults) == ("queued", None, {})


def test_repetitions_are_not_counted() -> None:
    found = state({"kind": "point", **point("03", number=0, same_as="00")})
    assert found.counts()["queued"] == 3
    assert list(found.trials) == ["00", "01", "02", "03"]


def test_a_later_plan_adds_points_and_keeps_what_was_done() -> None:
    found = state(*whole("00"), plan([point("00"), point("03")]))
    assert found.trials["00"].status == "completed"
    assert found.trials["03"].status == "queued"


def test_a_part_of_an_evaluation_is_not_averaged() -> None:
    trial = state(start("00"), evaluation("00", 12, once=[1]), evaluation("00", 12, seed=1)).trials["00"]
    assert trial.evals[12].keys() == {1}
    assert trial.value("success_once") is None  # nor is one seed without the other


def test_a_kill_between_the_records_of_two_seeds_leaves_the_evaluation_open() -> None:
    log = work("00", 8)
    assert state(*log).trials["00"].evaluated() == {4, 8}
    assert state(*log[:-1]).trials["00"].evaluated() == {4}
    part = [evaluation("00", 8, 1, once=[1])]
    assert state(*log[:-1], *part).trials["00"].evaluated() == {4}


def test_a_seed_that_diverged_is_not_waited_for() -> None:
    log = [*work("00", 4), train("00", 6, 0), train("00", 6, 1, loss=float("nan")), train("00", 8)]
    log.append(evaluation("00", 8, members=[0]))
    assert state(*log).trials["00"].evaluated() == {4, 8}


def test_the_newest_attempt_counts() -> None:
    found = state(*work("00", 6), *work("00", attempt=2, begin=4), evaluation("00", 8, 0, 2, once=[1, 1]))
    trial = found.trials["00"]
    assert (trial.attempt, trial.step, trial.reported) == (2, 12, {0: 12, 1: 12})
    assert trial.value("success_once", 8) == 0.75


def test_training_metrics_are_of_the_healthy_seeds() -> None:
    log = [train("00", 12, 0, q_mean=5.0, q_bound_high=2.0), train("00", 12, 1, q_mean=float("inf"))]
    trial = state(start("00"), *log, end("00", diverged={"1": "q"})).trials["00"]
    assert trial.value("q_mean") == 5.0
    assert trial.value("q_excess") == 3.0
    assert trial.value("loss") is None


def test_time_and_steps_of_the_newest_driver_are_told_apart() -> None:
    first = [*BEGIN, *work("00", 4)]
    found = State(numbered([*first, session(), start("00", 2, 4), train("00", 6, 0, 2), train("00", 6, 1, 2)]))
    assert found.wall == len(first) - 2  # from the first session's record to its last
    assert found.worked == 2
    assert found.heard == T0 + len(first) + 3


def test_copied_results_are_no_work() -> None:
    assert state(start("00", cached="old:07"), *work("00")[1:]).worked == 0


def test_unknown_kinds_and_trials_are_passed_over() -> None:
    found = state({"kind": "weather", "text": "fine"}, *whole("99"))
    assert found.counts()["queued"] == 3
    assert found.count == 3 + len(whole("99"))


def test_live_and_replayed_are_the_same(tmp_path: Path) -> None:
    log = ledgers.write(tmp_path, [*BEGIN, *work("00", 10), session(), *work("00", attempt=2, begin=8), end("00")])
    live = State()
    for record in log:
        live.add(record)
    assert vars(State.read(tmp_path)) == vars(live)
    assert vars(State.read(tmp_path / "nowhere")) == vars(State())


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "-x", "a\n", "x" * 65])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="name must match"):
        check_names(["00-a", name])


def test_a_record_that_this_version_never_writes_is_named() -> None:
    broken = {k: v for k, v in end("00").items() if k != "attempt"}
    with pytest.raises(UsageError, match=r"record \d+ \(end\) is not as this version writes it: KeyError\('attempt'\)"):
        state(*whole("01"), broken)


def test_a_seed_that_a_rule_stopped_is_known_before_the_end() -> None:
    lost = {"kind": "diverged", "trial": "00", "attempt": 1, "seed": 1, "step": 6, "reason": "q_bound: too high"}
    trial = state(*work("00", 6), lost).trials["00"]
    assert trial.diverged == {"1": "q_bound: too high"}


def test_of_a_diverged_seed_there_is_no_return_and_no_success() -> None:
    log = [start("00"), evaluation("00", 12, 0, once=[1, 1], members=[0])]
    trial = state(*log).trials["00"]
    assert trial.value("success_once") == 0.5
    assert trial.value("return") is None
    assert trial.value("q_gap") is None


def test_what_a_critic_foretold_and_what_came_are_metrics_like_others() -> None:
    more = evaluation("00", 12, 1, q_start=[4.0, 5.0], discounted_return=[0.0, 2.0])
    trial = state(start("00"), evaluation("00", 12), more).trials["00"]
    assert trial.evals[12][1] | {"q_start": 4.5, "discounted_return": 1.0, "q_gap": 3.5} == trial.evals[12][1]
    found = {m: trial.value(m) for m in ("q_start", "discounted_return", "q_gap")}
    assert found == {"q_start": (1.5 + 4.5) / 2, "discounted_return": (0.5 + 1.0) / 2, "q_gap": (1.0 + 3.5) / 2}


@pytest.mark.parametrize("q", ["inf", "nan"])
def test_a_q_that_is_not_finite_leaves_its_gap_not_finite(q: str) -> None:
    trial = state(start("00"), *(evaluation("00", 12, s, q_start=[1.0, q]) for s in (0, 1))).trials["00"]
    assert [str(trial.value(m)) for m in ("q_start", "discounted_return", "q_gap")] == [q, "0.5", q]


def test_without_critic_there_is_no_gap() -> None:
    none = {"q_start": None, "discounted_return": None}
    trial = state(start("00"), *(evaluation("00", 12, s, **none) for s in (0, 1))).trials["00"]
    assert [trial.value(m) for m in (*none, "q_gap", "return")] == [None, None, None, 2.0]
    assert trial.evals[12][0].keys() == {"success_once", "success_at_end", "return", "length"}
