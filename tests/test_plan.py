import dataclasses
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from offrl_ray.algos import VARIANTS
from offrl_ray.config import canonical, digest, parse_assignments, resolve
from offrl_ray.errors import UsageError
from offrl_ray.records import Writer, read
from offrl_ray.sweep.plan import Demos, Keep, Plan, Preset, Resources, Sweep, plan, plan_of, plan_record, point
from offrl_ray.sweep.space import Choice, Float, Int
from offrl_ray.sweep.spec import Objective, SearchSpec
from tests.conftest import REPOSITORY

SCRIPTS = sorted((REPOSITORY / "tune_configs").glob("tune_*.py"))
FILES = ["a.h5"]


def sweep_of(script: Path) -> Sweep:
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SWEEP


CPQL, CQL_DQN = (sweep_of(REPOSITORY / "tune_configs" / f"tune_{name}.py") for name in ("cpql", "cql_dqn"))
MODES = ["single_step", "last_5", "whole_grad"]


LR = Float(1e-4, 1e-2, log=True)
TPE = SearchSpec("tpe", 8)


def cpql(preset: str = "quick", search: SearchSpec | None = None, **assignments: Any) -> Plan:
    return plan(CPQL, preset, {k.replace("__", "."): v for k, v in assignments.items()}, FILES, search)


def problems(**assignments: Any) -> list[str]:
    with pytest.raises(UsageError) as e:
        cpql(**assignments)
    return e.value.problems


@pytest.mark.parametrize("preset", CPQL.presets)
def test_cpqls_twelve_points_are_ten_because_alpha_0_has_no_gradient_mode(preset: str) -> None:
    grid = cpql(preset)
    expected = [{"algo.alpha": 0.0}]
    expected += [{"algo.alpha": a, "algo.q_grad_mode": m} for a in (0.01, 0.05, 0.2) for m in MODES]
    assert [p.axes for p in grid.points] == expected
    assert grid.merged == 2
    assert grid.axes == {"algo.alpha": [0.0, 0.01, 0.05, 0.2], "algo.q_grad_mode": MODES}


def test_a_point_is_the_config_of_its_axes_in_canonical_form() -> None:
    preset = CPQL.presets["quick"].overrides
    for p in cpql().points:
        assert p.cfg == canonical(resolve({"algo.name": "cpql", "data.files": FILES, **preset, **p.axes}))


def test_names_of_trials_are_plain_unique_and_ordered() -> None:
    names = [
        p.trial for p in cpql(algo__q_grad_mode=["last_5", "whole_grad"], algo__alpha=[1e-9, 123456.789, 2e30]).points
    ]
    assert len(set(names)) == 6
    assert names == sorted(names)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,64}", n) for n in names)


def test_names_cannot_lead_out_of_the_folder() -> None:
    sweep = dataclasses.replace(CPQL, axes={"env.id": ["../../evil", "a/b\n c", "x" * 100, "ünï"]})
    names = [p.trial for p in plan(sweep, "quick", {}, FILES).points]
    assert len(set(names)) == 4
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,64}", n) for n in names)
    assert all(n[:2].isdigit() for n in names)


@pytest.mark.parametrize(("given", "values"), [(0.1, [0.1]), ([0.1], [0.1]), ([0.3, 0], [0.3, 0])])
def test_an_assignment_to_an_axis_replaces_its_values(given: Any, values: list[float]) -> None:
    grid = cpql(algo__alpha=given)
    assert grid.axes["algo.alpha"] == values
    assert list(dict.fromkeys(p.axes["algo.alpha"] for p in grid.points)) == values


def test_another_assignment_reaches_every_point() -> None:
    assert {p.cfg.train.batch_size for p in cpql(train__batch_size=7).points} == {7}


def test_several_values_of_another_setting_are_an_axis_more_unless_it_takes_a_list() -> None:
    grid = cpql(algo__alpha=[0.2], algo__q_grad_mode="last_5", algo__gamma=[0.9, 0.99], algo__critic_hidden=[8, 16])
    assert list(grid.axes) == ["algo.alpha", "algo.q_grad_mode", "algo.gamma"]
    assert [p.axes["algo.gamma"] for p in grid.points] == [0.9, 0.99]
    assert {p.cfg.algo.critic_hidden for p in grid.points} == {(8, 16)}


def test_none_is_a_word_where_a_setting_has_that_word_and_else_the_lack_of_a_value() -> None:
    values, _ = parse_assignments(["algo.alpha=0.2", "algo.q_norm=none,abs", "algo.grad_clip=none"])
    grid = plan(CPQL, "quick", values | {"algo.q_grad_mode": ["last_5"]}, FILES)
    assert grid.axes["algo.q_norm"] == ["none", "abs"]
    assert [(p.cfg.algo.q_norm, p.cfg.algo.grad_clip) for p in grid.points] == [("none", None), ("abs", None)]


def test_equal_values_of_an_axis_are_one_point() -> None:
    grid = cpql(algo__alpha=[0.1, 0.1])
    assert (len(grid.points), grid.merged) == (3, 3)


def test_problems_of_all_points_are_reported_once_each() -> None:
    found = problems(algo__alpha=[-1, -2, 0.1], algo__gama=0.5, algo__q_grad_mode=["last_5", "last_50"])
    assert len(found) == len(set(found)) == 4, found
    for words in ("algo.gama: unknown key; did you mean algo.gamma", "-1", "-2", "50 > 10"):
        assert sum(words in p for p in found) == 1


@pytest.mark.parametrize("axis", ["algo__alpha", "algo__q_grad_mode"])
def test_an_axis_without_values_is_refused(axis: str) -> None:
    (problem,) = problems(**{axis: []})
    assert axis.replace("__", ".") in problem


def test_an_unknown_preset_is_named_with_the_one_meant() -> None:
    with pytest.raises(UsageError, match=r"'quik'; did you mean quick\?"):
        cpql("quik")


def test_the_digest_names_the_work() -> None:
    assert cpql().digest == cpql().digest
    others = [cpql("smoke"), cpql(algo__alpha=0.1), cpql(train__batch_size=7), plan(CPQL, "quick", {}, ["b.h5"])]
    assert len({g.digest for g in (cpql(), *others)}) == 5


def test_demonstrations_of_other_settings_have_other_names() -> None:
    demos = Demos(env_id="A-v1", episodes=3, noise=(0.0, 0.1))
    changes: list[dict[str, Any]] = [{"env_id": "B-v1"}, {"episodes": 4}, {"noise": (0.1,)}, {"seed": 1}, {}]
    changes += [{"noise": ()}, {"control_mode": "native"}]
    assert len({dataclasses.replace(demos, **c).file_name for c in changes}) == 7
    assert demos.file_name == "A-v1.state.pd_ee_delta_pose.3x0_0.1.seed0.h5"


def test_the_plan_is_a_record_that_names_every_point(tmp_path: Path) -> None:
    grid = cpql()
    with Writer(tmp_path) as w:
        w.write(**plan_record(CPQL, "quick", grid, [{"file": "a.h5"}], {"torch": "2"}, Resources(), Keep()))
    (record,) = read(tmp_path).records
    assert record["axes"] == grid.axes
    assert record["digest"] == grid.digest
    for p, row in zip(grid.points, record["points"], strict=True):
        assert (row["trial"], row["point"], row["seeds"]) == (p.trial, p.axes, list(p.cfg.train.seeds))
        assert row["steps"] == p.cfg.train.steps
    assert {k: record[k] for k in ("kind", "name", "preset", "data", "versions")} == {
        "kind": "plan",
        "name": "cpql",
        "preset": "quick",
        "data": [{"file": "a.h5"}],
        "versions": {"torch": "2"},
    }


def test_there_are_scripts() -> None:
    assert SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_every_script_plans_its_presets_in_at_most_60_lines(script: Path) -> None:
    sweep = sweep_of(script)
    assert len(script.read_text().splitlines()) <= 60
    assert "quick" in sweep.presets, "the default of --preset"
    for name, preset in sweep.presets.items():
        grid = plan(sweep, name, {}, FILES)
        assert grid.points
        assert isinstance(preset, Preset)
        assert all(digest(p.cfg) == digest(canonical(p.cfg)) for p in grid.points)


def test_every_variant_has_a_sweep_of_its_own_in_three_sizes() -> None:
    assert {s.stem.removeprefix("tune_") for s in SCRIPTS} == VARIANTS.keys()
    for script in SCRIPTS:
        sweep = sweep_of(script)
        assert sweep.variant == sweep.name == script.stem.removeprefix("tune_")
        assert list(sweep.presets) == ["smoke", "quick", "full"]


def searched(search: SearchSpec = TPE, **assignments: Any) -> Plan:
    return cpql(search=search, **({"algo__lr": LR} | assignments))


def test_a_grid_of_cells_with_a_search_inside_each() -> None:
    found = searched()
    assert (found.points, found.domains, found.search) == ([], {"algo.lr": LR}, TPE)
    assert [c.axes for c in found.cells] == [p.axes for p in cpql().points]
    assert [c.index for c in found.cells] == list(range(10))
    assert all(c.space == {"algo.lr": LR} for c in found.cells)
    assert found.merged == 2


def test_a_script_may_declare_a_domain_and_the_command_line_replaces_it_by_values_or_the_other_way() -> None:
    sweep = dataclasses.replace(CPQL, axes={"algo.alpha": [0.0, 0.1], "algo.lr": LR})
    found = plan(sweep, "quick", {}, FILES, TPE)
    assert (found.axes, found.domains) == ({"algo.alpha": [0.0, 0.1]}, {"algo.lr": LR})
    listed = plan(sweep, "quick", {"algo.lr": [1e-3, 2e-3]}, FILES)
    assert (len(listed.points), listed.domains, listed.search) == (4, {}, None)
    turned = plan(sweep, "quick", {"algo.alpha": Float(0, 1)}, FILES, TPE)
    assert list(turned.domains) == ["algo.alpha", "algo.lr"]
    assert len(turned.cells) == 1


def test_without_a_search_every_cell_is_one_point() -> None:
    grid = cpql()
    assert [(p.cell, p.axes) for p in grid.points] == [(c.index, c.axes) for c in grid.cells]
    assert all(c.space == {} and grid.budget(c) == 0 for c in grid.cells)
    assert (grid.domains, grid.search) == ({}, None)


def test_what_is_inert_in_a_cell_is_not_searched_there_and_a_cell_without_a_search_is_one_point() -> None:
    eps = Float(1e-3, 1.0)
    found = cpql(search=TPE, algo__q_grad_mode=Choice(MODES), algo__q_norm_eps=eps, algo__q_norm="abs")
    assert [c.axes for c in found.cells] == [{"algo.alpha": a} for a in (0.0, 0.01, 0.05, 0.2)]
    assert [sorted(c.space) for c in found.cells] == [[], *[["algo.q_grad_mode", "algo.q_norm_eps"]] * 3]
    (only,) = found.points
    assert (only.axes, only.cell, only.trial) == ({"algo.alpha": 0.0}, 0, "00-alpha_0.0")
    assert [found.budget(c) for c in found.cells] == [0, 8, 8, 8]


def test_a_key_that_is_inert_for_some_searched_values_alone_stays_and_cells_that_only_look_equal_stay() -> None:
    found = cpql(search=TPE, algo__alpha=Float(0.0, 0.2))
    assert [c.axes for c in found.cells] == [{"algo.q_grad_mode": m} for m in MODES]
    assert found.merged == 0
    asked = [point(c, 0, {"algo.alpha": 0.0}) for c in found.cells]
    assert asked[0].cfg == asked[1].cfg == asked[2].cfg, "the caller sees the duplicate"
    assert asked[0].axes == {"algo.alpha": 0.0}


def test_a_cell_of_few_points_is_not_asked_for_more() -> None:
    found = searched(algo__lr=Choice([1e-3, 2e-3]), algo__teacher_steps=Int(1, 3))
    assert [c.size for c in found.cells] == [6] * 10
    assert {found.budget(c) for c in found.cells} == {6}
    assert {searched().budget(c) for c in searched().cells} == {8}


def test_an_asked_point_is_its_cell_and_its_values_in_canonical_form() -> None:
    cell = searched().cells[4]
    p = point(cell, 7, {"algo.lr": 3e-3})
    assert p.cfg == canonical(resolve(cell.base | {"algo.lr": 3e-3}))
    assert (p.cfg.algo.lr, p.axes, p.cell) == (3e-3, {**cell.axes, "algo.lr": 3e-3}, 4)
    assert p.trial == "04-alpha_0.05-q_grad_mode_single_step-t007"
    assert p.record()["cell"] == 4


def test_names_of_asked_points_are_plain_short_and_unique() -> None:
    sweep = dataclasses.replace(CPQL, axes={"env.id": ["../../evil", "a/b", "x" * 100, "x" * 101], "algo.lr": LR})
    cells = plan(sweep, "quick", {}, FILES, TPE).cells
    names = [point(c, n, {"algo.lr": 1e-3}).trial for c in cells for n in (0, 7, 70, 12345)]
    assert len(set(names)) == 16
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,64}", n) for n in names), names


def test_an_asked_point_that_the_config_does_not_take_is_refused() -> None:
    with pytest.raises(UsageError, match=r"algo\.lr"):
        point(searched().cells[0], 0, {"algo.lr": -1.0})


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        ({"algo__lr": Float(-1.0, 1.0)}, ["algo.lr: Input should be greater than 0, but got -1.0"]),
        ({"algo__lrr": Float(0.1, 1.0)}, ["algo.lrr: unknown key; did you mean algo.lr"]),
        ({"algo__num_flow_steps": Float(10, 20)}, ["fractional part"]),
        ({"algo__q_norm": Choice(["none", "nothing"])}, ["'nothing'"]),
        ({"algo__num_flow_steps": Int(4, 20), "algo__q_grad_mode": ["last_5"]}, ["5 > 4"]),
        ({"algo__num_flow_steps": Int(5, 9), "algo__teacher_steps": Int(1, 2), "algo__alpha": [-1]}, ["-1"]),
        ({"data__act_horizon": Int(1, 8)}, ["make it an axis of the grid"]),
        (
            {"algo__lr": Float(0, -1, log=True), "algo__alpha": [-2, 0.1]},
            ["algo.lr must have low < high", "algo.lr must have low > 0", "-2"],
        ),
    ],
    ids=str,
)
def test_a_domain_is_checked_against_the_real_config_and_all_is_said_at_once(
    assignments: dict[str, Any], words: list[str]
) -> None:
    found = problems(search=TPE, **assignments)
    assert len(found) == len(words), found
    assert all(any(w in p for p in found) for w in words), found


def test_a_search_and_its_domains_need_each_other() -> None:
    for search in (None, SearchSpec("grid", 1)):
        (problem,) = problems(search=search, algo__lr=LR)
        assert "algo.lr is a range" in problem
        assert "--search tpe" in problem
    (problem,) = problems(search=TPE)
    assert "nothing to choose" in problem
    found = problems(search=SearchSpec("cmaes", 0), algo__q_norm=Choice(["none", "batch"]), algo__alpha=[-1])
    assert len(found) == 4, found


def test_the_digest_of_a_search_names_grid_domains_and_specification() -> None:
    lists: list[dict[str, Any]] = [{"algo__alpha": [0.0, 0.1]}, {"algo__lr": Float(1e-4, 1e-2)}, {"algo__tau": LR}]
    specs = [SearchSpec("random", 8), SearchSpec("tpe", 9), SearchSpec("tpe", 8, 1)]
    specs += [SearchSpec("tpe", 8, 0, (Objective("return"),)), TPE._replace(first=({"algo.lr": 1e-3},))]
    plans = [searched(), cpql(), *(searched(**a) for a in lists), *(searched(s) for s in specs)]
    assert len({p.digest for p in plans}) == len(plans)
    assert searched().digest == searched().digest


def test_the_environment_of_every_cells_data_is_named() -> None:
    found = cpql(search=TPE, algo__q_grad_mode=Choice(MODES))
    named = found.in_envs([f"Env-v{i}" for i in range(4)])
    assert [c.cfg.env.id for c in named.cells] == [f"Env-v{i}" for i in range(4)]
    assert [p.cfg.env.id for p in named.points] == ["Env-v0"]
    assert point(named.cells[2], 0, {"algo.q_grad_mode": "last_5"}).cfg.env.id == "Env-v2"
    assert named.digest != found.digest
    given = cpql(search=TPE, algo__lr=LR, env__id="Given-v1").in_envs(["Other-v1"] * 10)
    assert {c.cfg.env.id for c in given.cells} == {"Given-v1"}


ROUND = [
    cpql(),
    searched(),
    cpql(search=SearchSpec("nsga2", 30, 3, (Objective("return"), Objective("q_excess", "min"))), algo__q_norm_eps=LR),
    cpql(search=TPE, algo__critic_hidden=Choice([[8], [8, 8]]), algo__teacher_steps=Int(1, 3)),
    cpql(env__id="LiftPegUpright-v1"),
]


@pytest.mark.parametrize("found", ROUND, ids=range(len(ROUND)))
def test_a_plan_comes_back_whole_from_its_record(found: Plan, tmp_path: Path) -> None:
    found = found.in_envs(["PushCube-v1"] * len(found.cells))
    with Writer(tmp_path) as w:
        w.write(**plan_record(CPQL, "quick", found, [], {}, Resources(), Keep()))
    back = plan_of(read(tmp_path).records[0])
    assert back == found
    assert back.digest == found.digest == read(tmp_path).records[0]["digest"]
    for mine, theirs in zip(back.cells, found.cells, strict=True):
        values = {k: d.tries[0] for k, d in mine.space.items()}
        assert point(mine, 1, values) == point(theirs, 1, values)
