"""Errors that a user can mend."""

import difflib
import errno
from collections.abc import Iterable
from typing import Any


class UsageError(ValueError):
    """Bad input, found before anything was started or written; the command line exits with 2.

    `problems` holds one line each: the rule, the value received, the place, the fix.
    """

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        super().__init__("\n".join(f"- {plain(p)}" for p in self.problems))

    def __reduce__(self) -> tuple[Any, ...]:  # by default pickle would make it of its text, letter by letter
        return type(self), (self.problems,)

    def report(self) -> str:
        """How a command tells it: the number of problems, then each."""
        return f"{len(self.problems)} problem{'s' * (len(self.problems) > 1)}:\n{self}"


def plain(text: object) -> str:
    """Foreign text for a terminal: one line, in which what is not printable stands as Python writes it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


class CheckpointError(UsageError):
    """A checkpoint is damaged, or a trial had some and none of them is good."""


class DiskFull(OSError):
    """There is no room for what was to be written; what lay on the disk before is as it was."""

    @staticmethod
    def caused(error: BaseException | None) -> bool:
        """True if a full disk, a quota or a limit on file sizes is behind an error; torch hides it behind its own."""
        while error is not None:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                return True
            error = error.__cause__ or error.__context__
        return False


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for the closest known names, or a list of them all when none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
