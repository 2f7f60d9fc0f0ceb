"""Gymnasium's environments behind the project's own protocol, stepped for real."""

from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from offrl_ray.algos.functional import stack
from offrl_ray.config import EnvConfig
from offrl_ray.envs.classic import GymEnv
from offrl_ray.errors import UsageError
from offrl_ray.evaluate import evaluate, open_env
from offrl_ray.policy import Policy
from offrl_ray.types import Algorithm, EnvStep, Noise, Obs, Spec

NATIVE = {"control_mode": "native", "reward_mode": "native", "sim_backend": "native"}
Control = Callable[[Tensor], Tensor]


def balance(state: Tensor) -> Tensor:
    """Push to the side to which CartPole's pole leans or falls, [N, 4] -> [N]; keeps it up for 500 steps."""
    return ((state * torch.tensor([0.05, 0.1, 1.0, 0.5])).sum(-1) > 0).float()


def right(state: Tensor) -> Tensor:
    """Always to the right: the pole falls within a dozen steps."""
    return torch.ones(state.shape[:-1])


def roll(env: GymEnv, seeds: list[int], control: Control = balance, steps: int | None = None) -> EnvStep:
    """All steps of one rollout; fields [T, N, ...]."""
    state, found = env.reset(seeds)["state"], []
    for _ in range(steps or env.max_steps):
        found.append(env.step(control(state)[:, None]))
        state = found[-1].obs["state"]
    fields = stack([{"obs": s.obs["state"], **{k: v for k, v in s._asdict().items() if k != "obs"}} for s in found])
    return EnvStep(**fields)


def test_shapes_types_and_sizes() -> None:
    env = GymEnv("CartPole-v1", num_envs=3)
    assert (env.num_envs, env.max_steps, env.num_actions, env.action_dim, env.obs_dim) == (3, 200, 2, 1, 4)
    state = env.reset([0, 1, 2])["state"]
    assert (state.shape, state.dtype) == ((3, 4), torch.float32)
    step = env.step(torch.ones(3, 1))
    assert (step.obs["state"].shape, step.obs["state"].dtype) == ((3, 4), torch.float32)
    assert (step.reward.shape, step.reward.dtype) == ((3,), torch.float32)
    for flag in (step.success, step.terminated, step.truncated):
        assert (flag.shape, flag.dtype) == ((3,), torch.bool)


def test_an_episode_is_gymnasiums_own() -> None:
    plain, env = gym.make("CartPole-v1"), GymEnv("CartPole-v1")
    frame, _ = plain.reset(seed=7)
    state = env.reset([7])["state"]
    for i in range(8):
        np.testing.assert_array_equal(state[0].numpy(), frame)
        frame, reward, terminated, truncated, _ = plain.step(i % 2)
        step = env.step(torch.tensor([[float(i % 2)]]))
        state = step.obs["state"]
        assert (step.reward.item(), step.terminated.item(), step.truncated.item()) == (reward, terminated, truncated)


@pytest.mark.parametrize("control", [balance, right])
def test_an_episode_depends_on_its_seed_and_actions_alone(control: Control) -> None:
    together, env = roll(GymEnv("CartPole-v1", num_envs=3), [5, 6, 7], control), GymEnv("CartPole-v1")
    for i, seed in enumerate((5, 6, 7)):
        alone = roll(env, [seed], control)
        assert all(a[:, 0].equal(b[:, i]) for a, b in zip(alone, together, strict=True))
    assert not together.obs[:, 0].equal(together.obs[:, 1])


def test_after_its_end_an_episode_stays_where_it_is_and_pays_nothing() -> None:
    env = GymEnv("CartPole-v1", num_envs=2, max_steps=30)
    found = roll(env, [0, 1], right)
    lengths = []
    for i in range(2):
        end = int(found.terminated[:, i].nonzero()[0])
        lengths.append(end + 1)
        assert found.terminated[end:, i].all()
        assert found.reward[:, i].tolist() == [1.0] * (end + 1) + [0.0] * (29 - end)
        assert (found.obs[end:, i] == found.obs[end, i]).all()
        assert not found.truncated[:, i].any()
    assert lengths[0] != lengths[1]
    assert (env.reset([0, 1])["state"].abs() <= 0.05).all()
    assert env.step(torch.ones(2, 1)).reward.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("max_steps", [1, 30, 500, 510])
def test_an_episode_that_never_ends_is_truncated_at_the_last_step(max_steps: int) -> None:
    found = roll(GymEnv("CartPole-v1", max_steps=max_steps), [0])
    assert found.truncated[:, 0].tolist() == [False] * (max_steps - 1) + [True]
    assert not found.terminated.any()


@pytest.mark.parametrize(("max_steps", "success"), [(200, False), (490, False), (500, True), (510, True)])
def test_success_is_a_whole_episode_that_reaches_the_registered_return(max_steps: int, success: bool) -> None:
    found = roll(GymEnv("CartPole-v1", max_steps=max_steps), [0])
    assert found.success[:, 0].tolist() == [False] * (max_steps - 1) + [success]
    assert not roll(GymEnv("CartPole-v1", max_steps=max_steps), [0], right).success.any()


def test_a_small_cost_so_far_is_no_success() -> None:
    """Acrobot pays -1 a step and counts as solved from -100 on; one that hangs still for 50 steps is not."""
    found = roll(GymEnv("Acrobot-v1", max_steps=50), [0], right)
    assert found.reward.sum() == -50
    assert not found.success.any()


def test_an_environment_without_a_threshold_has_no_successes() -> None:
    assert not roll(GymEnv("Pendulum-v1", max_steps=200), [0], right).success.any()


def test_vectors_in_minus_one_to_one_stand_for_the_bounds() -> None:
    plain, env = gym.make("Pendulum-v1"), GymEnv("Pendulum-v1", num_envs=2)
    assert (env.num_actions, env.action_dim, env.obs_dim) == (0, 1, 3)
    for action, torque in ((0.5, 1.0), (-1.0, -2.0), (3.0, 2.0)):
        plain.reset(seed=1)
        env.reset([1, 1])
        frame, reward, *_ = plain.step(np.array([torque], np.float32))
        step = env.step(torch.full((2, 1), action))
        np.testing.assert_array_equal(step.obs["state"][1].numpy(), frame)
        assert step.reward[1].item() == pytest.approx(reward)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"env_id": "CartPole"}, ["'CartPole'", "did you mean CartPole-v1"]),
        ({"env_id": "LiftPegUpright-v1"}, ["gymnasium's own", "'LiftPegUpright-v1'", "physx_cpu"]),
        ({"env_id": ""}, ["env_id", "''"]),
        ({"reward_mode": "sparse"}, ["reward_mode must be native", "'sparse'"]),
        ({"num_envs": 0}, ["num_envs", "0"]),
        ({"max_steps": 0}, ["max_steps", "0"]),
        ({"env_id": "FrozenLake-v1"}, ["observations must be a vector", "Discrete(16)"]),
    ],
)
def test_bad_arguments(arguments: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UsageError) as e:
        GymEnv(**{"env_id": "CartPole-v1", **arguments})  # type: ignore[arg-type]
    (problem,) = e.value.problems
    assert all(word in problem for word in words)


def test_all_bad_arguments_at_once() -> None:
    with pytest.raises(UsageError) as e:
        GymEnv("nothing", "dense", num_envs=0, max_steps=0)
    assert len(e.value.problems) == 4


@pytest.mark.parametrize(
    ("env_id", "action", "words"),
    [
        ("CartPole-v1", [[1.0]], r"must be \[2, 1\], but got \[1, 1\]"),
        ("CartPole-v1", [1.0, 1.0], r"must be \[2, 1\], but got \[2\]"),
        ("CartPole-v1", [[0.0], [2.0]], r"an index, 0 to 1, but got \[0.0, 2.0\]"),
        ("CartPole-v1", [[0.5], [1.0]], r"\[0.5, 1.0\]"),
        ("CartPole-v1", [[0.0], [-1.0]], "an index"),
        ("CartPole-v1", [[0.0], [np.nan]], "an index"),
        ("Pendulum-v1", [[0.0], [np.nan]], "finite"),
    ],
)
def test_bad_actions(env_id: str, action: list[object], words: str) -> None:
    env = GymEnv(env_id, num_envs=2)
    env.reset([0, 1])
    with pytest.raises(ValueError, match=words):
        env.step(torch.tensor(action))


def test_a_wrong_number_of_seeds() -> None:
    with pytest.raises(ValueError, match="one seed per environment: 2, but got 1"):
        GymEnv("CartPole-v1", num_envs=2).reset([0])


def test_a_config_opens_it() -> None:
    env = open_env(EnvConfig(id="CartPole-v1", num_envs=5, max_steps=20, **NATIVE))
    assert isinstance(env, GymEnv)
    assert (env.env_id, env.num_envs, env.max_steps) == ("CartPole-v1", 5, 20)
    with pytest.raises(UsageError, match=r"'PushCube-v1'.*physx_cpu"):
        open_env(EnvConfig(id="PushCube-v1", **NATIVE))


def pushing(control: Control) -> Policy:
    """A policy of raw frames."""
    spec = Spec(
        obs_shape={"state": (4,)},
        obs_mean={"state": (0.0,) * 4},
        obs_std={"state": (1.0,) * 4},
        action_dim=1,
        action_mean=(0.0,),
        action_std=(1.0,),
        obs_horizon=1,
        pred_horizon=1,
        act_horizon=1,
        q_horizon=1,
        act_offset=0,
        reward_low=1.0,
        reward_high=1.0,
        reward_ends_episode=False,
        num_actions=2,
    )

    def unused(*args: object) -> None:
        raise AssertionError("an evaluation only acts")

    def silent(g: Generator, n: int) -> Noise:
        return {}

    def act(state: object, obs: Obs, noise: Noise) -> Tensor:
        return control(obs["state"][:, 0])[:, None, None]

    return Policy(Algorithm(unused, silent, unused, silent, act), spec, {"acting": {}})  # type: ignore[arg-type]


@pytest.mark.parametrize("num_envs", [1, 2, 5])
def test_an_evaluation_counts_steps_until_the_pole_falls(num_envs: int) -> None:
    falls = evaluate(pushing(right), GymEnv("CartPole-v1", num_envs=num_envs), 3, seed=10)
    assert falls.length == [int(r) for r in falls.ret]
    assert max(falls.length) < 15
    assert falls.success_once == falls.success_at_end == [0, 0, 0]
    stands = evaluate(pushing(balance), GymEnv("CartPole-v1", num_envs=num_envs), 3, seed=10)
    assert (stands.length, stands.ret) == ([200] * 3, [200.0] * 3)
    solves = evaluate(pushing(balance), GymEnv("CartPole-v1", num_envs=num_envs, max_steps=500), 2, seed=10)
    assert (solves.length, solves.success_once, solves.success_at_end) == ([500] * 2, [1, 1], [1, 1])
