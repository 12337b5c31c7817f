"""Depthwise convolution in a form that is fast where it runs.

XLA on CPU has no fast depthwise convolution, and none of the derivatives that it finds for shifted products is fast
either. Here the convolution and both of its gradients are written as sums of shifted products, which it fuses into one
loop over the output. On accelerators the plain grouped convolution is right.
"""

from __future__ import annotations

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from selfexplain_jax.models.backend import on_cpu
from selfexplain_jax.models.channels import multiplied


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "SAME": ceil(size / stride) outputs, the odd cell of padding at the end."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def phase(x: jax.Array, row: int, column: int, stride: int, height: int, width: int) -> jax.Array:
    """x[:, row + stride h, column + stride w] for h < height, w < width: [B, height, width, K]."""
    rows, columns = (height - 1) * stride + 1, (width - 1) * stride + 1
    return x[:, row : row + rows : stride, column : column + columns : stride]


def pad_same(x: jax.Array, kernel: int, stride: int) -> jax.Array:
    """x with the zeros that "SAME" adds in height and width."""
    rows, columns = (same_padding(size, kernel, stride) for size in x.shape[1:3])
    return jnp.pad(x, ((0, 0), rows, columns, (0, 0)))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def shifted_products(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """y(h, w) = sum_ij kernel(i, j) x(stride h + i, stride w + j), "SAME", channel by channel.

    Args:
      x: [B, H, W, K].
      kernel: [k, k, K].
      stride: 1 or more.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), K].
    """
    size = kernel.shape[0]
    height, width = (-(-n // stride) for n in x.shape[1:3])
    padded = pad_same(x, size, stride)
    taps = [(i, j) for i in range(size) for j in range(size)]
    return sum(phase(padded, i, j, stride, height, width) * kernel[i, j].reshape(1, 1, 1, -1) for i, j in taps)


def _forward(x, kernel, stride):
    return shifted_products(x, kernel, stride), (x, kernel)


def _backward(stride, saved, gradient):
    x, kernel = saved
    return _input_gradient(gradient, kernel, stride, x.shape), _kernel_gradient(gradient, x, kernel.shape[0], stride)


def _groups(images: jax.Array) -> jax.Array:
    """[B, ...] as [G, B / G, ...], G a device each: a loop over images that are split over devices gathers them all."""
    groups = math.gcd(images.shape[0], jax.device_count())
    return images.reshape(groups, -1, *images.shape[1:])


def _kernel_gradient(gradient, x, size, stride):
    """sum over images and cells of y's gradient times the input that each tap saw: [k, k, K].

    Row by row into one accumulator per tap, [G, w, K], so that nothing is reduced before the end: XLA's reduction of a
    product over all but the last axis takes twenty times as long on CPU.
    """
    height, width, channels = gradient.shape[1:]
    padded, gradient = _groups(pad_same(x, size, stride)), _groups(gradient)
    groups, images = gradient.shape[:2]
    taps = [(i, j) for i in range(size) for j in range(size)]

    def add_row(n, sums):
        image, row = n // height, n % height
        window = (groups, 1, size, *padded.shape[3:])
        rows = jax.lax.dynamic_slice(padded, (0, image, row * stride, 0, 0), window)
        rows = rows.reshape(groups, size, -1, channels)  # [G, k, W + padding, K]
        upstream = jax.lax.dynamic_slice(gradient, (0, image, row, 0, 0), (groups, 1, 1, width, channels))
        upstream = upstream.reshape(groups, width, channels)
        last = (width - 1) * stride + 1
        seen = [rows[:, i, j : j + last : stride] for i, j in taps]  # [G, w, K] each
        return tuple(total + cells * upstream for total, cells in zip(sums, seen, strict=True))

    # Sums of so many terms are float32 whatever the terms are.
    zeros = tuple(jnp.zeros((groups, width, channels), jnp.float32) for _ in taps)
    sums = jax.lax.fori_loop(0, images * height, add_row, zeros)
    total = jnp.stack([total.sum(axis=(0, 1)) for total in sums]).reshape(size, size, channels)  # [k, k, K]
    return total.astype(gradient.dtype)


def _input_gradient(gradient, kernel, stride, shape):
    """x's gradient: for each of the stride^2 phases of x, the taps that reach it, each a shift of y's gradient."""
    size = kernel.shape[0]
    batch, rows, columns, channels = shape
    top, left = (same_padding(n, size, stride)[0] for n in (rows, columns))
    # Cells of each phase, and how far outside of y's gradient a tap may reach.
    height, width, reach = -(-rows // stride), -(-columns // stride), size
    padded = jnp.pad(gradient, ((0, 0), (reach, reach), (reach, reach), (0, 0)))

    def of_phase(a, b):
        # x(stride h + a) is seen by y(g) through tap i where stride g + i = stride h + a + top.
        terms = []
        for i in range((a + top) % stride, size, stride):
            for j in range((b + left) % stride, size, stride):
                row, column = reach + (a + top - i) // stride, reach + (b + left - j) // stride
                seen = padded[:, row : row + height, column : column + width]
                terms.append(seen * kernel[i, j].reshape(1, 1, 1, -1))
        return sum(terms) if terms else jnp.zeros((batch, height, width, channels), gradient.dtype)

    if stride == 1:
        return of_phase(0, 0)
    phases = jnp.stack([jnp.stack([of_phase(a, b) for b in range(stride)], axis=3) for a in range(stride)], axis=2)
    # [B, h, stride, w, stride, K]
    whole = phases.reshape(batch, height * stride, width * stride, channels)  # [B, h stride, w stride, K]
    return whole[:, :rows, :columns]


shifted_products.defvjp(_forward, _backward)


def grouped_convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The same as `shifted_products`, by XLA's own convolution."""
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def depthwise_convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Depthwise "SAME" convolution of [B, H, W, K] by [k, k, K], in the form that suits the backend."""
    form = shifted_products if on_cpu() else grouped_convolution
    return form(x, kernel, stride)


class DepthwiseConv(nn.Module):
    """k x k convolution of each channel by itself, "SAME" padding, no bias.

    Attributes:
      size: k.
      stride: cells from one output to the next.
      dtype: see precision.py.
    """

    size: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, factor: jax.Array | None = None) -> jax.Array:
        """[B, H, W, K] to [B, ceil(H / stride), ceil(W / stride), K]; `factor` [K], if any, multiplies the result."""
        shape = (self.size, self.size, x.shape[-1])
        # The fan-in of a channel is its own k x k cells.
        initial = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal", in_axis=(0, 1), out_axis=())
        kernel = self.param("kernel", initial, shape)
        return depthwise_convolution(x.astype(self.dtype), multiplied(kernel, factor).astype(self.dtype), self.stride)
