"""Tuning and confirmation side by side, and what may be said where there is none."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from results_analysis.confirmation import expected_maximum, objective, ranked, section, standard_error, values
from results_analysis.load import Sweep, load
from results_analysis.stats import Estimate, difference
from results_analysis.words import speaker
from tests.story import by_first, only, read, table, texts
from tests.synthetic import Record, Run, sweep, write

SAY = speaker("en")
AXES = {"algo.alpha": [0.0, 0.1, 0.2]}
TUNED = {0.0: 0.2, 0.1: 0.9, 0.2: 0.7}
AGAIN = {0.0: 0.2, 0.1: 0.5, 0.2: 0.9}


def planted(rates: Mapping[float, float], **run: Any) -> Callable[[Record, int], Run]:
    return lambda point, seed: Run(rates[point["algo.alpha"]], **run)


def again(
    rates: Mapping[float, float] = AGAIN,
    seeds: tuple[int, ...] = (5, 6, 7),
    eval_seed: int = 20_000,
    confirms: Mapping[str, Any] = {},
    **more: Any,
) -> list[Record]:
    """The confirmation of the two best points, 0001 before 0002."""
    told = {"folder": "toy", "digest": "p", "points": ["0001", "0002"], **confirms}
    records = list(sweep(planted(rates), AXES, seeds=seeds, name="toy-confirm", confirms=told, **more))
    records[0]["points"] = [p for p in records[0]["points"] if p["trial"] != "0000"]
    for p in records[0]["points"]:
        p["config"]["eval"] |= {"seed": eval_seed}
    return [r for r in records if r.get("trial") != "0000"]


def both(tmp_path: Path, second: list[Record] | None = None, **more: Any) -> Sweep:
    folder = tmp_path / "toy"
    write(folder, sweep(planted(TUNED), AXES, **({"seeds": (0, 1, 2)} | more)))
    write(folder / "confirm", iter(again() if second is None else second))
    return load(folder)


def rows(s: Sweep) -> dict[str, dict[str, Any]]:
    t = table(section([s], SAY), "confirmation-toy")
    return by_first(t._replace(columns=t.columns[1:], rows=[r[1:] for r in t.rows]))


def test_the_two_stand_side_by_side_with_the_drop(tmp_path: Path) -> None:
    s = both(tmp_path)
    assert s.confirmation
    found = rows(s)
    assert list(found) == ["alpha=0.1", "alpha=0.2"]
    for trial, name in ((1, "alpha=0.1"), (2, "alpha=0.2")):
        one = [x.final.mean("success_once") for x in s.trials[trial].seeds if x.final]
        two = [x.final.mean("success_once") for x in s.confirmation.trials[trial - 1].seeds if x.final]
        row = found[name]
        assert row["tuned success_once"].mean == pytest.approx(np.mean(one))
        assert row["confirmed success_once"].mean == pytest.approx(np.mean(two))
        welch = difference([v for v in one if v is not None], [v for v in two if v is not None], 20)
        assert row["drop"] == (welch.effect, welch.interval, 3)
    assert found["alpha=0.1"]["drop"].interval[0] > 0  # 0.9 -> 0.5
    assert found["alpha=0.2"]["drop"].mean < 0  # 0.7 -> 0.9


def test_a_winner_that_holds_is_told_apart_from_the_next(tmp_path: Path) -> None:
    s = both(tmp_path, again({0.0: 0.0, 0.1: 0.9, 0.2: 0.3}))
    (told,) = texts(section([s], SAY), "good")
    assert told.startswith("toy: on fresh seeds alpha=0.1 is best")
    assert "better than the next, alpha=0.2, by" in told
    assert not [t for t in texts(section([s], SAY)) if "tuning had put first" in t]


def test_a_winner_that_changes_is_told(tmp_path: Path) -> None:
    warnings = texts(section([both(tmp_path)], SAY))
    assert "alpha=0.2 is best" in only(warnings, "on fresh seeds alpha")
    assert only(warnings, "not the point that tuning had put first")


def test_a_lead_that_may_be_luck_is_called_so(tmp_path: Path) -> None:
    s = both(tmp_path, again({0.0: 0.0, 0.1: 0.51, 0.2: 0.5}))
    assert "not shown to be more than luck" in only(texts(section([s], SAY), "warning"), "on fresh seeds")


def test_the_seeds_of_both_are_told(tmp_path: Path) -> None:
    assert only(texts(section([both(tmp_path)], SAY)), "tuned on") == (
        "toy: tuned on training seeds 0-2 and evaluation seeds 10000-10019; confirmed on training seeds 5-7 and "
        "evaluation seeds 20000-20019."
    )
    assert texts(section([both(tmp_path)], SAY), "bad") == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"seeds": (2, 3, 4)}, "NOT a confirmation: 1 training seeds had a part in the choice, 2 the first"),
        ({"eval_seed": 10_010}, "NOT a confirmation: 10 evaluation seeds had a part in the choice, 10010 the first"),
    ],
)
def test_seeds_that_had_a_part_in_the_choice_are_shouted_about(tmp_path: Path, more: Any, said: str) -> None:
    s = both(tmp_path, again(**more))
    assert said in only(texts(section([s], SAY), "bad"), "NOT a confirmation")


def test_a_confirmation_of_another_plan_is_shouted_about(tmp_path: Path) -> None:
    s = both(tmp_path, again(confirms={"digest": "q"}))
    assert only(texts(section([s], SAY), "bad"), "another plan") == (
        "toy: the confirmation is of another plan (q, not p): its points may not be these."
    )


def test_other_versions_are_warned_of(tmp_path: Path) -> None:
    s = both(tmp_path, again(versions={"offrl-ray": "0.1.0", "code": "beef"}))
    assert only(texts(section([s], SAY), "warning"), "other versions").endswith("code c0de -> beef")


def test_an_unfinished_confirmation_is_told_and_ranks_nothing(tmp_path: Path) -> None:
    records = [r for r in again() if not (r.get("trial") == "0002" and r["kind"] in ("eval", "end"))]
    s = both(tmp_path, records)
    assert only(texts(section([s], SAY), "warning"), "not finished").endswith(": alpha=0.2")
    row = rows(s)["alpha=0.2"]
    assert (row["confirmed success_once"], row["drop"], row["status"]) == (None, None, "unfinished")
    assert not [t for t in texts(section([s], SAY)) if "is best" in t]


def test_one_seed_each_has_no_interval_and_no_winner(tmp_path: Path) -> None:
    s = both(tmp_path, again({0.0: 0.0, 0.1: 0.9, 0.2: 0.1}, seeds=(5,)), seeds=(0,))
    assert rows(s)["alpha=0.1"]["drop"].interval is None
    assert "not shown to be more than luck" in only(texts(section([s], SAY)), "on fresh seeds")


def test_a_seed_that_diverged_counts_as_no_success_on_both_sides(tmp_path: Path) -> None:
    def make(point: Record, seed: int) -> Run:
        return Run(1.0, stopped=0.5 if seed == 6 and point["algo.alpha"] == 0.1 else None)

    told = {"folder": "toy", "digest": "p", "points": ["0001", "0002"]}
    s = both(tmp_path, list(sweep(make, AXES, seeds=(5, 6, 7), confirms=told)))
    assert rows(s)["alpha=0.1"]["confirmed success_once"].mean == pytest.approx(2 / 3)
    assert rows(s)["alpha=0.1"]["status"] == "partly diverged"
    assert rows(s)["alpha=0.2"]["confirmed success_once"].mean == 1.0


def test_where_less_is_better_the_drop_is_still_what_was_lost(tmp_path: Path) -> None:
    aim = [{"metric": "critic_loss", "mode": "min"}]
    loss = lambda low: lambda point, seed: Run(0.5, {"critic_loss": lambda t: low + point["algo.alpha"] + 0.01 * seed})  # noqa: E731
    told = {"folder": "toy", "digest": "p", "points": ["0000", "0001", "0002"]}
    write(tmp_path / "toy", sweep(loss(1.0), AXES, seeds=(0, 1, 2), objectives=aim))
    write(tmp_path / "toy" / "confirm", sweep(loss(2.0), AXES, seeds=(0, 1, 2), objectives=aim, confirms=told))
    s = load(tmp_path / "toy")
    assert rows(s)["alpha=0.1"]["drop"].mean == pytest.approx(1.0)
    assert "alpha=0 is best" in only(texts(section([s], SAY)), "on fresh seeds")
    assert [t.name for t, _ in ranked(s, objective(s))] == ["0000", "0001", "0002"]


def test_without_a_confirmation_the_command_is_there(tmp_path: Path) -> None:
    s = read(tmp_path, sweep(planted(TUNED), AXES, seeds=(0, 1, 2)))
    (told,) = texts(section([s], SAY), "warning")
    assert told.startswith("toy: alpha=0.1 has the best success_once, 0.")
    assert told.endswith(f"Not confirmed yet: offrl-ray confirm {tmp_path}/toy --top 3 --seeds 5")


def test_the_inflation_that_noise_alone_would_give(tmp_path: Path) -> None:
    """Three points of q_excess 1, 2 and 3 plus 0, 0.3 and 0.6: sd 0.3, standard error 0.3 / sqrt(3) = 0.173."""

    def make(point: Record, seed: int) -> Run:
        return Run(0.5, {"gain": lambda t: 10 * point["algo.alpha"] + 0.3 * seed})

    aim = [{"metric": "gain", "mode": "max"}]
    s = read(tmp_path, sweep(make, AXES, seeds=(0, 1, 2), objectives=aim))
    found = [v for _, v in ranked(s, objective(s))]
    assert standard_error(found) == pytest.approx(0.3 / math.sqrt(3))
    told = only(texts(section([s], SAY)), "equally good")
    assert "better by about 0.15: 0.85 times 0.17, the standard error" in told  # E max of 3 = 1.5 / sqrt(pi) = 0.846


def test_points_that_share_the_best_value_are_told_and_no_noise_is_made_up(tmp_path: Path) -> None:
    s = read(tmp_path, sweep(planted(dict.fromkeys(TUNED, 0.0)), AXES, seeds=(0, 1)))
    told = texts(section([s], SAY))
    assert only(told, "share this") == "toy: 3 points share this value."
    assert not [t for t in told if "equally good" in t]


def test_with_one_seed_the_noise_is_that_of_its_episodes(tmp_path: Path) -> None:
    s = read(tmp_path, sweep(planted(dict.fromkeys(TUNED, 0.5)), AXES, seeds=(0,)))
    found = [v for _, v in ranked(s, objective(s))]
    rates = [v.mean for v in found]
    assert standard_error(found) == pytest.approx(math.sqrt(np.mean([p * (1 - p) / 20 for p in rates])))


@pytest.mark.parametrize(
    ("n", "exact"),
    [(1, 0.0), (2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi)), (10, 1.53875), (100, 2.50759)],
)
def test_expected_maximum_of_normals(n: int, exact: float) -> None:
    assert expected_maximum(n) == pytest.approx(exact, abs=1e-5)


def test_expected_maximum_is_that_of_a_simulation() -> None:
    draws = np.random.default_rng(0).standard_normal((20_000, 20)).max(1)
    assert expected_maximum(20) == pytest.approx(draws.mean(), abs=4 * draws.std() / math.sqrt(len(draws)))
    assert NormalDist().cdf(expected_maximum(20)) > 0.95


def test_a_sweep_without_an_ended_point_has_no_winner(tmp_path: Path) -> None:
    records = [r for r in sweep(planted(TUNED), AXES, seeds=(0, 1)) if r["kind"] not in ("end", "eval")]
    assert texts(section([read(tmp_path, records)], SAY), "warning") == [
        "toy: no point has ended with a value of success_once, so there is no winner."
    ]


def test_points_that_failed_or_have_no_finite_value_are_not_ranked(tmp_path: Path) -> None:
    def make(point: Record, seed: int) -> Run:
        return Run(0.5, {"gain": lambda t: math.nan if point["algo.alpha"] == 0.2 else 1.0})

    records = list(sweep(make, AXES, seeds=(0, 1), objectives=[{"metric": "gain", "mode": "max"}]))
    for r in records:
        if r["kind"] == "end" and r["trial"] == "0000":
            r |= {"status": "failed", "failure": "code", "reason": "x"}
    s = read(tmp_path, records)
    assert [t.name for t, _ in ranked(s, objective(s))] == ["0001"]


def test_a_metric_of_episodes_has_no_mean_where_a_seed_diverged(tmp_path: Path) -> None:
    """As sweep.state.Trial.value: a return is not 0 because nobody measured it."""

    def make(point: Record, seed: int) -> Run:
        return Run(0.5, {"gain": lambda t: 1.0}, stopped=0.5 if seed == 1 else None)

    t = read(tmp_path, sweep(make, {"algo.alpha": [0.0]}, seeds=(0, 1))).trials[0]
    assert values(t, "return").of == {}
    assert values(t, "gain").of == {0: 1.0}
    assert values(t, "success_once").of[1] == 0.0


def test_a_confirmation_that_is_reported_by_itself_says_what_it_is(tmp_path: Path) -> None:
    s = read(tmp_path, again(), "confirm")
    assert texts(section([s], SAY)) == ["confirm is itself the confirmation of toy."]


def test_values_are_shown_with_interval_and_n(tmp_path: Path) -> None:
    found = rows(both(tmp_path))["alpha=0.1"]["confirmed success_once"]
    assert isinstance(found, Estimate)
    assert found.n == 3
    assert f"(n = {found.n})" in only(texts(section([both(tmp_path)], SAY)), "is best")
