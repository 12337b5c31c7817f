"""A vision transformer (Dosovitskiy et al. 2021, in timm's form) that gives its attention as endpoints."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

EPSILON = 1e-6
"""Of every layer normalisation."""


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); returns the attention too."""

    heads: int
    hidden: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, offset: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Tokens [B, N, K] to tokens [B, N, K] and attention [B, heads, N, N], whose rows (queries) sum to 1.

        An offset [B, heads, N, N] is added to the attention.
        """
        batch, tokens, channels = x.shape

        def dense(name, width):
            return nn.Dense(width, dtype=self.dtype, name=name)

        qkv = dense("qkv", 3 * channels)(nn.LayerNorm(EPSILON, dtype=self.dtype, name="norm1")(x))
        qkv = qkv.reshape(batch, tokens, 3, self.heads, channels // self.heads)  # [B, N, 3, heads, K / heads]
        query, key, value = (qkv[:, :, i] for i in range(3))
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) * (channels // self.heads) ** -0.5
        attention = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
        if offset is not None:
            attention = attention + offset
        mixed = jnp.einsum("bhqk,bkhd->bqhd", attention.astype(value.dtype), value)
        mixed = mixed.reshape(batch, tokens, channels)  # [B, N, K]
        x = x + dense("proj", channels)(mixed)
        hidden = dense("fc1", self.hidden)(nn.LayerNorm(EPSILON, dtype=self.dtype, name="norm2")(x))
        return x + dense("fc2", channels)(nn.gelu(hidden, approximate=False)), attention


class VisionTransformer(nn.Module):
    """The classifier; endpoints "attention0", "attention1", ... [B, heads, 1 + N, 1 + N] and "features".

    Tokens are the class token, then the N patches row by row. There is no batch normalisation to freeze and no pyramid
    of strides: it is no encoder of a U-Net.

    Attributes:
      num_classes: C.
      patch: pixels per side of a patch.
      width, depth, heads: K, blocks, heads of attention.
      stem: channels of convolutions before the patches, each of which halves the resolution, a ReLU behind each, with
        which transformers learn faster (Xiao et al., NeurIPS 2021). () is none, as published by Dosovitskiy et al.
      dtype: see precision.py; attention itself is float32.
    """

    num_classes: int
    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    stem: tuple[int, ...] = ()
    dtype: jnp.dtype = jnp.float32

    spatial_features = False
    strides = ()

    def setup(self):
        self.stem_conv = [nn.Conv(channels, (3, 3), 2, dtype=self.dtype) for channels in self.stem]
        size = (self.patch // 2 ** len(self.stem),) * 2
        self.patch_embed = nn.Conv(self.width, size, size, "VALID", dtype=self.dtype)
        self.block = [Block(self.heads, 4 * self.width, self.dtype) for _ in range(self.depth)]
        self.norm = nn.LayerNorm(EPSILON, dtype=self.dtype)
        self.classifier = nn.Dense(self.num_classes, dtype=self.dtype)
        self.tokens = Tokens(self.width)

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Images to tokens [B, 1 + N, K] as they enter the last block, behind which only the class token counts."""
        return self._enter(images)[0]

    def head(self, features: jax.Array) -> jax.Array:
        """Tokens that enter the last block to scores [B, C]."""
        return self._leave(features)[0]

    def attend(self, images: jax.Array, offsets: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Images to scores [B, C] and attention [L, B, heads, 1 + N, 1 + N] of the L blocks.

        Offsets of that shape are added to the attention: their gradient at 0 is that of the attention itself.
        """
        features, attention = self._enter(images, offsets)
        scores, last = self._leave(features, None if offsets is None else offsets[-1])
        return scores, jnp.stack([*attention, last])

    def __call__(self, images: jax.Array, train: bool = False):
        """Images, normalised as (pixel - 127.5) / 127.5, to `(scores [B, C], endpoints)`."""
        del train
        features, attention = self._enter(images)
        scores, last = self._leave(features)
        named = {f"attention{i}": a for i, a in enumerate([*attention, last])}
        return scores, named | {"features": features}

    def _enter(self, images, offsets=None):
        for convolution in self.stem_conv:
            images = nn.relu(convolution(images))
        patches = self.patch_embed(images)
        patches = patches.reshape(patches.shape[0], -1, self.width)  # [B, N, K]
        x, attention = self.tokens(patches), []
        for i, block in enumerate(self.block[:-1]):
            x, seen = block(x, None if offsets is None else offsets[i])
            attention.append(seen)
        return x, attention

    def _leave(self, features, offset=None):
        x, attention = self.block[-1](features, offset)
        return self.classifier(self.norm(x)[:, 0]).astype(jnp.float32), attention


class Tokens(nn.Module):
    """The class token before the patches, and a learned position added to each."""

    width: int

    @nn.compact
    def __call__(self, patches: jax.Array) -> jax.Array:
        """[B, N, K] to [B, 1 + N, K]."""
        batch, count, _ = patches.shape
        initial = nn.initializers.truncated_normal(0.02)
        first = self.param("cls_token", initial, (1, 1, self.width))
        position = self.param("pos_embed", initial, (1, 1 + count, self.width))
        first = jnp.broadcast_to(first, (batch, 1, self.width)).astype(patches.dtype)
        return jnp.concatenate([first, patches], axis=1) + position.astype(patches.dtype)
