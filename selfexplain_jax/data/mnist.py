"""MNIST, plain or on a canvas: real digits of random size and colour on textured backgrounds, with exact masks."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import threading

import cv2
import numpy as np

from selfexplain_jax.data.records import Records, records_folder
from selfexplain_jax.data.scene_pixels import render
from selfexplain_jax.data.scenes import BACKGROUND_TEXTURES, PERIOD_RANGE, Scene, Texture
from selfexplain_jax.types import DatasetInfo, Example, UserError, is_whole_number

SPLITS = {"train": ("train", 0, 55_000), "validation": ("train", 55_000, 60_000), "test": ("test", 0, 10_000)}
"""Our split -> (MNIST's own split, first digit, end)."""
NUM_CLASSES = 10
DIGIT_SIDE = 28
INK = 128
"""Grey level (of 255) from which a pixel is ink: the mask of a digit."""
MAX_OBJECTS = 6
INK_CONTRAST = 0.3
"""Least difference in luma, on the scale 0..1, between a digit and either colour of its background."""

_LUMA = np.array((0.299, 0.587, 0.114))
_LOAD_LOCK = threading.Lock()


@functools.cache
def _load_digits(mnist_split: str, folder: str) -> tuple[np.ndarray, np.ndarray]:
    records = Records("mnist", mnist_split, folder)
    pixels = np.empty((len(records), DIGIT_SIDE, DIGIT_SIDE), np.uint8)
    labels = np.empty(len(records), np.int64)
    for start in range(0, len(records), 5000):
        items = records.read(range(start, min(start + 5000, len(records))))
        pixels[start : start + len(items)] = [item["image"][:, :, 0] for item in items]
        labels[start : start + len(items)] = [item["label"] for item in items]
    # Shared by every dataset of this process: nobody may write into them.
    pixels.flags.writeable = labels.flags.writeable = False
    return pixels, labels


def load_digits(split: str, data_dir: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Reads all digits of a split into memory (train: 43 MB, 2 to 3 seconds), once per process.

    Args:
      split: "train" (55,000 digits), "validation" (the last 5,000 of MNIST's train) or "test" (10,000).
      data_dir: where the prepared `mnist` lies; see `records.records_folder`.

    Returns:
      (pixels uint8 [N, 28, 28], 255 is ink; labels int64 [N]), read-only.

    Raises:
      UserError: unknown split, or the prepared files are missing, damaged or not MNIST's 60,000 and 10,000 digits.
    """
    if split not in SPLITS:
        raise UserError(f"Dataset 'mnist' has no split {split!r}; it has {', '.join(SPLITS)}.")
    mnist_split, first, end = SPLITS[split]
    with _LOAD_LOCK:
        pixels, labels = _load_digits(mnist_split, records_folder(data_dir))
    expected = max(stop for name, _, stop in SPLITS.values() if name == mnist_split)
    if len(pixels) != expected:
        raise UserError(
            f"The prepared 'mnist' has {len(pixels)} digits in {mnist_split!r}, expected {expected}. Prepare it again."
        )
    return pixels[first:end], labels[first:end]


def enlarge_digit(pixels: np.ndarray, image_size: int) -> np.ndarray:
    """Enlarges a digit by the largest whole factor that fits and pads it evenly with black. uint8 [H, W]."""
    factor = image_size // DIGIT_SIDE
    side = factor * DIGIT_SIDE
    if factor > 1:
        pixels = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_LINEAR)
    before = (image_size - side) // 2
    after = image_size - side - before
    return np.pad(pixels, (before, after)) if image_size > side else pixels


def crop_to_ink(pixels: np.ndarray) -> np.ndarray:
    """Cuts a digit uint8 [28, 28] to the smallest box around its ink (`INK` or more; around anything if none is)."""
    ink = pixels >= min(INK, int(pixels.max()))
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def resize_longer_side(pixels: np.ndarray, length: int) -> np.ndarray:
    """Resizes uint8 [h, w] so that its longer side is `length` pixels; the other keeps the proportions, 2 at least."""
    scale = length / max(pixels.shape)
    height, width = (max(round(side * scale), 2) for side in pixels.shape)
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def place_boxes(
    rng: np.random.Generator, shapes: list[tuple[int, int]], image_size: int, tries: int = 24
) -> list[tuple[int, int]] | None:
    """Puts boxes at random places inside the image such that no two share a pixel.

    Args:
      rng: random numbers.
      shapes: (height, width) of each box, in pixels, each at most `image_size`.
      image_size: pixels per side.
      tries: places tried for each box.

    Returns:
      (top, left) of each box, or None where one found no room.
    """
    corners: list[tuple[int, int]] = []
    for height, width in shapes:
        for _ in range(tries):
            top, left = int(rng.random() * (image_size - height + 1)), int(rng.random() * (image_size - width + 1))
            if all(
                top + height <= y or y + h <= top or left + width <= x or x + w <= left
                for (y, x), (h, w) in zip(corners, shapes, strict=False)
            ):
                corners.append((top, left))
                break
        else:
            return None
    return corners


def draw_background(rng: np.random.Generator) -> Texture:
    """A texture of one of the synthetic backgrounds' families, of two random colours that are not far apart."""
    first = rng.random(3)
    second = np.clip(first + 0.3 * (rng.random(3) - 0.5), 0, 1)
    period, angle, *phase = rng.random(4)
    return Texture(
        family=BACKGROUND_TEXTURES[int(rng.random() * len(BACKGROUND_TEXTURES))],
        colors=(tuple(first.tolist()), tuple(second.tolist())),
        period=PERIOD_RANGE[0] + (PERIOD_RANGE[1] - PERIOD_RANGE[0]) * period,
        angle=2 * math.pi * angle,
        phase=tuple(2 * p - 1 for p in phase),
    )


def draw_ink_color(rng: np.random.Generator, background: Texture) -> np.ndarray:
    """A random RGB colour in [0, 1] whose luma is `INK_CONTRAST` or more from both colours of the background."""
    lumas = np.array(background.colors) @ _LUMA  # [2]
    candidates = np.concatenate([rng.random((16, 3)), np.zeros((1, 3)), np.ones((1, 3))])
    distance = np.abs((candidates @ _LUMA)[:, None] - lumas).min(axis=1)  # [18]
    enough = np.flatnonzero(distance >= INK_CONTRAST)
    # The background's lumas are at most .15 apart, so black or white, the last two, is always far enough.
    return candidates[enough[0]]


@dataclasses.dataclass(frozen=True)
class MNISTSource:
    """Random access to one split; see `types.Source`."""

    dataset: MNIST
    split: str
    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        """Number of examples: as many as real digits."""
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        """Returns example `index`; see `types.Example`. Raises IndexError outside 0 <= index < len(self)."""
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"Index {index} is outside the {self.split} split of {len(self)} examples.")
        image, mask, classes = self._canvas(index) if self.dataset.canvas else self._plain(index)
        label = np.zeros(NUM_CLASSES, np.float32)
        label[classes] = 1.0
        example: Example = {"image": image, "label": label, "id": f"{self.split}_{index:05d}"}
        if self.dataset.info.has_masks:
            example["mask"] = mask
        return example

    def _plain(self, index: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
        class_id = int(self.labels[index])
        grey = enlarge_digit(self.pixels[index], self.dataset.info.image_size)
        mask = np.where(grey >= INK, np.uint8(class_id + 1), np.uint8(0))
        return cv2.merge((grey, grey, grey)), mask, [class_id]

    def _canvas(self, index: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
        dataset, size = self.dataset, self.dataset.info.image_size
        rng = np.random.default_rng((dataset.seed, list(SPLITS).index(self.split), index))
        background = draw_background(rng)
        image, mask = render(Scene(background, (), False, dataset.noise, int(rng.integers(2**62))), size)
        count = dataset.min_objects + int(rng.random() * (dataset.max_objects - dataset.min_objects + 1))
        chosen = [index, *rng.integers(len(self), size=count - 1).tolist()]
        for alpha, top, left, digit in self._layout(rng, chosen):
            class_id = int(self.labels[digit])
            color = np.rint(255 * draw_ink_color(rng, background)).astype(np.float32)
            window = np.s_[top : top + alpha.shape[0], left : left + alpha.shape[1]]
            weight = np.multiply(alpha, 1 / 255, dtype=np.float32)
            ink = np.empty((*alpha.shape, 3), np.uint8)
            ink[:] = color
            image[window] = cv2.blendLinear(ink, np.ascontiguousarray(image[window]), weight, 1 - weight)
            mask[window][alpha >= INK] = class_id + 1
        return image, mask, [int(self.labels[digit]) for digit in chosen]

    def _layout(self, rng: np.random.Generator, chosen: list[int]) -> list[tuple[np.ndarray, int, int, int]]:
        """(opacity uint8 [h, w], top, left, digit) of each chosen digit.

        Each time they do not fit they get smaller; what still does not fit is put on a regular grid.
        """
        size = self.dataset.info.image_size
        low, high = (fraction * size for fraction in self.dataset.digit_size)
        crops = [crop_to_ink(self.pixels[digit]) for digit in chosen]
        lengths = [low + (high - low) * rng.random() for _ in crops]
        for _ in range(10):
            digits = [resize_longer_side(crop, round(length)) for crop, length in zip(crops, lengths, strict=True)]
            corners = place_boxes(rng, [digit.shape for digit in digits], size)
            if corners is not None:
                break
            lengths = [max(0.9 * length, low) for length in lengths]
        else:
            columns = _columns(len(crops))
            cell = size // columns
            digits = [
                resize_longer_side(crop, min(round(length), cell)) for crop, length in zip(crops, lengths, strict=True)
            ]
            cells = rng.permutation(columns * columns)[: len(crops)].tolist()
            corners = [(position // columns * cell, position % columns * cell) for position in cells]
        return [(alpha, *corner, digit) for alpha, corner, digit in zip(digits, corners, chosen, strict=True)]


class MNIST:
    """MNIST as prepared by TFDS (mnist/3.0.1); satisfies `types.Dataset`. Splits: train, validation, test.

    Args:
      image_size: pixels per side. Plain: 28 or more, see `enlarge_digit`. Canvas: 32 to 512.
      seed: of the canvas; another seed gives other pictures of the same digits.
      data_dir: where the prepared `mnist` lies; see `records.records_folder`.
      ink_masks: plain MNIST says what is ink: pixels from half intensity up get the digit's class, the rest
        background. False: no masks. On the canvas there always are masks.
      canvas: digits on textured backgrounds. Example i shows real digit i and, where there are more, digits drawn
        from the same split.
      min_objects: fewest digits on a canvas, 1 to `max_objects`.
      max_objects: most digits on a canvas, 1 to 6; the task is multi-label where it is above 1.
      digit_size: smallest and largest longer side of a digit's ink on a canvas, in image sides.
      noise: half-width of the uniform pixel noise under the digits of a canvas, in grey levels.

    Raises:
      UserError: an option is outside its range; at `source`, the prepared files are missing or damaged.
    """

    def __init__(
        self,
        image_size: int = DIGIT_SIDE,
        seed: int = 0,
        data_dir: str = "",
        *,
        ink_masks: bool = True,
        canvas: bool = False,
        min_objects: int = 1,
        max_objects: int = 1,
        digit_size: tuple[float, float] = (0.3, 0.6),
        noise: float = 8.0,
    ):
        smallest = 32 if canvas else DIGIT_SIDE
        _require(
            is_whole_number(image_size) and smallest <= image_size <= 512,
            "image_size",
            image_size,
            f"{smallest} to 512",
        )
        _require(is_whole_number(seed) and seed >= 0, "seed", seed, "a whole number, 0 or more")
        _require(is_whole_number(max_objects) and 1 <= max_objects <= MAX_OBJECTS, "max_objects", max_objects, "1 to 6")
        most = f"1 to max_objects={max_objects}"
        _require(is_whole_number(min_objects) and 1 <= min_objects <= max_objects, "min_objects", min_objects, most)
        _require(isinstance(noise, (int, float)) and 0 <= noise <= 64, "noise", noise, "0 to 64")
        if not canvas and max_objects > 1:
            raise UserError(f"Dataset 'mnist': max_objects={max_objects} needs canvas=True; plain MNIST has one digit.")
        try:
            low, high = (float(fraction) for fraction in digit_size)
        except (TypeError, ValueError):
            low = high = math.nan
        largest = 1 / _columns(max_objects)  # So that the most digits of the smallest size fit on a grid.
        _require(
            0.15 <= low <= high <= 1 and low <= largest,
            "digit_size",
            digit_size,
            f"two fractions, 0.15 <= smallest <= largest <= 1, and smallest <= {largest:.2f} for {max_objects} digits",
        )
        self.canvas, self.seed, self.data_dir = bool(canvas), int(seed), data_dir
        self.min_objects, self.max_objects = int(min_objects), int(max_objects)
        self.digit_size, self.noise = (low, high), float(noise)
        self.info = DatasetInfo(
            name="mnist",
            num_classes=NUM_CLASSES,
            class_names=tuple("0123456789"),
            multilabel=max_objects > 1,
            image_size=int(image_size),
            has_masks=bool(canvas or ink_masks),
        )

    def source(self, split: str) -> MNISTSource:
        """Random access to "train", "validation" or "test"; the first call of a process reads the digits.

        Raises:
          UserError: any other name, or the prepared files are missing or damaged.
        """
        pixels, labels = load_digits(split, self.data_dir)
        return MNISTSource(self, split, pixels, labels)


def _columns(count: int) -> int:
    """Columns, and rows, of the smallest square grid with at least `count` cells."""
    return math.ceil(math.sqrt(count))


def _require(holds: bool, name: str, value, expected: str) -> None:
    if not holds:
        raise UserError(f"Dataset 'mnist': {name}={value!r} must be {expected}.")
