"""Metrics of where a map points: the pointing game and its energy form, and pixel precision over the data set.

Conventions as in `segmentation.py`: maps, truth and weight are [B, H, W] and a metric returns `(value, defined)`.
"""

from __future__ import annotations

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from selfexplain_jax.types import UserError

PHOTO_TOLERANCE = 15
"""Tolerance of the pointing game in pixels of a photo at its own size (TorchRay)."""
DIFFICULT_AREA = 0.25
"""A map is difficult if its class covers less than this share of the image, and is not alone."""


def _score_edges() -> np.ndarray:
    edges = np.arange(0, 1, 0.001)  # float64, as published
    rounded = np.append(edges, 1.0).astype(np.float32)
    # The smallest float32 that is not below the edge: comparing with it gives what comparing with the edge gives.
    low = rounded.astype(np.float64) < np.append(edges, 1.0)
    return np.where(low, np.nextafter(rounded, np.float32(2)), rounded)


SCORE_EDGES = _score_edges()
"""Lower ends of the score bins of the pooled precision-recall curve, float32 [1001]."""


def pointing_tolerance(image_size: int) -> int:
    """Returns the tolerance of the pointing game in pixels: 15 px at 224 px images, the same share of other sizes.

    Examples:
      >>> [pointing_tolerance(size) for size in (224, 64, 28)]
      [15, 4, 2]
    """
    return round(15 * image_size / 224)


def most_salient_pixel(maps: jax.Array) -> jax.Array:
    """Returns row and column of each map's maximum, int32 [B, 2]; the first in reading order among equal ones."""
    batch, _, width = maps.shape
    position = maps.reshape(batch, -1).argmax(axis=1)  # [B]
    return jnp.stack([position // width, position % width], axis=1)


def hits_object(pixel: jax.Array, truth: jax.Array, weight: jax.Array, tolerance: int) -> tuple[jax.Array, jax.Array]:
    """Returns (1 where an object pixel lies within `tolerance` px (Euclidean) of `pixel` int32 [B, 2], defined)."""
    _, height, width = truth.shape
    rows, columns = jnp.arange(height)[None, :, None], jnp.arange(width)[None, None, :]
    distance = (rows - pixel[:, 0, None, None]) ** 2 + (columns - pixel[:, 1, None, None]) ** 2  # squared, [B, H, W]
    objects = (truth * weight) > 0
    hit = (objects & (distance <= tolerance**2)).any(axis=(1, 2))
    return hit.astype(jnp.float32), objects.any(axis=(1, 2))


def pointing_game(
    maps: jax.Array, truth: jax.Array, weight: jax.Array, tolerance: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Pointing game: 1 where the most salient pixel lies within `tolerance` px of an object pixel.

    Void pixels are neither: the most salient pixel is looked for among the annotated ones.
    Zhang et al., Top-down neural attention by excitation backprop, ECCV 2016, with TorchRay's tolerance of 15 px at
    224 px (`pointing_tolerance`, the default); averaged per class first, then over classes, by the caller.
    """
    if tolerance is None:
        tolerance = pointing_tolerance(maps.shape[1])
    return hits_object(most_salient_pixel(jnp.where(weight > 0, maps, -jnp.inf)), truth, weight, tolerance)


def pointing_game_strict(maps: jax.Array, truth: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Pointing game without tolerance: 1 where the most salient pixel is an object pixel."""
    return pointing_game(maps, truth, weight, tolerance=0)


def energy_pointing_game(maps: jax.Array, truth: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Share of the map's sum that lies on the object (Wang et al., Score-CAM, 2020); 0 for a map that is 0."""
    total = (maps * weight).sum(axis=(1, 2))
    inside = (maps * truth * weight).sum(axis=(1, 2))
    share = jnp.where(total == 0, 0, inside / jnp.where(total == 0, 1, total))
    return share, (truth * weight).sum(axis=(1, 2)) > 0


@jax.jit
def difficult_maps(regions: jax.Array, label: jax.Array) -> jax.Array:
    """Returns which maps belong to the pointing game's difficult subset, bool [B, k].

    The subset of Zhang et al. (ECCV 2016): the class covers less than a quarter of the image, and at least
    one other class is present. (TorchRay reads lists of image names instead, which hold for VOC07 and COCO14 alone.)

    Args:
      regions: [B, k, H, W] of 0 and 1, the classes' ground truth.
      label: [B, C], multi-hot.
    """
    small = regions.mean(axis=(2, 3)) < DIFFICULT_AREA
    return small & (label.sum(axis=1) > 1)[:, None]


def point_in_photo(saliency: np.ndarray, photo_size: tuple[int, int]) -> tuple[int, int]:
    """Returns row and column of a map's maximum after resizing it to a photo's own size, as TorchRay does.

    Args:
      saliency: [H, W] of the photo squeezed (not cropped) to H x W.
      photo_size: (height, width) in pixels.
    """
    height, width = photo_size
    # Bilinear with half-pixel centres and no antialiasing: the same as PyTorch's interpolate without aligned corners.
    resized = cv2.resize(np.asarray(saliency, np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return divmod(int(resized.argmax()), width)


def photo_hit(saliency: np.ndarray, region: np.ndarray, tolerance: int = PHOTO_TOLERANCE) -> bool:
    """Pointing game at the photo's own size, with TorchRay's convention to the letter.

    A hit is a region pixel *nearer than* `tolerance` to the maximum (`pointing_game` counts the distance itself too).
    Accuracies are averaged per class first, over classes that occur; TorchRay counts a class that never occurs as 0.

    Args:
      saliency: [H, W] of the photo squeezed (not cropped) to H x W.
      region: bool [h, w] at the photo's size: boxes for VOC, segments for COCO.
      tolerance: in pixels of the photo.

    Raises:
      UserError: an empty region, or a map that is not finite.
    """
    region = np.asarray(region) > 0
    if not region.any():
        raise UserError("The pointing game needs a region with at least one pixel; the ground truth has none.")
    if not np.isfinite(saliency).all():
        raise UserError("The pointing game was given a saliency map with NaN or infinity: it has no maximum.")
    row, column = point_in_photo(saliency, region.shape)
    rows, columns = np.nonzero(region)
    return bool(((rows - row) ** 2 + (columns - column) ** 2 < tolerance**2).any())


@jax.jit
def score_histograms(maps: jax.Array, truth: jax.Array, weight: jax.Array, counted: jax.Array) -> jax.Array:
    """Returns how many background and object pixels have which score, int32 [2, 1001]: sums that add over batches.

    The bins are [0, .001), [.001, .002) ... [.999, 1) and 1 itself (Choe et al., CVPR 2020).

    Args:
      maps: [P, H, W] in [0, 1].
      truth: [P, H, W] of 0 and 1.
      weight: [P, H, W], 0 on void pixels, which are not counted.
      counted: bool [P].
    """
    bins = jnp.searchsorted(jnp.asarray(SCORE_EDGES), maps.ravel(), side="right") - 1  # [P * H * W]
    kept = ((weight > 0) & counted[:, None, None]).ravel()
    size = len(SCORE_EDGES)
    cells = jnp.where(kept, bins + size * (truth > 0).ravel(), 2 * size)
    return jnp.bincount(cells, length=2 * size + 1)[:-1].reshape(2, size)


def pixel_average_precision(histograms: np.ndarray) -> float | None:
    """Returns PxAP, the area under the precision-recall curve of all pixels of the data set; None without an object.

    Sum over thresholds of precision * (recall - recall at the next higher threshold), as in Choe et al., CVPR 2020.

    Args:
      histograms: [2, 1001] from `score_histograms`, summed over the data set.
    """
    false, true = np.asarray(histograms, np.float64)[:, ::-1].cumsum(axis=1)  # at falling thresholds
    if true[-1] == 0:
        return None
    precision = true / np.maximum(true + false, 1)
    return float((precision * np.diff(true / true[-1], prepend=0)).sum())
