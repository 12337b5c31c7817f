"""The pictures of the report: encoded for a page, small enough for all of them to fit."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import cv2
import numpy as np

from selfexplain_jax.examples import Examples, Kept, lowest_iou, unannotated, wrong_predictions
from selfexplain_jax.pictures import overlay, reduced
from selfexplain_jax.types import VOID

BUDGET = 11 * 2**20
"""Bytes that the gallery may take: what is left of 15 MB is for other text and pictures of the training."""
MARKUP = 400
"""Bytes of HTML around a picture: few, but a page of many methods and classes has thousands of pictures."""
LOSSLESS_SIDE, LOSSLESS_LEVEL = 96, 60
"""Pictures up to this side are kept to the pixel, as they are shown enlarged, down to this quality of the others."""


@dataclasses.dataclass(frozen=True)
class Quality:
    """How pictures are encoded: longest sides in pixels and WebP's quality, 1 to 100."""

    image_side: int
    map_side: int
    level: int


LADDER = (Quality(256, 128, 80), Quality(224, 112, 60), Quality(160, 96, 50), Quality(128, 64, 40), Quality(96, 48, 30))
"""Tried in turn until the pictures fit."""


@dataclasses.dataclass(frozen=True)
class Card:
    """An image of the gallery. Pictures are data URIs.

    position, identifier: place in the split, and name.
    labels, row: class ids of the label; the row of `examples.json`.
    image: the photo. kinds: "wrong", "worst", "even".
    classes: [{"id", "name", "present", "annotation": data URI or None, "maps": [data URI or None] by method}].
    """

    position: int
    identifier: str
    labels: list[int]
    row: dict[str, Any]
    image: str
    kinds: list[str]
    classes: list[dict[str, Any]]

    def named(self) -> list[int]:
        """Returns the classes that some model names."""
        return [class_id for told in self.row["predictions"].values() for class_id in told["classes"]]

    def listed_under(self) -> list[int]:
        """Returns the classes that the card is found by: labelled, named by a model, or with maps of their own."""
        return sorted({*self.labels, *self.named(), *(shown["id"] for shown in self.classes)})


def gallery(kept: Examples, budget: int = BUDGET) -> tuple[list[Card], int]:
    """Returns the cards, failures first, and how many images had no room in `budget` bytes.

    First come wrong predictions, then the lowest IoU, then the others by position. The quality of all pictures is
    lowered until they fit; only where the lowest is not enough are images left out, from the end.
    """
    order = ordered(kept)
    quality = choose_quality(kept, order, budget)
    cards, room = [], budget
    for position, kinds in order:
        card = make_card(kept, position, kinds, quality)
        room -= card_bytes(card)
        if room < 0:
            break
        cards.append(card)
    return cards, len(order) - len(cards)


def ordered(kept: Examples) -> list[tuple[int, list[str]]]:
    """Returns (position, kinds) of the kept images, failures first."""
    wrong = [position for position in wrong_predictions(kept.rows) if position in kept.kept]
    # As many as are kept for it, see `examples.Collector`: others that are low are among the evenly spaced.
    ranked = lowest_iou(kept.rows, kept.ranked_by)
    lowest = [p for p in ranked[: max(len(kept.kept) // 4, 1)] if p in kept.kept]
    kinds = {position: [] for position in [*wrong, *lowest, *kept.kept]}
    for name, positions in (("wrong", wrong), ("worst", lowest)):
        for position in positions:
            kinds[position].append(name)
    return [(position, found or ["even"]) for position, found in kinds.items()]


def choose_quality(kept: Examples, order: list[tuple[int, list[str]]], budget: int) -> Quality:
    """Returns the best quality at which all images will fit, judged by a few of them; else the lowest."""
    sample = order[:: max(len(order) // 8, 1)]
    for quality in LADDER:
        size = sum(card_bytes(make_card(kept, position, kinds, quality)) for position, kinds in sample)
        if size / max(len(sample), 1) * len(order) <= 0.9 * budget:
            return quality
    return LADDER[-1]


def make_card(kept: Examples, position: int, kinds: list[str], quality: Quality) -> Card:
    """Returns one image with its maps, encoded."""
    pictures, row = kept.kept[position], kept.rows[position]
    classes = []
    for place, class_id in enumerate(pictures.class_ids.tolist()):
        if class_id < 0:
            continue
        maps = [
            data_uri(colored(maps[place]), quality.map_side, quality.level) if drawn[place] else None
            for maps, drawn in zip(pictures.maps, pictures.drawn, strict=True)
        ]
        present = class_id in row["labels"]
        annotation = _annotation(pictures, class_id, quality) if present else None
        classes.append(
            {
                "id": class_id,
                "name": kept.class_names[class_id],
                "present": present,
                "annotation": annotation,
                "maps": maps,
            }
        )
    image = data_uri(pictures.image, quality.image_side, quality.level)
    return Card(position, pictures.identifier, row["labels"], row, image, kinds, classes)


def _annotation(pictures: Kept, class_id: int, quality: Quality) -> str | None:
    """White where the class is, grey where nothing is known."""
    if unannotated(pictures.mask):
        return None
    grey = np.where(pictures.mask == class_id + 1, 255, np.where(pictures.mask == VOID, 128, 0)).astype(np.uint8)
    return data_uri(np.repeat(grey[..., None], 3, axis=-1), quality.map_side, quality.level)


def colored(grey: np.ndarray) -> np.ndarray:
    """Returns a map, uint8 [h, w], in the colours of `pictures.overlay`, uint8 [h, w, 3]."""
    return overlay(np.zeros((*grey.shape, 3)), grey / 255, opacity=1.0)


def data_uri(picture: np.ndarray, side: int, quality: int) -> str:
    """Returns a picture, uint8 [H, W, 3], as a WebP that stands in the page itself; reduced to `side` pixels."""
    picture = reduced(picture, side)
    # Above 100 OpenCV encodes without loss.
    level = 101 if max(picture.shape[:2]) <= LOSSLESS_SIDE and quality >= LOSSLESS_LEVEL else quality
    _, content = cv2.imencode(".webp", picture[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, level])
    return f"data:image/webp;base64,{base64.b64encode(content.tobytes()).decode()}"


def card_bytes(card: Card) -> int:
    """Bytes that a card takes in the page, its pictures and about as much markup as they need."""
    maps = [uri for shown in card.classes for uri in [shown["annotation"], *shown["maps"]] if uri is not None]
    return len(card.image) + sum(map(len, maps)) + MARKUP * (1 + len(maps))
