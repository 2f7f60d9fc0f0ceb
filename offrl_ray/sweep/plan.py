"""What a sweep asks, and the points that answer it: checked, with inert parameters removed and none twice."""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from offrl_ray.config import RunConfig, canonical, digest, resolve, to_dict
from offrl_ray.errors import UsageError, did_you_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demos:
    """Demonstrations that the sweep collects by itself when no file is given (collect.collect)."""

    env_id: str
    episodes: int
    noise: tuple[float, ...] = ()
    seed: int = 0
    control_mode: str = "pd_ee_delta_pose"
    reward_mode: str = "sparse"

    @property
    def file_name(self) -> str:
        noise = f"x{'_'.join(f'{n:g}' for n in self.noise)}" if self.noise else ""
        return f"{self.env_id}.state.{self.control_mode}.{self.episodes}{noise}.seed{self.seed}.h5"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """What one trial and one evaluation actor reserve. On a laptop evaluators reserve nothing: they fill the gaps."""

    cpus_per_trial: float = 1
    gpus_per_trial: float = 0
    evaluators: int = 1
    cpus_per_evaluator: float = 0
    gpus_per_evaluator: float = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """A size of the same question."""

    about: str
    overrides: Mapping[str, Any]
    demos: Demos
    resources: Resources = Resources()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """One sweep script: `axes` are dotted keys of the config, the first one the heatmap's rows."""

    name: str
    question: str
    variant: str
    axes: Mapping[str, Sequence[Any]]
    presets: Mapping[str, Preset]


class Point(NamedTuple):
    trial: str
    axes: dict[str, Any]  # without the axes that are inert here
    cfg: RunConfig

    def record(self) -> dict[str, Any]:
        """The point as a plan record lists it (records.py)."""
        seeds, steps = list(self.cfg.train.seeds), self.cfg.train.steps
        return {"trial": self.trial, "point": self.axes, "config": to_dict(self.cfg), "seeds": seeds, "steps": steps}


class Plan(NamedTuple):
    axes: dict[str, list[Any]]
    points: list[Point]
    merged: int  # points that were the same run as another one

    @property
    def digest(self) -> str:
        """Names the work: equal plans have equal points."""
        return hashlib.sha256(" ".join(digest(p.cfg) for p in self.points).encode()).hexdigest()[:12]


def plan(sweep: Sweep, preset: str, assignments: Mapping[str, Any], files: Sequence[str]) -> Plan:
    """The grid of a sweep. An axis that `assignments` names takes those values instead.

    Raises UsageError with the problems of all points.
    """
    if preset not in sweep.presets:
        raise UsageError(
            [f"--preset must be one of the sweep's, but got {preset!r}; {did_you_mean(preset, sweep.presets)}"]
        )
    axes = {k: _values(assignments[k]) if k in assignments else list(v) for k, v in sweep.axes.items()}
    if empty := [k for k, values in axes.items() if not values]:
        raise UsageError(f"axis {k} must have at least one value, but got none: --set {k}=A,B" for k in empty)
    base = {"algo.name": sweep.variant, "data.files": list(files), **sweep.presets[preset].overrides}
    base |= {k: v for k, v in assignments.items() if k not in axes and k != "data.files"}
    problems: dict[str, None] = {}
    points: dict[str, Point] = {}
    count = 0
    for values in itertools.product(*axes.values()):
        at = dict(zip(axes, values, strict=True))
        try:
            cfg = resolve(base | at)
        except UsageError as e:
            problems |= dict.fromkeys(e.problems)
            continue
        count += 1
        alive = {k: v for k, v in at.items() if k.removeprefix("algo.") not in cfg.algo.inert()}
        points.setdefault(digest(cfg), Point(_name(len(points), alive), alive, canonical(cfg)))
    if problems:
        raise UsageError(problems)
    return Plan(axes, list(points.values()), count - len(points))


def _values(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _name(index: int, axes: Mapping[str, Any]) -> str:
    parts = [f"{index:02d}", *(f"{k.rsplit('.', 1)[-1]}_{v}" for k, v in axes.items())]
    return re.sub(r"[^A-Za-z0-9._-]", "_", "-".join(parts))[:64]


def plan_record(
    sweep: Sweep, preset: str, plan: Plan, data: list[dict[str, Any]], versions: dict[str, str]
) -> dict[str, Any]:
    """The plan as a record (records.py)."""
    return {
        "kind": "plan",
        "name": sweep.name,
        "question": sweep.question,
        "preset": preset,
        "axes": plan.axes,
        "points": [p.record() for p in plan.points],
        "digest": plan.digest,
        "data": data,
        "versions": versions,
    }
