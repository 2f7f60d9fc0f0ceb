"""The report's two languages: English in the code, Chinese in `zh/*.json`, one file per module that speaks."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

Lang = Literal["en", "zh"]
Say = Callable[..., str]
"""say("{n} of {planned} seeds", n=2, planned=3): the text in the report's language, its places filled in."""


@cache
def _chinese() -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted((Path(__file__).parent / "zh").glob("*.json")):
        found |= json.loads(path.read_text(encoding="utf-8"))
    return found


def speaker(lang: Lang) -> Say:
    """Texts without a translation stay English: names of metrics, settings and trials, and what others wrote."""
    table = _chinese() if lang == "zh" else {}

    def say(text: str, **places: Any) -> str:
        return table.get(text, text).format(**places)

    return say
