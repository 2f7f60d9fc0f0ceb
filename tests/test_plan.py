import dataclasses
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from offrl_ray.algos import VARIANTS
from offrl_ray.config import canonical, digest, resolve
from offrl_ray.errors import UsageError
from offrl_ray.records import Writer, read
from offrl_ray.sweep.plan import Demos, Plan, Preset, Sweep, plan, plan_record
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


def cpql(preset: str = "quick", **assignments: Any) -> Plan:
    return plan(CPQL, preset, {k.replace("__", "."): v for k, v in assignments.items()}, FILES)


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
        w.write(**plan_record(CPQL, "quick", grid, [{"file": "a.h5"}], {"torch": "2"}))
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
