"""Who may know whom: import-linter's contracts, and the same rules read from the syntax trees."""

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

LAYERS = [
    {"__main__"},
    {"cli"},
    {"doctor"},
    {"distributed"},
    {"probe", "export"},
    {"run"},
    {"sweep", "evaluate", "checkpoint", "collect"},
    {"online", "exported"},
    {"train", "policy"},
    {"config"},
    {"algos", "data", "envs"},
    {"records", "fields", "exits", "claim"},
    {"segments"},
    {"store"},
    {"objects"},
    {"types", "errors", "intervals", "terminal"},
    {"__init__"},
]
"""From the top; a module imports itself, and what lies below."""
RANK = {part: i for i, parts in enumerate(LAYERS) for part in parts}
MODULES = sorted((REPOSITORY / "offrl_ray").rglob("*.py"))
ALGOS = sorted((REPOSITORY / "offrl_ray" / "algos").glob("*.py"))
DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"}
DRAWS |= {f"{d}_like" for d in DRAWS} | {"normal_", "uniform_", "random_", "bernoulli_", "exponential_", "cauchy_"}
DRAWS |= {"log_normal_", "geometric_", "dropout", "Dropout", "rrelu", "gumbel_softmax"}


def name(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[str]:
    """Every module that the file imports, anywhere in it; `from a import b` gives a and a.b."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)} imports relatively"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{a.name}" for a in node.names)


def part(module: str) -> str | None:
    """The layer's name of a module of the package."""
    parts = module.split(".")
    if parts[0] != "offrl_ray":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in RANK else "__init__"


def own_part(path: Path) -> str:
    return path.relative_to(REPOSITORY / "offrl_ray").parts[0].removesuffix(".py")


def offences(paths: list[Path], *forbidden: str) -> list[str]:
    bad = lambda m: any(m == f or m.startswith(f"{f}.") for f in forbidden)  # noqa: E731
    return [f"{name(p)} imports {m}" for p in paths for m in imports(p) if bad(m)]


def python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return done.stdout


def test_import_linter_agrees() -> None:
    lint = shutil.which("lint-imports", path=Path(sys.executable).parent) or shutil.which("lint-imports")
    if lint is None or "[tool.importlinter]" not in (REPOSITORY / "pyproject.toml").read_text():
        pytest.skip("import-linter is not installed or not configured")
    done = subprocess.run([lint, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_module_has_a_layer() -> None:
    assert {own_part(p) for p in MODULES} <= set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_go_down_only(path: Path) -> None:
    own = own_part(path)
    wrong = [m for m in imports(path) if (p := part(m)) and p != own and RANK[p] <= RANK[own]]
    assert wrong == []


def test_a_variant_knows_no_ray_no_simulator_no_file_and_no_data() -> None:
    foreign = ("ray", "mani_skill", "sapien", "gymnasium", "h5py", "optuna", "numpy", "os", "io", "pathlib", "shutil")
    assert offences(ALGOS, *foreign, "random", "offrl_ray.data", "offrl_ray.envs") == []


def test_distribution_names_no_variant() -> None:
    assert offences([p for p in MODULES if own_part(p) == "distributed"], "offrl_ray.algos") == []


def test_ray_is_imported_in_distributed_alone() -> None:
    assert offences([p for p in MODULES if own_part(p) != "distributed"], "ray") == []


def test_the_analysis_reads_records_and_nothing_else() -> None:
    paths = sorted((REPOSITORY / "results_analysis").rglob("*.py"))
    assert paths
    assert offences(paths, "torch", "ray", "mani_skill", "h5py") == []
    known = {"offrl_ray", *(f"offrl_ray.{m}" for m in ("records", "errors", "intervals", "claim"))}
    used = {m for p in paths for m in imports(p) if m.startswith("offrl_ray")}
    assert {m for m in used if m not in known and m.rpartition(".")[0] not in known - {"offrl_ray"}} == set()


def test_sweep_scripts_declare_and_launch_and_nothing_else() -> None:
    allowed = {"offrl_ray.distributed.launch", *(f"offrl_ray.sweep.{m}" for m in ("plan", "sizes", "space"))}
    for script in (REPOSITORY / "tune_configs").glob("*.py"):
        assert {m for m in imports(script) if m not in allowed and m.rpartition(".")[0] not in allowed} == set()


@pytest.mark.parametrize("path", ALGOS, ids=name)
def test_a_variant_draws_only_from_a_generator_that_it_is_given(path: Path) -> None:
    wrong = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in DRAWS:
            given = [k.value for k in node.keywords if k.arg == "generator"]
            if not given or isinstance(given[0], ast.Constant):
                wrong.append(f"{node.lineno}: {ast.unparse(node)}")
    assert wrong == []


@pytest.mark.parametrize("path", ALGOS, ids=name)
def test_a_variant_is_written_for_one_member_and_never_waits_for_a_number(path: Path) -> None:
    code = path.read_text()
    assert "vmap" not in code
    calls = [n for n in ast.walk(tree(path)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    waits = {"item", "tolist", "numpy", "cpu"}
    assert [
        f"{n.lineno}: {ast.unparse(n)}" for n in calls if isinstance(n.func, ast.Attribute) and n.func.attr in waits
    ] == []


def test_importing_the_variants_loads_no_ray_no_simulator_and_no_h5py() -> None:
    heavy = ["ray", "mani_skill", "sapien", "gymnasium", "h5py", "offrl_ray.data", "offrl_ray.envs"]
    loaded = python(f"import json, sys, offrl_ray.algos; print(json.dumps([m for m in {heavy} if m in sys.modules]))")
    assert json.loads(loaded) == []


def test_the_command_line_answers_before_torch_is_loaded() -> None:
    code = "import offrl_ray.cli, sys; [print(m) for m in ('torch', 'numpy', 'ray', 'h5py') if m in sys.modules]"
    assert python(code).split() == []
