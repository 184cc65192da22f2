"""Tests of the objectives of related work."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipo_md.algorithms import losses
from ipo_md.algorithms import needs
from ipo_md.algorithms import related_losses
from tests.algorithms import losses_test

value_and_grad = losses_test.value_and_grad
SIGMOID = lambda x: 1 / (1 + np.exp(-x))
DCG = lambda *gains: sum(g / np.log2(2 + i) for i, g in enumerate(gains))

BY_HAND = {
  # h = log 3: sigmoid(h) = 3/4. alpha adds to the gradient of y_2 alone.
  'xpo, sure': (
    related_losses.xpo,
    {'beta': 2, 'alpha': 0.1},
    [np.log(3) / 2 - 0.5, -0.5],
    1,
    np.log(4 / 3) - 0.05,
    [-0.5, 0.5 + 0.1],
  ),
  'xpo, tie': (
    related_losses.xpo,
    {'beta': 2, 'alpha': 0.1},
    [0, 0],
    0.5,
    np.log(2),
    [0, 0.1],
  ),
  # beta h - gamma = log 3.
  'simpo, sure': (
    related_losses.simpo,
    {'beta': 2, 'gamma': 1},
    [np.log(3) / 2, -0.5],
    1,
    np.log(4 / 3),
    [-0.5, 0.5],
  ),
  # At h = 0 both sides have -log sigmoid(-gamma).
  'simpo, tie': (
    related_losses.simpo,
    {'beta': 2, 'gamma': np.log(3)},
    [-1, -1],
    0.5,
    np.log(4),
    [0, 0],
  ),
  # sigmoid(log 3) = 3/4, sigmoid(-log 2) = 1/3; slopes 3/16 and 2/9.
  'apo_zero, sure': (
    related_losses.apo_zero,
    {'beta': 2},
    [np.log(3) / 2, -np.log(2) / 2],
    1,
    1 / 4 + 1 / 3,
    [-3 / 8, 4 / 9],
  ),
  # sigmoid(rho_w) = 3/4, sigmoid(h) = sigmoid(log 6) = 6/7; slope 6/49.
  'apo_down, sure': (
    related_losses.apo_down,
    {'beta': 1},
    [np.log(3), -np.log(2)],
    1,
    3 / 4 + 1 / 7,
    [3 / 16 - 6 / 49, 6 / 49],
  ),
}


@pytest.mark.parametrize('case', BY_HAND)
def test_value_and_gradient_by_hand(case):
  loss, hyper, scores, feedback, value, grad = BY_HAND[case]
  got = value_and_grad(functools.partial(loss, **hyper), scores, feedback)
  np.testing.assert_allclose(got[0], value, atol=1e-6, rtol=1e-6)
  np.testing.assert_allclose(got[1], grad, atol=1e-6, rtol=1e-6)


PAIRWISE = {
  'simpo': functools.partial(related_losses.simpo, beta=0.7, gamma=0.3),
  'apo_zero': functools.partial(related_losses.apo_zero, beta=0.7),
  'apo_down': functools.partial(related_losses.apo_down, beta=0.7),
}
RANKED = {
  'neural_ndcg': functools.partial(
    related_losses.neural_ndcg, beta=0.7, temperature=0.8
  ),
  'approx_ndcg': functools.partial(
    related_losses.approx_ndcg, beta=0.7, alpha=3.0
  ),
}


@pytest.mark.parametrize('name', PAIRWISE)
def test_swapping_the_pair_changes_nothing(name):
  rng = np.random.default_rng(0)
  for p in (0, 0.3, 1):
    pair = rng.normal(size=2)
    one = value_and_grad(PAIRWISE[name], pair, p)
    other = value_and_grad(PAIRWISE[name], pair[::-1], 1 - p)
    np.testing.assert_allclose(one[0], other[0], rtol=1e-6)
    np.testing.assert_allclose(one[1], other[1][::-1], atol=1e-6)


def test_without_exploration_xpo_is_dpo():
  for p in (0, 0.3, 1):
    one, other = (
      value_and_grad(loss, [0.4, -0.9], p)
      for loss in (
        functools.partial(related_losses.xpo, beta=0.7, alpha=0.0),
        functools.partial(losses.dpo, beta=0.7),
      )
    )
    np.testing.assert_allclose(one[0], other[0], rtol=1e-6)
    np.testing.assert_allclose(one[1], other[1], atol=1e-7)


def test_simpo_needs_no_reference():
  assert needs.of(related_losses.simpo).anchors == ()


def test_a_hard_sort_is_the_ndcg():
  """Sharp forms give the NDCG of the order of the scores."""
  scores, rewards = [0.3, 0.9, -0.5], [1, 0, 2]
  expected = -DCG(0, 1, 3) / DCG(3, 1, 0)  # the order is y_2, y_1, y_3
  for loss in (
    functools.partial(related_losses.neural_ndcg, beta=1, temperature=1e-3),
    functools.partial(related_losses.approx_ndcg, beta=1, alpha=1e3),
  ):
    value, _ = value_and_grad(loss, scores, rewards)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    best, grad = value_and_grad(loss, [0, -1, 1], rewards)
    np.testing.assert_allclose(best, -1, rtol=1e-5)
    np.testing.assert_allclose(grad, 0, atol=1e-4)


def test_approx_ndcg_by_hand():
  loss = functools.partial(related_losses.approx_ndcg, beta=2, alpha=0.5)
  value, _ = value_and_grad(loss, [np.log(3), 0], [1, 2])
  ahead = SIGMOID(-np.log(3))  # alpha beta h = log 3
  expected = 1 / np.log2(2 + ahead) + 3 / np.log2(3 - ahead)
  np.testing.assert_allclose(value, -expected / DCG(3, 1), rtol=1e-6)


def test_neural_ndcg_of_a_pair_by_hand():
  """A 2 x 2 matrix with rows (a, 1 - a), (1 - a, a) is doubly stochastic."""
  loss = functools.partial(related_losses.neural_ndcg, beta=1, temperature=2)
  value, _ = value_and_grad(loss, [0.8, 0.2], [1, 2])
  a = SIGMOID(0.6 / 2)  # row 1: ((K - 1) s_j - |s_1 - s_2|) / T
  expected = DCG(a * 1 + (1 - a) * 3, (1 - a) * 1 + a * 3) / DCG(3, 1)
  np.testing.assert_allclose(value, -expected, rtol=1e-6)


@pytest.mark.parametrize('k', [2, 3, 5])
@pytest.mark.parametrize('name', RANKED)
def test_the_order_of_completions_is_irrelevant(name, k):
  rng = np.random.default_rng(k)
  scores, rewards = rng.normal(size=k), rng.uniform(0, 3, size=k)
  order = rng.permutation(k)
  value, grad = value_and_grad(RANKED[name], scores, rewards)
  permuted = value_and_grad(RANKED[name], scores[order], rewards[order])
  np.testing.assert_allclose(permuted[0], value, rtol=1e-5)
  np.testing.assert_allclose(permuted[1], grad[order], atol=1e-5)
  assert -1 <= value < 0
  assert np.abs(grad).max() > 1e-3
  np.testing.assert_allclose(grad.sum(), 0, atol=1e-5)  # ranks alone count


@pytest.mark.parametrize('name', RANKED)
def test_masked_completions_are_left_out(name):
  loss = RANKED[name]
  scores, rewards = np.random.default_rng(2).uniform(0, 2, size=(2, 3))
  value, grad = value_and_grad(loss, scores, rewards)
  rewards = np.append(rewards, np.nan)[[0, 3, 1, 2]]
  for hidden in (0, 50, np.nan):
    masked = functools.partial(
      loss, completion_mask=jnp.array([[True, False, True, True]])
    )
    wide = np.append(scores, hidden)[[0, 3, 1, 2]]
    got = value_and_grad(masked, wide, rewards)
    np.testing.assert_allclose(got[0], value, rtol=1e-5)
    np.testing.assert_allclose(got[1][[0, 2, 3]], grad, atol=1e-5)
    assert got[1][1] == 0


@pytest.mark.parametrize('scale', [0, 1e4, -1e4])
def test_losses_are_finite_at_extremes(scale):
  for loss in PAIRWISE.values():
    for pair in ([scale, -scale], [scale, scale], [scale, 0]):
      value, grad = value_and_grad(loss, pair, 0.5)
      assert np.isfinite(value) and np.isfinite(grad).all()
  for loss in RANKED.values():
    for rewards in ([0, 0, 0], [3, 0, 1], [10, 10, 10]):
      value, grad = value_and_grad(loss, [scale, -scale, 0], rewards)
      assert np.isfinite(value) and np.isfinite(grad).all()


@pytest.mark.parametrize('name', RANKED)
def test_grades_without_an_ndcg(name):
  value, grad = value_and_grad(RANKED[name], [0.3, 0.1], [0, 0])
  assert value == 0 and not grad.any()
  value, _ = value_and_grad(RANKED[name], [0.3, 0.1], [-1, 1])
  assert np.isnan(value)  # which stops a run


@pytest.mark.parametrize(
  ('loss', 'hyper', 'match'),
  [
    (related_losses.xpo, {'beta': 0, 'alpha': 0}, 'xpo.beta = 0 must be pos'),
    (related_losses.xpo, {'beta': 1, 'alpha': -1}, 'xpo.alpha = -1 must not'),
    (related_losses.simpo, {'beta': 1, 'gamma': -1}, 'simpo.gamma = -1 must'),
    (related_losses.apo_zero, {'beta': -1}, 'apo_zero.beta = -1 must be pos'),
    (related_losses.apo_down, {'beta': np.inf}, 'apo_down.beta = inf must'),
    (
      related_losses.neural_ndcg,
      {'beta': 1, 'temperature': 0},
      'neural_ndcg.temperature = 0 must',
    ),
    (
      related_losses.approx_ndcg,
      {'beta': 1, 'alpha': 0},
      'approx_ndcg.alpha = 0 must be',
    ),
  ],
)
def test_wrong_hyperparameters(loss, hyper, match):
  with pytest.raises(ValueError, match=f'related_losses.{match}'):
    loss(jnp.zeros((1, 2)), jnp.zeros(1), **hyper)


def test_other_feedback_is_refused():
  with pytest.raises(ValueError, match='related_losses.simpo compares 2'):
    PAIRWISE['simpo'](jnp.zeros((1, 3)), jnp.zeros(1))
  with pytest.raises(ValueError, match='neural_ndcg needs rewards of shape'):
    RANKED['neural_ndcg'](jnp.zeros((1, 3)), jnp.zeros((1, 2)))
  with pytest.raises(ValueError, match='approx_ndcg needs at least 2'):
    RANKED['approx_ndcg'](jnp.zeros((1, 1)), jnp.zeros((1, 1)))
  assert jax.eval_shape(
    RANKED['approx_ndcg'], jnp.zeros((5, 4)), jnp.zeros((5, 4))
  ).shape == (5,)
