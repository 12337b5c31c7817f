"""Where results go: a folder of this machine, or one in a bucket (gs://BUCKET/NAME, s3://, az://), through etils.epath.

A bucket needs the package that fsspec reads it with: gcsfs, s3fs or adlfs. Objects in a bucket are written whole or not
at all, are never appended to, and need no folder above them.
"""

from __future__ import annotations

import os
import pathlib

from selfexplain_jax.types import UserError

BUCKETS = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}
"""Scheme of a bucket's address -> the Python package that reads it."""


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether that is an address in a bucket, such as gs://BUCKET/NAME, and no folder of this machine."""
    return "://" in os.fspath(path)


def open_folder(path: str | os.PathLike) -> pathlib.Path:
    """The path with pathlib's methods, wherever it lies; ~ is filled in.

    Returns:
      A `pathlib.Path`, or an `etils.epath.Path` in a bucket, which has the same methods.

    Raises:
      UserError: an address of another kind than `BUCKETS`.
    """
    if not in_bucket(path):
        return pathlib.Path(path).expanduser()
    scheme = os.fspath(path).partition("://")[0]
    if scheme not in BUCKETS:
        known = ", ".join(f"{name}://" for name in BUCKETS)
        raise UserError(f"{os.fspath(path)} is no folder, and no bucket of a known kind ({known}).")
    from etils import epath  # Here, because most runs do without.

    return epath.Path(path)


def make_folder(path: pathlib.Path) -> None:
    """Makes a folder and those above it; in a bucket there is nothing to make."""
    if not in_bucket(path):
        path.mkdir(parents=True, exist_ok=True)


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Writes a file that is there whole or not at all; its folder is made."""
    make_folder(path.parent)
    if in_bucket(path):
        path.write_bytes(content)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
