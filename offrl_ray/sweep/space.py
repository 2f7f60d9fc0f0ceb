"""Values that a search chooses for itself: a range of numbers, or a few values.

`axes={"algo.alpha": [0.0, 0.05], "algo.lr": Float(1e-4, 1e-2, log=True)}` is a grid over alpha, each cell of which
searches lr.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from offrl_ray.errors import UsageError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

OWN_DATA = ("data.", "env.", "train.seeds")


@dataclasses.dataclass(frozen=True)
class Float:
    """A number from low to high; log: equally likely in every factor of ten."""

    low: float
    high: float
    log: bool = False

    @property
    def tries(self) -> list[Any]:
        """Values, first to last, that a config is tried with; it should take the others if it takes these."""
        return [self.low, self.low + 0.618 * (self.high - self.low), self.high]

    @property
    def size(self) -> int | None:
        """How many values there are; None: uncountable."""
        return None

    def __str__(self) -> str:
        """As `parse` reads it."""
        return f"{self.low!r}:{self.high!r}" + ":log" * self.log

    def problems(self) -> list[str]:
        """What is wrong with the domain itself, each problem without its key."""
        if not all(_is_number(v) and math.isfinite(v) for v in (self.low, self.high)):
            return [f"must have two finite numbers as ends, but got {self.low!r} and {self.high!r}"]
        return _range_problems(self.low, self.high, self.log)

    def decode(self, chosen: Any) -> float:
        """What Optuna chose, as the config takes it."""
        return float(chosen)

    def encode(self, value: Any) -> Any:
        """The inverse of `decode`. Raises ValueError for a value outside the domain."""
        if not _is_number(value) or not self.low <= value <= self.high:
            raise ValueError(f"must be between {self.low!r} and {self.high!r}, but got {value!r}")
        return self.decode(value)

    def distribution(self) -> "BaseDistribution":
        from optuna.distributions import FloatDistribution  # --help and bad input answer without it

        return FloatDistribution(self.low, self.high, log=self.log)

    def record(self) -> dict[str, Any]:
        return {"kind": "float", **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class Int(Float):
    """A whole number from low to high, both included."""

    low: int
    high: int

    @property
    def tries(self) -> list[Any]:
        return sorted({self.low, self.low + 1, (self.low + self.high) // 2, self.high})  # + 1: some take multiples only

    @property
    def size(self) -> int | None:
        return self.high - self.low + 1

    def __str__(self) -> str:
        return f"{self.low}:{self.high}:int" + ":log" * self.log

    def problems(self) -> list[str]:
        if not all(isinstance(v, int) and not isinstance(v, bool) for v in (self.low, self.high)):
            return [f"must have two whole numbers as ends, but got {self.low!r} and {self.high!r}"]
        return _range_problems(self.low, self.high, self.log)

    def decode(self, chosen: Any) -> int:
        return int(chosen)

    def encode(self, value: Any) -> Any:
        if isinstance(value, float) and not value.is_integer():
            raise ValueError(f"must be a whole number, but got {value!r}")
        return super().encode(value)

    def distribution(self) -> "BaseDistribution":
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, log=self.log)

    def record(self) -> dict[str, Any]:
        return {**super().record(), "kind": "int"}


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of a few values, without an order."""

    values: Sequence[Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(list(v) if isinstance(v, tuple) else v for v in self.values))

    @property
    def tries(self) -> list[Any]:
        return list(self.values)

    @property
    def size(self) -> int | None:
        return len(self.values)

    def __str__(self) -> str:
        return json.dumps(list(self.values))

    def problems(self) -> list[str]:
        found = []
        if len(self.values) < 2:
            found.append(f"must have at least two values, but got {list(self.values)}; for one use --set")
        if any(a == b for a, b in itertools.combinations(self.values, 2)):
            found.append(f"must have different values, but got {list(self.values)}")
        return found

    def decode(self, chosen: Any) -> Any:
        return self.values[self._labels.index(chosen)]

    def encode(self, value: Any) -> Any:
        value = list(value) if isinstance(value, tuple) else value
        if value not in self.values:
            raise ValueError(f"must be one of {list(self.values)}, but got {value!r}")
        return self._labels[self.values.index(value)]

    @property
    def _labels(self) -> list[Any]:
        """Optuna's names of the values; it knows no lists."""
        return [json.dumps(v) if isinstance(v, list) else v for v in self.values]

    def distribution(self) -> "BaseDistribution":
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self._labels)

    def record(self) -> dict[str, Any]:
        return {"kind": "choice", "values": list(self.values)}


Domain = Float | Int | Choice
Space = Mapping[str, Domain]
KINDS: dict[str, type[Any]] = {"float": Float, "int": Int, "choice": Choice}


def from_record(record: Mapping[str, Any]) -> Domain:
    """Inverse of a domain's `record`."""
    return KINDS[record["kind"]](**{k: v for k, v in record.items() if k != "kind"})


def parse(text: str) -> Domain:
    """The domain of `--vary KEY=TEXT`: LOW:HIGH, LOW:HIGH:log, LOW:HIGH:int, LOW:HIGH:int:log, or A,B,C.

    Raises UsageError if the ends are no numbers or a word after them is unknown.
    """
    from offrl_ray import config  # which loads torch; whoever only looks at a domain need not wait for it

    if "," in text or ":" not in text:
        values = config.parse(text)
        return Choice(values if isinstance(values, list) else [values])
    low, high, *words = text.split(":")
    problems = [f"must end in :log or :int, but got :{w} in {text!r}" for w in words if w not in ("log", "int")]
    ends = [config.parse(end) for end in (low, high)]
    kind: type[Float] = Int if "int" in words else Float
    domain = kind(ends[0], ends[1], log="log" in words)
    if problems + domain.problems():
        raise UsageError(problems + domain.problems())
    return domain


def key_problems(key: str, domain: Domain) -> list[str]:
    """Why a search cannot choose this key from this domain, whatever the config says of it."""
    if key.startswith(OWN_DATA):
        return [
            f"{key} cannot be searched, since each of its values needs data of its own; "
            f"make it an axis of the grid: --set {key}=A,B"
        ]
    return [f"{key} {p}" for p in domain.problems()]


def probes(space: Space) -> Iterable[dict[str, Any]]:
    """Values of all keys such that every two ends of two domains meet at least once."""
    for corner in (0, -1):
        at = {k: d.tries[corner] for k, d in space.items()}
        yield at
        yield from (at | {k: v} for k, d in space.items() for v in d.tries if v != at[k])


def size(space: Space) -> int | None:
    """Points in the space; None: uncountable."""
    sizes = [d.size for d in space.values()]
    return None if None in sizes else math.prod(s for s in sizes if s is not None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _range_problems(low: float, high: float, log: bool) -> list[str]:
    found = [] if low < high else [f"must have low < high, but got {low!r} and {high!r}"]
    return found + ([f"must have low > 0 to be logarithmic, but got {low!r}"] if log and low <= 0 else [])
