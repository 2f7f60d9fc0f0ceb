import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from offrl_ray import checkpoint
from offrl_ray.algos import VARIANTS, make
from offrl_ray.algos.functional import stack
from offrl_ray.checkpoint import path_of, save
from offrl_ray.errors import UsageError
from offrl_ray.export import export
from offrl_ray.exported import POLICY, load_exported, sha256_of
from offrl_ray.policy import Policy, acting
from offrl_ray.train import Snapshot
from offrl_ray.types import Spec, State
from tests.conftest import REPOSITORY
from tests.toys import generator, leaves, run, run_config, same_bits, spec_of

SEEDS, STEP, N = (3, 5), 20, 4
EXTRA = {"trial": "02-alpha_0.1", "point": {"algo.alpha": 0.1}, "success_once": {"mean": 0.5, "interval": [0.4, 0.6]}}
TRAINING = ("ray", "mani_skill", "sapien", "gymnasium", "h5py", "optuna", "offrl_ray.config", "offrl_ray.train")
TRAINING += ("offrl_ray.run", "offrl_ray.checkpoint", "offrl_ray.data", "offrl_ray.envs", "offrl_ray.evaluate")
TRAINING += ("offrl_ray.online", "offrl_ray.export", "offrl_ray.sweep", "offrl_ray.distributed", "offrl_ray.cli")


class Trained(NamedTuple):
    policies: dict[int, Policy]
    checkpoint: Path
    exported: Path


def spec(variant: str) -> Spec:
    """With statistics that are no round numbers."""
    plain = spec_of(variant)
    means = {k: tuple(0.1 * (i + 1) for i in range(len(v))) for k, v in plain.obs_mean.items()}
    return replace(plain, obs_mean=means, obs_std={k: tuple(0.7 + m for m in v) for k, v in means.items()})


def train(variant: str, folder: Path) -> Path:
    cfg = run_config(variant, train_seeds=SEEDS)
    state = stack([run(variant), make(cfg.algo, spec(variant)).init(generator(7))])
    states = torch.stack([generator(s).get_state() for s in SEEDS])
    save(folder, Snapshot(STEP, state, states), cfg, spec(variant), 0.0, {})
    return path_of(folder, STEP)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """Every variant, exported; the policies are those of the checkpoint."""
    folder, made = tmp_path_factory.mktemp("export"), {}
    for variant in VARIANTS:
        path, out = train(variant, folder / variant), folder / "exports" / variant
        export(path, out, EXTRA)
        found = checkpoint.load(path)
        alg = make(found.cfg.algo, found.spec)
        members = {s: acting(found.snapshot.state, i) for i, s in enumerate(SEEDS)}
        made[variant] = Trained({s: Policy(alg, found.spec, m) for s, m in members.items()}, path, out)
    return made


@pytest.fixture
def one(trained: dict[str, Trained], tmp_path: Path) -> Path:
    """A copy of an export."""
    return shutil.copytree(trained["cpql"].exported, tmp_path / "copy")


def act(policy: Policy) -> Tensor:
    g = torch.Generator().manual_seed(1)
    shapes = policy.spec.obs_shape
    window = {k: [torch.randn(N, *s, generator=g) for _ in range(policy.spec.obs_horizon)] for k, s in shapes.items()}
    return policy.act(window, policy.alg.act_noise(torch.Generator().manual_seed(2), N))


ACT_ELSEWHERE = f"""
import json, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from offrl_ray.exported import load_exported
N = {N}
SOURCE
actions = {{}}
for out in sorted(Path("exports").iterdir()):
    for seed in {SEEDS}:
        actions[f"{{out.name}} {{seed}}"] = act(load_exported(out, seed))
save_file(actions, "actions.safetensors")
print(json.dumps(sorted(sys.modules)))
"""


def python(program: str, folder: Path) -> str:
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_fresh_process_acts_bit_for_bit_alike_without_our_training_code(trained: dict[str, Trained]) -> None:
    source = "from offrl_ray.policy import Policy\nfrom torch import Tensor\n" + inspect.getsource(act)
    folder = trained["cpql"].exported.parents[1]
    modules = json.loads(python(ACT_ELSEWHERE.replace("SOURCE", source), folder))
    assert [m for m in modules if m.startswith(TRAINING) and m != "offrl_ray.exported"] == []
    actions = load_file(folder / "actions.safetensors")
    expected = {f"{v} {s}": act(p) for v, t in trained.items() for s, p in t.policies.items()}
    assert actions.keys() == expected.keys()
    assert [k for k in expected if not same_bits(actions[k], expected[k])] == []
    assert {v for v, t in trained.items() if same_bits(*(act(p) for p in t.policies.values()))} == set()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_weights_are_the_acting_part_alone_under_dotted_names(variant: str, trained: dict[str, Trained]) -> None:
    for seed, policy in trained[variant].policies.items():
        written = load_file(trained[variant].exported / f"seed_{seed}.safetensors")
        expected = leaves(policy.state["acting"])
        assert written.keys() == expected.keys()
        assert all(same_bits(written[k], expected[k]) for k in expected)
    assert {p.name for p in trained[variant].exported.iterdir()} == {
        *("seed_3.safetensors", "seed_5.safetensors", POLICY, "README.txt")
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_exported_policy_has_no_critic(variant: str, trained: dict[str, Trained]) -> None:
    policy = load_exported(trained[variant].exported, 3)
    window = {k: [torch.zeros(1, *s)] * policy.spec.obs_horizon for k, s in policy.spec.obs_shape.items()}
    assert policy.value(window, policy.act(window, policy.alg.act_noise(torch.Generator(), 1))) is None


def test_the_json_says_all_that_acting_needs(trained: dict[str, Trained]) -> None:
    t = trained["cpql"]
    about = json.loads((t.exported / POLICY).read_text(), parse_constant=pytest.fail)
    found = checkpoint.load(t.checkpoint)
    assert (about["variant"], about["checkpoint"], about["step"]) == ("cpql", found.digest, STEP)
    assert Spec.from_json(about["spec"]) == found.spec
    assert about["raw_action_bounds"] == [-1, 1]
    assert about["config"]["algo"]["name"] == "cpql"
    assert about["extra"] == EXTRA
    assert {"offrl_ray", "torch", "safetensors"} <= about["versions"].keys()


def test_the_readme_is_ten_lines_whose_example_runs(trained: dict[str, Trained]) -> None:
    out = trained["cpql"].exported
    lines = (out / "README.txt").read_text().splitlines()
    assert len(lines) == 10
    assert max(map(len, lines)) <= 120
    assert "tensor" in python("\n".join(line[4:] for line in lines if line.startswith("    ")), out)


def test_some_seeds_alone(trained: dict[str, Trained], tmp_path: Path) -> None:
    export(trained["cpql"].checkpoint, tmp_path / "out", {}, seeds=[5])
    assert same_bits(act(load_exported(tmp_path / "out", 5)), act(trained["cpql"].policies[5]))
    with pytest.raises(UsageError, match=r"no seed 3; its files are seed_5\.safetensors"):
        load_exported(tmp_path / "out", 3)


# -- refused


def refused(*args: Any, **kwargs: Any) -> list[str]:
    with pytest.raises(UsageError) as e:
        export(*args, **kwargs)
    return e.value.problems


def diverged(folder: Path, place: tuple[str, ...]) -> Path:
    """A checkpoint of which seed 5 has one NaN."""
    path = train("cpql", folder)
    found = checkpoint.load(path)
    at: Any = found.snapshot.state
    for part in place:
        at = at[part]
    tensor = next(iter(leaves(at).values()))
    tensor[1].view(-1)[-1] = torch.nan
    save(folder, found.snapshot, found.cfg, found.spec, found.seconds, found.history)
    return path


@pytest.mark.parametrize("place", [("acting",), ("critic",)], ids=str)
def test_a_diverged_seed_is_refused_by_name_and_the_others_are_not(place: tuple[str, ...], tmp_path: Path) -> None:
    path = diverged(tmp_path, place)
    (problem,) = refused(path, tmp_path / "out", {})
    assert "seed 5" in problem
    assert "export the others, 3" in problem
    assert not (tmp_path / "out").exists()
    export(path, tmp_path / "out", {}, seeds=[3])


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    path = diverged(tmp_path, ("acting",))
    problems = refused(path, tmp_path, {}, seeds=[5, 8])
    assert [p in q for p, q in zip(("exists", "no seed 8", "seed 5"), problems, strict=True)] == [True] * 3
    assert len(refused(tmp_path / "nowhere", tmp_path, {})) == 2
    assert "at least one" in refused(path, tmp_path / "out", {}, seeds=[])[0]


@pytest.mark.parametrize("make_it", [Path.mkdir, Path.touch, lambda p: p.symlink_to("nowhere")])
def test_what_is_there_already_is_left_alone(
    make_it: Callable[[Path], None], trained: dict[str, Trained], tmp_path: Path
) -> None:
    make_it(tmp_path / "out")
    before = os.lstat(tmp_path / "out")
    assert "exists" in refused(trained["cpql"].checkpoint, tmp_path / "out", {})[0]
    assert os.lstat(tmp_path / "out") == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("broken", ["os.fsync", "pathlib.Path.rename"])
def test_a_failed_write_leaves_nothing(
    broken: str, trained: dict[str, Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(broken, fail)
        assert "No space left" in refused(trained["cpql"].checkpoint, tmp_path / "out", {})[0]
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_json_has_not_is_refused_before_anything_is_written(
    trained: dict[str, Trained], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="JSON"):
        export(trained["cpql"].checkpoint, tmp_path / "out", {"score": float("nan")})
    assert list(tmp_path.iterdir()) == []


# -- damaged


def damage(out: Path, seed: int = 3) -> str:
    with pytest.raises(UsageError) as e:
        load_exported(out, seed)
    (problem,) = e.value.problems
    return problem


def reseal(out: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the JSON and give it a checksum that fits."""
    about = json.loads((out / POLICY).read_text())
    del about["sha256"]
    change(about)
    (out / POLICY).write_text(json.dumps({**about, "sha256": sha256_of(about)}))


def test_any_flipped_byte_of_the_weights_is_found(one: Path) -> None:
    path = one / "seed_3.safetensors"
    content = path.read_bytes()
    for place in range(0, len(content), 97):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert "seed_3.safetensors differs" in damage(one)
    path.write_bytes(content[:-1])
    assert "seed_3.safetensors differs" in damage(one)
    load_exported(one, 5)


def test_any_flipped_byte_of_the_json_is_found_or_harmless(one: Path) -> None:
    path = one / POLICY
    content, good = path.read_bytes(), act(load_exported(one, 3))
    for place in range(0, len(content), 23):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            assert same_bits(act(load_exported(one, 3)), good)
        except UsageError:
            continue


@pytest.mark.parametrize("name", [POLICY, "seed_3.safetensors"])
def test_a_missing_file_is_named(name: str, one: Path) -> None:
    (one / name).unlink()
    assert f"{name} is missing" in damage(one)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff", b"{}", b"[" * 100_000])
def test_a_json_that_is_none_is_named(content: bytes, one: Path) -> None:
    (one / POLICY).write_bytes(content)
    assert "damaged" in damage(one)


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "format": lambda a: a.update(format=2),
    "no files": lambda a: a.pop("files"),
    "no spec": lambda a: a.pop("spec"),
    "spec": lambda a: a["spec"].pop("action_std"),
    "config": lambda a: a["config"]["algo"].update(alfa=1),
    "variant": lambda a: a["config"]["algo"].update(name="cpq1"),
    "another network": lambda a: a["config"]["algo"]["network"].update(width=24),
    "another variant": lambda a: a.update(config={"algo": {"name": "gaussian_bc"}}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_content_that_does_not_fit_is_named(change: Callable[[dict[str, Any]], Any], one: Path) -> None:
    reseal(one, change)
    assert "damaged" in damage(one)


def test_weights_of_another_layout_are_named(one: Path) -> None:
    path = one / "seed_3.safetensors"
    weights: State = load_file(path)
    first = sorted(weights)[0]
    for changed in (
        {k: v for k, v in weights.items() if k != first},
        weights | {"more": torch.zeros(1)},
        weights | {first: weights[first].double()},
        weights | {first: weights[first][None]},
    ):
        save_file(changed, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        reseal(one, lambda a, d=digest: a["files"].update({path.name: d}))
        assert "tensors do not fit" in damage(one)
