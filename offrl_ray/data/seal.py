"""Checksums that let an .h5 and its .json prove to be what `collect` wrote; other tools' files have none."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KEY = "sha256"


def sha256(path: Path) -> str:
    """Of a file's content, as hex digits. Raises OSError."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sealed(meta: dict[str, Any], h5: str) -> dict[str, Any]:
    """The json's content with the SHA-256 of the .h5 and of itself: {..., KEY: {h5, json}}."""
    body = {**meta, KEY: {"h5": h5}}
    text = json.dumps(body, sort_keys=True).encode()
    return {**meta, KEY: {"h5": h5, "json": hashlib.sha256(text).hexdigest()}}


def broken(meta: dict[str, Any], h5: str) -> Iterator[str]:
    """What differs from its checksum; nothing if there is none."""
    if KEY not in meta:
        return
    found, rest = meta[KEY], {k: v for k, v in meta.items() if k != KEY}
    if not isinstance(found, dict) or sealed(rest, str(found.get("h5")))[KEY] != found:
        yield f"the .json differs from its own checksum; copy it again, or make both files again ({KEY} is {found})"
    elif found["h5"] != h5:
        yield f"the .h5 differs from the checksum in its .json; copy it again, or remove {KEY} if a tool remade it"
