"""What an HDF5 file may not contain, found before any data is read.

Links, virtual and externally stored datasets read other files; a declared size costs a few bytes to write and terabytes
to read. Only what the loader reads is looked at: the direct children of the trajectory groups.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import h5py

TRAJECTORY = re.compile(r"traj_[0-9]+\Z")


@dataclass
class Problems:
    """Problems by rule, with the places where each was found, so that a thousand trajectories make one line."""

    path: Path
    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, rule: str, place: str = "") -> None:
        self.found.setdefault(rule, []).append(place)

    @property
    def count(self) -> int:
        return sum(map(len, self.found.values()))

    def lines(self) -> list[str]:
        def places(at: list[str]) -> str:
            named = [p for p in at if p]
            more = f" and {len(named) - 3} more" if len(named) > 3 else ""
            return f" [{', '.join(named[:3])}{more}]" if named else ""

        return [f"{self.path}: {rule}{places(at)}" for rule, at in self.found.items()]


def guard(f: h5py.File, path: Path, budget: int, problems: Problems) -> bool:
    """True if the file's trajectories may be read; `budget` in bytes."""
    before, total = problems.count, 0
    for name in f:
        if not name.startswith("traj_"):
            continue
        if not TRAJECTORY.match(name):
            problems.add("trajectories must be named traj_0, traj_1, ...", name)
        elif not isinstance(f.get(name, getlink=True), h5py.HardLink):
            problems.add("links are refused: they may lead out of the file", name)
        elif not isinstance(f[name], h5py.Group):
            problems.add("trajectories must be groups", name)
        else:
            total += sum(_guard_item(f[name], name, key, problems) for key in f[name])
    if total > budget:
        problems.add(
            f"declares {total / 2**30:.1f} GiB of data ({path.stat().st_size / 2**30:.3f} GiB on disk), "
            f"the budget is {budget / 2**30:.1f} GiB; split the file"
        )
    return problems.count == before


def _guard_item(group: h5py.Group, name: str, key: str, problems: Problems) -> int:
    """Bytes that reading the item takes."""
    place = f"{name}/{key}"
    if not isinstance(group.get(key, getlink=True), h5py.HardLink):
        problems.add("links are refused: they may lead out of the file", place)
        return 0
    item = group[key]
    if isinstance(item, h5py.Group):  # env_states, and observations that are not a state vector: never read
        return 0
    if not isinstance(item, h5py.Dataset) or item.shape is None:
        problems.add("must be a data set with a shape", place)
    elif item.external or item.is_virtual:
        problems.add("external and virtual datasets are refused: they read other files", place)
    elif item.dtype.kind not in "fiub":
        problems.add(f"type {item.dtype} is refused; only numbers and booleans are data", place)
    else:
        return int(item.size) * max(item.dtype.itemsize, 4)
    return 0
