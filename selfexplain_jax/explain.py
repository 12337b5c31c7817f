"""Photos in; class scores, one mask per class, and pictures of them out."""

from __future__ import annotations

import dataclasses
import difflib
import io
import json
import os
import pathlib
import sys
from collections import ChainMap
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np

from selfexplain_jax import pictures
from selfexplain_jax.attribution import learned
from selfexplain_jax.data import photos as photo_files
from selfexplain_jax.data.pipeline import normalise
from selfexplain_jax.folders import open_folder, write_whole
from selfexplain_jax.training import mesh
from selfexplain_jax.types import Predictor, UserError


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a network says of a batch of images, as numpy arrays.

    scores, probabilities: float32 [B, C]. class_ids: int32 [B, k], the classes that the masks belong to.
    masks: float32 [B, k, H, W] in 0..1, where the network sees each of them.
    """

    scores: np.ndarray
    probabilities: np.ndarray
    class_ids: np.ndarray
    masks: np.ndarray


def explain(predictor: Predictor, images: np.ndarray, class_ids: np.ndarray | None = None, top: int = 3) -> Explanation:
    """Explains images: the scores of all classes, and the masks of some.

    Args:
      predictor: one with `masks`.
      images: float [B, H, W, 3], normalised as in training (see `data.pipeline.normalise`).
      class_ids: int [B, k] classes to show; None: each image's `top` classes, the likeliest first.
      top: k where `class_ids` is None; at most C are given.

    Raises:
      UserError: bad images or class ids, no masks in this predictor, or scores that are not finite.
    """
    if predictor.masks is None:
        raise UserError("This predictor does not explain itself (it has no masks); see attribution.METHODS for others.")
    if np.ndim(images) != 4:
        raise UserError(f"explain() needs images [B, H, W, 3]; got shape {np.shape(images)}. One image: image[None].")
    if top < 1:
        raise UserError(f"explain() needs top >= 1; got {top}.")
    scores, probabilities = _scores(predictor, images)
    if class_ids is None:
        # Stable, so that equal scores keep the order of the classes.
        class_ids = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    class_ids = np.asarray(class_ids)
    masks = learned(predictor, images, class_ids)
    return Explanation(scores, probabilities, class_ids.astype(np.int32), np.asarray(masks))


def class_ids_of(predictor: Predictor, classes: str | Sequence[str | int]) -> list[int]:
    """Returns the ids of classes given by name (capital letters do not matter) or by number; a name wins over a number.

    Args:
      predictor: knows the class names.
      classes: names or numbers, or one string of them with commas between.

    Raises:
      UserError: there is no such class; the message lists the classes, or the nearest of many.
    """
    if isinstance(classes, str):
        classes = [part.strip() for part in classes.split(",") if part.strip()]
    names = [name.casefold() for name in predictor.class_names]
    ids = []
    for asked in classes:
        text = str(asked)
        if not isinstance(asked, (int, np.integer)) and text.casefold() in names:
            ids.append(names.index(text.casefold()))
        elif text.isdecimal() and int(text) < predictor.num_classes:
            ids.append(int(text))
        else:
            raise UserError(f"There is no class {text!r}. {_known_classes(predictor.class_names, text)}")
    return list(dict.fromkeys(ids))


def predicted_classes(probabilities: np.ndarray, link: str) -> list[int]:
    """Returns the classes [C] -> ids that a network predicts for one image, the likeliest first.

    Under "sigmoid" all with a probability above .5, or the likeliest if there is none; under "softmax" the likeliest.
    """
    order = np.argsort(-probabilities, kind="stable")
    count = max(1, int((probabilities > 0.5).sum())) if link == "sigmoid" else 1
    return [int(i) for i in order[:count]]


def explain_folder(
    predictor: Predictor,
    config: ml_collections.ConfigDict,
    *,
    images: str | os.PathLike | Sequence,
    output_dir: str | os.PathLike,
    classes: str | Sequence[str | int] = (),
    batch_size: int = 16,
) -> dict:
    """Explains every photo of a folder, or one photo, and writes what it found to `output_dir`.

    Per photo: NAME.png (the photo, an overlay of each class's mask, and the object alone: the photo where the largest
    of those masks is 1, the mean colour where it is 0) and NAME.npz (`masks` float16 [k, H, W] at the photo's own size,
    `class_ids` [k], `scores` and `probabilities` [C]). For all: index.json, which also names the files that could not
    be read; these are told on stderr and the rest goes on. On many hosts, which must all call it and find the same
    photos, each explains and writes a share of them, and the first writes index.json.

    Args:
      predictor: one with `masks`.
      config: `config.data.mean`, `config.data.std` and `config.model.link` are read.
      images: a file, a folder (with its sub-folders) or several.
      output_dir: is made if it does not exist; may lie in a bucket.
      classes: which classes to show, by name or number; empty: those predicted (see `predicted_classes`).
      batch_size: photos that go through the network at once, at most.

    Returns:
      What index.json holds: {"classes": names, "photos": [{"file", "name", "picture", "arrays", "height", "width",
      "explained": [{"class_id", "class", "score", "probability", "area"}, ...]}, ...], "failed": [{"file", "reason"}]}.

    Raises:
      UserError: nothing to read, nothing readable, an unknown class, a predictor without masks, or hosts that find
        other photos than the first.
    """
    if predictor.masks is None:
        raise UserError("This model does not explain itself (it has no masks), so there is nothing to show.")
    asked = class_ids_of(predictor, classes)
    files = photo_files.find_photos(images, leave_out=output_dir)
    names = photo_files.unique_names(files)
    _check_same_photos(names)
    batch_size = min(batch_size, len(files))
    output_dir = open_folder(output_dir)
    explained, unread = {}, {}
    for start in range(jax.process_index() * batch_size, len(files), jax.process_count() * batch_size):
        photos, failed = photo_files.read_photos(
            files[start : start + batch_size], names[start : start + batch_size], predictor.image_size, config.data.mean
        )
        for entry in failed:
            print(f"could not read {entry['file']}: {entry['reason']}", file=sys.stderr)
        unread[start] = failed
        explained[start] = _explain_photos(predictor, config, photos, asked, batch_size, output_dir) if photos else []
    shares = mesh.gather((explained, unread), patiently=True)
    explained, unread = (dict(sorted(ChainMap(*(share[part] for share in shares)).items())) for part in (0, 1))
    index = {"classes": list(predictor.class_names)}
    index |= {"photos": sum(explained.values(), []), "failed": sum(unread.values(), [])}
    if jax.process_index() == 0:
        write_whole(output_dir / "index.json", (json.dumps(index, indent=2, allow_nan=False) + "\n").encode())
    if not index["photos"]:
        reasons = "; ".join(f"{entry['file']}: {entry['reason']}" for entry in index["failed"][:3])
        raise UserError(f"None of the {len(files)} files could be read as an image ({reasons}).")
    return index


def _check_same_photos(names: Sequence[str]) -> None:
    """Raises a UserError where a host has found other photos than the first: its share would be another one."""
    found = mesh.gather(list(names))
    other = [host for host, of_host in enumerate(found) if of_host != found[0]]
    if other:
        raise UserError(
            f"Process {other[0]} finds {len(found[other[0]])} photos and process 0 {len(found[0])}, or others: give "
            "all of them the same --images, in a folder that all can read."
        )


def _known_classes(names: Sequence[str], asked: str) -> str:
    """The classes with their numbers; of more than can be read at a glance, those that look like the one asked for."""
    numbered = [f"{i} {name}" for i, name in enumerate(names)]
    if len(numbered) <= 100:
        return f"The classes are: {', '.join(numbered)}."
    lower = [name.casefold() for name in names]
    nearest = dict.fromkeys(difflib.get_close_matches(asked.casefold(), lower, n=5, cutoff=0.0))
    shown = ", ".join(numbered[lower.index(name)] for name in nearest)
    return f"The classes are 0 ... {len(names) - 1}; the nearest names: {shown}."


def _scores(predictor: Predictor, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores and probabilities [B, C] as numpy arrays, refused if they are not finite."""
    scores = predictor.scores(images)
    probabilities = np.asarray(predictor.probabilities(scores), np.float32)
    scores = np.asarray(scores, np.float32)
    if not np.isfinite(scores).all():
        raise UserError("The network's scores are not finite: its training has diverged, or the images hold NaN.")
    return scores, probabilities


def _explain_photos(
    predictor: Predictor,
    config: ml_collections.ConfigDict,
    photos: Sequence[photo_files.Photo],
    asked: Sequence[int],
    batch_size: int,
    output_dir: pathlib.Path,
) -> list[dict]:
    """Explains one batch of photos and writes their files; returns their entries of the index."""
    batch = np.stack([photo.network_image for photo in photos])
    # Always the same batch size, so that the network is compiled once.
    batch = np.pad(batch, ((0, batch_size - len(photos)), (0, 0), (0, 0), (0, 0)))
    images = normalise(batch, config.data.mean, config.data.std)
    scores, probabilities = _scores(predictor, images)
    shown = [list(asked) or predicted_classes(probabilities[i], config.model.link) for i in range(len(photos))]
    # As many slots as the largest number asks for, rounded up to a power of two: few shapes, few compilations.
    slots = 1 << (max(map(len, shown)) - 1).bit_length()
    class_ids = np.zeros((batch_size, slots), np.int32)
    for row, ids in enumerate(shown):
        class_ids[row] = (ids * slots)[:slots]
    masks = explain(predictor, images, class_ids).masks
    entries = []
    for i, (photo, ids) in enumerate(zip(photos, shown, strict=True)):
        explained = [
            {
                "class_id": c,
                "class": predictor.class_names[c],
                "score": float(scores[i, c]),
                "probability": float(probabilities[i, c]),
                "area": float(masks[i, slot].mean()),
            }
            for slot, c in enumerate(ids)
        ]
        entry = {"file": str(photo.file), "name": photo.name, "picture": f"{photo.name}.png"}
        entry |= {"arrays": f"{photo.name}.npz", "height": photo.size[0], "width": photo.size[1]}
        entries.append(entry | {"explained": explained})
        _write_arrays(output_dir / f"{photo.name}.npz", photo, ids, masks[i], scores[i], probabilities[i])
        _write_picture(output_dir / f"{photo.name}.png", photo, explained, masks[i], config.data.mean)
    return entries


def _write_arrays(
    path: pathlib.Path,
    photo: photo_files.Photo,
    ids: Sequence[int],
    masks: np.ndarray,
    scores: np.ndarray,
    probabilities: np.ndarray,
) -> None:
    """Writes the masks at the photo's own size (half precision: a photo has many pixels) and the scores."""
    full = np.stack([photo_files.resize_mask(mask, photo.size) for mask in masks[: len(ids)]])  # [k, H, W]
    content = io.BytesIO()
    np.savez_compressed(
        content,
        masks=full.astype(np.float16),
        class_ids=np.asarray(ids, np.int32),
        scores=scores,
        probabilities=probabilities,
    )
    write_whole(path, content.getvalue())


def _write_picture(
    path: pathlib.Path,
    photo: photo_files.Photo,
    explained: Sequence[dict],
    masks: np.ndarray,
    mean: Sequence[float],
) -> None:
    """Draws photo, overlays and isolated object in a row."""
    image = photo.picture.astype(np.float32) / 255
    small = [photo_files.resize_mask(mask, image.shape[:2]) for mask in masks[: len(explained)]]
    columns = {"photo": [image]}
    for entry, mask in zip(explained, small, strict=True):
        title = f"{entry['class']} {entry['probability']:.2f}"
        # Data sets exist that give two classes one name.
        title = f"{title} ({entry['class_id']})" if title in columns else title
        columns[title] = [pictures.overlay(image, mask)]
    target = np.max(small, axis=0)[..., None]  # [h, w, 1]
    columns["object alone"] = [target * image + (1 - target) * np.asarray(mean, np.float32) / 255]
    pictures.save_grid(path, columns)
