"""Saliency maps of several methods over one split, kept on disk: an interrupted run goes on where it stopped.

On many hosts each makes, keeps and reads the maps of its own batches. A batch has the same maps wherever they are made,
so with a folder that all hosts share a run goes on with another number of them.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import time
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging

from selfexplain_jax import progress
from selfexplain_jax.attribution import ground_truth
from selfexplain_jax.data.pipeline import EvaluationBatches
from selfexplain_jax.folders import write_whole
from selfexplain_jax.metrics import parts, view
from selfexplain_jax.metrics.explained import pairs_in_batches
from selfexplain_jax.training import mesh
from selfexplain_jax.types import Batch, Dataset, Predictor, UserError

PER_MAP = ("extremal_perturbation",)
"""Methods that take a time for every map. Others get the maps of all of an image's classes from the same passes."""


@dataclasses.dataclass(frozen=True)
class Column:
    """One method of the comparison: its label in the tables, the predictor it explains, and the function that does.

    model: name of the model in the comparison. asks: the first model with the same scores, which is another one for an
    Explainer beside its classifier.
    method: (predictor, images, class_ids, *, rng) -> maps; None for the annotated masks. scaling: how its maps become
    masks, see `metrics.explained.SCALINGS`. identity: JSON of all that its maps depend on beside the images.
    present_only: classes that an image does not show get a map of zeros, which no metric asked for looks at.
    """

    label: str
    model: str
    asks: str
    predictor: Predictor
    method: Callable | None
    scaling: str
    identity: dict
    present_only: bool = False


class Note(NamedTuple):
    """What is known of a batch's maps beside themselves: {position in the split: why it could not be explained}, the
    seconds that the batch took, whether the method raised an error in it, and whether it was the first of its process,
    which compiles."""

    failures: dict[int, str]
    seconds: float
    raised: bool
    first: bool


def make_maps(column: Column, dataset: Dataset, config: ml_collections.ConfigDict, folder: pathlib.Path) -> list[Note]:
    """Explains every batch that has no whole file yet; writes maps, failures and the time to WORKDIR/maps/LABEL/.

    What a method raised may have been a lack of memory or a bug that is mended by now: those batches are tried again.
    All hosts must call it; each explains its own batches.

    Returns:
      A note of every batch of all hosts, in order.
    """
    batches = mesh.own_batches(dataset, config)
    notes = {number: read_note(map_path(folder, column, number)) for number in batches.numbers}
    whole = all(note and not note.raised for note in notes.values())
    first = True
    for number, batch in () if whole else numbered(batches, f"maps {column.label}"):
        if notes[number] is None or notes[number].raised:
            batch = view.fill_padding(batch)
            class_ids = present_classes(batch["label"], config.comparison.classes_per_image)
            rng = jax.random.fold_in(jax.random.key(config.seed), number)
            start = time.perf_counter()
            saliency, messages, raised = explain_rows(column, batch, class_ids, rng)
            seconds = time.perf_counter() - start
            messages = {int(batch["index"][row]): text for row, text in messages.items() if batch["valid"][row] > 0}
            stored = {
                "saliency": saliency,
                "class_ids": class_ids,
                "seconds": seconds,
                "raised": raised,
                "first": first,
            }
            content = io.BytesIO()
            np.savez_compressed(content, failures=json.dumps(messages), **stored)
            write_whole(map_path(folder, column, number), content.getvalue())
            notes[number], first = Note(messages, seconds, raised, first), False
    found = ChainMap(*mesh.gather(notes, patiently=True))
    return [found[number] for number in sorted(found)]


def read_note(path: pathlib.Path) -> Note | None:
    """Returns what the file of a batch says of its maps, which are not read; None where there is no file."""
    if not path.is_file():
        return None
    with np.load(path) as stored:
        failures = {int(index): text for index, text in json.loads(str(stored["failures"])).items()}
        first = bool(stored["first"]) if "first" in stored else path.stem == f"{0:05d}"
        return Note(failures, float(stored["seconds"]), bool(stored["raised"]), first)


def explain_rows(
    column: Column, batch: Batch, class_ids: np.ndarray, rng: jax.Array
) -> tuple[np.ndarray, dict[int, str], bool]:
    """Explains one batch; where that fails, image by image, so that a bad one does not take others with it.

    Returns:
      Maps float32 [B, k, H, W], NaN where the method failed; {row: message} of those rows; whether it raised an error,
      and did not merely give NaN.
    """
    if column.method is None:
        classes = column.predictor.num_classes
        return np.asarray(ground_truth(batch["mask"], class_ids, num_classes=classes)), {}, False
    images = jnp.asarray(batch["image"])
    shown = np.take_along_axis(batch["label"] * batch["valid"][:, None], class_ids, axis=1) > 0

    def run(rows: slice) -> np.ndarray:
        if column.present_only:
            found = explain_present(column, images[rows], class_ids[rows], shown[rows], rng)
            return checked(found, column, class_ids[rows])
        found = column.method(column.predictor, images[rows], class_ids[rows], rng=rng)
        return checked(np.asarray(found, np.float32), column, class_ids[rows])

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
                messages[row] = failure_text(single)
    for row in np.flatnonzero(~np.isfinite(saliency).all(axis=(1, 2, 3))):
        messages.setdefault(int(row), "the map holds NaN or infinity")
    return saliency, messages, raised


def failure_text(error: Exception) -> str:
    """Returns how a failure is named in the results: the error's kind, and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def checked(saliency: np.ndarray, column: Column, class_ids: np.ndarray) -> np.ndarray:
    """Returns maps as they are, float32 [B, k, H, W].

    Raises:
      UserError: they have another shape, or are masks outside [0, 1].
    """
    size = column.predictor.image_size
    expected = (*class_ids.shape, size, size)
    if saliency.shape != expected:
        raise UserError(f"the maps have shape {saliency.shape}, expected {expected}: resize them to the images")
    if column.scaling == "as_is" and (np.nanmin(saliency) < -1e-4 or np.nanmax(saliency) > 1 + 1e-4):
        raise UserError(
            f"masks must lie in [0, 1], these reach from {np.nanmin(saliency):.4g} to {np.nanmax(saliency):.4g}: with "
            'scaling="min_max" each map is scaled'
        )
    return saliency


def explain_present(
    column: Column, images: jax.Array, class_ids: np.ndarray, shown: np.ndarray, rng: jax.Array
) -> np.ndarray:
    """Explains the pairs of image and class that are `shown`, bool [B, k], in batches of B maps, so of one shape.

    Returns:
      Maps float32 [B, k, H, W], 0 where nothing is shown.
    """
    saliency = np.zeros((*class_ids.shape, *images.shape[1:3]), np.float32)
    for row, place in pairs_in_batches(shown):
        maps = column.method(column.predictor, images[row], class_ids[row, place][:, None], rng=rng)  # [B, 1, H, W]
        saliency[row, place] = np.asarray(maps, np.float32)[:, 0]
    return saliency


def present_classes(label: np.ndarray, count: int) -> np.ndarray:
    """Returns int32 [B, k]: present classes by index, then absent ones; k = count, or the most classes there are."""
    by_index = np.broadcast_to(-np.arange(label.shape[1], dtype=np.float32), label.shape)
    return np.asarray(parts.candidate_classes(label, by_index, min(count, label.shape[1])))


def all_failures(notes: Sequence[Note]) -> dict[int, str]:
    """Returns {position in the split: message} of the images that a method could not explain."""
    return {position: text for note in notes for position, text in note.failures.items()}


def seconds_per_image(notes: Sequence[Note], batch_size: int) -> float:
    """Returns the median over batches, those that compile or were tried image by image left out where others are."""
    seconds = [note.seconds for note in notes if not (note.first or note.raised)]
    return float(np.median(seconds or [note.seconds for note in notes])) / batch_size


def numbered(batches: EvaluationBatches, text: str) -> Iterator[tuple[int, Batch]]:
    """Goes through this host's batches, each with its number among those of all hosts, and shows how far it has come.

    Whatever is drawn for a batch is drawn by this number: it is the same on any number of hosts.
    """
    return zip(batches.numbers, progress.counted(batches, text), strict=True)


def map_path(folder: pathlib.Path, column: Column, number: int) -> pathlib.Path:
    """Where the maps of a batch are kept."""
    return folder / "maps" / column.label / f"{number:05d}.npz"


SEEN = ("name", "options", "image_size", "mean", "std", "fit", "center_fraction", "eval_split")
"""Fields of config.data that decide what is explained."""


def claim_folder(folder: pathlib.Path, columns: Sequence[Column], config: ml_collections.ConfigDict) -> None:
    """Writes what the maps of this folder depend on, or holds it against what is written there.

    Methods and models may be added and left out; what bears a name that is there must be what it was.

    All hosts must call it: they may have one folder together, or one each.

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
    content = json.dumps(stored | asked, indent=1).encode()
    if jax.process_index() == 0:
        write_whole(path, content)
    mesh.gather(None)  # Those who have the first one's folder find it written.
    if jax.process_index() > 0 and not (path.is_file() and path.read_bytes() == content):
        write_whole(path, content)


def read_kept(path: pathlib.Path) -> dict[str, Any]:
    """Returns what `keep` wrote to a file, {} where there is none: on every host what the first one's folder holds.

    All hosts must call it.
    """
    known = json.loads(path.read_text()) if jax.process_index() == 0 and path.is_file() else {}
    return mesh.gather(known)[0]


def keep(path: pathlib.Path, known: Mapping[str, Any]) -> None:
    """Writes what all hosts have found, as JSON; the first one does, the others have nothing to do."""
    if jax.process_index() == 0:
        write_whole(path, json.dumps(known, indent=1).encode())
