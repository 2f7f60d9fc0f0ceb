"""How many trials fit side by side on a GPU, or on a node where they use none, and how many are best.

Knows nothing of Ray; pack.py measures.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from offrl_ray.errors import UsageError
from offrl_ray.probe import Probe, size
from offrl_ray.sweep.plan import Resources

MARGIN = 1.2  # what a trial may take, over what its rehearsal took: it also saves itself and has policies evaluated
RESERVE = 0.05  # of every memory; from there on Ray kills, and a GPU's memory is in pieces
EVALUATOR_BYTES = 2**30  # RAM of an evaluation actor and its simulator
GAIN = 1.1  # updates a second of all trials together, over those of fewer trials: less is not worth another trial
NEAR = 0.95  # of the most memory, from which on two points take the same
CPUS, RAM, GPU_RAM = "CPUs", "memory", "GPU memory"

Node = Mapping[str, float]
"""Resources of a node, as Ray tells of them."""


class Free(NamedTuple):
    """What a node has before any trial is there, in bytes; zeros where there is no GPU."""

    node: Node
    place: str  # its address, and the GPU
    memory: float
    gpu: float = 0.0
    gpu_total: float = 0.0


class Site(NamedTuple):
    """What is left to trials of one GPU, or of one node where they use none, beside evaluators and the reserve."""

    cpus: float
    memory: float  # bytes
    gpu: float = 0.0  # share; 0: no GPU
    gpu_memory: float | None = None  # bytes; None: trials do not train on a GPU
    threads: int = 1  # of a trial


class Measured(NamedTuple):
    trials: int  # side by side
    rates: tuple[float, ...] = ()  # updates per second of each; none if it failed
    memory: float = 0.0  # bytes of RAM of one, at the most
    gpu_memory: float = 0.0  # bytes of the GPU that one takes, the driver's context included
    failure: str = ""

    @property
    def rate(self) -> float:
        return sum(self.rates)


def heaviest(found: Sequence[Probe]) -> int:
    """Which one takes the most GPU memory, or memory where none takes any; of several such, the slowest."""
    takes = [p.gpu_memory or p.memory for p in found]
    near = [i for i, t in enumerate(takes) if t >= NEAR * max(takes)]
    return max(near, key=lambda i: found[i].seconds)


def room(site: Site, measured: Sequence[Measured]) -> dict[str, int]:
    """Trials that each of a site's means has room for, by the most that one was seen to take."""
    memory, gpu = max(m.memory for m in measured), max(m.gpu_memory for m in measured)
    found = {CPUS: max(1, _times(site.cpus, site.threads)), RAM: _times(site.memory, MARGIN * memory)}
    if site.gpu_memory is not None:
        found[GPU_RAM] = _times(site.gpu_memory, MARGIN * gpu)
    return found


def _times(has: float, takes: float) -> int:
    """How often it fits, where 0.7 has room for seven times 0.1."""
    return max(0, int(has / takes + 1e-9))


def following(site: Site, measured: Sequence[Measured]) -> int | None:
    """The count to measure next; None if more cannot be better."""
    if not measured:
        return 1
    last = measured[-1]
    if last.failure or (len(measured) > 1 and last.rate < GAIN * measured[-2].rate):
        return None
    most = min(room(site, measured).values())
    return min(2 * last.trials, most) if most > last.trials else None


def choose(site: Site, measured: Sequence[Measured]) -> tuple[int, str]:
    """The best count, and why no more. Raises UsageError if not even one trial fits."""
    check(site, measured, 1)
    ran = [m for m in measured if not m.failure]
    limits = room(site, ran)
    best, *more = (m for m in ran if m.trials <= min(limits.values()))
    for m in more:
        if m.rate < GAIN * best.rate:
            return best.trials, f"{m.trials} make {100 * (m.rate / best.rate - 1):+.0f} % updates/s"
        best = m
    if len(ran) < len(measured):
        return best.trials, f"{measured[-1].trials} did not run: {measured[-1].failure}"
    what = min(limits, key=lambda k: limits[k])
    return best.trials, f"{what} for no more than {limits[what]}"


def check(site: Site, measured: Sequence[Measured], count: int) -> None:
    """Raises UsageError if a trial does not even run alone, or if the memory has no room for so many."""
    if measured[0].failure:
        raise UsageError([f"a trial does not run even alone: {measured[0].failure}"])
    ran = [m for m in measured if not m.failure]
    limits = room(site, ran)
    has = {RAM: site.memory, GPU_RAM: site.gpu_memory or 0.0}
    takes = {RAM: max(m.memory for m in ran), GPU_RAM: max(m.gpu_memory for m in ran)}
    problems = []
    for what, most in limits.items():
        if what != CPUS and most < count:
            remedy = f"choose --pack {most}" if most else "lower train.batch_size or the number of train.seeds"
            problems.append(
                f"--pack {count}: a trial takes up to {size(MARGIN * takes[what])} of {what} (as measured, and "
                f"{MARGIN - 1:.0%} more), but trials have {size(has[what])}, room for {most}; {remedy}"
            )
    if problems:
        raise UsageError(problems)


def shares(base: Resources, site: Site, count: int) -> Resources:
    """What each of so many trials reserves, so that all of them really fit."""
    cpus = _down(site.cpus / count)
    if not site.gpu:
        return dataclasses.replace(base, cpus_per_trial=cpus)
    return dataclasses.replace(
        base, cpus_per_trial=min(base.cpus_per_trial, cpus), gpus_per_trial=_down(site.gpu / count)
    )


def _down(share: float) -> float:
    """Ray counts in steps of 0.0001."""
    return math.floor(round(share * 1e4, 6)) / 1e4


def table(measured: Sequence[Measured]) -> str:
    lines = [f"  {'side by side':>12} {'updates/s each':>15} {'in all':>8} {'memory each':>12} {'GPU memory each':>16}"]
    for m in measured:
        gpu = size(m.gpu_memory) if m.gpu_memory else "-"
        each = f"{m.rate / m.trials:15.3g} {m.rate:8.3g} {size(m.memory):>12} {gpu:>16}"
        lines.append(f"  {m.trials:12} {m.failure or each}")
    return "\n".join(lines)


def left(site: Site) -> str:
    """What trials share, in words."""
    gpu = "" if site.gpu_memory is None else f" and {size(site.gpu_memory)} of the GPU"
    return f"{site.cpus:g} CPUs, {size(site.memory)} of memory{gpu}"


def site_of(free: Free, nodes: Sequence[Node], base: Resources, gpus: bool, threads: int) -> Site:
    """What is left to trials where a node has this free, which is one of `nodes`, all on which they will run.

    Raises UsageError if evaluators leave nothing of a GPU.
    """
    units = sum(n["GPU"] for n in nodes) if gpus else len(nodes)
    evaluators = _evaluators(base, units)
    share = evaluators * base.gpus_per_evaluator if gpus else 0.0
    if share >= 1:
        reserved = f"evaluation actors reserve {share:g} of each GPU, which leaves none to trials"
        raise UsageError([f"{reserved}; lower --gpus-per-evaluator or --evaluators"])
    cpus = min(n["CPU"] / n["GPU"] for n in nodes) if gpus else free.node["CPU"]
    cpus -= evaluators * base.cpus_per_evaluator
    if cpus <= 0:
        raise UsageError(["evaluation actors reserve all CPUs; lower --cpus-per-evaluator or --evaluators"])
    ram = min(free.node["memory"], free.memory) * (1 - RESERVE) / (free.node["GPU"] if gpus else 1)
    return Site(
        cpus=cpus,
        memory=ram - evaluators * EVALUATOR_BYTES,
        gpu=1 - share if gpus else 0.0,
        gpu_memory=free.gpu - (share + RESERVE) * free.gpu_total if gpus and free.gpu_total else None,
        threads=threads,
    )


def _evaluators(r: Resources, units: float) -> int:
    """On the GPU, or the node, that has the most of them; they are spread, by default one on each."""
    return 1 if r.evaluators is None else math.ceil(r.evaluators / units)


def slots(r: Resources, nodes: Sequence[Node], gpus: bool) -> int:
    """Trials side by side on all nodes, beside evaluation actors spread over them; at least 1."""
    evaluators = _evaluators(r, sum(n["GPU"] for n in nodes) if gpus else len(nodes))
    found = 0
    for n in nodes:
        units = int(n["GPU"]) if gpus else 1
        room = [_times(n["CPU"] - units * evaluators * r.cpus_per_evaluator, r.cpus_per_trial)]
        if r.gpus_per_trial:
            room.append(units * _times(1 - evaluators * r.gpus_per_evaluator, r.gpus_per_trial))
        found += min(room)
    return max(1, found)
