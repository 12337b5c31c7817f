"""Masks from logit maps, and images from masks: select, resize, harden, isolate, infill.

Logit maps are s [B, h, w, C]; masks are in [0, 1]. Only the maps that are asked for are ever resized to the image's
size, so no array has both the full resolution and all classes.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from selfexplain_jax.types import UserError

ONE_GROUP, LARGEST_GROUP = 100, 8
"""See `exchange_group`."""

ABSENT = -1e9
"""Logit of "no class to take the maximum over"; its sigmoid is exactly 0 and so is its gradient."""


def target_logits(logit_maps: jax.Array, label: jax.Array) -> jax.Array:
    """max_{c in y} s_c, [B, h, w]; `ABSENT` where the label is empty."""
    return largest(jnp.where(label[:, None, None, :] > 0, logit_maps, ABSENT))


def non_target_logits(logit_maps: jax.Array, label: jax.Array) -> jax.Array:
    """max_{c not in y} s_c, [B, h, w]; `ABSENT` where every class is present."""
    return largest(jnp.where(label[:, None, None, :] > 0, ABSENT, logit_maps))


def largest(values: jax.Array) -> jax.Array:
    """max_c s_c of [..., C], whose gradient is that of the first class that has it.

    Not `max`, whose gradient goes to what equals the maximum: where a compiler computes the values a second time and
    rounds otherwise, nothing does, and the gradient is lost.
    """
    place = jax.nn.one_hot(jax.lax.stop_gradient(values).argmax(axis=-1), values.shape[-1], dtype=bool)
    return jnp.where(place, values, 0).sum(axis=-1)


def class_maxima(logit_maps: jax.Array, label: jax.Array) -> dict[str, jax.Array]:
    """`target_logits` and `non_target_logits`, by these names."""
    return {
        "target_logits": target_logits(logit_maps, label),
        "non_target_logits": non_target_logits(logit_maps, label),
    }


def resize_maps(maps: jax.Array, size: int) -> jax.Array:
    """Bilinear resize of [B, h, w, k] to [B, size, size, k]."""
    if maps.shape[1:3] == (size, size):
        return maps
    return jax.image.resize(maps, (maps.shape[0], size, size, maps.shape[3]), method="bilinear")


def resize_mask(mask: jax.Array, size: int) -> jax.Array:
    """Bilinear resize of one mask per image, [B, h, w] to [B, size, size]."""
    return resize_maps(mask[..., None], size)[..., 0]


def target_mask(logit_maps: jax.Array, label: jax.Array, size: int) -> jax.Array:
    """m = sigmoid(max_{c in y} s_c) at image size, [B, size, size]."""
    return resize_mask(jax.nn.sigmoid(target_logits(logit_maps, label)), size)


def non_target_mask(logit_maps: jax.Array, label: jax.Array, size: int) -> jax.Array:
    """n = sigmoid(max_{c not in y} s_c) at image size, [B, size, size]."""
    return resize_mask(jax.nn.sigmoid(non_target_logits(logit_maps, label)), size)


def class_logits(logit_maps: jax.Array, class_ids: jax.Array) -> jax.Array:
    """The logit maps of the classes asked for: [B, h, w, C] and ids [B, k] to [B, h, w, k]."""
    return jnp.take_along_axis(logit_maps, class_ids[:, None, None, :], axis=-1)


def class_masks(logit_maps: jax.Array, class_ids: jax.Array, size: int) -> jax.Array:
    """S_c = sigmoid(s_c) of the classes asked for, at image size: ids [B, k] to masks [B, k, size, size]."""
    masks = resize_maps(jax.nn.sigmoid(class_logits(logit_maps, class_ids)), size)  # [B, size, size, k]
    return masks.transpose(0, 3, 1, 2)  # [B, k, size, size]


def harden(mask: jax.Array) -> jax.Array:
    """1 where the mask is above one half, else 0; the gradient passes straight through, as if nothing had happened."""
    hard = (mask > 0.5).astype(mask.dtype)
    return mask + jax.lax.stop_gradient(hard - mask)


def isolate(images: jax.Array, mask: jax.Array, filling: jax.Array) -> jax.Array:
    """x|m = m x + (1 - m) b: images and filling [B, H, W, 3], mask [B, H, W].

    Examples:
      >>> white, black = jnp.ones((1, 1, 2, 3)), jnp.zeros((1, 1, 2, 3))
      >>> isolate(white, jnp.asarray([[[1.0, 0.25]]]), black)[0, 0, :, 0].tolist()
      [1.0, 0.25]
    """
    mask = mask[..., None]
    return mask * images + (1.0 - mask) * filling


def exchange_group(batch: int) -> int:
    """How many neighbours in a batch of that size exchange masks and backgrounds.

    Up to ONE_GROUP images all of them. Beyond, the largest divisor of the batch up to LARGEST_GROUP, if there is one:
    neighbours lie on one device as long as a multiple of it does, so that no image has to be sent around.

    Examples:
      >>> [exchange_group(batch) for batch in (32, 100, 256, 110, 101)]
      [32, 100, 8, 5, 101]
    """
    divisors = [size for size in range(2, LARGEST_GROUP + 1) if batch % size == 0]
    return divisors[-1] if batch > ONE_GROUP and divisors else batch


def of_another_image(x: jax.Array, rng: jax.Array) -> jax.Array:
    """What [B, ...] holds of another image: for all the same random number of places further on in their group."""
    group = exchange_group(x.shape[0])
    shift = jax.random.randint(rng, (), 1, max(group, 2))
    groups = x.reshape(-1, group, *x.shape[1:])  # [B / group, group, ...]
    return jnp.roll(groups, shift, axis=1).reshape(x.shape)


def zero_infill(images: jax.Array, rng: jax.Array, masks: jax.Array | None = None, own: bool = True) -> jax.Array:
    """The mean colour, which normalisation puts at 0."""
    del rng, masks, own
    return jnp.zeros_like(images)


def color_noise_infill(
    images: jax.Array, rng: jax.Array, masks: jax.Array | None = None, own: bool = True
) -> jax.Array:
    """One random colour per image, uniform in [-1.8, 1.8], with grey Gaussian noise of strength [0, 0.5]."""
    del masks, own
    color_key, strength_key, noise_key = jax.random.split(rng, 3)
    batch = images.shape[0]
    color = jax.random.uniform(color_key, (batch, 1, 1, images.shape[3]), images.dtype, -1.8, 1.8)
    strength = jax.random.uniform(strength_key, (batch, 1, 1, 1), images.dtype, 0.0, 0.5)
    return color + strength * jax.random.normal(noise_key, (*images.shape[:3], 1), images.dtype)


def gaussian_matrix(size: int, sigma: float) -> np.ndarray:
    """K [size, size] with rows that sum to 1: K x blurs a signal by a Gaussian, renormalised at the borders.

    A separable blur is two such products, fast on every backend, where a depthwise convolution is slow on CPU.
    """
    place = np.arange(size)
    kernel = np.exp(-0.5 * ((place[:, None] - place[None, :]) / sigma) ** 2)
    return (kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32)


def blur(images: jax.Array, sigma: float) -> jax.Array:
    """Gaussian blur of [B, H, W, K] with standard deviation `sigma` in pixels."""
    rows = gaussian_matrix(images.shape[1], sigma)
    columns = gaussian_matrix(images.shape[2], sigma)
    return jnp.einsum("hi,bijc,wj->bhwc", rows, images, columns)


def blur_infill(images: jax.Array, rng: jax.Array, masks: jax.Array | None = None, own: bool = True) -> jax.Array:
    """The image itself, blurred until no texture is left (standard deviation: an eighth of the side).

    With `masks` [B, H, W] of the objects it is a blur of the background alone, blur((1 - m) x) / blur(1 - m): an object
    that is cut out leaves a hole in its background's colours, whose outline hardly shows. Not `own`: of all of it.
    """
    del rng
    sigma = images.shape[1] / 8
    if masks is None or not own:
        return blur(images, sigma)
    keep = (1.0 - jax.lax.stop_gradient(masks))[..., None]
    return blur(keep * images, sigma) / (blur(keep, sigma) + 1e-3)


def other_image_infill(
    images: jax.Array, rng: jax.Array, masks: jax.Array | None = None, own: bool = True
) -> jax.Array:
    """The background of another image of the batch.

    With `masks` [B, H, W] of the objects, each image's object is first painted over by the mean colour of its
    background; without, the other image is taken whole. See `of_another_image`.
    """
    del own
    if masks is not None:
        keep = (1.0 - jax.lax.stop_gradient(masks))[..., None]
        mean = (keep * images).sum(axis=(1, 2), keepdims=True) / (keep.sum(axis=(1, 2), keepdims=True) + 1.0)
        images = keep * images + (1.0 - keep) * mean
    return of_another_image(images, rng)


INFILLS: dict[str, Callable[..., jax.Array]] = {
    "zero": zero_infill,
    "color_noise": color_noise_infill,
    "blur": blur_infill,
    "other_image": other_image_infill,
}


def check_infills(names, where: str) -> None:
    """Raises UserError if `names` is empty or holds an unknown infill."""
    unknown = [name for name in names if name not in INFILLS]
    if unknown or not names:
        raise UserError(f"{where} = {tuple(names)!r}: choose one or more of {sorted(INFILLS)}.")


def infill(name: str, images: jax.Array, rng: jax.Array, masks: jax.Array | None = None, own: bool = True) -> jax.Array:
    """Filling b [B, H, W, 3] for `isolate`, of the kind of that name.

    Args:
      name: a key of INFILLS.
      images: [B, H, W, 3].
      rng: for fillings that are drawn.
      masks: [B, H, W] of the objects, for fillings that are to look like a background.
      own: whether an image's filling may depend on that image's own mask. A pass that must not know the mask says no.
    """
    check_infills((name,), "infill")
    return jax.lax.stop_gradient(INFILLS[name](images, rng, masks, own))


def random_infill(
    names: tuple[str, ...], images: jax.Array, rng: jax.Array, masks: jax.Array | None = None, own: bool = True
) -> jax.Array:
    """A filling per image, its kind drawn uniformly from `names`: [B, H, W, 3]; the arguments are those of `infill`."""
    kind_key, fill_key = jax.random.split(rng)
    if len(names) == 1:
        return infill(names[0], images, fill_key, masks, own)
    keys = jax.random.split(fill_key, len(names))
    kind = jax.random.randint(kind_key, (images.shape[0], 1, 1, 1), 0, len(names))
    fillings = [infill(name, images, key, masks, own) for name, key in zip(names, keys, strict=True)]
    return jnp.select([kind == i for i in range(len(names))], fillings)


def blob_masks(rng: jax.Array, batch: int, size: int, low: float = 0.08, high: float = 0.92) -> jax.Array:
    """Random binary masks that know nothing of any image: smooth noise above a quantile, float32 [batch, size, size].

    The area of each is uniform in [low, high] of the image, to within the few per cent by which a quantile of every
    fourth pixel of every fourth row (sorting them all would take longer than the network's pass on CPU) differs from
    that of all; the noise's scale varies from image to image.
    """
    area_key, coarse_key, fine_key, mix_key = jax.random.split(rng, 4)
    coarse = jax.random.normal(coarse_key, (batch, 4, 4, 1))
    fine = jax.random.normal(fine_key, (batch, 10, 10, 1))
    mix = jax.random.uniform(mix_key, (batch, 1, 1))
    shape = (batch, size, size, 1)
    coarse, fine = (jax.image.resize(noise, shape, method="cubic")[..., 0] for noise in (coarse, fine))
    noise = (1.0 - mix) * coarse + mix * fine  # [batch, size, size]
    area = jax.random.uniform(area_key, (batch,), minval=low, maxval=high)
    sample = noise[:, 1::4, 1::4].reshape(batch, -1)  # [batch, cells]
    order = jnp.sort(sample, axis=1)
    rank = jnp.round((1.0 - area) * (sample.shape[1] - 1)).astype(jnp.int32)
    threshold = jnp.take_along_axis(order, rank[:, None], axis=1)[:, :, None]  # [batch, 1, 1]
    return (noise >= threshold).astype(jnp.float32)
