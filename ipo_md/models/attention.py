"""Attention, its cache, and T5's relative positions."""

from collections.abc import Sequence
from typing import Any

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from ipo_md.models import layers

MASKED = -1e10  # T5X's bias of a masked column


def attention(
  query: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  bias: jax.Array,
  *,
  dropout_rate: float = 0.0,
  rng: jax.Array | None = None,
) -> jax.Array:
  """softmax(query keys + bias) values, the softmax in float32.

  Args:
    query: [N, Q, H, D].
    keys: [N, H, D, S]: a token is a column, so that one token's are written
      by one update of a cache and read at memory bandwidth.
    values: [N, H, D, S].
    bias: float32, broadcastable to [N, H, Q, S].
    dropout_rate: of the weights, shared by the queries as in T5X.
    rng: key of the dropout, consumed; None: none.

  Returns:
    [N, Q, H, D].
  """
  logits = jnp.einsum(
    'nqhd,nhds->nhqs', query, keys, preferred_element_type=jnp.float32
  )
  weights = jax.nn.softmax(logits + bias, axis=-1).astype(values.dtype)
  weights = layers.dropout(weights, dropout_rate, rng)
  return jnp.einsum('nhqs,nhds->nqhd', weights, values)


def columns(x: jax.Array, batch: int, heads: int) -> jax.Array:
  """[..., H D] -> [batch, H, D, S]: the layout of keys and values."""
  x = x.reshape(batch, -1, heads, x.shape[-1] // heads)
  return x.transpose(0, 2, 3, 1)


def write_cache(
  cache: jax.Array, new: jax.Array, slot: jax.Array | int, index: Any
) -> tuple[jax.Array, jax.Array]:
  """Writes the columns `new` [N, H, D, T] at (slot, index).

  Args:
    cache: [slots, N, H, D, S].
    new: [N, H, D, T].
    slot: layer of a scanned stack; 0 where each layer has its own cache.
    index: column of the first of the T tokens.

  Returns:
    The cache, and its [N, H, D, S] part at slot.
  """
  cache = lax.dynamic_update_slice(
    cache, new[None].astype(cache.dtype), (slot, 0, 0, 0, index)
  )
  return cache, lax.dynamic_index_in_dim(cache, slot, keepdims=False)


def init_cache(
  layers: int, scan: bool, shape: Sequence[int], dtype: Any
) -> Any:
  """Zeros for the keys and the values of `layers` layers.

  One pair of arrays [L, ...] that a scan carries, or, unrolled, a pair of
  [1, ...] for each layer, which is never sliced.
  """
  pair = lambda n: (
    jnp.zeros((n, *shape), dtype),
    jnp.zeros((n, *shape), dtype),
  )
  return pair(layers) if scan else tuple(pair(1) for _ in range(layers))


class RelativePositions(nnx.Module):
  """T5's bias of an attention head for each distance.

  Distances fall into buckets: half of them exact, the others of widths that
  grow with the logarithm up to `max_distance`. Only the first distance of
  every bucket is kept, computed by T5X's float32 formula, so that a bucket is
  a comparison and never a logarithm on the device.
  """

  def __init__(
    self,
    rngs: nnx.Rngs,
    num_heads: int,
    num_buckets: int,
    max_distance: int,
    bidirectional: bool,
  ):
    init = jax.nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')
    self.rel_embedding = nnx.Param(
      init(rngs.params(), (num_heads, num_buckets)),
      axes=('heads', 'relpos_buckets'),
    )
    self.bidirectional = bidirectional
    self.starts = _bucket_starts(
      num_buckets // (1 + bidirectional), max_distance
    )

  def __call__(
    self, first: jax.Array | int, queries: int, keys: int
  ) -> jax.Array:
    """[H, queries, keys] bias of queries at first .. first + queries - 1."""
    # The bias depends on key - query alone. Row i of the result is the vector
    # below from element queries - 1 - i on:
    #
    #   vector   r  r+1  r+2  r+3       r = -(first + queries - 1)
    #   row 1    r  r+1  r+2            the last query
    #   row 0       r+1  r+2  r+3
    relative = jnp.arange(queries + keys - 1) - (queries - 1) - first
    # The product is exact: one term of every sum is not 0.
    vector = lax.dot(
      self.rel_embedding[...],
      self._one_hot(relative),
      precision=lax.Precision.HIGHEST,
    )
    heads, width = vector.shape
    # Rows of one element more than the tiled vector shift by one each.
    tiled = jnp.tile(vector, (1, queries + 1))[:, : queries * (width + 1)]
    return tiled.reshape(heads, queries, width + 1)[:, ::-1, :keys]

  def _one_hot(self, relative: jax.Array) -> jax.Array:
    """[R] key - query -> [num_buckets, R]."""
    starts = jnp.array(self.starts)[:, None]
    ends = jnp.array([*self.starts[1:], np.iinfo(np.int32).max])[:, None]
    if not self.bidirectional:
      distance = jnp.maximum(-relative, 0)
      hot = (distance >= starts) & (distance < ends)
    else:
      distance = jnp.abs(relative)
      hot = (distance >= starts) & (distance < ends)
      hot = jnp.concatenate([hot & (relative <= 0), hot & (relative > 0)])
    return hot.astype(jnp.float32)


def _bucket_starts(buckets: int, max_distance: int) -> tuple[int, ...]:
  """The first distance of each bucket, exactly as T5X rounds."""
  exact = buckets // 2
  n = np.arange(max_distance + 1)
  large = exact + (
    np.log(n.astype(np.float32) / exact + np.finfo(np.float32).eps)
    / np.log(max_distance / exact)
    * (buckets - exact)
  ).astype(np.int32)
  bucket = np.where(n < exact, n, np.minimum(large, buckets - 1))
  return tuple(int(np.argmax(bucket >= b)) for b in range(buckets))
