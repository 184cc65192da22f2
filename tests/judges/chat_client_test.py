"""Tests of the client: faults of the server, the API key and the cache."""

import re

import numpy as np
import pytest

from tests.judges import rater_server

FAULTS = {
  'busy': (429, '0.1'),
  'busy without a time': 429,
  'busy for a senseless time': (429, 'soon'),
  'busy until a date': (429, 'Sun, 06 Nov 1994 08:49:37 GMT'),
  'error': 500,
  'overloaded': (503, '0'),
  'slow': 'slow',
  'drops': 'drops',
  'cut': 'cut',
  'hang up': 'hang up',
  'no json': b'<html>oops</html>',
  'no choice': b'{"choices": []}',
  'no message': b'{"choices": [{"message": null}]}',
  'not a log-probability': b'{"choices": [{"message": {"content": "1"}, '
  b'"logprobs": {"content": [{"token": "1", "logprob": NaN}]}}]}',
  'too deep': b'[' * 100_000,
  'endless usage': b'{"choices": [{"message": {"content": "1"}}], '
  b'"usage": {"prompt_tokens": Infinity}}',
}


def test_answers_arrive_despite_two_faults_per_question(server, judge, capsys):
  faults = list(FAULTS.values())
  server.faults = lambda prompt: [
    faults[hash(prompt) % len(faults)],
    faults[hash(prompt) // 99 % len(faults)],
  ]
  found = rater_server.judged(judge(concurrency=16, timeout=3))
  np.testing.assert_allclose(found, rater_server.expected(), atol=1e-12)
  assert set(server.asked.values()) == {1}
  (failed,) = re.findall(r'(\d+) failed attempts', capsys.readouterr().out)
  assert int(failed) >= 44
  server.faults = lambda prompt: ['slow'] * 9
  np.testing.assert_array_equal(rater_server.judged(judge()), found)


@pytest.mark.parametrize('name', FAULTS)
def test_answers_arrive_despite_each_fault(server, judge, name):
  server.faults = lambda prompt: [FAULTS[name]]
  found = list(
    judge(concurrency=16, timeout=3)(
      rater_server.samples(), rater_server.PAIRS[:1]
    )
  )
  np.testing.assert_allclose(found[0], rater_server.expected()[:, 0])
  assert min(server.given.values()) == 2


def test_retry_after_holds_for_all_questions(server, judge):
  begun = []

  def faults(prompt):
    begun.append(prompt)
    return [(429, '0.7')] if prompt == begun[0] else []

  server.faults = faults
  rater_server.judged(judge(concurrency=4, first_delay=0.01))
  waited = np.array(server.times) - server.times[0]
  # Only the questions that were in flight already reach the server earlier.
  assert np.sum(waited < 0.6) <= 8
  assert len(waited) == 23


def test_a_busy_answer_does_not_count_as_an_attempt(server, judge):
  server.faults = lambda prompt: [(429, '0.01')] * 8
  np.testing.assert_allclose(
    rater_server.judged(judge(attempts=1)), rater_server.expected()
  )


def test_answers_that_precede_a_failure_are_stored(server, judge):
  server.faults = lambda p: [500] * 99 if 'text 4' in p else []
  with pytest.raises(RuntimeError, match='500.*stored in RATER_CACHE') as error:
    rater_server.judged(judge(attempts=2, concurrency=2))
  assert rater_server.KEY not in str(error.value)
  server.faults = lambda prompt: []
  np.testing.assert_allclose(
    rater_server.judged(judge()), rater_server.expected()
  )
  assert set(server.asked.values()) == {1}


@pytest.mark.parametrize('status', [400, 401, 404, 302])
def test_a_refusal_is_final(server, judge, status):
  server.faults = lambda prompt: [status] * 9
  with pytest.raises(ValueError, match=f'status {status}.*API_KEY') as error:
    rater_server.judged(judge(concurrency=1))
  assert rater_server.KEY not in str(error.value)
  assert max(server.given.values()) == 1


def test_a_long_wait_ends_the_run(server, judge):
  server.faults = lambda prompt: [(429, '86400')]
  with pytest.raises(RuntimeError, match='wait for 86400 s.*start the run'):
    rater_server.judged(judge())


def test_the_key_appears_in_no_file_or_output(server, judge, tmp_path, capsys):
  server.faults = lambda prompt: [500]
  server.say = f'1 {rater_server.KEY}'
  rater_server.judged(judge())
  server.faults = lambda prompt: [500] * 99
  with pytest.raises(RuntimeError) as error:
    rater_server.judged(judge(attempts=1, model='another'))
  assert '***' in str(error.value)
  files = list((tmp_path / 'cache').iterdir())
  assert files
  for text in (
    *(path.read_bytes().decode(errors='replace') for path in files),
    *capsys.readouterr(),
    str(error.value),
    repr(vars(judge())),
  ):
    assert rater_server.KEY not in text


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'base_url': 'localhost:80'}, 'BASE_URL'),
    ({'base_url': f'https://me:{rater_server.KEY}@host/v1'}, 'BASE_URL'),
    ({'base_url': f'https://host/v1?key={rater_server.KEY}'}, 'BASE_URL'),
    ({'api_key_variable': rater_server.KEY}, 'API_KEY_VARIABLE is the name'),
    ({'api_key_variable': 'NO_SUCH_KEY'}, 'API_KEY_VARIABLE'),
    ({'concurrency': 0}, 'CONCURRENCY = 0'),
    ({'cache': '/proc/no/file'}, 'RATER_CACHE /proc/no/file'),
    ({'neither': 'win'}, "NEITHER = 'win'"),
  ],
)
def test_invalid_configurations_raise(judge, changes, message):
  with pytest.raises(ValueError, match=message) as error:
    judge(**changes)
  assert rater_server.KEY not in str(error.value)


def test_a_file_that_is_not_a_cache_is_left_alone(judge, tmp_path):
  path = tmp_path / 'notes.txt'
  path.write_text('hello, these are notes ' * 99)
  with pytest.raises(ValueError, match='RATER_CACHE.*notes.txt'):
    judge(cache=str(path))
  assert path.read_text().startswith('hello')
