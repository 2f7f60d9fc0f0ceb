"""Why something waits for a place in the cluster, node by node."""

import time
from collections import defaultdict
from collections.abc import Callable

import ray
from ray.util.placement_group import placement_group_table

from offrl_ray.distributed.feasible import KINDS, Room, there
from offrl_ray.distributed.preflight import alive, kinds

FIRST_SECONDS = 30
AGAIN_SECONDS = 60
EVALUATOR = "offrl-evaluator"  # how the placement groups of evaluators are named
TRIALS, EVALUATORS = "trials", "evaluators"
Held = dict[str, dict[str, dict[str, float]]]  # node id -> who -> kind -> how much


class Waiting:
    """Tells a diagnosis when something has waited for 30 s, and again every minute."""

    def __init__(self, say: Callable[[str], None]):
        self._say, self._since, self._told = say, time.monotonic(), 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._since

    def over(self) -> None:
        """It does not wait any more."""
        self._since, self._told = time.monotonic(), 0.0

    def look(self, count: int, what: str, cpus: float, gpus: float) -> None:
        """So many trials or evaluators wait now, each for CPUs and GPUs on one node; of trials none runs."""
        waited = self.seconds
        if waited < (self._told + AGAIN_SECONDS if self._told else FIRST_SECONDS):
            return
        self._told = waited
        head = f"waiting for {waited:.0f} s: {count} {what}, each for {cpus:g} CPU and {gpus:g} GPU on one node"
        held = _held()
        self._say("\n  ".join([head, *_nodes(held), _help(what, held, cpus, gpus)]))


def coming(cpus: float, gpus: float) -> list[str]:
    """The kinds of nodes with such room that an autoscaler can still bring."""
    nodes = [n["Resources"] for n in alive()]
    return [k.name for k in kinds() if Room(k.name, k.resources).fits(cpus, gpus) and there(k, nodes) < k.most]


def _help(what: str, held: Held, cpus: float, gpus: float) -> str:
    if any(what in of for of in held.values()):
        return "a place is reserved and a process starts there; a slow disk or a crowded node makes that long"
    if brings := coming(cpus, gpus):
        return f"the autoscaler can bring nodes of {', '.join(brings)}; if none comes, its log on the head says why"
    if any(Room("", n["Resources"]).fits(cpus, gpus) for n in alive()):
        return "it starts when what holds them ends; another sweep's `offrl-ray stop` would free some, or ask for less"
    return "no node that is left could hold it: bring the lost nodes back, or ask for less"


def _nodes(held: Held) -> list[str]:
    free = ray._private.state.available_resources_per_node()
    told = []
    for n in alive():
        has, left, mine = n["Resources"], free.get(n["NodeID"], {}), held.get(n["NodeID"], {})
        room = ", ".join(f"{left.get(k, 0):g} of {has.get(k, 0):g} {k} free" for k in KINDS)
        rest = {k: has.get(k, 0) - left.get(k, 0) - sum(h.get(k, 0) for h in mine.values()) for k in KINDS}
        shown = {**mine, "others": {k: v for k, v in rest.items() if v > 1e-6}}
        by = [f"{who} {' and '.join(f'{v:g} {k}' for k, v in what.items())}" for who, what in shown.items() if what]
        told.append(
            f"{n['NodeName']} ({n['NodeManagerAddress']}): {room}" + (f"; held by {', '.join(by)}" if by else "")
        )
    return told


def _held() -> Held:
    """What placement groups hold. A group's id ends in that of its job."""
    job = ray.get_runtime_context().get_job_id()
    found: Held = defaultdict(lambda: defaultdict(lambda: defaultdict(float)))
    for group in placement_group_table().values():
        if group["state"] != "CREATED":
            continue
        own = EVALUATORS if group["name"].startswith(EVALUATOR) else TRIALS
        who = own if group["placement_group_id"].endswith(job) else "other drivers' groups"
        for i, node in group["bundles_to_node_id"].items():
            for k in KINDS:
                if amount := group["bundles"][i].get(k, 0):
                    found[node][who][k] += amount
    return found
