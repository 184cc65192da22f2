"""Attention, computed in blocks of queries that fit in fast memory."""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import math

import jax
from jax import lax
import jax.numpy as jnp

from ipo_md.core import partitioning
from ipo_md.models import cpu_layouts
from ipo_md.models import kv_cache
from ipo_md.models import layers

MASKED = -1e10  # T5X's bias of a masked column

# Rows of a tile on a TPU. XLA computes the product of fewer queries as many
# sums of vector products, which read the cache eight times as slowly.
_TILE_ROWS = 8

# Largest number of scores that attention holds on a device at a time. 2**23
# float32 scores take 32 MiB and stay in the fast memory of a TPU. The backward
# pass computes the scores again instead of storing them.
SCORES_BLOCK = 2**23


def attention(
  query: jax.Array,
  keys: kv_cache.Keys,
  values: jax.Array,
  *biases: jax.Array,
  dropout_rate: float = 0.0,
  rng: jax.Array | None = None,
  soft_cap: float | None = None,
) -> jax.Array:
  """Computes softmax(query keys + biases) values, the softmax in float32.

  There is no factor of 1 / sqrt(D). The layout of keys and values is described
  in `kv_cache`.

  Args:
    query: [N, Q, H, D] queries.
    keys: [N, G, D, S] keys in either layout. H / G heads of queries share one
      head of keys and values.
    values: [N, G, S, D] values.
    *biases: Float32 biases, each broadcastable to [N, G, Q, S].
    dropout_rate: Dropout rate of the attention weights. As in T5X, the queries
      share one mask.
    rng: Dropout key, consumed. None disables dropout.
    soft_cap: Limit c of scores, which become c tanh(score / c). None: no limit.

  Returns:
    [N, Q, H, D] weighted values.
  """
  attend = jax.checkpoint(
    functools.partial(
      _attend, dropout_rate=dropout_rate, rng=rng, soft_cap=soft_cap
    )
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
  keys: kv_cache.Keys,
  values: jax.Array,
  *biases: jax.Array,
  dropout_rate: float,
  rng: jax.Array | None,
  soft_cap: float | None,
) -> jax.Array:
  """Computes `attention` for all queries at once."""
  logits = _scores(query, keys, values.shape[1], soft_cap)
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
  context: tuple[kv_cache.Keys, jax.Array],
  own: tuple[kv_cache.Keys, jax.Array],
  context_bias: jax.Array,
  own_bias: jax.Array,
  *,
  soft_cap: float | None = None,
) -> jax.Array:
  """Attends to the context of a prompt and to the completion itself.

  One softmax covers both sets of columns. Their scores are computed separately
  and combined through a shared maximum and a shared sum, so nothing is
  concatenated. The K completions of a prompt are additional queries of its one
  context.

  Args:
    query: [B, K, T, H, D] queries.
    context: Keys [B, G, D, P] and values [B, G, P, D] of the prompts.
    own: Keys [B K, G, D, S] and values [B K, G, S, D] of the completions.
    context_bias: [B, T or 1, P] bias.
    own_bias: [T, S] bias, which leaves every query at least one column.
    soft_cap: Limit of scores, as in `attention`.

  Returns:
    [B, K, T, H, D] weighted values.
  """
  b, k, t, h, _ = query.shape
  columns = context[1].shape[-2] + own[1].shape[-2]
  attend = jax.checkpoint(
    functools.partial(
      _attend_jointly, context=context, own=own, soft_cap=soft_cap
    )
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
  context: tuple[kv_cache.Keys, jax.Array],
  own: tuple[kv_cache.Keys, jax.Array],
  soft_cap: float | None,
) -> jax.Array:
  """Computes `joint_attention` for all queries at once."""
  b, k, t, h, d = query.shape
  g = own[1].shape[1]
  theirs = _scores(query.reshape(b, k * t, h, d), context[0], g, soft_cap)
  theirs = theirs.reshape(b, g, k, t, h // g, -1)
  theirs += context_bias[:, None, None, :, None]
  ours = _scores(query.reshape(b * k, t, h, d), own[0], g, soft_cap)
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


def _scores(
  query: jax.Array, keys: kv_cache.Keys, heads: int, soft_cap: float | None
) -> jax.Array:
  """[N, Q, H, D], keys [N, G, D, S] -> [N, G, Q, H / G, S] float32."""
  n, q, h, d = query.shape
  query = query.reshape(n, q, heads, h // heads, d).swapaxes(1, 2)
  query = query.reshape(n, heads, -1, d)
  if isinstance(keys, cpu_layouts.Strips):
    scores = keys.scores(query)
  else:
    scores = jnp.einsum(
      'ngqd,ngds->ngqs', query, keys, preferred_element_type=jnp.float32
    )
  scores = scores.reshape(n, heads, q, h // heads, -1)
  return scores if soft_cap is None else layers.soft_cap(scores, soft_cap)


def _weigh(weights: jax.Array, values: jax.Array) -> jax.Array:
  """[N, G, Q, H / G, S], values [N, G, S, D] -> [N, Q, H, D] float32."""
  n, g, q, r, s = weights.shape
  out = jnp.einsum(
    'ngqs,ngsd->ngqd',
    weights.reshape(n, g, q * r, s),
    values,
    preferred_element_type=jnp.float32,
  )
  return out.reshape(n, g, q, r, -1).swapaxes(1, 2).reshape(n, q, g * r, -1)


def _block(queries: int, scores: int) -> int:
  """Number of queries per block, given the number of scores of all queries."""
  most = SCORES_BLOCK * partitioning.activation_parts()
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
  axes: tuple[int, *tuple[int | None, ...]],
) -> jax.Array:
  """Computes f(*arrays) one block of queries at a time.

  Args:
    f: Checkpointed function of the queries and of other arrays.
    block: Number of queries per block.
    arrays: Arguments of f, the queries first.
    axes: Axis of the queries in each array. None marks an array that belongs
      to all queries.

  Returns:
    The result of f, with the queries on the axis that they have in the first
    array.
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
