"""One attempt at a point as a Tune trial: `step` is the next pause of `run.run`."""

import faulthandler
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ray import tune

from offrl_ray.data.dataset import Arrays
from offrl_ray.data.replay import prior
from offrl_ray.distributed.evaluators import RayEvaluator, RayWalk
from offrl_ray.distributed.failures import trace_of
from offrl_ray.run import Update, run
from offrl_ray.store import place
from offrl_ray.sweep.conductor import Job
from offrl_ray.types import Spec


class Shared(NamedTuple):
    """What all trials of a sweep have in common; the arrays lie once in a node's object store."""

    folder: str  # a path that all nodes have, or a URL: each node has a working copy of its own
    data: list[tuple[Arrays, Spec]]
    data_of: dict[Any, int]  # (DataConfig, EnvConfig) -> which of `data`
    evaluators: list[str]
    namespace: str
    hang_seconds: float


class Trial(tune.Trainable):
    """Tune's view of a run: its config is a job, its result the records since the last one."""

    def setup(self, config: dict[str, Any], shared: Shared) -> None:
        self.shared, self.turn = shared, os.getpid()
        self.updates: Iterator[Update] = iter(())
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another job in the same process."""
        self.cleanup()
        s, job = self.shared, new_config["job"]
        folder = place(s.folder) / "trials" / job.trial
        self.name = job.trial
        self.trace = trace_of(folder, job.attempt)
        self.evaluator = RayEvaluator(s.evaluators, s.namespace, self.turn, s.hang_seconds)
        self.updates = self._run(job, folder)
        self.turn += 1  # trials that began together evaluate together: each begins its round at another actor
        return True

    def _run(self, job: Job, folder: Path) -> Iterator[Update]:
        s, cfg = self.shared, job.cfg
        arrays, spec = s.data[s.data_of[cfg.data, cfg.env]]
        dataset = prior(arrays, spec, cfg.train.device)
        walk = lambda: RayWalk(cfg.env)  # noqa: E731
        yield from run(cfg, dataset, folder, self.evaluator, job.trial, job.evaluated, job.reported, walk)

    def step(self) -> dict[str, Any]:
        self.trace.parent.mkdir(parents=True, exist_ok=True)
        with self.trace.open("w") as trace:
            faulthandler.dump_traceback_later(self.shared.hang_seconds, exit=True, file=trace)
            try:
                update = next(self.updates)
            finally:
                faulthandler.cancel_dump_traceback_later()
        self.trace.unlink(missing_ok=True)
        return {"trial": self.name, "records": update.records, "done": update.done}

    def cleanup(self) -> None:
        """An unfinished run saves itself when it is closed."""
        if hasattr(self.updates, "close"):
            self.updates.close()
