import errno
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray import cloudpickle

from offrl_ray.distributed.failures import classify, error_of, trace_of
from offrl_ray.errors import CheckpointError, DiskFull, UsageError
from offrl_ray.objects import StoreError


def in_task(error: Exception) -> BaseException:
    """As Ray hands on what a trial raised."""
    return ray.exceptions.RayTaskError("step", "Traceback ...", error).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (MemoryError("cannot allocate"), "oom"),
        (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
        (torch.AcceleratorError("device-side assert", 1), "gpu"),
        (DiskFull(errno.ENOSPC, "no room", "x"), "disk"),
        (OSError(errno.EDQUOT, "quota"), "disk"),
        (CheckpointError(["every checkpoint is damaged"]), "checkpoint"),
        (UsageError(["the files changed"]), "data"),
        (TimeoutError("the folder is locked"), "infra"),
        (StoreError("the store is away"), "infra"),
        (OSError(errno.EIO, "input/output error"), "code"),
        (ValueError("shapes differ"), "code"),
        (RuntimeError("mat1 and mat2"), "code"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Exception) else x,
)
def test_an_exception_of_the_trial_has_its_class(error: Exception, failure: str, tmp_path: Path) -> None:
    found, reason = classify(in_task(error), tmp_path / "none")
    assert found == failure
    assert type(error).__name__ in reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ray.exceptions.ActorDiedError(), "infra"),
        (ray.exceptions.ActorUnavailableError("gone", None), "infra"),
        (ray.exceptions.OutOfMemoryError("the node runs low"), "oom"),
    ],
)
def test_a_process_that_is_gone_has_its_class(error: Exception, failure: str, tmp_path: Path) -> None:
    assert classify(error, tmp_path / "none")[0] == failure


def test_an_actor_that_a_trial_lost_is_no_fault_of_its_code(tmp_path: Path) -> None:
    assert classify(in_task(ray.exceptions.ActorDiedError()), tmp_path / "none")[0] == "infra"


def test_a_trace_of_stacks_tells_a_hang_from_a_kill(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, 2)
    trace.touch()
    assert classify(ray.exceptions.ActorDiedError(), trace)[0] == "infra"
    trace.write_text("Thread 0x1 (most recent call first):\n")
    failure, reason = classify(ray.exceptions.ActorDiedError(), trace)
    assert failure == "hang"
    assert trace.name in reason


def test_a_process_that_is_gone_after_silence_hung_wherever_its_trace_is(tmp_path: Path) -> None:
    failure, reason = classify(ray.exceptions.ActorDiedError(), tmp_path / "hang_1.txt", silent=True)
    assert failure == "hang"
    assert "hang_1.txt of the machine where it ran" in reason
    for error in (ValueError("shapes differ"), TimeoutError("the folder is locked"), MemoryError("too big")):
        assert classify(in_task(error), tmp_path / "hang_1.txt", silent=True)[0] != "hang"


@pytest.mark.parametrize("error", [UsageError(["a", "b"]), CheckpointError(["a"]), DiskFull(28, "no room", "x")])
def test_errors_reach_the_driver_whole(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))


def left(folder: Path, error: BaseException, pickled: bool) -> Any:
    """A Tune trial after an error."""
    text, pickle = folder / "error.txt", folder / "error.pkl"
    text.write_text(f"Failure # 1 (occurred at noon)\n{error}\n")
    pickle.write_bytes(cloudpickle.dumps(error))
    return SimpleNamespace(error_file=str(text), pickled_error_file=str(pickle) if pickled else None)


@pytest.mark.parametrize(
    ("error", "pickled", "failure"),
    [
        (ray.exceptions.ActorDiedError(), True, "infra"),
        (ray.exceptions.OutOfMemoryError("the memory usage threshold was exceeded"), False, "oom"),
        (ray.exceptions.RayError("the runtime environment could not be set up"), False, "infra"),
        (MemoryError(), True, "oom"),
        (torch.AcceleratorError("CUDA error"), True, "gpu"),
        (DiskFull(28, "full", "x"), True, "disk"),
        (CheckpointError(["damaged"]), True, "checkpoint"),
        (UsageError(["no such file"]), True, "data"),
        (RuntimeError("poisoned"), True, "code"),
    ],
)
def test_the_class_of_a_failure(tmp_path: Path, error: BaseException, pickled: bool, failure: str) -> None:
    assert classify(error_of(left(tmp_path, error, pickled)), tmp_path / "hang_1.txt")[0] == failure
