import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from offrl_ray.algos import VARIANTS
from offrl_ray.config import (
    RunConfig,
    canonical,
    describe,
    digest,
    from_dict,
    parse,
    parse_assignments,
    resolve,
    to_dict,
)
from offrl_ray.errors import UsageError
from offrl_ray.fields import hparams, swept_fields

BASE = {"algo.name": "cpql", "data.files": ["a.h5"]}


def cfg(changes: dict[str, Any]) -> RunConfig:
    return resolve(BASE | changes)


def problems(changes: dict[str, Any]) -> list[str]:
    with pytest.raises(UsageError) as e:
        cfg(changes)
    return e.value.problems


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("algo.alpa", "algo.alpha"), ("train.step", "train.steps"), ("data.file", "data.files"), ("env.ID", "env.id")],
)
def test_an_unknown_key_is_named_with_the_one_meant(typo: str, meant: str) -> None:
    (problem,) = problems({typo: 1})
    assert problem.startswith(f"{typo}: unknown key; did you mean ")
    assert meant in problem


def test_an_unknown_variant_is_named_with_the_one_meant() -> None:
    (problem,) = problems({"algo.name": "cpq"})
    assert "'cpq'" in problem
    assert "did you mean cpql" in problem


WRONG: dict[str, Any] = {
    "algo.alpha": ["x", None, [0.1], -0.01, float("nan"), float("inf"), True],
    "algo.gamma": [0, 1, 1.0, -1, 2, float("nan")],
    "algo.tau": [-0.1, 1.1, float("nan")],
    "algo.ema_decay": [-0.1, 1.1],
    "algo.lr": [0, -1, float("inf"), "fast"],
    "algo.lr_critic": [0],
    "algo.grad_clip": [0, -1],
    "algo.reward_scale": [0],
    "algo.q_target_clip": [0],
    "algo.num_flow_steps": [0, 1.5, "x", None],
    "algo.teacher_steps": [0],
    "algo.cons_t_min": [-0.1, 1.1],
    "algo.q_grad_mode": ["last", "last_x", "last_", "", 5, None],
    "algo.q_grad_steps": [0, -1],
    "algo.q_norm": ["x", None],
    "algo.q_norm_eps": [0],
    "algo.random_action_penalty": [-1],
    "algo.bounded_critic": ["perhaps", 2],
    "algo.critic_hidden": [[], [0], 8, ["x"]],
    "algo.num_critics": [1, 0],
    "algo.network.width": [0],
    "algo.network.time_dim": [5, 2],
    "algo.network.kind": ["mlp", 3, None],
    "algo.name": ["nope", None, 3, ["cpql"]],
    "data.files": [[], [1], "a.h5", None],
    "data.weights": [[0.0], [-1.0], ["x"], 1.0],
    "data.obs_horizon": [0],
    "data.act_horizon": [0, 1.5],
    "data.q_chunk_anchor": ["newest"],
    "env.id": [3],
    "env.reward_mode": ["none"],
    "env.max_steps": [0],
    "env.sim_backend": ["cpu"],
    "env.num_envs": [0],
    "train.steps": [0, -500, 2.5],
    "train.batch_size": [0, True],
    "train.seeds": [[], [-1], 3, [0.5], [2**64]],
    "train.report_every": [0],
    "train.device": [3],
    "train.threads": [0],
    "eval.every": [0],
    "eval.episodes": [0],
    "eval.seed": [-1, 2**32],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, values in WRONG.items() for v in values])
def test_a_wrong_value_is_one_problem_with_its_key_and_value(key: str, value: Any) -> None:
    found = problems({key: value})
    assert len(found) == 1, found
    assert found[0].startswith(key.removesuffix(".kind"))
    assert key.endswith(".kind") or str(value[0] if isinstance(value, list) and value else value) in found[0]


RULES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "pred_horizon": ({"data.pred_horizon": 7}, ["data.pred_horizon", ">= 8", "7"]),
    "pred_horizon, oldest": (
        {"data.pred_horizon": 9, "data.q_chunk_anchor": "oldest", "data.obs_horizon": 3},
        [">= 10"],
    ),
    "weights": ({"data.weights": [1.0, 2.0]}, ["data.weights", "one per file", "2 for 1"]),
    "seeds": ({"train.seeds": [1, 2, 1]}, ["train.seeds must differ", "[1, 2, 1]"]),
    "num_envs": ({"env.num_envs": 2}, ["env.num_envs", "physx_cpu", "2"]),
    "native alone": ({"env.sim_backend": "native"}, ["env.control_mode", "native", "pd_ee_delta_pose, sparse, native"]),
    "physx with native": ({"env.control_mode": "native", "env.reward_mode": "native"}, ["native, native, physx_cpu"]),
    "last_k without k": ({"algo.q_grad_mode": "last_k"}, ["q_grad_steps", "last_k", "last_5"]),
    "k without last_k": ({"algo.q_grad_steps": 3}, ["q_grad_steps", "single_step", "last_3"]),
    "last_50": ({"algo.q_grad_mode": "last_50"}, ["q_grad_steps", "50 > 10", "whole_grad"]),
    "last_0": ({"algo.q_grad_mode": "last_0"}, ["q_grad_steps", "0"]),
    "last_5 and k": ({"algo.q_grad_mode": "last_5", "algo.q_grad_steps": 3}, ["q_grad_steps", "5", "3"]),
    "cons_t": ({"algo.cons_t_min": 0.9, "algo.cons_t_max": 0.1}, ["cons_t_min must be <= cons_t_max", "0.9 > 0.1"]),
    "cons_delta": ({"algo.cons_delta_min": 0.9}, ["cons_delta_min must be <= cons_delta_max", "0.9 > 0.15"]),
    "widths of a resmlp": ({"algo.network.widths": [64, 64]}, ["algo.network.widths"]),
    "width of a unet": ({"algo.network.kind": "unet", "algo.network.width": 8}, ["algo.network.width"]),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_one_problem_with_its_values(rule: str) -> None:
    changes, words = RULES[rule]
    (problem,) = problems(changes)
    for word in words:
        assert word in problem


@pytest.mark.parametrize(
    "changes",
    [
        {"data.pred_horizon": 8},
        {"data.pred_horizon": 9, "data.q_chunk_anchor": "oldest"},
        {"data.weights": [2.0]},
        {"env.num_envs": 2, "env.sim_backend": "physx_cuda"},
        {"env.num_envs": 2, **{f"env.{k}": "native" for k in ("control_mode", "reward_mode", "sim_backend")}},
        {"algo.grad_clip": None},
        {"algo.q_grad_mode": "last_10"},
        {"algo.cons_t_min": 0.5, "algo.cons_t_max": 0.5},
        {"algo.network.kind": "unet", "algo.network.widths": [8, 16]},
        {"eval.seed": 2**32 - 100},
        {"train.seeds": [2**63]},
    ],
    ids=str,
)
def test_the_limit_itself_is_allowed(changes: dict[str, Any]) -> None:
    cfg(changes)


def test_problems_of_every_kind_come_at_once() -> None:
    wrong = {"algo.alpa": 1, "algo.alpha": -1, "algo.gamma": 1.0, "env.max_steps": 0, "train.batch_size": "x"}
    broken = {"data.pred_horizon": 7, "algo.cons_t_min": 0.9, "algo.cons_t_max": 0.1}
    found = problems(wrong | broken)
    assert len(found) == 7, found
    for word in [*wrong, "data.pred_horizon", "cons_t_min"]:
        assert sum(p.startswith(word) or f": {word} must" in p for p in found) == 1, word


@pytest.mark.parametrize("pair", [("algo.lr", "algo.lr_critic"), ("algo.q_norm", "algo.q_norm_eps")], ids=str)
@pytest.mark.parametrize("order", [1, -1])
def test_a_wrong_field_does_not_hide_one_whose_name_begins_alike(pair: tuple[str, str], order: int) -> None:
    assert len(problems(dict.fromkeys(pair[::order], -1))) == 2


def test_every_broken_rule_of_the_run_is_a_line_of_its_own() -> None:
    rules = ["pred_horizon", "weights", "seeds", "num_envs"]
    changes = {k: v for r in rules for k, v in RULES[r][0].items()}
    assert len(problems(changes)) == len(rules)


def test_every_broken_rule_of_the_variant_is_named() -> None:
    found = "\n".join(problems(RULES["last_50"][0] | RULES["cons_t"][0] | RULES["cons_delta"][0]))
    for words in ("50 > 10", "cons_t_min must", "cons_delta_min must"):
        assert words in found


@pytest.mark.parametrize("others", [{}, {"data.act_horizon": 4}, {"data.act_horizon": 0}], ids=str)
def test_missing_files_are_one_problem(others: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as e:
        resolve({"algo.name": "cpql"} | others)
    assert sum("data" in p and "required" in p for p in e.value.problems) == 1
    assert len(e.value.problems) == 1 + (others.get("data.act_horizon") == 0)


def test_the_critics_chunk_is_the_executed_one_however_it_is_said() -> None:
    said = cfg({"data.act_horizon": 8, "data.q_horizon": 8})
    assert said != cfg({"data.act_horizon": 8})
    assert canonical(said) == canonical(cfg({"data.act_horizon": 8}))
    assert digest(said) == digest(cfg({"data.act_horizon": 8}))


def test_last_5_is_canonical() -> None:
    spelled, plain = cfg({"algo.q_grad_mode": "last_5"}), cfg({"algo.q_grad_mode": "last_k", "algo.q_grad_steps": 5})
    assert spelled == plain
    assert digest(spelled) == digest(plain)
    assert (spelled.algo.q_grad_mode, spelled.algo.q_grad_steps) == ("last_k", 5)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-1e-3", -0.001),
        ("true", True),
        ("none", None),
        ("None", None),
        ("null", None),
        ("single_step", "single_step"),
        ("a,b", ["a", "b"]),
        ("0,0.5,1e-3", [0, 0.5, 0.001]),
        ("1,none", [1, None]),
        ("3,", [3]),
        ("[0, 1]", [0, 1]),
        ('"1"', "1"),
        ('"a,b"', "a,b"),
        ("[[256,256],[64]]", [[256, 256], [64]]),
        ("", ""),
        ("{", "{"),
    ],
)
def test_parse(text: str, value: Any) -> None:
    assert parse(text) == value
    assert type(parse(text)) is type(value)


def test_assignments_split_at_the_first_equals_sign() -> None:
    assert parse_assignments(["a.b=1", " c =x=y"]) == ({"a.b": 1, "c": "x=y"}, [])


def test_assignments_without_equals_sign_are_named_at_once() -> None:
    values, found = parse_assignments(["a", "b=1", "c"])
    assert values == {"b": 1}
    assert [p.count("'a'") + 2 * p.count("'c'") for p in found] == [1, 2]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"algo.alpha": 0, "algo.q_grad_mode": "last_5"}, {"algo.alpha": 0.0, "algo.q_grad_mode": "whole_grad"}),
        ({"algo.alpha": 0, "algo.q_norm": "abs"}, {"algo.alpha": 0}),
        ({"algo.q_norm_eps": 0.5}, {}),
        ({"algo.alpha": "0.05"}, {"algo.alpha": 0.05}),
        ({"train.seeds": [0, 1, 2]}, {}),
    ],
)
def test_equal_runs_have_equal_digests(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert digest(cfg(one)) == digest(cfg(other))
    assert canonical(cfg(one)) == canonical(cfg(other))


def test_different_runs_have_different_digests() -> None:
    changes: list[dict[str, Any]] = [{}, {"algo.alpha": 0}, {"algo.q_grad_mode": "last_4"}, {"algo.q_norm": "abs"}]
    changes += [{"algo.q_norm": "abs", "algo.q_norm_eps": 0.5}, {"algo.grad_clip": None}, {"algo.grad_clip": 0.5}]
    changes += [{"data.files": ["b.h5"]}, {"data.q_chunk_anchor": "oldest"}, {"algo.network.kind": "unet"}]
    changes += [{"env.max_steps": 50}, {"eval.seed": 1}, {"train.seeds": [0]}, {"train.seeds": [1, 0, 2]}]
    digests = {digest(cfg(c)) for c in changes}
    assert len(digests) == len(changes)
    assert all(len(d) == 12 and int(d, 16) >= 0 for d in digests)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"algo.network.kind": "unet", "algo.q_grad_mode": "last_3", "algo.grad_clip": None},
        {"data.weights": [0.5], "env.id": "X-v1", "train.seeds": [2**40], "algo.alpha": 0.1 + 0.2},
    ],
)
def test_from_dict_undoes_to_dict_through_json(changes: dict[str, Any]) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(cfg(changes)), allow_nan=False))) == cfg(changes)


@pytest.mark.parametrize("tree", [{}, [], None, {"algo": {}}, {"algo": {"name": "x"}, "data": {"files": ["a"]}}])
def test_from_dict_refuses_what_is_no_config(tree: Any) -> None:
    with pytest.raises(UsageError):
        from_dict(tree)


@pytest.mark.parametrize("variant", VARIANTS)
def test_describe_names_every_setting_once(variant: str) -> None:
    keys = [s.key for s in describe(variant)]
    assert sorted(keys) == sorted(set(keys))
    flat = flatten(to_dict(resolve({"algo.name": variant, "data.files": ["a"]})))
    assert set(flat) - {"online"} <= set(keys)


@pytest.mark.parametrize("variant", VARIANTS)
def test_describe_gives_every_setting_a_meaning(variant: str) -> None:
    assert [s.key for s in describe(variant) if not s.meaning.strip()] == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_describe_begins_with_what_is_the_variants_own(variant: str) -> None:
    assert describe(variant)[0].key == "algo.name"


def test_describe_tells_the_defaults_and_what_is_swept() -> None:
    rows = {s.key: s for s in describe("cpql")}
    assert rows["data.files"].default == "required"
    assert rows["algo.gamma"].default == 0.99
    default = cfg({})
    assert {k for k, s in rows.items() if s.swept} == {f"algo.{n}" for n in swept_fields(type(default.algo))}


def test_describe_refuses_an_unknown_variant() -> None:
    with pytest.raises(UsageError, match="cpql"):
        describe("cpq")


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for k, v in tree.items():
        flat |= flatten(v, f"{prefix}{k}.") if isinstance(v, dict) else {f"{prefix}{k}": v}
    return flat


def test_hyperparameters_are_the_swept_fields_and_none_is_infinity() -> None:
    hp = hparams(cfg({"algo.grad_clip": None, "algo.alpha": 0.25}).algo)
    assert set(hp) == set(swept_fields(type(cfg({}).algo)))
    assert (hp["alpha"].item(), hp["grad_clip"].item()) == (0.25, float("inf"))
    assert all(v.shape == () for v in hp.values())


def test_a_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg({}).algo.alpha = 1.0  # type: ignore[misc]


def test_a_usage_error_is_a_list_with_one_line_a_problem() -> None:
    e = UsageError(str(p) for p in (Path("a"), "b"))
    assert (e.problems, str(e)) == (["a", "b"], "- a\n- b")
