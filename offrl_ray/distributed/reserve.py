"""Evaluators get their place before any trial exists: on GPUs and nodes of their own choice, and for good."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from offrl_ray.distributed import evaluators
from offrl_ray.distributed.feasible import Room, spread
from offrl_ray.distributed.preflight import alive
from offrl_ray.distributed.waiting import EVALUATOR, EVALUATORS, Waiting, coming

PLACE_SECONDS = 5  # more than Ray takes to place what has room
START_SECONDS = 120
LOOK_SECONDS = 1.0


def start_actors(
    count: int, namespace: str, cpus: float, gpus: float, say: Callable[[str], None], ended: Callable[[], Any]
) -> dict[str, Any]:
    """Actors by their names `evaluator-0 ...`, each ready, or `ended` is true. They live as long as this is kept.

    Raises TimeoutError if the cluster has no room for them, and no autoscaler that makes it.
    """
    remote = ray.remote(concurrency_groups={"health": 1})(evaluators.RolloutActor)
    actors = {
        f"evaluator-{i}": remote.options(
            name=f"evaluator-{i}",
            namespace=namespace,
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=-1,
            max_task_retries=1,
            scheduling_strategy=where,
        ).remote()
        for i, where in enumerate(_where(count, cpus, gpus))
    }
    waiting, left = Waiting(say), [a.busy.remote() for a in actors.values()]
    while left and not ended():
        done, left = ray.wait(left, num_returns=len(left), timeout=LOOK_SECONDS)
        ray.get(done)
        if left:
            waiting.look(len(left), EVALUATORS, cpus, gpus)
        if left and waiting.seconds > START_SECONDS and not coming(cpus, gpus):
            raise TimeoutError(
                f"{len(left)} of {count} evaluation actors of {cpus:g} CPU and {gpus:g} GPU each did not start in "
                f"{START_SECONDS} s; free are {ray.available_resources()}"
            )
    return actors


def _where(count: int, cpus: float, gpus: float) -> list[Any]:
    """A place for each; with its node it loses it, and Ray finds another."""
    nodes = {n["NodeID"]: n["Resources"] for n in alive()}
    places = spread([Room(id_, resources) for id_, resources in nodes.items()], count, cpus, gpus)
    names = [place.name if place else None for place in places]
    return [PlacementGroupSchedulingStrategy(group) for group in _reserve(names, nodes, cpus, gpus)]


def _reserve(places: list[str | None], nodes: dict[str, Any], cpus: float, gpus: float) -> list[Any]:
    """A placement group for each, which keeps its place while its actor restarts.

    Ray puts small shares on one GPU as long as they fit. So the rest of a GPU that has its evaluators is filled until
    the others of its node have theirs.
    """
    # what reserves nothing has a byte of memory for a place: Ray takes a node that is merely preferred for a hint
    wants = {k: v for k, v in (("CPU", cpus), ("GPU", gpus)) if v} or {"memory": 1}
    mine = defaultdict[str | None, list[int]](list)
    for i, place in enumerate(places):
        mine[place].append(i)
    groups, fillers = dict[int, Any](), []
    for node, all_ in mine.items():
        parts = int(nodes[node]["GPU"]) if node and 0 < gpus < 1 else 1
        for some in (all_[k::parts] for k in range(parts)):  # those of one GPU
            for i in some:
                name = f"{EVALUATOR}-{i}"
                groups[i] = placement_group([wants], "STRICT_PACK", name, _soft_target_node_id=node)
            rest = 1 - gpus * len(some)
            if parts > 1 and some and rest > 1e-4 and all(groups[i].wait(PLACE_SECONDS) for i in some):
                fillers.append(placement_group([{"GPU": rest}], "STRICT_PACK", _soft_target_node_id=node))
                fillers[-1].wait(PLACE_SECONDS)
    for filler in fillers:
        remove_placement_group(filler)
    return [groups[i] for i in range(len(places))]
