"""Tests of the probability of the answer '1'."""

import functools
import math

import numpy as np
import pytest

from ipo_md.judges import answer_probability
from ipo_md.judges import chat_response

of = answer_probability.probability_of_first
read = functools.partial(chat_response.Answer, usage=(0, 0))


@pytest.mark.parametrize(
  ('text', 'p'),
  [
    ('1', 1),
    (' 2.', 0),
    ('Summary 2', 0),
    ('2 is better than 1', 0),
    ('', None),
    ('Neither of the 2 summaries is good.', None),
  ],
)
def test_probability_from_the_text_of_an_answer(text, p):
  assert of(read(text, None)) == p


def test_a_refusal_is_neither():
  assert of(read('1', None, refusal='I cannot compare 1 and 2.')) is None


def test_probability_from_log_probabilities():
  tokens = [
    ('Summary', {'Summary': -0.1, '1': -1.0}),
    (' 1', {' 1': math.log(0.2), '1': math.log(0.1), '2': math.log(0.1)}),
  ]
  np.testing.assert_allclose(of(read('Summary 1', tokens)), 0.75)
  alone = [('2', {'2': -9999.0, 'The': -0.1, '1': -math.inf})]
  assert of(read('2', alone)) == 0
  assert of(read('1', [('one', {'one': 0.0})])) == 1
  wide = [('２', {'２': math.log(0.3), '1': math.log(0.1)})]
  np.testing.assert_allclose(of(read('２', wide)), 0.25)


THOUGHT = [
  ('<think>', {'<think>': 0.0}),
  ('1', {'1': math.log(0.9), '2': math.log(0.1)}),
  ('</think>', {'</think>': 0.0}),
  ('\n', {'\n': 0.0}),
  ('1', {'1': math.log(0.6), '2': math.log(0.4)}),
]


def test_the_tokens_of_a_thought_are_passed_over():
  joined = ''.join(token for token, _ in THOUGHT)
  np.testing.assert_allclose(of(read(joined, THOUGHT)), 0.6)
  # Some servers leave the thought out of the text, but not of the tokens.
  np.testing.assert_allclose(of(read('1', THOUGHT)), 0.6)


def test_the_last_mention_is_a_stated_answer():
  tokens = [
    ('1', {'1': math.log(0.9), '2': math.log(0.1)}),
    (' is short. Answer: ', {' is short. Answer: ': 0.0}),
    ('1', {'1': math.log(0.6), '2': math.log(0.4)}),
  ]
  text = ''.join(token for token, _ in tokens)
  np.testing.assert_allclose(of(read(text, tokens)), 0.6)


def test_a_comparison_that_names_the_other_first_has_no_token():
  tokens = [
    ('1', {'1': math.log(0.6), '2': math.log(0.4)}),
    (' is worse than ', {' is worse than ': 0.0}),
    ('2', {'2': math.log(0.6), '1': math.log(0.4)}),
  ]
  assert of(read('1 is worse than 2', tokens)) == 0
