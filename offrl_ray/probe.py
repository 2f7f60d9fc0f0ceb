"""What a trial takes, from a few real updates of its points: time, disk, memory."""

import dataclasses
import math
import multiprocessing
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from offrl_ray import checkpoint
from offrl_ray.algos import make
from offrl_ray.config import RunConfig
from offrl_ray.data.dataset import Dataset, nbytes
from offrl_ray.run import KEEP, Data, Loaded, memory
from offrl_ray.store import store
from offrl_ray.sweep.plan import Cell, Plan
from offrl_ray.train import start, train

UPDATES = 3
POINTS = 12


class Probe(NamedTuple):
    seconds: float  # of one update of all seeds
    bytes: int  # of one checkpoint
    memory: int = 0  # bytes of its process's own, at their peak
    gpu_memory: int = 0  # bytes that torch took of the GPU, at their peak; the driver's context comes on top


class Rehearsal:
    """A trial as far as time and memory go: real updates on real batches, in this process and on the trial's device.

    The first updates, which do not count, are over when it is there.
    """

    def __init__(self, cfg: RunConfig, data: Data):
        self._cfg, self._alg = cfg, make(cfg.algo, data.spec)
        self._data = Dataset(data.arrays, data.spec, cfg.train.device)
        self._snapshot = start(cfg, self._alg)
        self.run(UPDATES)

    def run(self, updates: int) -> Probe:
        end = self._snapshot.step + updates
        short = dataclasses.replace(self._cfg.train, steps=end, report_every=end)
        cfg = dataclasses.replace(self._cfg, train=short, eval=dataclasses.replace(self._cfg.eval, every=end))
        *_, last = train(cfg, self._alg, self._data, self._snapshot)
        self._snapshot = last.snapshot
        gpu = torch.cuda.max_memory_reserved() if self._data.device.type == "cuda" else 0
        return Probe(last.seconds / updates, checkpoint.estimate(last.snapshot), memory()["own_peak_bytes"], gpu)


def probe(cfg: RunConfig, data: Data) -> Probe | None:
    """Time a few updates and see what memory they need; None for a run that acts itself.

    The memory is that of this process, less what came before: one of its own is the truest.
    """
    if cfg.online:
        return None
    _forget_peaks()
    return Rehearsal(cfg, data).run(UPDATES)


def _forget_peaks() -> None:
    """Of memory, so that those of another point are not taken for this one's."""
    peaks = Path("/proc/self/clear_refs")
    if peaks.exists():
        peaks.write_text("5")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def device_here(plan: Plan) -> bool:
    """False if this machine lacks the device that the plan trains on."""
    return torch.cuda.is_available() or not any(c.cfg.train.on_gpu for c in plan.cells)


def room_problems(plan: Plan, loaded: Loaded, folder: Path, keep_top: int | None) -> list[str]:
    """Why the disk cannot hold the checkpoints that will stay; of a working copy, one on its way to the store."""
    stay = 1 if store(folder) else min(_trials(plan), keep_top or _trials(plan))
    needed = checkpoint_bytes(plan, loaded) * KEEP * stay
    place = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free >= needed:
        return []
    return [
        f"{place} has {free / 2**30:.1f} GiB free, but the sweep's checkpoints need {needed / 2**30:.1f} GiB; "
        f"choose another --out, fewer points, or --keep-top"
    ]


def checkpoint_bytes(plan: Plan, loaded: Loaded) -> int:
    """Of the largest one, weighed on the CPU."""
    sizes = []
    for cell in some(plan):
        cfg = dataclasses.replace(cell.cfg, train=dataclasses.replace(cell.cfg.train, device="cpu"))
        sizes.append(checkpoint.estimate(start(cfg, make(cfg.algo, data_of(cell.cfg, loaded).spec))))
    return max(sizes)


def some(plan: Plan) -> list[Cell]:
    return plan.cells[:: math.ceil(len(plan.cells) / POINTS)]


def data_of(cfg: RunConfig, loaded: Loaded) -> Data:
    return loaded.data[loaded.of_setting[cfg.data, cfg.env]]


def _trials(plan: Plan) -> int:
    return len(plan.points) + sum(plan.budget(c) for c in plan.cells)


def probes(plan: Plan, loaded: Loaded) -> list[Probe | None]:
    """Of some of a plan's points, one after the other in a process of their own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
        return apart.submit(_probes, [c.cfg for c in some(plan)], loaded).result()


def _probes(cfgs: Sequence[RunConfig], loaded: Loaded) -> list[Probe | None]:
    ours = sum(nbytes(d.arrays) for d in loaded.data)  # trials share it
    found = [probe(cfg, data_of(cfg, loaded)) for cfg in cfgs]
    return [p and p._replace(memory=max(0, p.memory - ours)) for p in found]


def report(plan: Plan, found: Sequence[Probe | None], slots: int) -> str:
    """Time, disk and memory of a whole sweep, in words: updates alone, at `slots` trials side by side."""
    cells = zip(some(plan), found, strict=True)
    known = [(c.cfg.train.steps * p.seconds, p) for c, p in cells if p]
    if not known:
        return "time not measured: these runs act in an environment while they train"
    trials = _trials(plan)
    seconds = sum(s for s, _ in known) / len(known)
    gpu = max(p.gpu_memory for _, p in known)
    on_gpu = f" and {size(gpu)} of the GPU beside the driver's context" if gpu else ""
    return (
        f"measured with {UPDATES} updates of {len(known)} points: {min(p.seconds for _, p in known) * 1e3:.3g} to "
        f"{max(p.seconds for _, p in known) * 1e3:.3g} ms per update of all seeds; {trials} points need about "
        f"{clock(trials * seconds)} of training, {clock(trials * seconds / slots)} on {slots} side by side, without "
        f"evaluation; a trial takes up to {size(max(p.memory for _, p in known))} of memory{on_gpu}; "
        f"{disk(plan, max(p.bytes for _, p in known))}"
    )


def disk(plan: Plan, each: int) -> str:
    """What checkpoints of so many bytes take, in words."""
    stay = _trials(plan) * KEEP * each
    return f"a checkpoint has up to {each / 2**20:.1f} MiB, all that stay {stay / 2**20:.0f} MiB"


def size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d} h" if hours else f"{rest // 60}:{rest % 60:02d} min"
