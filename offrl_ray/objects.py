"""Files at a URL, whatever storage that is: whole or not there, and some of them written once."""

import contextlib
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from offrl_ray.errors import UsageError

T = TypeVar("T")
CREATES = ("s3", "s3a", "gs", "gcs", "memory")  # these refuse to create what exists, whoever is first
WHOLE = (*CREATES, "abfs", "abfss", "az")  # a reader of these finds all of a file or none
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
# a server that takes a request and says nothing: the client's own patience is minutes, and ours tries again
QUICK = {"config_kwargs": {"connect_timeout": 10, "read_timeout": 20, "retries": {"total_max_attempts": 1}}}
OPTIONS: dict[str, dict[str, Any]] = {"s3": QUICK, "s3a": QUICK}
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
            except Exception as e:  # each file system has errors of its own
                if isinstance(e, REFUSED) or "Credentials" in type(e).__name__:
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
