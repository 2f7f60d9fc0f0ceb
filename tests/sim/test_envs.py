from types import SimpleNamespace

import numpy as np
import pytest
import torch

from offrl_ray.envs import headless
from offrl_ray.envs.experts import EXPERTS, Trajectory, demonstrate
from offrl_ray.envs.maniskill import ManiSkillEnv
from offrl_ray.errors import UsageError

pytestmark = pytest.mark.sim

TASK = "LiftPegUpright-v1"


@pytest.fixture(scope="module")
def envs():
    return {env_id: ManiSkillEnv(env_id) for env_id in EXPERTS}


def demo(env: ManiSkillEnv, seed: int, noise: float = 0.0) -> Trajectory:
    return demonstrate(env, seed, noise, np.random.default_rng(seed))


def test_shapes_and_dtypes(envs):
    env = envs[TASK]
    assert (env.num_envs, env.max_steps, env.action_dim) == (1, 100, 7)
    obs = env.reset([0])
    step = env.step(torch.zeros(1, 7))
    for state in (obs["state"], step.obs["state"]):
        assert (state.shape, state.dtype, state.device.type) == ((1, 32), torch.float32, "cpu")
    assert (step.reward.shape, step.reward.dtype) == ((1,), torch.float32)
    for flag in (step.success, step.terminated, step.truncated):
        assert (flag.shape, flag.dtype) == ((1,), torch.bool)
    assert env.get_state_dict()["actors"]["peg"].shape == (1, 13)


def test_terminations_are_reported_not_acted_on(envs):
    env = envs["PushCube-v1"]
    last = torch.from_numpy(demo(env, 0).obs[-1])
    step = env.step(torch.zeros(1, 7))
    assert step.terminated
    assert step.success
    assert step.reward == 1
    assert (step.obs["state"][0] - last)[:7].abs().max() < 0.1


def test_max_steps_replaces_the_limit_of_the_task():
    env = ManiSkillEnv(TASK, max_steps=60)  # 50 in ManiSkill
    env.reset([0])
    flags = [bool(env.step(torch.zeros(1, 7)).truncated) for _ in range(60)]
    assert flags == [False] * 59 + [True]


@pytest.mark.parametrize("env_id", EXPERTS)
def test_episode_is_bitwise_free_of_history(env_id, envs):
    seeds = (0, 2, 4)
    alone = [demo(ManiSkillEnv(env_id), seed, 0.1) for seed in seeds]
    for seed, expected in zip(seeds, alone, strict=True):
        demo(envs[env_id], 100 + seed, 0.3)
        again = demo(envs[env_id], seed, 0.1)
        np.testing.assert_array_equal(again.actions, expected.actions)
        np.testing.assert_array_equal(again.obs, expected.obs)
        np.testing.assert_array_equal(again.rewards, expected.rewards)


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("env_id", EXPERTS)
def test_experts_succeed(env_id, noise, envs):
    episodes = [demo(envs[env_id], 50 + i, noise) for i in range(4)]
    assert [bool(e.success[-1]) for e in episodes] == [True] * 4
    assert all(np.abs(e.actions).max() <= 1 for e in episodes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env_id": "LiftPegUpright"}, "'LiftPegUpright'; did you mean LiftPegUpright-v1"),
        ({"env_id": "CartPole-v1"}, "sim_backend physx_cpu, but got 'CartPole-v1'; .* need native"),
        ({"control_mode": "pd_ee_delta_poses"}, "'pd_ee_delta_poses'; did you mean pd_ee_delta_pose"),
        ({"control_mode": "pd_joint_pos"}, r"\[-1, 1\], but control_mode 'pd_joint_pos'"),
        ({"reward_mode": "spares"}, "'spares'; did you mean sparse"),
        ({"obs_mode": "rgb"}, "obs_mode .* 'rgb'; known: state"),
        ({"sim_backend": "physx_gpu"}, "'physx_gpu'; did you mean physx_cpu or physx_cuda"),
        ({"num_envs": 2}, "num_envs must be 1 on physx_cpu, but got 2"),
        ({"env_id": "PickSingleYCB-v1"}, "download_asset PickSingleYCB-v1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UsageError, match=message):
        ManiSkillEnv(**{"env_id": TASK} | arguments)


def test_all_bad_arguments_at_once():
    with pytest.raises(UsageError) as raised:
        ManiSkillEnv("nothing", obs_mode="rgb", num_envs=2, max_steps=0)
    assert len(raised.value.problems) == 4


def test_bad_calls(envs):
    env = envs[TASK]
    with pytest.raises(ValueError, match="one seed per environment: 1, but got 2"):
        env.reset([0, 1])
    env.reset([0])
    with pytest.raises(ValueError, match=r"must be \[1, 7\], but got \[7\]"):
        env.step(torch.zeros(7))


def test_gpu_reset_seeds_each_environment_by_itself():
    calls = []

    def reset(seed, options):
        calls.append((seed, options["env_idx"].tolist()))
        return torch.zeros(3, 5), {}

    env = object.__new__(ManiSkillEnv)
    env.num_envs, env.sim_backend = 3, "physx_cuda"
    env._env, env.task = SimpleNamespace(reset=reset), SimpleNamespace(device="cpu")
    assert env.reset([7, 8, 9])["state"].shape == (3, 5)
    assert calls == [([7] * 3, [0]), ([8] * 3, [1]), ([9] * 3, [2])]


def test_stand_in_material_takes_everything():
    material = headless._NoMaterial(base_color=[1, 0, 0, 1])
    material.metallic = 1.0
    assert material.set_roughness(0.5) is None
    assert headless.install() == headless.install()
