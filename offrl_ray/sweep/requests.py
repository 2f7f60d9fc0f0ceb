"""What a person asks of a running driver, by a file in its folder: the driver alone writes records."""

import contextlib
import os
from pathlib import Path

from offrl_ray.errors import UsageError
from offrl_ray.objects import StoreError
from offrl_ray.store import exists, here, names, store
from offrl_ray.sweep.conductor import Conductor
from offrl_ray.sweep.lease import REQUESTS as FOLDER

ALL = "stop"
USER = "stopped by the user"


def ask(folder: Path, trial: str | None) -> Path:
    """Ask the driver to stop a trial, or the sweep; the request `stands` until it has heard.

    That of a working copy may be anywhere: the file is on the store, and comes to it by its lease.
    """
    place = folder / FOLDER / (f"{ALL}.{trial}" if trial else ALL)
    if at := store(place.parent):
        at.write(place.name, b"")
    else:
        place.parent.mkdir(exist_ok=True)
        place.touch()
    return place


def stands(place: Path) -> bool:
    return exists(place)


def obey(folder: Path, conductor: Conductor) -> None:
    """Do what was asked since the last look."""
    if not (folder / FOLDER).is_dir():
        return
    for name in sorted(os.listdir(folder / FOLDER)):
        if not _asked(folder / FOLDER / name):  # the lease brought it while it was being taken back
            (folder / FOLDER / name).unlink(missing_ok=True)
            continue
        if name == ALL:
            conductor.drain(USER)
        elif name.startswith(f"{ALL}."):
            with contextlib.suppress(UsageError):  # it ended meanwhile
                conductor.stop(name.removeprefix(f"{ALL}."), USER)
        with contextlib.suppress(StoreError):  # then it is obeyed once more, which changes nothing
            _forget(folder / FOLDER / name)  # at last: whoever asked waits for this


def _asked(place: Path) -> bool:
    try:
        return stands(place)
    except StoreError:
        return True


def clear(folder: Path) -> None:
    """Forget what an earlier driver was asked."""
    for name in {*names(folder / FOLDER), *here(folder / FOLDER)}:
        _forget(folder / FOLDER / name)


def _forget(place: Path) -> None:
    if at := store(place.parent):
        at.remove(place.name)
    place.unlink(missing_ok=True)
