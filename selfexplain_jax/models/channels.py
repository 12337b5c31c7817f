"""1x1 convolutions, sums over space and batch normalisation, in forms that are fast on CPU too.

XLA on CPU sums over all but the last axis one number a cache line: a product with ones takes a quarter to a half of the
time. The gradient of a 1x1 convolution's kernel takes it up to five times as long with the wider of its two factors in
front as with the narrower. On accelerators the plain forms are right. Everywhere, a batch normalisation that keeps its
statistics is no layer: its factor belongs into the kernel before it, whose gradient then holds that of the factor, with
nothing to be summed.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from selfexplain_jax.models.backend import on_cpu


def _all_but_last(x: jax.Array) -> tuple[int, ...]:
    return tuple(range(x.ndim - 1))


def channel_sum(x: jax.Array) -> jax.Array:
    """[..., K] to its sums over all but the last axis, [K]; float32, whatever x is."""
    axes = _all_but_last(x)
    if not on_cpu():
        return x.sum(axis=axes, dtype=jnp.float32)
    ones = jnp.ones(x.shape[:-1], x.dtype)
    return jax.lax.dot_general(ones, x, ((axes, axes), ((), ())), preferred_element_type=jnp.float32)


def spread(vector: jax.Array, x: jax.Array) -> jax.Array:
    """float32 [K] at every place of x [..., K]; the form of its gradient, a sum over places, suits the backend."""
    form = summed_as_product if on_cpu() else jnp.broadcast_to
    return form(vector, x.shape)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def summed_as_product(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[K] to `shape` [..., K], with the gradient that `channel_sum` gives."""
    return jnp.broadcast_to(vector, shape)


summed_as_product.defvjp(
    lambda vector, shape: (jnp.broadcast_to(vector, shape), None), lambda shape, _, gradient: (channel_sum(gradient),)
)


@jax.custom_vjp
def narrow_first(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel, [..., K] by [K, M] to [..., M], with the narrower factor in front in the kernel's gradient."""
    return x @ kernel


def _narrow_first_backward(saved, gradient):
    x, kernel = saved
    axes = _all_but_last(x)
    contracted = ((axes, axes), ((), ()))
    if x.shape[-1] <= gradient.shape[-1]:
        for_kernel = jax.lax.dot_general(x, gradient, contracted, preferred_element_type=jnp.float32)  # [K, M]
    else:
        for_kernel = jax.lax.dot_general(gradient, x, contracted, preferred_element_type=jnp.float32).T  # [K, M]
    return gradient @ kernel.T, for_kernel.astype(kernel.dtype)


narrow_first.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _narrow_first_backward)


def pointwise_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """1x1 convolution of [..., K] by [K, M] to [..., M], in the form that suits the backend."""
    form = narrow_first if on_cpu() else jnp.matmul
    return form(x, kernel)


def multiplied(kernel: jax.Array, factor: jax.Array | None) -> jax.Array:
    """A convolution's kernel [..., M] that multiplies its outputs by `factor` [M]; None: as it is."""
    return kernel if factor is None else kernel * jnp.broadcast_to(factor, kernel.shape)


class PointwiseConv(nn.Module):
    """1x1 convolution, no bias.

    Attributes:
      features: channels of the output.
      dtype: what it computes with; its kernel is float32.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, factor: jax.Array | None = None) -> jax.Array:
        """[..., K] to [..., features]; `factor` [features], if any, multiplies the result."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        return pointwise_convolution(x.astype(self.dtype), multiplied(kernel, factor).astype(self.dtype))


class BatchNorm(nn.Module):
    """Batch normalisation of a convolution's output over the global batch, with the variables of `nn.BatchNorm`.

    It computes in float32 and answers in the convolution's type.

    Attributes:
      channels: K.
      momentum: share of the running average that stays at each step.
      epsilon: added to the variance.
    """

    channels: int
    momentum: float
    epsilon: float

    def setup(self):
        shape = (self.channels,)
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        self.var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        self.scale = self.param("scale", nn.initializers.ones, shape)
        self.bias = self.param("bias", nn.initializers.zeros, shape)

    def __call__(self, convolution: nn.Module, x: jax.Array, use_running_average: bool) -> jax.Array:
        """Normalises convolution(x), [..., K].

        Args:
          convolution: (x, factor) -> [..., K], without bias; `factor` [K], if given, multiplies the result.
          x: what it convolves.
          use_running_average: normalises by the running statistics, whose factor goes into the convolution's kernel;
            otherwise by the batch's, which the running ones then follow.
        """
        if use_running_average:
            factor = self.scale * jax.lax.rsqrt(self.var.value + self.epsilon)
            y = convolution(x, factor)
            wide = y.astype(jnp.float32)
            return (wide + spread(self.bias - self.mean.value * factor, wide)).astype(y.dtype)
        convolved = convolution(x)
        y = convolved.astype(jnp.float32)
        count = y.size // y.shape[-1]
        mean = channel_sum(y) / count
        # Rounding must not bring it below zero.
        variance = jnp.maximum(channel_sum(jnp.square(y)) / count - jnp.square(mean), 0.0)
        if not self.is_initializing():
            self.mean.value = self.momentum * self.mean.value + (1 - self.momentum) * mean
            self.var.value = self.momentum * self.var.value + (1 - self.momentum) * variance
        factor = self.scale * jax.lax.rsqrt(variance + self.epsilon)
        normalised = (y - spread(mean, y)) * spread(factor, y) + spread(self.bias, y)
        return normalised.astype(convolved.dtype)
