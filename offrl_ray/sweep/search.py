"""Which point of a cell to try next: one in-memory Optuna study per cell, asked and told by the caller.

The n-th question's answer follows from the specification, the cell, n, and what was asked and told before, in order.
So the records are all that a search needs to go on: `restore` what was asked, `report` and `tell` what came of it.

How samplers take what is not simply better or worse:
tpe             ranks points that were stopped below those that ended, points above the Q bound below both
gp              sees a stopped point with its last value, one without any with the worst known, and models the bound
cmaes, nsga2    learn from points that ended; cmaes only from those within the bound, nsga2 prefers them
A model's first points are random: a quarter of the cell's, at least 3 and at most 10.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy

from offrl_ray.sweep.space import Space
from offrl_ray.sweep.spec import SearchSpec

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial

BOUND = "q_bound"
"""Optuna's name of the constraint."""
REDRAWS = 100
LOST = 1.0
"""least violation of a point that diverged: twice its bound"""


class Outcome(NamedTuple):
    """How a point ended; `values` in the order of the objectives, None if it has none."""

    status: str  # completed, pruned, diverged or failed
    values: tuple[float, ...] | None
    violation: float  # how far Q was above its provable bound, relative to it; <= 0 is within
    step: int
    reason: str


class Search:
    """The search of one cell. `study` holds what was told, for whoever wants to look at it."""

    study: "Study"

    def __init__(self, spec: SearchSpec, space: Space, cell: int):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.spec, self.space, self.cell = spec, space, cell
        self._directions: list[Literal["minimize", "maximize"]]
        self._directions = ["minimize" if o.mode == "min" else "maximize" for o in spec.objectives]
        self._distributions = {k: d.distribution() for k, d in space.items()}
        self._keeps_notes = spec.sampler in ("cmaes", "nsga2")  # on every trial: its generation
        self._trials: dict[int, Trial] = {}
        self._reported: dict[int, set[int]] = {}  # steps
        self.study = self._new_study()

    def ask(self, number: int) -> dict[str, Any]:
        """Values of the space's keys for point `number` of the cell, each number once."""
        given = self.spec.first[number] if number < len(self.spec.first) else {}
        fixed = {k: d.encode(given[k]) for k, d in self.space.items() if k in given}
        trial = self._enter(self._modelled(number, fixed)) if self.spec.sampler == "gp" else self._draw(number, fixed)
        self._begin(number, trial)
        return {k: d.decode(trial.params[k]) for k, d in self.space.items()}

    def restore(self, number: int, params: Mapping[str, Any]) -> None:
        """Point `number` has these values, as an earlier session asked; also opens a failed point again."""
        fixed = {k: d.encode(params[k]) for k, d in self.space.items()}
        self._begin(number, self._draw(number, fixed) if self._keeps_notes else self._enter(fixed))

    def report(self, number: int, step: int, value: float) -> None:
        """The first objective at a step; a step that was already reported keeps its value.

        Optuna takes none beside further objectives.
        """
        if len(self.spec.objectives) == 1 and math.isfinite(value) and step not in self._reported[number]:
            self._reported[number].add(step)
            self._trials[number].report(value, step)

    def tell(self, number: int, outcome: Outcome) -> None:
        """How point `number` ended. Raises KeyError for one that was never asked."""
        from optuna.trial import TrialState

        trial, values = self._trials[number], outcome.values
        if outcome.status == "failed":
            self.study.tell(trial, state=TrialState.FAIL)
            return
        whole = values is not None and all(map(math.isfinite, values))
        violation = _finite(outcome.violation)
        if outcome.status == "diverged" or (outcome.status == "completed" and not whole):
            violation = max(violation, LOST)
        trial.set_constraint(BOUND, violation)
        trial.set_user_attr("reason", outcome.reason)
        if outcome.status == "completed" and whole and not (violation > 0 and self.spec.sampler == "cmaes"):
            self.study.tell(trial, values)
            return
        if values and whole:
            self.report(number, outcome.step, values[0])
        self.study.tell(trial, state=TrialState.PRUNED)

    def _begin(self, number: int, trial: "Trial") -> None:
        trial.set_user_attr("number", number)
        self._trials[number], self._reported[number] = trial, set()

    def _draw(self, number: int, fixed: Mapping[str, Any], study: "Study | None" = None) -> "Trial":
        """A trial with the fixed values, the others the sampler's, and the sampler's notes on it."""
        study = study or self.study
        study.sampler = self._sampler(number)
        if fixed:
            study.enqueue_trial(dict(fixed))
        trial = study.ask(self._distributions)
        if self._keeps_notes:
            _ = trial.relative_params  # made when first looked at, which fixed values do not
        study.sampler = _plain()
        return trial

    def _modelled(self, number: int, fixed: Mapping[str, Any]) -> dict[str, Any]:
        """Values that gp chooses; where that is a point which was asked before, as it does for ever, a random one."""
        view = self._view()
        known = [t.params for t in view.get_trials(deepcopy=False)]
        with numpy.errstate(invalid="ignore"):  # it divides 0 by 0 where all points are lost alike
            params = self._draw(number, fixed, view).params
        if params not in known:
            return params
        view.sampler = self._sampler(number, "random")
        others = (view.ask(self._distributions).params for _ in range(REDRAWS))
        return next((p for p in others if p not in known), params)

    def _enter(self, params: Mapping[str, Any]) -> "Trial":
        """A running trial of these values."""
        self.study.enqueue_trial(dict(params))
        return self.study.ask(self._distributions)

    def _sampler(self, number: int, name: str = "") -> "BaseSampler":
        """A fresh one for every question, so that none carries anything over."""
        from optuna import samplers

        text = f"{self.spec.seed} {self.cell} {number}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
        start = min(10, max(3, self.spec.trials // 4))
        match name or self.spec.sampler:
            case "tpe":
                return samplers.TPESampler(seed=seed, n_startup_trials=start)
            case "gp":
                return samplers.GPSampler(seed=seed, n_startup_trials=start)
            case "cmaes":
                return samplers.CmaEsSampler(seed=seed)
            case "nsga2":
                return samplers.NSGAIISampler(seed=seed, population_size=min(50, max(4, self.spec.trials // 4)))
            case _:
                return samplers.RandomSampler(seed=seed)

    def _new_study(self) -> "Study":
        import optuna

        return optuna.create_study(directions=self._directions, sampler=_plain())

    def _view(self) -> "Study":
        """The study as gp must see it, which leaves out all but completed trials and would ask the others again."""
        from optuna.trial import TrialState, create_trial

        every = self.study.get_trials(deepcopy=False)
        trials = [every[t.number] for t in self._trials.values()]  # without failures that were tried again
        lost = any(_violation(t) > 0 for t in trials)
        worst = self._worst(trials)
        view = self._new_study()
        for t in trials:
            if t.state == TrialState.RUNNING:
                view.add_trial(create_trial(state=t.state, params=t.params, distributions=t.distributions))
                continue
            constraints = {BOUND: _violation(t)} if lost else None
            values = t.values or worst
            view.add_trial(
                create_trial(values=values, params=t.params, distributions=t.distributions, constraints=constraints)
            )
        return view

    def _worst(self, trials: Sequence["FrozenTrial"]) -> list[float]:
        known = list(zip(*(t.values for t in trials if t.values), strict=True)) or [(0.0,)] * len(self._directions)
        return [max(v) if d == "minimize" else min(v) for v, d in zip(known, self._directions, strict=True)]


def _plain() -> "BaseSampler":
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=0)


def _violation(trial: "FrozenTrial") -> float:
    return trial.constraints.get(BOUND, 0.0)


def _finite(violation: float) -> float:
    """Samplers do arithmetic with it."""
    return max(-1e6, min(violation, 1e6)) if not math.isnan(violation) else LOST
