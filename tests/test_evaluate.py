import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from offrl_ray.algos import make
from offrl_ray.algos.functional import select, stack
from offrl_ray.evaluate import Episodes, EvalRequest, LocalEvaluator, evaluate, evaluate_members
from offrl_ray.policy import Policy, acting, acting_and_critic
from offrl_ray.records import VERSION, decode, encode
from offrl_ray.run import eval_record
from offrl_ray.sweep.state import means
from offrl_ray.train import start
from offrl_ray.types import Algorithm, Critic, EnvStep, Noise, Obs, Spec, State
from tests.conftest import OBS, MakeRun, ToyEnv
from tests.toys import algorithm, different, generator

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


def policy(act: Act, spec: Spec = SPEC, critic: Critic | None = None) -> Policy:
    def noise(g: Generator, n: int) -> Noise:
        return {"z": torch.randn((n, spec.act_horizon, spec.action_dim), generator=g)}

    def unused(*args: Any) -> Any:
        raise AssertionError("an evaluation only acts")

    alg = Algorithm(unused, unused, unused, noise, lambda state, obs, z: act(obs, z), critic=critic)
    return Policy(alg, spec, {"acting": {}})


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
    assert {len(column) for column in found[:5]} == {episodes}


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
    assert Episodes(*(column[2:] for column in six[:5])) == later


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


FIRST = Critic(lambda state, obs, chunk: obs["state"][:, 0, 0], gamma=0.5, reward_scale=0.1)


@pytest.mark.parametrize("num_envs", [1, 2, 3])
def test_a_discounted_return_is_what_the_critic_foretells(num_envs: int) -> None:
    """Rewards are 1, 10, 100, 1000: half of each step's counts a step before, and all a tenth."""
    script, failures = {0: [], 1: [0], 2: [3], 3: [1, 2]}, {4: [2, 3]}
    env = Scripted(script, 4, num_envs, failures)
    found = evaluate(policy(lambda o, z: 0 * z["z"], critic=FIRST), env, 5, seed=0)
    assert found.discounted_return == pytest.approx([15.6, 0.1, 15.6, 0.6, 3.1])
    assert found.ret == [1111.0] * 5


@pytest.mark.parametrize("num_envs", [1, 3])
def test_q_is_of_the_first_observation_and_the_chunk_that_is_executed_there(num_envs: int) -> None:
    seen: list[tuple[Obs, Tensor]] = []

    def q(state: State, obs: Obs, chunk: Tensor) -> Tensor:
        seen.append((obs, chunk))
        return obs["state"][:, -1, 0] + 1000 * chunk[:, 1, 0]

    env = Scripted({}, 4, num_envs)
    beyond = torch.tensor([[9.0, 0.0], [-9.0, 0.5]])  # raw: 1, -0.2 and -1, 0.8
    found = evaluate(policy(lambda o, z: beyond.expand_as(z["z"]), critic=Critic(q, 0.9, 1.0)), env, 3, seed=7)
    executed = (torch.tensor([[1.0, -0.2], [-1.0, 0.8]]) - torch.tensor(MEAN)) / torch.tensor(STD)
    assert len(seen) == 3 // num_envs
    for obs, chunk in seen:
        assert obs["state"].shape == (num_envs, 3, OBS)
        torch.testing.assert_close(chunk, executed.expand(num_envs, 2, 2))
        assert torch.equal(chunk * torch.tensor(STD) + torch.tensor(MEAN), torch.stack(env.actions[:2], 1))
    assert found.q_start == pytest.approx([(100 * s - 0.5) / 0.25 - 2200 for s in (7, 8, 9)])


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_diverged_critic_is_recorded_and_stops_nothing(value: float, tiny: MakeRun) -> None:
    asked, state = request(tiny)
    state["critic"]["b_out"].fill_(value)
    asked = asked._replace(members={seed: acting_and_critic(state, i) for i, seed in enumerate(asked.members)})
    result = evaluate_members(asked, ToyEnv())
    record = decode(encode({"v": VERSION, "seq": 0, **eval_record(asked.cfg, "00", 1, result)}))
    assert record["q_start"] == [str(value)] * 2
    assert all(math.isfinite(r) for r in record["discounted_return"])
    assert str(means(record)["q_gap"]) == str(value)


def test_outcomes_are_plain_numbers() -> None:
    for column in evaluate(policy(drifting, critic=FIRST), ToyEnv(2), 3, seed=0):
        assert {type(x) for x in column or [None]} <= {int, float}


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
    members = {seed: acting_and_critic(state, i) for i, seed in enumerate(cfg.train.seeds)}
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


@pytest.mark.parametrize(("part", "holds"), [(acting, ["acting"]), (acting_and_critic, ["acting", "critic"])])
def test_a_member_holds_its_own_weights_and_no_others(
    part: Callable[[State, int], State], holds: list[str], tiny: MakeRun
) -> None:
    _, state = request(tiny)
    for i in (0, 1):
        member = part(state, i)
        assert list(member) == holds
        assert not different(member, {k: select(state[k], i) for k in holds})


@pytest.mark.parametrize("variant", ["flow_bc", "gaussian_bc"])
def test_a_variant_without_critic_foretells_nothing(variant: str) -> None:
    alg, _ = algorithm(variant, spec=SPEC)
    state = acting_and_critic(stack([alg.init(generator())]), 0)
    assert list(state) == ["acting"]
    found = evaluate(Policy(alg, SPEC, state), Scripted({}, 4), 2, 0)
    assert (found.q_start, found.discounted_return, found.ret) == (None, None, [1111.0] * 2)


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
