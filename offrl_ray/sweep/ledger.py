"""What a folder's records say of the work: what was asked, what has ended, what is still owed."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offrl_ray import records
from offrl_ray.errors import UsageError

Record = dict[str, Any]


class Ledger:
    """The records of a folder as they are now; an empty or absent folder owes everything."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._log = records.read(folder).records if (folder / records.FILE).exists() else []
        self.plan: Record | None = next((r for r in self._log if r["kind"] == "plan"), None)
        self._ends: dict[str, str] = {}
        for r in self._log:
            if r["kind"] == "end":
                self._ends[r["trial"]] = r["status"]

    def check(self, digest: str, data: Sequence[Record]) -> None:
        """Raises UsageError unless the folder is free, or holds exactly this work on exactly this data."""
        if not self._log:
            return
        if self.plan is None or self.plan["digest"] != digest:
            raise UsageError([f"{self.folder} holds another run or sweep, its plan differs; choose another folder"])
        before, now = ([f["digest"] for f in files] for files in (self.plan["data"], data))
        if before != now:
            changed = ", ".join(f["file"] for f in data if f["digest"] not in before)
            raise UsageError([f"{self.folder} was begun on other data, {changed} has changed; choose another folder"])

    def is_open(self, trial: str) -> bool:
        """True if the trial has no end; one that failed is open again."""
        return self._ends.get(trial, "failed") == "failed"

    def evaluated(self, trial: str, seeds: Sequence[int]) -> frozenset[int]:
        """Steps whose evaluation is recorded for all seeds."""
        found: dict[int, set[int]] = {}
        for r in self._log:
            if r["kind"] == "eval" and r["trial"] == trial:
                found.setdefault(r["step"], set()).add(r["seed"])
        return frozenset(step for step, done in found.items() if done >= set(seeds))


def place_problems(folder: Path) -> list[str]:
    """Why results cannot be written to a folder that may not exist yet."""
    for path in (folder, *folder.absolute().parents):
        if path.is_dir():
            return [] if os.access(path, os.W_OK) else [f"--out: {path} cannot be written to; choose another folder"]
        if path.exists():
            return [f"--out: {path} is no folder; choose another place for the results"]
    return []
