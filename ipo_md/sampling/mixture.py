"""Samples completions from the geometric mixture of policy and reference.

  log pi_b(. | y_<n) = (1 - b) log pi(. | y_<n) + b log pi_ref(. | y_<n) + const

The mixture is normalised at each token, and b is the weight of the *reference*
(IPO-MD, https://arxiv.org/abs/2403.08635). It is not a coin flip between two
samplers: both models score every token, each with a cache of its own.
"""

from collections.abc import Sequence
import math

import flax.struct
import jax
import jax.numpy as jnp

from ipo_md import models as models_lib
from ipo_md.core import partitioning
from ipo_md.core import types
from ipo_md.sampling import sequences

# A token attends to all columns of a cache, filled or not. The caches therefore
# grow, by at least CACHE_BLOCK tokens at a time, and each width has a loop of
# its own. A TPU stores 128 columns in a tile, so that fewer cost as much.
CACHE_BLOCK = 64
_TPU_TILE_COLUMNS = 128
MAX_CACHE_WIDTHS = 4


class Sampled(flax.struct.PyTreeNode):
  """K completions of B prompts with their log-probabilities.

  Log-probabilities are at temperature 1, before top-k and top-p, and 0 on
  padding. No gradient flows through them. Where the weights were rounded to
  int8, they are those of the rounded policy.
  """

  tokens: types.Tokens  # [B, K, T]
  policy_log_probs: jax.Array  # [B, K, T]
  reference_log_probs: jax.Array | None  # [B, K, T], or None


class _Loop(flax.struct.PyTreeNode):
  n: jax.Array  # [] tokens sampled so far
  last: jax.Array  # [B, K] the next input
  finished: jax.Array  # [B, K]
  caches: tuple  # of the policy, of the reference
  ids: jax.Array  # [B, K, T]
  mask: jax.Array  # [B, K, T]
  log_probs: tuple  # [B, K, T] each: policy, reference


def validate(
  mixture_coefs: Sequence[float],
  *,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
) -> None:
  """Raises a ValueError that names the macro of a value out of range."""
  if (
    not isinstance(mixture_coefs, Sequence)
    or not mixture_coefs
    or not all(0 <= b <= 1 for b in mixture_coefs)
  ):
    raise ValueError(
      f'MIXTURE_COEFS = {mixture_coefs} must hold one weight of the reference '
      'in [0, 1] for each completion of a prompt.'
    )
  if not (temperature >= 0 and math.isfinite(temperature)):
    raise ValueError(f'TEMPERATURE = {temperature} is not in [0, inf).')
  if top_k < 0:
    raise ValueError(f'TOP_K = {top_k} is negative; 0 keeps all tokens.')
  if not 0 < top_p <= 1:
    raise ValueError(f'TOP_P = {top_p} is not in (0, 1]; 1 keeps all tokens.')


def sample(
  model: models_lib.Model,
  policy: types.Params,
  reference: types.Params | None,
  contexts: tuple[types.Context, types.Context | None],
  rng: jax.Array,
  *,
  mixture_coefs: Sequence[float],
  max_new_tokens: int,
  eos_id: types.EosId,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  int8: bool = False,
) -> Sampled:
  """Samples K completions of each prompt.

  Sampling stops when every completion has ended. A completion that reaches
  `max_new_tokens` without EOS is kept as it is. Completions whose coefficient
  is 0 never read the reference.

  Args:
    model: Network of both policy and reference.
    policy: Parameters of the policy.
    reference: Parameters of the reference. None if all coefficients are 0.
    contexts: Contexts of the prompts under policy and reference.
    rng: Key, consumed; or [B] keys, one for each prompt. With [B] keys, the
      completions of a prompt do not depend on the rest of the batch.
    mixture_coefs: K weights of the reference, one for each completion.
    max_new_tokens: T, the length of the longest completion.
    eos_id: Token that ends a completion and belongs to it, or several.
    temperature: Divisor of the mixture's logits. 0 takes the likeliest token.
    top_k: Number of the mixture's likeliest tokens that are kept. 0 keeps all.
    top_p: Probability of the smallest set of the mixture's likeliest tokens
      that is kept. 1 keeps all.
    int8: Whether both models sample with kernels that are rounded to int8
      (`models.Model.decode_form`), half the bytes of bfloat16. Kernels of
      experts are not rounded.

  Returns:
    The completions. `reference_log_probs` is None unless every coefficient is
    above 0 and no kernel was rounded.

  Raises:
    ValueError: A setting is out of range, or the reference is missing.
  """
  validate(mixture_coefs, temperature=temperature, top_k=top_k, top_p=top_p)
  mixed = [k for k, b in enumerate(mixture_coefs) if b > 0]
  models = [(policy, contexts[0], list(range(len(mixture_coefs))))]
  if mixed:
    if reference is None or contexts[1] is None:
      raise ValueError(
        f'MIXTURE_COEFS = {tuple(mixture_coefs)} needs a reference policy '
        '(REFERENCE_CHECKPOINT_PATH).'
      )
    models.append((reference, contexts[1], mixed))
  models = [
    (model.decode_form(params, int8=int8), model.context_form(context), slots)
    for params, context, slots in jax.lax.stop_gradient(models)
  ]
  b, k, t = contexts[0].start.shape[0], len(mixture_coefs), max_new_tokens
  fold_in = jax.random.fold_in
  if rng.ndim:
    fold_in = jax.vmap(fold_in, (0, None))

  def step(loop: _Loop) -> _Loop:
    caches, logits = [], []
    for (params, context, slots), cache in zip(
      models, loop.caches, strict=True
    ):
      hidden, cache, _ = model.decode(
        params, loop.last[:, slots, None], context, cache, loop.n
      )
      caches.append(cache)
      logits.append(model.logits(params, hidden)[:, :, 0])
    token, log_probs = choose(
      logits,
      mixture_coefs,
      fold_in(rng, loop.n),
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
    )
    token = jnp.where(loop.finished, 0, token)
    log_probs = [
      jnp.where(loop.finished[:, slots], 0, x)
      for x, (_, _, slots) in zip(log_probs, models, strict=True)
    ]
    put = lambda whole, column: jax.lax.dynamic_update_slice_in_dim(
      whole, column[..., None].astype(whole.dtype), loop.n, axis=2
    )
    return _Loop(
      n=loop.n + 1,
      last=token,
      finished=loop.finished | sequences.is_eos(token, eos_id),
      caches=tuple(caches),
      ids=put(loop.ids, token),
      mask=put(loop.mask, ~loop.finished),
      log_probs=tuple(map(put, loop.log_probs, log_probs)),
    )

  def empty_caches(length):
    return tuple(model.init_cache(c, len(s), length) for _, c, s in models)

  block = max(CACHE_BLOCK, math.ceil(t / MAX_CACHE_WIDTHS))
  if partitioning.on_tpu():
    block = max(block, _TPU_TILE_COLUMNS)
  loop = _Loop(
    n=jnp.int32(0),
    last=jnp.broadcast_to(contexts[0].start[:, None], (b, k)),
    finished=jnp.zeros((b, k), bool),
    caches=empty_caches(min(t, block)),
    ids=jnp.zeros((b, k, t), jnp.int32),
    mask=jnp.zeros((b, k, t), bool),
    log_probs=tuple(jnp.zeros((b, len(s), t)) for _, _, s in models),
  )
  for end in (*range(block, t, block), t):
    wider = models_lib.widen_caches(empty_caches(end), loop.caches)
    loop = jax.lax.while_loop(
      lambda loop, end=end: (loop.n < end) & ~jnp.all(loop.finished),
      step,
      loop.replace(caches=wider),
    )
  return Sampled(
    tokens=types.Tokens(ids=loop.ids, mask=loop.mask),
    policy_log_probs=loop.log_probs[0],
    reference_log_probs=loop.log_probs[1]
    if len(mixed) == k and not int8
    else None,
  )


def choose(
  logits: Sequence[jax.Array],
  mixture_coefs: Sequence[float],
  rng: jax.Array,
  *,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
) -> tuple[jax.Array, list[jax.Array]]:
  """Draws the next token of each completion.

  Args:
    logits: [B, K, V] logits of the policy and, if any coefficient is above 0,
      [B, M, V] logits of the reference for the M completions that mix.
    mixture_coefs: K weights of the reference.
    rng: Key, consumed.
    temperature: See `sample`.
    top_k: See `sample`.
    top_p: See `sample`.

  Returns:
    [B, K] tokens, and their log-probabilities: [B, K] under the policy and
    [B, M] under the reference if it mixes.
  """
  mixed = [k for k, b in enumerate(mixture_coefs) if b > 0]
  mixture, slots = logits[0], [list(range(len(mixture_coefs)))]
  if mixed:
    # Logits need no normalisation: log Z shifts all tokens alike.
    weight = jnp.array([mixture_coefs[k] for k in mixed])[:, None]
    blend = (1 - weight) * logits[0][:, mixed] + weight * logits[1]
    everywhere = len(mixed) == len(mixture_coefs)
    mixture = blend if everywhere else mixture.at[:, mixed].set(blend)
    slots.append(mixed)
  token = draw(mixture, rng, temperature=temperature, top_k=top_k, top_p=top_p)
  return token, [
    jnp.take_along_axis(x, token[:, s, None], axis=-1)[..., 0]
    - jax.nn.logsumexp(x, axis=-1)
    for x, s in zip(logits, slots, strict=True)
  ]


def draw(
  logits: jax.Array,
  rng: jax.Array,
  *,
  temperature: float,
  top_k: int,
  top_p: float,
) -> jax.Array:
  """Draws a token from softmax(logits / temperature) within top-k and top-p.

  Args:
    logits: [..., V] float32 logits.
    rng: Key, consumed; or one key for each element of the first axis.
    temperature: Divisor of the logits. 0 takes the likeliest token.
    top_k: Number of tokens that are kept, and ties with the last. 0 keeps all.
    top_p: Probability that is kept, after top-k. 1 keeps all.

  Returns:
    [...] int32 tokens, never one of probability 0.
  """
  if temperature == 0:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  logits = logits / temperature
  if 0 < top_k < logits.shape[-1]:
    least = jax.lax.top_k(logits, top_k)[0][..., -1:]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  probs = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
  if top_p < 1:
    ordered = -jnp.sort(-probs, axis=-1)
    before = jnp.cumsum(ordered, axis=-1) - ordered
    inside = before < top_p * jnp.sum(probs, axis=-1, keepdims=True)
    least = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
    probs = jnp.where(probs < least, 0.0, probs)
  return inverse_cdf(probs, rng)


def inverse_cdf(weights: jax.Array, rng: jax.Array) -> jax.Array:
  """Draws index i with probability weights_i / sum(weights), by inversion.

  The first of two uniforms chooses a block of about sqrt(V) indices, and the
  second an index in it. A single float32 uniform resolves only 6e-8, and sums
  over blocks are short. Gumbel noise would cost V exponentials more.

  Args:
    weights: [..., V] weights, none negative and not all 0.
    rng: Key, consumed; or one key for each element of the first axis.

  Returns:
    [...] int32 indices, never one of weight 0.
  """
  v = weights.shape[-1]
  width = math.ceil(math.sqrt(v))
  blocks = math.ceil(v / width)
  pad = [(0, 0)] * (weights.ndim - 1) + [(0, blocks * width - v)]
  grid = jnp.pad(weights, pad).reshape(*weights.shape[:-1], blocks, width)
  if rng.ndim:
    each = lambda key: jax.random.uniform(key, (2, *weights.shape[1:-1]))
    uniforms = jax.vmap(each, out_axes=1)(rng)
  else:
    uniforms = jax.random.uniform(rng, (2, *weights.shape[:-1]))
  block = _invert(jnp.sum(grid, axis=-1), uniforms[0])
  row = jnp.take_along_axis(grid, block[..., None, None], axis=-2)[..., 0, :]
  return block * width + _invert(row, uniforms[1])


def _invert(weights: jax.Array, uniform: jax.Array) -> jax.Array:
  """Returns the first index whose cumulative share exceeds the uniform."""
  cumulative = jnp.cumsum(weights, axis=-1)
  positive = weights > 0
  above = positive & (cumulative > uniform[..., None] * cumulative[..., -1:])
  # If rounding leaves no index above, the last one of positive weight counts.
  last = weights.shape[-1] - 1 - jnp.argmax(positive[..., ::-1], axis=-1)
  first = jnp.argmax(above, axis=-1)
  return jnp.where(jnp.any(above, axis=-1), first, last).astype(jnp.int32)
