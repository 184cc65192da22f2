"""The extragradient method: the gradient that is seen half a step ahead.

  theta'      = theta_t - optimizer(g(theta_t))
  theta_{t+1} = theta_t - optimizer(g(theta'))

In a game the plain method circles around an equilibrium unless its step is
small. Each of the two gradients has samples of its own.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ipo_md import models
from ipo_md.core import types
from ipo_md.optim import accumulation
from ipo_md.optim import optimizers


def extragradient(step: Callable[..., Any]) -> Callable[..., Any]:
  """Makes a step whose update is the gradient after a first update.

    training.train.step = @optim.extragradient()
    optim.extragradient.step = @algorithms.online_step

  Args:
    step: Step (state, frozen, batch, rng, *, model, optimizer) -> (state,
      metrics).

  Returns:
    A step with the same arguments and results. Its metrics are those of the
    second gradient. It raises ValueError if the state has players that change,
    because a step changes them itself.
  """

  @functools.wraps(step)
  def whole(
    state: types.TrainState,
    frozen: types.FrozenParams,
    batch: Any,
    rng: jax.Array,
    *,
    model: models.Model,
    optimizer: optax.GradientTransformation,
    **bound: Any,
  ):
    if state.players:
      raise ValueError(
        'optim.extragradient with a player that changes '
        f'({", ".join(sorted(state.players))}) is not supported: set '
        'EMA_DECAY, SNAPSHOT_STEPS and REFERENCE_STEPS to None.'
      )
    first, second = jax.random.split(rng)
    ahead, _ = step(
      state, frozen, batch, first, model=model, optimizer=optimizer, **bound
    )
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    collected, metrics = step(
      ahead.replace(opt_state=zeros),
      frozen,
      batch,
      second,
      model=model,
      optimizer=accumulation.collector(jnp.ones(())),
      **bound,
    )
    with jax.named_scope('update'):
      state, applied = optimizers.apply(optimizer, collected.opt_state, state)
      return state, {**metrics, **applied}

  return whole
