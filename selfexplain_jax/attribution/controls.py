"""Maps that know nothing of the network: what a real method has to beat, in every table."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from selfexplain_jax.attribution.inputs import check_class_ids, check_inputs
from selfexplain_jax.types import VOID, Predictor, UserError


def constant(
    predictor: Predictor,
    images: jax.Array,
    class_ids: jax.Array,
    *,
    rng: jax.Array | None = None,
    value: float = 0.5,
) -> jax.Array:
    """Returns the same value at every pixel, float32 [B, k, H, W].

    Args:
      predictor: its image size and classes are checked, nothing is computed with it.
      images: [B, H, W, 3], normalised.
      class_ids: int32 [B, k].
      rng: not used.
      value: in 0..1.

    Raises:
      UserError: bad images or class ids, or a value outside 0..1.
    """
    del rng
    images, class_ids = check_inputs(predictor, images, class_ids)
    if not 0 <= value <= 1:
        raise UserError(f"Control 'constant' needs a value in 0..1; got {value}.")
    return jnp.full((*class_ids.shape, *images.shape[1:3]), value, jnp.float32)


def centre(
    predictor: Predictor,
    images: jax.Array,
    class_ids: jax.Array,
    *,
    rng: jax.Array | None = None,
    shape: str = "box",
    area: float = 0.25,
    sigma: float = 0.25,
) -> jax.Array:
    """Returns a box or a Gaussian in the middle of the image, float32 [B, k, H, W] in 0..1.

    The box's middle pixel stands 1e-6 above the rest, so that the pointing game asks about the middle and not about the
    corner that comes first.

    Args:
      predictor: its image size and classes are checked, nothing is computed with it.
      images: [B, H, W, 3], normalised.
      class_ids: int32 [B, k].
      rng: not used.
      shape: "box" (1 inside, 0 outside), or "gaussian" (1 in the middle).
      area: share of the image that the box covers, rounded to whole pixels on each side.
      sigma: standard deviation of the Gaussian as a share of the image's side.

    Raises:
      UserError: bad images or class ids, an unknown shape, or an area or sigma that makes no sense.
    """
    del rng
    images, class_ids = check_inputs(predictor, images, class_ids)
    if shape not in ("box", "gaussian"):
        raise UserError(f"Control 'centre' knows the shapes box and gaussian; got {shape!r}.")
    if not 0 < area <= 1 or sigma <= 0:
        raise UserError(f"Control 'centre' needs 0 < area <= 1 and sigma > 0; got area={area}, sigma={sigma}.")
    profiles = []
    for size in images.shape[1:3]:
        # Distance of the pixels' centres from the middle, as a share of the side.
        distance = jnp.abs((jnp.arange(size) + 0.5) / size - 0.5)
        # The tolerance keeps a pixel whose centre lies on the edge from falling either way by rounding.
        inside = distance <= area**0.5 / 2 - 1e-6
        profiles.append(inside.astype(jnp.float32) if shape == "box" else jnp.exp(-((distance / sigma) ** 2) / 2))
    shown = jnp.outer(*profiles)
    if shape == "box":
        height, width = shown.shape
        shown = ((1 - 1e-6) * shown).at[height // 2, width // 2].set(1.0)
    return jnp.broadcast_to(shown, (*class_ids.shape, *images.shape[1:3]))


def edges(predictor: Predictor, images: jax.Array, class_ids: jax.Array, *, rng: jax.Array | None = None) -> jax.Array:
    """Returns the image's Sobel gradient magnitude over its largest value, float32 [B, k, H, W] in 0..1.

    The same map for every class: what a method looks like that is an edge detector. An image without edges gives 0.

    Args:
      predictor: its image size and classes are checked, nothing is computed with it.
      images: [B, H, W, 3], normalised; the mean of the channels counts.
      class_ids: int32 [B, k].
      rng: not used.

    Raises:
      UserError: bad images or class ids.
    """
    del rng
    images, class_ids = check_inputs(predictor, images, class_ids)
    height, width = images.shape[1:3]
    grey = jnp.pad(images.mean(axis=-1), ((0, 0), (1, 1), (1, 1)), mode="edge")  # [B, H + 2, W + 2]
    smooth_rows = grey[:, :-2] + 2 * grey[:, 1:-1] + grey[:, 2:]  # [B, H, W + 2]
    smooth_columns = grey[:, :, :-2] + 2 * grey[:, :, 1:-1] + grey[:, :, 2:]  # [B, H + 2, W]
    across = smooth_rows[:, :, 2:] - smooth_rows[:, :, :-2]
    down = smooth_columns[:, 2:] - smooth_columns[:, :-2]
    magnitude = jnp.hypot(across, down)  # [B, H, W]
    largest = magnitude.max(axis=(1, 2), keepdims=True)
    # A flat image leaves only rounding noise, which must not be blown up to 1.
    noise = 1e-5 * jnp.maximum(1.0, jnp.abs(images).max(axis=(1, 2, 3))[:, None, None])
    scaled = jnp.where(largest <= noise, 0.0, magnitude / jnp.maximum(largest, noise))  # NaN stays NaN
    return jnp.broadcast_to(scaled[:, None], (*class_ids.shape, height, width))


def ground_truth(mask: jax.Array, class_ids: jax.Array, *, num_classes: int = VOID - 1) -> jax.Array:
    """Returns the annotated mask of each class asked for, float32 [B, k, H, W], 1 on the class and 0 elsewhere.

    A class that an image does not show gives a map of zeros. The upper control of a table; it comes from the data, not
    from a predictor, so it is no member of METHODS.

    Args:
      mask: uint8 [B, H, W], class index + 1, 0 background, 255 void (counted as 0 here; metrics leave void out).
      class_ids: int32 [B, k] in 0..num_classes-1. Their values are checked outside of `jax.jit`, where they are known.
      num_classes: of the data set; by default as many as a mask can tell apart.

    Raises:
      UserError: another rank or batch size, or a class that does not exist, whose map would be of the background, of
        void or of nothing.
    """
    if mask.ndim != 3 or np.ndim(class_ids) != 2 or len(class_ids) != len(mask):
        raise UserError(
            "The annotated masks need a mask [B, H, W] and class ids [B, k]; got shapes"
            f" {tuple(mask.shape)} and {np.shape(class_ids)}."
        )
    check_class_ids(class_ids, num_classes)
    # int32, because class index + 1 in uint8 would wrap around for large ids.
    wanted = jnp.asarray(class_ids, jnp.int32)[:, :, None, None] + 1  # [B, k, 1, 1]
    return (jnp.asarray(mask, jnp.int32)[:, None] == wanted).astype(jnp.float32)
