import json
import math
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest
from optuna.trial import TrialState

from offrl_ray.sweep.search import BOUND, Outcome, Search
from offrl_ray.sweep.space import Choice, Domain, Float, Int
from offrl_ray.sweep.spec import Objective, SearchSpec
from tests.conftest import REPOSITORY

NUMBERS: dict[str, Domain] = {"algo.lr": Float(1e-4, 1e-1, log=True), "algo.k": Int(1, 9), "algo.tau": Float(0.0, 1.0)}
MIXED: dict[str, Domain] = {**NUMBERS, "algo.loss": Choice(["mse", "nll"]), "algo.hidden": Choice([[8], [8, 8]])}
MODELS = ("random", "tpe", "gp", "cmaes", "nsga2")
TWO = (Objective("success_once"), Objective("q_excess", "min"))
FIRST = ({"algo.lr": 0.01, "algo.k": 9}, {"algo.tau": 0.25})


def spec(
    sampler: str, trials: int = 24, objectives: tuple[Objective, ...] = (Objective("success_once"),)
) -> SearchSpec:
    return SearchSpec(sampler, trials, 7, objectives, FIRST)


def space(sampler: str) -> dict[str, Domain]:
    return NUMBERS if sampler in ("cmaes", "gp") else MIXED  # gp can, but takes long


def done(*values: float, violation: float = 0.0, step: int = 30) -> Outcome:
    return Outcome("completed", values, violation, step, "")


def score(values: Mapping[str, Any]) -> float:
    """Best, 1.0, at lr 0.01, k 5, tau 0.3."""
    off = math.log10(values["algo.lr"] / 0.01) ** 2 + (values["algo.k"] / 5 - 1) ** 2 + (values["algo.tau"] - 0.3) ** 2
    return math.exp(-off)


Event = tuple[Any, ...]


@cache
def history(sampler: str, objectives: int = 1) -> tuple[Event, ...]:
    """What a driver of three parallel points does: every state, with reports, out of order.

    As many points as cmaes and nsga2 need for a second generation.
    """
    points = {"gp": 10, "tpe": 20, "random": 10}.get(sampler, 60)
    search = Search(spec(sampler, objectives=TWO[:objectives]), space(sampler), 3)
    events: list[Event] = []

    def happens(*event: Any) -> None:
        events.append(event)
        act(search, event)

    waiting: list[int] = []
    for number in range(points):
        events.append(("ask", number, search.ask(number)))
        waiting.append(number)
        value = score(events[-1][2])
        if len(waiting) < 3 and number < points - 1:
            continue
        for n in reversed(waiting[1:]):
            happens("report", n, 10, value / 2)
            kind = n % 7
            if kind == 2:
                happens("tell", n, Outcome("pruned", None, -0.5, 10, "rung"))
            elif kind == 4:
                happens("tell", n, Outcome("diverged", None, 3.0, 10, "Q"))
            elif kind == 5:
                happens("tell", n, Outcome("failed", None, 0.0, 10, "oom"))
            else:
                happens("report", n, 20, value)
                happens("tell", n, done(*(value, 1 - value)[:objectives], violation=0.2 if kind == 3 else -0.1))
        waiting = waiting[:1]
    return tuple(events)


def act(search: Search, event: Event) -> None:
    getattr(search, event[0])(*event[1:])


def replayed(sampler: str, events: Sequence[Event], objectives: int = 1) -> Search:
    """A later session's search, from records that were written and read."""
    search = Search(spec(sampler, objectives=TWO[:objectives]), space(sampler), 3)
    for kind, number, *rest in events:
        if kind == "ask":
            search.restore(number, json.loads(json.dumps(rest[0])))
        else:
            act(search, (kind, number, *rest))
    return search


@pytest.mark.parametrize(
    ("sampler", "objectives"), [*((s, 1) for s in MODELS), *((s, 2) for s in MODELS if s != "cmaes")]
)
def test_a_resumed_search_asks_what_the_uninterrupted_one_asked_wherever_it_was_cut(
    sampler: str, objectives: int
) -> None:
    events = history(sampler, objectives)
    for cut in (i for i, e in enumerate(events) if e[0] == "ask"):
        number, values = events[cut][1:]
        assert replayed(sampler, events[:cut], objectives).ask(number) == values, number


@pytest.mark.parametrize("sampler", MODELS)
def test_a_resumed_search_goes_on_as_the_uninterrupted_one_to_the_end(sampler: str) -> None:
    events = history(sampler)
    asks = [i for i, e in enumerate(events) if e[0] == "ask"]
    for cut in (asks[len(asks) // 3], asks[-4]):
        search = replayed(sampler, events[:cut])
        for event in events[cut:]:
            if event[0] == "ask":
                assert search.ask(event[1]) == event[2], (cut, event[1])
            else:
                act(search, event)


@pytest.mark.parametrize("sampler", ["cmaes", "nsga2"])
def test_the_history_holds_several_generations(sampler: str) -> None:
    trials = replayed(sampler, history(sampler)).study.trials
    notes = [v for t in trials for k, v in t.system_attrs.items() if k.endswith("generation")]
    assert len(set(notes)) >= 3


@pytest.mark.parametrize("sampler", MODELS)
def test_what_was_asked_depends_on_what_was_told(sampler: str) -> None:
    events = history(sampler)
    last = max(i for i, e in enumerate(events) if e[0] == "ask")
    flipped = [
        (*e[:2], e[2]._replace(values=(-e[2].values[0],))) if e[0] == "tell" and e[2].values else e for e in events
    ]
    asked = [replayed(sampler, es[:last]).ask(events[last][1]) for es in (events, flipped)]
    assert (asked[0] == asked[1]) == (sampler == "random")


def test_the_same_question_in_another_process_has_the_same_answer() -> None:
    code = "from tests.test_search import *; print([history(s)[-4:] for s in ('tpe', 'cmaes', 'nsga2')])"
    told = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        ).stdout
        for seed in ("1", "2")
    ]
    assert told[0] == told[1]
    assert "tell" in told[0]


@pytest.mark.parametrize("sampler", MODELS)
def test_cells_seeds_and_numbers_are_different_questions(sampler: str) -> None:
    values = space(sampler)
    asked = [
        Search(SearchSpec(sampler, 24, seed), values, cell).ask(n)["algo.lr"]
        for seed, cell, n in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    ]
    assert len(set(asked)) == 4


@pytest.mark.parametrize("sampler", MODELS)
def test_points_to_try_first_come_first_in_every_cell_and_the_rest_is_the_samplers(sampler: str) -> None:
    cells = [Search(spec(sampler), space(sampler), cell) for cell in (0, 1)]
    asked = [[s.ask(n) for n in range(3)] for s in cells]
    for points in asked:
        assert (points[0]["algo.lr"], points[0]["algo.k"], points[1]["algo.tau"]) == (0.01, 9, 0.25)
        assert all(p.keys() == space(sampler).keys() for p in points)
    assert asked[0][0]["algo.tau"] != asked[1][0]["algo.tau"]
    reduced = Search(spec(sampler), {"algo.tau": NUMBERS["algo.tau"], "algo.k": NUMBERS["algo.k"]}, 0)
    assert reduced.ask(0)["algo.k"] == 9
    assert reduced.ask(1).keys() == {"algo.tau", "algo.k"}


@pytest.mark.parametrize("sampler", MODELS)
def test_every_end_is_a_state_that_optuna_understands_and_nothing_stays_running(sampler: str) -> None:
    search = Search(SearchSpec(sampler, 24), space(sampler), 0)
    nan = float("nan")
    ends = [
        (done(0.5, violation=-0.2), TrialState.COMPLETE, 0.5, -0.2),
        (done(0.5, violation=0.4), TrialState.COMPLETE, 0.5, 0.4),
        (Outcome("pruned", (0.2,), -0.3, 10, "rung"), TrialState.PRUNED, 0.2, -0.3),
        (Outcome("pruned", None, -0.3, 10, "rung"), TrialState.PRUNED, 0.1, -0.3),
        (Outcome("diverged", None, 7.0, 10, "Q"), TrialState.PRUNED, 0.1, 7.0),
        (Outcome("diverged", (nan,), -1.0, 10, "a NaN weight"), TrialState.PRUNED, 0.1, 1.0),
        (Outcome("diverged", None, nan, 10, "Q is NaN"), TrialState.PRUNED, 0.1, 1.0),
        (Outcome("diverged", None, math.inf, 10, "Q is inf"), TrialState.PRUNED, 0.1, 1e6),
        (done(nan), TrialState.PRUNED, 0.1, 1.0),
        (done(math.inf), TrialState.PRUNED, 0.1, 1.0),
        (Outcome("completed", None, 0.0, 30, ""), TrialState.PRUNED, 0.1, 1.0),
        (Outcome("failed", None, 0.0, 0, "oom"), TrialState.FAIL, None, None),
    ]
    for number, (outcome, _, _, _) in enumerate(ends):
        search.ask(number)
        search.report(number, 5, 0.1)
        search.report(number, 6, nan)
        search.tell(number, outcome)
    for trial, (outcome, state, value, violation) in zip(search.study.trials, ends, strict=True):
        if sampler == "cmaes" and outcome.status == "completed" and outcome.violation > 0:
            state = TrialState.PRUNED  # it would take the value for good
        assert (trial.state, trial.value, trial.constraints.get(BOUND)) == (state, value, violation), outcome
        assert all(map(math.isfinite, trial.intermediate_values.values()))
    assert search.ask(len(ends)).keys() == space(sampler).keys()


def test_a_report_that_comes_again_keeps_its_value_and_says_nothing() -> None:
    search = Search(SearchSpec("tpe", 24), NUMBERS, 0)
    search.ask(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value in (0.1, 0.9):
            search.report(0, 10, value)
        search.tell(0, done(0.5))
    assert search.study.trials[0].intermediate_values == {10: 0.1}


def test_a_failed_point_that_is_tried_again_ends_once_more() -> None:
    search = Search(SearchSpec("tpe", 24), NUMBERS, 0)
    values = search.ask(0)
    search.tell(0, Outcome("failed", None, 0.0, 0, "oom"))
    search.restore(0, values)
    search.report(0, 10, 0.2)
    search.tell(0, done(0.7))
    assert [t.state for t in search.study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert search.study.best_params == values


def test_the_failure_that_was_tried_again_is_forgotten() -> None:
    """gp would take both for one point of two values."""
    asked = []
    for failures in (0, 1):
        search = Search(SearchSpec("gp", 8), NUMBERS, 0)
        for n in range(6):
            values = search.ask(n)
            for _ in range(failures):
                search.tell(n, Outcome("failed", None, 0.0, 0, "oom"))
                search.restore(n, values)
            search.tell(n, done(score(values)))
        asked.append(search.ask(6))
    assert asked[0] == asked[1]


@pytest.mark.parametrize("sampler", MODELS)
@pytest.mark.parametrize("outcome", [Outcome("diverged", None, 1.0, 1, "Q"), Outcome("failed", None, 0.0, 1, "oom")])
def test_a_search_goes_on_where_nothing_was_ever_reached(sampler: str, outcome: Outcome) -> None:
    search = Search(SearchSpec(sampler, 8), space(sampler), 0)
    asked = []
    for n in range(8):
        asked.append(search.ask(n))
        search.tell(n, outcome)
    assert all(a not in asked[:i] for i, a in enumerate(asked))


def test_a_point_that_was_never_asked_is_no_news() -> None:
    with pytest.raises(KeyError):
        Search(SearchSpec("tpe", 24), NUMBERS, 0).tell(0, done(1.0))


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes"])
def test_a_model_finds_a_better_point_than_chance(sampler: str) -> None:
    def found(name: str) -> float:
        best = []
        for seed in range(2):
            search = Search(SearchSpec(name, 24, seed), NUMBERS, 0)
            scores = []
            for n in range(24):
                scores.append(score(search.ask(n)))
                search.tell(n, done(scores[-1]))
            best.append(sum(scores[12:]) / 12)
        return sum(best)

    assert found(sampler) > 1.2 * found("random")


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", "cmaes"])
@pytest.mark.parametrize("status", ["completed", "diverged"])
def test_points_above_the_bound_or_diverged_drive_the_search_elsewhere(sampler: str, status: Any) -> None:
    """The objective grows with tau, but above 0.5 Q is overestimated, or the run diverges before any evaluation."""

    def astray(judged: bool) -> int:
        points = 24 if sampler == "gp" else 40
        search = Search(SearchSpec(sampler, points, 1), NUMBERS, 0)
        taus = []
        for n in range(points):
            taus.append(tau := search.ask(n)["algo.tau"])
            if judged and tau > 0.5 and status == "diverged":
                search.tell(n, Outcome("diverged", None, 2.0, 10, "Q"))
            else:
                search.tell(n, done(tau, violation=2 * tau - 1 if judged else -1.0))
        return sum(t > 0.6 for t in taus[points // 2 :])

    assert astray(judged=True) + 3 <= astray(judged=False)


def test_gp_keeps_away_from_where_points_fail() -> None:
    search = Search(SearchSpec("gp", 12, 1), {"tau": Float(0.0, 1.0)}, 0)
    taus = []
    for n in range(12):
        taus.append(tau := search.ask(n)["tau"])
        search.tell(n, Outcome("failed", None, 0.0, 0, "oom") if tau > 0.5 else done(tau))
    assert sum(t > 0.6 for t in taus[6:]) <= 2


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "nsga2"])
def test_two_objectives_are_traded_off_and_reports_stay_out_of_the_study(sampler: str) -> None:
    points = 10 if sampler == "gp" else 20
    search = Search(SearchSpec(sampler, points, 0, TWO), space(sampler), 0)
    for n in range(points):
        tau = search.ask(n)["algo.tau"]
        search.report(n, 10, tau)
        end = Outcome("diverged", None, 2.0, 10, "Q") if tau > 0.9 else done(tau, tau**2, violation=tau - 0.8)
        search.tell(n, end)
    assert {t.state for t in search.study.trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert not any(t.intermediate_values for t in search.study.trials)
    front = search.study.best_trials
    assert len(front) > 1
    assert all(t.params["algo.tau"] <= 0.8 for t in front)


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "nsga2"])
def test_a_small_space_is_seen_whole_though_points_repeat(sampler: str) -> None:
    """The caller tells the outcome it knows under the new number and asks again."""
    small: dict[str, Domain] = {"a": Choice(["x", "y", "z"]), "b": Int(1, 3)}
    search, known, repeats = Search(SearchSpec(sampler, 9), small, 0), {}, 0
    for number in range(300):
        values = search.ask(number)
        key = tuple(values.values())
        repeats += key in known
        known.setdefault(key, done(values["b"] + (values["a"] == "x")))
        search.tell(number, known[key])
        if len(known) == 9:
            break
    assert len(known) == 9
    assert len(search.study.trials) == 9 + repeats


def test_what_a_specification_says_survives_the_record() -> None:
    for given in (spec("tpe"), SearchSpec("nsga2", 30, 2, TWO), SearchSpec("random", 1)):
        assert SearchSpec.from_record(json.loads(json.dumps(given.record()))) == given


WRONG: list[tuple[SearchSpec, dict[str, Domain], list[str]]] = [
    (SearchSpec("tpe", 0, 0, TWO, ({"a": 1},)), {"a": Float("x", 2)}, [">= 1"]),  # type: ignore[arg-type]
    (SearchSpec("grid", 5), {"a": Int(1, 2), "b": Int(1, 2)}, ["a is a range", "b is a range"]),
    (SearchSpec("tpe", 5), {}, ["nothing to choose"]),
    (SearchSpec("tpee", 5), NUMBERS, ["did you mean tpe"]),
    (SearchSpec("tpe", 0), NUMBERS, [">= 1"]),
    (SearchSpec("cmaes", 7), NUMBERS, [">= 8"]),
    (SearchSpec("cmaes", 30), MIXED, ["algo.loss has values without an order", "algo.hidden has"]),
    (SearchSpec("cmaes", 30, 0, TWO), NUMBERS, ["cmaes takes one objective"]),
    (SearchSpec("nsga2", 7), NUMBERS, [">= 8"]),
    (SearchSpec("tpe", 5, 0, ()), NUMBERS, ["one or more"]),
    (SearchSpec("tpe", 5, 0, (TWO[0], TWO[0])), NUMBERS, ["each once"]),
    (SearchSpec("tpe", 0, 0, (Objective("a b", "up"),)), NUMBERS, ["name of a metric", ":up", ">= 1"]),
    (
        SearchSpec("tpe", 5, 0, TWO, ({"algo.k": 10, "algo.lr": 0.01}, {"algo.lrr": 1})),
        NUMBERS,
        ["between 1 and 9", "did you mean algo.lr"],
    ),
]


@pytest.mark.parametrize(
    ("given", "domains", "words"), WRONG, ids=lambda x: x.sampler if isinstance(x, SearchSpec) else ""
)
def test_a_search_that_cannot_be_is_refused_with_every_reason(
    given: SearchSpec, domains: dict[str, Domain], words: list[str]
) -> None:
    found = given.problems(domains)
    assert len(found) == len(words), found
    assert all(w in p for w, p in zip(words, found, strict=True)), found


@pytest.mark.parametrize(
    ("text", "objective"),
    [("success_once", Objective("success_once", "max")), ("q_excess:min", Objective("q_excess", "min"))]
    + [("return:max", Objective("return", "max"))],
)
def test_objectives_of_the_command_line(text: str, objective: Objective) -> None:
    assert Objective.parse(text) == objective
    assert objective.problems() == []
    assert Objective.parse(f"{text.split(':')[0]}:down").problems() != []
