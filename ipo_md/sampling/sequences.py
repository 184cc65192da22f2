"""Joins token sequences on the device and computes their log-probabilities."""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import math
from typing import TypeVar

import jax
import jax.numpy as jnp

from ipo_md import models
from ipo_md.core import partitioning
from ipo_md.core import types

# Number of elements of the largest array of logits that a loss holds on a
# device at a time. In float32, 2**24 elements are 64 MiB.
LOGITS_CHUNK = 2**24

# Least width of a branch of `at_real_length`.
LEAST_WIDTH = 64

T = TypeVar('T')


def join(
  segments: Sequence[types.Tokens], *, length: int, cut: int
) -> types.Tokens:
  """Concatenates segments without gaps.

    segments   a b . | c d e . | f .      ('.' is padding)
    joined     a b c d e f . .

  If the result would exceed `length`, segment number `cut` is truncated at its
  end. The others stay whole.

  Args:
    segments: Segments of [..., T_i] tokens, whose leading axes broadcast.
    length: Width of the result.
    cut: Index of the segment that may be truncated.

  Returns:
    [..., length] tokens.

  Raises:
    ValueError: The other segments alone may exceed `length`.
  """
  fixed = sum(s.ids.shape[-1] for i, s in enumerate(segments) if i != cut)
  if fixed > length:
    raise ValueError(
      f'Segments of up to {fixed} tokens do not fit into a joined length of '
      f'{length} even without the one that may be cut; raise the length.'
    )
  lead = jnp.broadcast_shapes(*(s.ids.shape[:-1] for s in segments))
  spread = lambda x: jnp.broadcast_to(x, lead + x.shape[-1:])
  masks = [spread(s.mask) for s in segments]
  excess = sum(jnp.sum(m, axis=-1) for m in masks) - length
  kept = jnp.sum(masks[cut], axis=-1) - jnp.maximum(excess, 0)
  masks[cut] &= jnp.cumsum(masks[cut], axis=-1) <= kept[..., None]
  ids = jnp.concatenate([spread(s.ids) for s in segments], axis=-1)
  mask = jnp.concatenate(masks, axis=-1)
  order = jnp.argsort(~mask, axis=-1, stable=True)
  ids = jnp.take_along_axis(jnp.where(mask, ids, 0), order, axis=-1)
  mask = jnp.take_along_axis(mask, order, axis=-1)
  pad = [(0, 0)] * len(lead) + [(0, max(0, length - ids.shape[-1]))]
  ids, mask = jnp.pad(ids, pad), jnp.pad(mask, pad)
  return types.Tokens(ids=ids[..., :length], mask=mask[..., :length])


def without(tokens: types.Tokens, special_ids: Sequence[int]) -> types.Tokens:
  """Masks special tokens, such as EOS, so that `join` leaves them out."""
  special = jnp.isin(tokens.ids, jnp.array(special_ids, jnp.int32))
  return tokens.replace(mask=tokens.mask & ~special)


def reading_inputs(start: jax.Array, ids: jax.Array) -> jax.Array:
  """Returns [B, K, T + 1] inputs of `decode` that read all T tokens.

  The hidden state of input n + 1 is the one *at* token n, which a reward head
  reads.

  Args:
    start: [B] first inputs, `Context.start`.
    ids: [B, K, T] tokens.
  """
  start = jnp.broadcast_to(start[:, None, None], ids.shape[:2] + (1,))
  return jnp.concatenate([start, ids], axis=-1)


def decoder_inputs(start: jax.Array, ids: jax.Array) -> jax.Array:
  """Returns [B, K, T] inputs of `decode` that predict the T tokens.

  Args:
    start: [B] first inputs, `Context.start`.
    ids: [B, K, T] tokens.
  """
  return reading_inputs(start, ids[..., :-1])


def token_log_probs(
  model: models.Model,
  params: types.Params,
  hidden: jax.Array,
  targets: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Computes log-probabilities of tokens from hidden states.

  Hidden states are projected in chunks along T, which the backward pass
  computes again. No array of [B, K, T, V] exists.

  Args:
    model: Network of policy or reference.
    params: Parameters of the network.
    hidden: [B, K, T, E] hidden states.
    targets: [B, K, T] tokens.

  Returns:
    [B, K, T] float32 log pi(token), and [B, K, T] float32 log Z, the logarithm
    of the softmax's denominator.
  """

  def project(x):
    hidden, targets = x
    logits = model.logits(params, hidden)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - log_z, log_z

  b, k, t = targets.shape
  vocab = jax.eval_shape(model.logits, params, hidden).shape[-1]
  most = LOGITS_CHUNK * partitioning.activation_parts()
  chunks = min(t, math.ceil(b * k * t * vocab / most))
  if chunks == 1:
    return project((hidden, targets))
  width = math.ceil(t / chunks)
  pad = chunks * width - t

  def split(x):  # [B, K, T, ...] -> [chunks, B, K, width, ...]
    x = jnp.pad(x, [(0, 0), (0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 3))
    return jnp.moveaxis(x.reshape(b, k, chunks, width, *x.shape[3:]), 2, 0)

  def unite(x):
    return jnp.moveaxis(x, 0, 2).reshape(b, k, chunks * width)[..., :t]

  out = jax.lax.map(jax.checkpoint(project), (split(hidden), split(targets)))
  return jax.tree.map(unite, out)


def log_probs(
  model: models.Model,
  params: types.Params,
  completions: types.Completions,
  *,
  context: types.Context | None = None,
  rng: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Computes the log-probability of each token of completions.

    log_probs(model, params, completions)[0]  # log pi(y_n | x, y_<n)

  Args:
    model: Network of policy or reference.
    params: Parameters of the network.
    completions: K completions of each of B prompts.
    context: Context of the prompts. None computes it.
    rng: Key of dropout, consumed. None disables dropout.

  Returns:
    [B, K, T] float32 log-probabilities, 0 on padding; and the auxiliary loss of
    the network.
  """
  keys = (None, None) if rng is None else jax.random.split(rng)
  if context is None:
    context = model.encode(params, completions.prompts, rng=keys[0])
  tokens = completions.completions
  inputs = decoder_inputs(context.start, tokens.ids)
  hidden, _, aux = model.decode(
    params, inputs, context, mask=tokens.mask, rng=keys[1]
  )
  log_probs, _ = token_log_probs(model, params, hidden, tokens.ids)
  return jnp.where(tokens.mask, log_probs, 0.0), aux


def at_real_length(
  f: Callable[[types.Completions], T], completions: types.Completions
) -> T:
  """Applies `f` to completions without columns that are padding in all.

  The width is the least of T, T / 2, T / 4, ... that holds the longest
  completion of the whole batch and is not below `LEAST_WIDTH`. Each width is a
  branch of one program, and all devices take the same branch.

  Args:
    f: Function whose result has no axis T.
    completions: Completions of the whole batch.
  """
  tokens = completions.completions
  widths = [tokens.ids.shape[-1]]
  while widths[0] // 2 >= LEAST_WIDTH:
    widths.insert(0, widths[0] // 2)
  longest = jnp.max(jnp.sum(tokens.mask, axis=-1))

  def branch(width, completions):
    cut = jax.tree.map(lambda x: x[..., :width], completions.completions)
    return f(completions.replace(completions=cut))

  return jax.lax.switch(
    jnp.sum(longest > jnp.array(widths[:-1], jnp.int32)),
    [functools.partial(branch, width) for width in widths],
    completions,
  )


def sum_or_mean(
  values: jax.Array, mask: jax.Array, *, per_token: bool
) -> jax.Array:
  """Reduces [..., T] over the tokens where the mask is True.

  The formulas of the papers sum. `per_token=True` divides by the length of the
  completion, EOS included, so that tau and beta have other scales.
  """
  total = jnp.sum(jnp.where(mask, values, 0.0), axis=-1)
  if not per_token:
    return total
  return total / jnp.maximum(jnp.sum(mask, axis=-1), 1)


def is_eos(ids: jax.Array, eos_id: types.EosId) -> jax.Array:
  """Returns whether each id is one of those that end a completion."""
  found = [ids == i for i in types.eos_ids(eos_id)]
  return functools.reduce(jnp.logical_or, found)


def ended(tokens: types.Tokens, eos_id: types.EosId) -> jax.Array:
  """Returns [B, K] whether each completion [B, K, T] reached EOS."""
  return jnp.any(tokens.mask & is_eos(tokens.ids, eos_id), axis=-1)
