"""Saliency maps of several methods over one split, kept on disk: an interrupted run goes on where it stopped."""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tqdm
from absl import logging

from selfexplain_jax.attribution import ground_truth
from selfexplain_jax.data.pipeline import EvaluationBatches, evaluation_batches
from selfexplain_jax.files import write_whole
from selfexplain_jax.metrics import parts, view
from selfexplain_jax.types import Batch, Dataset, Predictor, UserError


@dataclasses.dataclass(frozen=True)
class Column:
    """One method of the comparison: its label in the tables, the predictor it explains, and the function that does.

    method: (predictor, images, class_ids, *, rng) -> maps; None for the annotated masks. scaling: how its maps become
    masks, see `metrics.explained.SCALINGS`. identity: JSON of all that its maps depend on beside the images.
    """

    label: str
    model: str
    predictor: Predictor
    method: Callable | None
    scaling: str
    identity: dict


def make_maps(column: Column, dataset: Dataset, config: ml_collections.ConfigDict, folder: pathlib.Path) -> None:
    """Explains every batch that has no whole file yet; writes maps, failures and the time to WORKDIR/maps/LABEL/.

    What a method raised may have been a lack of memory or a bug that is mended by now: those batches are tried again.
    """
    batches = evaluation(dataset, config)
    if all(is_whole(map_path(folder, column, number)) for number in range(len(batches))):
        return
    for number, batch in progress(batches, f"maps {column.label}"):
        path, batch = map_path(folder, column, number), view.fill_padding(batch)
        if not is_whole(path):
            class_ids = present_classes(batch["label"], config.comparison.classes_per_image)
            rng = jax.random.fold_in(jax.random.key(config.seed), number)
            start = time.perf_counter()
            saliency, messages, raised = explain_rows(column, batch, class_ids, rng)
            seconds = time.perf_counter() - start
            messages = {int(batch["index"][row]): text for row, text in messages.items() if batch["valid"][row] > 0}
            stored = {"saliency": saliency, "class_ids": class_ids, "seconds": seconds, "raised": raised}
            content = io.BytesIO()
            np.savez_compressed(content, failures=json.dumps(messages), **stored)
            write_whole(path, content.getvalue())


def is_whole(path: pathlib.Path) -> bool:
    """Whether the maps of that file need not be made again."""
    if not path.is_file():
        return False
    with np.load(path) as stored:
        return not stored["raised"]


def explain_rows(
    column: Column, batch: Batch, class_ids: np.ndarray, rng: jax.Array
) -> tuple[np.ndarray, dict[int, str], bool]:
    """Explains one batch; where that fails, image by image, so that a bad one does not take others with it.

    Returns:
      Maps float32 [B, k, H, W], NaN where the method failed; {row: message} of those rows; whether it raised an error,
      and did not merely give NaN.
    """
    if column.method is None:
        return np.asarray(ground_truth(batch["mask"], class_ids)), {}, False
    images = jnp.asarray(batch["image"])

    def run(rows: slice) -> np.ndarray:
        return np.asarray(column.method(column.predictor, images[rows], class_ids[rows], rng=rng), np.float32)

    messages, raised = {}, False
    try:
        saliency = run(slice(None))
    except Exception as error:  # noqa: BLE001 (whatever a method raises is a failure to be reported)
        known = isinstance(error, UserError)
        logging.warning("Method %r fails on a batch: %s", column.label, error, exc_info=not known)
        size, raised = column.predictor.image_size, True
        saliency = np.full((*class_ids.shape, size, size), np.nan, np.float32)
        for row in range(len(images)):
            try:
                saliency[row] = run(slice(row, row + 1))[0]
            except Exception as single:  # noqa: BLE001
                messages[row] = f"{type(single).__name__}: {str(single).splitlines()[0] if str(single) else ''}"
    for row in np.flatnonzero(~np.isfinite(saliency).all(axis=(1, 2, 3))):
        messages.setdefault(int(row), "the map holds NaN or infinity")
    return saliency, messages, raised


def present_classes(label: np.ndarray, count: int) -> np.ndarray:
    """Returns int32 [B, k]: present classes by index, then absent ones; k = count, or the most classes there are."""
    by_index = np.broadcast_to(-np.arange(label.shape[1], dtype=np.float32), label.shape)
    return np.asarray(parts.candidate_classes(label, by_index, min(count, label.shape[1])))


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


SEEN = ("name", "options", "image_size", "mean", "std", "fit", "center_fraction", "eval_split")
"""Fields of config.data that decide what is explained."""


def claim_folder(folder: pathlib.Path, columns: Sequence[Column], config: ml_collections.ConfigDict) -> None:
    """Writes what the maps of this folder depend on, or holds it against what is written there.

    Methods and models may be added and left out; what bears a name that is there must be what it was.

    Raises:
      UserError: the folder holds the maps of another comparison, or of a model that was trained further.
    """
    asked = {f"data.{name}": config.data[name] for name in SEEN}
    asked |= {f"evaluation.{name}": config.evaluation[name] for name in ("batch_size", "max_examples")}
    asked |= {"seed": config.seed, "comparison.classes_per_image": config.comparison.classes_per_image}
    asked |= {f"methods.{column.label}": column.identity for column in columns}
    asked = {name: value.to_dict() if hasattr(value, "to_dict") else value for name, value in asked.items()}
    asked = json.loads(json.dumps(asked))
    path = folder / "comparison_of.json"
    stored = json.loads(path.read_text()) if path.is_file() else {}
    other = [
        f"  {n}: {stored[n]} there, {asked[n]} now" for n in sorted(stored.keys() & asked) if stored[n] != asked[n]
    ]
    if other:
        raise UserError(
            f"{folder} holds the maps of another comparison:\n"
            + "\n".join(other)
            + "\nUse another --workdir, or give a method that changed another label."
        )
    write_whole(path, json.dumps(stored | asked, indent=1).encode())


def progress(batches: EvaluationBatches, text: str) -> Iterator[tuple[int, Batch]]:
    """Numbers the batches, with a progress line where somebody watches."""
    return enumerate(tqdm.tqdm(batches, desc=text, disable=not sys.stderr.isatty()))
