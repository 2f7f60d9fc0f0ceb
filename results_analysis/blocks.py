"""What a report is made of: sections of tables, pictures and texts; knows neither records nor how they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from results_analysis.stats import Estimate

Kind = Literal["plain", "warning", "good", "bad"]


class Word(str):
    """A text in a table's cell that is coloured as a Text of its kind; in the files it is any other text."""

    kind: Kind

    def __new__(cls, text: str, kind: Kind) -> Word:
        made = super().__new__(cls, text)
        made.kind = kind
        return made


Value = str | int | float | Estimate | None


class Table(NamedTuple):
    name: str  # of its CSV and LaTeX file
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]


class Figure(NamedTuple):
    name: str  # of its PNG file
    caption: str  # also what a reader hears who cannot see it
    png: bytes
    table: Table | None = None  # what it shows, for the files


class Text(NamedTuple):
    text: str
    kind: Kind | Literal["code"] = "plain"
    to: str = ""  # key of the section that tells more


class Raw(NamedTuple):
    """HTML that is made elsewhere, with all foreign text escaped, and the table that says the same in the files."""

    html: str
    table: Table
    png: bytes | None = None  # the same as a picture, for the files


class Fold(NamedTuple):
    """Blocks that a reader opens by their title; on paper they are open."""

    title: str
    blocks: Sequence[Block]
    kind: Kind = "plain"


Block = Table | Figure | Text | Raw | Fold


class Section(NamedTuple):
    key: str  # of its anchor
    title: str
    blocks: Sequence[Block]
