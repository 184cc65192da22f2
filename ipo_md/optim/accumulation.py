"""Gradient accumulation: one update from the parts of a batch.

  g = sum_i w_i g_i / sum_i w_i,   one update with g

Memory for activations, caches and logits is that of one part. Any step of
`algorithms` works unchanged, because it receives an optimizer that collects
the gradient and updates nothing. (`optax.MultiSteps` would instead spread an
update over several steps and keep the sum in the checkpoint.) An online step
samples one part after another, and the sampling loop of each part reads all
weights.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ipo_md import models
from ipo_md.core import averages
from ipo_md.core import types
from ipo_md.optim import optimizers


def accumulate(
  step: Callable[..., Any],
  *,
  parts: int,
  weight: Callable[[Any], jax.Array] | None = None,
) -> Callable[..., Any]:
  """Makes a step that computes its gradient in parts.

    step = optim.accumulate(supervised_step, parts=4, weight=target_tokens)

  Args:
    step: Step (state, frozen, batch, rng, *, model, optimizer) -> (state,
      metrics).
    parts: MICROBATCHES, the number of parts. 1 returns `step` itself.
    weight: Function that maps a part of a batch to its weight, for a loss that
      is not a mean over prompts. None gives all parts the same weight.

  Returns:
    A step with the same arguments and results. Its metrics are those of the
    whole batch, as `averages` reduces them; plain numbers are averaged with the
    weights of the parts, and `grad_norm` is the norm of g. It raises ValueError
    if the state has players that change, because a step changes them itself.
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
    if state.players:
      raise ValueError(
        f'MICROBATCHES = {parts} with a player that changes '
        f'({", ".join(sorted(state.players))}) is not supported: set '
        'MICROBATCHES = 1.'
      )
    split = jax.tree.map(lambda x: _split(x, parts), batch)
    weights = jnp.ones(parts)
    if weight is not None:
      weights = jax.vmap(weight)(split).astype(jnp.float32)
    weights /= jnp.sum(weights)

    def add(total, part):
      batch, w, i = part
      collected, metrics = step(
        state.replace(opt_state=total),
        frozen,
        batch,
        jax.random.fold_in(rng, i),
        model=model,
        optimizer=collector(w),
      )
      return collected.opt_state, metrics

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    grads, metrics = jax.lax.scan(
      add, zeros, (split, weights, jnp.arange(parts))
    )
    with jax.named_scope('update'):
      found = averages.over_parts(metrics, weights)
      state, applied = optimizers.apply(optimizer, grads, state)
      return state, {**found, **applied}

  return whole


def _split(x: jax.Array, parts: int) -> jax.Array:
  """Splits [B, ...] into [parts, B / parts, ...], each part on all devices."""
  rows = x.shape[0] // parts
  return jnp.swapaxes(x.reshape(rows, parts, *x.shape[1:]), 0, 1)


def collector(weight: jax.Array) -> optax.GradientTransformation:
  """Makes an optimizer that adds weighted gradients to its state.

  Its updates are zeros, and its state has the shapes of the parameters.
  """

  def update(updates, state, params=None):
    del params
    total = jax.tree.map(lambda t, g: t + weight * g, state, updates)
    return jax.tree.map(jnp.zeros_like, updates), total

  return optax.GradientTransformation(lambda params: params, update)


def check(batch_size: int, parts: int, mesh: jax.sharding.Mesh) -> None:
  """Checks that every part of a batch divides over the mesh.

  Args:
    batch_size: BATCH_SIZE.
    parts: MICROBATCHES.
    mesh: Mesh of all devices.

  Raises:
    ValueError: If it does not.
  """
  devices = mesh.shape['data'] * mesh.shape['fsdp']
  if batch_size < 1:
    raise ValueError(f'BATCH_SIZE {batch_size} is below 1.')
  if parts < 1 or batch_size % (parts * devices):
    microbatches = '' if parts == 1 else f' x MICROBATCHES {parts}'
    raise ValueError(
      f'BATCH_SIZE {batch_size} is not divisible by {devices}{microbatches}: '
      'data x fsdp of MESH_SHAPE (devices on the tensor axis do not count).'
    )
