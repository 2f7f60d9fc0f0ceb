"""Rollout actors, and a run's line to them.

The driver makes the actors before any trial exists, so that trials cannot take their share of the cluster; a trial only
finds them by name. A trial never waits for one inside a step, and an actor never calls a trial.
"""

from collections.abc import Sequence
from typing import Any

import ray

from offrl_ray.config import EnvConfig
from offrl_ray.evaluate import EvalRequest, EvalResult, evaluate_members, open_env
from offrl_ray.online import Job, Segment, execute
from offrl_ray.types import Env

RETRIES = 2


class RolloutActor:
    """Evaluates checkpoints in a simulator of its own, one request after the other."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self._envs: dict[EnvConfig, Env] = {}

    def evaluate(self, request: EvalRequest) -> EvalResult:
        env = request.cfg.env
        if env not in self._envs:
            for other in self._envs.values():
                other.close()
            self._envs = {env: open_env(env)}
        return evaluate_members(request, self._envs[env])

    def ping(self) -> bool:
        return True


def start_actors(count: int, namespace: str, cpus: float, gpus: float, timeout: float = 120) -> list[Any]:
    """Named actors `evaluator-0 ...`, each ready. Raises TimeoutError if the cluster has no room for them."""
    remote = ray.remote(RolloutActor)
    actors = [
        remote.options(
            name=f"evaluator-{i}",
            namespace=namespace,
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=-1,
            max_task_retries=1,
        ).remote()
        for i in range(count)
    ]
    try:
        ray.get([a.ping.remote() for a in actors], timeout=timeout)
    except ray.exceptions.GetTimeoutError:
        raise TimeoutError(
            f"{count} evaluation actors of {cpus} CPU and {gpus} GPU each did not start in {timeout:.0f} s; "
            f"the cluster has {ray.cluster_resources()}, free {ray.available_resources()}"
        ) from None
    return actors


class WalkActor:
    """Steps one environment for a run that acts while it trains."""

    def __init__(self, env: EnvConfig):
        import torch

        torch.set_num_threads(1)
        self._env = open_env(env)

    def execute(self, job: Job) -> Segment:
        return execute(self._env, job)


class RayWalk:
    """A `Walk` to an actor of its own. A lost actor is an error: the trial goes on from its checkpoint."""

    def __init__(self, env: EnvConfig):
        # it reserves nothing: while it steps, its trial waits for nothing but it
        self._actor = ray.remote(WalkActor).options(num_cpus=0).remote(env)
        self._out: Any = None

    def send(self, job: Job) -> None:
        self._out = self._actor.execute.remote(job)

    def receive(self) -> Segment:
        return ray.get(self._out)

    def close(self) -> None:
        ray.kill(self._actor)


class RayEvaluator:
    """A trial's `Evaluator` over the named actors; a lost evaluation is asked again, of another actor.

    Trials that began together evaluate together, so each begins its round at another actor: `turn` is its number.
    """

    def __init__(self, names: Sequence[str], namespace: str, turn: int):
        self._actors = [ray.get_actor(name, namespace) for name in names]
        self._turn = turn
        self._open: dict[Any, tuple[EvalRequest, int]] = {}

    def submit(self, request: EvalRequest) -> None:
        self._send(request, 0)

    def _send(self, request: EvalRequest, attempt: int) -> None:
        self._turn += 1
        actor = self._actors[self._turn % len(self._actors)]
        self._open[actor.evaluate.remote(request)] = (request, attempt)

    def poll(self, timeout: float) -> list[EvalResult]:
        if not self._open:
            return []
        done, _ = ray.wait(list(self._open), num_returns=len(self._open), timeout=timeout or 1e-3)
        results = []
        for ref in done:
            request, attempt = self._open.pop(ref)
            try:
                results.append(ray.get(ref))
            except ray.exceptions.RayError as e:
                why = str(e).strip().splitlines()[-1]
                results.append(EvalResult(request.step, request.digest, {}, 0.0, f"attempt {attempt + 1}: {why}"))
                if attempt < RETRIES:
                    self._send(request, attempt + 1)
        return results

    @property
    def pending(self) -> int:
        return len(self._open)
