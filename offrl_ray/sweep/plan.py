"""What a sweep asks: a grid of cells, each one point or a space to search, checked, and none twice."""

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from offrl_ray.claim import own_claims
from offrl_ray.config import RunConfig, canonical, describe, digest, from_dict, resolve, to_dict, worded
from offrl_ray.errors import UsageError, did_you_mean
from offrl_ray.sweep.rungs import RungSpec
from offrl_ray.sweep.space import Domain, from_record, key_problems, probes, size
from offrl_ray.sweep.spec import Objective, SearchSpec


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
    evaluators: int | None = 1  # None: one per GPU of the cluster, or one in all where they take no GPU
    cpus_per_evaluator: float = 0
    gpus_per_evaluator: float = 0
    hang_seconds: float = 1800  # a trial or an evaluation that says nothing for so long is ended
    pack: str | None = None  # trials side by side on a GPU, or on a node without: a number, or "auto" (pack.py)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keep:
    """Which checkpoints of ended trials stay (retention.py); None is no limit."""

    top: int | None = None
    bytes: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """A size of the same question."""

    about: str
    overrides: Mapping[str, Any]
    demos: Demos
    resources: Resources = Resources()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """One sweep script: `axes` are dotted keys of the config, the first one the heatmap's rows.

    An axis is a list of values, or a domain (space.py) that is searched inside every cell of the others. `claims` are
    what the author expects to find (claim.py), judged by the report; they are no part of the work.
    """

    name: str
    question: str
    variant: str
    axes: Mapping[str, Sequence[Any] | Domain]
    presets: Mapping[str, Preset]
    claims: Sequence[Mapping[str, Any]] = ()


class Point(NamedTuple):
    trial: str
    axes: dict[str, Any]  # of the grid and of the search, without what is inert here
    cfg: RunConfig
    cell: int = 0

    def record(self) -> dict[str, Any]:
        """The point as a plan record lists it (records.py)."""
        seeds, steps = list(self.cfg.train.seeds), self.cfg.train.steps
        fields = {"trial": self.trial, "point": self.axes, "config": to_dict(self.cfg), "seeds": seeds, "steps": steps}
        return {**fields, "cell": self.cell}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A combination of the grid's values, and what is searched there."""

    index: int
    axes: dict[str, Any]  # without those that are inert here
    base: dict[str, Any]  # settings {dotted key: value} of all its points
    space: dict[str, Domain]  # without what is inert here; empty: the cell is one point

    @property
    def cfg(self) -> RunConfig:
        """One of its points."""
        return resolve(self.base | next(iter(probes(self.space))))

    @property
    def size(self) -> int | None:
        """Points that it has; None: uncountable."""
        return size(self.space)

    @property
    def digest(self) -> str:
        """Names its points, up to inert fields."""
        tried = [digest(resolve(self.base | probe)) for probe in probes(self.space)]
        return _hash([tried, _domain_records(self.space)])

    def record(self) -> dict[str, Any]:
        return {"index": self.index, "axes": self.axes, "base": self.base, "space": _domain_records(self.space)}


class Plan(NamedTuple):
    base: dict[str, Any]  # settings {dotted key: value} of all points
    axes: dict[str, list[Any]]
    domains: dict[str, Domain]
    search: SearchSpec | None
    cells: list[Cell]
    points: list[Point]  # known before anything was tried: the cells without a space
    merged: int  # cells that were the same as another one
    objectives: tuple[Objective, ...]
    rungs: RungSpec | None = None

    @property
    def steps(self) -> int:
        """Updates of the longest point."""
        return max(c.cfg.train.steps for c in self.cells)

    @property
    def digest(self) -> str:
        """Names the work: equal plans have equal points, or search the same cells in the same way."""
        asked = [c.digest for c in self.cells if c.space]
        how = [self.search and self.search.record(), self.rungs and [*self.rungs, *self.objectives[0]]]
        return _hash([[digest(p.cfg) for p in self.points], asked, *how])

    def budget(self, cell: Cell) -> int:
        """Points that a search may ask of a cell: no more than it has."""
        if not (cell.space and self.search):
            return 0
        return self.search.trials if cell.size is None else min(self.search.trials, cell.size)

    def in_envs(self, env_ids: Sequence[str]) -> "Plan":
        """The plan with every cell's environment named, which is its data's unless it already names one."""
        cells = [
            dataclasses.replace(c, base=c.base | {"env.id": c.cfg.env.id or e})
            for c, e in zip(self.cells, env_ids, strict=True)
        ]
        points = [p._replace(cfg=_in_env(p.cfg, cells[p.cell].base["env.id"])) for p in self.points]
        return self._replace(cells=cells, points=points)


def plan(
    sweep: Sweep, preset: str, assignments: Mapping[str, Any], files: Sequence[str], search: SearchSpec | None = None
) -> Plan:
    """The cells of a sweep. A key that `assignments` names has those values or that domain instead; several values of a
    setting that takes one are an axis more.

    Raises UsageError with the problems of all cells, of the search and of the claims.
    """
    if preset not in sweep.presets:
        raise UsageError(
            [f"--preset must be one of the sweep's, but got {preset!r}; {did_you_mean(preset, sweep.presets)}"]
        )
    assignments = worded(sweep.variant, assignments)
    single = {s.key for s in describe(sweep.variant) if not s.range.startswith("list")}
    added = {k: v for k, v in assignments.items() if isinstance(v, Domain) or (isinstance(v, list) and k in single)}
    asked = {k: assignments.get(k, v) for k, v in sweep.axes.items()} | added
    domains = {k: v for k, v in asked.items() if isinstance(v, Domain)}
    axes = {k: _values(v) for k, v in asked.items() if k not in domains}
    base = {"algo.name": sweep.variant, "data.files": list(files), **sweep.presets[preset].overrides}
    base |= {k: v for k, v in assignments.items() if k not in asked and k != "data.files"}
    problems = [f"axis {k} must have at least one value, but got none: --set {k}=A,B" for k, v in axes.items() if not v]
    spec = search or SearchSpec("grid", 1)
    problems += [*spec.problems(domains), *_claim_problems(sweep.claims)]
    unfit = {k: found for k, d in domains.items() if (found := key_problems(k, d))}
    problems += [p for found in unfit.values() for p in found]
    fit = {k: d for k, d in domains.items() if k not in unfit}
    try:
        cells, merged = _cells(base, axes, fit)
    except UsageError as e:
        problems += e.problems
    if problems:
        raise UsageError(problems)
    points = [_point(c, _name(c), {}) for c in cells if not c.space]
    objectives = search.objectives if search else (_objective(cells[0].cfg),)
    return Plan(base, axes, domains, search if domains else None, cells, points, merged, objectives)


def _claim_problems(claims: Sequence[Mapping[str, Any]]) -> list[str]:
    place = "claims of the sweep script"
    try:
        own_claims(json.loads(json.dumps(list(claims), allow_nan=False)), place)
    except UsageError as e:
        return e.problems
    except (TypeError, ValueError) as e:
        return [f"{place} must be dicts of JSON values, but got {claims!r}: {e}"]
    return []


def _objective(cfg: RunConfig) -> Objective:
    """What a sweep is after unless it says: success, or the reward of an environment that knows no success."""
    return Objective("return" if cfg.env.reward_mode == "native" else "success_once")


def _cells(
    base: Mapping[str, Any], axes: Mapping[str, Sequence[Any]], domains: Mapping[str, Domain]
) -> tuple[list[Cell], int]:
    """Cells that differ, and how many were the same as one of them. Raises UsageError with the problems of all."""
    problems: dict[str, None] = {}
    cells: dict[str, Cell] = {}
    count = 0
    for values in itertools.product(*axes.values()):
        at = dict(zip(axes, values, strict=True))
        found: list[RunConfig] = []
        for probe in probes(domains):
            try:
                found.append(resolve({**base, **at, **probe}))
            except UsageError as e:
                problems |= dict.fromkeys(e.problems)
        if problems:
            continue
        count += 1
        inert = frozenset.intersection(*(cfg.algo.inert() for cfg in found))
        space = {k: d for k, d in domains.items() if k.removeprefix("algo.") not in inert}
        alive = {k: v for k, v in at.items() if k.removeprefix("algo.") not in inert}
        cell = Cell(len(cells), alive, {**base, **at}, space)
        cells.setdefault(cell.digest, cell)
    if problems:
        raise UsageError(problems)
    return list(cells.values()), count - len(cells)


def point(cell: Cell, number: int, params: Mapping[str, Any]) -> Point:
    """Point `number` that a search asked of a cell, with values of all keys of its space.

    Raises UsageError if the config does not take them together.
    """
    suffix = f"-t{number:03d}"
    return _point(cell, _name(cell, 64 - len(suffix)) + suffix, params)


def _point(cell: Cell, trial: str, params: Mapping[str, Any]) -> Point:
    cfg = resolve({**cell.base, **params})
    inert = cfg.algo.inert()
    axes = {k: v for k, v in {**cell.axes, **params}.items() if k.removeprefix("algo.") not in inert}
    return Point(trial, axes, canonical(cfg), cell.index)


def _in_env(cfg: RunConfig, env_id: str) -> RunConfig:
    return dataclasses.replace(cfg, env=dataclasses.replace(cfg.env, id=env_id))


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _values(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _name(cell: Cell, length: int = 64) -> str:
    parts = [f"{cell.index:02d}", *(f"{k.rsplit('.', 1)[-1]}_{v}" for k, v in cell.axes.items())]
    return re.sub(r"[^A-Za-z0-9._-]", "_", "-".join(parts))[:length]


def _domain_records(domains: Mapping[str, Domain]) -> dict[str, Any]:
    return {k: d.record() for k, d in domains.items()}


def plan_record(
    sweep: Sweep,
    preset: str,
    plan: Plan,
    data: list[dict[str, Any]],
    versions: dict[str, str],
    resources: Resources,
    keep: Keep,
    confirms: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The plan as a record (records.py); `confirms` names the sweep whose best points these are (confirmation.py)."""
    return {
        "kind": "plan",
        "name": sweep.name,
        "question": sweep.question,
        "preset": preset,
        "variant": sweep.variant,
        "base": plan.base,
        "axes": plan.axes,
        "domains": _domain_records(plan.domains),
        "search": plan.search and plan.search.record(),
        "objectives": [o._asdict() for o in plan.objectives],
        "rungs": plan.rungs and plan.rungs._asdict(),
        "resources": dataclasses.asdict(resources),
        "keep": dataclasses.asdict(keep),
        "cells": [c.record() for c in plan.cells],
        "points": [p.record() for p in plan.points],
        "merged": plan.merged,
        "digest": plan.digest,
        "data": data,
        "versions": versions,
        "claims": json.loads(json.dumps([dict(c) for c in sweep.claims])),
        "confirms": confirms,
    }


def plan_of(record: Mapping[str, Any]) -> Plan:
    """The plan that a record holds, with no need of the script that it came from."""
    domains = {k: from_record(d) for k, d in record["domains"].items()}
    cells = [
        Cell(c["index"], c["axes"], c["base"], {k: from_record(d) for k, d in c["space"].items()})
        for c in record["cells"]
    ]
    points = [Point(p["trial"], p["point"], from_dict(p["config"]), p["cell"]) for p in record["points"]]
    search = record["search"] and SearchSpec.from_record(record["search"])
    objectives = tuple(Objective(**o) for o in record["objectives"])
    rungs = record["rungs"] and RungSpec(**record["rungs"])
    return Plan(record["base"], record["axes"], domains, search, cells, points, record["merged"], objectives, rungs)
