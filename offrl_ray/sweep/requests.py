"""What a person asks of a running driver, by a file in its folder: the driver alone writes records."""

import contextlib
import os
from pathlib import Path

from offrl_ray.errors import UsageError
from offrl_ray.sweep.conductor import Conductor

FOLDER = "requests"
ALL = "stop"
USER = "stopped by the user"


def ask(folder: Path, trial: str | None) -> Path:
    """Ask the driver to stop a trial, or the sweep; the file is gone when it has heard."""
    place = folder / FOLDER / (f"{ALL}.{trial}" if trial else ALL)
    place.parent.mkdir(exist_ok=True)
    place.touch()
    return place


def obey(folder: Path, conductor: Conductor) -> None:
    """Do what was asked since the last look."""
    if not (folder / FOLDER).is_dir():
        return
    for name in sorted(os.listdir(folder / FOLDER)):
        if name == ALL:
            conductor.drain(USER)
        elif name.startswith(f"{ALL}."):
            with contextlib.suppress(UsageError):  # it ended meanwhile
                conductor.stop(name.removeprefix(f"{ALL}."), USER)
        (folder / FOLDER / name).unlink(missing_ok=True)  # at last: whoever asked waits for this


def clear(folder: Path) -> None:
    """Forget what an earlier driver was asked."""
    for path in (folder / FOLDER).glob("*"):
        path.unlink(missing_ok=True)
