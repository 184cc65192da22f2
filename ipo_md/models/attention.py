"""Attention, rotary embeddings, and T5's relative positions."""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import math

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from ipo_md.core import sharding
from ipo_md.models import layers

MASKED = -1e10  # T5X's bias of a masked column

# Rows of a TPU's tile. XLA takes the product of fewer queries than that as
# many sums of products of vectors, which read the cache eight times as slowly.
_TILE_ROWS = 8

# Scores that attention holds on a device at a time: 2**23 float32 are 32 MiB,
# which stay in a TPU's fast memory. None is kept for the backward pass, which
# takes them once more.
SCORES_BLOCK = 2**23


def attention(
  query: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  *biases: jax.Array,
  dropout_rate: float = 0.0,
  rng: jax.Array | None = None,
) -> jax.Array:
  """softmax(query keys + biases) values, the softmax in float32.

  Args:
    query: [N, Q, H, D].
    keys: [N, G, D, S], or `models.in_strips`; H / G heads of queries share one
      of keys.
    values: [N, G, S, D]. Keys are columns and values rows, since so either
      product reads them as they lie: no token rearranges a cache.
    *biases: float32, each broadcastable to [N, G, Q, S].
    dropout_rate: of the weights, shared by the queries as in T5X.
    rng: key of the dropout, consumed; None: none.

  Returns:
    [N, Q, H, D].
  """
  attend = jax.checkpoint(
    functools.partial(_attend, dropout_rate=dropout_rate, rng=rng)
  )
  n, q, h, _ = query.shape
  block = _block(q, n * h * q * values.shape[-2])
  if block < q:
    split = [2 if bias.shape[2] > 1 else None for bias in biases]
    return _in_blocks(
      lambda query, *biases: attend(query, keys, values, *biases),
      block,
      (query, *biases),
      (1, *split),
    )
  missing = _TILE_ROWS - q
  if missing <= 0 or any(bias.shape[2] > 1 for bias in biases):
    return attend(query, keys, values, *biases)

  def padded(query, *rest):
    rows = jnp.pad(query, ((0, 0), (0, missing), (0, 0), (0, 0)))
    return attend(rows, *rest)[:, :q]

  return lax.platform_dependent(
    query, keys, values, *biases, tpu=padded, default=attend
  )


def _attend(
  query: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  *biases: jax.Array,
  dropout_rate: float,
  rng: jax.Array | None,
) -> jax.Array:
  """`attention`, the queries as they are."""
  logits = _scores(query, keys, values.shape[-2])
  for bias in biases:
    logits += bias[:, :, :, None]
  weights = jax.nn.softmax(logits, axis=-1).astype(values.dtype)
  if rng is not None and dropout_rate:
    flat = weights.reshape(*weights.shape[:2], -1, weights.shape[-1])
    flat = layers.dropout(flat, dropout_rate, rng)
    weights = flat.reshape(weights.shape)
  return _weigh(weights, values).astype(values.dtype)


def joint_attention(
  query: jax.Array,
  context: tuple[jax.Array, jax.Array],
  own: tuple[jax.Array, jax.Array],
  context_bias: jax.Array,
  own_bias: jax.Array,
) -> jax.Array:
  """One softmax over the columns of the context and those of a completion.

  The two sets are scored apart and meet in a shared maximum and a shared sum:
  nothing is concatenated, and the K completions of a prompt are more queries
  of its one context.

  Args:
    query: [B, K, T, H, D].
    context: keys [B, G, D, P] and values [B, G, P, D].
    own: keys [B K, G, D, S] and values [B K, G, S, D]. Either keys may be
      `models.in_strips`.
    context_bias: [B, T or 1, P].
    own_bias: [T, S]; every query sees a column of its own at least.

  Returns:
    [B, K, T, H, D].
  """
  b, k, t, h, _ = query.shape
  columns = context[1].shape[-2] + own[1].shape[-2]
  attend = jax.checkpoint(
    functools.partial(_attend_jointly, context=context, own=own)
  )
  block = _block(t, b * k * t * h * columns)
  if block < t:
    axes = (2, 1 if context_bias.shape[1] > 1 else None, 0)
    return _in_blocks(attend, block, (query, context_bias, own_bias), axes)
  return attend(query, context_bias, own_bias)


def _attend_jointly(
  query: jax.Array,
  context_bias: jax.Array,
  own_bias: jax.Array,
  *,
  context: tuple[jax.Array, jax.Array],
  own: tuple[jax.Array, jax.Array],
) -> jax.Array:
  """`joint_attention`, the queries as they are."""
  b, k, t, h, d = query.shape
  g, p, s = own[1].shape[1], context[1].shape[-2], own[1].shape[-2]
  theirs = _scores(query.reshape(b, k * t, h, d), context[0], p)
  theirs = theirs.reshape(b, g, k, t, h // g, -1)
  theirs += context_bias[:, None, None, :, None]
  ours = _scores(query.reshape(b * k, t, h, d), own[0], s)
  ours = (ours + own_bias[:, None]).reshape(b, k, g, t, h // g, -1)

  swap = lambda x: x.swapaxes(1, 2)  # [B, G, K, ...] <-> [B, K, G, ...]
  maximum = jnp.maximum(swap(theirs.max(axis=-1)), ours.max(axis=-1))
  maximum = jax.lax.stop_gradient(maximum)[..., None]
  theirs = jnp.exp(theirs - swap(maximum))
  ours = jnp.exp(ours - maximum)
  total = swap(theirs.sum(axis=-1)) + ours.sum(axis=-1)  # [B, K, G, T, H/G]

  dtype = own[1].dtype
  theirs = theirs.astype(dtype).reshape(b, g, k * t, h // g, -1)
  ours = ours.astype(dtype).reshape(b * k, g, t, h // g, -1)
  out = _weigh(theirs, context[1]).reshape(query.shape)
  out += _weigh(ours, own[1]).reshape(query.shape)
  return (out / total.swapaxes(2, 3).reshape(b, k, t, h, 1)).astype(dtype)


def _scores(query: jax.Array, keys: jax.Array, columns: int) -> jax.Array:
  """[N, Q, H, D], keys of S columns -> [N, G, Q, H / G, S] float32."""
  n, q, h, d = query.shape
  g = keys.shape[1]
  query = query.reshape(n, q, g, h // g, d).swapaxes(1, 2)
  query = query.reshape(n, g, -1, d)
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  if keys.ndim == 4:  # not in strips
    scores = product('ngqd,ngds->ngqs', query, keys)
  else:
    shape = (n, g, keys.shape[2], *query.shape[2:])
    query = jnp.broadcast_to(query[:, :, None], shape)
    scores = product('ngcqd,ngcds->ngcqs', query, keys).swapaxes(2, 3)
    scores = scores.reshape(*scores.shape[:3], -1)[..., :columns]
  return scores.reshape(n, g, q, h // g, -1)


def _weigh(weights: jax.Array, values: jax.Array) -> jax.Array:
  """[N, G, Q, H / G, S], [N, G, S, D] -> [N, Q, H, D] float32."""
  n, g, q, r, s = weights.shape
  out = jnp.einsum(
    'ngqs,ngsd->ngqd',
    weights.reshape(n, g, q * r, s),
    values,
    preferred_element_type=jnp.float32,
  )
  return out.reshape(n, g, q, r, -1).swapaxes(1, 2).reshape(n, q, g * r, -1)


def _block(queries: int, scores: int) -> int:
  """How many queries are taken at a time, all of them having `scores`."""
  most = SCORES_BLOCK * sharding.activation_parts()
  if scores <= most:
    return queries
  fit = max(1, queries * most // scores // _TILE_ROWS) * _TILE_ROWS
  for block in range(fit, fit // 2, -_TILE_ROWS):
    if queries % block == 0:
      return block
  blocks = math.ceil(queries / fit)
  return math.ceil(queries / (blocks * _TILE_ROWS)) * _TILE_ROWS


def _in_blocks(
  f: Callable[..., jax.Array],
  block: int,
  arrays: Sequence[jax.Array],
  axes: Sequence[int | None],
) -> jax.Array:
  """f(*arrays), a block of queries after another.

  Args:
    f: of queries and what goes with them; checkpointed.
    block: queries at a time.
    arrays: the queries first.
    axes: of the queries in each array; None: it goes with all of them.

  Returns:
    f's result, whose queries are on the same axis as its first argument's.
  """
  queries, axis = arrays[0].shape[axes[0]], axes[0]
  blocks = math.ceil(queries / block)

  def split(x, axis):  # [.., Q, ..] -> [blocks, .., block, ..]
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, blocks * block - queries)
    x = jnp.pad(x, pad)
    x = x.reshape(*x.shape[:axis], blocks, block, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)

  parts = {
    i: split(x, a)
    for i, (x, a) in enumerate(zip(arrays, axes, strict=True))
    if a is not None
  }
  one = lambda parts: f(*(parts.get(i, x) for i, x in enumerate(arrays)))
  out = jnp.moveaxis(lax.map(one, parts), 0, axis)
  out = out.reshape(*out.shape[:axis], -1, *out.shape[axis + 2 :])
  return lax.slice_in_dim(out, 0, queries, axis=axis)


def rotation(
  positions: jax.Array, length: int, frequencies: np.ndarray
) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines of angles at [..., T] positions below `length`.

  On one CPU they are rows of a constant table: XLA makes cosines of its own
  anew wherever they are used, for each head of each layer.

  Returns:
    [..., T, 1, D / 2] each, for [D / 2] frequencies.
  """
  if not sharding.on_one_cpu():
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)
  angles = np.arange(length, dtype=np.float32)[:, None, None] * frequencies
  rows = lambda table: jnp.take(table, positions, axis=0, mode='clip')
  return rows(np.cos(angles)), rows(np.sin(angles))


def rotate(x: jax.Array, cos_sin: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotary position embedding, https://arxiv.org/abs/2104.09864.

  Feature i is paired with i + D / 2, as in the published weights of Llama.

  Args:
    x: [..., T, H, D].
    cos_sin: of `rotation`.

  Returns:
    [..., T, H, D] float32.
  """
  cos, sin = cos_sin
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )


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

    def at_once(first):  # a TPU makes the buckets while it multiplies
      return self._of(jnp.arange(keys) - (first + jnp.arange(queries))[:, None])

    def by_distance(first):
      # The bias depends on key - query alone. Row i of the result is the
      # vector below from element queries - 1 - i on:
      #
      #   vector   r  r+1  r+2  r+3       r = -(first + queries - 1)
      #   row 1    r  r+1  r+2            the last query
      #   row 0       r+1  r+2  r+3
      vector = self._of(jnp.arange(queries + keys - 1) - (queries - 1) - first)
      heads, width = vector.shape
      # Rows of one element more than the tiled vector shift by one each.
      tiled = jnp.tile(vector, (1, queries + 1))[:, : queries * (width + 1)]
      return tiled.reshape(heads, queries, width + 1)[:, ::-1, :keys]

    return lax.platform_dependent(
      jnp.asarray(first), tpu=at_once, default=by_distance
    )

  def _of(self, relative: jax.Array) -> jax.Array:
    """[...] key - query -> [H, ...]."""
    # The product is exact: one term of every sum is not 0.
    return lax.dot_general(
      self.rel_embedding[...],
      self._one_hot(relative),
      (((1,), (0,)), ((), ())),
      precision=lax.Precision.HIGHEST,
    )

  def _one_hot(self, relative: jax.Array) -> jax.Array:
    """[...] key - query -> [num_buckets, ...]."""
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
