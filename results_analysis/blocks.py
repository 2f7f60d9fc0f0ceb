"""What a report is made of: sections of tables, pictures and texts; knows neither records nor how they are shown."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from results_analysis.stats import Estimate

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
    kind: Literal["plain", "warning", "good", "bad"] = "plain"


class Raw(NamedTuple):
    """HTML that is made elsewhere, with all foreign text escaped, and the table that says the same in the files."""

    html: str
    table: Table
    png: bytes | None = None  # the same as a picture, for the files


Block = Table | Figure | Text | Raw


class Section(NamedTuple):
    key: str  # of its anchor
    title: str
    blocks: Sequence[Block]
