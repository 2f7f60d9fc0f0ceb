"""What a variant asks of its data is checked before anything starts."""

from typing import Any

import h5py
import pytest

from offrl_ray import cli
from offrl_ray.algos import VARIANTS
from offrl_ray.config import resolve
from offrl_ray.errors import UsageError
from offrl_ray.run import load_data
from tests.conftest import WriteFile

SMALL = {"data.act_horizon": 2, "data.pred_horizon": 4, "env.max_steps": 5}
OFFLINE = [v for v, (config, _) in VARIANTS.items() if not config.needs.online and not config.needs.discrete]


def without_rewards(f: h5py.File, meta: dict[str, Any]) -> None:
    for group in f.values():
        del group["rewards"]
    meta["env_info"]["env_kwargs"]["reward_mode"] = None


@pytest.mark.parametrize("variant", OFFLINE)
def test_only_variants_that_need_rewards_refuse_a_file_without(variant: str, write_file: WriteFile) -> None:
    cfg = resolve({"algo.name": variant, "data.files": [str(write_file(damage=without_rewards))], **SMALL})
    if not VARIANTS[variant][0].needs.rewards:
        data = load_data(cfg)
        assert (data.spec.reward_low, data.spec.reward_high) == (0.0, 0.0)
        return
    with pytest.raises(UsageError, match=r"rewards are missing.*data replay"):
        load_data(cfg)


def test_the_baselines_are_the_ones_without_rewards() -> None:
    assert {v for v, (config, _) in VARIANTS.items() if not config.needs.rewards} == {"flow_bc", "gaussian_bc"}


def test_a_discrete_variant_refuses_continuous_actions(write_file: WriteFile) -> None:
    modes = {"control_mode": "native", "reward_mode": "native", "sim_backend": "native"}
    path = write_file(env_id="Toy-v1", **modes)
    with pytest.raises(UsageError, match="cql_dqn needs discrete actions, but the data's are continuous"):
        load_data(resolve({"algo.name": "cql_dqn", "data.files": [str(path)]}))


@pytest.mark.parametrize("variant", OFFLINE)
def test_a_continuous_variant_refuses_discrete_actions(variant: str, write_file: WriteFile) -> None:
    def discrete(f: h5py.File, meta: dict[str, Any]) -> None:
        meta["env_info"]["num_actions"] = 2
        for group in f.values():
            actions = (group["actions"][:, :1] > 0).astype("float32")
            del group["actions"]
            group["actions"] = actions

    cfg = resolve({"algo.name": variant, "data.files": [str(write_file(damage=discrete))], **SMALL})
    with pytest.raises(UsageError, match=f"{variant} needs continuous actions, but the data's are discrete"):
        load_data(cfg)


@pytest.mark.parametrize(
    ("variant", "setting", "words"),
    [
        ("sac", "algo.expectile=1.5", ["algo.expectile", "less than 1", "1.5"]),
        ("sac", "algo.num_min=11", ["num_min must be <= num_critics", "11 > 10"]),
        ("cql", "algo.num_samples=0", ["algo.num_samples", "0"]),
        ("dqc", "algo.kappa_b=1", ["algo.kappa_b", "less than 1"]),
        ("awcp", "algo.expectile=0", ["algo.expectile", "greater than 0"]),
        ("cpql", "data.q_horizon=16", ["data.q_horizon must be data.act_horizon", "cpql", "16"]),
        ("sac", "data.q_horizon=4", ["data.q_horizon must be"]),
    ],
)
def test_bad_settings_end_with_2_before_anything_is_written(
    variant: str, setting: str, words: list[str], write_file: WriteFile, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_file()
    out = path.parent / "run"
    assert cli.main(["train", variant, "--data", str(path), "--out", str(out), "--set", setting]) == 2
    told = capsys.readouterr().err
    assert all(w in told for w in words), told
    assert not out.exists()


def test_a_wrong_setting_does_not_make_a_file_without_rewards_look_wrong(
    write_file: WriteFile, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_file(damage=without_rewards)
    words = ["--data", str(path), "--out", str(path.parent / "run"), "--set", "algo.lr=-1"]
    assert cli.main(["train", "flow_bc", *words]) == 2
    told = capsys.readouterr().err
    assert "algo.lr" in told
    assert "reward" not in told
