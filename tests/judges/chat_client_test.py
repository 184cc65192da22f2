"""Tests of the client: faults of the server, the API key and the cache."""

import re
import sqlite3
import time

import numpy as np
import pytest

from tests.judges import rater_server

pytestmark = pytest.mark.slow

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
  'overloaded without a time': 529,
  'a page': b'<!DOCTYPE html>\n<html><body>Bad gateway</body></html>',
  'nothing': b'',
  'cut json': b'{"choices": [{"message": {"content": "1"',
  'an error': b'{"error": {"message": "try again", "code": 502}}',
  'an error in words': b'{"error": "upstream failed"}',
  'an error in a list': b'[{"error": {"code": 503, "message": "busy"}}]',
  'an error object': b'{"object": "error", "message": "oom", "code": 50001}',
  'an error of the choice': b'{"choices": [{"error": {"code": 429}, '
  b'"message": {"content": ""}}]}',
  'a failed answer': b'{"choices": [{"message": {"content": ""}, '
  b'"finish_reason": "error"}]}',
  'half an answer': b'{"choices": [{"message": {"content": "2"}, '
  b'"finish_reason": "error"}]}',
  'an aborted answer': b'{"choices": [{"message": {"content": "2"}, '
  b'"finish_reason": "abort"}]}',
  'no text': b'{"choices": [{"message": {"content": null}, '
  b'"finish_reason": "stop"}]}',
  'a blank': b'{"choices": [{"message": {"content": " \\n"}}]}',
  'no parts': b'{"choices": [{"message": {"content": []}}]}',
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


QUOTA = b'{"error": {"message": "You exceeded your current quota.", '
QUOTA += b'"type": "insufficient_quota", "code": "insufficient_quota"}}'
FINAL = {
  'a quota': (429, QUOTA),
  'a quota with the status 200': (200, QUOTA),
  'a bill': (429, b'{"error": {"code": "billing_hard_limit_reached"}}'),
  'another quota': (
    429,
    b'{"error": {"type": "exceeded_current_quota_error"}}',
  ),
  'a balance': (503, b'{"error": {"code": "insufficient_user_balance"}}'),
  'a closed account': (429, b'{"error": {"code": "account_deactivated"}}'),
  'a key': (200, b'{"error": {"message": "no such key", "code": 401}}'),
  'a payment': (402, b'{"error": {"message": "Insufficient credits"}}'),
  'a region': (403, b'<html>Forbidden</html>'),
}


@pytest.mark.parametrize('name', FINAL)
@pytest.mark.parametrize('after', [0, 5])
def test_what_no_waiting_cures_ends_the_run_at_once(server, judge, name, after):
  """Also in the middle of a set, whose answers are kept."""
  server.say = None
  server.faults = lambda prompt: (
    [FINAL[name]] * 99 if sum(server.asked.values()) >= after else []
  )
  start = time.monotonic()
  with pytest.raises(
    ValueError, match='API_KEY_VARIABLE.*RATER_CACHE'
  ) as error:
    rater_server.judged(judge(concurrency=1, first_delay=30))
  assert time.monotonic() - start < 5
  assert '\n' not in str(error.value)
  server.faults = lambda prompt: []
  rater_server.judged(judge())
  assert set(server.asked.values()) == {1}


def test_the_first_failure_says_what_is_waited_for(server, judge, capsys):
  server.faults = lambda p: [(429, '0.2'), 500] if 'text 4' in p else []
  rater_server.judged(judge())
  out = capsys.readouterr().out
  (line,) = re.findall('rater-7b: 1 request failed so far.*', out)
  assert (
    'waits 0.2 s as the server asks and tries again, for at most 15' in line
  )
  assert 'status 429' in line
  assert rater_server.KEY not in out
  # Other failures count against ATTEMPTS.
  server.given.clear()
  server.faults = lambda prompt: [500]
  rater_server.judged(judge(model='other'))
  (line,) = re.findall('other: 1 request failed.*', capsys.readouterr().out)
  assert re.search(r'waits 0.0 s and tries again, in up to 6 attempts', line)


def test_an_answer_that_stays_empty_is_neither_and_not_stored(server, judge):
  empty = FAULTS['no text']
  server.faults = lambda p: (
    [empty] * 99 if p.startswith('Which? text 4') else []
  )
  found = rater_server.judged(judge(attempts=2, neither='tie'))
  assert np.isnan(found[4]).all()
  assert np.isnan(found).sum() == 4
  assert max(server.given.values()) == 2
  with pytest.raises(ValueError, match=r"4 of 22 .*'' \(an empty text\)"):
    rater_server.judged(judge(attempts=2))
  server.faults = lambda prompt: []
  np.testing.assert_allclose(
    rater_server.judged(judge()), rater_server.expected()
  )
  assert set(server.asked.values()) == {1}


def test_a_failure_that_an_earlier_version_stored_is_asked_again(
  server, judge, tmp_path
):
  rater_server.judged(judge())
  with sqlite3.connect(tmp_path / 'cache' / 'answers.sqlite') as file:
    file.execute('UPDATE answers SET answer = ?', ('["", null, [9, 0]]',))
  np.testing.assert_allclose(
    rater_server.judged(judge()), rater_server.expected()
  )
  assert set(server.asked.values()) == {2}


def test_a_refusal_of_the_model_is_stored_as_neither(server, judge):
  refused = b'{"choices": [{"message": {"content": null, "refusal": '
  refused += b'"I will not judge this."}, "finish_reason": "stop"}]}'
  server.faults = lambda prompt: [refused] * 99
  found = rater_server.judged(judge(neither='tie'))
  assert np.isnan(found).sum() == 22
  server.faults = lambda prompt: []
  with pytest.raises(ValueError, match="'I will not judge this.'"):
    rater_server.judged(judge())
  assert not server.asked


def test_a_page_of_html_names_the_address(server, judge):
  server.faults = lambda prompt: [FAULTS['a page']] * 99
  with pytest.raises(RuntimeError, match='is BASE_URL right'):
    rater_server.judged(judge(attempts=2))


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
