"""Datasets that TFDS has prepared as array_record files, read at random and without TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from selfexplain_jax.types import UserError


def records_folder(data_dir: str) -> str:
    """Returns where prepared datasets lie: `data_dir`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def prepare_command(name: str, folder: str) -> str:
    """Returns the shell command that prepares the dataset `name` in `folder`."""
    return f"python -m selfexplain_jax.data.prepare --dataset={name} --data_dir={folder}"


def prepared_path(name: str, version: str, data_dir: str) -> str:
    """Returns the folder of one version of a prepared dataset."""
    return os.path.join(records_folder(data_dir), name, version)


def is_prepared(name: str, version: str, data_dir: str) -> bool:
    """Whether that version is there in full: its description is written last, and the folder renamed after that."""
    from etils import epath  # Buckets too.

    return (epath.Path(prepared_path(name, version, data_dir)) / "dataset_info.json").exists()


def not_prepared(name: str, path: str, command: str) -> UserError:
    """Returns the error that says where a dataset was looked for and how to prepare it."""
    return UserError(
        f"Dataset {name!r} is not prepared: looked for {path!r} (config.data.data_dir, else $TFDS_DATA_DIR, else "
        f"~/tensorflow_datasets). Prepare it with: {command}"
    )


def _whole_tfds():
    """Returns TFDS with what is used of it, which it imports as it is asked for.

    Raises:
      UserError: it cannot be imported.
    """
    try:
        import tensorflow_datasets as tfds  # Here: most of the house never needs it.

        for name in ("builder", "builder_from_directory", "decode"):
            getattr(tfds, name)
    except (ImportError, AttributeError) as error:
        # Told apart from a damaged dataset, which nobody shall delete for a package that is missing.
        raise UserError(
            f"tensorflow-datasets cannot be imported whole ({error}): it, or a package that it needs, is missing or of "
            "another version. Install them with: pip install -r requirements.txt"
        ) from error
    return tfds


class Records:
    """One split of a prepared dataset: items are dicts of numpy arrays, numbers and bytes, as TFDS decodes them.

    Args:
      name: of the dataset in TFDS, such as "mnist".
      split: of that dataset; slices such as "train[:100]" work too.
      data_dir: see `records_folder`; a folder or a bucket.
      version: of a dataset that this project's builders made, such as "1.0.0", which TFDS does not know by name.
      encoded: features that are handed out as the bytes of their files.

    Raises:
      UserError: the dataset is not there, not as array_record, or (then or while reading) its files are damaged; or
        TFDS cannot be imported.
    """

    def __init__(self, name: str, split: str, data_dir: str, *, version: str = "", encoded: Sequence[str] = ()):
        tfds = _whole_tfds()
        self.folder = records_folder(data_dir)
        command = prepare_command(name, self.folder)
        try:
            if version and not is_prepared(name, version, data_dir):
                raise not_prepared(name, prepared_path(name, version, data_dir), command)
            if version:
                builder = tfds.builder_from_directory(prepared_path(name, version, data_dir))
            else:
                builder = tfds.builder(name, data_dir=self.folder)
            # An interrupted preparation leaves a folder of another name, or one without a description.
            prepared = builder.is_prepared() and bool(builder.info.splits)
        except UserError:
            raise
        except Exception as error:  # What TFDS raises for a damaged description depends on the damage.
            raise UserError(
                f"Dataset {name!r} in {self.folder!r} cannot be opened; its dataset_info.json or features.json is "
                f"damaged ({error}). Delete it and prepare it again: {command}"
            ) from error
        if not prepared:
            raise not_prepared(name, str(builder.data_path), command)
        self._what = f"Dataset {name!r}, split {split!r}, in {str(builder.data_path)!r}"
        self._remedy = f"Delete that folder and prepare it again: {command}"
        try:
            decoders = {feature: tfds.decode.SkipDecoding() for feature in encoded if feature in builder.info.features}
            self._source = builder.as_data_source(split=split, decoders=decoders or None)
        except NotImplementedError as error:
            raise UserError(
                f"{self._what} is not in array_record files ({builder.info.file_format}), the only ones that are read "
                f"at random. {self._remedy}"
            ) from error
        except Exception as error:
            raise self._damaged(error) from error

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one item. Raises UserError where the file is damaged."""
        try:
            item = self._source[index]
        except Exception as error:  # As in `read`, which is slower for a single one.
            raise self._damaged(error) from error
        return self._whole([item])[0]

    def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Returns many items at once, which is about seven times faster than one by one."""
        try:
            items = self._source.__getitems__(list(indices))
        except Exception as error:  # The reader in C++ and the image decoders raise errors of many kinds.
            raise self._damaged(error) from error
        return self._whole(items)

    def _whole(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns the items; a file that stops short gives empty ones, which are an error."""
        if any(all(value is None for value in item.values()) for item in items):
            raise self._damaged(OSError("an empty record"))
        return items

    def _damaged(self, error: Exception) -> UserError:
        return UserError(f"{self._what}: cannot be read, files are damaged or missing ({error}). {self._remedy}")
