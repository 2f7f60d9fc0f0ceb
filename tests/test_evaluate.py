from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from offrl_ray.algos import make
from offrl_ray.algos.functional import select
from offrl_ray.evaluate import Episodes, EvalRequest, LocalEvaluator, evaluate, evaluate_members
from offrl_ray.policy import Policy, acting
from offrl_ray.train import start
from offrl_ray.types import Algorithm, EnvStep, Noise, Obs, Spec, State
from tests.conftest import OBS, MakeRun, ToyEnv

MEAN, STD = (0.1, -0.2), (0.5, 2.0)
SPEC = Spec(
    obs_shape={"state": (OBS,)},
    obs_mean={"state": (0.5,) * OBS},
    obs_std={"state": (0.25,) * OBS},
    action_dim=2,
    action_mean=MEAN,
    action_std=STD,
    obs_horizon=3,
    pred_horizon=4,
    act_horizon=2,
    q_horizon=2,
    act_offset=0,
    reward_low=0.0,
    reward_high=1.0,
    reward_ends_episode=True,
)
Act = Callable[[Obs, Noise], Tensor]


def policy(act: Act, spec: Spec = SPEC) -> Policy:
    def noise(g: Generator, n: int) -> Noise:
        return {"z": torch.randn((n, spec.act_horizon, spec.action_dim), generator=g)}

    def unused(*args: Any) -> Any:
        raise AssertionError("an evaluation only acts")

    return Policy(Algorithm(unused, unused, unused, noise, lambda state, obs, z: act(obs, z)), spec, {"acting": {}})


def drifting(obs: Obs, noise: Noise) -> Tensor:
    """Depends on every frame of the window and on the noise, one environment at a time."""
    weights = torch.tensor([1.0, -2.0, 3.0])[:, None]
    return (obs["state"] * weights).sum((1, 2))[:, None, None] * 0.1 + 2 * noise["z"]


class Scripted:
    """Episode with seed s has its successes at the steps `script[s]`, and rewards 1, 10, 100 ...

    It terminates where it succeeds, and at the steps `failures[s]`.
    """

    def __init__(
        self,
        script: dict[int, Sequence[int]],
        max_steps: int,
        num_envs: int = 1,
        failures: dict[int, Sequence[int]] | None = None,
    ):
        self.script, self.max_steps, self.num_envs = script, max_steps, num_envs
        self.failures = failures or {}
        self.actions: list[Tensor] = []
        self.frames: list[float] = []

    def _obs(self) -> Obs:
        frame = torch.tensor([[100.0 * s + self.t] * OBS for s in self.seeds])
        self.frames.append(float(frame[0, 0]))
        return {"state": frame}

    def reset(self, seeds: Sequence[int]) -> Obs:
        self.seeds, self.t = list(seeds), 0
        return self._obs()

    def step(self, action: Tensor) -> EnvStep:
        assert self.t < self.max_steps
        self.actions.append(action)
        success, failure = (
            torch.tensor([self.t in steps.get(s, ()) for s in self.seeds]) for steps in (self.script, self.failures)
        )
        reward = torch.full((len(self.seeds),), 10.0**self.t)
        self.t += 1
        late = torch.full_like(success, self.t == self.max_steps)
        return EnvStep(self._obs(), reward, success, success | failure, late)

    def close(self) -> None: ...


@pytest.mark.parametrize(("episodes", "num_envs"), [(1, 1), (5, 1), (5, 2), (4, 4), (3, 8), (8, 3)])
def test_exactly_the_episodes_asked_for_are_counted(episodes: int, num_envs: int) -> None:
    found = evaluate(policy(drifting), ToyEnv(num_envs), episodes, seed=40)
    assert found.seed == list(range(40, 40 + episodes))
    assert {len(column) for column in found} == {episodes}


@pytest.mark.parametrize("num_envs", [2, 3, 7, 10])
def test_an_episode_does_not_depend_on_how_many_run_together(num_envs: int) -> None:
    alone = evaluate(policy(drifting), ToyEnv(), 7, seed=3)
    assert len(set(alone.ret)) > 1
    assert evaluate(policy(drifting), ToyEnv(num_envs), 7, seed=3) == alone


def test_an_episode_is_a_function_of_its_seed() -> None:
    torch.manual_seed(0)
    six = evaluate(policy(drifting), ToyEnv(max_steps=9), 6, seed=0)
    torch.manual_seed(1)
    later = evaluate(policy(drifting), ToyEnv(max_steps=9), 4, seed=2)
    assert Episodes(*(column[2:] for column in six)) == later


def test_two_policies_meet_the_same_starts_and_the_same_noise() -> None:
    seen: dict[str, list[Tensor]] = {"a": [], "b": []}
    for name, scale in (("a", 0.0), ("b", 1.0)):
        env = ToyEnv()
        evaluate(policy(lambda o, z: seen[name].append(z["z"]) or scale * z["z"]), env, 3, seed=5)  # noqa: B023
        assert env.resets == [[5], [6], [7]]
    assert all(a.equal(b) for a, b in zip(seen["a"], seen["b"], strict=True))


@pytest.mark.parametrize("num_envs", [1, 2, 3])
def test_outcomes_of_an_episode(num_envs: int) -> None:
    script = {0: [], 1: [0], 2: [3], 3: [1, 2], 4: range(4)}
    found = evaluate(policy(lambda o, z: 0 * z["z"]), Scripted(script, 4, num_envs), 5, seed=0)
    assert found.success_once == [0, 1, 1, 1, 1]
    assert found.success_at_end == [0, 0, 1, 0, 1]
    assert found.length == [4, 1, 4, 2, 1]
    assert found.ret == [1111.0] * 5


def test_an_episodes_length_is_the_steps_to_its_success_or_termination() -> None:
    script, failures = {0: [3], 1: [1], 2: [], 3: [2]}, {0: [1], 1: [3], 2: [0, 1, 2, 3], 3: [2]}
    found = evaluate(policy(lambda o, z: 0 * z["z"]), Scripted(script, 4, 2, failures), 4, seed=0)
    assert found.length == [2, 2, 1, 3]
    assert found.success_once == [1, 1, 0, 1]
    assert found.success_at_end == [1, 0, 0, 0]


def test_outcomes_are_plain_numbers() -> None:
    for column in evaluate(policy(drifting), ToyEnv(2), 3, seed=0):
        assert {type(x) for x in column} <= {int, float}


@pytest.mark.parametrize(("max_steps", "calls"), [(1, 1), (2, 1), (5, 3), (6, 3)])
def test_the_last_chunk_is_cut_at_the_episodes_end(max_steps: int, calls: int) -> None:
    asked, env = list[Tensor](), Scripted({}, max_steps)
    evaluate(policy(lambda o, z: asked.append(z["z"]) or z["z"]), env, 1, seed=0)
    assert (len(asked), len(env.actions)) == (calls, max_steps)
    chunks = torch.cat([z * torch.tensor(STD) + torch.tensor(MEAN) for z in asked], 1)[0].clamp(-1, 1)
    assert torch.cat(env.actions).equal(chunks[:max_steps])


def test_the_window_is_the_last_frames_oldest_first_and_starts_with_copies() -> None:
    windows, env = list[list[float]](), Scripted({}, 6)

    def act(obs: Obs, noise: Noise) -> Tensor:
        assert obs["state"].shape == (1, 3, OBS)
        windows.append((obs["state"][0, :, 0] * 0.25 + 0.5).tolist())
        return noise["z"]

    evaluate(policy(act), env, 2, seed=1)
    assert windows == [
        [100, 100, 100],
        [100, 101, 102],
        [102, 103, 104],
        [200, 200, 200],  # nothing of the first episode is left
        [200, 201, 202],
        [202, 203, 204],
    ]


def test_a_policy_normalises_observations_and_gives_raw_clamped_actions() -> None:
    seen: list[Obs] = []
    spec = Spec(**SPEC.__dict__ | {"obs_mean": {"state": (1.0,) * OBS}, "obs_std": {"state": (2.0,) * OBS}})
    normal = torch.tensor([[[0.0, 0.0], [1.0, 0.1]], [[9.0, -9.0], [-9.0, 0.6]]])
    frames = [torch.full((2, OBS), float(i)) for i in (1, 3, 5)]
    raw = policy(lambda o, z: seen.append(o) or normal, spec).act({"state": frames}, {})
    assert seen[0]["state"][:, :, 0].tolist() == [[0, 1, 2]] * 2
    torch.testing.assert_close(raw, torch.tensor([[[0.1, -0.2], [0.6, 0.0]], [[1.0, -1.0], [-1.0, 1.0]]]))


def request(tiny: MakeRun) -> tuple[EvalRequest, State]:
    cfg, data = tiny()
    state = start(cfg, make(cfg.algo, data.spec)).state
    members = {seed: acting(state, i) for i, seed in enumerate(cfg.train.seeds)}
    return EvalRequest(8, "digest", cfg, data.spec, members), state


def test_every_member_is_evaluated_by_its_own_weights(tiny: MakeRun) -> None:
    asked, state = request(tiny)
    result = evaluate_members(asked, ToyEnv())
    assert (result.step, result.digest, result.error, list(result.episodes)) == (8, "digest", "", [0, 1])
    alg = make(asked.cfg.algo, asked.spec)
    for i, seed in enumerate(asked.members):
        alone = evaluate(Policy(alg, asked.spec, select(state, i)), ToyEnv(), 2, asked.cfg.eval.seed)
        assert result.episodes[seed] == alone
    assert result.episodes[0].ret != result.episodes[1].ret
    assert result.seconds > 0


def test_acting_holds_nothing_but_the_acting_part(tiny: MakeRun) -> None:
    asked, state = request(tiny)
    for i, seed in enumerate((0, 1)):
        assert list(asked.members[seed]) == ["acting"]
        for k, v in asked.members[seed]["acting"]["policy_ema"].items():
            assert v.equal(state["acting"]["policy_ema"][k][i])


def test_the_local_evaluator_opens_one_environment_at_the_first_request(tiny: MakeRun) -> None:
    opened: list[ToyEnv] = []
    evaluator = LocalEvaluator(lambda: opened.append(ToyEnv()) or opened[-1])  # type: ignore[func-returns-value]
    asked, _ = request(tiny)
    assert (opened, evaluator.pending, evaluator.poll(0)) == ([], 0, [])
    evaluator.submit(asked)
    evaluator.submit(asked._replace(step=12))
    assert (len(opened), evaluator.pending) == (1, 2)
    assert [r.step for r in evaluator.poll(0)] == [8, 12]
    assert (evaluator.pending, evaluator.poll(0)) == (0, [])
