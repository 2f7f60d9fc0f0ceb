"""Tables as CSV for programs and as LaTeX for papers, and how a number is written."""

import csv
import io
import math
import re
from collections.abc import Sequence

from offrl_ray.errors import plain
from results_analysis.blocks import Table, Value
from results_analysis.stats import Estimate

DIGITS = 4
NOTHING = "\N{EN DASH}"
TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    c: f"\\{c}" for c in "&%$#_{}"
}


def file_name(name: str) -> str:
    """Safe in every folder, whoever chose the name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:80] or "table"


def shown(value: Value) -> str:
    """As a reader sees it: four digits, an estimate with its interval, a dash where there is nothing."""
    if value is None:
        return NOTHING
    if isinstance(value, Estimate):
        interval = f" [{_digits(value.interval[0])}, {_digits(value.interval[1])}]" if value.interval else ""
        return _digits(value.mean) + interval
    return _digits(value) if isinstance(value, float) else plain(value)


def _digits(value: float) -> str:
    """Without the exponent that %g gives to five-digit numbers."""
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.{DIGITS}g}"


def csv_text(table: Table) -> str:
    """Six digits; an estimate's column is followed by its interval's ends; empty where there is nothing."""
    wide = [any(isinstance(row[i], Estimate) for row in table.rows) for i in range(len(table.columns))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = ([c, f"{c} low", f"{c} high"] if w else [c] for c, w in zip(table.columns, wide, strict=True))
    writer.writerow(plain(c) for head in heads for c in head)
    for row in table.rows:
        writer.writerow(cell for value, w in zip(row, wide, strict=True) for cell in _csv_cells(value, w))
    return out.getvalue()


def _csv_cells(value: Value, wide: bool) -> list[str]:
    if isinstance(value, Estimate):
        ends = [f"{v:.6g}" for v in value.interval] if value.interval else ["", ""]
        return [f"{value.mean:.6g}", *ends]
    own = "" if value is None else f"{value:.6g}" if isinstance(value, float) else plain(value)
    return [own, "", ""] if wide else [own]


def latex_text(table: Table) -> str:
    r"""A `table` with the `tabular` in it; needs \usepackage{booktabs}."""
    columns = "".join("r" if _numeric([row[i] for row in table.rows]) else "l" for i in range(len(table.columns)))
    return "\n".join(
        [
            "% \\usepackage{booktabs}",
            "\\begin{table}",
            f"\\caption{{{_tex(table.caption)}}}",
            f"\\label{{tab:{file_name(table.name)}}}",
            f"\\begin{{tabular}}{{{columns}}}",
            "\\toprule",
            _tex_row(table.columns),
            "\\midrule",
            *map(_tex_row, table.rows),
            "\\bottomrule",
            "\\end{tabular}",
            "\\end{table}",
            "",
        ]
    )


def _numeric(values: Sequence[Value]) -> bool:
    return any(v is not None for v in values) and not any(isinstance(v, str) for v in values)


def _tex_row(row: Sequence[Value]) -> str:
    cells = ("--" if v is None else _tex(shown(v)) for v in row)
    return " & ".join(f"{{{c}}}" if c.startswith("[") else c for c in cells) + r" \\"


def _tex(text: str) -> str:
    return "".join(TEX.get(c, c) for c in plain(text.replace("\n", " ")))


def sort_key(value: Value) -> float | None:
    """By which a column of numbers is sorted; None for text."""
    number = value.mean if isinstance(value, Estimate) else value
    return float(number) if isinstance(number, int | float) and not math.isnan(number) else None
