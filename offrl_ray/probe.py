"""What a sweep will cost, from a few real updates of its points."""

import dataclasses
import math
import shutil
from pathlib import Path
from typing import NamedTuple

from offrl_ray import checkpoint
from offrl_ray.algos import make
from offrl_ray.config import RunConfig
from offrl_ray.data.dataset import Dataset
from offrl_ray.run import KEEP, Data, Loaded
from offrl_ray.sweep.plan import Cell, Plan
from offrl_ray.train import start, train

UPDATES = 3
POINTS = 12


class Probe(NamedTuple):
    seconds: float  # of one update of all seeds
    bytes: int  # of one checkpoint


def probe(cfg: RunConfig, data: Data) -> Probe | None:
    """Time a few updates on real batches, after as many that do not count; None for a run that acts itself."""
    if cfg.online:
        return None
    short = dataclasses.replace(cfg.train, steps=2 * UPDATES, report_every=UPDATES)
    cfg = dataclasses.replace(cfg, train=short, eval=dataclasses.replace(cfg.eval, every=2 * UPDATES))
    alg = make(cfg.algo, data.spec)
    *_, last = train(cfg, alg, Dataset(data.arrays, data.spec, cfg.train.device), start(cfg, alg))
    return Probe(last.seconds / UPDATES, checkpoint.estimate(last.snapshot))


def room_problems(plan: Plan, loaded: Loaded, folder: Path, keep_top: int | None) -> list[str]:
    """Why the disk cannot hold the checkpoints that will stay."""
    sizes = []
    for c in _some(plan):
        cfg = dataclasses.replace(c.cfg, train=dataclasses.replace(c.cfg.train, device="cpu"))
        spec = loaded.data[loaded.of_setting[c.cfg.data, c.cfg.env]].spec
        sizes.append(checkpoint.estimate(start(cfg, make(cfg.algo, spec))))
    needed = max(sizes) * KEEP * min(_trials(plan), keep_top or _trials(plan))
    place = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free >= needed:
        return []
    return [
        f"{place} has {free / 2**30:.1f} GiB free, but the sweep's checkpoints need {needed / 2**30:.1f} GiB; "
        f"choose another --out, fewer points, or --keep-top"
    ]


def _some(plan: Plan) -> list[Cell]:
    return plan.cells[:: math.ceil(len(plan.cells) / POINTS)]


def _trials(plan: Plan) -> int:
    return len(plan.points) + sum(plan.budget(c) for c in plan.cells)


def report(plan: Plan, loaded: Loaded, slots: int) -> str:
    """Time and disk of a whole sweep, in words: updates alone, at `slots` trials side by side."""
    found = [(c.cfg, probe(c.cfg, loaded.data[loaded.of_setting[c.cfg.data, c.cfg.env]])) for c in _some(plan)]
    known = [(cfg.train.steps * p.seconds, p) for cfg, p in found if p]
    if not known:
        return "time not measured: these runs act in an environment while they train"
    trials = _trials(plan)
    seconds, each = sum(s for s, _ in known) / len(known), max(p.bytes for _, p in known)
    size = trials * KEEP * each
    return (
        f"measured with {UPDATES} updates of {len(known)} points: {min(p.seconds for _, p in known) * 1e3:.3g} to "
        f"{max(p.seconds for _, p in known) * 1e3:.3g} ms per update of all seeds; {trials} points need about "
        f"{clock(trials * seconds)} of training, {clock(trials * seconds / slots)} on {slots} side by side, without "
        f"evaluation; a checkpoint has up to {each / 2**20:.1f} MiB, all that stay {size / 2**20:.0f} MiB"
    )


def clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d} h" if hours else f"{rest // 60}:{rest % 60:02d} min"
