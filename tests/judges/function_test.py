"""Judges that are a Python function of texts."""

import jax.numpy as jnp
import numpy as np
import pytest

from ipo_md import judges

PROMPTS = ['one', 'two', 'three']
TEXTS = [['a', 'bb', 'ccc'], ['dddd', '', 'e'], ['f', 'gg', 'gg']]
GIVEN = judges.Samples(
  tokens=None, vocabulary=None, prompts=PROMPTS, texts=TEXTS
)


def lengths(prompts, completions):
  del prompts
  return [[len(text) / 2 for text in row] for row in completions]


def shorter(prompts, completions):
  """Prefers the shorter one, and the one that is shown first by a little."""
  del prompts
  return [0.5 + (len(b) - len(a)) / 10 + 0.05 for a, b in completions]


def test_rewards_are_those_of_the_function():
  judge = judges.RewardFunction(lengths)
  expected = np.array([[0.5, 1, 1.5], [2, 0, 0.5], [0.5, 1, 1]])
  np.testing.assert_array_equal(judge.rewards(GIVEN), expected)
  found = judges.in_both_orders(judge, GIVEN, [(0, 1), (2, 1)])
  margin = expected[:, [0, 2]] - expected[:, [1, 1]]
  np.testing.assert_allclose(found[..., 0], 1 / (1 + np.exp(-margin)))
  np.testing.assert_array_equal(found[..., 0], found[..., 1])
  np.testing.assert_array_equal(judges.best_of(judge, GIVEN), [2, 0, 1])


@pytest.mark.parametrize('kind', [np.array, jnp.array, tuple, list])
def test_lists_and_arrays_are_accepted(kind):
  judge = judges.RewardFunction(lambda x, y: kind(lengths(x, y)))
  np.testing.assert_array_equal(judge.rewards(GIVEN)[0], [0.5, 1, 1.5])


def test_a_preference_function_sees_both_orders():
  judge = judges.PreferenceFunction(shorter)
  found = judges.in_both_orders(judge, GIVEN, [(0, 1)])[:, 0]
  np.testing.assert_allclose(found[0], [0.65, 0.55])
  np.testing.assert_allclose(found[1], [0.15, 0.05])
  np.testing.assert_allclose(
    judges.preference(judge, GIVEN, [(0, 1)])[:, 0], [0.6, 0.1, 0.6]
  )
  np.testing.assert_array_equal(judges.best_of(judge, GIVEN), [0, 1, 0])


def test_a_function_cannot_change_the_samples():
  def clear(prompts, completions):
    found = lengths(prompts, completions)
    for row in completions:
      row.clear()
    return found

  judge = judges.RewardFunction(clear)
  np.testing.assert_array_equal(judge.rewards(GIVEN), judge.rewards(GIVEN))
  assert TEXTS[0] == ['a', 'bb', 'ccc']


def test_feedback_has_what_a_judge_gives():
  preference, rewards = judges.feedback(judges.RewardFunction(lengths), GIVEN)
  assert preference is None and rewards.shape == (3, 3)
  two = GIVEN.__class__(
    tokens=None,
    vocabulary=None,
    prompts=PROMPTS,
    texts=[row[:2] for row in TEXTS],
  )
  preference, rewards = judges.feedback(judges.RewardFunction(lengths), two)
  np.testing.assert_allclose(
    preference, 1 / (1 + np.exp(rewards[:, 1] - rewards[:, 0]))
  )
  preference, rewards = judges.feedback(judges.PreferenceFunction(shorter), two)
  np.testing.assert_allclose(preference, [0.6, 0.1, 0.6])
  assert rewards is None
  with pytest.raises(ValueError, match='MIXTURE_COEFS has 3.*no rewards'):
    judges.feedback(judges.PreferenceFunction(shorter), GIVEN)


def fails_at(word, error):
  def function(prompts, completions):
    if word in prompts:
      raise error
    return lengths(prompts, completions)

  return function


@pytest.mark.parametrize(
  ('function', 'message'),
  [
    (lambda x, y: [[0.0] * 3] * 2, r'\(3, 3\), one value for.*\(2, 3\)'),
    (lambda x, y: [0.0] * 3, r'shape \(3,\)'),
    (lambda x, y: np.zeros((3, 3, 1)), r'shape \(3, 3, 1\)'),
    (lambda x, y: 1.0, r'shape \(\)'),
    (lambda x, y: [[1], [2, 3], [4]], r'returned \[\[1\], \[2, 3\]'),
    (lambda x, y: [['good'] * 3] * 3, "returned .*'good'"),
    (lambda x, y: None, r'shape \(\)'),
    (lambda x, y: {'a': 1}, 'returned {'),
    (
      lambda x, y: [[0.0] * 3, [0.0, float('nan'), 0.0], [0.0] * 3],
      r"returned nan at \[1, 1\].*'two'.*'dddd', '', 'e'",
    ),
    (lambda x, y: [[float('-inf')] * 3] * 3, r"-inf at \[0, 0\].*'one'"),
    (lambda x, y: [[None] * 3] * 3, r"nan at \[0, 0\].*'one'"),
    (
      fails_at('two', KeyError('score')),
      r"raised KeyError \('score'; .*function_test.py:\d+\) at prompt 1 of 3, "
      "'two', with the completions 'dddd', '', 'e'",
    ),
    (fails_at('three', ValueError('a\nb')), r"\(a b; .* at prompt 2.*'three'"),
    (
      lambda x, y: 1 / 0 if len(x) > 1 else [[0.0] * 3],
      "ZeroDivisionError.*3 prompts together.*'one'.*none of them alone",
    ),
    (lambda x: x, 'TypeError'),
  ],
)
def test_errors_name_the_prompt_and_the_value(function, message):
  with pytest.raises(ValueError, match=message) as raised:
    judges.RewardFunction(function).rewards(GIVEN)
  assert str(raised.value).startswith('FUNCTION ')
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize(
  ('function', 'message'),
  [
    (lambda x, y: [[0.5, 0.5]] * 3, r'\[N\] preferences of shape \(3,\)'),
    (lambda x, y: [0.5, 1.5, 0.5], r"1.5 at \[1\].*between 0 and 1.*'two'"),
    (lambda x, y: [0.5, -0.1, 0.5], r'-0.1 at \[1\]'),
    (lambda x, y: [0.5, 0.5, float('nan')], r"nan at \[2\].*'three'"),
  ],
)
def test_preferences_are_probabilities(function, message):
  judge = judges.PreferenceFunction(function)
  with pytest.raises(ValueError, match=message):
    judges.in_both_orders(judge, GIVEN, [(0, 1)])


def test_long_prompts_are_cut_in_errors():
  given = judges.Samples(
    tokens=None, vocabulary=None, prompts=['x' * 10_000], texts=[['y', 'z']]
  )
  with pytest.raises(
    ValueError, match=r"prompt 0 of 1, 'xxx.*\.\.\."
  ) as raised:
    judges.RewardFunction(fails_at('x' * 10_000, ValueError('no'))).rewards(
      given
    )
  assert len(str(raised.value)) < 500
