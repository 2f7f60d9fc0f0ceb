"""The best points of a sweep again, on seeds that had no part in the choice: a sweep of its own in DIR/confirm.

The best of many noisy values is too high on average: choosing it has used up the luck that is in it (Cawley and Talbot,
JMLR 2010). So the value counts that it reaches the second time: with training seeds above all that the sweep used, and
on evaluation episodes from the next multiple of 10,000 above every seed from which an episode has started before, in
the sweep or in its data; for runs that act while they train, above all that these may draw (online.SEEDS).
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from offrl_ray import online
from offrl_ray.config import canonical
from offrl_ray.errors import did_you_mean, plain
from offrl_ray.sweep.plan import Cell, Keep, Plan, Point, Resources, Sweep, plan_of, plan_record
from offrl_ray.sweep.spec import Objective
from offrl_ray.sweep.state import EPISODE, Record, State, Trial
from offrl_ray.sweep.status import interval, ranked

FOLDER = "confirm"
ROUND = 10_000


class Ask(NamedTuple):
    """What somebody wants to know."""

    top: int = 3
    seeds: int = 5
    episodes: int | None = None  # per seed; None: as many as the point had
    objective: Objective | None = None  # None: the sweep's first


def judged_by(state: State, ask: Ask) -> Objective:
    return ask.objective or Objective(*state.objectives()[0])


def problems(folder: Path, state: State, held: State, ask: Ask) -> list[str]:
    """Why the sweep of a folder cannot be confirmed like this; `held` is what its confirmation has recorded."""
    counts = {"--top": ask.top, "--seeds": ask.seeds, "--episodes": ask.episodes}
    found = [f"{k} must be >= 1, but got {v}" for k, v in counts.items() if v is not None and v < 1]
    found += [f"--metric: {p}" for p in judged_by(state, ask).problems()]
    return found or list(
        _held_problems(folder / FOLDER, state, held.plan, ask) if held.plan else _choice_problems(state, ask)
    )


def _choice_problems(state: State, ask: Ask) -> Iterator[str]:
    assert state.plan
    own = {"train.seeds", "eval.seed"} | ({"eval.episodes"} if ask.episodes else set())
    for key in sorted(own & {*state.plan["axes"], *state.plan["domains"]}):
        yield f"{key} is an axis of the sweep, but a confirmation has one of its own; confirm a sweep without that axis"
    metric, mode = judged_by(state, ask)
    trained = {k for t in state.trials.values() for m in t.metrics.values() for k in m}
    count = len(ranked(state, metric, mode))
    if metric not in (known := {*EPISODE, "q_excess", *trained}):
        yield f"--metric must be one of the sweep's, but got {metric!r}; {did_you_mean(metric, known)}"
    elif count < ask.top:
        has = f"the number of completed trials with a {metric}"
        yield f"--top must be at most {count}, {has}, but got {ask.top}; ask for fewer, or wait for more"


def _held_problems(place: Path, state: State, plan: Record, ask: Ask) -> Iterator[str]:
    assert state.plan
    confirms = plan.get("confirms")
    names = confirms["points"] if confirms else []
    if not confirms or confirms["digest"] != state.plan["digest"] or not state.trials.keys() >= set(names):
        what = "a confirmation of another sweep" if confirms else "a sweep that confirms nothing"
        yield f"{place} holds {what}, {plan['name']}; move it away"
        return
    points, (metric, mode) = plan["points"], judged_by(state, ask)
    first = plan["objectives"][0]
    held = _flags(len(points), len(points[0]["seeds"]), (_episodes(p["config"]) for p in points), **first)
    episodes = [ask.episodes or _episodes(state.trials[n].config) for n in names]
    asked = _flags(ask.top, ask.seeds, episodes, metric, mode)
    if held != asked:
        yield f"{place} holds a confirmation with {held}, but got {asked}; ask with what it holds, or move it away"


def _episodes(config: Record) -> int:
    return int(config["eval"]["episodes"])


def _flags(top: int, seeds: int, episodes: Iterable[int], metric: str, mode: str) -> str:
    each = "/".join(map(str, sorted(set(episodes))))
    return f"--top {top} --seeds {seeds} --episodes {each} --metric {metric}{':min' * (mode == 'min')}"


def best_again(state: State, ask: Ask) -> Plan:
    """The best points, the best first, each under the name and at the place that it has in the sweep.

    Raises UsageError if there are no such seeds.
    """
    assert state.plan
    plan, objective = plan_of(state.plan), judged_by(state, ask)
    used = max(s for t in state.trials.values() for s in t.seeds)
    changes = {"train.seeds": list(range(used + 1, used + 1 + ask.seeds)), "eval.seed": _held_out(state)}
    changes |= {"eval.episodes": ask.episodes} if ask.episodes else {}
    cells, points = [], []
    for i, t in enumerate(ranked(state, *objective)[: ask.top]):
        cells.append(Cell(i, t.point, plan.cells[t.cell].base | t.params | changes, {}))
        points.append(Point(t.name, t.point, canonical(cells[i].cfg), i))
    return Plan(plan.base | changes, plan.axes, plan.domains, None, cells, points, 0, (objective,))


def _held_out(state: State) -> int:
    assert state.plan
    seen = [_end(t) for t in state.trials.values()]
    seen += [online.SEEDS for t in state.trials.values() if t.config.get("online")]
    seen.append(demonstrated(f["file"] for f in state.plan["data"]))
    return -(-max(seen) // ROUND) * ROUND


def _end(trial: Trial) -> int:
    return int(trial.config["eval"]["seed"]) + _episodes(trial.config)


def demonstrated(files: Iterable[str]) -> int:
    """One more than the highest seed from which an episode of trajectory files starts; 0 if they name none."""
    seeds = [-1]
    for file in files:
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # who loads it says what is wrong
            episodes = json.loads(Path(file).with_suffix(".json").read_text())["episodes"]
            seeds += [s for e in episodes if isinstance(s := e.get("episode_seed"), int)]
    return 1 + max(seeds)


def data_problems(folder: Path, state: State, data: Sequence[Record]) -> list[str]:
    """Which files are no longer what the sweep of a folder was trained on."""
    assert state.plan
    known = {f["digest"] for f in state.plan["data"]}
    return [
        f"{f['file']} has changed since {folder} was begun; bring it back, a confirmation takes the same data"
        for f in data
        if f["digest"] not in known
    ]


def record(folder: Path, state: State, work: Plan, data: list[Record], versions: dict[str, str]) -> Record:
    """The plan as DIR/confirm records it: the sweep's resources and retention, none of its rungs, nothing reused."""
    assert state.plan
    told, names = state.plan, [p.trial for p in work.points]
    sweep = Sweep(
        name=f"{told['name']}-{FOLDER}", question=told["question"], variant=told["variant"], axes={}, presets={}
    )
    how = Resources(**told["resources"]), Keep(**told["keep"])
    confirms = {"folder": folder.resolve().name, "digest": told["digest"], "points": names}
    return plan_record(sweep, told["preset"], work, data, versions, *how, confirms) | {"fresh": True, "priors": []}


def seeds(state: State, work: Plan) -> str:
    """In words, the seeds of a confirmation and those that it keeps away from."""
    cfgs, trials = [p.cfg for p in work.points], state.trials.values()
    used = {s for t in trials for s in t.seeds}
    first, last = cfgs[0].eval.seed, max(c.eval.seed + c.eval.episodes for c in cfgs) - 1
    tuned = min(t.config["eval"]["seed"] for t in trials), max(map(_end, trials)) - 1
    return (
        f"seeds {', '.join(map(str, cfgs[0].train.seeds))} in place of the sweep's {min(used)} to {max(used)}; "
        f"evaluation episodes from seeds {first} to {last} in place of {tuned[0]} to {tuned[1]}"
    )


def table(tuned: State, confirmed: State, names: Sequence[str], objective: Objective) -> str:
    """The points side by side; `drop` is how much worse the second value is, in the metric's units."""
    rows: list[tuple[str, ...]] = [("point", f"tuned {objective.metric}", "confirmed", "drop")]
    for name in names:
        both = [state.trials.get(name) for state in (tuned, confirmed)]
        a, b = (_value(t, objective) for t in both)
        drop = "" if a is None or b is None else f"{objective.sign * (a - b):+.3g}"
        rows.append((plain(name), *(_told(t, objective) for t in both), drop))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _value(trial: Trial | None, objective: Objective) -> float | None:
    return trial.value(objective.metric) if trial and trial.status == "completed" else None


def _told(trial: Trial | None, objective: Objective) -> str:
    if trial is None:
        return "not yet"
    value, over = _value(trial, objective), interval(trial, objective.metric)
    lost = f", {len(trial.diverged)} diverged" if trial.diverged else ""
    if value is None:
        return f"{plain(trial.status)}{lost}"
    between = f" [{over[0]:.3g}, {over[1]:.3g}]" if over else ""
    return f"{value:.3g}{between}, n = {len(trial.seeds)}{lost}"
