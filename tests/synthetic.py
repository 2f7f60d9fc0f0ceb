"""Sweeps whose truth is known: folders of records with planted effects, of any size."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from offrl_ray.records import FILE, VERSION, encode

Record = dict[str, Any]
T0 = 1_700_000_000.0


class Run(NamedTuple):
    """What one seed of one point does."""

    success: float  # probability of an episode's success at the end of training
    metrics: Mapping[str, Callable[[float], float]] = {}  # name -> value at a share of training, 0 to 1
    q_start: float | None = 0.05  # the critic's value at the start of episodes; None: no critic
    stopped: float | None = None  # share of training after which a stop rule ends the seed


Make = Callable[[Record, int], Run]
"""Point and seed -> what it does."""


def config(variant: str, point: Mapping[str, Any], steps: int, seeds: Sequence[int], **algo: Any) -> Record:
    own = {"name": variant, "gamma": 0.99, "reward_scale": 0.1, **algo}
    own |= {k.removeprefix("algo."): v for k, v in point.items() if k.startswith("algo.")}
    return {
        "algo": own,
        "data": {"files": ["demos.h5"], "q_chunk_anchor": "current"},
        "env": {"id": "LiftPegUpright-v1", "reward_mode": "sparse", "max_steps": 100},
        "train": {"steps": steps, "seeds": list(seeds), "report_every": 100},
        "eval": {"every": 100, "episodes": 20, "seed": 10000},
    }


def grid(axes: Mapping[str, Sequence[Any]]) -> list[Record]:
    return [dict(zip(axes, at, strict=True)) for at in itertools.product(*axes.values())]


def sweep(
    make: Make,
    axes: Mapping[str, Sequence[Any]],
    *,
    points: Sequence[Record] | None = None,
    variant: str = "cpql",
    name: str = "toy",
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    reports: int = 10,
    evals: int = 5,
    episodes: int = 20,
    algo: Mapping[str, Any] = {},
    **plan: Any,
) -> Iterator[Record]:
    """A finished sweep's records; trial i is named by its number. More keywords go into the plan record."""
    steps = 100 * reports
    found = [
        {"trial": f"{i:04d}", "point": p, "config": config(variant, p, steps, seeds, **algo), "cell": i}
        | {"seeds": list(seeds), "steps": steps}
        for i, p in enumerate(grid(axes) if points is None else points)
    ]
    data = [{"file": "demos.h5", "digest": "d" * 64, "episodes": 200, "success_rate": 1.0, "steps": 9116}]
    rest = {"question": "What does it do?", "preset": "quick", "variant": variant, "domains": {}, "search": None}
    rest |= {"base": {}, "cells": [], "rungs": None, "resources": {"gpus_per_trial": 0}, "data": data, "digest": "p"}
    rest |= {"objectives": [{"metric": "success_once", "mode": "max"}], "claims": [], "confirms": None}
    rest |= {"versions": {"offrl-ray": "0.1.0", "code": "c0de"}}
    yield {"kind": "plan", "name": name, "axes": {k: list(v) for k, v in axes.items()}, "points": found, **rest, **plan}
    yield {"kind": "session", "host": "here", "pid": 7, "argv": ["tune.py"], "versions": rest["versions"]}
    for p in found:
        yield from _trial(make, p, reports, evals, episodes)


def _trial(make: Make, p: Record, reports: int, evals: int, episodes: int) -> Iterator[Record]:
    about = {"trial": p["trial"], "attempt": 1}
    yield {"kind": "start", **about, "step": 0}
    lost: dict[str, str] = {}
    for seed in p["seeds"]:
        run = make(p["point"], seed)
        for i in range(1, reports + 1):
            at, own = i / reports, {**about, "seed": seed, "step": 100 * i}
            metrics = {k: f(at) for k, f in run.metrics.items()}
            yield {"kind": "train", **own, "metrics": metrics, "seconds": float(i)}
            if run.stopped is not None and at >= run.stopped:
                lost[str(seed)] = "q_bound: Q is 0.3, above 0.11 for 3 reports; no true Q exceeds 0.1"
                yield {"kind": "diverged", **own, "reason": lost[str(seed)]}
                break
            if i * evals % reports < evals:
                yield _evaluation(run, own, seed, i, episodes) | {"env": p["config"]["env"]}
    status = "diverged" if len(lost) == len(p["seeds"]) else "completed"
    cost = {"train_seconds": float(reports), "eval_seconds": 2.0, "wall_seconds": reports + 5.0}
    rest = {"failure": "", "reason": "; ".join(f"seed {s}: {w}" for s, w in lost.items()), "diverged": lost}
    yield {"kind": "end", **about, "status": status, "step": 100 * reports, **rest, "cost": cost}


def _evaluation(run: Run, own: Record, seed: int, i: int, episodes: int) -> Record:
    draw = np.random.default_rng([seed, i, int(1e6 * run.success)])
    once = (draw.random(episodes) < run.success).astype(int).tolist()
    returns = [0.1 * 0.99**50 * x for x in once]
    q = None if run.q_start is None else [run.q_start] * episodes
    return {
        **{"kind": "eval", **own, "digest": f"digest-{i}", "members": [seed], "episodes": episodes, "seconds": 1.0},
        **{"episode_seeds": [10000 + k for k in range(episodes)], "success_once": once, "success_at_end": once},
        **{"return": [20.0 * x for x in once], "length": [50 if x else 100 for x in once]},
        **{"q_start": q, "discounted_return": None if q is None else returns},
    }


def write(folder: Path, log: Iterator[Record]) -> Path:
    """The folder of these records, a second apart."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("wb") as file:
        for i, record in enumerate(log):
            file.write(encode({"v": VERSION, "seq": i, "time": T0 + i, **record}))
    return folder
