"""Tests of training and evaluation steps with LoRA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ipo_md.algorithms import losses
from ipo_md.algorithms import objective
from ipo_md.algorithms import offline
from ipo_md.algorithms import online as online_lib
from ipo_md.algorithms import players as players_lib
from ipo_md.algorithms import supervised
from ipo_md.algorithms import win_rate
from ipo_md.core import types
from ipo_md.judges import learned
from ipo_md.optim import optimizers
from ipo_md.sampling import sampler
from tests.models import lora_networks

pytestmark = pytest.mark.slow


def state_of(
  model, params, optimizer, players=players_lib.Players()
) -> types.TrainState:
  return types.TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=optimizer.init(params),
    players=players.first(params),
  )


def rewarding(params, completions) -> types.Labelled:
  """Judges completions by their number of even tokens."""
  del params
  tokens = completions.completions
  rewards = jnp.sum(tokens.mask * (tokens.ids % 2 == 0), axis=-1) * 1.0
  return learned._from_rewards(completions, rewards)


ALGORITHMS = {
  'ipo_md': (functools.partial(losses.ipo, tau=1.0), (0.125, 0.125)),
  'dpo': (functools.partial(losses.dpo, beta=1.0), (0.0, 0.0)),
  'slic': (functools.partial(losses.slic, beta=1.0), (0.0, 0.0)),
  'nash_md': (functools.partial(losses.policy_gradient, tau=0.1), (0.0, 0.125)),
  'rl': (functools.partial(losses.reinforce, tau=0.1), (0.0,)),
  'nca': (functools.partial(losses.nca, beta=1.0, alpha=1.0), (0.0,) * 4),
  'info_nca': (
    functools.partial(losses.info_nca, beta=1.0, alpha=1.0),
    (0.0,) * 4,
  ),
}


def online(model, name, **changes):
  loss, mixture_coefs = ALGORITHMS[name]
  arguments = {
    'model': model,
    'feedback': objective.Feedback(judge=rewarding),
    'loss': loss,
    'optimizer': optax.sgd(0.1),
    'mixture_coefs': mixture_coefs,
    'sampler': sampler.Sampler(max_new_tokens=5, eos_id=1),
  }
  return functools.partial(online_lib.online_step, **arguments | changes)


@pytest.mark.parametrize('name', ALGORITHMS)
def test_every_algorithm_steps_in_the_adapters_alone(name):
  model = lora_networks.network('decoder')
  state = state_of(model, lora_networks.trained(model)[0], optax.sgd(0.1))
  frozen = types.FrozenParams(
    reference=jax.eval_shape(model.base.init, jax.random.key(0))
  )
  after, _ = jax.eval_shape(
    online(model, name), state, frozen, lora_networks.PROMPTS, jax.random.key(0)
  )
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


def test_a_moving_average_of_the_adapters_plays():
  model = lora_networks.network('decoder')
  params, frozen = lora_networks.trained(model)
  players = players_lib.Players(second='average', ema_decay=0.5)
  state = state_of(model, params, optax.sgd(0.1), players)
  step = online(model, 'nash_md', players=players)
  after, metrics = jax.jit(step)(
    state, frozen, lora_networks.PROMPTS, jax.random.key(0)
  )
  assert metrics['grad_norm'] > 1e-3
  moved = jax.tree.map(lambda a, b: a - b, after.params, params)
  averaged = jax.tree.map(lambda a, b: a - b, after.players['average'], params)
  jax.tree.map(
    lambda m, a: np.testing.assert_allclose(a, m / 2, atol=1e-6),
    moved,
    averaged,
  )


def test_offline_step_and_win_rate_see_policy_and_reference():
  model = lora_networks.network('decoder')
  params, frozen = lora_networks.trained(model)
  state = state_of(model, params, optax.sgd(0.1))
  batch = types.Labelled(
    completions=lora_networks.COMPLETIONS,
    completion_mask=jnp.ones((2, 2), bool),
    preference=jnp.array([1.0, 0.0]),
  )
  step = functools.partial(
    offline.offline_step,
    model=model,
    loss=ALGORITHMS['dpo'][0],
    optimizer=optax.sgd(0.1),
  )
  _, metrics = jax.jit(step)(state, frozen, batch, jax.random.key(0))
  ratio = lora_networks.log_probs(
    model, lora_networks.merged(model, params, frozen)
  ) - lora_networks.log_probs(model, frozen.reference)
  np.testing.assert_allclose(
    float(metrics['log_ratio']), np.mean(np.sum(ratio, -1)), rtol=1e-4
  )
  measure = functools.partial(
    win_rate.win_rate_metrics,
    model=model,
    judge=rewarding,
    sampler=sampler.Sampler(max_new_tokens=5, eos_id=1),
  )
  measured = jax.jit(measure)(
    state, frozen, lora_networks.PROMPTS, jax.random.key(0)
  )
  assert abs(float(measured['kl'])) > 0.1


@pytest.mark.parametrize('optimizer', [optimizers.adafactor, optimizers.adam])
def test_fresh_adapters_learn_with_every_optimizer(optimizer):
  model = lora_networks.network('decoder')
  made = optimizer(model.logical_axes, learning_rate=0.01)
  state = state_of(model, model.init(jax.random.key(1)), made)
  frozen = types.FrozenParams(reference=model.base.init(jax.random.key(0)))
  batch = types.Labelled(
    completions=lora_networks.COMPLETIONS,
    completion_mask=jnp.ones((2, 2), bool),
  )
  step = functools.partial(
    supervised.supervised_step, model=model, optimizer=made, z_loss=0.0
  )
  step, losses_seen = jax.jit(step), []
  for _ in range(30):
    state, metrics = step(state, frozen, batch, jax.random.key(0))
    losses_seen.append(float(metrics['loss']))
  assert losses_seen[-1] < 0.7 * losses_seen[0], losses_seen
