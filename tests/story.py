"""What tests of the report's sections ask of a section."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from results_analysis.blocks import Block, Fold, Section, Table, Text, Value
from results_analysis.load import Sweep, load
from tests.synthetic import Record, write


def read(parent: Path, log: Iterable[Record], name: str = "toy") -> Sweep:
    return load(write(parent / name, iter(list(log))))


def table(section: Section, name: str) -> Table:
    (found,) = (b for b in section.blocks if isinstance(b, Table) and b.name == name)
    assert all(len(row) == len(found.columns) for row in found.rows)
    return found


def by_first(t: Table) -> dict[Any, dict[str, Value]]:
    """First cell of a row -> column -> cell."""
    return {row[0]: dict(zip(t.columns, row, strict=True)) for row in t.rows}


def flat(blocks: Sequence[Block]) -> Iterator[Block]:
    """All blocks, those within folds after their fold."""
    for b in blocks:
        yield b
        if isinstance(b, Fold):
            yield from flat(b.blocks)


def texts(section: Section, kind: str | None = None) -> Sequence[str]:
    return [b.text for b in flat(section.blocks) if isinstance(b, Text) and kind in (None, b.kind)]


def only(found: Iterable[str], part: str) -> str:
    """The one text that has the part."""
    (text,) = (t for t in found if part in t)
    return text
