"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import pathlib


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Writes a file that is there whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
