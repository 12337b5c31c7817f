"""Downloads a dataset and writes it as array_record files: `python -m selfexplain_jax.data.prepare --dataset=mnist`.

The one file that needs TensorFlow, because TFDS's own builders do. Training and everything else read the result
without it. TFDS writes into a folder `incomplete.*` and renames it when all is there, so that an interrupted
preparation leaves nothing that would be read; the same command then starts again with the finished downloads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from selfexplain_jax.data.records import prepare_command, records_folder
from selfexplain_jax.types import UserError

PREPARABLE = {"mnist": "mnist:3.0.1"}
"""Name -> TFDS name and version."""


def prepare(name: str, data_dir: str = "") -> str:
    """Prepares a dataset, unless it is there already.

    Args:
      name: one of `PREPARABLE`.
      data_dir: where to; see `records.records_folder`.

    Returns:
      The folder that holds the prepared files.

    Raises:
      UserError: unknown dataset, no TensorFlow, or the download or the writing fails.
    """
    if name not in PREPARABLE:
        raise UserError(f"--dataset={name!r} cannot be prepared. There are: {', '.join(sorted(PREPARABLE))}.")
    folder = records_folder(data_dir)
    import tensorflow_datasets as tfds

    builder = tfds.builder(PREPARABLE[name], data_dir=folder, file_format="array_record")
    if builder.is_prepared():
        return str(builder.data_path)
    try:
        import tensorflow  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"Preparing {name!r} needs TensorFlow (reading it does not), which is not installed here: {error}. "
            f"Run: pip install tensorflow-cpu, then again: {prepare_command(name, folder)}"
        ) from error
    try:
        builder.download_and_prepare()
    except Exception as error:  # Network, disk and checksum errors come as many types.
        raise UserError(
            f"Preparing {name!r} in {folder!r} failed: {type(error).__name__}: {error}. Nothing half-written will be "
            f"read. Check the network and the free disk space, then run again: {prepare_command(name, folder)}"
        ) from error
    return str(builder.data_path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 1 with one message on standard error."""
    parser = argparse.ArgumentParser(description="Downloads a dataset and writes it as array_record files.")
    parser.add_argument("--dataset", required=True, help=f"one of: {', '.join(sorted(PREPARABLE))}")
    parser.add_argument("--data_dir", default="", help="default: $TFDS_DATA_DIR, else ~/tensorflow_datasets")
    flags = parser.parse_args(arguments)
    try:
        print(f"{flags.dataset} is ready in {prepare(flags.dataset, flags.data_dir)}")
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
