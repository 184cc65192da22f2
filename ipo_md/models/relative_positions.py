"""T5's relative position bias."""

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np


class RelativePositions(nnx.Module):
  """One learned bias per attention head and bucket of distances.

  Half of the buckets hold a single distance each. The widths of the other
  buckets grow logarithmically up to `max_distance`. The module stores the
  first distance of every bucket, computed by T5X's float32 formula, so that
  the device compares distances and never takes a logarithm.
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
    """Returns the bias between consecutive queries and all keys.

    Args:
      first: Position of the first query.
      queries: Number of queries, Q.
      keys: Number of keys, S, at positions 0 to S - 1.

    Returns:
      [H, Q, S] bias.
    """

    def at_once(first):  # a TPU computes the buckets within the product
      return self._bias(
        jnp.arange(keys) - (first + jnp.arange(queries))[:, None]
      )

    def by_distance(first):
      # The bias depends on key - query alone. Row i of the result is the
      # vector below from element queries - 1 - i on:
      #
      #   vector   r  r+1  r+2  r+3       r = -(first + queries - 1)
      #   row 1    r  r+1  r+2            the last query
      #   row 0       r+1  r+2  r+3
      vector = self._bias(
        jnp.arange(queries + keys - 1) - (queries - 1) - first
      )
      heads, width = vector.shape
      # Rows one element longer than the tiled vector each shift it by one.
      tiled = jnp.tile(vector, (1, queries + 1))[:, : queries * (width + 1)]
      return tiled.reshape(heads, queries, width + 1)[:, ::-1, :keys]

    return lax.platform_dependent(
      jnp.asarray(first), tpu=at_once, default=by_distance
    )

  def _bias(self, relative: jax.Array) -> jax.Array:
    """Maps positions of keys relative to queries, [...], to a bias [H, ...]."""
    # The product is exact, because every sum has a single term other than 0.
    return lax.dot_general(
      self.rel_embedding[...],
      self._one_hot(relative),
      (((1,), (0,)), ((), ())),
      precision=lax.Precision.HIGHEST,
    )

  def _one_hot(self, relative: jax.Array) -> jax.Array:
    """Maps relative positions [...] to buckets, [num_buckets, ...] one-hot."""
    column = (-1, *[1] * relative.ndim)
    starts = jnp.array(self.starts).reshape(column)
    ends = jnp.array([*self.starts[1:], np.iinfo(np.int32).max])
    ends = ends.reshape(column)
    if not self.bidirectional:
      distance = jnp.maximum(-relative, 0)
      hot = (distance >= starts) & (distance < ends)
    else:
      distance = jnp.abs(relative)
      hot = (distance >= starts) & (distance < ends)
      hot = jnp.concatenate([hot & (relative <= 0), hot & (relative > 0)])
    return hot.astype(jnp.float32)


def _bucket_starts(buckets: int, max_distance: int) -> tuple[int, ...]:
  """Computes the first distance of each bucket with T5X's rounding."""
  exact = buckets // 2
  n = np.arange(max_distance + 1)
  large = exact + (
    np.log(n.astype(np.float32) / exact + np.finfo(np.float32).eps)
    / np.log(max_distance / exact)
    * (buckets - exact)
  ).astype(np.int32)
  bucket = np.where(n < exact, n, np.minimum(large, buckets - 1))
  return tuple(int(np.argmax(bucket >= b)) for b in range(buckets))
