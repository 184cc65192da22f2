"""Checks objectives with a snapshot or a moving reference on exact games."""

import functools

import jax
import numpy as np
import optax
import pytest

from ipo_md.algorithms import iterative_losses
from ipo_md.algorithms import losses
from ipo_md.algorithms import online
from ipo_md.algorithms import players as players_lib
from ipo_md.games import exact as exact_lib
from ipo_md.games import game as game_lib
from ipo_md.games import limits
from ipo_md.games import play
from ipo_md.optim import extragradients
from ipo_md.optim import optimizers
from ipo_md.optim import schedules
from tests.games import truth_test

pytestmark = pytest.mark.slow

bound = truth_test.bound
CYCLE = truth_test.CYCLE
UNIFORM = np.full(3, 1 / 3)


def trained(loss, coefs, players, *, steps, rate=None, batch_size=4096):
  """Returns the policies [steps + 1, 3] of a run on the cyclic game.

  The learning rate falls from .1 to 0 unless one is given.
  """
  rate = rate or schedules.linear(
    learning_rate=0.1, warmup_steps=0, decay_steps=steps
  )
  run = play.train(
    [CYCLE],
    step=functools.partial(online.online_step, loss=loss, mixture_coefs=coefs),
    players=players,
    optimizer=optimizers.adam(None, learning_rate=rate, b1=0.0),
    train_steps=steps,
    batch_size=batch_size,
    start_stddev=1.0,
    rng=jax.random.key(0),
  )
  return np.stack([game_lib.policy_of(logits[0]) for logits in run])


def gain(policy, tau):
  """Exploitability on the cyclic game, whose reference is uniform."""
  return exact_lib.exploitability(policy, CYCLE.preference, UNIFORM, tau=tau)


def raw(policy):
  """Exploitability without regularisation."""
  return float((CYCLE.preference @ policy).max() - 0.5)


def snapshot(steps=10, **kwargs):
  return players_lib.Players(second='snapshot', snapshot_steps=steps, **kwargs)


def test_inpo_reaches_the_regularised_equilibrium():
  loss = bound(iterative_losses.inpo, tau=0.1, eta=0.3)
  policies = trained(loss, (1.0, 1.0), snapshot(), steps=400)
  assert gain(policies[0], 0.1) > 0.01
  assert gain(policies[-1], 0.1) < 1e-3
  assert raw(policies[-1]) > 0.02  # It is not that of the game itself.


def test_comal_reaches_the_equilibrium_of_the_game_itself():
  """Plain IPO stays away from it by its regularisation."""
  loss = bound(iterative_losses.inpo, tau=0.1, eta=0.3)
  players = snapshot(reference_steps=100)
  policies = trained(loss, (1.0, 1.0), players, steps=1200)
  assert raw(policies[-1]) < 1e-2
  plain = trained(
    bound(losses.ipo, tau=0.1), (0.0, 0.0), players_lib.Players(), steps=400
  )
  assert raw(plain[-1]) > 0.02


def test_the_average_of_sppo_approaches_the_equilibrium():
  """The last iterate circles."""
  loss = bound(iterative_losses.sppo, eta=0.5)
  policies = trained(
    loss, (1.0,) * 5, snapshot(5), steps=2000, batch_size=1024, rate=0.05
  )
  assert max(raw(policy) for policy in policies[-500:]) > 0.1
  assert raw(policies.mean(axis=0)) < 0.02


def test_rebel_reaches_the_optimum_of_a_reward():
  loss = bound(iterative_losses.rebel, tau=0.2, eta=1.0)
  policies = trained(loss, (1.0, 1.0), snapshot(), steps=400)
  wanted = exact_lib.tilt(UNIFORM, CYCLE.rewards / 0.2)
  assert exact_lib.kl(wanted, policies[0]) > 0.05
  assert exact_lib.kl(wanted, policies[-1]) < 2e-3


def test_the_extragradient_converges_where_the_plain_gradient_circles():
  """EGPO and the paper's Online IPO 1, at the same step size."""
  step = functools.partial(
    online.online_step,
    loss=bound(iterative_losses.egpo, tau=0.05),
    mixture_coefs=(0.5, 0.5, 0.0),
  )
  last = {}
  for name, made in (
    ('plain', step),
    ('extra', extragradients.extragradient(step)),
  ):
    run = play.train(
      [CYCLE],
      step=made,
      optimizer=optax.sgd(0.3),
      train_steps=150,
      batch_size=2**14,
      start_stddev=1.0,
      rng=jax.random.key(0),
    )
    policies = [game_lib.policy_of(logits[0]) for logits in run]
    assert gain(policies[0], 0.05) > 0.1
    last[name] = [gain(policy, 0.05) for policy in policies[-40:]]
  assert max(last['extra']) < 1e-2
  assert max(last['plain']) > 5e-2


FIXED = {
  'INPO': (bound(iterative_losses.inpo, tau=0.1, eta=0.3), 2),
  'REBEL': (bound(iterative_losses.rebel, tau=0.2, eta=1.0), 2),
  'EGPO': (bound(iterative_losses.egpo, tau=0.1), 3),
}


@pytest.mark.parametrize('name', FIXED)
def test_the_expected_gradient_is_zero_at_the_fixed_point(name):
  loss, k = FIXED[name]
  wanted = (
    exact_lib.tilt(UNIFORM, CYCLE.rewards / 0.2)
    if name == 'REBEL'
    else exact_lib.nash(CYCLE.preference, UNIFORM, tau=0.1)
  )
  coefs = (0.5, 0.5, 0.0) if name == 'EGPO' else (1.0,) * k
  gradient = limits.expected_gradient(CYCLE, loss=loss, mixture_coefs=coefs)
  assert np.abs(gradient(np.log(wanted)[None])).max() < 1e-6
  assert np.abs(gradient(np.log(UNIFORM)[None])).max() > 1e-3
  assert (
    exact_lib.kl(wanted, limits.limit(CYCLE, loss=loss, mixture_coefs=coefs))
    < 1e-9
  )


GRADIENT = {n: FIXED[n] for n in ('INPO', 'REBEL')} | {
  'SPPO': (bound(iterative_losses.sppo, eta=2.0), 3)
}


@pytest.mark.parametrize('name', GRADIENT)
def test_the_mean_gradient_of_the_step_is_the_enumerated_one(name):
  """Policy, snapshot and reference all differ, on a tree of two tokens."""
  loss, k = GRADIENT[name]
  shape = game_lib.tree(seed=1, vocab_size=3).reference.shape
  table, taken = np.random.default_rng(0).normal(size=(2, *shape))
  truth_test.assert_mean_gradient(loss, (1.0,) * k, table, snapshot=taken)
