"""The judge over HTTP against a server in this process, and its faults."""

import collections
import functools
import http.server
import json
import math
import re
import threading
import time

import numpy as np
import pytest

from ipo_md.judges import answers
from ipo_md.judges import chat_client
from ipo_md.judges import http as http_judge
from ipo_md.judges import samples as samples_lib

KEY = 'sk-Secret/+=0123456789'
PROMPT = 'Which? {text} [1: {first}] [2: {second}] Answer:'
LOG_PROBS = {'logprobs': True, 'top_logprobs': 5, 'max_tokens': 4}


class Server(http.server.ThreadingHTTPServer):
  """Prefers the longer completion; `faults` go before an answer.

  faults: prompt -> the list of what goes wrong with it, in order.
  """

  daemon_threads = True

  def __init__(self):
    super().__init__(('localhost', 0), Handler)
    self.base_url = f'http://localhost:{self.server_port}/v1'
    self.asked = collections.Counter()  # answers to each prompt
    self.times = []  # of requests
    self.requests = []
    self.faults = lambda prompt: []
    self.say = None  # a text in place of 1 or 2
    self.given = collections.defaultdict(int)
    self.log_probs = True
    self.busy = self.busiest = 0
    self.lock = threading.Lock()

  def handle_error(self, request, client_address):
    pass  # the client went away


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def log_message(self, *args):
    pass

  def send(self, status, content, headers=()):
    if not isinstance(content, bytes):
      content = json.dumps(content).encode()
    self.send_response(status)
    self.send_header('Content-Length', str(len(content)))
    for name, value in headers:
      self.send_header(name, value)
    self.end_headers()
    self.wfile.write(content)

  def do_POST(self):
    server = self.server
    with server.lock:
      server.busy += 1
      server.busiest = max(server.busy, server.busiest)
    try:
      self.answer(server)
    finally:
      with server.lock:
        server.busy -= 1

  def answer(self, server):
    length = int(self.headers['Content-Length'])
    body = json.loads(self.rfile.read(length))
    prompt = body['messages'][0]['content']
    with server.lock:
      server.times.append(time.monotonic())
      server.requests.append((self.path, self.headers['Authorization'], body))
      faults = server.faults(prompt)
      number = server.given[prompt]
      server.given[prompt] += 1
    if number < len(faults):
      return self.fail(faults[number])
    first, second = re.search(r'\[1: (.*)\] \[2: (.*)\]', prompt, re.S).groups()
    p = 1 / (1 + math.exp(0.3 * (len(second) - len(first)) - 0.1))
    text = server.say or (' 1' if p > 0.5 else ' 2')
    choice = {'message': {'role': 'assistant', 'content': text}}
    if server.log_probs and body.get('logprobs'):
      top = [('1', p * 0.6), (' 1', p * 0.3), (' 2', (1 - p) * 0.9), ('A', 0.1)]
      listed = [{'token': t, 'logprob': math.log(q)} for t, q in top]
      own = {'token': text, 'logprob': math.log(0.9 * max(p, 1 - p) / 1)}
      own = next((t for t in listed if t['token'] == text), own)
      choice['logprobs'] = {'content': [own | {'top_logprobs': listed}]}
    with server.lock:
      server.asked[prompt] += 1
    usage = {'prompt_tokens': 100, 'completion_tokens': 2}
    return self.send(200, {'choices': [choice], 'usage': usage})

  def fail(self, fault):
    echo = {'error': {'message': f'bad {self.headers["Authorization"]}'}}
    if fault == 'slow':
      time.sleep(4)
      self.close_connection = True
    elif fault == 'drops':
      self.send_response(200)
      self.send_header('Content-Length', '100000')
      self.end_headers()
      for _ in range(40):
        time.sleep(0.1)
        self.wfile.write(b' ')
    elif fault == 'cut':
      self.send_response(200)
      self.send_header('Content-Length', '1000')
      self.end_headers()
      self.wfile.write(b'{"choices": ')
      self.close_connection = True
    elif fault == 'hang up':
      self.close_connection = True
    elif isinstance(fault, bytes):
      self.send(200, fault)
    elif isinstance(fault, tuple):
      status, wait = fault
      self.send(status, echo, [('Retry-After', wait)])
    else:
      self.send(fault, echo)


@pytest.fixture(name='server')
def server_fixture():
  with Server() as server:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()


@pytest.fixture(name='judge')
def judge_fixture(server, tmp_path, monkeypatch):
  """Makes a judge of the server; changes are of either class."""
  monkeypatch.setenv('RATER_KEY', f'{KEY}\n')

  def make(parameters=LOG_PROBS, neither='error', **changes):
    endpoint = chat_client.Endpoint(
      **{
        'base_url': server.base_url,
        'model': 'rater-7b',
        'api_key_variable': 'RATER_KEY',
        'parameters': parameters,
        'cache': str(tmp_path / 'kept' / 'answers.sqlite'),
        'concurrency': 4,
        'timeout': 20,
        'first_delay': 0.02,
      }
      | changes
    )
    return http_judge.HttpJudge(
      endpoint=endpoint, prompt=PROMPT, neither=neither, prices=(2.0, 8.0)
    )

  return make


def samples():
  """Three completions of each text; of text 2, two are the same."""
  texts = [['a' * n, 'b' * (5 - n), 'c{text}\n"<b>'] for n in range(6)]
  texts[2][1] = texts[2][0]
  return samples_lib.Samples(
    tokens=None,
    vocabulary=None,
    prompts=[f'text {n} {{first}}' for n in range(6)],
    texts=texts,
  )


PAIRS = [(0, 1), (2, 0)]


def judged(judge):
  return np.stack(list(judge(samples(), PAIRS)), axis=1)


def expected():
  """By hand: [N, J, 2]."""
  p = lambda a, b: 1 / (1 + math.exp(0.3 * (len(b) - len(a)) - 0.1))
  return np.array(
    [
      [
        (p(row[i], row[k]), 1 - p(row[k], row[i]))
        if row[i] != row[k]
        else (0.5, 0.5)
        for i, k in PAIRS
      ]
      for row in samples().texts
    ]
  )


def test_both_orders_by_log_probabilities_and_only_once(server, judge, capsys):
  cold = judged(judge())
  np.testing.assert_allclose(cold, expected(), atol=1e-12)
  assert set(server.asked.values()) == {1}
  assert len(server.asked) == 2 * (2 * 6 - 1)  # but for the pair of one text
  path, authorization, body = server.requests[0]
  assert path == '/v1/chat/completions'
  assert authorization == f'Bearer {KEY}'
  assert body['model'] == 'rater-7b'
  assert body['stream'] is False
  assert body['top_logprobs'] == 5
  assert server.busiest <= 4
  out = capsys.readouterr().out
  assert '22 questions to rater-7b, 22 of them new, about 2' in out
  assert '2,200 + 44 tokens, $0.00  22/22  took' in out
  np.testing.assert_array_equal(judged(judge()), cold)
  assert '22 questions to rater-7b, 0 of them new' in capsys.readouterr().out
  assert sum(server.asked.values()) == 22
  # Other parameters are another question.
  judged(judge(parameters={'max_tokens': 2}))
  assert sum(server.asked.values()) == 44


def test_text_where_there_are_no_log_probabilities(server, judge):
  server.log_probs = False
  np.testing.assert_array_equal(
    judged(judge()), np.where(expected() == 0.5, 0.5, expected() > 0.5)
  )


FAULTS = {
  'busy': (429, '0.1'),
  'busy without a time': 429,
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


def test_every_fault_is_survived(server, judge, capsys):
  faults = list(FAULTS.values())
  server.faults = lambda prompt: [
    faults[hash(prompt) % len(faults)],
    faults[hash(prompt) // 99 % len(faults)],
  ]
  found = judged(judge(concurrency=16, timeout=3))
  np.testing.assert_allclose(found, expected(), atol=1e-12)
  assert set(server.asked.values()) == {1}
  (failed,) = re.findall(r'(\d+) failed attempts', capsys.readouterr().out)
  assert int(failed) >= 44
  server.faults = lambda prompt: ['slow'] * 9
  np.testing.assert_array_equal(judged(judge()), found)


@pytest.mark.parametrize('name', FAULTS)
def test_each_fault(server, judge, name):
  server.faults = lambda prompt: [FAULTS[name]]
  found = list(judge(concurrency=16, timeout=3)(samples(), PAIRS[:1]))
  np.testing.assert_allclose(found[0], expected()[:, 0])
  assert min(server.given.values()) == 2


def test_retry_after_holds_for_all_questions(server, judge):
  begun = []

  def faults(prompt):
    begun.append(prompt)
    return [(429, '0.7')] if prompt == begun[0] else []

  server.faults = faults
  judged(judge(concurrency=4, first_delay=0.01))
  waited = np.array(server.times) - server.times[0]
  # Those that were under way already, but none of the others.
  assert np.sum(waited < 0.6) <= 8
  assert len(waited) == 23


def test_being_busy_is_no_attempt(server, judge):
  server.faults = lambda prompt: [(429, '0.01')] * 8
  np.testing.assert_allclose(judged(judge(attempts=1)), expected())


def test_what_came_before_a_failure_is_kept(server, judge):
  server.faults = lambda p: [500] * 99 if 'text 4' in p else []
  with pytest.raises(RuntimeError, match='500.*are kept') as error:
    judged(judge(attempts=2, concurrency=2))
  assert KEY not in str(error.value)
  server.faults = lambda prompt: []
  np.testing.assert_allclose(judged(judge()), expected())
  assert set(server.asked.values()) == {1}


@pytest.mark.parametrize('status', [400, 401, 404, 302])
def test_a_refusal_is_final(server, judge, status):
  server.faults = lambda prompt: [status] * 9
  with pytest.raises(ValueError, match=f'status {status}.*API_KEY') as error:
    judged(judge(concurrency=1))
  assert KEY not in str(error.value)
  assert max(server.given.values()) == 1


def test_a_long_wait_ends_the_run(server, judge):
  server.faults = lambda prompt: [(429, '86400')]
  with pytest.raises(RuntimeError, match='wait for 86400 s.*run it again'):
    judged(judge())


def test_neither_is_counted(server, judge, capsys):
  server.say = 'Neither'
  with pytest.raises(ValueError, match="22 of 22 .*'Neither'.*NEITHER = 'tie'"):
    judged(judge())
  asked = sum(server.asked.values())
  found = judged(judge(neither='tie'))
  assert sum(server.asked.values()) == asked == 22
  assert np.isnan(found).sum() == 22
  assert '22 neither 1 nor 2' in capsys.readouterr().out
  np.testing.assert_array_equal(samples_lib.mean_over_orders(found), 0.5)


def test_the_key_is_nowhere(server, judge, tmp_path, capsys):
  server.faults = lambda prompt: [500]
  server.say = f'1 {KEY}'
  judged(judge())
  server.faults = lambda prompt: [500] * 99
  with pytest.raises(RuntimeError) as error:
    judged(judge(attempts=1, model='another'))
  assert '***' in str(error.value)
  files = list((tmp_path / 'kept').iterdir())
  assert files
  for text in (
    *(path.read_bytes().decode(errors='replace') for path in files),
    *capsys.readouterr(),
    str(error.value),
    repr(vars(judge())),
  ):
    assert KEY not in text


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
def test_answers_as_text(text, p):
  assert (
    http_judge.probability_of_first(answers.Answer(text, None, (0, 0))) == p
  )


def test_answers_as_log_probabilities():
  read = functools.partial(answers.Answer, usage=(0, 0))
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
  ('changes', 'message'),
  [
    ({'base_url': 'localhost:80'}, 'BASE_URL'),
    ({'base_url': f'https://me:{KEY}@host/v1'}, 'BASE_URL'),
    ({'base_url': f'https://host/v1?key={KEY}'}, 'BASE_URL'),
    ({'api_key_variable': KEY}, 'API_KEY_VARIABLE is the name'),
    ({'api_key_variable': 'NO_SUCH_KEY'}, 'API_KEY_VARIABLE'),
    ({'concurrency': 0}, 'CONCURRENCY = 0'),
    ({'cache': '/proc/no/file'}, 'RATER_CACHE /proc/no/file'),
    ({'neither': 'win'}, "NEITHER = 'win'"),
  ],
)
def test_bad_configurations(judge, changes, message):
  with pytest.raises(ValueError, match=message) as error:
    judge(**changes)
  assert KEY not in str(error.value)


@pytest.mark.parametrize(
  'prompt', ['{text} {first}', '{text}{first}{second}{x}']
)
def test_bad_prompts(prompt):
  with pytest.raises(ValueError, match='RATER_PROMPT has the fields'):
    http_judge.HttpJudge(endpoint=None, prompt=prompt)


def test_a_file_that_is_no_cache(judge, tmp_path):
  path = tmp_path / 'notes.txt'
  path.write_text('hello, these are notes ' * 99)
  with pytest.raises(ValueError, match='RATER_CACHE.*notes.txt'):
    judge(cache=str(path))
  assert path.read_text().startswith('hello')
