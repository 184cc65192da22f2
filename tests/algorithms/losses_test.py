import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipo_md.algorithms import losses

LOG_2 = np.log(2)


def value_and_grad(loss, scores, feedback):
  """The loss of one prompt and its gradient in the K scores."""
  scores = jnp.array([scores], jnp.float32)
  feedback = jnp.array([feedback], jnp.float32)
  value, grad = jax.value_and_grad(lambda s: loss(s, feedback)[0])(scores)
  return float(value), np.array(grad[0])


BY_HAND = {
  # h = .4, margin 1: (.4 - 1)^2 and (-.4 - 1)^2.
  'ipo, sure': (losses.ipo, {'tau': 0.5}, [0.3, -0.1], 1, 0.36, [-1.2, 1.2]),
  'ipo, soft': (losses.ipo, {'tau': 0.5}, [0.3, -0.1], 0.75, 0.76, [-0.2, 0.2]),
  'ipo, at the reference': (
    losses.ipo,
    {'tau': 0.1},
    [0, 0],
    0.5,
    25,
    [0, 0],
  ),
  # log(1 + exp(-.8)); the gradient is -2 / (1 + exp(.8)).
  'dpo, sure': (
    losses.dpo,
    {'beta': 2},
    [0.3, -0.1],
    1,
    0.371100666,
    [-0.620051, 0.620051],
  ),
  'dpo, tie': (losses.dpo, {'beta': 2}, [1, 1], 0.5, LOG_2, [0, 0]),
  'slic, sure': (losses.slic, {'beta': 0.5}, [0.3, -0.1], 1, 0.8, [-0.5, 0.5]),
  'slic, soft': (
    losses.slic,
    {'beta': 0.5},
    [0.3, -0.1],
    0.75,
    0.9,
    [-0.25, 0.25],
  ),
  'slic, beyond the margin': (losses.slic, {'beta': 0.5}, [4, 0], 1, 0, [0, 0]),
  # Advantage .75 - .5 - .5 x .3 = .1.
  'policy_gradient': (
    losses.policy_gradient,
    {'tau': 0.5},
    [0.3, -0.1],
    0.75,
    -0.03,
    [-0.1, 0],
  ),
  'reinforce, K = 1': (
    losses.reinforce,
    {'tau': 0.5},
    [0.3],
    [2],
    -0.555,
    [-1.85],
  ),
  # a = [.9, .2, 2], the means of the others [1.1, 1.45, .55].
  'reinforce, K = 3': (
    losses.reinforce,
    {'tau': 0.5},
    [0.2, -0.4, 0],
    [1, 0, 2],
    -0.46 / 3,
    [0.2 / 3, 1.25 / 3, -1.45 / 3],
  ),
  'nca, tie': (
    losses.nca,
    {'beta': 1, 'alpha': 0},
    [0, 0, 0],
    [1, 0, 1],
    2 * LOG_2,
    [-1 / 12, 1 / 6, -1 / 12],
  ),
  # w = [1, 2, 5] / 8; sigmoid(s) = 2/3 for s = log 2.
  'nca, soft': (
    losses.nca,
    {'beta': 2, 'alpha': 0.5},
    [np.log(2) / 2, 0, 0],
    [0, np.log(2) / 2, np.log(5) / 2],
    np.log(1.5) / 8 + 7 / 8 * LOG_2 + np.log(3) / 3 + 2 / 3 * LOG_2,
    [2 * (2 / 9 - 1 / 24), 2 * (1 / 6 - 1 / 8), 2 * (1 / 6 - 5 / 16)],
  ),
  # softmax(s) = [1, 2, 1] / 4.
  'info_nca, soft': (
    losses.info_nca,
    {'beta': 2, 'alpha': 1},
    [0, LOG_2 / 2, 0],
    [0, np.log(2), np.log(5)],
    0.75 * np.log(4) + 0.25 * LOG_2,
    [0.25, 0.5, -0.75],
  ),
  'info_nca, tie': (
    losses.info_nca,
    {'beta': 1, 'alpha': 0},
    [0, 0, 0],
    [3, 3, 1],
    np.log(3),
    [-1 / 6, -1 / 6, 1 / 3],
  ),
  'bradley_terry': (
    losses.bradley_terry,
    {},
    [0.9, 0.1],
    1,
    0.371100666,
    [-0.310026, 0.310026],
  ),
}


@pytest.mark.parametrize('case', BY_HAND)
def test_value_and_gradient_by_hand(case):
  loss, hyper, scores, feedback, value, grad = BY_HAND[case]
  got = value_and_grad(functools.partial(loss, **hyper), scores, feedback)
  np.testing.assert_allclose(got[0], value, atol=1e-6, rtol=1e-6)
  np.testing.assert_allclose(got[1], grad, atol=1e-6, rtol=1e-6)


def test_cross_entropy_by_hand():
  logits = jnp.log(jnp.array([1.0, 2.0, 5.0]))

  def loss(logits):
    log_z = jax.nn.logsumexp(logits)
    return losses.cross_entropy(logits[2] - log_z, log_z, z_loss=0.1)

  value, grad = jax.value_and_grad(loss)(logits)
  np.testing.assert_allclose(
    value, np.log(1.6) + 0.1 * np.log(8) ** 2, rtol=1e-6
  )
  probs = np.array([1, 2, 5]) / 8
  np.testing.assert_allclose(
    grad, probs * (1 + 0.2 * np.log(8)) - [0, 0, 1], atol=1e-6
  )


@pytest.mark.parametrize('z_loss, name', [(1e-4, 'loss'), (0, 'loss_noz')])
def test_cross_entropy_is_t5x_s(z_loss, name):
  path = pathlib.Path(__file__).parents[1] / 'testdata/t5x/t5_1_1_tiny.npz'
  golden = np.load(path)
  logits = jnp.array(golden['logits'])
  log_z = jax.nn.logsumexp(logits, axis=-1)
  targets = golden['batch/decoder_target_tokens'][..., None]
  log_probs = jnp.take_along_axis(logits, targets, axis=-1)[..., 0] - log_z
  each = losses.cross_entropy(log_probs, log_z, z_loss=z_loss)
  total = (each * golden['batch/decoder_loss_weights']).sum()
  np.testing.assert_allclose(total, golden[name], rtol=1e-6)


PAIRWISE = {
  'ipo': functools.partial(losses.ipo, tau=0.3),
  'dpo': functools.partial(losses.dpo, beta=0.7),
  'slic': functools.partial(losses.slic, beta=0.7),
  'bradley_terry': losses.bradley_terry,
}
CONTRASTIVE = {
  'nca': functools.partial(losses.nca, beta=0.7, alpha=0.5),
  'nca, one-hot': functools.partial(losses.nca, beta=0.7, alpha=0),
  'info_nca': functools.partial(losses.info_nca, beta=0.7, alpha=0.5),
  'info_nca, one-hot': functools.partial(losses.info_nca, beta=0.7, alpha=0),
}
SCORED = CONTRASTIVE | {
  'reinforce': functools.partial(losses.reinforce, tau=0.3)
}


@pytest.mark.parametrize('name', PAIRWISE)
def test_swapping_the_pair_changes_nothing(name):
  scores = np.random.default_rng(0).normal(size=(8, 2))
  for p, pair in zip(np.linspace(0, 1, 8), scores, strict=True):
    value, grad = value_and_grad(PAIRWISE[name], pair, p)
    swapped, swapped_grad = value_and_grad(PAIRWISE[name], pair[::-1], 1 - p)
    np.testing.assert_allclose(value, swapped, rtol=1e-6)
    np.testing.assert_allclose(grad, swapped_grad[::-1], atol=1e-6)


@pytest.mark.parametrize('k', [2, 3, 4, 7])
@pytest.mark.parametrize('name', SCORED)
def test_the_order_of_completions_is_irrelevant(name, k):
  rng = np.random.default_rng(k)
  scores, rewards = rng.normal(size=(2, k))
  rewards[-1] = rewards[0]  # a tie
  order = rng.permutation(k)
  value, grad = value_and_grad(SCORED[name], scores, rewards)
  permuted = value_and_grad(SCORED[name], scores[order], rewards[order])
  np.testing.assert_allclose(permuted[0], value, rtol=1e-5)
  np.testing.assert_allclose(permuted[1], grad[order], atol=1e-6)


@pytest.mark.parametrize('scale', [0, 1e4, -1e4])
@pytest.mark.parametrize('name', PAIRWISE)
def test_pairwise_losses_are_finite_at_extremes(name, scale):
  for p in (0, 0.5, 1):
    for pair in ([scale, -scale], [scale, scale], [scale, 0]):
      value, grad = value_and_grad(PAIRWISE[name], pair, p)
      assert np.isfinite(value) and np.isfinite(grad).all()


@pytest.mark.parametrize('scale', [0, 1e4, -1e4])
@pytest.mark.parametrize('name', SCORED)
def test_scored_losses_are_finite_at_extremes(name, scale):
  for rewards in ([0, 0, 0], [1e4, 0, -1e4], [-1e4, -1e4, -1e4]):
    for scores in ([scale, -scale, 0], [scale] * 3):
      value, grad = value_and_grad(SCORED[name], scores, rewards)
      assert np.isfinite(value) and np.isfinite(grad).all()


def test_policy_gradient_is_finite_at_extremes():
  loss = functools.partial(losses.policy_gradient, tau=0.1)
  for scale in (0, 1e4, -1e4):
    value, grad = value_and_grad(loss, [scale, -scale], 1)
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_info_nca_of_a_pair_is_dpo():
  rng = np.random.default_rng(1)
  for rewards, p in (([1, 0], 1), ([0, 1], 0), ([2, 2], 0.5)):
    pair = rng.normal(size=2)
    one = value_and_grad(
      functools.partial(losses.info_nca, beta=0.4, alpha=0), pair, rewards
    )
    other = value_and_grad(functools.partial(losses.dpo, beta=0.4), pair, p)
    np.testing.assert_allclose(one[0], other[0], rtol=1e-6)
    np.testing.assert_allclose(one[1], other[1], atol=1e-7)


def test_nca_of_a_pair_is_the_pair_form():
  def pair_form(scores, _):
    chosen, rejected = 0.4 * scores[:, 0], 0.4 * scores[:, 1]
    return (
      -jax.nn.log_sigmoid(chosen)
      - 0.5 * jax.nn.log_sigmoid(-chosen)
      - 0.5 * jax.nn.log_sigmoid(-rejected)
    )

  pair = [0.8, -1.3]
  one = value_and_grad(
    functools.partial(losses.nca, beta=0.4, alpha=0), pair, [1, 0]
  )
  other = value_and_grad(pair_form, pair, [1, 0])
  np.testing.assert_allclose(one[0], other[0], rtol=1e-6)
  np.testing.assert_allclose(one[1], other[1], atol=1e-7)


@pytest.mark.parametrize('name', CONTRASTIVE)
def test_masked_completions_are_left_out(name):
  loss = CONTRASTIVE[name]
  scores, rewards = np.random.default_rng(2).normal(size=(2, 3))
  value, grad = value_and_grad(loss, scores, rewards)
  rewards = np.append(rewards, np.nan)[[0, 3, 1, 2]]
  for hidden in (0, 50, -np.inf, np.nan):
    masked = functools.partial(
      loss, completion_mask=jnp.array([[True, False, True, True]])
    )
    wide = np.append(scores, hidden)[[0, 3, 1, 2]]
    got = value_and_grad(masked, wide, rewards)
    np.testing.assert_allclose(got[0], value, rtol=1e-6)
    np.testing.assert_allclose(got[1][[0, 2, 3]], grad, atol=1e-6)
    assert got[1][1] == 0


def test_the_baseline_takes_out_what_all_rewards_share():
  loss = functools.partial(losses.reinforce, tau=0.3)
  scores, rewards = np.random.default_rng(3).normal(size=(2, 3))
  for k in (1, 2, 3):
    _, grad = value_and_grad(loss, scores[:k], rewards[:k])
    _, shifted = value_and_grad(loss, scores[:k], rewards[:k] + 5)
    np.testing.assert_allclose(shifted - grad, -5 * (k == 1), atol=1e-5)


def test_labels():
  preference = jnp.array([0, 0.2, 0.5, 0.7, 1])
  np.testing.assert_array_equal(
    losses.hard_label(preference), [0, 0, 0.5, 1, 1]
  )
  drawn = losses.sampled_label(jnp.full(10_000, 0.7), jax.random.key(0))
  assert set(np.unique(drawn)) == {0, 1}
  assert abs(drawn.mean() - 0.7) < 4 * np.sqrt(0.21 / 10_000)


@pytest.mark.parametrize('name', SCORED)
def test_a_reward_that_is_not_a_number_is_not_hidden(name):
  for bad in (np.nan, np.inf):
    value, grad = value_and_grad(SCORED[name], [0.1, 0.2], [bad, 1])
    assert np.isnan(value) and not np.isfinite(grad).any()


@pytest.mark.parametrize('label', [losses.hard_label, losses.sampled_label])
def test_a_preference_that_is_not_a_number_is_not_hidden(label):
  assert np.isnan(label(jnp.array([jnp.nan]), jax.random.key(0)))


@pytest.mark.parametrize('name', PAIRWISE)
def test_a_soft_label_is_the_mean_over_sampled_ones(name):
  soft = value_and_grad(PAIRWISE[name], [0.4, -0.9], 0.7)
  won = value_and_grad(PAIRWISE[name], [0.4, -0.9], 1)
  lost = value_and_grad(PAIRWISE[name], [0.4, -0.9], 0)
  for i in range(2):
    np.testing.assert_allclose(
      soft[i], 0.7 * won[i] + 0.3 * lost[i], atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize('wrong', [0, -1, float('nan'), float('inf')])
@pytest.mark.parametrize(
  'loss, name',
  [
    (losses.ipo, 'tau'),
    (losses.dpo, 'beta'),
    (losses.slic, 'beta'),
    (losses.policy_gradient, 'tau'),
  ],
)
def test_wrong_hyperparameters_of_pairwise_losses(loss, name, wrong):
  with pytest.raises(
    ValueError, match=f'{loss.__name__}.{name} = .* must be positive'
  ):
    loss(jnp.zeros((1, 2)), jnp.zeros(1), **{name: wrong})


@pytest.mark.parametrize(
  'loss, hyper, match',
  [
    (losses.reinforce, {'tau': 0}, 'reinforce.tau = 0 must be'),
    (losses.nca, {'beta': 0, 'alpha': 1}, 'nca.beta = 0 must be'),
    (losses.nca, {'beta': 1, 'alpha': -1}, 'nca.alpha = -1 must not'),
    (losses.info_nca, {'beta': -1, 'alpha': 1}, 'info_nca.beta = -1 must be'),
    (losses.info_nca, {'beta': 1, 'alpha': -1}, 'info_nca.alpha = -1 must not'),
  ],
)
def test_wrong_hyperparameters_of_scored_losses(loss, hyper, match):
  with pytest.raises(ValueError, match=match):
    loss(jnp.zeros((1, 2)), jnp.zeros((1, 2)), **hyper)


def test_a_negative_z_loss_is_refused():
  with pytest.raises(ValueError, match='z_loss'):
    losses.cross_entropy(jnp.zeros(1), jnp.zeros(1), z_loss=-1)


@pytest.mark.parametrize('name', PAIRWISE)
def test_pairwise_losses_refuse_other_feedback(name):
  with pytest.raises(ValueError, match=r'a preference of shape \(2,\)'):
    PAIRWISE[name](jnp.zeros((2, 2)), jnp.zeros((2, 2)))
  for k in (1, 3):
    with pytest.raises(ValueError, match='compares 2 completions'):
      PAIRWISE[name](jnp.zeros((2, k)), jnp.zeros(2))


@pytest.mark.parametrize('name', SCORED)
def test_scored_losses_refuse_other_feedback(name):
  with pytest.raises(ValueError, match=r'rewards of shape \(2, 2\)'):
    SCORED[name](jnp.zeros((2, 2)), jnp.zeros(2))


@pytest.mark.parametrize('name', CONTRASTIVE)
def test_contrastive_losses_refuse_one_completion(name):
  with pytest.raises(ValueError, match='at least 2 completions'):
    CONTRASTIVE[name](jnp.zeros((2, 1)), jnp.zeros((2, 1)))
