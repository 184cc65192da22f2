"""Tests of the extragradient on a saddle whose gradients are known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ipo_md.core import types
from ipo_md.optim import extragradients
from ipo_md.optim import optimizers


def saddle(state, frozen, batch, rng, *, model, optimizer):
  """A step down x y in x and up in y."""
  del frozen, batch, rng, model
  x, y = state.params['x'], state.params['y']
  state, applied = optimizers.apply(optimizer, {'x': y, 'y': -x}, state)
  return state, {'value': x * y, **applied}


def start(optimizer, **kwargs):
  params = {'x': jnp.float32(1.0), 'y': jnp.float32(0.5)}
  return types.TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=optimizer.init(params),
    **kwargs,
  )


def run(step, optimizer, count):
  state = start(optimizer)
  for n in range(count):
    state, metrics = jax.jit(
      lambda state, rng: step(
        state, None, None, rng, model=None, optimizer=optimizer
      )
    )(state, jax.random.key(n))
  return state, metrics


def test_the_update_is_the_gradient_after_a_first_update():
  step = extragradients.extragradient(saddle)
  state, metrics = run(step, optax.sgd(0.1), 1)
  ahead = 1.0 - 0.1 * 0.5, 0.5 + 0.1 * 1.0
  np.testing.assert_allclose(state.params['x'], 1.0 - 0.1 * ahead[1], 1e-6)
  np.testing.assert_allclose(state.params['y'], 0.5 + 0.1 * ahead[0], 1e-6)
  np.testing.assert_allclose(metrics['value'], ahead[0] * ahead[1], 1e-6)
  assert int(state.step) == 1
  np.testing.assert_allclose(metrics['grad_norm'], np.hypot(*ahead), 1e-6)


def test_it_converges_where_the_plain_gradient_leaves():
  size = lambda state: float(optax.tree.norm(state.params))
  optimizer = optax.sgd(0.3)
  extra, _ = run(extragradients.extragradient(saddle), optimizer, 60)
  plain, _ = run(saddle, optimizer, 60)
  first = size(start(optimizer))
  assert size(extra) < 0.2 * first < 2 * first < size(plain)


def test_the_state_of_the_optimizer_is_that_of_one_update():
  optimizer = optax.adam(0.1)
  state, _ = run(extragradients.extragradient(saddle), optimizer, 3)
  assert int(state.opt_state[0].count) == 3


def test_players_that_change_are_refused():
  optimizer = optax.sgd(0.1)
  state = start(optimizer, players={'snapshot': {}})
  with pytest.raises(ValueError, match='snapshot.*SNAPSHOT_STEPS'):
    extragradients.extragradient(saddle)(
      state, None, None, jax.random.key(0), model=None, optimizer=optimizer
    )
