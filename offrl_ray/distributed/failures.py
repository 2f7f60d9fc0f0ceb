"""What a lost attempt died of. Ray cannot tell causes apart; exceptions and traces can."""

import errno
from pathlib import Path
from typing import Any

import ray
import torch
from ray import cloudpickle

from offrl_ray.errors import CheckpointError, DiskFull, UsageError


def trace_of(folder: Path, attempt: int) -> Path:
    """Where an attempt's watchdog writes the stacks of a hung process, before it ends it."""
    return folder / f"hang_{attempt}.txt"


def error_of(trial: Any) -> BaseException:
    """What a Tune trial died of, from the driver's own notes: its results folder never gets them.

    Tune pickles only the errors of tasks and actors. Of the others it leaves the text, and Ray's memory monitor is the
    one that says "memory".
    """
    if trial.pickled_error_file:
        error: BaseException = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
        return error
    text = Path(trial.error_file).read_text()
    return (ray.exceptions.OutOfMemoryError if "memory" in text else ray.exceptions.RayError)(text)


def classify(error: BaseException, trace: Path, silent: bool = False) -> tuple[str, str]:
    """The failure class (docs in README), and one line that says why.

    `silent`: no word for the whole limit. A process that is gone after that was ended by its own watchdog, whose trace
    may lie on another machine.
    """
    cause = getattr(error, "cause", None) or error
    reason = next((line for line in reversed(str(cause).strip().splitlines()) if line.strip()), "") or repr(cause)
    if trace.exists() and trace.stat().st_size:
        return "hang", f"no progress within the time limit; the stacks are in {trace.name}"
    if silent and _class(cause) == "infra" and isinstance(cause, ray.exceptions.RayError):
        return "hang", f"no progress within the time limit; the stacks are in {trace.name} of the machine where it ran"
    return _class(cause), f"{type(cause).__name__}: {reason}"


def _class(cause: BaseException) -> str:
    if isinstance(cause, ray.exceptions.OutOfMemoryError | MemoryError | torch.OutOfMemoryError):
        return "oom"
    if isinstance(cause, torch.AcceleratorError):
        return "gpu"
    if isinstance(cause, DiskFull) or (isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)):
        return "disk"
    if isinstance(cause, CheckpointError):
        return "checkpoint"
    if isinstance(cause, UsageError):
        return "data"
    if isinstance(cause, ray.exceptions.RayError | TimeoutError) and not isinstance(cause, ray.exceptions.RayTaskError):
        return "infra"
    return "code"
