"""The ledger as Optuna studies, for optuna-dashboard: one per cell of a search, one for a whole grid."""

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from offrl_ray.sweep.space import Choice, Domain, from_record
from offrl_ray.sweep.state import EPISODE, Record, State, Trial

FILE = "optuna.journal"
STATES = {
    "completed": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "diverged": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


def objectives(state: State) -> list[str]:
    return [metric for metric, _ in state.objectives()]


def domains(plan: Record) -> dict[str, Domain]:
    """Grid axes are choices, searched keys have their domains."""
    grid: dict[str, Domain] = {k: Choice(values) for k, values in plan["axes"].items()}
    return grid | {k: from_record(d) for k, d in (plan.get("domains") or {}).items()}


def studies(state: State) -> dict[str, list[FrozenTrial]]:
    """Name -> the trials that have ended. Open ones are left out: nobody is RUNNING in a derived study."""
    plan = state.plan or {"name": "", "axes": {}}
    spread, found = domains(plan), dict[str, list[FrozenTrial]]()
    for t in state.trials.values():
        name = f"{plan['name']}/cell_{t.cell:02d}" if plan.get("search") else str(plan["name"])
        trials = found.setdefault(name, [])
        if t.ended and t.same_as is None:
            trials.append(_frozen(t, t.end or {}, objectives(state), spread))
    return found


def _frozen(t: Trial, end: Record, metrics: list[str], spread: dict[str, Domain]) -> FrozenTrial:
    params = {k: spread[k].encode(v) for k, v in t.point.items() if k in spread}
    values = [t.value(m) for m in metrics]
    finite = [v for v in values if v is not None and math.isfinite(v)]
    state = STATES[t.status]
    if state is TrialState.COMPLETE and len(finite) < len(metrics):
        state = TrialState.FAIL  # Optuna completes nothing without its values
    about = {"trial": t.name, "status": t.status, "failure": end["failure"], "reason": end["reason"]}
    first = metrics[0] if metrics[0] in EPISODE else "success_once"
    curve = {step: t.value(first, step) for step in sorted(t.evals)}
    trial = optuna.trial.create_trial(
        state=state,
        params=params,
        distributions={k: spread[k].distribution() for k in params},
        values=finite if state is TrialState.COMPLETE else None,
        intermediate_values={s: v for s, v in curve.items() if v is not None and math.isfinite(v)},
        user_attrs=about | {"step": t.step, "attempts": t.attempt, "diverged": t.diverged},
    )
    seconds = float(end["cost"].get("wall_seconds", 0))
    trial.datetime_start = datetime.fromtimestamp(end["time"] - seconds, UTC).replace(tzinfo=None)
    trial.datetime_complete = datetime.fromtimestamp(end["time"], UTC).replace(tzinfo=None)
    return trial


def write(path: Path, state: State) -> None:
    """A new journal at `path`. Every study remembers from how many records it was derived."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path.write_bytes(b"")
    storage = JournalStorage(JournalFileBackend(str(path)))
    directions = [StudyDirection[f"{mode.upper()}IMIZE"] for _, mode in state.objectives()]
    for name, trials in studies(state).items():
        made = optuna.create_study(storage=storage, study_name=name, directions=directions)
        made.set_user_attr("records", state.count)
        made.set_user_attr("objectives", objectives(state))
        made.add_trials(trials)


def problems(path: Path, log: list[Record]) -> list[str]:
    """Where a journal differs from the records that it was derived from, or has a trial that never ends."""
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        found = {s.study_name: s for s in optuna.get_all_study_summaries(storage)}
        trials = {n: storage.get_all_trials(storage.get_study_id_from_name(n)) for n in found}
    except Exception as e:  # Optuna raises whatever a damaged line leads to
        return [f"{path.name} cannot be read ({type(e).__name__}: {e}); `offrl-ray rebuild` makes it anew"]
    count = max((int(s.user_attrs.get("records", 0)) for s in found.values()), default=0)
    if count > len(log):
        return [f"{path.name} was derived from {count} records, but there are {len(log)}"]
    expected = studies(State(log[:count]))
    wrong = [f"{path.name} has studies {sorted(found)}, the records make {sorted(expected)}"] * (
        found.keys() != expected.keys()
    )
    for name in found.keys() & expected.keys():
        theirs, ours = ({t.user_attrs.get("trial"): _facts(t) for t in ts} for ts in (trials[name], expected[name]))
        wrong += [
            f"{path.name}: trial {t} of {name} is {theirs.get(t, 'missing')}, by the records {ours.get(t, 'none')}"
            for t in sorted(theirs.keys() | ours.keys(), key=str)
            if theirs.get(t) != ours.get(t)
        ]
    return wrong


def _facts(t: FrozenTrial) -> tuple[Any, ...]:
    return t.state.name, t.params, t.values, t.intermediate_values
