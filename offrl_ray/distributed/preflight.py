"""What a cluster is, node by node."""

import contextlib
import os
import platform
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

LOOK_SECONDS = 120  # a crowded node takes its time to start a process
MOST = 1000  # nodes of a kind without a limit


class Node(NamedTuple):
    name: str
    address: str
    resources: dict[str, float]
    versions: dict[str, str]  # as drive.versions; {}: it did not answer
    gpus: list[str]  # names
    sees: dict[str, bool]  # path asked for -> is it this very folder there, and can it be written to
    id: str = ""

    def has(self, kind: str) -> float:
        return self.resources.get(kind, 0)

    def record(self) -> dict[str, Any]:
        """As a session record lists it."""
        return {"name": self.name, "address": self.address, "cpus": self.has("CPU"), "gpus": self.has("GPU")}


class Kind(NamedTuple):
    """Nodes that an autoscaler can bring."""

    name: str
    resources: dict[str, float]
    most: int  # of them at a time


def machine(versions: dict[str, str]) -> Node:
    """This machine as a Ray of its own will see it."""
    import torch

    resources = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    return Node(platform.node(), "this machine", resources, versions, [], {})


def alive() -> list[dict[str, Any]]:
    """The living nodes as Ray tells of them; inside a ray_session."""
    import ray

    return [n for n in ray.nodes() if n["Alive"]]


def nodes(paths: Sequence[Path] = ()) -> list[Node]:
    """Every living node, asked by a task on it; inside a ray_session."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    there = alive()
    with contextlib.ExitStack() as stack:
        marks = [stack.enter_context(_mark(p)) for p in paths]
        look = ray.remote(num_cpus=0, max_retries=0)(_looker())
        asked = [look.options(scheduling_strategy=On(n["NodeID"], soft=False)).remote(marks) for n in there]
        ray.wait(asked, num_returns=len(asked), timeout=LOOK_SECONDS)
        return [_node(n, ref, paths) for n, ref in zip(there, asked, strict=True)]


def _node(told: dict[str, Any], asked: Any, paths: Sequence[Path]) -> Node:
    import ray

    try:
        versions, gpus, seen = ray.get(asked, timeout=0)
    except ray.exceptions.RayError:
        versions, gpus, seen = {}, [], [False] * len(paths)
    sees = dict(zip(map(str, paths), seen, strict=True))
    name, address = told["NodeName"], told["NodeManagerAddress"]
    return Node(name, address, told["Resources"], versions, gpus, sees, told["NodeID"])


@contextlib.contextmanager
def _mark(folder: Path) -> Iterator[str]:
    """A file that no other folder has, for a moment."""
    path = folder / f".seen-{secrets.token_hex(8)}"
    path.touch()
    try:
        yield str(path)
    finally:
        path.unlink(missing_ok=True)


def _looker() -> Any:
    """The task. Made here, it travels by value, also to a node that has no offrl_ray, or another one."""

    def look(marks: list[str]) -> tuple[dict[str, str], list[str], list[bool]]:
        import os
        import platform
        import subprocess

        try:
            from offrl_ray.distributed.drive import versions

            found = versions()
        except Exception as e:
            found = {"python": platform.python_version(), "offrl-ray": f"none ({type(e).__name__}: {e})"}
        seen = [os.path.exists(m) and os.access(os.path.dirname(m), os.W_OK) for m in marks]
        try:
            asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
            gpus = subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout.splitlines()
        except (OSError, subprocess.TimeoutExpired):
            gpus = []
        return found, gpus, seen

    return look


def kinds() -> list[Kind]:
    """What an autoscaler of this cluster can bring; inside a ray_session."""
    import ray

    if config := ray._private.state.state.get_cluster_config():
        found = [Kind(g.name, dict(g.resources), g.max_count) for g in config.node_group_configs]
    else:  # `ray up` leaves what it was told on the head
        try:
            config = yaml.safe_load(Path("~/ray_bootstrap_config.yaml").expanduser().read_text())
        except OSError:
            return []
        types = config.get("available_node_types", {})
        limit = config.get("max_workers", MOST)
        of = {k: min(t.get("max_workers", 0), limit) for k, t in types.items()}
        found = [Kind(k, t.get("resources", {}), of[k]) for k, t in types.items()]
    return [k._replace(most=k.most if k.most >= 0 else MOST) for k in found if k.most]
