"""Keys and values of a context, or of the tokens that were sampled so far.

Keys are columns [N, H, D, S] and values are rows [N, H, S, D], so that both
products of attention read them as they lie in memory and no token rearranges
a cache. `for_sampling` may return keys in another layout; the functions here
and `attention` accept either one.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from ipo_md.models import cpu_layouts

Keys = jax.Array | cpu_layouts.Strips


def by_head(
  keys: jax.Array, values: jax.Array, batch: int, heads: int
) -> tuple[jax.Array, jax.Array]:
  """Splits keys and values into heads.

  Args:
    keys: [..., H D] keys.
    values: [..., H D] values.
    batch: Number of sequences, N.
    heads: Number of heads, H.

  Returns:
    Keys [N, H, D, S] and values [N, H, S, D].
  """
  apart = lambda x: x.reshape(batch, -1, heads, x.shape[-1] // heads)
  return apart(keys).transpose(0, 2, 3, 1), apart(values).swapaxes(1, 2)


def for_sampling(keys: jax.Array) -> Keys:
  """Arranges keys [N, H, D, S] as the sampling loop reads them fastest."""
  return cpu_layouts.in_strips(keys) if cpu_layouts.enabled() else keys


def write(
  cache: tuple[Keys, jax.Array],
  new: tuple[jax.Array, jax.Array],
  index: jax.Array | int,
) -> tuple[Keys, jax.Array]:
  """Writes the keys and values of T tokens into the cache of one layer.

  Args:
    cache: Keys [N, H, D, S] in either layout, and values [N, H, S, D].
    new: Keys [N, H, D, T] and values [N, H, T, D] of the tokens.
    index: Column of the first token.

  Returns:
    The updated cache.
  """
  put = lambda old, x, *start: lax.dynamic_update_slice(
    old, x.astype(old.dtype), (0, 0, *start)
  )
  (old_keys, old_values), (keys, values) = cache, new
  values = put(old_values, values, index, 0)
  if isinstance(old_keys, cpu_layouts.Strips):
    return old_keys.write(keys, index), values
  return put(old_keys, keys, 0, index), values


def empty(layers: int, shape: Sequence[int], dtype: Any) -> Any:
  """Makes a cache of zeros.

  Args:
    layers: Number of layers, L.
    shape: Sizes (N, H, D, S) of the keys of one layer.
    dtype: Type of the keys and values.

  Returns:
    L pairs of keys, arranged by `for_sampling`, and values.
  """
  n, h, d, length = shape
  pair = lambda: (
    for_sampling(jnp.zeros(shape, dtype)),
    jnp.zeros((n, h, length, d), dtype),
  )
  return tuple(pair() for _ in range(layers))


def widen(wide: Any, narrow: Any) -> Any:
  """Copies caches into the first columns of wider ones.

  Args:
    wide: Caches as `Model.init_cache` makes them.
    narrow: Caches of the same models with no more columns.

  Returns:
    The wide caches with the contents of the narrow ones.
  """
  in_strips = lambda x: isinstance(x, cpu_layouts.Strips)

  def put(wide, narrow):
    if in_strips(wide):
      return wide.starting_with(narrow)
    return lax.dynamic_update_slice(wide, narrow, (0,) * wide.ndim)

  return jax.tree.map(put, wide, narrow, is_leaf=in_strips)
