"""Tests of the likelihood of each completion beside the other."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ipo_md.algorithms import judge_training
from ipo_md.core import types
from ipo_md.judges import comparison
from ipo_md.sampling import sequences
from tests.judges import small_judges

pytestmark = pytest.mark.slow

MODEL, PARAMS = small_judges.MODEL, small_judges.PARAMS
VOCABULARY, EOS = small_judges.VOCABULARY, small_judges.EOS
pairs = small_judges.pairs
TEMPLATE = small_judges.template(144, '{text} summary {first}')
compiled = jax.jit(functools.partial(sequences.log_probs, MODEL))
judge = jax.jit(
  functools.partial(
    comparison.pairwise_likelihood, model=MODEL, template=TEMPLATE
  )
)


def of_k(k: int) -> types.Completions:
  """Returns k different completions of each prompt."""
  two = pairs().completions
  return two.replace(
    completions=jax.tree.map(
      lambda x: jnp.concatenate([x, x[::-1]], axis=1)[:, :k], two.completions
    )
  )


def log_prob_beside(completions, row: int, one: int, other: int) -> float:
  """Returns log p(y_one | x, y_other), with a prompt of Python's lists."""

  def real(tokens, *index):
    return np.asarray(tokens.ids[index])[np.asarray(tokens.mask[index])]

  prompt = [
    *(i for i in real(completions.prompts, row) if i != EOS),
    *VOCABULARY.encode('summary'),
    *(i for i in real(completions.completions, row, other) if i != EOS),
    EOS,
  ]
  given = types.Completions(
    prompts=padded([prompt], 160),
    completions=padded([[real(completions.completions, row, one)]], 32),
  )
  log_probs, _ = compiled(PARAMS, given)
  return float(log_probs.sum())


def padded(ids, width: int) -> types.Tokens:
  """Returns tokens with padding after them."""
  ids = np.asarray(ids, np.int32)
  after = [(0, 0)] * (ids.ndim - 1) + [(0, width - ids.shape[-1])]
  mask = np.pad(np.ones(ids.shape, bool), after)
  return types.Tokens(ids=jnp.array(np.pad(ids, after)), mask=jnp.array(mask))


@pytest.mark.parametrize('k', [2, 3])
def test_each_score_is_the_difference_of_two_log_probabilities(k):
  completions = of_k(k)
  judged = judge(PARAMS, completions)
  assert (judged.preference is not None) == (k == 2)
  for row in (0, 5):
    scores = np.zeros((k, k))
    for i, j in itertools.combinations(range(k), 2):
      scores[i, j] = log_prob_beside(completions, row, i, j)
      scores[i, j] -= log_prob_beside(completions, row, j, i)
      scores[j, i] = -scores[i, j]
    np.testing.assert_allclose(
      judged.matrix[row], 1 / (1 + np.exp(-scores)), atol=2e-5
    )
    np.testing.assert_allclose(judged.rewards[row], scores.mean(-1), atol=1e-4)


def test_swapping_a_pair_swaps_its_rewards_exactly():
  completions = pairs().completions
  judged = judge(PARAMS, completions)
  other = judge(PARAMS, small_judges.swapped(completions))
  np.testing.assert_array_equal(other.rewards, judged.rewards[:, ::-1])
  np.testing.assert_allclose(other.preference, 1 - judged.preference, atol=1e-6)
  np.testing.assert_array_equal(judged.matrix[:, 0, 1], judged.preference)
  assert np.std(judged.preference) > 1e-3


def test_padding_changes_nothing():
  wide = judge(PARAMS, pairs(36, 80).completions)
  np.testing.assert_allclose(
    wide.rewards, judge(PARAMS, pairs().completions).rewards, atol=1e-4
  )


def test_it_learns_a_cycle():
  rock = small_judges.game(np.array([[0.5, 1, 0], [0, 0.5, 1], [1, 0, 0.5]]))
  optimizer = optax.adam(0.03)
  step = jax.jit(
    functools.partial(
      judge_training.reward_step,
      model=MODEL,
      optimizer=optimizer,
      judge=functools.partial(
        comparison.pairwise_likelihood, template=TEMPLATE
      ),
    )
  )
  state = types.TrainState(jnp.int32(0), PARAMS, optimizer.init(PARAMS))
  for n in range(60):
    state, metrics = step(state, types.FrozenParams(), rock, jax.random.key(n))
  assert float(metrics['loss']) < 0.05
  assert float(metrics['accuracy']) == 1


def test_one_completion_cannot_be_compared():
  with pytest.raises(ValueError, match='K is 1: MIXTURE_COEFS'):
    jax.eval_shape(judge, PARAMS, of_k(1))
