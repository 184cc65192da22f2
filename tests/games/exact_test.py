"""Checks equilibria, closed forms and expected losses against one another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipo_md.algorithms import losses
from ipo_md.games import closed_forms
from ipo_md.games import enumeration
from ipo_md.games import exact

CYCLE = exact.cyclic_game(0.95, 0.8, 0.6)


def some_game(seed, n=4):
  """Returns a random game, a reference, a policy and a vector of rewards."""
  rng = np.random.default_rng(seed)
  preference = exact.random_game(rng, n)
  reference, policy = rng.dirichlet(np.ones(n), size=2)
  return preference, reference, policy, rng.normal(size=n)


def enumerated(loss, policy, reference, feedback, samplers, dtype='float64'):
  """Returns the expected loss and its gradient in the logits, by JAX."""
  with jax.enable_x64(dtype == 'float64'):
    logits = jnp.array(np.log(policy), dtype)
    log_reference = jnp.array(np.log(reference), dtype)
    feedback = jnp.array(feedback, dtype)

    def objective(logits):
      log_ratio = jax.nn.log_softmax(logits) - log_reference
      return enumeration.expected_loss(loss, log_ratio, feedback, samplers)

    value, grad = jax.value_and_grad(objective)(logits)
    return float(value), np.array(grad, np.float64)


TOLERANCE = {'float32': 1e-6, 'float64': 1e-12}
dtypes = pytest.mark.parametrize('dtype', TOLERANCE)


def assert_close(actual, desired, dtype='float64'):
  scale = max(1.0, np.abs(desired).max())
  np.testing.assert_allclose(actual, desired, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize('tau', [0.001, 0.1, 0.5, 10])
@pytest.mark.parametrize('n', [2, 3, 5, 30])
def test_nash_is_a_fixed_point_that_cannot_be_exploited(n, tau):
  rng = np.random.default_rng(n)
  upper = np.triu(rng.uniform(size=(n, n)), 1)
  preference = upper + np.tril(1 - upper.T, -1) + 0.5 * np.eye(n)
  reference = rng.dirichlet(np.ones(n))
  policy = exact.nash(preference, reference, tau=tau)
  np.testing.assert_allclose(
    policy, exact.tilt(reference, preference @ policy / tau), atol=1e-12
  )
  gain = exact.exploitability(policy, preference, reference, tau=tau)
  assert abs(gain) < 1e-12


def test_nash_of_a_symmetric_cycle_is_uniform():
  third = np.full(3, 1 / 3)
  policy = exact.nash(exact.cyclic_game(0.8, 0.8, 0.8), third, tau=0.1)
  np.testing.assert_allclose(policy, third, atol=1e-14)


def test_nash_of_two_actions_by_hand():
  # Whatever pi is, p(y > pi) differs by p - 1/2 between the two actions.
  preference = np.array([[0.5, 0.9], [0.1, 0.5]])
  policy = exact.nash(preference, np.array([0.25, 0.75]), tau=0.2)
  odds = np.exp(0.4 / 0.2) / 3
  np.testing.assert_allclose(policy[0], odds / (1 + odds), atol=1e-14)


def test_exploitability_is_the_gain_of_the_best_response():
  preference, reference, policy, _ = some_game(0)
  tau = 0.3

  def payoff(own):
    return own @ preference @ policy - tau * exact.kl(own, reference)

  best = exact.tilt(reference, preference @ policy / tau)
  gain = exact.exploitability(policy, preference, reference, tau=tau)
  np.testing.assert_allclose(gain, payoff(best) - payoff(policy), atol=1e-14)
  rng = np.random.default_rng(1)
  others = rng.dirichlet(np.ones(4), size=200)
  assert max(payoff(other) - payoff(policy) for other in others) < gain


def test_a_mixture_weighs_the_reference():
  _, reference, policy, _ = some_game(0)
  np.testing.assert_allclose(exact.mixture(policy, reference, 0), policy)
  np.testing.assert_allclose(exact.mixture(policy, reference, 1), reference)
  wanted = policy**0.75 * reference**0.25
  np.testing.assert_allclose(
    exact.mixture(policy, reference, 0.25), wanted / wanted.sum()
  )


def test_nash_md_converges_within_its_bound():
  preference, reference, _, _ = some_game(2)
  tau, steps = 0.3, 2000
  nash = exact.nash(preference, reference, tau=tau)
  policies = closed_forms.nash_md(preference, reference, tau=tau, steps=steps)
  for t in range(1, steps + 1):
    assert exact.kl(nash, policies[t]) <= 8 / (tau**2 * t)
  assert exact.kl(nash, policies[-1]) < 1e-6  # The bound allows 0.04.
  np.testing.assert_allclose(
    closed_forms.nash_md_step(nash, preference, reference, tau=tau, eta=0), nash
  )


@pytest.mark.parametrize('mixture_coef', [0, 0.125, 0.5, 0.9, 1])
def test_the_mixture_fixed_point_holds(mixture_coef):
  preference, reference, _, _ = some_game(3)
  tau = 0.2
  policy = closed_forms.mixture_fixed_point(
    preference, reference, tau=tau, mixture_coef=mixture_coef
  )
  opponent = exact.mixture(policy, reference, mixture_coef)
  wanted = exact.tilt(reference, preference @ opponent / tau)
  np.testing.assert_allclose(policy, wanted, atol=1e-12)
  if mixture_coef < 1:
    nash = exact.nash(preference, reference, tau=tau / (1 - mixture_coef))
    np.testing.assert_allclose(opponent, nash, atol=1e-12)


@pytest.mark.parametrize('mixture_coef', [-0.1, 1.5, np.nan])
def test_a_wrong_mixture_is_refused(mixture_coef):
  with pytest.raises(ValueError, match='MIXTURE_COEFS'):
    closed_forms.mixture_fixed_point(
      CYCLE, np.full(3, 1 / 3), tau=0.1, mixture_coef=mixture_coef
    )


@dtypes
@pytest.mark.parametrize('seed', range(3))
def test_online_ipo_is_self_play(seed, dtype):
  preference, reference, policy, _ = some_game(seed)
  tau = 0.3
  _, grad = enumerated(
    functools.partial(losses.ipo, tau=tau),
    policy,
    reference,
    preference,
    [policy, policy],
    dtype,
  )
  self_play = closed_forms.policy_gradient(
    policy, preference @ policy, reference, tau=tau
  )
  assert_close(grad, -4 / tau * self_play, dtype)


@dtypes
@pytest.mark.parametrize('mixture_coef', [0.125, 0.5, 1])
def test_ipo_md_has_a_centring_term(mixture_coef, dtype):
  preference, reference, policy, _ = some_game(4)
  tau = 0.3
  sampler = exact.mixture(policy, reference, mixture_coef)
  _, grad = enumerated(
    functools.partial(losses.ipo, tau=tau),
    policy,
    reference,
    preference,
    [sampler, sampler],
    dtype,
  )
  closed = closed_forms.ipo_gradient(
    policy, sampler, preference, reference, tau=tau
  )
  assert_close(grad, closed, dtype)
  # Without the term tau E_m rho, the gradient would be another vector.
  rho = np.log(policy) - np.log(reference)
  weight = sampler * (preference @ sampler - 0.5 - tau * rho)
  uncentred = -4 / tau * (weight - policy * weight.sum())
  assert np.abs(uncentred - grad).max() > 1e-3


@dtypes
@pytest.mark.parametrize('mixture_coef', [0, 0.125, 1])
def test_policy_gradient_climbs_against_the_mixture(mixture_coef, dtype):
  preference, reference, policy, _ = some_game(5)
  opponent = exact.mixture(policy, reference, mixture_coef)
  _, grad = enumerated(
    functools.partial(losses.policy_gradient, tau=0.3),
    policy,
    reference,
    preference,
    [policy, opponent],
    dtype,
  )
  closed = closed_forms.policy_gradient(
    policy, preference @ opponent, reference, tau=0.3
  )
  assert_close(grad, -closed, dtype)


@dtypes
@pytest.mark.parametrize('k', [1, 2, 3, 4])
def test_reinforce_climbs_the_regularised_reward(k, dtype):
  _, reference, policy, rewards = some_game(6)
  _, grad = enumerated(
    functools.partial(losses.reinforce, tau=0.3),
    policy,
    reference,
    rewards,
    [policy] * k,
    dtype,
  )
  closed = closed_forms.policy_gradient(policy, rewards, reference, tau=0.3)
  assert_close(grad, -closed, dtype)


@dtypes
@pytest.mark.parametrize('k', [2, 3, 4])
@pytest.mark.parametrize('alpha', [0.5, 2])
def test_info_nca_stops_at_the_tilted_reference(alpha, k, dtype):
  _, reference, _, rewards = some_game(7)
  sampler = some_game(8)[2]
  beta = 0.7
  policy = exact.tilt(reference, rewards / (alpha * beta))
  _, grad = enumerated(
    functools.partial(losses.info_nca, beta=beta, alpha=alpha),
    policy,
    reference,
    rewards,
    [sampler] * k,
    dtype,
  )
  assert_close(grad, np.zeros(4), dtype)


@pytest.mark.parametrize('k', [2, 3, 4])
def test_nca_stops_where_its_scores_say(k):
  # The scores are free, not those of a normalised policy:
  # exp(s(y)) = K E[w_i | y_i = y].
  _, reference, sampler, rewards = some_game(9)
  beta, alpha = 0.7, 0.5
  y = np.array(list(np.ndindex(*[4] * k)))
  weights = np.exp(rewards[y] / alpha)
  weights /= weights.sum(axis=1, keepdims=True)
  others = np.prod(sampler[y[:, 1:]], axis=1)
  mean = np.array(
    [(others * weights[:, 0])[y[:, 0] == a].sum() for a in range(4)]
  )
  loss = functools.partial(losses.nca, beta=beta, alpha=alpha)
  with jax.enable_x64(True):
    grad = jax.grad(
      lambda rho: enumeration.expected_loss(
        loss, rho, jnp.array(rewards), [sampler] * k
      )
    )(jnp.log(jnp.array(k * mean)) / beta)
  assert_close(np.array(grad), np.zeros(4))


def test_expected_loss_by_hand():
  # The four ordered pairs of two actions have h = 0, 0.4, -0.4, 0; the margin
  # is 1.
  preference = np.array([[0.5, 1], [0, 0.5]])
  got = enumeration.expected_loss(
    functools.partial(losses.ipo, tau=0.5),
    jnp.array([0.3, -0.1]),
    preference,
    [np.array([0.5, 0.5]), np.array([0.25, 0.75])],
  )
  # h = 0 costs 1, and both mixed pairs cost (0.4 - 1)^2.
  np.testing.assert_allclose(got, 0.5 * (1 + 0.36), rtol=1e-6)


def test_offline_ipo_of_a_sure_pair():
  preference = np.array([[0.5, 1], [0, 0.5]])
  half = np.array([0.5, 0.5])
  for tau in (0.1, 1):
    policy = closed_forms.offline_ipo(
      np.full((2, 2), 0.25), preference, half, tau=tau
    )
    wanted = 1 / (1 + np.exp(-0.5 / tau))
    np.testing.assert_allclose(policy[0], wanted, rtol=1e-12)


def test_offline_ipo_is_the_minimum_for_any_pairs():
  preference, reference, _, _ = some_game(10)
  pairs = np.random.default_rng(0).dirichlet(np.ones(16)).reshape(4, 4)
  tau = 0.3
  policy = closed_forms.offline_ipo(pairs, preference, reference, tau=tau)

  def loss(logits):
    rho = jax.nn.log_softmax(logits) - np.log(reference)
    y = np.array(list(np.ndindex(4, 4)))
    each = losses.ipo(rho[y], preference.ravel(), tau=tau)
    return (pairs.ravel() * each).sum()

  with jax.enable_x64(True):
    grad = jax.grad(loss)(jnp.log(jnp.array(policy)))
  assert_close(np.array(grad), np.zeros(4))


def test_online_dpo_has_another_limit():
  third = np.full(3, 1 / 3)

  def gradient(logits):
    policy = exact.tilt(np.ones(3), logits)
    loss = functools.partial(losses.dpo, beta=0.1)
    return enumerated(loss, policy, third, CYCLE, [policy, policy])[1]

  limit = exact.tilt(third, enumeration.stationary_point(gradient, np.zeros(3)))
  assert np.abs(gradient(np.log(limit))).max() < 1e-9
  nash = exact.nash(CYCLE, third, tau=0.1)
  assert exact.kl(limit, nash) > 1e-2
  assert exact.exploitability(limit, CYCLE, third, tau=0.1) > 3e-3


def test_online_dpo_recovers_a_bradley_terry_reward():
  _, reference, _, rewards = some_game(11)
  preference = 1 / (1 + np.exp(rewards[None] - rewards[:, None]))

  def gradient(logits):
    policy = exact.tilt(np.ones(4), logits)
    loss = functools.partial(losses.dpo, beta=0.5)
    return enumerated(loss, policy, reference, preference, [policy] * 2)[1]

  logits = enumeration.stationary_point(gradient, np.log(reference))
  limit = exact.tilt(np.ones(4), logits)
  np.testing.assert_allclose(
    limit, exact.tilt(reference, rewards / 0.5), atol=1e-8
  )


def test_nash_averaging():
  cycle = exact.cyclic_game(1, 1, 1)
  weights, skills = exact.nash_averaging(cycle)
  np.testing.assert_allclose(weights, np.full(3, 1 / 3), atol=1e-7)
  np.testing.assert_allclose(skills, np.full(3, 0.5), atol=1e-7)
  copied = cycle[np.ix_([0, 0, 1, 2], [0, 0, 1, 2])]
  weights, _ = exact.nash_averaging(copied)
  np.testing.assert_allclose(weights, [1 / 6, 1 / 6, 1 / 3, 1 / 3], atol=1e-7)
  ladder = np.array([[0.5, 0.6, 0.9], [0.4, 0.5, 0.9], [0.1, 0.1, 0.5]])
  weights, skills = exact.nash_averaging(ladder)
  np.testing.assert_allclose(weights, [1, 0, 0], atol=1e-7)
  np.testing.assert_allclose(skills, [0.5, 0.4, 0.1], atol=1e-7)


def test_random_games_have_a_cycle():
  preference = exact.random_game(np.random.default_rng(0), 5)
  wins = sorted((preference > 0.5).sum(axis=1))
  assert wins != [0, 1, 2, 3, 4]
  np.testing.assert_allclose(preference + preference.T, 1)


@pytest.mark.parametrize(
  'preference, reference, tau, match',
  [
    (np.full((2, 3), 0.5), np.full(2, 0.5), 1, 'does not fit'),
    (
      np.array([[0.5, 0.9], [0.2, 0.5]]),
      np.full(2, 0.5),
      1,
      r'p\(0 > 1\) = 0.9',
    ),
    (np.array([[0.5, 1.9], [-0.9, 0.5]]), np.full(2, 0.5), 1, r'in \[0, 1\]'),
    (np.full((2, 2), np.nan), np.full(2, 0.5), 1, r'in \[0, 1\]'),
    (np.full((2, 2), 0.5), np.array([1.0, 0.0]), 1, 'positive'),
    (np.full((2, 2), 0.5), np.full(2, 0.4), 1, 'sum to 1'),
    (np.full((2, 2), 0.5), np.full(2, 0.5), 0, 'TAU'),
  ],
)
def test_wrong_games_are_refused(preference, reference, tau, match):
  with pytest.raises(ValueError, match=match):
    exact.nash(preference, reference, tau=tau)
