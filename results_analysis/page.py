"""Blocks as one HTML page that needs nothing but itself, and as the files beside it. All text is escaped here.

A content security policy keeps the page from loading anything, and from running any script but its own.
"""

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from offrl_ray.errors import plain
from results_analysis.blocks import Block, Figure, Fold, Raw, Section, Table, Text, Value, Word
from results_analysis.files import csv_text, file_name, latex_text, shown, sort_key
from results_analysis.words import Lang, Say

ASSETS = Path(__file__).parent / "assets"
LONG = 40  # rows of a table that is not cut; more scroll in a box
INLINE = 64 * 1024  # bytes of a table's file that the page carries itself; larger ones lie in the folder beside it

Files = dict[str, bytes]


def text(foreign: object) -> str:
    """HTML of a text that anybody may have written; its line breaks stay."""
    return escape("\n".join(map(plain, str(foreign).split("\n"))))


def render(title: str, sections: Sequence[Section], folder: str, lang: Lang, say: Say) -> tuple[str, Files]:
    """The page, and the files that belong into `folder` beside it."""
    files: Files = {}
    body = "".join(_section(s, _Links(folder, files, say)) for s in sections)
    toc = "".join(f'<li><a href="#{text(s.key)}">{text(s.title)}</a></li>' for s in sections)
    script, css = ((ASSETS / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    page = (
        f'<!doctype html>\n<html lang="{"zh-Hans" if lang == "zh" else "en"}">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{text(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#main">{text(say("Skip to the content"))}</a>\n'
        f"<header><h1>{text(title)}</h1></header>\n"
        f'<nav aria-label="{text(say("Contents"))}"><ol>{toc}</ol></nav>\n<main id="main">\n{body}</main>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )
    return page, files


class _Links:
    """Keeps every file, and says how the page points to it."""

    def __init__(self, folder: str, files: Files, say: Say) -> None:
        self.folder, self.files, self.say = folder, files, say

    def of(self, table: Table | None, png: bytes | None, name: str) -> str:
        """The line of downloads; the picture of a figure is on the page and needs none."""
        stem = self._free(file_name(name))
        found: Files = {}
        if png is not None:
            found[f"{stem}.png"] = png
        if table is not None:
            found[f"{stem}.csv"] = csv_text(table).encode("utf-8", "backslashreplace")
            found[f"{stem}.tex"] = latex_text(table).encode("utf-8", "backslashreplace")
        self.files |= found
        links = (f'<a download="{n}" href="{self._address(n, c)}">{n.rpartition(".")[2]}</a>' for n, c in found.items())
        return f'<p class="files">{text(self.say("Download"))}: {" ".join(links)}</p>'

    def _free(self, stem: str) -> str:
        taken = {Path(n).stem for n in self.files}
        return next(s for i in range(1, len(taken) + 2) if (s := stem if i == 1 else f"{stem}-{i}") not in taken)

    def _address(self, name: str, content: bytes) -> str:
        if len(content) > INLINE or name.endswith(".png"):
            return f"{quote(self.folder)}/{name}"
        return f"data:text/plain;charset=utf-8;base64,{base64.b64encode(content).decode()}"


def _section(section: Section, links: _Links) -> str:
    blocks = "".join(_block(b, links) for b in section.blocks)
    key = text(section.key)
    head = f'<section id="{key}" aria-labelledby="{key}-h"><h2 id="{key}-h">{text(section.title)}</h2>'
    return f"{head}\n{blocks}</section>\n"


def _block(block: Block, links: _Links) -> str:
    if isinstance(block, Text):
        return _text(block)
    if isinstance(block, Fold):
        inside = "".join(_block(b, links) for b in block.blocks)
        return f'<details class="{block.kind}"><summary>{text(block.title)}</summary>\n{inside}</details>\n'
    if isinstance(block, Table):
        return _table(block) + links.of(block, None, block.name)
    if isinstance(block, Raw):
        return block.html + links.of(block.table, block.png, block.table.name)
    return _figure(block) + links.of(block.table, block.png, block.name)


def _text(block: Text) -> str:
    if block.kind == "code":
        return f'<pre tabindex="0"><code>{text(block.text)}</code></pre>\n'
    inner = f'<a href="#{text(block.to)}">{text(block.text)}</a>' if block.to else text(block.text)
    return f'<p class="{block.kind}">{inner}</p>\n'


def _figure(figure: Figure) -> str:
    source = f"data:image/png;base64,{base64.b64encode(figure.png).decode()}"
    caption = text(figure.caption)
    return (
        f'<figure><div class="scroll" tabindex="0" role="group" aria-label="{text(figure.name)}">'
        f'<img src="{source}" alt="{caption}"></div><figcaption>{caption}</figcaption></figure>\n'
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col"><button type="button">{text(c)}</button></th>' for c in table.columns)
    rows = "".join(f"<tr>{''.join(_cell(v, i) for i, v in enumerate(row))}</tr>\n" for row in table.rows)
    box = "scroll long" if len(table.rows) > LONG else "scroll"
    return (
        f'<div class="{box}" tabindex="0" role="group" aria-label="{text(table.name)}"><table class="sortable">'
        f"<caption>{text(table.caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n"
    )


def _cell(value: Value, i: int) -> str:
    key = sort_key(value)
    number = "" if key is None else f' class="number" data-sort="{key:.6g}"'
    inner = text(shown(value))
    if isinstance(value, Word):
        inner = f'<strong class="{value.kind}">{inner}</strong>'
    return f'<th scope="row"{number}>{inner}</th>' if i == 0 else f"<td{number}>{inner}</td>"
