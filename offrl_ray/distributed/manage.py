"""What a person does to a sweep that exists: resume, stop, retry, extend, confirm. Its folder says all it takes."""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from offrl_ray import probe
from offrl_ray.distributed.drive import drive, versions
from offrl_ray.distributed.launch import cost, describe, load
from offrl_ray.errors import UsageError
from offrl_ray.store import called
from offrl_ray.sweep import confirmation, requests
from offrl_ray.sweep.conductor import pruned
from offrl_ray.sweep.confirmation import Ask
from offrl_ray.sweep.ledger import Ledger, Record, place_problems
from offrl_ray.sweep.plan import Resources, plan_of
from offrl_ray.sweep.spec import Objective
from offrl_ray.sweep.state import State
from offrl_ray.sweep.status import driver_runs, ranked
from offrl_ray.terminal import say

ANSWER_SECONDS = 30
POLL_SECONDS = 0.2


def resume(folder: Path, address: str = "auto", asked: Sequence[Record] = ()) -> int:
    """Go on with what a sweep still owes, and record what is `asked` if it does; exit code as `drive`."""
    state = _sweep(folder)
    assert state.plan
    loaded, plan = load(plan_of(state.plan))
    return drive(folder.absolute(), plan, state.plan, loaded, address, asked)


def stop(folder: Path, trial: str | None, wait: bool = False) -> int:
    """Ask the driver to save and end, or to end one trial; without a driver a trial is ended here.

    Returns when the driver has heard, or with `wait` when a driver that is to end has ended.
    """
    state = _sweep(folder)
    if trial is not None:
        state.open_trial(trial)
    if driver_runs(folder):
        code = _ask(folder, trial)
        while wait and trial is None and driver_runs(folder):
            time.sleep(POLL_SECONDS)
        return code
    if trial is None:
        say(f"{called(folder)}: no driver runs")
        return 0
    with Ledger(folder) as ledger:
        ledger.write(pruned(ledger.state.open_trial(trial), requests.USER))
    say(f"{trial}: pruned ({requests.USER})")
    return 0


def _ask(folder: Path, trial: str | None) -> int:
    request = requests.ask(folder, trial)
    waited = time.monotonic()
    while requests.stands(request):
        if not driver_runs(folder):
            say(f"{called(folder)}: its driver ended meanwhile")
            return 0
        if time.monotonic() - waited > ANSWER_SECONDS:
            late = f"its driver has not answered for {ANSWER_SECONDS} s"
            say(f"{called(folder)}: {late}; it will when it looks at {called(request)}")
            return 1
        time.sleep(POLL_SECONDS)
    say(f"{trial or called(folder)}: will end at the next report, `offrl-ray status {called(folder)}` shows it")
    return 0


def retry(folder: Path, reason: str | None, address: str = "auto") -> int:
    """Open failed trials again, all or those of one class, and go on."""
    failed = [t for t in _sweep(_checked(folder)).trials.values() if t.status == "failed" and t.end]
    chosen = [t.name for t in failed if t.end and reason in (None, t.end["failure"])]
    if not chosen:
        classes = sorted({t.end["failure"] for t in failed if t.end})
        have = f"its failed trials are of class {', '.join(classes)}" if classes else "none of its trials failed"
        raise UsageError([f"{called(folder)} has no trial to retry{f' of class {reason!r}' if reason else ''}; {have}"])
    say(f"{called(folder)}: trying {len(chosen)} failed trials again")
    return resume(folder, address, [{"kind": "retry", "trial": name} for name in chosen])


def extend(folder: Path, trials: int, address: str = "auto") -> int:
    """Let every cell of a search ask for more points, and go on."""
    if trials < 1:
        raise UsageError([f"--trials must be >= 1, but got {trials}"])
    state = _sweep(_checked(folder))
    if not (state.plan and state.plan["search"]):
        raise UsageError([f"{called(folder)} is a grid, which has no more points; begin another with wider axes"])
    return resume(folder, address, [{"kind": "extend", "trials": trials}])


def confirm(folder: Path, ask: Ask, address: str = "auto", dry_run: bool = False) -> int:
    """Run the best points of a sweep again on other seeds, or go on with that; exit code as `drive`.

    What DIR/confirm has begun stays as it is, also when other points of a sweep that still runs have become better.
    """
    state, place = _sweep(folder), folder.absolute() / confirmation.FOLDER
    held = State.read(place)
    found = confirmation.problems(folder, state, held, ask)
    if found := found + [p.removeprefix("--out: ") for p in place_problems(place)]:
        raise UsageError(found)
    loaded, work = load(plan_of(held.plan) if held.plan else confirmation.best_again(state, ask))
    record = held.plan or confirmation.record(folder, state, work, loaded.files, versions())
    resources, objective = Resources(**record["resources"]), work.objectives[0]
    found = confirmation.data_problems(folder, state, loaded.files)
    if not held.plan:
        found += probe.room_problems(work, loaded, place, record["keep"]["top"])
    if found:
        raise UsageError(found)
    names = record["confirms"]["points"]
    say(f"{describe(record['question'], work, resources)}\n{confirmation.seeds(state, work)}")
    for note in _changes(state, names, objective):
        say(note)
    if dry_run:
        say(f"{confirmation.table(state, held, names, objective)}\n{cost(work, loaded, resources, address)}")
        return 0
    code = drive(place, work, record, loaded, address)
    say(confirmation.table(state, State.read(place), names, objective))
    return code


def _changes(state: State, names: list[str], objective: Objective) -> Iterator[str]:
    """What a reader of a confirmation must know."""
    now = [t.name for t in ranked(state, *objective)[: len(names)]]
    if now != names:
        yield f"by now the best are {', '.join(now)}; the confirmation stays with what it began"
    assert state.plan
    if state.plan["versions"].get("code") != versions()["code"]:
        yield "the code is not the one that the sweep was begun with; a drop may be due to that, too"


def _checked(folder: Path) -> Path:
    _sweep(folder)
    if not os.access(folder, os.W_OK):
        raise UsageError([f"{called(folder)} cannot be written to"])
    return folder


def _sweep(folder: Path) -> State:
    state = State.read(folder)
    if state.plan is None or "cells" not in state.plan:
        raise UsageError([f"{called(folder)} holds no sweep; give the folder that a script of tune_configs/ made"])
    return state
