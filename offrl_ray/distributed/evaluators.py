"""Rollout actors, and a run's line to them.

The driver makes the actors before any trial exists, so that trials cannot take their share of the cluster; a trial only
finds them by name. A trial never waits for one inside a step, and an actor never calls a trial.
"""

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from offrl_ray.config import EnvConfig
from offrl_ray.evaluate import EvalRequest, EvalResult, evaluate_members, open_env
from offrl_ray.online import Job, Segment, execute
from offrl_ray.types import Env

RETRIES = 2
ANSWER_SECONDS = 15  # more than an actor takes to restart
LOOK_SECONDS = 15  # between two looks at an actor that has work of ours, or is down


class RolloutActor:
    """Evaluates checkpoints in a simulator of its own, one request after the other."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self._envs: dict[EnvConfig, Env] = {}
        self._since: float | None = None

    def evaluate(self, request: EvalRequest) -> EvalResult:
        env, self._since = request.cfg.env, time.monotonic()
        try:
            if env not in self._envs:
                for other in self._envs.values():
                    other.close()
                self._envs = {env: open_env(env)}
            return evaluate_members(request, self._envs[env])
        finally:
            self._since = None

    @ray.method(concurrency_group="health")
    def busy(self) -> float:
        """Seconds spent on the evaluation in progress; answers beside it."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since


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
        # on the node of its trial, and it reserves nothing: while it steps, its trial waits for nothing but it
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._actor = ray.remote(WalkActor).options(num_cpus=0, scheduling_strategy=here).remote(env)
        self._out: Any = None

    def send(self, job: Job) -> None:
        self._out = self._actor.execute.remote(job)

    def receive(self) -> Segment:
        return ray.get(self._out)

    def close(self) -> None:
        ray.kill(self._actor)


class RayEvaluator:
    """A trial's `Evaluator` over the named actors; a lost evaluation is asked again, of another actor.

    An actor that spends more than `limit` seconds on one evaluation hangs: it is killed, and Ray starts it anew. One
    that does not answer, as its node is gone or it has no room yet, is down: until it answers, the others have its
    evaluations, and that is no attempt at them. `turn` says at which actor the round begins.
    """

    def __init__(self, names: Sequence[str], namespace: str, turn: int, limit: float):
        self._actors = [ray.get_actor(name, namespace) for name in names]
        self._turn, self._limit = turn, limit
        self._open: dict[Any, _Asked] = {}  # in the order in which they were asked
        self._parked: list[_Asked] = []  # lost with an actor that cannot be reached; asked again when that is settled
        self._looks: dict[int, tuple[Any, float]] = {}  # actor -> the question whether it is busy, and since when
        self._looked: dict[int, float] = {}  # actor -> when it was last known how it is
        self._down: dict[int, float] = {}  # actor -> since when it does not answer

    def submit(self, request: EvalRequest) -> None:
        self._send(_Asked(request))

    def _send(self, asked: "_Asked") -> None:
        for _ in self._actors:
            self._turn += 1
            if self._turn % len(self._actors) not in self._down:
                break
        which, now = self._turn % len(self._actors), time.monotonic()
        self._open[self._actors[which].evaluate.remote(asked.request)] = asked._replace(which=which, since=now)
        self._looked.setdefault(which, now)

    def poll(self, timeout: float) -> list[EvalResult]:
        if not self._open:
            time.sleep(timeout if self._parked else 0)
        refs = list(self._open)
        done, waiting = ray.wait(refs, num_returns=len(refs), timeout=timeout or 1e-3) if refs else ([], [])
        results = []
        for ref in done:
            asked = self._open.pop(ref)
            try:
                results.append(ray.get(ref))
            except ray.exceptions.ActorUnavailableError:
                self._parked.append(asked)
            except ray.exceptions.RayError as e:
                results.append(self._lost(asked, str(e).strip().splitlines()[-1]))
        late = [ref for ref in waiting if time.monotonic() - self._open[ref].since > self._limit]
        for which in dict.fromkeys(self._open[ref].which for ref in late):
            results += self._judge(which, [ref for ref in late if self._open[ref].which == which])
        for which in dict.fromkeys(asked.which for asked in self._parked):
            results += self._reach(which)
        for which in dict.fromkeys([*(asked.which for asked in self._open.values()), *self._down]):
            if time.monotonic() - self._looked.get(which, 0) > LOOK_SECONDS:
                results += self._look(which)
        return results

    def _reach(self, which: int) -> list[EvalResult]:
        """What was parked is asked again when its actor has answered, or has been killed because it did not."""
        busy = self._busy(which)
        if busy is None:
            return []
        if busy > self._limit:
            ray.kill(self._actors[which], no_restart=False)
        parked = [asked for asked in self._parked if asked.which == which]
        self._parked = [asked for asked in self._parked if asked.which != which]
        return [r for asked in parked for r in self._away(asked, "its evaluator could not be reached")]

    def _judge(self, which: int, late: list[Any]) -> list[EvalResult]:
        """Of a trial's late evaluations the first alone may be the one that hangs; the others were behind it."""
        busy = self._busy(which)
        if busy is None:
            return []
        lost = []
        if busy > self._limit:
            ray.kill(self._actors[which], no_restart=False)
            lost = [self._lost(self._open.pop(late[0]), f"no answer in {self._limit:g} s")]
        for ref in late[len(lost) :]:
            self._open[ref] = self._open[ref]._replace(since=time.monotonic())
        return lost

    def _look(self, which: int) -> list[EvalResult]:
        """The evaluations of an actor that is down go to those that are not."""
        if self._busy(which) is None or which not in self._down:
            return []
        if time.monotonic() - self._down[which] > self._limit:  # it may be frozen
            ray.kill(self._actors[which], no_restart=False)
            self._down[which] = time.monotonic()
        if len(self._down) == len(self._actors):
            return []
        refs = [ref for ref, asked in self._open.items() if asked.which == which]
        return [r for ref in refs for r in self._away(self._open.pop(ref), "its evaluator does not answer")]

    def _away(self, asked: "_Asked", why: str) -> list[EvalResult]:
        """Ask another actor if this one is down, and no more often than evaluations are tried; else it was lost."""
        if asked.which in self._down and len(self._down) < len(self._actors) and asked.moves < RETRIES:
            self._send(asked._replace(moves=asked.moves + 1))
            return []
        return [self._lost(asked, why)]

    def _busy(self, which: int) -> float | None:
        """How long it has been at one evaluation, inf if it does not answer.

        None while that is not known: training goes on meanwhile, and an actor that restarts may take its time.
        """
        if which not in self._looks:
            self._looks[which] = (self._actors[which].busy.remote(), time.monotonic())
        ref, since = self._looks[which]
        answered, _ = ray.wait([ref], timeout=0)
        patient = time.monotonic() - since < ANSWER_SECONDS
        if not answered and patient:
            return None
        del self._looks[which]
        busy = math.inf
        if answered:
            try:
                busy = ray.get(ref)
            except ray.exceptions.ActorUnavailableError:
                if patient:  # the clock runs on
                    self._looks[which] = (self._actors[which].busy.remote(), since)
                    return None
            except ray.exceptions.RayError:  # it was restarted, and its evaluations with it
                busy = 0.0
        self._looked[which] = time.monotonic()
        if busy == math.inf:
            self._down.setdefault(which, time.monotonic())
        else:
            self._down.pop(which, None)
        return busy

    def _lost(self, asked: "_Asked", why: str) -> EvalResult:
        if asked.attempt < RETRIES:
            self._send(_Asked(asked.request, asked.attempt + 1))
        r = asked.request
        return EvalResult(r.step, r.digest, {}, 0.0, f"attempt {asked.attempt + 1}: {why}")

    @property
    def pending(self) -> int:
        return len(self._open) + len(self._parked)


class _Asked(NamedTuple):
    request: EvalRequest
    attempt: int = 0
    moves: int = 0  # of this attempt, away from actors that were down
    which: int = 0  # of the actors
    since: float = 0.0
