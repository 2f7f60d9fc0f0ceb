"""One point as a Tune trial: `step` is the next pause of `run.run`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ray import tune

from offrl_ray.data.dataset import Arrays
from offrl_ray.data.replay import prior
from offrl_ray.distributed.evaluators import RayEvaluator, RayWalk
from offrl_ray.run import Update, run
from offrl_ray.sweep.plan import Point
from offrl_ray.types import Spec


class Shared(NamedTuple):
    """What all trials of a sweep have in common; the arrays lie once in a node's object store."""

    folder: Path
    points: list[Point]
    data: list[tuple[Arrays, Spec]]
    data_of: list[int]  # which of `data` a point trains on
    evaluated: dict[str, frozenset[int]]  # trial -> steps whose evaluation is recorded
    evaluators: list[str]
    namespace: str


class Trial(tune.Trainable):
    """Tune's view of a run: its config is the index of a point, its result the records since the last one."""

    def setup(self, config: dict[str, Any], shared: Shared) -> None:
        self.shared = shared
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another point in the same process."""
        s, index = self.shared, new_config["point"]
        point = s.points[index]
        arrays, spec = s.data[s.data_of[index]]
        self.updates: Iterator[Update] = run(
            point.cfg,
            prior(arrays, spec, point.cfg.train.device),
            s.folder / "trials" / point.trial,
            RayEvaluator(s.evaluators, s.namespace, index),
            point.trial,
            s.evaluated.get(point.trial, frozenset()),
            lambda: RayWalk(point.cfg.env),
        )
        return True

    def step(self) -> dict[str, Any]:
        update = next(self.updates)
        return {"records": update.records, "updates": update.step, "done": update.done}
