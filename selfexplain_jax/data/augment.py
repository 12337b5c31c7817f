"""Random changes of a training example, and how a photo of any size becomes the network's square.

To add a change: a function or class here and a line in `augmentations`. Each is `fn(example, rng) -> example` on numpy
arrays: `image` uint8 [H, W, 3] and, where there is one, `mask` uint8 [H, W], which always move together; masks are
resized to the nearest pixel. All randomness comes from `rng`, which the pipeline seeds with the position of the example
in the training stream, so that a resumed run repeats what an uninterrupted one would have seen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import cv2
import ml_collections
import numpy as np
from PIL import Image

from selfexplain_jax.types import VOID, Boxes, DatasetInfo, Example, Source, UserError

Augmentation = Callable[[Example, np.random.Generator], Example]
Window = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

FITS = ("squeeze", "center")
_TRIES = 10
_LUMA = np.array((0.299, 0.587, 0.114))
# RGB -> luma and two colour differences (YIQ): turning the last two turns the hue and keeps the luma.
_TO_YIQ = np.array(((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)))
_FROM_YIQ = np.linalg.inv(_TO_YIQ)

# ---- One square out of a photo ---------------------------------------------------------------------------------------


def fit_window(height: int, width: int, fit: str, center_fraction: float) -> Window:
    """Returns the part of a photo that becomes the network's square: all of it ("squeeze"), or the square in the middle
    whose side is `center_fraction` of the short side ("center")."""
    if fit == "squeeze":
        return 0.0, 0.0, float(width), float(height)
    side = center_fraction * min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _nearest(mask: np.ndarray, window: Window, size: int) -> np.ndarray:
    left, top, right, bottom = window
    steps = (np.arange(size) + 0.5) / size
    rows = np.minimum((top + (bottom - top) * steps).astype(np.intp), mask.shape[0] - 1)
    columns = np.minimum((left + (right - left) * steps).astype(np.intp), mask.shape[1] - 1)
    return mask[rows][:, columns]


def fitting(config: ml_collections.ConfigDict) -> Callable[[Example], Example]:
    """Returns the function that turns a photo of any size into the square of `config.data.image_size`, without chance.

    `config.data.fit` and `center_fraction` say which part. Antialiased: bilinear for "squeeze", as `explain` reads
    photos, and bicubic for "center", as ImageNet networks are evaluated.

    Raises:
      UserError: `fit` is unknown or `center_fraction` outside (0, 1].
    """
    size, fit, fraction = config.data.image_size, config.data.fit, config.data.center_fraction
    if fit not in FITS:
        raise UserError(f"config.data.fit={fit!r} must be one of {', '.join(map(repr, FITS))}.")
    if not 0 < fraction <= 1:
        raise UserError(f"config.data.center_fraction={fraction} must be above 0 and at most 1.")
    resampling = Image.Resampling.BILINEAR if fit == "squeeze" else Image.Resampling.BICUBIC

    def apply(example: Example) -> Example:
        height, width = example["image"].shape[:2]
        window = fit_window(height, width, fit, fraction)
        if window == (0, 0, size, size):
            return example
        square = Image.fromarray(example["image"]).resize((size, size), resampling, box=window)
        fitted = {"image": np.asarray(square)}
        if "mask" in example:
            fitted["mask"] = _nearest(example["mask"], window, size)
        return {**example, **fitted}

    return apply


def fit_boxes(boxes: Boxes, config: ml_collections.ConfigDict) -> np.ndarray:
    """Where the boxes of a photo lie on the square that evaluation makes of it.

    Returns:
      float32 [n, 4]: left, top, right, bottom in pixels of the square, cut at its borders.
    """
    size, (height, width) = config.data.image_size, boxes.photo_size
    left, top, right, bottom = fit_window(height, width, config.data.fit, config.data.center_fraction)
    pixels = boxes.corners * np.array((width, height, width, height))[None]
    moved = (pixels - np.array((left, top, left, top))[None]) * size
    moved /= np.array((right - left, bottom - top, right - left, bottom - top))[None]
    return np.clip(moved, 0, size).astype(np.float32)


# ---- Random changes --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Cuts a random window out of image and mask and resizes it to the square (the "random resized crop").

    The window's area is uniform in `area` (fractions of the photo's), the logarithm of its width / height is uniform in
    log `aspect`, and its place is uniform. Where `_TRIES` draws all stick out of the photo, the largest window in its
    middle of an allowed shape is taken. The label stays as it is, also where the object was cut off.
    """

    size: int
    area: tuple[float, float]
    aspect: tuple[float, float]

    def window(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Draws (left, top, right, bottom) in whole pixels."""
        draws = rng.random((_TRIES, 4))
        areas = height * width * (self.area[0] + (self.area[1] - self.area[0]) * draws[:, 0])
        low, high = np.log(self.aspect)
        aspects = np.exp(low + (high - low) * draws[:, 1])
        widths = np.maximum(np.rint(np.sqrt(areas * aspects)), 1).astype(int)
        heights = np.maximum(np.rint(np.sqrt(areas / aspects)), 1).astype(int)
        inside = np.flatnonzero((widths <= width) & (heights <= height))
        if inside.size:
            w, h = int(widths[inside[0]]), int(heights[inside[0]])
            x, y = draws[inside[0], 2:]
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
        else:
            aspect = min(max(width / height, self.aspect[0]), self.aspect[1])
            w, h = max(round(min(width, height * aspect)), 1), max(round(min(height, width / aspect)), 1)
            left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns the example with image and mask of the square's size."""
        left, top, right, bottom = window = self.window(*example["image"].shape[:2], rng)
        # Averaging over areas is antialiased, but slower, and would enlarge in blocks; below 1.4, linear will do.
        shrinks = (right - left) * (bottom - top) > 2 * self.size**2
        interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        piece = example["image"][top:bottom, left:right]
        cropped = {"image": cv2.resize(piece, (self.size, self.size), interpolation=interpolation)}
        if "mask" in example:
            cropped["mask"] = _nearest(example["mask"], window, self.size)
        return {**example, **cropped}


def flip(example: Example, rng: np.random.Generator) -> Example:
    """Mirrors image and mask left to right with probability one half."""
    if rng.random() < 0.5:
        return example
    flipped = {key: example[key][:, ::-1] for key in ("image", "mask") if key in example}
    return {**example, **flipped}


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Changes brightness, contrast, saturation and hue of the image, in this order, each by a random amount.

    Brightness, contrast and saturation are multiplied by factors uniform in 1 - value ... 1 + value: contrast is the
    distance from the image's mean luma, saturation that from the pixel's own luma. The hue is turned by an angle
    uniform in -hue ... hue of a full circle, at constant luma (in YIQ). All four are affine in the colour, so that they
    are one 3 x 4 matrix and one pass over the pixels.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float

    def matrix(self, mean_luma: float, rng: np.random.Generator) -> np.ndarray:
        """Draws the matrix [3, 4] that maps (R, G, B, 1), on the scale 0..255, to the new colour."""
        draws = 2 * rng.random(4) - 1
        brightness, contrast, saturation = 1 + draws[:3] * (self.brightness, self.contrast, self.saturation)
        angle = 2 * math.pi * self.hue * draws[3]
        cos, sin = math.cos(angle), math.sin(angle)
        turn = _FROM_YIQ @ np.array(((1, 0, 0), (0, cos, -sin), (0, sin, cos))) @ _TO_YIQ
        saturate = saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMA, (3, 1))
        linear = turn @ saturate  # Neither changes a grey pixel, hence the offset of the contrast passes through.
        offset = np.full((3, 1), (1 - contrast) * brightness * mean_luma)
        return np.concatenate([contrast * brightness * linear, offset], axis=1)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns the example with another image; its mask stays."""
        image = np.ascontiguousarray(example["image"])
        matrix = self.matrix(float(np.dot(_LUMA, cv2.mean(image)[:3])), rng)
        return {**example, "image": cv2.transform(image, matrix)}


@dataclasses.dataclass(frozen=True)
class MixUp:
    """Mixes a second example into each (Zhang et al., arXiv 1710.09412, equation 1).

    image = l x_i + (1 - l) x_j and label = l y_i + (1 - l) y_j with l from Beta(alpha, alpha) and j any example,
    changed by `change` like the first. Where the two masks differ, neither is true of the pixel: it becomes void.

    Raises:
      UserError: alpha is negative.
    """

    source: Source
    change: Augmentation
    alpha: float

    def __post_init__(self):
        if self.alpha < 0:
            raise UserError(f"config.data.mixup={self.alpha} must be positive, or 0 for no MixUp.")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns the mixture; `index` stays that of the first example."""
        other = self.change(self.source[int(rng.integers(len(self.source)))], rng)
        share = float(rng.beta(self.alpha, self.alpha))
        first, second = (np.ascontiguousarray(item["image"]) for item in (example, other))
        mixed = {
            "image": cv2.addWeighted(first, share, second, 1 - share, 0),
            "label": (share * example["label"] + (1 - share) * other["label"]).astype(np.float32),
        }
        if "mask" in example:
            mixed["mask"] = np.where(example["mask"] == other["mask"], example["mask"], np.uint8(VOID))
        return {**example, **mixed}


def augmentations(config: ml_collections.ConfigDict, info: DatasetInfo) -> tuple[Augmentation, ...]:
    """Returns what `config.data` switches on, in the order of application; an empty tuple when nothing is.

    Raises:
      UserError: a range that makes no sense.
    """
    settings, steps = config.data, []
    if settings.crop_area:
        area = _range("crop_area", settings.crop_area, 0, 1)
        aspect = _range("crop_aspect", settings.crop_aspect, 0, math.inf)
        steps.append(RandomCrop(settings.image_size, area, aspect))
    elif info.own_sizes:
        fit = fitting(config)
        steps.append(lambda example, rng: fit(example))
    if settings.flip:
        steps.append(flip)
    jitter = tuple(settings.color_jitter)
    if len(jitter) != 4 or min(jitter) < 0 or max(jitter) > 1 or jitter[3] > 0.5:
        raise UserError(
            f"config.data.color_jitter={jitter} must be four numbers: brightness, contrast and saturation from 0 to 1, "
            "hue from 0 to 0.5."
        )
    if any(jitter):
        steps.append(ColorJitter(*jitter))
    return tuple(steps)


def _range(name: str, values: Sequence[float], low: float, high: float) -> tuple[float, float]:
    if len(values) != 2 or not low < values[0] <= values[1] <= high:
        limit = f" and at most {high:g}" if high < math.inf else ""
        raise UserError(
            f"config.data.{name}={tuple(values)} must be two numbers, smallest and largest, above 0{limit}."
        )
    return float(values[0]), float(values[1])


def compose(steps: tuple[Augmentation, ...]) -> Augmentation:
    """Returns one augmentation that applies `steps` one after the other with the same `rng`."""

    def apply(example: Example, rng: np.random.Generator) -> Example:
        for step in steps:
            example = step(example, rng)
        return example

    return apply
