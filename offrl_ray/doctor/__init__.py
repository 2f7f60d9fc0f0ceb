"""What is right, doubtful or wrong with a machine, a cluster and a data file, and what mends it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from offrl_ray.distributed import session
from offrl_ray.doctor import cluster, files, machine, packages, rays, simulator
from offrl_ray.doctor.check import Check, fail
from offrl_ray.errors import UsageError


def examine(out: str, data: Path | None, address: str | None) -> Iterator[Check]:
    """Check by check, in a fixed order; `out` is where results go, a folder or a URL. Raises nothing."""
    session.apply_settings()
    local: dict[str, Callable[[], list[Check]]] = {
        "python": packages.python,
        "packages": packages.installed,
        "torch": packages.torch_build,
        "gpu": machine.gpus,
        "simulator": simulator.simulators,
        "cores": machine.cores,
        "memory": machine.memory,
        "disk": lambda: files.disks(out),
        "shared memory": machine.shared_memory,
        "ray's folder": rays.folder,
        "ports": rays.ports,
        "token": rays.token,
        "ray": rays.running,
    }
    with ThreadPoolExecutor(len(local)) as pool:
        for checks in [pool.submit(guarded, name, check) for name, check in local.items()]:
            yield from checks.result()
    if data is not None:
        yield from guarded("data", lambda: files.trajectories(data))
    if address is not None:
        yield from guarded("cluster", lambda: cluster.nodes(address, out))


def guarded(name: str, check: Callable[[], list[Check]]) -> list[Check]:
    """A check that cannot be made has failed, and the others go on."""
    try:
        return check()
    except UsageError as e:
        return [fail(name, problem) for problem in e.problems]
    except Exception as e:
        return [fail(name, f"could not be found out: {type(e).__name__}: {e}")]
