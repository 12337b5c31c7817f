"""Many answers, a bounded number of them at a time: memory grows with the chunk and not with the answers."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def in_chunks(answer: Callable[[jax.Array], jax.Array], count: int, chunk_size: int) -> jax.Array:
    """Returns answer(0), ..., answer(count - 1), [count, ...].

    Args:
      answer: int32 [n] to [n, ...], each row from its own number alone.
      count: how many there are, 1 or more.
      chunk_size: n, at most.
    """
    size = min(chunk_size, count)
    # The last chunk is filled up from the front; those answers are thrown away.
    numbers = (jnp.arange(count + -count % size) % count).reshape(-1, size)  # [chunks, n]
    found = jax.lax.map(answer, numbers)  # [chunks, n, ...]
    return found.reshape(-1, *found.shape[2:])[:count]
