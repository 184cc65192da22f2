"""A server that rates completions and injects faults, with test samples."""

import collections
import http.server
import json
import math
import re
import threading
import time

import numpy as np

from ipo_md.judges import samples as samples_lib

KEY = 'sk-Secret/+=0123456789'
PROMPT = 'Which? {text} [1: {first}] [2: {second}] Answer:'
LOG_PROBS = {'logprobs': True, 'top_logprobs': 5, 'max_tokens': 4}
PAIRS = [(0, 1), (2, 0)]


class Server(http.server.ThreadingHTTPServer):
  """Prefers the longer completion.

  Attributes:
    faults: Function from a prompt to the list of faults that precede its
      answer, in order.
    asked: Number of answers to each prompt.
    times: Time of each request.
    requests: Path, Authorization header and body of each request.
    say: Text of each answer, a function from the number of the answer to it,
      or None for 1 or 2.
    finish_reason: The finish_reason of each answer.
    given: Number of requests about each prompt.
    log_probs: Whether answers have log-probabilities.
    busiest: Highest number of requests at the same time.
  """

  daemon_threads = True

  def __init__(self):
    super().__init__(('localhost', 0), Handler)
    self.base_url = f'http://localhost:{self.server_port}/v1'
    self.asked = collections.Counter()
    self.times = []
    self.requests = []
    self.faults = lambda prompt: []
    self.say = None
    self.finish_reason = 'stop'
    self.given = collections.defaultdict(int)
    self.log_probs = True
    self.busy = self.busiest = 0
    self.lock = threading.Lock()

  def handle_error(self, request, client_address):
    pass  # The client closed the connection.


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
    say = server.say
    if callable(say):
      say = say(sum(server.asked.values()))
    text = say or (' 1' if p > 0.5 else ' 2')
    choice = {
      'message': {'role': 'assistant', 'content': text},
      'finish_reason': server.finish_reason,
    }
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
      status, what = fault
      if isinstance(what, bytes):
        self.send(status, what)
      else:
        self.send(status, echo, [('Retry-After', what)])
    else:
      self.send(fault, echo)


def samples():
  """Returns three completions of each text. Two of text 2 are the same."""
  texts = [['a' * n, 'b' * (5 - n), 'c{text}\n"<b>'] for n in range(6)]
  texts[2][1] = texts[2][0]
  return samples_lib.Samples(
    tokens=None,
    vocabulary=None,
    prompts=[f'text {n} {{first}}' for n in range(6)],
    texts=texts,
  )


def judged(judge):
  return np.stack(list(judge(samples(), PAIRS)), axis=1)


def expected():
  """Returns [N, J, 2] preferences by the server's formula."""
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
