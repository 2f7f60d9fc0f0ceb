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
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import platformdirs

from offrl_ray.errors import UsageError

T = TypeVar("T")
URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.+)", re.ASCII)
LIKE_URL = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]+:/", re.ASCII)  # a word that nobody gives a folder
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@:=+-]*", re.ASCII)
CREATES = ("s3", "s3a", "gs", "gcs", "memory")  # these refuse to create what exists, whoever is first
WHOLE = (*CREATES, "abfs", "abfss", "az")  # a reader of these finds all of a file or none
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
# a server that takes a request and says nothing: the client's own patience is minutes, and ours tries again
QUICK = {"config_kwargs": {"connect_timeout": 10, "read_timeout": 20, "retries": {"total_max_attempts": 1}}}
OPTIONS: dict[str, dict[str, Any]] = {"s3": QUICK, "s3a": QUICK}
PATIENCE_SECONDS = 60.0
PAUSES = (0.5, 8.0)  # seconds before the second try, and at most
REFUSED = (PermissionError, NotImplementedError, ValueError, TypeError, AttributeError)  # no better the next time


class StoreError(TimeoutError):
    """A store does not answer, or refuses; what it took before is there."""


class Fenced(StoreError):
    """Somebody else has written what was to be written: one of two writers must end, and this is it."""


class Store(NamedTuple):
    """The folder at a URL; names are relative to it. Every call raises StoreError when the store is lost for good."""

    url: str
    patience: float  # seconds to go on trying

    def names(self, folder: str = "") -> dict[str, int]:
        """What lies directly in a folder of it, with sizes in bytes; nothing if there is no such folder."""

        def ls(fs: Any, base: str) -> list[dict[str, Any]]:
            fs.invalidate_cache()
            found: list[dict[str, Any]] = fs.ls(f"{base}/{folder}".rstrip("/"), detail=True)
            return found

        try:
            found = self._try(ls)
        except FileNotFoundError:
            return {}
        return {i["name"].rstrip("/").rpartition("/")[2]: i.get("size") or 0 for i in found}

    def exists(self, name: str) -> bool:
        def info(fs: Any, base: str) -> None:
            fs.invalidate_cache()
            fs.info(f"{base}/{name}")

        try:
            self._try(info)
        except FileNotFoundError:
            return False
        return True

    def read(self, *names: str) -> list[bytes]:
        """Raises FileNotFoundError."""
        if not names:
            return []
        found = self._try(lambda fs, base: fs.cat([f"{base}/{n}" for n in names]))
        by_name = {path.rpartition("/")[2]: content for path, content in found.items()}
        return [by_name[n.rpartition("/")[2]] for n in names]

    def get(self, name: str, path: Path) -> None:
        """Raises FileNotFoundError."""
        self._try(lambda fs, base: fs.get_file(f"{base}/{name}", str(path)))

    def put(self, name: str, path: Path) -> None:
        """A local file; a reader finds it whole, or what was there before."""
        self._write(name, lambda fs, to: fs.put_file(str(path), to))

    def write(self, name: str, content: bytes) -> None:
        self._write(name, lambda fs, to: fs.pipe_file(to, content))

    def create(self, name: str, content: bytes) -> None:
        """Write what does not exist yet. Raises Fenced if it does; with this content it was our own, unanswered try."""

        def pipe(fs: Any, to: str) -> None:
            fs.pipe_file(to, content, **({"mode": "create"} if self._scheme in CREATES else {}))

        try:
            if self._scheme not in CREATES and self.exists(name):
                raise FileExistsError(name)
            self._write(name, pipe)
        except FileExistsError:
            if self.read(name) != [content]:
                raise Fenced(f"{self.url}/{name} has been written by somebody else") from None

    def move(self, old: str, new: str) -> None:
        """Raises FileNotFoundError."""
        self._try(lambda fs, base: fs.mv(f"{base}/{old}", f"{base}/{new}"))

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._try(lambda fs, base: fs.rm_file(f"{base}/{name}"))

    def problems(self) -> list[str]:
        """Why results cannot be written here."""
        once, name = self._replace(patience=0.0), f".probe.{uuid.uuid4().hex}"
        try:
            once.names()
            once.write(name, b"")
            once.remove(name)
        except UsageError as e:
            return e.problems
        except StoreError as e:
            return [f"--out: {e}; look at the bucket's name, the credentials and the network"]
        return []

    @property
    def lost(self) -> bool:
        """Nothing of it outlives this process."""
        return self._scheme == "memory"

    @property
    def _scheme(self) -> str:
        return self.url.partition("://")[0]

    def _write(self, name: str, put: Callable[[Any, str], None]) -> None:
        def whole(fs: Any, base: str) -> None:
            final = f"{base}/{name}"
            if self._scheme in WHOLE:
                return put(fs, final)
            folder, _, leaf = final.rpartition("/")
            new = f"{folder}/.{leaf}.{uuid.uuid4().hex}"
            fs.makedirs(folder, exist_ok=True)
            put(fs, new)
            return fs.mv(new, final)

        try:
            self._try(whole)
        except FileNotFoundError as e:
            raise StoreError(f"{self.url} cannot be written to: {e}") from e

    def _try(self, do: Callable[[Any, str], T]) -> T:
        """Again and again while it fails, as long as there is patience."""
        fs, base = _file_system(self.url)
        (pause, longest), began = PAUSES, time.monotonic()
        while True:
            try:
                return do(fs, base)
            except (FileNotFoundError, FileExistsError, StoreError):
                raise
            except REFUSED as e:
                raise StoreError(f"{self.url} refuses: {type(e).__name__}: {e}") from e
            except Exception as e:  # each file system has errors of its own
                if "Credentials" in type(e).__name__:
                    raise StoreError(f"{self.url} refuses: {type(e).__name__}: {e}") from e
                if time.monotonic() + pause - began > self.patience:
                    waited = f" for {self.patience:g} s" * (self.patience > 0)
                    raise StoreError(f"{self.url} does not answer{waited}: {type(e).__name__}: {e}") from e
            time.sleep(pause)
            pause = min(2 * pause, longest)


def _file_system(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    scheme = url.partition("://")[0]
    try:
        fs, base = url_to_fs(url, **OPTIONS.get(scheme, {}))
    except ImportError as e:
        fix = f"pip install 'offrl-ray[{EXTRAS[scheme]}]'" if scheme in EXTRAS else "install what it names"
        raise UsageError([f"{url}: this machine cannot speak {scheme}: {e}; {fix}"]) from e
    except ValueError as e:
        raise UsageError([f"{url}: {e}; known are s3://, gs:// and others of fsspec"]) from e
    return fs, base.rstrip("/")


def copies() -> Path:
    return platformdirs.user_cache_path("offrl-ray") / "copies"


def place(text: str | Path) -> Path:
    """The folder to work in for a path or a URL; file:// is the path itself. Raises UsageError for a malformed URL."""
    found = URL.fullmatch(str(text))
    if found and found[1] == "file" and found[2].startswith("/"):
        return Path(found[2])
    if not found or found[1] == "file":
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
