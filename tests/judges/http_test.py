"""Tests of the judge that asks a language model over HTTP."""

import numpy as np
import pytest

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
  found = rater_server.judged(judge(neither='tie'))
  assert sum(server.asked.values()) == 22
  assert np.isnan(found).sum() == 22
  out = capsys.readouterr().out
  assert '22 neither 1 nor 2' in out
  assert out.count('4 of 4 answers of rater-7b are neither 1 nor 2 and') == 1
  np.testing.assert_array_equal(samples_lib.mean_over_orders(found), 0.5)
  # All of them are stored.
  with pytest.raises(
    ValueError, match="of rater-7b.*'Neither'.*NEITHER = 'tie"
  ):
    rater_server.judged(judge())
  assert sum(server.asked.values()) == 22


def test_a_few_questions_are_asked_before_all_are_paid(server, judge):
  server.say = 'Neither'
  with pytest.raises(ValueError, match=r'neither.*before the other 1[4-8]'):
    rater_server.judged(judge(concurrency=16))
  assert sum(server.asked.values()) <= 8


def test_a_share_of_unreadable_answers_stops_the_questions(server, judge):
  """The first eight answers are readable, and none of the others is."""
  samples = many_samples(100)
  server.say = lambda number: '1' if number < 8 else 'I cannot say.'
  with pytest.raises(ValueError, match=r'4 of 12 .* before the other 188'):
    list(judge(concurrency=1)(samples, [(0, 1)]))
  assert sum(server.asked.values()) < 20


def test_few_unreadable_answers_stop_the_run_at_its_end(server, judge):
  server.say = lambda number: 'Not 1' if number == 5 else '1'
  with pytest.raises(ValueError, match="1 of 22 .*'Not 1'.*All whole"):
    rater_server.judged(judge(concurrency=1))
  assert sum(server.asked.values()) == 22


def test_answers_that_are_cut_off_are_asked_again(server, judge):
  server.say = '<think>Summary 1 is'
  server.finish_reason = 'length'
  with pytest.raises(ValueError, match="finish_reason 'length'.*max_tokens"):
    rater_server.judged(judge())
  server.say, server.finish_reason = None, 'stop'
  np.testing.assert_allclose(
    rater_server.judged(judge()), rater_server.expected()
  )


def test_an_answer_that_is_said_before_the_cut_is_stored(server, judge):
  server.say, server.finish_reason = '1\n\nBecause summary 1', 'length'
  server.log_probs = False
  first = rater_server.judged(judge())
  np.testing.assert_array_equal(rater_server.judged(judge()), first)
  assert sum(server.asked.values()) == 22


def many_samples(count):
  return samples_lib.Samples(
    tokens=None,
    vocabulary=None,
    prompts=[f'text {n}' for n in range(count)],
    texts=[['a', 'bb']] * count,
  )


@pytest.mark.parametrize(
  'prompt', ['{text} {first}', '{text}{first}{second}{x}']
)
def test_a_prompt_with_other_fields_raises(prompt):
  with pytest.raises(ValueError, match='RATER_PROMPT has the fields'):
    http_judge.HttpJudge(endpoint=None, prompt=prompt)
