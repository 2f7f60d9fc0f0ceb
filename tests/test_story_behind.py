"""Points that completed and yet are behind: found, explained, and told apart from those that do well."""

from pathlib import Path

import pytest

from offrl_ray.algos import VARIANTS
from offrl_ray.config import describe, parse_assignments, resolve, to_dict
from results_analysis.advice import as_set, taken, value_of
from results_analysis.behind import MOST, Found, find
from results_analysis.diagnosis import section
from results_analysis.load import Sweep, load
from results_analysis.signs import SIGNS
from results_analysis.words import speaker
from tests.conftest import REPOSITORY
from tests.story import by_first, only, read, table, texts
from tests.synthetic import Make, Record, Run, sweep
from tests.test_story_diagnosis import settings

SAY = speaker("en")
BEHIND = {"algo.alpha": [0.1, 5.0]}
FLAT = {"flow_loss": lambda t: 0.7}
GOOD = Run(0.9, FLAT, q_start=0.055)


def planted(bad: Run, good: Run = GOOD) -> Make:
    """The point with the largest alpha is the bad one."""
    return lambda point, seed: bad if point["algo.alpha"] == 5.0 else good


def found(s: Sweep) -> Found:
    told = find(s)
    assert told
    return told


def signs_of(parent: Path, bad: Run, good: Run = GOOD, **more: object) -> list[list[str]]:
    s = read(parent, sweep(planted(bad, good), BEHIND, seeds=(0, 1, 2), **more))  # type: ignore[arg-type]
    return [list(b.signs) for b in found(s).behind]


def test_a_point_whose_q_promises_what_its_episodes_do_not_give(tmp_path: Path) -> None:
    algo = {"bounded_critic": False}
    make = spread(0.082, Run(1.0, FLAT, q_start=0.055))
    s = section([read(tmp_path, sweep(make, BEHIND, seeds=(0, 1, 2), algo=algo))], SAY)
    assert texts(s, "bad") == ["toy: 1 of 2 completed points are behind the best, alpha=0.1, by more than luck."]
    (why,) = texts(s, "warning")
    assert why == f"alpha=5: {SIGNS['q_gap'].meaning}"
    row = by_first(table(s, "behind-toy"))["alpha=5"]
    assert str(row["signs"]).startswith("Q 0.083, return 0: a gap of 0.083 [0.0805, 0.0855] (n = 3), the best")
    assert row["behind by"].mean == pytest.approx(1.0)  # type: ignore[union-attr]
    tries = table(s, "advice-behind-toy").rows
    assert tries == [["alpha=5", "algo.alpha", "5.0", "1.7"], ["alpha=5", "algo.bounded_critic", "false", "true"]]


def spread(q: float, good: Run = GOOD) -> Make:
    """Seeds of alpha=5 differ in their Q by a little."""
    return lambda point, seed: planted(Run(0.0, FLAT, q_start=q + 0.001 * seed), good)(point, seed)


def test_the_gap_must_be_positive_and_larger_than_the_best_ones(tmp_path: Path) -> None:
    low = GOOD._replace(q_start=-0.5)
    for q, good, expected in ((0.083, GOOD, ["q_gap"]), (0.002, GOOD, []), (-0.02, low, []), (0.083, low, ["q_gap"])):
        s = read(tmp_path, sweep(spread(q, good), BEHIND, seeds=(0, 1, 2)), f"{q} {good.q_start}")
        assert [list(b.signs) for b in found(s).behind] == [expected]


@pytest.mark.parametrize(
    ("variant", "algo"), [("sac", {"backup_entropy": True}), ("sac", {"actor_loss": "iql"}), ("dqc", {})]
)
def test_a_gap_that_is_no_error_of_the_critic_is_no_sign(tmp_path: Path, variant: str, algo: Record) -> None:
    assert found(read(tmp_path, sweep(spread(0.083), BEHIND, variant="cpql"))).behind[0].signs.keys() == {"q_gap"}
    s = read(tmp_path, sweep(spread(0.083), BEHIND, variant=variant, algo=algo), "other")
    assert [list(b.signs) for b in found(s).behind] == [[]]


def test_a_q_above_its_bound(tmp_path: Path) -> None:
    above = {"q_policy_mean": lambda t: 0.2, "q_bound_high": lambda t: 0.1}
    assert signs_of(tmp_path, Run(0.0, above, q_start=None)) == [["q_excess"]]
    assert signs_of(tmp_path / "2", Run(0.0, above | {"q_bound_high": lambda t: 0.3}, q_start=None)) == [[]]


@pytest.mark.parametrize(("loss", "expected"), [(1.5, ["imitation"]), (1.3, [])])
def test_an_imitation_loss_of_more_than_twice_the_best_ones(tmp_path: Path, loss: float, expected: list[str]) -> None:
    for name in ("flow_loss", "bc_loss"):
        bad, good = (Run(p, {name: lambda t, v=v: v}, q_start=None) for p, v in ((0.0, loss), (0.9, 0.7)))  # type: ignore[misc]
        assert signs_of(tmp_path / name, bad, good) == [expected]


def test_a_loss_that_is_logged_as_zero_is_none(tmp_path: Path) -> None:
    bad, good = Run(0.0, {"bc_loss": lambda t: 3.0}, q_start=None), Run(0.9, {"bc_loss": lambda t: 0.0}, q_start=None)
    assert signs_of(tmp_path, bad, good) == [[]]


@pytest.mark.parametrize(
    ("entropy", "best", "expected"), [(38.0, -157.0, True), (-97.0, -157.0, False), (38, 15, False)]
)
def test_an_entropy_far_above_the_best_ones(tmp_path: Path, entropy: float, best: float, expected: bool) -> None:
    target = {"target_entropy": lambda t: -28.0}
    bad = Run(0.0, target | {"entropy": lambda t: entropy}, q_start=None)
    good = Run(0.9, target | {"entropy": lambda t: best}, q_start=None)
    assert signs_of(tmp_path, bad, good, variant="sac") == [["entropy"] if expected else []]


def test_without_a_sign_that_is_said(tmp_path: Path) -> None:
    s = section([read(tmp_path, sweep(planted(Run(0.0, q_start=None)), BEHIND, seeds=(0, 1, 2)))], SAY)
    assert texts(s, "warning") == ["alpha=5: Nothing recorded here explains it."]
    assert not [b for b in s.blocks if getattr(b, "name", "") == "advice-behind-toy"]


def test_points_within_noise_are_not_listed(tmp_path: Path) -> None:
    log = sweep(planted(Run(0.8, FLAT, q_start=0.9)), BEHIND, seeds=(0, 1, 2))
    s = read(tmp_path, log)
    assert found(s).behind == []
    assert len(found(s).well) == 2
    assert "toy: no completed point is behind the best by more than luck." in texts(section([s], SAY), "good")


def test_no_more_than_twenty_are_listed_and_those_of_the_same_signs_are_one_text(tmp_path: Path) -> None:
    axes = {"algo.alpha": [0.1, *(5.0 + 0.1 * i for i in range(MOST + 5))]}
    log = sweep(lambda p, s: Run(0.9 if p["algo.alpha"] < 1 else 0.0, q_start=None), axes, seeds=(0, 1, 2))
    s = section([read(tmp_path, log)], SAY)
    (told,) = texts(s, "warning")
    assert told.count("alpha=") == MOST
    assert ", +5: " in told
    assert len(table(s, "behind-toy").rows) == MOST


def noted(parent: Path, make: Make, trial: str) -> Sweep:
    notes = [{"kind": "note", "trial": trial, "text": f"seed {k} at step 500: entropy: it is so"} for k in (0, 1)]
    return read(parent, [*sweep(make, BEHIND, variant="sac", seeds=(0, 1, 2), algo={"lr_temperature": 1e-4}), *notes])


def test_notes_of_the_winner_get_no_advice_and_those_of_a_point_behind_do(tmp_path: Path) -> None:
    make = planted(Run(0.0, q_start=None))
    quiet, loud = (section([noted(tmp_path / t, make, t)], SAY) for t in ("0000", "0001"))
    assert only(texts(quiet), "notes of points") == "toy: notes of points that do well: entropy: alpha=0.1"
    assert not any("collapsed" in t for t in texts(quiet))
    assert any("collapsed" in t for t in texts(loud))
    assert table(loud, "advice-toy").rows
    assert not any("notes of points" in t for t in texts(loud))


def test_where_no_episode_succeeds_no_point_does_well(tmp_path: Path) -> None:
    s = section([noted(tmp_path, planted(Run(0.0), Run(0.0)), "0000")], SAY)
    assert any("collapsed" in t for t in texts(s))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_settings_exist_and_take_what_is_advised(variant: str) -> None:
    for flat in settings(variant):
        config = to_dict(resolve(flat))
        for name, sign in SIGNS.items():
            for key, now, new in taken(sign.tries, config, 0.1):
                assert value_of(config, key) == (True, now), (name, key)
                given, problems = parse_assignments([f"{key}={as_set(new)}"])
                assert not problems
                assert value_of(to_dict(resolve(flat | given)), key) == (True, pytest.approx(new)), (name, key)


def test_every_setting_that_is_advised_is_one_of_some_variant() -> None:
    known = {s.key for v in VARIANTS for s in describe(v)} | {"algo.name"}
    assert {k for s in SIGNS.values() for t in s.tries for k in (t.key, *(t.when or ())[:1])} <= known


@pytest.mark.parametrize(
    ("variant", "key"), [("cpql", "algo.alpha"), ("awcp", "algo.beta"), ("cpql", "algo.bounded_critic")]
)
def test_a_lower_weight_of_q_is_there_to_try(variant: str, key: str) -> None:
    config = to_dict(resolve(next(settings(variant))))
    assert key in {k for k, *_ in taken(SIGNS["q_gap"].tries, config, None)}


def real(name: str) -> Sweep:
    return load(REPOSITORY / "results_analysis" / "sweeps" / f"{name}.jsonl.gz")


def test_the_long_chain_at_a_heavy_q_term_is_named() -> None:
    s = section([real("cpql")], SAY)
    assert texts(s, "warning") == [f"alpha=5, q_grad_mode=whole_grad: {SIGNS['q_gap'].meaning}"]
    (row,) = table(s, "behind-cpql").rows
    assert str(row[2]).startswith("Q 0.083, return 0: ")


def test_of_sac_the_winners_notes_are_quiet_and_the_lost_points_explained() -> None:
    s = section([real("sac")], SAY)
    winners = "actor_loss=td3bc, init_temperature=0.0001, lr_temperature=0.0001"
    assert winners in only(texts(s), "notes of points that do well")
    assert not any(winners in t for t in texts(s, "warning"))
    rows = by_first(table(s, "behind-sac"))
    for loss, gap in (("sac", "1.01"), ("awr", "0.517")):
        assert f"a gap of {gap} " in str(rows[f"actor_loss={loss}, init_temperature=0.0001, lr_temperature=0"]["signs"])
    assert "bc_loss 12.7" in str(rows["actor_loss=td3bc, init_temperature=1, lr_temperature=0"]["signs"])
    cool = [
        r[1:]
        for r in table(s, "advice-behind-sac").rows
        if "td3bc, init_temperature=1, lr_temperature=0.0001" in str(r[0])
    ]
    assert ["algo.init_temperature", "1.0", "0.0001"] in cool
    assert ["algo.lr_temperature", "0.0001", "0.0"] in cool
