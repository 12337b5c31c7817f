"""Writes a `RawSet` as array_record files with TFDS, without TensorFlow: all of it or nothing."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator

import numpy as np

from selfexplain_jax.data import decode
from selfexplain_jax.data.photo_set import RECORDS_SPLIT, VERSION, prepared_metadata
from selfexplain_jax.data.raw import RawPhoto, RawSet
from selfexplain_jax.data.records import is_prepared, prepared_path, records_folder
from selfexplain_jax.types import UserError


@dataclasses.dataclass
class _Progress:
    """What the generator has seen; TFDS runs it once, from the first photo to the last."""

    labels: list[list[int]] = dataclasses.field(default_factory=list)
    positions: dict[str, int] = dataclasses.field(default_factory=dict)
    left_out: list[str] = dataclasses.field(default_factory=list)
    error: UserError | None = None


def write_photo_set(name: str, raw_set: RawSet, data_dir: str, *, skip_bad: bool = False) -> dict:
    """Prepares a photo set as `data_dir`/name/VERSION.

    TFDS writes into a folder `incomplete.*` and renames it at the end, so that an interrupted preparation leaves
    nothing that loads; what an earlier one has left is deleted first.

    Args:
      name: of the dataset.
      raw_set: what to write. Every photo is written once, in the order of the splits.
      data_dir: see `records.records_folder`.
      skip_bad: leave out photos that cannot be read, and list them in the metadata; else the first one stops it.

    Returns:
      The metadata, see `photo_set.prepared_metadata`.

    Raises:
      UserError: a photo, mask or annotation is bad (the message names it), no photo is left, or writing fails.
    """
    import tensorflow_datasets as tfds

    folder = records_folder(data_dir)
    remove_unfinished(name, data_dir)
    progress, metadata = _Progress(), tfds.core.MetadataDict()
    builder = _builder_class(name, raw_set, progress, metadata, skip_bad)(data_dir=folder, file_format="array_record")
    try:
        builder.download_and_prepare()
    except Exception as error:  # TFDS wraps what the generator raises; disks raise errors of their own.
        if progress.error is not None:
            raise progress.error from None
        raise UserError(
            f"Preparing {name!r} in {folder!r} failed: {type(error).__name__}: {error}. Nothing half-written "
            "will be read."
        ) from error
    finally:
        if not is_prepared(name, VERSION, data_dir):
            remove_unfinished(name, data_dir)
    return prepared_metadata(name, data_dir)


def remove_unfinished(name: str, data_dir: str) -> None:
    """Deletes what an interrupted preparation of the dataset has left."""
    from etils import epath

    for path in epath.Path(prepared_path(name, "", data_dir)).glob("incomplete.*"):
        path.rmtree()
    final = epath.Path(prepared_path(name, VERSION, data_dir))
    if final.exists() and not is_prepared(name, VERSION, data_dir):
        final.rmtree()


def _builder_class(name: str, raw_set: RawSet, progress: _Progress, metadata: dict, skip_bad: bool) -> type:
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Stores the photos of a `RawSet` in one split."""

        VERSION = tfds.core.Version(VERSION)

        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                "height": tfds.features.Scalar(np.int32),
                "width": tfds.features.Scalar(np.int32),
                "class_ids": tfds.features.Tensor(shape=(None,), dtype=np.int64),
                "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
                "box_class_ids": tfds.features.Tensor(shape=(None,), dtype=np.int64),
                "box_ignored": tfds.features.Tensor(shape=(None,), dtype=np.bool_),
            }
            if raw_set.has_masks:
                features["mask"] = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"{name} as the data room of selfexplain_jax prepares it.",
                features=tfds.features.FeaturesDict(features),
                metadata=metadata,
                # In the order of the splits: who reads shuffles, and the metadata count on the order.
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager) -> dict:
            del dl_manager
            return {RECORDS_SPLIT: self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict]]:
            try:
                yield from _examples(raw_set, progress, skip_bad)
            except UserError as error:
                progress.error = error
                raise
            # TFDS writes the metadata after the last example.
            splits = {
                split: [progress.positions[name] for name in ids if name in progress.positions]
                for split, ids in raw_set.splits.items()
            }
            metadata.update(
                class_names=list(raw_set.class_names),
                has_masks=raw_set.has_masks,
                splits=splits,
                labels=progress.labels,
                left_out=progress.left_out,
                notes=dict(raw_set.notes),
            )

    Builder.name = name
    return Builder


def _examples(raw_set: RawSet, progress: _Progress, skip_bad: bool) -> Iterator[tuple[int, dict]]:
    for name in dict.fromkeys(name for ids in raw_set.splits.values() for name in ids):
        try:
            photo = raw_set.read(name)
        except UserError as error:
            if skip_bad:
                progress.left_out.append(f"{name}: {error}")
                continue
            raise UserError(f"{error} Correct or replace it, or leave bad photos out with --skip_bad.") from error
        position = len(progress.labels)
        progress.positions[name] = position
        progress.labels.append([int(class_id) for class_id in photo.class_ids])
        yield position, _features(name, photo, raw_set.has_masks)
    if not progress.labels:
        raise UserError("There is no photo to write: every one was left out, or the lists are empty.")


def _features(name: str, photo: RawPhoto, has_masks: bool) -> dict:
    height, width = decode.photo_size(photo.photo)
    example = {
        "id": name,
        "image": io.BytesIO(photo.photo),
        "height": height,
        "width": width,
        "class_ids": photo.class_ids,
        "boxes": photo.corners,
        "box_class_ids": photo.box_class_ids,
        "box_ignored": photo.box_ignored,
    }
    if has_masks:
        # No bytes stand for "no mask": the reader makes it void.
        example["mask"] = io.BytesIO(decode.encode_mask(photo.mask) if photo.mask is not None else b"")
    return example
