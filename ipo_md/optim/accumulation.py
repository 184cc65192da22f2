"""Gradient accumulation: a step on parts of a batch, one after another.

  g = sum_i w_i g_i / sum_i w_i,   one update with g

Any step of `steps` and `judge_steps` will do, as it is: it is given an
optimizer that keeps the gradient and changes nothing. Activations, caches and
logits are those of a part. An on-line step samples part by part, so that each
part's loop reads all weights again.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ipo_md import models
from ipo_md.core import types
from ipo_md.optim import optimizers


def accumulate(
  step: Callable[..., Any],
  *,
  parts: int,
  weight: Callable[[Any], jax.Array] | None = None,
) -> Callable[..., Any]:
  """`step` with the same arguments and results, in `parts` parts.

  Args:
    step: (state, frozen, batch, rng, *, model, optimizer) -> (state, metrics).
    parts: MICROBATCHES; 1 is the step itself.
    weight: part of a batch -> [] its weight, for a loss that is a mean over
      something else than prompts; None: all parts weigh the same.

  Returns:
    The step. Its metrics are weighted means over the parts, `tokens` the sum
    and `grad_norm` the norm of g.

  Raises:
    ValueError: the state has a moving average, which a step updates itself.
  """
  if parts == 1:
    return step

  def whole(
    state: types.TrainState,
    frozen: types.FrozenParams,
    batch: Any,
    rng: jax.Array,
    *,
    model: models.Model,
    optimizer: optax.GradientTransformation,
  ):
    if state.ema is not None:
      raise ValueError(
        f'MICROBATCHES = {parts} with a moving average of the policy '
        '(nash_ema): it takes one step at a time.'
      )
    split = jax.tree.map(lambda x: _split(x, parts), batch)
    weights = jnp.ones(parts)
    if weight is not None:
      weights = jax.vmap(weight)(split).astype(jnp.float32)
    weights /= jnp.sum(weights)

    def add(total, part):
      batch, w, i = part
      kept, metrics = step(
        state.replace(opt_state=total),
        frozen,
        batch,
        jax.random.fold_in(rng, i),
        model=model,
        optimizer=_collector(w),
      )
      return kept.opt_state, metrics

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    grads, metrics = jax.lax.scan(
      add, zeros, (split, weights, jnp.arange(parts))
    )
    with jax.named_scope('update'):
      means = {k: jnp.sum(weights * v) for k, v in metrics.items()}
      if 'tokens' in metrics:
        means['tokens'] = jnp.sum(metrics['tokens'])
      state, applied = optimizers.apply(optimizer, grads, state)
      return state, {**means, **applied}

  return whole


def _split(x: jax.Array, parts: int) -> jax.Array:
  """[B, ...] -> [parts, B / parts, ...]: every part on every device."""
  rows = x.shape[0] // parts
  return jnp.swapaxes(x.reshape(rows, parts, *x.shape[1:]), 0, 1)


def _collector(weight: jax.Array) -> optax.GradientTransformation:
  """Adds weighted gradients to its state; its updates are zeros."""

  def update(grads, total, params):
    del params
    total = jax.tree.map(lambda t, g: t + weight * g, total, grads)
    return jax.tree.map(jnp.zeros_like, grads), total

  return optax.GradientTransformation(lambda params: params, update)


def check(batch_size: int, parts: int, mesh: jax.sharding.Mesh) -> None:
  """Raises ValueError if the parts of a batch do not divide over the mesh."""
  devices = mesh.shape['data'] * mesh.shape['fsdp']
  if batch_size < 1:
    raise ValueError(f'BATCH_SIZE {batch_size} is below 1.')
  if parts < 1 or batch_size % (parts * devices):
    microbatches = '' if parts == 1 else f' x MICROBATCHES {parts}'
    raise ValueError(
      f'BATCH_SIZE {batch_size} is not divisible by {devices}{microbatches}: '
      'data x fsdp of MESH_SHAPE, of which a tensor axis takes devices.'
    )
