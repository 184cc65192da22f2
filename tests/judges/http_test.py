"""Tests of the judge that asks a language model over HTTP."""

import functools
import math

import numpy as np
import pytest

from ipo_md.judges import chat_connection
from ipo_md.judges import http as http_judge
from ipo_md.judges import samples as samples_lib
from tests.judges import rater_server


def test_both_orders_by_log_probabilities_and_only_once(server, judge, capsys):
  cold = rater_server.judged(judge())
  np.testing.assert_allclose(cold, rater_server.expected(), atol=1e-12)
  assert set(server.asked.values()) == {1}
  assert len(server.asked) == 2 * (2 * 6 - 1)  # one pair is a tie
  path, authorization, body = server.requests[0]
  assert path == '/v1/chat/completions'
  assert authorization == f'Bearer {rater_server.KEY}'
  assert body['model'] == 'rater-7b'
  assert body['stream'] is False
  assert body['top_logprobs'] == 5
  assert server.busiest <= 4
  out = capsys.readouterr().out
  assert '22 questions to rater-7b, 22 of them new, about 2' in out
  assert '2,200 + 44 tokens, $0.00  22/22  took' in out
  np.testing.assert_array_equal(rater_server.judged(judge()), cold)
  assert '22 questions to rater-7b, 0 of them new' in capsys.readouterr().out
  assert sum(server.asked.values()) == 22
  # A request with other parameters is another question.
  rater_server.judged(judge(parameters={'max_tokens': 2}))
  assert sum(server.asked.values()) == 44


def test_the_text_decides_without_log_probabilities(server, judge):
  server.log_probs = False
  np.testing.assert_array_equal(
    rater_server.judged(judge()),
    np.where(
      rater_server.expected() == 0.5, 0.5, rater_server.expected() > 0.5
    ),
  )


def test_answers_that_are_neither_are_counted(server, judge, capsys):
  server.say = 'Neither'
  with pytest.raises(ValueError, match="22 of 22 .*'Neither'.*NEITHER = 'tie'"):
    rater_server.judged(judge())
  asked = sum(server.asked.values())
  found = rater_server.judged(judge(neither='tie'))
  assert sum(server.asked.values()) == asked == 22
  assert np.isnan(found).sum() == 22
  assert '22 neither 1 nor 2' in capsys.readouterr().out
  np.testing.assert_array_equal(samples_lib.mean_over_orders(found), 0.5)


@pytest.mark.parametrize(
  ('text', 'p'),
  [
    ('1', 1),
    (' 2.', 0),
    ('**1**', 1),
    ('Summary 2', 0),
    ('1\n\nBecause', 1),
    ('(2)', 0),
    ('', None),
    ('12', None),
    ('1.5', None),
    ('-1', None),
    ('v1', None),
    ('Neither 1 nor 2', None),
    ('both', None),
  ],
)
def test_probability_from_the_text_of_an_answer(text, p):
  assert (
    http_judge.probability_of_first(chat_connection.Answer(text, None, (0, 0)))
    == p
  )


def test_probability_from_log_probabilities():
  read = functools.partial(chat_connection.Answer, usage=(0, 0))
  of = http_judge.probability_of_first
  tokens = [
    ('Summary', {'Summary': -0.1, '1': -1.0}),
    (' 1', {' 1': math.log(0.2), '1': math.log(0.1), '2': math.log(0.1)}),
  ]
  np.testing.assert_allclose(of(read('Summary 1', tokens)), 0.75)
  alone = [('2', {'2': -9999.0, 'The': -0.1, '1': -math.inf})]
  assert of(read('2', alone)) == 0
  assert of(read('1', [('one', {'one': 0.0})])) == 1


@pytest.mark.parametrize(
  'prompt', ['{text} {first}', '{text}{first}{second}{x}']
)
def test_a_prompt_with_other_fields_raises(prompt):
  with pytest.raises(ValueError, match='RATER_PROMPT has the fields'):
    http_judge.HttpJudge(endpoint=None, prompt=prompt)
