"""Errors that a user can mend."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Bad input, found before anything was started or written; the command line exits with 2.

    `problems` holds one line each: the rule, the value received, the place, the fix.
    """

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        super().__init__("\n".join(f"- {p}" for p in self.problems))

    def report(self) -> str:
        """How a command tells it: the number of problems, then each."""
        return f"{len(self.problems)} problem{'s' * (len(self.problems) > 1)}:\n{self}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for the closest known names, or a list of them all when none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
