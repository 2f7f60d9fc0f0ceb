"""Results at a URL: the store, and its working copy, which all else here takes for the folder of a sweep.

SCHEME://A/B/C is worked on in CACHE/copies/SCHEME/A/B/C of the user's cache, so either tells the other, on any machine.
What must not be lost is on the store before it counts: records (segments.py), checkpoints, leases and requests. What
else lies in a working copy is derived from these, or scratch.
"""

import argparse
import contextlib
import fcntl
import os
import re
from pathlib import Path

import platformdirs

from offrl_ray.errors import UsageError
from offrl_ray.objects import Store, StoreError

URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.+)", re.ASCII)
LIKE_URL = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]+:/", re.ASCII)  # a word that nobody gives a folder
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@:=+-]*", re.ASCII)
PATIENCE_SECONDS = 60.0


def copies() -> Path:
    return platformdirs.user_cache_path("offrl-ray") / "copies"


def place(text: str | Path) -> Path:
    """The folder to work in for a path or a URL; file:// is the path itself. Raises UsageError for a malformed URL."""
    found = URL.fullmatch(str(text))
    if not found or found[1] == "file":
        if found and found[2].startswith("/"):
            return Path(found[2])
        if LIKE_URL.match(str(text)):
            raise UsageError([f"a URL must be SCHEME://BUCKET/PLACE or file:///PLACE, but got {str(text)!r}"])
        return Path(text)
    parts = found[2].rstrip("/").split("/")
    if wrong := [p for p in parts if not PART.fullmatch(p)]:
        raise UsageError([f"a URL's parts must match {PART.pattern}, but got {wrong[0]!r} in {str(text)!r}"])
    return copies().joinpath(found[1], *parts)


def local_path(text: str) -> Path:
    """A path, for argparse, where no URL will do."""
    if LIKE_URL.match(text):
        raise argparse.ArgumentTypeError(f"must be a folder of this machine, but got {text!r}")
    return Path(text)


def given(text: str) -> Path:
    """`place`, for argparse."""
    try:
        return place(text)
    except UsageError as e:
        raise argparse.ArgumentTypeError("; ".join(e.problems)) from e


def store(folder: Path) -> Store | None:
    """The twin of a working copy, or of a folder in it; None for any other folder."""
    try:
        path, root = os.path.realpath(folder), os.path.realpath(copies())
    except ValueError:  # no path at all
        return None
    if not path.startswith(f"{root}{os.sep}"):
        return None
    scheme, *parts = os.path.relpath(path, root).split(os.sep)
    return Store(f"{scheme}://{'/'.join(parts)}", PATIENCE_SECONDS) if parts else None


def called(folder: Path) -> str:
    """What a person calls it: the URL of a working copy, else the path."""
    found = store(folder)
    return found.url if found else str(folder)


def names(folder: Path) -> list[str]:
    """What lies in a folder of a sweep; nothing if there is none. Raises OSError."""
    found = store(folder)
    return sorted(found.names()) if found else here(folder)


def here(folder: Path) -> list[str]:
    """What lies in a folder of this machine, by name. Raises OSError if it cannot be read, as glob does not."""
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def exists(path: Path) -> bool:
    found = store(path.parent)
    return found.exists(path.name) if found else path.exists()


def publish(path: Path) -> None:
    """Let others read a file of a working copy, if it is there and the store takes it at once."""
    if (at := store(path.parent)) and path.exists():
        with contextlib.suppress(StoreError):
            at._replace(patience=0.0).put(path.name, path)


def held(lock: Path) -> bool:
    """True if a process here holds a lock. Only looks: a shared lock for an instant, which others wait out."""
    try:
        fd = os.open(lock, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
