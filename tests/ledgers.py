"""Records of sweeps that never ran: 12 steps, reports every 2, checkpoints and evaluations every 4, two seeds."""

from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from offrl_ray.records import FILE, VERSION, encode

Record = dict[str, Any]
T0 = 1_700_000_000.0
STEPS, REPORT, EVERY, SEEDS = 12, 2, 4, (0, 1)
CONFIG: Record = {
    "algo": {"name": "toy"},
    "env": {"id": "Toy-v1", "reward_mode": "sparse", "sim_backend": "physx_cpu"},
    "train": {"device": "cpu", "steps": STEPS, "seeds": list(SEEDS)},
    "eval": {"every": EVERY, "episodes": 2, "seed": 100},
}


def point(trial: str, at: Record | None = None, **more: Any) -> Record:
    """A point as a plan lists it; with `kind="point"` as a search asks for it."""
    seeds = list(SEEDS)
    return {"trial": trial, "point": at or {}, "config": CONFIG, "seeds": seeds, "steps": STEPS, "cell": 0, **more}


def plan(points: Sequence[Record], **more: Any) -> Record:
    """`objectives` are success_once unless given; with `search` every cell has the `domains`, or one range."""
    rest = {"question": "", "axes": {}, "domains": {}, "search": None, "resources": {}, "digest": "d", "data": []}
    rest["objectives"] = [{"metric": "success_once", "mode": "max"}]
    record = {"kind": "plan", "name": "toy", "points": list(points), **rest, **more}
    space = (record["domains"] or {"x": {"kind": "float", "low": 0.0, "high": 1.0}}) if record["search"] else {}
    places = enumerate(product(*record["axes"].values()))
    cells = [{"index": i, "axes": dict(zip(record["axes"], at, strict=True)), "space": space} for i, at in places]
    return {**record, "cells": cells}


def after(*metrics: str) -> list[Record]:
    """Objectives as a plan records them."""
    return [{"metric": m, "mode": "min" if m == "q_excess" else "max"} for m in metrics]


def session(**more: Any) -> Record:
    return {"kind": "session", "host": "here", "pid": 7, "argv": [], "versions": {}, **more}


def start(trial: str, attempt: int = 1, step: int = 0, **more: Any) -> Record:
    return {"kind": "start", "trial": trial, "attempt": attempt, "step": step, **more}


def train(trial: str, step: int, seed: int = 0, attempt: int = 1, **metrics: float) -> Record:
    metrics = metrics or {"q_mean": step + seed / 2, "loss": -1.0}
    about = {"trial": trial, "attempt": attempt, "seed": seed, "step": step}
    return {"kind": "train", **about, "metrics": metrics, "seconds": float(step)}


def evaluation(
    trial: str, step: int, seed: int = 0, attempt: int = 1, once: Sequence[int] = (1, 0), **more: Any
) -> Record:
    about = {"trial": trial, "attempt": attempt, "seed": seed, "step": step, "digest": f"digest-{step}"}
    episodes = {"episodes": 2, "episode_seeds": [100 + i for i in range(len(once))], "env": CONFIG["env"]}
    columns: dict[str, Any] = {"members": list(SEEDS), "success_once": list(once), "success_at_end": [0] * len(once)}
    columns |= {"return": [1.5, 2.5][: len(once)], "length": [3, 5][: len(once)]}
    columns |= {"q_start": [2.0, 1.0][: len(once)], "discounted_return": [0.25, 0.75][: len(once)]}
    return {"kind": "eval", **about, **episodes, **columns, "seconds": 1.0, **more}


def note(trial: str, text: str) -> Record:
    return {"kind": "note", "trial": trial, "text": text}


def fault(trial: str, attempt: int = 1, failure: str = "infra", step: int = 0) -> Record:
    return {"kind": "fault", "trial": trial, "attempt": attempt, "failure": failure, "reason": "lost", "step": step}


def end(trial: str, status: str = "completed", attempt: int = 1, step: int = STEPS, **more: Any) -> Record:
    rest = {"failure": "", "reason": "", "diverged": {}, "cost": {"wait_seconds": 4.0, "wall_seconds": 20.0}}
    return {"kind": "end", "trial": trial, "attempt": attempt, "status": status, "step": step, **rest, **more}


def work(
    trial: str,
    until: int = STEPS,
    attempt: int = 1,
    begin: int = 0,
    seeds: Sequence[int] = SEEDS,
    once: Sequence[int] = (1, 0),
) -> list[Record]:
    """An attempt from a checkpoint up to the reports and evaluations of a step."""
    log = [start(trial, attempt, begin)]
    for step in range(begin + REPORT, until + 1, REPORT):
        log += [train(trial, step, s, attempt) for s in seeds]
        log += [evaluation(trial, step, s, attempt, once) for s in seeds if step % EVERY == 0]
    return log


def whole(trial: str, **more: Any) -> list[Record]:
    return [*work(trial, **more), end(trial)]


def numbered(log: Iterable[Record]) -> list[Record]:
    """The records as a reader gives them, a second apart."""
    return [{"v": VERSION, "seq": i, "time": T0 + i, **r} for i, r in enumerate(log)]


def write(folder: Path, log: Iterable[Record]) -> list[Record]:
    """A folder's records file; gives what is in it."""
    found = numbered(log)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_bytes(b"".join(map(encode, found)))
    return found
