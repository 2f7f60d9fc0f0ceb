"""Whether a sweep fits a cluster: where its evaluators go, what is left for trials, and what is missing."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from offrl_ray.config import RunConfig
from offrl_ray.distributed.preflight import LOOK_SECONDS, Kind, Node
from offrl_ray.errors import UsageError
from offrl_ray.sweep.plan import Resources

KINDS = ("CPU", "GPU")
SAME = ("offrl-ray", "code", "ray", "torch", "python")  # what must be alike on all nodes


class Room:
    """What is still free of a node as sweeps fill it: shares of a GPU lie on one GPU."""

    def __init__(self, name: str, resources: dict[str, float]):
        self.name, self.cpus = name, resources.get("CPU", 0)
        self.gpus = [1.0] * int(resources.get("GPU", 0))
        self.evaluators = 0

    def fits(self, cpus: float, gpus: float) -> bool:
        share = sum(g >= 1 for g in self.gpus) >= gpus if gpus > 1 else max(self.gpus, default=0) >= gpus - 1e-6
        return self.cpus >= cpus - 1e-6 and share

    def evaluate(self, cpus: float, gpus: float) -> None:
        """Take in an evaluator, on the GPU that has most left."""
        self.cpus, self.evaluators = self.cpus - cpus, self.evaluators + 1
        self.gpus.sort(reverse=True)
        for i in range(max(1, int(gpus)) if gpus else 0):
            self.gpus[i] -= min(1.0, gpus)


def resolved(r: Resources, nodes: Sequence[Node], kinds: Sequence[Kind] = ()) -> Resources:
    """With a number of evaluators: None stands for one per GPU, or for one in all where they take none.

    Where no GPU is there yet, those that an autoscaler can bring count.
    """
    if r.evaluators is not None:
        return r
    own = sum(int(n.has("GPU")) for n in nodes)
    gpus = own or sum(k.most * int(k.resources.get("GPU", 0)) for k in kinds)
    return dataclasses.replace(r, evaluators=max(1, gpus) if r.gpus_per_evaluator else 1)


def spread(rooms: Sequence[Room], count: int, cpus: float, gpus: float) -> list[Room | None]:
    """A place for each evaluator, on different GPUs and nodes as far as there are; the rooms have them in then."""
    places: list[Room | None] = []
    for _ in range(count):
        fit = [room for room in rooms if room.fits(cpus, gpus)]
        best = max(fit, key=lambda m: (max(m.gpus) if gpus else 0, -m.evaluators, m.cpus), default=None)
        if best:
            best.evaluate(cpus, gpus)
        places.append(best)
    return places


def resources(
    wanted: Resources,
    cfgs: Sequence[RunConfig],
    nodes: Sequence[Node],
    here: Mapping[str, str],
    kinds: Sequence[Kind],
) -> tuple[Resources, list[str]]:
    """What the sweep will reserve, and what it will wait for. `here` are this machine's versions.

    Raises UsageError with all that is wrong at once.
    """
    r = resolved(wanted, nodes, kinds)
    problems = [*_shares(r), *_devices(r, cfgs, nodes), *_unlike(nodes, here), *_unseen(nodes)]
    lacks, notes = _rooms(r, nodes, kinds)
    if problems := problems + lacks:
        raise UsageError(problems)
    return r, notes


def _rooms(r: Resources, nodes: Sequence[Node], kinds: Sequence[Kind]) -> tuple[list[str], list[str]]:
    rooms, had = [Room(f"{n.name} ({n.address})", n.resources) for n in nodes], [n.resources for n in nodes]
    each = (r.cpus_per_evaluator, r.gpus_per_evaluator)
    places = spread(rooms, r.evaluators or 0, *each)
    coming = [Room(k.name, k.resources) for k in kinds for _ in range(min(k.most - there(k, had), len(places) + 1))]
    later = spread(coming, places.count(None), *each)
    wanted, table = _share(*each), _table(r, nodes, rooms)
    problems, notes = [], []
    if lost := later.count(None):
        problem = f"{lost} of {len(places)} evaluators of {wanted} each fit on no node: {table}"
        problems.append(f"{problem}; lower --evaluators, --gpus-per-evaluator or --cpus-per-evaluator")
    elif later:
        notes.append(f"{len(later)} evaluators wait for nodes of {_names(later)}, which the autoscaler can bring")
    trial = (r.cpus_per_trial, r.gpus_per_trial)
    if not any(room.fits(*trial) for room in rooms):
        fit = {room.name: None for room in coming if room.fits(*trial)}
        if fit:
            notes.append(f"trials wait for nodes of {', '.join(fit)}, which the autoscaler can bring")
        else:
            problem = f"a trial of {_share(*trial)} fits on no node: {table}"
            problems.append(f"{problem}; {_remedy(r, nodes, kinds)}")
    return problems, notes


def there(kind: Kind, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many of the nodes with such resources are of a kind."""
    return sum(all(n.get(k, 0) == kind.resources.get(k, 0) for k in KINDS) for n in nodes)


def _share(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU and {gpus:g} GPU"


def _names(rooms: Iterable[Room | None]) -> str:
    return ", ".join(dict.fromkeys(room.name for room in rooms if room))


def _table(r: Resources, nodes: Sequence[Node], rooms: Sequence[Room]) -> str:
    """Node by node what there is, and what evaluators take of it."""
    told = []
    for node, room in zip(nodes, rooms, strict=True):
        taken = room.evaluators * r.cpus_per_evaluator, room.evaluators * r.gpus_per_evaluator
        less = f", {room.evaluators} evaluators take {_share(*taken)} of it" if any(taken) else ""
        told.append(f"{room.name} has {_share(node.has('CPU'), node.has('GPU'))}{less}")
    return "; ".join(told) or "there is none"


def _remedy(r: Resources, nodes: Sequence[Node], kinds: Sequence[Kind]) -> str:
    bare = [Room(n.name, n.resources) for n in nodes] + [Room(k.name, k.resources) for k in kinds]
    if any(room.fits(r.cpus_per_trial, r.gpus_per_trial) for room in bare):
        return "lower --gpus-per-trial or --cpus-per-trial, or what evaluators take: --evaluators, --gpus-per-evaluator"
    lacks = [not any(room.fits(*want) for room in bare) for want in ((r.cpus_per_trial, 0), (0, r.gpus_per_trial))]
    options = [o for o, lack in zip(("--cpus-per-trial", "--gpus-per-trial"), lacks, strict=True) if lack]
    return f"lower {' and '.join(options) or '--cpus-per-trial or --gpus-per-trial'}, or join a cluster that has it"


def _shares(r: Resources) -> list[str]:
    given = {"--gpus-per-trial": r.gpus_per_trial, "--gpus-per-evaluator": r.gpus_per_evaluator}
    return [f"{k} must be a share up to 1, or whole, but is {v:g}" for k, v in given.items() if v > 1 and v % 1]


def _devices(r: Resources, cfgs: Sequence[RunConfig], nodes: Sequence[Node]) -> list[str]:
    problems = []
    cuda = any(c.train.on_gpu for c in cfgs)
    physx = any(c.env.sim_backend == "physx_cuda" for c in cfgs)
    if cuda and not r.gpus_per_trial:
        problems.append(
            "train.device is cuda, but trials reserve no GPU: give --gpus-per-trial, 0.25 lets four share one"
        )
    if physx and not r.gpus_per_evaluator:
        problems.append("env.sim_backend is physx_cuda, but evaluators reserve no GPU: give --gpus-per-evaluator 0.25")
    for n in nodes if cuda or physx else ():
        if n.has("GPU") and n.versions.get("torch", "").endswith("+cpu"):
            torch = n.versions["torch"]
            problems.append(
                f"node {n.name} ({n.address}) has GPUs, but torch {torch}; install a CUDA build of it there"
            )
    return problems


def _unlike(nodes: Sequence[Node], here: Mapping[str, str]) -> list[str]:
    problems = []
    for n in nodes:
        place = f"node {n.name} ({n.address})"
        if not n.versions:
            problems.append(
                f"{place} did not answer within {LOOK_SECONDS} s; look at it, or take it out of the cluster"
            )
            continue
        for k in SAME:
            there, own = (
                v.get(k, "none").partition("+")[0] if k == "torch" else v.get(k, "none") for v in (n.versions, here)
            )
            if there != own:
                problems.append(f"{place} has {k} {there}, and here is {own}; install the same on all nodes")
    return problems


def _unseen(nodes: Sequence[Node]) -> list[str]:
    fix = "results must lie on storage that all nodes share under one path: give another --out"
    return [
        f"node {n.name} ({n.address}) does not have the folder {path}, or cannot write to it; {fix}"
        for n in nodes
        for path, seen in n.sees.items()
        if n.versions and not seen
    ]
