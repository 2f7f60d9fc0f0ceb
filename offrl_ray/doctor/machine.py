"""GPUs, cores and memory."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from offrl_ray.doctor.check import Check, GiB, fail, ok, output, warn

TRIAL = 0.55 * GiB  # the peak of a small trial's process on a CPU
STORE = 0.3  # of the memory, which Ray takes for its objects


class Card(NamedTuple):
    name: str
    used: int  # MiB
    memory: int  # MiB
    load: str  # %
    driver: str


def cards() -> list[Card]:
    """The GPUs of this machine; none where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = "--query-gpu=name,memory.used,memory.total,utilization.gpu,driver_version"
    text = output(["nvidia-smi", query, "--format=csv,noheader,nounits"], seconds=20)
    rows = [line.split(", ") for line in text.strip().splitlines()]
    return [Card(name, _number(used), _number(memory), load, driver) for name, used, memory, load, driver in rows]


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0  # [N/A], where memory is shared with the CPU


def gpus() -> list[Check]:
    found = cards()
    if not found and Path("/dev/nvidia0").exists():
        return [warn("gpu", "/dev/nvidia0 is there, but no nvidia-smi", "install the driver's utilities")]
    if not found:
        return [ok("gpu", "none; training and simulation run on the CPU")]
    checks = []
    for i, c in enumerate(found):
        what = f"{c.name}, {c.used / 1024:.1f} of {c.memory / 1024:.1f} GiB in use, load {c.load} %, driver {c.driver}"
        busy = c.used > 0.5 * c.memory > 0
        others = f"see `nvidia-smi` for whose it is, or CUDA_VISIBLE_DEVICES without {i}"
        checks.append(warn(f"gpu {i}", what, others) if busy else ok(f"gpu {i}", what))
    return checks


def cores() -> list[Check]:
    number, mine = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    threads = os.environ.get("OMP_NUM_THREADS")
    found = f"{number}, OMP_NUM_THREADS is {threads or 'not set'}"
    if threads is not None and not (threads.isdecimal() and 1 <= int(threads) <= number):
        return [warn("cores", found, "export OMP_NUM_THREADS=1; trials set their own number")]
    if mine < number:
        return [warn("cores", f"{found}, but this process may use {mine}", f"ray start --num-cpus {mine}")]
    return [ok("cores", found)]


def memory() -> list[Check]:
    total, free = memory_bytes()
    found = f"{free / GiB:.1f} of {total / GiB:.1f} GiB free, for about {free // TRIAL:.0f} small trials"
    if free < 2 * TRIAL:
        return [fail("memory", found, "end other programs")]
    return [warn("memory", found, "run few trials at a time")] if free < 4 * TRIAL else [ok("memory", found)]


def memory_bytes() -> tuple[int, int]:
    """Total and free, within the container's limit."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    of = {words[0]: int(words[1]) * 1024 for words in lines}
    total, free = of["MemTotal:"], of["MemAvailable:"]
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return total, free
    return min(total, limit), min(free, limit - used)


def shared_memory() -> list[Check]:
    """Ray's object store lies there; where it is too small Ray takes a slow folder instead, and only logs it."""
    place, wanted = Path("/dev/shm"), STORE * memory_bytes()[0]
    if not place.is_dir():
        return [warn("shared memory", f"there is no {place}", "mount one: Ray's objects lie on the disk without it")]
    free = shutil.disk_usage(place).free
    found = f"{free / GiB:.1f} GiB free in {place}, Ray would take {wanted / GiB:.1f}"
    if free < wanted:
        return [warn("shared memory", found, f"docker run --shm-size={wanted / GiB:.0f}g")]
    return [ok("shared memory", found)]
