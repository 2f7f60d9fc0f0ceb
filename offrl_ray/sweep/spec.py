"""How a sweep's cells are searched: the sampler, how many points, what they are judged by, and what to try first."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from offrl_ray.errors import did_you_mean
from offrl_ray.sweep.space import Choice, Space

SAMPLERS = ("grid", "random", "tpe", "gp", "cmaes", "nsga2")
METRIC = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class Objective(NamedTuple):
    metric: str  # of the evaluation or the training, such as success_once or q_excess
    mode: str = "max"

    @property
    def sign(self) -> int:
        return -1 if self.mode == "min" else 1

    @classmethod
    def parse(cls, text: str) -> "Objective":
        """success_once, or q_excess:min; `problems` checks it."""
        metric, _, mode = text.partition(":")
        return cls(metric, mode or "max")

    def problems(self) -> list[str]:
        found = []
        if not METRIC.fullmatch(self.metric):
            found.append(f"objective must be the name of a metric, such as success_once, but got {self.metric!r}")
        if self.mode not in ("min", "max"):
            found.append(f"objective {self.metric} must be followed by :min or :max, but got :{self.mode}")
        return found


class SearchSpec(NamedTuple):
    sampler: str
    trials: int  # per cell
    seed: int = 0
    objectives: tuple[Objective, ...] = (Objective("success_once"),)
    first: tuple[Mapping[str, Any], ...] = ()  # values to try first in every cell; keys left out are the sampler's

    def record(self) -> dict[str, Any]:
        """As a plan record holds it."""
        objectives = [{"metric": o.metric, "mode": o.mode} for o in self.objectives]
        return self._asdict() | {"objectives": objectives, "first": [dict(f) for f in self.first]}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "SearchSpec":
        objectives = tuple(Objective(**o) for o in record["objectives"])
        return cls(**{**record, "objectives": objectives, "first": tuple(record["first"])})

    def problems(self, domains: Space) -> list[str]:
        """Why this cannot search these domains."""
        if self.sampler not in SAMPLERS:
            return [f"--search must be one of {', '.join(SAMPLERS)}, but got {self.sampler!r}; {_meant(self.sampler)}"]
        if self.sampler == "grid":
            return [f"{k} is a range to search, which --search grid cannot do; {_remedy(k)}" for k in domains]
        if not domains:
            return [f"--search {self.sampler} has nothing to choose: name a range, --vary KEY=LOW:HIGH"]
        found = [p for o in self.objectives for p in o.problems()]
        if not self.objectives or len({o.metric for o in self.objectives}) < len(self.objectives):
            found.append(f"objectives must be one or more, each once, but got {[o.metric for o in self.objectives]}")
        return found + self._size_problems(domains) + self._first_problems(domains)

    def _size_problems(self, domains: Space) -> list[str]:
        found, least = [], {"cmaes": 1 + _cma_population(len(domains)), "nsga2": 8}.get(self.sampler, 1)
        if self.trials < least:
            why = f" for {self.sampler}, whose first {least - 1} points are random" if least > 1 else ""
            found.append(f"points per cell must be >= {least}{why}, but got {self.trials}")
        if self.sampler == "cmaes":
            found += [
                f"{k} has values without an order, which cmaes would choose at random; {_remedy(k)}"
                for k, d in domains.items()
                if isinstance(d, Choice)
            ]
            if len(self.objectives) > 1:
                found.append(f"cmaes takes one objective, but got {len(self.objectives)}; use nsga2, tpe or gp")
        return found

    def _first_problems(self, domains: Space) -> list[str]:
        found = []
        for values in self.first:
            for key, value in values.items():
                if key not in domains:
                    found.append(f"a point to try first has {key}, which is not searched; {did_you_mean(key, domains)}")
                elif not domains[key].problems():
                    try:
                        domains[key].encode(value)
                    except ValueError as e:
                        found.append(f"a point to try first: {key} {e}")
        return found


def _meant(name: str) -> str:
    return did_you_mean(name, SAMPLERS)


def _remedy(key: str) -> str:
    return f"give values (--set {key}=A,B) or choose --search tpe"


def _cma_population(dimensions: int) -> int:
    """Points of a generation, the default of CMA-ES; the first generation is a plain normal sample."""
    return 4 + int(3 * math.log(dimensions))
