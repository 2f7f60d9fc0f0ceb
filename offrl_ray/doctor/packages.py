"""Python, the packages, and the build of torch."""

import os
import platform
import re
from collections.abc import Iterator
from importlib import metadata

from offrl_ray.doctor import machine
from offrl_ray.doctor.check import Check, fail, ok

NEED = re.compile(r"([\w.-]+)(?:\[.*\])?>=([\w.]+)\Z")
INSTALL = "pip install --constraint constraints.txt"


def python() -> list[Check]:
    here, least = platform.python_version(), metadata.metadata("offrl-ray")["Requires-Python"].removeprefix(">=")
    if _parts(here) < _parts(least):
        return [fail("python", f"{here}, needed is {least}", f"make the environment anew with Python {least}")]
    return [ok("python", here)]


def installed() -> list[Check]:
    """Against what pyproject.toml asks for."""
    problems, number = [], 0
    for name, least in _needed():
        number += 1
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            here = "missing"
        if here == "missing" or _parts(here) < _parts(least):
            problems.append(fail(name, f"{here}, needed is {least}", f"{INSTALL} '{name}>={least}'"))
    return problems or [ok("packages", f"offrl-ray {metadata.version('offrl-ray')} and the {number} that it needs")]


def _needed() -> Iterator[tuple[str, str]]:
    for line in metadata.requires("offrl-ray") or []:
        if (found := NEED.match(line.replace(" ", ""))) is not None:  # extras carry a marker, and do not match
            yield found[1], found[2]


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.match(r"[\d.]+", version)[0].strip(".").split("."))  # type: ignore[index]


def torch_build() -> list[Check]:
    """A GPU that torch does not see is what nobody notices until the sweep is slow."""
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
    found, gpus = f"{torch.__version__}, {build}", machine.cards()
    if not gpus or torch.cuda.is_available():
        return [ok("torch", f"{found}, sees {torch.cuda.device_count()} GPU")]
    found = f"{found}, sees none of {len(gpus)} GPU"
    if not torch.version.cuda:
        return [fail("torch", found, "install the CUDA build that pytorch.org names for your driver")]
    if (hidden := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [fail("torch", f"{found}: CUDA_VISIBLE_DEVICES is {hidden!r}", "unset CUDA_VISIBLE_DEVICES")]
    mend = f"driver {gpus[0].driver} may be too old for it: update it, or take a build for an older CUDA"
    return [fail("torch", found, mend)]
