"""The seeds' findings: the runs that they ask for exist, hold what they need, and decide them either way."""

import ast
import inspect
import json
import math
import runpy
import shlex
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from offrl_ray.algos import VARIANTS
from offrl_ray.claim import Ask, Check, Claim, Control
from offrl_ray.config import parse_assignments, to_dict
from offrl_ray.sweep.plan import Plan, plan
from offrl_ray.sweep.state import NAME
from results_analysis import arms, claims, contrasts, verdicts, words
from results_analysis.arms import VARIANT, Pool, _flat
from results_analysis.claims import section
from results_analysis.findings import FINDINGS
from results_analysis.load import Sweep, load
from results_analysis.measures import CONFIGURED, MEASURES, measure
from results_analysis.verdicts import commands, judge, outcome
from tests.conftest import REPOSITORY
from tests.story import flat
from tests.synthetic import Run, sweep, write
from tests.test_claims import noise
from tests.toys import algorithm, generator, spec_of, steps

SAY = words.speaker("en")
BY_ID = {c.id: c for c in FINDINGS}
CLAIM = pytest.mark.parametrize("name", BY_ID)
CONTROLS = [(c.id, i) for c in FINDINGS for i in range(len(c.controls))]
PRESET = pytest.mark.parametrize("preset", ["quick", "full"])
Settings = dict[str, Any]
World = Callable[[Settings], dict[str, Any]]
"""Settings of a run -> success, q_start, returns, and train metrics, each a number or a curve over 0..1."""


def test_all_findings_of_the_documents_are_here_once() -> None:
    counts = {"C": 12, "S": 10, "Q": 5, "R": 6}
    assert [c.id for c in FINDINGS] == [f"{k}{i + 1}" for k, n in counts.items() for i in range(n)]


def all_checks(claim: Claim) -> Iterator[Check]:
    yield from claim.checks
    yield from (c.check for c in claim.controls)


def variants_of(check: Check) -> list[tuple[str, Mapping[str, Any]]]:
    """Variants that must have the check's measure, each with what the check says of them."""
    found = []
    for arm in (check.a, check.b) if VARIANT in check.a else ({},):
        chosen = {**check.where, **arm}
        named = chosen[VARIANT]
        found += [(n, chosen) for n in (named if isinstance(named, list) else [named])]
    return found


def logged(variant: str, chosen: Mapping[str, Any]) -> set[str]:
    mode = chosen.get("algo.actor_loss")
    alg, hp = algorithm(variant, {"actor_loss": mode} if isinstance(mode, str) else {})
    ((batch, noise_),) = steps(alg, 1, spec=spec_of(variant))
    return set(alg.update(alg.init(generator()), batch, noise_, hp)[1])


@CLAIM
def test_every_metric_of_a_claim_is_logged_by_its_variant(name: str) -> None:
    for check in all_checks(BY_ID[name]):
        for variant, chosen in variants_of(check):
            assert variant in VARIANTS
            needed = {*(CONFIGURED.get(check.measure) or measure(check.measure)).metrics}
            needed |= set(CONFIGURED["effective_q_weight"].metrics) if check.kind == "matched" else set()
            assert needed <= logged(variant, chosen), check.measure
            assert needed or check.measure in MEASURES


def asked(line: str) -> tuple[Plan, str, str]:
    """What a command would run, by the parsers that a sweep script has; its folder's name and its data file."""
    python, script, *rest = shlex.split(line)
    assert python == "python"
    options = list(zip(rest[::2], rest[1::2], strict=True))
    items = [value for option, value in options if option == "--set"]
    named = {option: value for option, value in options if option != "--set"}
    assert named.keys() == {"--preset", "--name"}
    assert NAME.fullmatch(named["--name"])
    declared = runpy.run_path(str(REPOSITORY / script))["SWEEP"]
    assignments, problems = parse_assignments(items)
    assert not problems
    assert len(assignments) == len(items)
    files = [str(assignments.get("data.files", "demos.h5"))]
    return plan(declared, named["--preset"], assignments, files), named["--name"], files[0]


@PRESET
@CLAIM
def test_what_would_decide_is_a_real_command(name: str, preset: str) -> None:
    claim = BY_ID[name]
    assert claim.ask
    presets = dict.fromkeys(VARIANTS, preset)
    found = commands(claim.ask, claim.id, presets)
    found += [line for c in claim.controls for line in commands(c.ask, f"{name}-{c.about[0]}", presets)]
    assert len({asked(line)[1] for line in found[: len(claim.ask)]}) == len(claim.ask)
    for line in found:
        assert {len(p.cfg.train.seeds) for p in asked(line)[0].points} == {5}


def ran(folder: Path, asks: Sequence[Ask], world: World) -> list[Sweep]:
    """The sweeps of some commands, as if they had been run in a world."""
    return [_ran(folder, line, world) for line in commands(asks, "x", {})]


def _ran(folder: Path, line: str, world: World) -> Sweep:
    work, name, file = asked(line)
    variant = work.points[0].cfg.algo.name
    settings = {json.dumps(p.axes): dict(_flat(to_dict(p.cfg))) for p in work.points}
    own = {k: world(s) for k, s in settings.items()}

    def make(point: Settings, seed: int) -> Run:
        truth, key = dict(own[json.dumps(point)]), name + json.dumps(point)
        metrics = {k: v for k, v in truth.items() if k not in ("success", "q_start", "returns")}
        metrics |= {"q_bound_low": lambda at: 0.0, "q_bound_high": lambda at: 0.1}
        q = truth.get("q_start", 0.0) + 1e-3 * noise(seed, key)
        return Run(truth.get("success", 0.5), {k: _curve(v, seed, k, key) for k, v in metrics.items()}, q)

    seeds = work.points[0].cfg.train.seeds
    points = [p.axes for p in work.points]
    log = list(sweep(make, work.axes, points=points, variant=variant, seeds=seeds, episodes=50, base=work.base))
    for told, p in zip(log[0]["points"], work.points, strict=True):
        told["config"] = json.loads(json.dumps(to_dict(p.cfg)))
    if file != "demos.h5":
        log[0]["data"] = [{"file": file, "digest": "e" * 64, "episodes": 1000}]
    at = {p["trial"]: json.dumps(p["point"]) for p in log[0]["points"]}
    for r in log:
        if r["kind"] == "eval" and (returns := own[at[r["trial"]]].get("returns")) is not None:
            mean = returns(r["step"] / 1000) if callable(returns) else returns
            r["return"] = [mean + noise(r["seed"], r["trial"], r["step"])] * 50
    return load(write(folder / name, iter(log)))


def _curve(value: Any, *place: Any) -> Callable[[float], float]:
    return value if callable(value) else lambda at: value + 1e-3 * noise(0, *place)


def rank(s: Settings, key: str, *levels: Any) -> int:
    return levels.index(s[key])


def alpha(s: Settings) -> int:
    return rank(s, "algo.alpha", 0.0, 0.01, 0.05, 0.2)


def chain(s: Settings) -> int:
    return rank(s, "algo.q_grad_mode", "single_step", "last_k", "whole_grad")


def cql_alpha(s: Settings) -> int:
    return rank(s, "algo.cql_alpha", 0.0, 0.1, 0.5, 1.0, 2.0, 5.0)


def where(test: Callable[[Settings], Any], **values: tuple[float, float]) -> World:
    """The first of each pair where the test holds, the second elsewhere."""
    return lambda s: {k: v[0] if test(s) else v[1] for k, v in values.items()}


def always(**values: Any) -> World:
    return lambda s: values


WORLDS: dict[str, tuple[World, World]] = {
    "C1": (always(q_policy_mean=lambda at: 5 * at), always(q_policy_mean=lambda at: 0.08 * at)),
    "C2": (lambda s: {"q_policy_mean": 0.05 * alpha(s)}, always(q_policy_mean=0.08)),
    "C3": (lambda s: {"q_policy_mean": 0.05 * chain(s)}, always(q_policy_mean=0.08)),
    "C4": (lambda s: {"critic_loss": 10.0 ** (alpha(s) + chain(s))}, always(critic_loss=1.0)),
    "C5": (
        lambda s: {"policy_loss": 1 - 0.1 * alpha(s) - 0.1 * chain(s)},
        lambda s: {"policy_loss": 1 + 0.1 * alpha(s) + 0.1 * chain(s)},
    ),
    "C6": (
        lambda s: {"success": 0.95 - 0.15 * alpha(s) - 0.15 * chain(s)},
        lambda s: {"success": 0.1 + 0.15 * alpha(s) + 0.15 * chain(s)},
    ),
    "C7": (
        where(lambda s: s["algo.q_norm"] == "coinflip", success=(0.8, 0.2), q_policy_mean=(0.02, 0.09)),
        always(success=0.5, q_policy_mean=0.05),
    ),
    "C8": (
        lambda s: {"success": 0.2 + 0.3 * (s["algo.bc_weight"] == 2) + 0.3 * (s["algo.alpha"] == 0.001)},
        always(success=0.5),
    ),
    "C9": (
        where(lambda s: s["algo.random_action_penalty"] > 0, success=(0.8, 0.2), q_policy_mean=(0.02, 0.09)),
        always(success=0.5, q_policy_mean=0.05),
    ),
    "C10": (where(lambda s: s["algo.grad_clip"] == 1, success=(0.8, 0.2)), always(success=0.5)),
    "C11": (
        lambda s: {"success": 0.8 if s["algo.q_target_clip"] == 100 else 0.2, "td_target_clipped": 0.5},
        always(success=0.5, td_target_clipped=lambda at: 0.0),
    ),
    "C12": (where(lambda s: alpha(s) < 2, success=(0.8, 0.3)), where(lambda s: alpha(s) == 0, success=(0.2, 0.8))),
    "S1": (always(success=0.0), where(lambda s: s["algo.actor_loss"] == "td3bc", success=(0.5, 0.0))),
    "S2": (
        always(actor_loss=lambda at: 5 - 10 * at, entropy=lambda at: 10 - 50 * at),
        always(actor_loss=lambda at: 5 - 10 * at, entropy=lambda at: 10.0),
    ),
    "S3": (always(actor_q=lambda at: 5 + 95 * at), always(actor_q=0.08)),
    "S4": (always(actor_lam=lambda at: 0.35 * (1 - at)), always(actor_lam=1 / 3)),
    "S5": (always(bc_loss=0.8), where(lambda s: s[VARIANT] == "sac", bc_loss=(0.8, 0.01))),
    "S6": (
        always(awr_advantage_mean=-0.05, awr_weights_mean=1.5, entropy=-60.0),
        always(awr_advantage_mean=-0.05, awr_weights_mean=1.5, entropy=10.0),
    ),
    "S7": (
        always(temperature=lambda at: math.exp(1e-4 * 1000 * at), entropy=-100.0, target_entropy=-28.0),
        always(temperature=lambda at: math.exp(0.5e-4 * 1000 * at), entropy=-100.0, target_entropy=-28.0),
    ),
    "S8": (always(q_std=3.0, iql_weights_max=100.0), always(q_std=3.0, iql_weights_max=10.0)),
    "S9": (
        where(lambda s: s[VARIANT] == "gaussian_bc", success=(0.1, 0.8)),
        where(lambda s: s[VARIANT] == "gaussian_bc", success=(0.9, 0.7)),
    ),
    "S10": (
        where(lambda s: s[VARIANT] == "awcp", success=(0.8, 0.1)),
        where(lambda s: s[VARIANT] == "awcp", success=(0.7, 0.9)),
    ),
    "Q1": (
        lambda s: {"q_policy_mean": 1 - 0.1 * cql_alpha(s), "returns": 150.0 if cql_alpha(s) else 10.0},
        lambda s: {"q_policy_mean": 1 - 0.1 * cql_alpha(s), "returns": 150.0},
    ),
    "Q2": (
        where(lambda s: cql_alpha(s) == 3, returns=(150.0, 100.0)),
        lambda s: {"returns": 50.0 + 20 * cql_alpha(s)},
    ),
    "Q3": (always(returns=lambda at: 150.0 if at < 0.5 else 10.0), always(returns=100.0)),
    "Q4": (always(success=0.8), always(success=0.8, q_start=1.0)),
    "Q5": (
        where(lambda s: s["algo.cql_alpha"] > 0, success=(0.6, 0.1)),
        where(lambda s: s["algo.cql_alpha"] > 0, success=(0.1, 0.2)),
    ),
    "R1": (where(lambda s: s["algo.num_min"] == 2, q_start=(0.1, 0.5)), always(q_start=0.1)),
    "R2": (always(success=0.9, q_start=0.055), always(success=0.9, q_start=0.5)),
    "R3": (
        lambda s: {"q_policy_mean": 0.1 + 0.4 * s["algo.backup_entropy"], "entropy": 1e3 * s["algo.init_temperature"]},
        lambda s: {"q_policy_mean": 0.1, "entropy": 1e3 * s["algo.init_temperature"]},
    ),
    "R4": (
        where(lambda s: s["online.demo_ratio"] == 0.5, success=(0.8, 0.2)),
        where(lambda s: s["online.demo_ratio"] == 0.5, success=(0.2, 0.4)),
    ),
    "R5": (
        where(lambda s: s["algo.cta_ratio"] > 1, success=(0.8, 0.2)),
        where(lambda s: s["algo.cta_ratio"] > 1, success=(0.2, 0.3)),
    ),
    "R6": (where(lambda s: s["data.act_horizon"] > 1, q_start=(0.5, 0.1)), always(q_start=0.1)),
}  # fmt: skip


@pytest.mark.parametrize(("side", "verdict"), [(0, "supported"), (1, "refuted")])
@CLAIM
def test_what_would_decide_does_decide(tmp_path: Path, name: str, side: int, verdict: str) -> None:
    claim = BY_ID[name]
    (found,) = judge([claim], Pool(ran(tmp_path, claim.ask, WORLDS[name][side])), SAY)
    assert found.verdict == verdict, found.details
    assert found.asked
    assert not found.decide
    assert not found.run


@pytest.mark.parametrize(("name", "i"), CONTROLS)
def test_what_a_control_asks_for_holds_its_arms(tmp_path: Path, name: str, i: int) -> None:
    claim = BY_ID[name]
    control: Control = claim.controls[i]
    world = always(actor_q=0.1, q_policy_mean=0.1, critic_loss=1.0, grad_norm_policy=1.0, td_target_clipped=0.1,
                   grad_norm_q_policy=1.0, grad_norm_flow=1.0)  # fmt: skip
    found = outcome(control.check, Pool(ran(tmp_path, [*claim.ask, *control.ask], world)), SAY)
    assert found.contrast is not None, found.sentence


def test_the_effect_that_vanishes_at_equal_weight_is_told(tmp_path: Path) -> None:
    """Q follows the effective weight; a longer chain weighs more."""

    def by_weight(s: Settings) -> dict[str, Any]:
        if s["algo.alpha"] == 0:
            return {"q_policy_mean": 0.0}
        pull = 4.0 ** chain(s)
        return {
            "q_policy_mean": 0.05 * math.log(s["algo.alpha"] * pull),
            "grad_norm_q_policy": lambda at: pull,
            "grad_norm_flow": lambda at: 1.0,
        }

    claim = BY_ID["C3"]
    (found,) = judge([claim], Pool(ran(tmp_path, claim.ask, by_weight)), SAY)
    assert found.verdict == "supported"
    control = claim.controls[0]
    assert any(c.text.startswith(control.about) and c.text.endswith(control.fails) for c in found.controls)


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_no_effect_is_said_to_vanish_where_there_was_none(tmp_path: Path, lang: words.Lang) -> None:
    """Q is the same at every length of the chain, which weighs more all the same: refuted, raw and at equal weight."""

    def alike(s: Settings) -> dict[str, Any]:
        return {"q_policy_mean": 0.0, "grad_norm_q_policy": 4.0 ** chain(s), "grad_norm_flow": 1.0}

    claim, say = BY_ID["C3"], words.speaker(lang)
    (found,) = judge([claim], Pool(ran(tmp_path, claim.ask, alike)), say)
    assert found.verdict == "refuted"
    (told,) = (c.text for c in found.controls)
    assert say(claim.controls[0].fails) not in told
    assert told.endswith(say("The claim itself is not supported: there is no effect that this could explain."))


def test_a_judged_claim_opens_into_lines_and_commands(tmp_path: Path) -> None:
    claim = BY_ID["C3"]
    found = section(ran(tmp_path, claim.ask, always(q_policy_mean=0.1)), SAY)
    (table,) = (b for b in found.blocks if isinstance(b, claims.Table))
    words = {row[0]: row[2] for row in table.rows}
    folds = {b.title.split()[0]: b for b in found.blocks if isinstance(b, claims.Fold)}
    one, other = folds["C3"], folds["C6"]
    assert (one.title, one.kind) == (f"C3 refuted: {claim.text}", "bad")
    assert sum(b.text.endswith(").") for b in one.blocks if b.kind == "plain") == len(claim.checks)
    beside = [b.text for b in one.blocks if b.kind == "warning"]
    assert all(any(t.startswith(c.about) for t in beside) for c in claim.controls)
    assert any(b.kind == "code" and "--name c6-control" in b.text for b in other.blocks)
    assert (words["C3"].kind, str(words["C3"])) == ("bad", "refuted")
    assert list(words).index("C7") > max(list(words).index(k) for k in folds if k in words)


def test_a_control_that_was_not_run_is_told_with_its_command(tmp_path: Path) -> None:
    claim = BY_ID["C6"]
    (found,) = judge([claim], Pool(ran(tmp_path, claim.ask, WORLDS["C6"][0])), SAY)
    (bounded,) = (c for c in found.controls if "cannot overestimate" in c.text)
    assert "not controlled for" in bounded.text
    assert "--set algo.bounded_critic=true" in bounded.run[0]


def test_claims_about_other_variants_are_listed_and_not_judged(tmp_path: Path) -> None:
    claim = BY_ID["Q4"]
    found = section(ran(tmp_path, claim.ask, WORLDS["Q4"][0]), SAY)
    table = next(b for b in found.blocks if isinstance(b, claims.Table))
    assert [row[0] for row in table.rows] == ["Q4", "Q5"]
    assert found.blocks[-1].text == (
        "About variants that are not in these sweeps, and not judged: "
        + ", ".join(c.id for c in FINDINGS if c.id not in ("Q4", "Q5"))
        + "."
    )


def spoken() -> set[str]:
    """All that the findings and the modules that judge them have to say."""
    found = {"supported", "refuted", "undecided", *claims.COLUMNS}
    for c in FINDINGS:
        found |= {c.text, *c.caveats, *filter(None, [c.decide])}
        found |= {t for control in c.controls for t in (control.about, control.holds, control.fails)}
    for module in (arms, claims, contrasts, verdicts):
        found |= texts(ast.parse(inspect.getsource(module)))
    return found


def texts(tree: ast.Module) -> set[str]:
    """First arguments of say and Missing, as they stand there or in the variable just before; and {word: text}."""
    found: set[str] = set()
    for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
        named = {t.id: n.value for n in ast.walk(function) if isinstance(n, ast.Assign) for t in n.targets
                 if isinstance(t, ast.Name)}  # fmt: skip
        for call in (n for n in ast.walk(function) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)):
            if call.func.id in ("say", "Missing") and call.args:  # type: ignore[attr-defined]
                said = call.args[0]
                said = named.get(said.id, said) if isinstance(said, ast.Name) else said
                if isinstance(said, ast.Constant):
                    found.add(said.value)
    return found | {"These runs do not tell."}


def test_chinese_says_all_of_it_with_the_same_places() -> None:
    table = json.loads((REPOSITORY / "results_analysis" / "zh" / "claims.json").read_text(encoding="utf-8"))
    assert len(spoken()) > 120
    assert table.keys() == spoken()
    for english, chinese in table.items():
        named = [{p[1] for p in string.Formatter().parse(t)} - {None} for t in (english, chinese)]
        assert named[0] == named[1], english


def test_the_section_speaks_chinese(tmp_path: Path) -> None:
    claim = BY_ID["Q4"]
    found = section(ran(tmp_path, claim.ask, WORLDS["Q4"][0]), words.speaker("zh"))
    table = next(b for b in found.blocks if isinstance(b, claims.Table))
    plain = (b.text for b in flat(found.blocks) if isinstance(b, claims.Text) and b.kind != "code")
    titles = (b.title for b in found.blocks if isinstance(b, claims.Fold))
    heard = [found.title, table.caption, *table.columns, *plain, *titles]
    heard += [text for row in table.rows for text in row[1:3]]
    assert [t for t in heard if not any("\u4e00" <= c <= "\u9fff" for c in str(t)) and str(t)[0] not in "np"] == []
