"""Rehearses trials on a GPU, or on a node where they use none, and lets as many run side by side as is best there.

The heaviest point decides for all. At 1, 2, 4, ... side by side, each in a process of its own, it trains for seconds on
a GPU or a node that nothing else uses meanwhile.
"""

import gc
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from offrl_ray import probe
from offrl_ray.config import RunConfig
from offrl_ray.distributed import packing
from offrl_ray.distributed.failures import classify
from offrl_ray.distributed.packing import Free, Measured, Node, Site
from offrl_ray.distributed.preflight import alive, kinds
from offrl_ray.errors import UsageError
from offrl_ray.probe import UPDATES, Probe, Rehearsal
from offrl_ray.run import Data, Loaded
from offrl_ray.sweep.plan import Cell, Plan, Resources

MEASURE_SECONDS = 4
TELL_SECONDS, PATIENCE_SECONDS = 30, 300  # while nothing is free to measure on; a cluster that grows takes minutes
ONLINE = "not packed: these runs act in an environment while they train, which no probe rehearses; the shares stay"


class Packing(NamedTuple):
    resources: Resources
    told: str  # what was measured and chosen
    probes: list[Probe | None]  # of `probe.some` of the plan's points, each alone
    slots: int  # trials side by side in the whole cluster


def pack(work: Plan, loaded: Loaded, base: Resources, say: Callable[[str], None]) -> Packing:
    """Resources with which as many trials run side by side as `base.pack` asks; None keeps them and only looks.

    To be called before any evaluation actor is there; `base.evaluators` are reckoned with. Raises UsageError if trials
    do not fit, or if nothing becomes free to measure on.
    """
    cells = probe.some(work)
    if cells[0].cfg.online:
        return Packing(base, ONLINE, [None] * len(cells), 1)
    gpus = base.gpus_per_trial > 0 or cells[0].cfg.train.on_gpu
    nodes, coming = _alive(gpus), gpus and any(k.resources.get("GPU", 0) >= 1 for k in kinds())
    if not nodes and not coming:
        kind = "GPU" if gpus else "CPU"
        raise UsageError([f"trials need a {kind}, but none of the cluster's {len(ray.nodes())} nodes has one"])
    with _held(nodes, gpus, base.hang_seconds if coming else PATIENCE_SECONDS, say) as start:
        nodes = _alive(gpus)
        stage = _Stage(start, base.hang_seconds)
        found = [stage.weigh(c, probe.data_of(c.cfg, loaded)) for c in cells]
        if base.pack is None:
            return Packing(base, "", [*found], packing.slots(base, nodes, gpus))
        heaviest = cells[which := packing.heaviest(found)]
        site = packing.site_of(stage.free, nodes, base, gpus, heaviest.cfg.train.threads)
        stage.cast(heaviest, probe.data_of(heaviest.cfg, loaded))
        seconds = found[which].seconds
        measured, count, why = (
            _best(stage, site, seconds) if base.pack == "auto" else _given(stage, site, int(base.pack))
        )
    r = packing.shares(base, site, count)
    told = (
        f"measured with {_name(heaviest)}, the heaviest of {len(cells)} points, on {stage.free.place}, where trials "
        f"have {packing.left(site)}\n{packing.table(measured)}\n"
        f"{count} side by side, each reserving {r.cpus_per_trial:g} CPU and {r.gpus_per_trial:g} GPU: {why}"
    )
    return Packing(r, told, [*found], packing.slots(r, nodes, gpus))


def _alive(gpus: bool) -> list[dict[str, float]]:
    """Resources of the nodes on which trials may run."""
    kind = "GPU" if gpus else "CPU"
    return [{"CPU": 0.0} | n["Resources"] for n in alive() if n["Resources"].get(kind, 0) >= 1]


def _best(stage: "_Stage", site: Site, seconds: float) -> tuple[list[Measured], int, str]:
    """What was measured, how many are best, and why; `seconds` an update takes alone."""
    updates, measured = max(UPDATES, math.ceil(MEASURE_SECONDS / seconds)), list[Measured]()
    while count := packing.following(site, measured):
        measured.append(stage.measure(count, updates))
    return measured, *packing.choose(site, measured)


def _given(stage: "_Stage", site: Site, count: int) -> tuple[list[Measured], int, str]:
    measured = [stage.measure(1, UPDATES)]
    packing.check(site, measured, count)
    return measured, count, "as asked, and the memory has room for them"


def _name(cell: Cell) -> str:
    return ", ".join(f"{k}={v}" for k, v in cell.axes.items()) or "the only point"


class Understudy:
    """A process like a trial's, in which one is rehearsed."""

    def __init__(self) -> None:
        import offrl_ray.distributed.trainable  # noqa: F401, a trial has it in memory, and Ray Tune with it

    def weigh(self, cfg: RunConfig, data: Data) -> Probe | None:
        return probe.probe(cfg, data)

    def prepare(self, cfg: RunConfig, data: Data) -> None:
        self._rehearsal = Rehearsal(cfg, data)

    def run(self, updates: int) -> Probe:
        return self._rehearsal.run(updates)

    def free(self) -> Free:
        """What this node has left beside this process, which has a context on the GPU to see it."""
        info = Path("/proc/meminfo")
        lines = info.read_text().splitlines() if info.exists() else []
        sizes = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}
        gpu, name = ((0, 0), "")
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()
            gpu, name = torch.cuda.mem_get_info(), f" ({torch.cuda.get_device_name()})"
        here = ray.get_runtime_context().get_node_id()
        node = next(n for n in ray.nodes() if n["NodeID"] == here)
        place = f"{node['NodeManagerAddress']}{name}"
        return Free(node["Resources"], place, sizes.get("MemAvailable", math.inf), *gpu)


class _Stage:
    """Understudies on one GPU or node, of which the first only weighs and watches: it sees what the GPU has left."""

    def __init__(self, start: Callable[[], Any], patience: float):
        self._start, self._patience, self._watch = start, patience, start()
        self._actors: list[Any] = []
        self.free: Free = self._get(self._watch.free.remote())  # at the beginning

    def _get(self, refs: Any) -> Any:
        return ray.get(refs, timeout=self._patience)

    def weigh(self, cell: Cell, data: Data) -> Probe:
        try:
            found: Probe = self._get(self._watch.weigh.remote(cell.cfg, data))
        except ray.exceptions.RayError as e:
            raise UsageError([f"{_name(cell)} does not train on {self.free.place}: {_reason(e)}"]) from None
        return found

    def cast(self, cell: Cell, data: Data) -> None:
        """What is rehearsed from now on."""
        self._play = (ray.put(cell.cfg), ray.put(data))
        self._gpu: float = self._get(self._watch.free.remote()).gpu

    def measure(self, count: int, updates: int) -> Measured:
        """So many side by side; those of the count before go on."""
        new = [self._start() for _ in range(count - len(self._actors))]
        self._actors += new
        try:
            self._get([a.prepare.remote(*self._play) for a in new])
            found: list[Probe] = self._get([a.run.remote(updates) for a in self._actors])
            left: Free = self._get(self._watch.free.remote())
        except ray.exceptions.RayError as e:
            return Measured(count, failure=_reason(e))
        rates, memory = tuple(1 / p.seconds for p in found), max(p.memory for p in found)
        return Measured(count, rates, memory, (self._gpu - left.gpu) / count)


def _reason(error: Exception) -> str:
    what, why = classify(error, Path(os.devnull))
    return f"out of memory ({why})" if what == "oom" else why


@contextmanager
def _held(
    nodes: Sequence[Node], gpus: bool, patience: float, say: Callable[[str], None]
) -> Iterator[Callable[[], Any]]:
    """A GPU, or a node's cores, for the probe alone; yields what starts a process there.

    Raises UsageError if none becomes free.
    """
    if gpus:
        what, bundle = "GPU", {"GPU": 1.0, "CPU": 1.0}
    else:  # the node on which memory runs out first
        here = min(nodes, key=lambda n: n["memory"] / n["CPU"])
        name = next(k for k in here if k.startswith("node:") and not k.startswith("node:__"))
        what, bundle = "node", {"CPU": max(1.0, min(here["CPU"], ray.available_resources().get("CPU", 0))), name: 1e-3}
    group = placement_group([bundle])
    try:
        if not group.wait(TELL_SECONDS):
            say(f"waiting for a {what} that nothing else uses, to measure what trials take: {bundle}")
            if not group.wait(max(0.0, patience - TELL_SECONDS)):
                problem = f"no {what} became free in {patience:g} s to measure what trials take ({bundle}; free is "
                remedy = "end what runs there, or leave out --pack and give --gpus-per-trial and --cpus-per-trial"
                raise UsageError([f"{problem}{ray.available_resources()}); {remedy}"])
        where = PlacementGroupSchedulingStrategy(group, 0)
        options = {"num_cpus": 0, "num_gpus": 1e-3 if gpus else 0, "scheduling_strategy": where}
        yield lambda: ray.remote(Understudy).options(**options).remote()
    finally:
        remove_placement_group(group)
