"""A claim as data: which runs it compares, by which measure and statistic, and from which effect on it holds.

A sweep script may declare its own, `Sweep(claims=[{...}])`, which its plan record keeps; the seeds' stand in findings/.
A declared claim is {"id", "text", "checks": [..]} and, if it likes, "source", "decide" and "caveats" ([texts]); it
holds if all its checks do. A check is {"kind", "measure", ..} with fields of `Check`:

    kind      statistic                                                                 also needs
    pair      mean over seeds of a - b; runs are paired that differ in nothing else     a, b
    ends      pair of the highest and the lowest level of a setting                     over
    trend     Spearman's rho of the measure with a setting, per seed                    over
    matched   ends at equal effective weight of the Q term (cpql), whatever alpha       over
    level     mean over seeds of the measure itself                                     level

Selections of runs (where, a, b) are {dotted setting: value, list of values, or a range {"above": x}, {"min": x},
{"max": x}}. `order` lists the levels of `over` from low to high where they are no numbers. A claim is about the sweep's
own variant unless it selects `algo.name`.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from offrl_ray.errors import UsageError, did_you_mean

Kind = Literal["pair", "ends", "trend", "matched", "level"]
Direction = Literal["up", "down", "same", "differs"]
Selection = Mapping[str, Any]
RANGE = ("above", "min", "max")
NEEDS: dict[str, tuple[str, ...]] = {
    "pair": ("a", "b"),
    "ends": ("over",),
    "trend": ("over",),
    "matched": ("over",),
    "level": ("level",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    kind: Kind
    measure: str
    """of measures.py, or a train metric"""
    direction: Direction = "up"
    """where the effect must lie: above level + least, below level - least, between the two, or outside them"""
    least: float = 0.0
    """smallest effect that counts"""
    level: float = 0.0
    """what the effect is compared with"""
    where: Selection = dataclasses.field(default_factory=dict)
    a: Selection = dataclasses.field(default_factory=dict)
    b: Selection = dataclasses.field(default_factory=dict)
    over: str = ""
    order: Sequence[Any] = ()
    each: str = ""
    """a setting: the check must hold at every value of it by itself"""
    values: int = 1
    """so many values of `each` there must be"""
    best: bool = False
    """pair of two variants: each by its best run, chosen after the fact, and not by the mean of all"""


class Ask(NamedTuple):
    """A run that would decide: tune_SCRIPT.py with these settings."""

    script: str
    settings: Mapping[str, str]
    quick: Mapping[str, str] = {}  # what its quick preset needs beside them


class Control(NamedTuple):
    """A check beside a claim: what else may have made its effect."""

    about: str
    check: Check
    holds: str  # what follows if it does
    fails: str  # if it is refuted
    ask: Sequence[Ask] = ()


class Claim(NamedTuple):
    id: str
    text: str
    checks: Sequence[Check]
    source: str = ""
    caveats: Sequence[str] = ()
    controls: Sequence[Control] = ()
    ask: Sequence[Ask] = ()
    decide: str = ""  # in words, where no single command would
    own: bool = False  # declared by a sweep


def own_claims(declared: Any, place: str) -> list[Claim]:
    """The claims that a sweep declares. Raises UsageError with all problems; `place` is where they stand."""
    if not isinstance(declared, list):
        raise UsageError([f"{place} must be a list of claims, but is {declared!r}"])
    problems = [p for i, c in enumerate(declared) for p in _claim_problems(c, f"{place}[{i}]")]
    ids = [c["id"] for c in declared if isinstance(c, dict) and isinstance(c.get("id"), str)]
    for name in dict.fromkeys(i for i in ids if ids.count(i) > 1):
        problems.append(f"{place}: ids must differ, but {name!r} stands twice; rename one")
    if problems:
        raise UsageError(problems)
    return [Claim(**{**c, "checks": [Check(**k) for k in c["checks"]]}, own=True) for c in declared]


def _claim_problems(claim: Any, place: str) -> list[str]:
    if not isinstance(claim, dict):
        return [f"{place} must be a dict with id, text and checks, but is {claim!r}"]
    problems = _unknown(claim, ("id", "text", "source", "checks", "caveats", "decide"), place)
    for key in ("id", "text"):
        if not isinstance(claim.get(key), str) or not claim[key]:
            problems.append(f"{place}.{key} must be a text, but is {claim.get(key)!r}")
    for key in ("source", "decide"):
        if not isinstance(claim.get(key, ""), str):
            problems.append(f"{place}.{key} must be a text, but is {claim[key]!r}; leave it out if there is none")
    caveats, checks = claim.get("caveats", []), claim.get("checks")
    if not isinstance(caveats, list) or not all(isinstance(c, str) for c in caveats):
        problems.append(f"{place}.caveats must be a list of texts, but is {caveats!r}")
    if not isinstance(checks, list) or not checks:
        problems.append(f"{place}.checks must be a list of one check or more, but is {checks!r}")
        return problems
    return problems + [p for i, c in enumerate(checks) for p in _check_problems(c, f"{place}.checks[{i}]")]


def _check_problems(check: Any, place: str) -> list[str]:
    if not isinstance(check, dict):
        return [f"{place} must be a dict with kind and measure, but is {check!r}"]
    fields = {f.name: f for f in dataclasses.fields(Check)}
    problems = _unknown(check, fields, place)
    for key, allowed in (("kind", get_args(Kind)), ("direction", get_args(Direction))):
        if key in check and check[key] not in allowed:
            problems.append(f"{place}.{key} must be one of {', '.join(allowed)}, but is {check[key]!r}")
    needed = ("kind", "measure", *NEEDS.get(str(check.get("kind")), ()))
    for key in needed:
        if key not in check:
            problems.append(f"{place} needs {key!r} (kind {check.get('kind')!r}), but has only {', '.join(check)}")
    for key, kind in (("measure", str), ("over", str), ("each", str), ("best", bool), ("order", list)):
        if key in check and (not isinstance(check[key], kind) or (key != "best" and not check[key])):
            problems.append(f"{place}.{key} must be a {kind.__name__}, and not empty, but is {check[key]!r}")
    for key in ("least", "level", "values"):
        if key in check and (isinstance(check[key], bool) or not isinstance(check[key], int | float)):
            problems.append(f"{place}.{key} must be a number, but is {check[key]!r}")
        elif key != "level" and check.get(key, 0) < 0:
            problems.append(f"{place}.{key} must be >= 0, but is {check[key]!r}; `direction` says which way")
    return problems + [p for key in ("where", "a", "b") if key in check for p in _unfit(check[key], f"{place}.{key}")]


def _unfit(selection: Any, place: str) -> list[str]:
    if not isinstance(selection, dict):
        return [f"{place} must be a dict {{setting: value}}, but is {selection!r}"]
    problems = []
    for key, wanted in selection.items():
        if "." not in str(key):
            problems.append(f"{place} must name dotted settings, but has {key!r}; for example algo.alpha")
        if isinstance(wanted, dict) and (not wanted or not wanted.keys() <= set(RANGE)):
            problems.append(f"{place}.{key} must be a value, a list or a range of {', '.join(RANGE)}, but is {wanted}")
    return problems


def _unknown(given: Mapping[str, Any], known: Iterable[str], place: str) -> list[str]:
    known = list(known)
    return [f"{place}: unknown key {k!r}; {did_you_mean(str(k), known)}" for k in given if k not in known]
