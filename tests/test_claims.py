"""Claims on sweeps whose truth is planted."""

import itertools
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offrl_ray.claim import Check, Claim, Kind, own_claims
from offrl_ray.errors import UsageError
from offrl_ray.intervals import newcombe
from results_analysis import verdicts
from results_analysis.arms import Missing, Pool
from results_analysis.blocks import Fold, Table, Text
from results_analysis.claims import own, section
from results_analysis.contrasts import KINDS
from results_analysis.findings import FINDINGS
from results_analysis.load import Sweep, load
from results_analysis.verdicts import Outcome, commands, holm, judge, outcome, rule
from results_analysis.words import speaker
from tests.story import texts
from tests.synthetic import Run, sweep, write

SAY = speaker("en")
SEEDS = (0, 1, 2, 3, 4)
ALPHA, MODE = "algo.alpha", "algo.q_grad_mode"
AXES: dict[str, Sequence[Any]] = {ALPHA: [0.01, 0.05, 0.2], MODE: ["single_step", "last_5", "whole_grad"]}
BOUND = {"q_bound_low": lambda at: 0.0, "q_bound_high": lambda at: 0.1}
CHAIN = {m: i for i, m in enumerate(AXES[MODE])}
Make = Callable[[dict[str, Any], int], Run]


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Sweep]:
    number = itertools.count()

    def make(plant: Make, axes: Mapping[str, Sequence[Any]] = AXES, **more: Any) -> Sweep:
        return load(write(tmp_path / str(next(number)), sweep(plant, axes, **more)))

    return make


def noise(seed: int, *at: Any) -> float:
    """Standard normal, the same for the same seed and place."""
    return random.Random(json.dumps([*at, seed])).gauss(0, 1)


def constant(**metrics: float) -> dict[str, Callable[[float], float]]:
    return {k: (lambda at, v=v: v) for k, v in metrics.items()}


def check(kind: Kind, **more: Any) -> Check:
    defaults: dict[str, Any] = {"measure": "q_policy_mean_late", "least": 0.5}
    return Check(kind=kind, **defaults | more)


def judged(c: Check, *sweeps: Sweep) -> Outcome:
    return outcome(c, Pool(sweeps), SAY)


def by_alpha(effect: float, spread: float = 0.1) -> Make:
    """Q rises by `effect` from one alpha to the next, in every mode."""

    def plant(point: dict[str, Any], seed: int) -> Run:
        level = AXES[ALPHA].index(point[ALPHA])
        return Run(0.5, constant(q_policy_mean=effect * level + spread * noise(seed, *point.values())))

    return plant


TWO_ARMS = {"a": {ALPHA: 0.2}, "b": {ALPHA: 0.01}}
OVER = {"over": ALPHA}


@pytest.mark.parametrize(
    ("kind", "more"), [("pair", TWO_ARMS), ("ends", OVER), ("trend", OVER | {"least": 0}), ("level", {"level": 0.0})]
)
def test_planted_truth_is_found(made: Callable[..., Sweep], kind: Kind, more: dict[str, Any]) -> None:
    up, down = made(by_alpha(1.0)), made(by_alpha(-1.0))
    assert judged(check(kind, **more), up).verdict == "supported"
    assert judged(check(kind, **more), down).verdict == "refuted"
    assert judged(check(kind, direction="down", **more), down).verdict == "supported"
    assert judged(check(kind, direction="down", **more), up).verdict == "refuted"
    lost = judged(check(kind, **more), made(by_alpha(0.05, spread=3.0)))
    assert lost.verdict == "undecided"
    assert lost.contrast is not None
    few = judged(check(kind, **more), made(by_alpha(1.0), seeds=(0, 1)))
    assert few.verdict == "undecided"
    assert "2 seeds, and it takes 3 at least" in few.sentence


def test_an_effect_too_small_to_count_refutes(made: Callable[..., Sweep]) -> None:
    small = made(by_alpha(0.1, spread=0.01))
    found = judged(check("pair", **TWO_ARMS), small)
    assert found.verdict == "refuted"
    assert found.contrast is not None
    assert found.contrast.test.p < 0.01
    assert judged(check("pair", least=0.05, **TWO_ARMS), small).verdict == "supported"
    assert judged(check("pair", direction="same", **TWO_ARMS), small).verdict == "supported"
    assert judged(check("pair", direction="differs", **TWO_ARMS), small).verdict == "refuted"
    large = made(by_alpha(1.0))
    assert judged(check("pair", direction="same", **TWO_ARMS), large).verdict == "refuted"
    assert judged(check("pair", direction="differs", **TWO_ARMS), large).verdict == "supported"


@pytest.mark.parametrize(
    ("direction", "interval", "word"),
    [
        ("up", (1.26, 2.0), "supported"),
        ("up", (1.25, 2.0), "undecided"),
        ("up", (-2.0, 1.25), "refuted"),
        ("up", (1.2, 1.3), "undecided"),
        ("down", (0.0, 0.74), "supported"),
        ("down", (0.75, 2.0), "refuted"),
        ("down", (0.7, 1.0), "undecided"),
        ("same", (0.76, 1.24), "supported"),
        ("same", (1.25, 1.5), "refuted"),
        ("same", (0.5, 0.75), "refuted"),
        ("same", (0.7, 1.0), "undecided"),
        ("differs", (1.25, 1.5), "supported"),
        ("differs", (0.76, 1.24), "refuted"),
        ("differs", (0.7, 1.1), "undecided"),
    ],
)
def test_the_rule(direction: Any, interval: tuple[float, float], word: str) -> None:
    """Level 1, smallest effect that counts 0.25."""
    assert rule(check("level", direction=direction, level=1.0, least=0.25), interval) == word


def test_seeds_that_would_do_are_enough_and_fewer_are_not(made: Callable[..., Sweep]) -> None:
    """Two seeds and their mirrored twins keep effect and spread as they are, whatever their number."""
    values = [0.0, 2.0, 0.2, 1.8]

    def plant(point: dict[str, Any], seed: int) -> Run:
        return Run(0.5, constant(q_policy_mean=values[seed % 4] if point[ALPHA] == 0.2 else 0.0))

    first = judged(check("pair", **TWO_ARMS), made(plant, seeds=range(4)))
    assert first.verdict == "undecided"
    assert first.seeds is not None
    again = {n: judged(check("pair", **TWO_ARMS), made(plant, seeds=range(n))).verdict for n in (8, 24)}
    assert first.seeds in range(9, 25)
    assert again == {8: "undecided", 24: "supported"}
    assert f"about {first.seeds} seeds would decide it" in first.sentence


def heavier(effect_of_weight: float, effect_of_length: float) -> Make:
    """A longer chain weighs three times as much at equal alpha; Q follows the weight, the length, or both."""

    def plant(point: dict[str, Any], seed: int) -> Run:
        pull = 3.0 ** CHAIN[point[MODE]]
        q = effect_of_weight * math.log(point[ALPHA] * pull) + effect_of_length * CHAIN[point[MODE]]
        norms = {"grad_norm_q_policy": pull, "grad_norm_flow": 2.0}
        return Run(0.5, constant(q_policy_mean=q + 0.05 * noise(seed, *point.values()), **norms))

    return plant


LENGTH = {"over": MODE, "order": AXES[MODE]}


def test_an_effect_of_the_weight_alone_vanishes_at_equal_weight(made: Callable[..., Sweep]) -> None:
    by_weight, by_length = (made(heavier(*e), algo={"bc_weight": 1.0}) for e in ((1.0, 0.0), (0.0, 1.0)))
    raw, equal = check("ends", **LENGTH), check("matched", **LENGTH)
    assert judged(raw, by_weight).verdict == "supported"
    assert judged(equal, by_weight).verdict == "refuted"
    assert judged(raw, by_length).verdict == "supported"
    found = judged(equal, by_length)
    assert found.verdict == "supported"
    assert found.contrast is not None
    assert found.contrast.test.effect == pytest.approx(2.0, abs=0.1)


def test_a_q_term_without_weight_has_no_place_among_the_weights(made: Callable[..., Sweep]) -> None:
    def plant(point: dict[str, Any], seed: int) -> Run:
        return heavier(0.0, 1.0)({**point, ALPHA: point[ALPHA] or 1.0}, seed)

    with_zero = made(plant, AXES | {ALPHA: [0.0, 0.01, 0.05, 0.2]}, algo={"bc_weight": 1.0})
    assert judged(check("matched", **LENGTH), with_zero).verdict == "supported"


def test_weights_that_do_not_meet_cannot_be_matched(made: Callable[..., Sweep]) -> None:
    apart = made(heavier(1.0, 0.0), AXES | {ALPHA: [0.01, 0.02]}, algo={"bc_weight": 1.0})
    found = judged(check("matched", **LENGTH), apart)
    assert (found.verdict, found.contrast) == ("undecided", None)
    assert "at no effective weight of the Q term are there runs of both levels of algo.q_grad_mode" in found.sentence


def test_runs_that_differ_in_more_are_not_paired(made: Callable[..., Sweep]) -> None:
    """Arms that each have a step size of their own say nothing about alpha."""
    points = [{ALPHA: 0.2, "algo.lr": 1.0}, {ALPHA: 0.01, "algo.lr": 2.0}]
    found = judged(check("pair", **TWO_ARMS), made(by_alpha(1.0), {ALPHA: [0.01, 0.2]}, points=points))
    assert found.contrast is None
    assert "no two runs differ in algo.alpha alone: also in algo.lr" in found.sentence


def test_an_arm_where_an_axis_is_inert_stands_against_all_its_values(made: Callable[..., Sweep]) -> None:
    """One run at alpha 0, three at alpha 0.2: it counts once, against their mean."""
    points = [{ALPHA: 0.0}, *({ALPHA: 0.2, MODE: m} for m in AXES[MODE])]

    def plant(point: dict[str, Any], seed: int) -> Run:
        return Run(0.5, constant(q_policy_mean=1.0 + CHAIN.get(point.get(MODE), -1) + 0.1 * noise(seed)))

    found = judged(check("pair", a={ALPHA: 0.2}, b={ALPHA: 0}), made(plant, {ALPHA: [0.0, 0.2]} | AXES, points=points))
    assert found.contrast is not None
    assert found.contrast.test.effect == pytest.approx(2.0)
    assert [len(arm) for arm in found.contrast.arms] == [3, 1]


def test_a_run_with_several_partners_brings_its_episodes_once(made: Callable[..., Sweep]) -> None:
    """Everything succeeds: the interval is Newcombe's of 5 seeds x 20 episodes in either arm, not of three times it."""
    points = [{ALPHA: 0.0}, *({ALPHA: 0.2, MODE: m} for m in AXES[MODE])]
    sure = made(lambda point, seed: Run(1.0), {ALPHA: [0.0, 0.2]} | AXES, points=points)
    for a, b in ((0.2, 0), (0, 0.2)):
        found = judged(check("pair", measure="success_once_late", a={ALPHA: a}, b={ALPHA: b}), sure)
        assert found.contrast is not None
        assert found.contrast.test.interval == pytest.approx(newcombe((100, 100), (100, 100)))


def test_arms_that_are_equal_in_every_seed_differ_by_nothing(made: Callable[..., Sweep]) -> None:
    equal = made(by_alpha(0.0, spread=0.0))
    assert judged(check("pair", **TWO_ARMS), equal).verdict == "refuted"
    assert judged(check("pair", direction="same", **TWO_ARMS), equal).verdict == "supported"


def test_a_success_rate_is_no_more_certain_than_its_episodes(made: Callable[..., Sweep]) -> None:
    """No success: Wilson's upper end is 0.037 for 100 episodes, 0.11 for 30."""
    never = check("level", measure="success_once_late", direction="down", level=0.05, least=0.0)
    one = {ALPHA: [0.2]}
    assert judged(never, made(lambda point, seed: Run(0.0), one)).verdict == "supported"
    few = judged(never, made(lambda point, seed: Run(0.0), one, seeds=(0, 1, 2), episodes=10))
    assert few.verdict == "undecided"
    assert few.seeds in range(5, 12)


def test_a_group_that_has_not_finished_does_not_stop_the_others(tmp_path: Path) -> None:
    log = list(sweep(by_alpha(1.0), AXES))
    late = {p["trial"] for p in log[0]["points"] if p["point"][MODE] == "whole_grad"}
    kept = [r for r in log if not (r["kind"] in ("eval", "end") and r["trial"] in late)]
    found = judged(check("trend", least=0.0, **OVER), load(write(tmp_path / "a", iter(kept))))
    assert found.verdict == "supported"


def other_variant(rate: float) -> Make:
    return lambda point, seed: Run(rate, q_start=None)


ACROSS = check(
    "pair",
    measure="success_once_late",
    least=0.05,
    direction="down",
    a={"algo.name": "gaussian_bc"},
    b={"algo.name": "flow_bc"},
    best=True,
)


def test_arms_of_two_sweeps_are_compared(made: Callable[..., Sweep]) -> None:
    bad, good = (
        made(other_variant(r), {"algo.lr": [1.0, 2.0]}, variant=v) for v, r in (("gaussian_bc", 0.1), ("flow_bc", 0.9))
    )
    found = judged(ACROSS, bad, good)
    assert found.verdict == "supported"
    assert found.contrast is not None
    assert found.contrast.chosen == "2 / 2"
    unlike = made(other_variant(0.9), {"algo.lr": [1.0]}, variant="flow_bc", seeds=(7, 8, 9))
    unpaired = judged(ACROSS, bad, unlike)
    assert unpaired.verdict == "supported"
    assert unpaired.contrast is not None
    assert unpaired.contrast.test.method.startswith("Welch")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data": [{"file": "other.h5", "digest": "e" * 64, "episodes": 9}]}, "data"),
        ({"env.max_steps": 50}, "env.max_steps"),
        ({"eval.episodes": 40}, "eval.episodes"),
        ({"eval.seed": 1}, "eval.seed"),
    ],
)
def test_arms_that_saw_other_things_are_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    folders = []
    for i, variant in enumerate(("gaussian_bc", "flow_bc")):
        log = list(sweep(other_variant(0.9 * i), {"algo.lr": [1.0]}, variant=variant))
        if i:
            for key, value in change.items():
                tree = log[0] if key == "data" else log[0]["points"][0]["config"][key.split(".")[0]]
                tree[key.split(".")[-1]] = value
        folders.append(load(write(tmp_path / variant, iter(log))))
    found = judged(ACROSS, *folders)
    assert (found.verdict, found.contrast) == ("undecided", None)
    assert f"the arms cannot be compared: {told} differ" in found.sentence


def test_a_stopped_seed_is_no_success(made: Callable[..., Sweep]) -> None:
    """All seeds that go on succeed; two of five are stopped in one arm."""

    def plant(point: dict[str, Any], seed: int) -> Run:
        stopped = 0.5 if point[ALPHA] == 0.2 and seed < 2 else None
        return Run(1.0, constant(q_policy_mean=1.0), stopped=stopped)

    two = made(plant, {ALPHA: [0.01, 0.2]})
    found = judged(check("pair", measure="success_once_late", **TWO_ARMS), two)
    assert found.contrast is not None
    assert found.contrast.test.effect == pytest.approx(-0.4)
    assert found.contrast.test.n == 5
    claim = Claim("x", "x", [check("pair", measure="success_once_late", **TWO_ARMS)])
    (verdict,) = judge([claim], Pool([two]), SAY)
    stopped = "2 of 10 seeds' runs were stopped by a rule: no success, or the reports up to the stop."
    assert stopped in verdict.caveats


def test_an_arm_that_was_stopped_altogether_fails_altogether(made: Callable[..., Sweep]) -> None:
    def plant(point: dict[str, Any], seed: int) -> Run:
        return Run(1.0, constant(q_policy_mean=1.0), stopped=0.5 if point[ALPHA] == 0.2 else None)

    found = judged(check("pair", measure="success_once_late", **TWO_ARMS), made(plant, {ALPHA: [0.01, 0.2]}))
    assert found.verdict == "refuted"
    assert found.contrast is not None
    assert found.contrast.test.effect == pytest.approx(-1.0)
    assert "Newcombe" in found.contrast.test.method


def test_a_stopped_seed_keeps_its_reports_up_to_the_stop(made: Callable[..., Sweep]) -> None:
    """Q is 1 until it is NaN; the last report before counts, and not the NaN."""

    def plant(point: dict[str, Any], seed: int) -> Run:
        broken = seed == 0 and point[ALPHA] == 0.2
        q = (lambda at: 10 * at if at < 0.5 else math.nan) if broken else (lambda at: 1.0)
        return Run(0.5, {"q_policy_mean": q}, stopped=0.5 if broken else None)

    pool = Pool([made(plant, {ALPHA: [0.01, 0.2]})])
    values = {r.settings[ALPHA]: pool.values(r, "q_policy_mean_late") for r in pool.runs}
    assert values[0.2] == pytest.approx({0: 4.0, 1: 1, 2: 1, 3: 1, 4: 1})
    assert 0 not in {r.settings[ALPHA]: pool.values(r, "return_late") for r in pool.runs}[0.2]


def test_seeds_that_have_not_finished_are_left_out_and_told(tmp_path: Path) -> None:
    log = [r for r in sweep(by_alpha(1.0), {ALPHA: [0.01, 0.2]}) if not (r.get("seed") == 4 and r.get("step", 0) > 500)]
    (verdict,) = judge(
        [Claim("x", "x", [check("pair", **TWO_ARMS)])], Pool([load(write(tmp_path / "a", iter(log)))]), SAY
    )
    assert verdict.n == 4
    assert "2 of 10 seeds' runs have not finished: left out." in verdict.caveats


def test_a_metric_that_no_run_has_is_told(made: Callable[..., Sweep]) -> None:
    found = judged(check("pair", measure="no_such_metric", **TWO_ARMS), made(by_alpha(1.0)))
    assert found.contrast is None
    assert "cpql does not record no_such_metric" in found.sentence


def test_every_value_must_hold_by_itself(made: Callable[..., Sweep]) -> None:
    """The mean over the modes would hold; single_step by itself does not."""

    def plant(point: dict[str, Any], seed: int) -> Run:
        return Run(0.5, constant(q_policy_mean=CHAIN[point[MODE]] + 0.1 * noise(seed, *point.values())))

    claim = Claim("x", "x", [check("level", level=0.3, least=0.0, each=MODE, values=3)])
    (verdict,) = judge([claim], Pool([made(plant)]), SAY)
    assert verdict.verdict == "refuted"
    assert verdict.effect == pytest.approx(0.0, abs=0.2)
    (few,) = judge([claim], Pool([made(plant, AXES | {MODE: ["last_5"]})]), SAY)
    assert (few.verdict, few.asked) == ("undecided", False)
    assert 'only algo.q_grad_mode = "last_5", and it takes 3 values' in few.details[0]


def test_null_sweeps_hardly_ever_support() -> None:
    """Two arms without any difference, 200 times five seeds: the rule allows 2.5 % at any effect above 0."""
    draws = np.random.default_rng(0)
    words = []
    for _ in range(200):
        values = draws.normal(size=(2, 5))
        test = KINDS["pair"](check("pair", least=0.0, **TWO_ARMS), _two_arms(values)).test
        words.append(verdicts._word(check("pair", least=0.0), test))
    assert words.count("supported") / len(words) <= 0.05 + 0.02
    assert words.count("supported") > 0


class _Fixed(Pool):
    def __init__(self, runs: Sequence[Any], values: Sequence[Mapping[int, float]]):
        self.runs, self._fixed, self._varying = list(runs), values, [ALPHA]

    def values(self, run: Any, name: str) -> Any:
        return self._fixed[self.runs.index(run)]


def _two_arms(values: np.ndarray) -> Pool:
    from results_analysis.arms import Run as Arm
    from results_analysis.load import Trial

    arms = [
        Arm(Trial(str(a), {}, {"algo": {"name": "cpql"}}, 1, [], None), {ALPHA: a}, frozenset(), (), "")
        for a in (0.2, 0.01)
    ]
    return _Fixed(arms, [dict(enumerate(v)) for v in values.tolist()])


def test_holm_against_r() -> None:
    """R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")."""
    assert holm([0.01, None, 0.04, 0.03, 0.005]) == [
        pytest.approx(0.03),
        None,
        pytest.approx(0.06),
        pytest.approx(0.06),
        pytest.approx(0.02),
    ]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_supported_claim_that_correction_undoes_says_so(made: Callable[..., Sweep]) -> None:
    slight = Claim("a", "slight", [check("pair", least=0.0, **TWO_ARMS)])
    rest = [Claim(str(i), "rest", [check("pair", least=9.0, **TWO_ARMS)]) for i in range(30)]
    found = judge([slight, *rest], Pool([made(by_alpha(0.1, spread=0.2))]), SAY)
    assert found[0].verdict == "supported"
    assert found[0].p is not None
    assert found[0].p < 0.05 < (found[0].holm or 0)
    assert found[0].caveats[0].startswith("Not significant after Holm's correction for 31 claims: p = ")


def test_all_checks_must_hold_and_the_one_that_does_not_is_shown(made: Callable[..., Sweep]) -> None:
    yes, no = check("pair", **TWO_ARMS), check("pair", direction="down", **TWO_ARMS)
    open_ = check("pair", where={"algo.lr": 3}, **TWO_ARMS)
    claims = [Claim("x", "x", c) for c in ([yes, yes], [yes, no, open_], [yes, open_])]
    found = judge(claims, Pool([made(by_alpha(1.0))]), SAY)
    assert [v.verdict for v in found] == ["supported", "refuted", "undecided"]
    assert [v.asked for v in found] == [True, False, False]
    assert [v.heard for v in found] == [True] * 3
    assert found[0].effect == pytest.approx(2.0, abs=0.3)
    assert found[2].effect is None
    assert "not asked by these sweeps: no run with algo.lr = 3" in found[2].details[1]


GOOD: dict[str, Any] = {
    "id": "mine",
    "text": "Q {really} rises with alpha.",
    "checks": [{"kind": "ends", "measure": "q_policy_mean_late", "over": ALPHA, "least": 0.5}],
    "caveats": ["{odd}"],
    "decide": "more {seeds}",
}


def test_a_sweep_declares_claims_of_its_own(made: Callable[..., Sweep]) -> None:
    ours = made(by_alpha(1.0), claims=[GOOD])
    (claim,), problems = own([ours])
    assert not problems
    where = {"algo.name": "cpql"}
    assert claim.checks == [Check(kind="ends", measure="q_policy_mean_late", over=ALPHA, least=0.5, where=where)]
    blocks = section([ours], SAY).blocks
    (table,) = (b for b in blocks if isinstance(b, Table))
    assert table.rows[0][:3] == ("mine", "Q {really} rises with alpha.", "supported")
    fold = next(b for b in blocks if isinstance(b, Fold))
    assert (fold.title, fold.kind) == ("mine supported: Q {really} rises with alpha.", "good")
    assert "{odd}" in [b.text for b in fold.blocks if isinstance(b, Text)]
    poor = section([made(by_alpha(1.0), claims=[GOOD], seeds=(0, 1))], SAY)
    assert "What would decide it: more {seeds}" in texts(poor)


def test_a_claim_of_their_own_that_no_run_answers_comes_last_and_says_why(made: Callable[..., Sweep]) -> None:
    lost = {**GOOD, "id": "lost", "decide": "", "checks": [{**GOOD["checks"][0], "where": {ALPHA: 9.0}}]}
    found = section([made(by_alpha(1.0), claims=[lost, GOOD])], SAY)
    (table,) = (b for b in found.blocks if isinstance(b, Table))
    first, last = (b for b in found.blocks if isinstance(b, Fold))
    silent = [b.text.partition(": ")[0] for b in last.blocks if b.kind == "plain"]
    assert first.title.startswith("mine supported")
    assert last.title == f"{len(silent)} claims that these sweeps do not ask, and the runs that would"
    assert [row[0] for row in table.rows] == ["mine", *silent]
    assert last.blocks[0].text.startswith("lost: Q {really} rises with alpha. q_policy_mean_late: ")
    assert "not asked by these sweeps: no run with" in last.blocks[0].text
    assert sum(b.kind == "code" for b in last.blocks) == len(silent) - 1 > 3


def broken(**changes: Any) -> list[dict[str, Any]]:
    return [{**GOOD, "checks": [{**GOOD["checks"][0], **changes}]}]


@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        ("no list", "claims must be a list of claims, but is 'no list'"),
        (["text"], "claims[0] must be a dict with id, text and checks, but is 'text'"),
        ([{**GOOD, "id": 3}], "claims[0].id must be a text, but is 3"),
        ([{**GOOD, "texts": "x"}], "claims[0]: unknown key 'texts'; did you mean text?"),
        ([{**GOOD, "source": 3}], "claims[0].source must be a text, but is 3; leave it out if there is none"),
        ([{**GOOD, "caveats": "x"}], "claims[0].caveats must be a list of texts, but is 'x'"),
        ([{**GOOD, "checks": []}], "claims[0].checks must be a list of one check or more, but is []"),
        ([GOOD, GOOD], "claims: ids must differ, but 'mine' stands twice; rename one"),
        ([{**GOOD, "checks": [3]}], "claims[0].checks[0] must be a dict with kind and measure, but is 3"),
        (broken(kind="mean"), "checks[0].kind must be one of pair, ends, trend, matched, level, but is 'mean'"),
        (broken(direction="left"), "checks[0].direction must be one of up, down, same, differs, but is 'left'"),
        (broken(kind="level"), "checks[0] needs 'level' (kind 'level'), but has only kind, measure, over, least"),
        (broken(meassure="x"), "checks[0]: unknown key 'meassure'; did you mean measure?"),
        (broken(measure=3), "checks[0].measure must be a str, and not empty, but is 3"),
        (broken(least=-1), "checks[0].least must be >= 0, but is -1; `direction` says which way"),
        (broken(least="much"), "checks[0].least must be a number, but is 'much'"),
        (broken(best="yes"), "checks[0].best must be a bool, and not empty, but is 'yes'"),
        (broken(where=3), "checks[0].where must be a dict {setting: value}, but is 3"),
        (
            broken(where={"alpha": 3}),
            "checks[0].where must name dotted settings, but has 'alpha'; for example algo.alpha",
        ),
        (broken(where={ALPHA: {"over": 3}}), "checks[0].where.algo.alpha must be a value, a list or a range of above"),
    ],
)
def test_a_declaration_that_is_wrong_is_told(made: Callable[..., Sweep], declared: Any, problem: str) -> None:
    with pytest.raises(UsageError) as e:
        own_claims(declared, "claims")
    assert len(e.value.problems) == 1
    assert problem in e.value.problems[0]
    ours = made(by_alpha(1.0), claims=declared)
    first = section([ours], SAY).blocks[0]
    assert isinstance(first, Text)
    assert problem in first.text


def test_all_problems_of_a_declaration_are_told_at_once() -> None:
    with pytest.raises(UsageError) as e:
        own_claims([{**GOOD, "id": 3, "checks": broken(least=-1, kind="x")[0]["checks"]}, 7], "claims")
    assert len(e.value.problems) == 4


def test_a_setting_that_no_run_has_is_told(made: Callable[..., Sweep]) -> None:
    first, *rest = section([made(by_alpha(1.0), claims=broken(over="algo.alhpa"))], SAY).blocks
    assert "mine" not in [row[0] for b in rest if isinstance(b, Table) for row in b.rows]
    assert isinstance(first, Text)
    assert first.text.endswith(
        "claims: mine: no run has a setting 'algo.alhpa'; did you mean algo.alpha or algo.gamma?"
    )


def test_undecided_claims_come_with_a_command(made: Callable[..., Sweep]) -> None:
    (verdict,) = judge([_finding("C2")], Pool([made(by_alpha(0.05, spread=0.1), preset="full")]), SAY)
    assert verdict.verdict == "undecided"
    assert not verdict.decide
    assert verdict.run[0].startswith(
        "python tune_configs/tune_cpql.py --preset full --name c2-cpql --set train.seeds=0,"
    )
    assert "eval.every" not in verdict.run[0]
    assert "eval.every=250" in commands(_finding("C2").ask, "C2", {})[0]


def _finding(name: str) -> Claim:
    from results_analysis.findings import FINDINGS

    return next(c for c in FINDINGS if c.id == name)


def test_missing_is_an_answer_and_no_crash(made: Callable[..., Sweep]) -> None:
    pool = Pool([made(by_alpha(1.0))])
    for c in (check("trend", over="algo.lr"), check("ends", over="algo.lr"), check("matched", over="algo.lr")):
        with pytest.raises(Missing):
            KINDS[c.kind](c, pool)


def test_levels_without_an_order_are_told(made: Callable[..., Sweep]) -> None:
    mixed = made(other_variant(0.5), {"algo.grad_clip": [None, 1.0, 2.0]})
    found = judged(check("ends", over="algo.grad_clip", measure="success_once_late"), mixed)
    assert "the levels of algo.grad_clip have no order of their own: give it as `order`" in found.sentence
    given = check("ends", over="algo.grad_clip", measure="success_once_late", order=[1.0, 2.0, None])
    assert judged(given, mixed).contrast is not None


def test_a_sweep_may_be_judged_while_it_runs(tmp_path: Path) -> None:
    """Cut off anywhere: undecided or decided, but never an error."""
    log = list(sweep(heavier(1.0, 0.0), AXES, algo={"bc_weight": 1.0, "q_norm": "none", "bounded_critic": False}))
    for end in range(2, len(log), 97):
        found = section([load(write(tmp_path / str(end), iter(log[:end])))], SAY)
        assert any(isinstance(b, Table) for b in found.blocks)


def test_the_same_run_of_two_sweeps_counts_once_the_one_with_more_seeds(made: Callable[..., Sweep]) -> None:
    for order in (1, -1):
        runs = Pool([made(by_alpha(1.0)), made(by_alpha(1.0), seeds=(0, 1))][::order]).runs
        assert [len(r.trial.seeds) for r in runs] == [5] * 9


def test_partners_agree_in_what_is_inert_for_others_alone(made: Callable[..., Sweep]) -> None:
    """The mode is inert at alpha 0, and nowhere else."""
    cells = [{ALPHA: 0.0}, *({ALPHA: 0.2, MODE: m} for m in AXES[MODE])]
    points = [c | {"algo.lr": lr} for c in cells for lr in (1.0, 2.0)]
    pool = Pool([made(lambda point, seed: Run(0.5), {ALPHA: [0.0, 0.2], "algo.lr": [1.0, 2.0]} | AXES, points=points)])
    found = pool.partners(pool.select({"algo.lr": 2.0}), pool.select({"algo.lr": 1.0}), {"algo.lr"})
    assert len(found) == 4
    assert all(a.settings.get(k) == b.settings.get(k) for a, b in found for k in (ALPHA, MODE))


def test_p_of_no_effect_means_nothing_to_a_claim_of_no_effect(made: Callable[..., Sweep]) -> None:
    claims = [Claim("x", "x", [check("pair", direction=d, **TWO_ARMS)]) for d in ("same", "differs")]
    same, differs = judge(claims, Pool([made(by_alpha(0.1, spread=0.01))]), SAY)
    assert (same.p, same.holm) == (None, None)
    assert differs.p is not None


def test_the_run_that_would_decide_has_the_levels_that_left_it_open(made: Callable[..., Sweep]) -> None:
    def noisy(point: dict[str, Any], seed: int) -> Run:
        return Run(0.5 + 0.1 * noise(seed, *point.values()))

    plain = {"q_norm": "none", "bounded_critic": False}
    swept = made(noisy, {ALPHA: [0, 0.01, 0.2, 5], MODE: ["last_5", "whole_grad"]}, seeds=(0, 1, 2), algo=plain)
    claims = {v.claim.id: v for v in judge(FINDINGS, Pool([swept]), SAY)}
    assert claims["C6"].verdict == claims["C8"].verdict == "undecided"
    assert all("--set algo.alpha=0,0.01,0.05,0.2,5" in run for run in claims["C6"].run)
    assert not any("0.2,5" in run for run in claims["C8"].run)
