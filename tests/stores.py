"""A store in memory, and one that fails as it is told."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import pytest

from offrl_ray import objects as real

Fault = Callable[[str, Any], None]
"""Called with an operation and its path; what it raises, the operation raises."""
CALLS = ("ls", "info", "cat", "get_file", "put_file", "pipe_file", "mv", "rm_file")


class Crash(BaseException):
    """The process is gone."""


class Failing:
    """A file system whose operations `before` and `after` they have their effect may fail."""

    def __init__(self, fs: Any, before: Fault, after: Fault):
        self._fs, self._before, self._after = fs, before, after

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._fs, name)
        if name not in CALLS:
            return real

        def call(path: Any, *args: Any, **more: Any) -> Any:
            self._before(name, path)
            found = real(path, *args, **more)
            self._after(name, path)
            return found

        return call


def nothing(name: str, path: Any) -> None: ...


@contextmanager
def failing(before: Fault = nothing, after: Fault = nothing) -> Iterator[None]:
    below = real._file_system  # which a test may have replaced
    with pytest.MonkeyPatch.context() as patch:

        def broken(url: str) -> tuple[Any, str]:
            fs, base = below(url)
            return Failing(fs, before, after), base

        patch.setattr(real, "_file_system", broken)
        yield


def at(number: int, error: BaseException, *names: str) -> Fault:
    """The error, once, at the call of a number, counted from 0, among those of some names."""
    seen = iter(range(10**9))

    def fault(name: str, path: Any) -> None:
        if (not names or name in names) and next(seen) == number:
            raise error

    return fault


def objects(url: str) -> dict[str, bytes]:
    """All that is stored under a URL."""
    fs, base = fsspec.url_to_fs(url)
    return {path.removeprefix(f"{base}/"): fs.cat_file(path) for path in fs.find(base)}
