"""Saliency maps of several methods over one split, kept on disk: an interrupted run goes on where it stopped."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tqdm
from absl import logging

from selfexplain_jax.attribution import ground_truth
from selfexplain_jax.data.pipeline import EvaluationBatches, evaluation_batches
from selfexplain_jax.metrics import view
from selfexplain_jax.types import Batch, Dataset, Predictor, UserError


@dataclasses.dataclass(frozen=True)
class Column:
    """One method of the comparison: its label in the tables, the predictor it explains, and the function that does.

    method: (predictor, images, class_ids, *, rng) -> maps; None for the annotated masks. scaling: how its maps become
    masks, see `metrics.explained.SCALINGS`.
    """

    label: str
    model: str
    predictor: Predictor
    method: Callable | None
    scaling: str


def make_maps(column: Column, dataset: Dataset, config: ml_collections.ConfigDict, folder: pathlib.Path) -> None:
    """Explains every batch that has no file yet; writes maps, failures and the time taken to WORKDIR/maps/LABEL/."""
    for number, batch in progress(evaluation(dataset, config), f"maps {column.label}"):
        path, batch = map_path(folder, column, number), view.fill_padding(batch)
        if not path.is_file():
            class_ids = present_classes(batch["label"], config.comparison.classes_per_image)
            rng = jax.random.fold_in(jax.random.key(config.seed), number)
            start = time.perf_counter()
            saliency, messages = explain_rows(column, batch, class_ids, rng)
            seconds = time.perf_counter() - start
            messages = {int(batch["index"][row]): text for row, text in messages.items() if batch["valid"][row] > 0}
            content = io.BytesIO()
            np.savez_compressed(
                content, saliency=saliency, class_ids=class_ids, failures=json.dumps(messages), seconds=seconds
            )
            write_whole(path, content.getvalue())


def explain_rows(
    column: Column, batch: Batch, class_ids: np.ndarray, rng: jax.Array
) -> tuple[np.ndarray, dict[int, str]]:
    """Returns the maps float32 [B, k, H, W], and {row: message} of the images that the method could not explain.

    A batch that fails is tried again image by image, so that one bad image does not take the others with it. The maps
    of a failed row are NaN.
    """
    if column.method is None:
        return np.asarray(ground_truth(batch["mask"], class_ids)), {}
    images = jnp.asarray(batch["image"])

    def run(rows: slice) -> np.ndarray:
        return np.asarray(column.method(column.predictor, images[rows], class_ids[rows], rng=rng), np.float32)

    messages = {}
    try:
        saliency = run(slice(None))
    except Exception as error:  # noqa: BLE001 (whatever a method raises is a failure to be reported)
        logging.warning("Method %r failed on a batch (%s); trying its images one by one.", column.label, error)
        size = column.predictor.image_size
        saliency = np.full((*class_ids.shape, size, size), np.nan, np.float32)
        for row in range(len(images)):
            try:
                saliency[row] = run(slice(row, row + 1))[0]
            except Exception as single:  # noqa: BLE001
                messages[row] = f"{type(single).__name__}: {str(single).splitlines()[0] if str(single) else ''}"
    for row in np.flatnonzero(~np.isfinite(saliency).all(axis=(1, 2, 3))):
        messages.setdefault(int(row), "the map holds NaN or infinity")
    return saliency, messages


def present_classes(label: np.ndarray, count: int) -> np.ndarray:
    """Returns int32 [B, k]: present classes by index, then absent ones; k = count, or the most classes there are."""
    order = np.argsort(-(label > 0).astype(np.int32), axis=1, kind="stable")
    return order[:, : min(count, label.shape[1])].astype(np.int32)


def read_failures(
    folder: pathlib.Path, column: Column, dataset: Dataset, config: ml_collections.ConfigDict
) -> dict[int, str]:
    """Returns {position in the split: message} of the images that a method could not explain."""
    failures = {}
    for number in range(len(evaluation(dataset, config))):
        with np.load(map_path(folder, column, number)) as stored:
            failures |= {int(index): text for index, text in json.loads(str(stored["failures"])).items()}
    return failures


def seconds_per_image(
    folder: pathlib.Path, column: Column, dataset: Dataset, config: ml_collections.ConfigDict
) -> float | None:
    """Returns the median over batches, the first (which compiles) left out where there are others, per image."""
    seconds = []
    for number in range(len(evaluation(dataset, config))):
        with np.load(map_path(folder, column, number)) as stored:
            seconds.append(float(stored["seconds"]))
    return float(np.median(seconds[1:] or seconds)) / config.evaluation.batch_size


def evaluation(dataset: Dataset, config: ml_collections.ConfigDict) -> EvaluationBatches:
    """The batches that the comparison goes through, again and again."""
    settings = config.evaluation
    return evaluation_batches(
        dataset, config.data.eval_split, config, batch_size=settings.batch_size, max_examples=settings.max_examples
    )


def map_path(folder: pathlib.Path, column: Column, number: int) -> pathlib.Path:
    """Where the maps of a batch are kept."""
    return folder / "maps" / column.label / f"{number:05d}.npz"


def claim_folder(folder: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Writes what the maps of this folder depend on, or holds it against what is written there.

    Raises:
      UserError: the folder holds the maps of another comparison.
    """
    plain = json.loads(json.dumps(config.to_dict()))
    asked = {name: plain[name] for name in ("seed", "data")} | {
        "evaluation": {name: plain["evaluation"][name] for name in ("batch_size", "max_examples")},
        "comparison": {name: plain["comparison"][name] for name in ("models", "classes_per_image")},
        "methods": plain["comparison"]["methods"],
    }
    path = folder / "comparison_of.json"
    if path.is_file():
        stored = json.loads(path.read_text())
        # Methods may be added, and left out; those that are there must be as they were.
        both = set(stored["methods"]) & set(asked["methods"])
        other = [name for name in asked if name != "methods" and asked[name] != stored[name]]
        other += [f"methods.{name}" for name in sorted(both) if asked["methods"][name] != stored["methods"][name]]
        if other:
            raise UserError(
                f"{folder} holds the maps of another comparison: {', '.join(other)} differ from what its "
                "comparison_of.json says. Use another --workdir."
            )
        asked["methods"] = stored["methods"] | asked["methods"]
    write_whole(path, json.dumps(asked, indent=1).encode())


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Writes a file that is there whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def progress(batches: EvaluationBatches, text: str) -> Iterator[tuple[int, Batch]]:
    """Numbers the batches, with a progress line where somebody watches."""
    return enumerate(tqdm.tqdm(batches, desc=text, disable=not sys.stderr.isatty()))
