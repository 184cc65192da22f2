"""Keys and values, of a context or of the tokens so far.

Keys are columns [N, H, D, S] and values rows [N, H, S, D], so that either
product of attention reads them as they lie: no token rearranges a cache.
"""

from collections.abc import Sequence
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from ipo_md.core import sharding

# Columns of a strip of keys. On a CPU the product of few queries and wider
# keys reads them, where they come from memory, at half the rate.
_STRIP = 64


def by_head(
  keys: jax.Array, values: jax.Array, batch: int, heads: int
) -> tuple[jax.Array, jax.Array]:
  """[..., H D] each -> keys [batch, H, D, S], values [batch, H, S, D]."""
  apart = lambda x: x.reshape(batch, -1, heads, x.shape[-1] // heads)
  return apart(keys).transpose(0, 2, 3, 1), apart(values).swapaxes(1, 2)


def in_strips(keys: jax.Array) -> jax.Array:
  """[N, H, D, S] -> [N, H, C, D, 64], the last of the C strips padded.

  Only for sampling on one CPU, and only where C > 1; else the keys as they are.
  """
  *lead, d, columns = keys.shape
  if columns <= _STRIP or not sharding.on_one_cpu():
    return keys
  strips = math.ceil(columns / _STRIP)
  pad = [(0, 0)] * (keys.ndim - 1) + [(0, strips * _STRIP - columns)]
  return jnp.pad(keys, pad).reshape(*lead, d, strips, _STRIP).swapaxes(-3, -2)


def write(
  cache: tuple[jax.Array, jax.Array],
  new: tuple[jax.Array, jax.Array],
  index: jax.Array | int,
) -> tuple[jax.Array, jax.Array]:
  """A layer's keys and values with those of T tokens from `index` on.

  Args:
    cache: keys [N, H, D, S], or `in_strips`, and values [N, H, S, D] so far.
    new: keys [N, H, D, T] and values [N, H, T, D].
    index: of the first of the T tokens.
  """
  put = lambda old, x, *start: lax.dynamic_update_slice(
    old, x.astype(old.dtype), (0, 0, *start)
  )
  (old_keys, old_values), (keys, values) = cache, new
  values = put(old_values, values, index, 0)
  if old_keys.ndim == 4:  # not in strips
    return put(old_keys, keys, 0, index), values
  for t in range(keys.shape[-1]):  # sampling has one
    strip, column = divmod(index + t, old_keys.shape[-1])
    one = keys[:, :, None, :, t, None]
    old_keys = put(old_keys, one, strip, 0, column)
  return old_keys, values


def empty(layers: int, shape: Sequence[int], dtype: Any) -> Any:
  """Zeros, a pair for each layer; shape: of keys that are not in strips."""
  n, h, d, length = shape
  pair = lambda: (
    in_strips(jnp.zeros(shape, dtype)),
    jnp.zeros((n, h, length, d), dtype),
  )
  return tuple(pair() for _ in range(layers))
