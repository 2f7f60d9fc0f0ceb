"""Is anything lost? The invariants of a sweep's folder, checked from its records and what lies beside them.

N0 every planned or asked trial ends exactly once, and nobody else is spoken of
N1 every line is whole and in sequence (what a lost tail held cannot be known here)
N2 an attempt repeats at most one checkpoint period, and never begins at 0 when an evaluated checkpoint was there
N3 a damaged checkpoint is set aside and noted; a trial that has lost them all has failed and is not begun anew
N4 what was done twice gave the same numbers, bit for bit; not asked of runs on a GPU
N5 an evaluation names its checkpoint's digest, environment and episodes, and the checkpoint on disk is that one
N6 attempts count 1, 2, 3 ..; none reports a step twice, or after the next one began
N7 the derived Optuna study is what its records make
N8 a completed trial has finite metrics, and the last and every other evaluation of all seeds that have not diverged

N9, pictures that tell how many seeds they rest on, is a rule for what is drawn from the records: the tests check it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from offrl_ray.sweep.invariants import RULES, Case, DigestOf


class Report(NamedTuple):
    violations: list[str]  # each begins with its invariant: "N3: ..."
    open: list[str]  # trials without an end
    notes: list[str]  # worth knowing, and no loss
    counts: dict[str, int]

    @property
    def verdict(self) -> str:
        if self.violations:
            return f"{len(self.violations)} violation{'s' * (len(self.violations) > 1)}"
        total = sum(self.counts.values())
        return f"clean so far: {len(self.open)} open" if self.open else f"clean: {total} of {total} ended"


def _broken(case: Case, name: str, rule: Callable[[Case], Iterator[str]]) -> Iterator[str]:
    try:
        yield from (f"{name}: {text}" for text in rule(case))
    except (KeyError, TypeError, ValueError, AttributeError) as e:  # checksums fit, but we did not write it
        yield f"{name}: cannot be judged, a record holds what this version never writes ({type(e).__name__}: {e})"


def check(folder: Path, digest_of: DigestOf | None = None) -> Report:
    """Everything that breaks an invariant, with the trials that are still open.

    Reads only, at any time; checkpoints are read in full where `digest_of` is given. Raises FileNotFoundError if the
    folder has no records.
    """
    case = Case(folder, digest_of)
    state = case.state
    found = [violation for name, rule in RULES.items() for violation in _broken(case, name, rule)]
    open_trials = [t.name for t in state.trials.values() if not t.ended and t.same_as is None]
    return Report(found, open_trials, case.notes, state.counts())
