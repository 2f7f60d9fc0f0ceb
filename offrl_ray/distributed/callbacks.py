"""Tune's view of the conductor: what it asks, hands in and gives up goes to one place."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from offrl_ray.distributed.failures import classify, error_of, trace_of
from offrl_ray.distributed.waiting import TRIALS, Waiting, coming
from offrl_ray.store import publish
from offrl_ray.sweep import requests
from offrl_ray.sweep.conductor import Conductor, Job
from offrl_ray.sweep.plan import Resources

LOOK_SECONDS = 1.0
START_SECONDS = 120
GRACE_SECONDS = 15  # a process that can still end itself does so before the driver does it


class _Unpickled:
    """Tune pickles what it is given into notes that nobody reads."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Unpickled":
        return self


class Jobs(_Unpickled, Searcher):
    """A `Searcher` whose suggestions are the conductor's jobs."""

    def __init__(self, conductor: Conductor):
        super().__init__()
        self._conductor = conductor

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        job = self._conductor.next()
        if job is None:
            return Searcher.FINISHED if self._conductor.finished else None
        return {"job": job}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None: ...


class Reports(_Unpickled, tune.Stopper):
    """Called with a result before anything else of Tune sees it: what it holds is made durable first."""

    def __init__(self, conductor: Conductor, watch: "Watch"):
        self._conductor, self._watch = conductor, watch

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        # taken out of the result, so that Tune does not keep every record a second time
        batch, trial = result.pop("records"), result["trial"]
        self._watch.heard(trial)
        return self._conductor.take(trial, batch) or self._watch.saved

    def stop_all(self) -> bool:
        return self._watch.saved


class Watch(_Unpickled, tune.Callback):
    """Looks after what Tune does not: trials that say nothing, requests from outside, attempts that were lost."""

    def __init__(
        self,
        conductor: Conductor,
        folder: Path,
        resources: Resources,
        tick: Callable[[], None],
        say: Callable[[str], None],
    ):
        self._conductor, self._folder, self._tick = conductor, folder, tick
        self._limit, self._wants = resources.hang_seconds, (resources.cpus_per_trial, resources.gpus_per_trial)
        self._heard: dict[str, float] = {}
        self._looked = 0.0
        self._waiting = Waiting(say)  # since a trial ran last, or none waited
        self.saved = False  # all trials, because the conductor drains

    def heard(self, trial: str) -> None:
        self._heard[trial] = time.monotonic()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.heard(trial.config["job"].trial)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self._conductor.draining and not self.saved:
            self._save(trials)
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        requests.obey(self._folder, self._conductor)
        for trial in trials:
            name = trial.config["job"].trial
            actor = trial.temporary_state.ray_actor
            silent = trial.status == "RUNNING" and now - self._heard.get(name, now) > self._limit + GRACE_SECONDS
            if silent and actor is not None:
                self.heard(name)
                self._tell(trial.config["job"])
                ray.kill(actor)
        self._stuck([t.status for t in trials])
        self._tick()

    def _stuck(self, statuses: list[str]) -> None:
        """A process that freezes while it starts is no trial's yet; nor is one that the cluster has no room for."""
        if "RUNNING" in statuses or "PENDING" not in statuses:
            self._waiting.over()
            return
        self._waiting.look(statuses.count("PENDING"), TRIALS, *self._wants)
        waited = self._waiting.seconds
        if waited > max(self._limit, START_SECONDS) and not coming(*self._wants):
            free = ray.available_resources()
            self._conductor.drain(f"a trial waits and none has started for {waited:.0f} s; free are {free}")

    def _save(self, trials: list[Any]) -> None:
        """Let every trial end its step and save itself; Tune kills those that take more than 5 s."""
        actors = [t.temporary_state.ray_actor for t in trials if t.status == "RUNNING"]
        stops = [a.stop.remote() for a in actors if a]
        if stops:
            ray.wait(stops, num_returns=len(stops), timeout=self._limit)
        self.saved = True

    def _tell(self, job: Job) -> None:
        trace = trace_of(self._folder / "trials" / job.trial, job.attempt)
        trace.parent.mkdir(parents=True, exist_ok=True)  # it may not even have begun
        trace.write_text(f"no word for {self._limit:g} s, and no stacks: the process was stopped from outside\n")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        job, error = trial.config["job"], error_of(trial)
        folder = self._folder / "trials" / job.trial
        silent = time.monotonic() - self._heard.get(job.trial, math.inf) > self._limit
        failure, reason = classify(error, trace_of(folder, job.attempt), silent)
        if failure == "hang":
            publish(trace_of(folder, job.attempt))
        if failure == "code":  # one line does not tell where
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"error_{job.attempt}.txt").write_text(f"{error}\n")
            publish(folder / f"error_{job.attempt}.txt")
            reason += f"; the traceback is in error_{job.attempt}.txt"
        self._conductor.lost(job.trial, failure, reason)
