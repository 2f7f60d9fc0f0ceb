"""Roll a policy out and keep what happened in every episode."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from offrl_ray.algos import make
from offrl_ray.algos.functional import to_device
from offrl_ray.config import EnvConfig, RunConfig
from offrl_ray.envs.classic import GymEnv
from offrl_ray.envs.maniskill import ManiSkillEnv
from offrl_ray.policy import Policy
from offrl_ray.types import Critic, Env, Spec, State


class Episodes(NamedTuple):
    """One entry per episode; an episode always runs to the environment's `max_steps`."""

    seed: list[int]
    success_once: list[int]  # 1 if any step was a success
    success_at_end: list[int]  # 1 if the last step was
    ret: list[float]  # undiscounted sum of raw rewards
    length: list[int]  # steps to the first success or termination, or all
    q_start: list[float] | None = None  # the critic's Q of the first executed chunk; None: the variant has no critic
    discounted_return: list[float] | None = None  # what that Q is to foretell; None likewise


class _Rollout(NamedTuple):
    success: Tensor  # [T, N]
    terminated: Tensor  # [T, N]
    reward: Tensor  # [T, N]
    q_start: Tensor | None  # [N]


@torch.no_grad()
def evaluate(policy: Policy, env: Env, episodes: int, seed: int) -> Episodes:
    """Episode i starts from env seed `seed + i` and draws its policy noise from the same number.

    So an episode does not depend on how many run together, and two policies meet the same starts.
    """
    result, critic = Episodes([], [], [], [], []), policy.alg.critic
    q_start, discounted = list[float](), list[float]()
    for first in range(0, episodes, env.num_envs):
        seeds = [seed + first + i for i in range(env.num_envs)]
        success, terminated, reward, q = _rollout(policy, env, seeds)
        for i in range(min(env.num_envs, episodes - first)):
            ends = (success | terminated)[:, i].nonzero()
            result.seed.append(seeds[i])
            result.success_once.append(int(success[:, i].any()))
            result.success_at_end.append(int(success[-1, i]))
            result.ret.append(float(reward[:, i].sum()))
            result.length.append(int(ends[0]) + 1 if len(ends) else len(success))
            if critic is not None and q is not None:
                q_start.append(float(q[i]))
                discounted.append(discounted_return(reward[:, i], terminated[:, i], critic))
    return result if critic is None else result._replace(q_start=q_start, discounted_return=discounted)


def discounted_return(reward: Tensor, terminated: Tensor, critic: Critic) -> float:
    """sum_t gamma^t r_t in the critic's units, up to and including the first terminated step; both [T].

    Of an episode that a time limit cuts short the critic also expects what would have come after.
    """
    ends = terminated.nonzero()
    rewards = reward[: int(ends[0]) + 1 if len(ends) else None].tolist()
    return critic.reward_scale * sum(critic.gamma**t * r for t, r in enumerate(rewards))


def _rollout(policy: Policy, env: Env, seeds: Sequence[int]) -> _Rollout:
    spec = policy.spec
    frame = env.reset(seeds)
    device = next(iter(frame.values())).device
    generators = [Generator(device).manual_seed(s) for s in seeds]
    window = {k: [v] * spec.obs_horizon for k, v in frame.items()}
    steps: list[tuple[Tensor, Tensor, Tensor]] = []
    q_start: Tensor | None = None
    while len(steps) < env.max_steps:
        draws = [policy.alg.act_noise(g, 1) for g in generators]
        chunk = policy.act(window, {k: torch.cat([d[k] for d in draws]) for k in draws[0]})
        if not steps:
            q_start = policy.value(window, chunk)
        for h in range(min(spec.act_horizon, env.max_steps - len(steps))):
            step = env.step(chunk[:, h])
            window = {k: [*frames[1:], step.obs[k]] for k, frames in window.items()}
            steps.append((step.success, step.terminated, step.reward))
    success, terminated, reward = (torch.stack(column).cpu() for column in zip(*steps, strict=True))
    return _Rollout(success, terminated, reward, q_start)


def open_env(env: EnvConfig) -> Env:
    """The simulator that a config describes. Raises UsageError if this machine cannot build it."""
    if env.sim_backend == "native":
        return GymEnv(env.id or "", env.reward_mode, env.num_envs, env.max_steps)
    return ManiSkillEnv(
        env.id or "",
        control_mode=env.control_mode,
        reward_mode=env.reward_mode,
        sim_backend=env.sim_backend,
        num_envs=env.num_envs,
        max_steps=env.max_steps,
    )


class EvalRequest(NamedTuple):
    """One checkpoint to evaluate: all its healthy members."""

    step: int
    digest: str  # of the checkpoint
    cfg: RunConfig
    spec: Spec
    members: dict[int, State]  # seed -> what `policy.acting_and_critic` gives


class EvalResult(NamedTuple):
    step: int
    digest: str
    episodes: dict[int, Episodes]  # by seed; empty if it failed
    seconds: float
    error: str  # "" if all went well


def evaluate_members(request: EvalRequest, env: Env) -> EvalResult:
    """`evaluate` every member of a request on the config's evaluation seeds."""
    began = time.perf_counter()
    alg = make(request.cfg.algo, request.spec)
    device = "cuda" if request.cfg.env.sim_backend == "physx_cuda" else "cpu"
    results = {}
    for seed, state in request.members.items():
        policy = Policy(alg, request.spec, to_device(state, device))
        results[seed] = evaluate(policy, env, request.cfg.eval.episodes, request.cfg.eval.seed)
    return EvalResult(request.step, request.digest, results, time.perf_counter() - began, "")


def is_finite(state: State) -> bool:
    """True if no tensor of a nested dict has a NaN or an infinity."""
    return all(is_finite(v) if isinstance(v, dict) else bool(v.isfinite().all()) for v in state.values())


class Evaluator(Protocol):
    """Where a run sends its evaluations. A run never waits inside `submit`."""

    def submit(self, request: EvalRequest) -> None: ...

    def poll(self, timeout: float) -> list[EvalResult]:
        """Finished evaluations, after waiting at most so many seconds for one."""

    @property
    def pending(self) -> int:
        """Evaluations submitted and not yet polled."""


class LocalEvaluator:
    """Evaluates in this process; the environment is opened at the first request."""

    def __init__(self, open_env: Callable[[], Env]):
        self._open_env = open_env
        self._env: Env | None = None
        self._done: list[EvalResult] = []

    def submit(self, request: EvalRequest) -> None:
        self._env = self._env or self._open_env()
        self._done.append(evaluate_members(request, self._env))

    def poll(self, timeout: float) -> list[EvalResult]:
        done, self._done = self._done, []
        return done

    @property
    def pending(self) -> int:
        return len(self._done)
