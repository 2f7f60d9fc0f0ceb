"""The runs of several sweeps as arms of a comparison: which may be compared, and by what values."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from offrl_ray.claim import Selection
from results_analysis.load import Seed, Sweep, Trial
from results_analysis.measures import CONFIGURED, SHARE, measure, up_to_the_stop

FREE: tuple[str, ...] = ("train.seeds", "train.report_every", "train.device", "train.threads", "env.num_envs")
FREE += ("data.files", "data.episodes", "stop.")
"""settings in which compared runs may differ; the files are compared by their digests"""
VARIANT = "algo.name"
FEW = 30  # runs of an arm that are looked at to say why it has no partner
Values = dict[int, float]  # by seed
T = TypeVar("T")


class Missing(Exception):
    """The sweeps do not hold what a check needs: a text to be said, and its places."""

    def __init__(self, text: str, **places: Any):
        super().__init__(text)
        self.text, self.places = text, places


class Run(NamedTuple):
    trial: Trial
    settings: dict[str, Any]  # dotted, as --set spells them
    inert: frozenset[str]  # settings that do nothing here: the run stands at all their values
    context: tuple[tuple[str, str], ...]  # what must be the same for two runs to be compared at all
    code: str


class Pool:
    """All runs of some sweeps, each once."""

    def __init__(self, sweeps: Sequence[Sweep]):
        self.presets = {str(s.plan.get("variant")): str(s.plan.get("preset")) for s in sweeps}
        found: dict[str, Run] = {}
        for run in (_run(s, t) for s in sweeps for t in s.trials):
            key = json.dumps([_compared(run.settings), sorted(run.inert), run.context], sort_keys=True)
            if key not in found or len(run.trial.finished) > len(found[key].trial.finished):
                found[key] = run
        self.runs = list(found.values())
        self._values: dict[tuple[int, str], Values] = {}
        keys = sorted({k for r in self.runs for k in _compared(r.settings)})
        self._varying = [k for k in keys if len({json.dumps(r.settings.get(k)) for r in self.runs}) > 1]

    def select(self, *selections: Selection) -> list[Run]:
        """Runs that fit all of them. Raises Missing if there are none."""
        wanted = {k: v for s in selections for k, v in s.items()}
        found = [r for r in self.runs if all(k in r.inert or _fits(r.settings.get(k), v) for k, v in wanted.items())]
        if not found:
            alone = {k: v for k, v in wanted.items() if not any(_fits(r.settings.get(k), v) for r in self.runs)}
            raise Missing("not asked by these sweeps: no run with {selection}", selection=describe(alone or wanted))
        return found

    def values(self, run: Run, name: str) -> Values:
        """Of the seeds that finished, and of those that a rule stopped: no success, reports up to the stop."""
        key = id(run.trial), name
        if key not in self._values:
            found = {s.seed: _value(run.trial, s, name) for s in run.trial.seeds}
            self._values[key] = {seed: v for seed, v in found.items() if v is not None}
        return self._values[key]

    def partners(self, ours: Sequence[Run], theirs: Sequence[Run], named: Iterable[str]) -> list[tuple[Run, Run]]:
        """Runs that differ in `named` alone; two variants may differ in all. Raises Missing if there are none."""
        named = sorted(named)
        keys = [] if VARIANT in named else [k for k in self._varying if k not in named]
        inert = frozenset().union(*(r.inert for r in (*ours, *theirs)))
        soft, hard = [k for k in keys if k in inert], [k for k in keys if k not in inert]
        places: dict[str, list[Run]] = {}
        for b in theirs:
            places.setdefault(_place(b, hard), []).append(b)
        fit = [(a, b) for a in ours for b in places.get(_place(a, hard), []) if a is not b and not _unlike(a, b, soft)]
        if not fit:
            raise _apart(ours[:FEW], theirs[:FEW], named, keys)
        return one_context(fit, lambda pair: pair[0].context)

    def alike(self, runs: Iterable[Run], named: Iterable[str]) -> list[list[Run]]:
        """Groups of one context whose members differ in `named` alone."""
        keys = [k for k in self._varying if k not in named]
        groups: dict[str, list[Run]] = {}
        for r in runs:
            groups.setdefault(_place(r, keys), []).append(r)
        return one_context(groups.values(), lambda group: group[0].context)


def one_context(things: Iterable[T], context: Callable[[T], Any]) -> list[T]:
    """Those of the context that has most of them."""
    found: dict[Any, list[T]] = {}
    for thing in things:
        found.setdefault(context(thing), []).append(thing)
    return max(found.values(), key=len, default=[])


def describe(selection: Selection) -> str:
    """algo.alpha > 0, algo.q_norm = none."""
    return ", ".join(_told(k, v) for k, v in selection.items())


def _told(key: str, wanted: Any) -> str:
    if isinstance(wanted, Mapping):
        signs = {"above": ">", "min": ">=", "max": "<="}
        return ", ".join(f"{key} {signs[k]} {v:g}" for k, v in wanted.items())
    values = wanted if isinstance(wanted, list | tuple) else [wanted]
    return f"{key} = {' or '.join(map(_spelled, values))}"


def _spelled(value: Any) -> str:
    """As --set takes it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _fits(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        if not isinstance(value, int | float):
            return False
        tests = {"above": lambda x: value > x, "min": lambda x: value >= x, "max": lambda x: value <= x}
        return all(tests[k](x) for k, x in wanted.items())
    return value in wanted if isinstance(wanted, list | tuple) else bool(value == wanted)


def _value(trial: Trial, seed: Seed, name: str) -> float | None:
    configured = CONFIGURED.get(name)
    if seed.diverged is not None:
        if configured is None and not measure(name).train:
            return 0.0 if is_share(name) else None
        seed = Seed(seed.seed, up_to_the_stop(seed.train), seed.evals, seed.final, seed.diverged)
    elif not seed.finished:
        return None
    return configured.of(trial.config, seed) if configured else measure(name).of(seed)


def is_share(name: str) -> bool:
    """True for success rates, whose interval never is narrower than that over episodes."""
    return name not in CONFIGURED and measure(name).unit == SHARE and name != "success_once_best_gain"


def _run(sweep: Sweep, trial: Trial) -> Run:
    settings = dict(_flat(trial.config))
    k = settings.pop("algo.q_grad_steps", None)
    if settings.get("algo.q_grad_mode") == "last_k":
        settings["algo.q_grad_mode"] = f"last_{k}"
    data = sweep.plan.get("data") or []
    settings["data.episodes"] = sum(d.get("episodes", 0) for d in data)
    asked = {k: v for k, v in {**sweep.plan.get("base", {}), **trial.point}.items() if k.startswith("algo.")}
    inert = {k for k in (*sweep.axes, *sweep.domains) if k not in trial.point}
    inert |= {k for k, v in asked.items() if settings.get(k) != v}
    context = {"data": [d.get("digest") for d in data]} | {k: v for k, v in settings.items() if _is_context(k)}
    told = tuple((k, json.dumps(v)) for k, v in sorted(context.items()))
    code = str(sweep.plan.get("versions", {}).get("code", ""))
    return Run(trial, settings, frozenset(inert - {"algo.q_grad_steps"}), told, code)


def _is_context(key: str) -> bool:
    return (key.startswith("env.") and key != "env.num_envs") or key in ("eval.seed", "eval.episodes")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _compared(settings: Selection) -> dict[str, Any]:
    return {k: v for k, v in settings.items() if not k.startswith(FREE) and not _is_context(k)}


def differences(ours: Sequence[Run], theirs: Sequence[Run]) -> list[str]:
    """Settings, other than the variants' own, that one arm has at a value that the other does not have."""
    keys = [k for k in _compared(ours[0].settings) if not k.startswith("algo.")]
    values = [{k: {json.dumps(r.settings.get(k)) for r in arm} for k in keys} for arm in (ours, theirs)]
    return [k for k in keys if values[0][k] != values[1][k]]


def _unlike(a: Run, b: Run, keys: Iterable[str]) -> list[str]:
    skipped = a.inert | b.inert
    return [k for k in keys if k not in skipped and a.settings.get(k) != b.settings.get(k)]


def _place(run: Run, keys: Iterable[str]) -> str:
    return json.dumps([run.context, [run.settings.get(k) for k in keys]])


def _apart(ours: Sequence[Run], theirs: Sequence[Run], named: Sequence[str], keys: Sequence[str]) -> Missing:
    """Why no run of one arm stands against one of the other."""
    pairs = [(a, b) for a in ours for b in theirs if a is not b]
    if not pairs:
        return Missing("not asked by these sweeps: only one of the two arms")
    together = sorted((_unlike(a, b, keys) for a, b in pairs if a.context == b.context), key=len)
    if not together:
        mine, yours = (dict(r.context) for r in pairs[0])
        differing = ", ".join(k for k in mine if mine[k] != yours.get(k))
        return Missing("the arms cannot be compared: {things} differ", things=differing)
    told = {"named": ", ".join(named), "more": ", ".join(together[0])}
    return Missing("no two runs differ in {named} alone: also in {more}", **told)
