"""Checks where the offline step converges, on games."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ipo_md.algorithms import losses
from ipo_md.algorithms import offline
from ipo_md.core import types
from ipo_md.games import closed_forms
from ipo_md.games import exact as exact_lib
from ipo_md.games import game as game_lib
from ipo_md.games import tabular
from ipo_md.models import model as model_lib
from ipo_md.optim import optimizers
from ipo_md.optim import schedules

FIVE = [game_lib.random(seed=seed, actions=5) for seed in range(5)]


def bound(loss, **hyper):
  return functools.update_wrapper(functools.partial(loss, **hyper), loss)


def trained(game, pairs, preference, loss, *, train_steps=300, optimizer=None):
  """Returns logits [nodes, V] after full-batch updates on pairs [B, K]."""
  rate = schedules.linear(
    learning_rate=0.1, warmup_steps=0, decay_steps=train_steps
  )
  optimizer = optimizer or optimizers.adam(None, learning_rate=rate)
  b, k = pairs.shape
  batch = types.Labelled(
    completions=types.Completions(
      types.Tokens(jnp.zeros((b, 1), jnp.int32), jnp.ones((b, 1), bool)),
      types.Tokens(jnp.array(pairs)[..., None], jnp.ones((b, k, 1), bool)),
    ),
    completion_mask=jnp.ones((b, k), bool),
    preference=None if preference is None else jnp.array(preference),
    rewards=jnp.array(game.rewards[pairs], jnp.float32),
  )
  v = game.vocab_size
  model = model_lib.Model(
    functools.partial(tabular.Tabular, vocab_size=v, depth=1)
  )
  params = {'table': jnp.array(game.reference, jnp.float32)[None]}
  frozen = types.FrozenParams(reference=jax.tree.map(jnp.copy, params))
  step = functools.partial(
    offline.offline_step, model=model, loss=loss, optimizer=optimizer
  )

  @jax.jit
  def run(state):
    return jax.lax.scan(
      lambda s, _: (step(s, frozen, batch, jax.random.key(0))[0], None),
      state,
      length=train_steps,
    )[0]

  state = run(types.TrainState(jnp.int32(0), params, optimizer.init(params)))
  return np.array(state.params['table'][0])


def test_offline_ipo_reaches_its_closed_form():
  game, tau = FIVE[1], 0.5
  pairs = np.random.default_rng(0).integers(5, size=(64, 2))
  preference = game.preference[pairs[:, 0], pairs[:, 1]].astype(np.float32)
  weights = np.zeros((5, 5))
  np.add.at(weights, tuple(pairs.T), 1 / 64)
  logits = trained(game, pairs, preference, bound(losses.ipo, tau=tau))
  wanted = closed_forms.offline_ipo(
    weights, game.preference, game_lib.policy_of(game.reference), tau=tau
  )
  assert exact_lib.kl(wanted, game_lib.policy_of(game.reference)) > 0.01
  np.testing.assert_allclose(game_lib.policy_of(logits), wanted, atol=1e-4)


@pytest.mark.parametrize('tau', [0.1, 1])
def test_ipo_stops_where_dpo_does_not(tau):
  two = game_lib.Game(np.array([[0.5, 1], [0, 0.5]]), np.zeros((1, 2)))
  pair, sure = np.array([[0, 1]]), np.ones(1, np.float32)
  policy = game_lib.policy_of(
    trained(two, pair, sure, bound(losses.ipo, tau=tau))
  )
  np.testing.assert_allclose(policy[0], 1 / (1 + np.exp(-0.5 / tau)), atol=1e-4)
  dpo = game_lib.policy_of(
    trained(two, pair, sure, bound(losses.dpo, beta=tau))
  )
  assert dpo[0] > max(0.99, policy[0] + 1e-3)


@pytest.mark.parametrize(
  'loss, k',
  [
    (bound(losses.dpo, beta=0.5), 2),
    (bound(losses.slic, beta=0.5), 2),
    (bound(losses.nca, beta=0.5, alpha=0.1), 3),
    (bound(losses.info_nca, beta=0.5, alpha=0), 4),
  ],
)
def test_an_offline_step_is_the_gradient_of_the_loss(loss, k):
  game = FIVE[2]
  y = np.random.default_rng(0).integers(5, size=(16, k))
  preference = None
  if k == 2:
    preference = game.preference[y[:, 0], y[:, 1]].astype(np.float32)
  logits = trained(
    game, y, preference, loss, train_steps=1, optimizer=optax.sgd(1.0)
  )
  feedback = game.rewards[y] if k > 2 else preference

  def mean_loss(table):
    rho = jax.nn.log_softmax(table) - jax.nn.log_softmax(game.reference[0])
    return loss(rho[y], jnp.array(feedback)).mean()

  wanted = jax.grad(mean_loss)(jnp.array(game.reference[0], jnp.float32))
  np.testing.assert_allclose(
    game.reference[0] - logits[0], np.array(wanted), atol=1e-6
  )
