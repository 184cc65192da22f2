"""Questions to a language model behind an OpenAI-compatible endpoint.

  POST BASE_URL/chat/completions
  {"model": ..., "messages": [{"role": "user", "content": prompt}], ...}

Each question is answered once: an answer is kept in a file as soon as it is
there, under a hash of the request (model, prompt, parameters), and a question
that was asked before, in this run or another one, is not asked again. The API
key is read from the environment, sent, and kept nowhere.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import concurrent.futures
import dataclasses
import email.utils
import hashlib
import json
import os
import random
import re
import threading
import time
from typing import Any
import urllib.parse

import urllib3

from ipo_md.judges import answers

_LONGEST_DELAY = 60.0  # seconds, of the backoff
_PATIENCE = 900.0  # seconds that a question waits for a busy server
_MOST_BYTES = 10_000_000  # of a response
# What `answers.parse` raises; too deep and too large a number among them.
_UNREADABLE = (
  LookupError,
  AttributeError,
  TypeError,
  ValueError,
  OverflowError,
  RecursionError,
)
_MAY_PASS = (408, 409, 425)  # statuses that another attempt may cure, and 5xx


class _Fault(Exception):
  """Another attempt may help. delay: seconds that the server asks for."""

  def __init__(self, message: str, delay: float | None = None, busy=False):
    super().__init__(message)
    self.delay, self.busy = delay, busy


class _StoppedError(Exception):
  """Another question failed for good."""


class Endpoint:
  """A model, and the file that keeps its answers.

  Args:
    base_url: BASE_URL, such as 'https://api.openai.com/v1'.
    model: RATER, the server's name of the model.
    api_key_variable: API_KEY_VARIABLE, the environment variable that holds the
      key; None: the server asks for none.
    parameters: RATER_PARAMETERS, further fields of the request.
    cache: RATER_CACHE, a local file, SQLite's; made if it is not there.
    concurrency: CONCURRENCY, questions under way at a time.
    timeout: TIMEOUT, seconds that a response may take.
    attempts: ATTEMPTS at a question before the run stops. Being told to wait
      (429) is not an attempt.
    first_delay: seconds before the second attempt, doubled before each further
      one, of which a random half is taken off. A Retry-After of the server
      goes first, and holds for all questions.
  """

  def __init__(
    self,
    *,
    base_url: str,
    model: str,
    api_key_variable: str | None,
    parameters: Mapping[str, Any],
    cache: str,
    concurrency: int = 16,
    timeout: float = 60.0,
    attempts: int = 6,
    first_delay: float = 1.0,
  ):
    for name, value in (
      ('CONCURRENCY', concurrency),
      ('TIMEOUT', timeout),
      ('ATTEMPTS', attempts),
    ):
      if not value > 0:
        raise ValueError(f'{name} = {value} is not positive.')
    self.model = model
    self._url = _check_url(base_url) + '/chat/completions'
    self._key = _api_key(api_key_variable)
    self._parameters = dict(parameters)
    self._concurrency, self._timeout = concurrency, timeout
    self._attempts, self._first_delay = attempts, first_delay
    self._pool = urllib3.PoolManager(maxsize=concurrency, retries=False)
    self._cache = answers.Cache(cache)
    self._resume = 0.0  # no question is asked before this time

  def known(self, prompts: Sequence[str]) -> list[bool]:
    """Whether the answer to each prompt is kept already."""
    return [
      self._cache.get(self._hash(prompt)) is not None for prompt in prompts
    ]

  def ask(
    self, prompts: Sequence[str]
  ) -> Iterator[tuple[int, answers.Answer, int]]:
    """Answers to all prompts, in the order in which they come.

    Prompts that are the same are asked once.

    Yields:
      the number of the prompt, its answer, and -1 for one that was kept or the
      number of attempts that failed.

    Raises:
      ValueError: the server refuses the request.
      RuntimeError: ATTEMPTS failed. The answers that came are kept.
    """
    wanted: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
      wanted.setdefault(self._hash(prompt), []).append(number)
    missing = []
    for key, numbers in wanted.items():
      kept = self._cache.get(key)
      if kept is None:
        missing.append(key)
      else:
        yield from ((number, kept, -1) for number in numbers)
    stop = threading.Event()
    pool = concurrent.futures.ThreadPoolExecutor(self._concurrency, 'chat')
    pending = {
      pool.submit(self._answer, prompts[wanted[key][0]], stop): key
      for key in missing
    }
    try:
      for future in concurrent.futures.as_completed(list(pending)):
        answer, failed = future.result()
        key = pending.pop(future)
        self._cache.put(key, answer)
        for first, number in enumerate(wanted[key]):
          yield number, answer, -1 if first else failed
    finally:
      stop.set()
      pool.shutdown(cancel_futures=True)
      for future, key in pending.items():
        if not future.cancelled() and future.exception() is None:
          self._cache.put(key, future.result()[0])

  def _request(self, prompt: str) -> str:
    body = {
      'model': self.model,
      'messages': [{'role': 'user', 'content': prompt}],
      'stream': False,
      **self._parameters,
    }
    return json.dumps(body, sort_keys=True)

  def _hash(self, prompt: str) -> str:
    return hashlib.sha256(self._request(prompt).encode()).hexdigest()

  def _answer(
    self, prompt: str, stop: threading.Event
  ) -> tuple[answers.Answer, int]:
    """The answer, and how many attempts failed before it."""
    began = time.monotonic()
    failed = counted = 0
    while True:
      while (wait := self._resume - time.monotonic()) > 0:
        # All at the same moment would be too many again.
        if stop.wait(wait + random.uniform(0, self._first_delay)):
          break
      if stop.is_set():
        raise _StoppedError
      try:
        return self._post(self._request(prompt)), failed
      except _Fault as fault:
        failed += 1
        counted += not fault.busy
        waited = time.monotonic() - began
        if counted >= self._attempts or (fault.busy and waited > _PATIENCE):
          raise RuntimeError(
            f'{self._url} gave no answer in {counted} attempts and '
            f'{waited:.0f} s (ATTEMPTS = {self._attempts}, TIMEOUT = '
            f'{self._timeout}), the last time: {fault}. The answers that came '
            'are kept (RATER_CACHE): run it again.'
          ) from None
        if fault.delay:
          self._resume = max(self._resume, time.monotonic() + fault.delay)
          continue
        delay = min(_LONGEST_DELAY, self._first_delay * 2 ** (failed - 1))
        stop.wait(delay * random.uniform(0.5, 1))

  def _post(self, body: str) -> answers.Answer:
    headers = {'Content-Type': 'application/json'}
    if self._key is not None:
      headers['Authorization'] = f'Bearer {self._key}'
    deadline = time.monotonic() + self._timeout
    try:
      response = self._pool.request(
        'POST',
        self._url,
        body=body.encode(),
        headers=headers,
        timeout=self._timeout,
        redirect=False,
        preload_content=False,
      )
      try:
        content = self._read(response, deadline)
      except BaseException:
        response.close()  # what is left of it would be the next answer's start
        raise
      response.release_conn()
    except (urllib3.exceptions.HTTPError, OSError) as error:
      message = self._safe(f'{type(error).__name__}: {error}')
      raise _Fault(message) from None
    if response.status == 200:
      return self._parse(content)
    said = self._safe(' '.join(content.split())[:300])
    message = f'status {response.status}: {said}'
    busy = response.status == 429
    if busy or response.status in _MAY_PASS or response.status >= 500:
      delay = _retry_after(response.headers.get('Retry-After'))
      if delay is not None and delay > _PATIENCE:
        raise RuntimeError(
          f'{self._url} asks to wait for {delay:.0f} s ({message}). The '
          'answers that came are kept (RATER_CACHE): run it again then.'
        )
      raise _Fault(message, delay, busy)
    raise ValueError(
      f'{self._url} refuses the request with {message} (BASE_URL, RATER = '
      f'{self.model!r}, API_KEY_VARIABLE, RATER_PARAMETERS = '
      f'{self._parameters}).'
    )

  def _read(self, response: urllib3.BaseHTTPResponse, deadline: float) -> str:
    """The body; a server that sends it drop by drop is too slow as well."""
    content = b''
    while chunk := response.read1(2**16):
      content += chunk
      if time.monotonic() > deadline:
        raise _Fault(f'the response took longer than {self._timeout} s')
      if len(content) > _MOST_BYTES:
        raise _Fault(f'the response is longer than {_MOST_BYTES:,} bytes')
    return content.decode(errors='replace')

  def _parse(self, content: str) -> answers.Answer:
    content = self._safe(content)
    try:
      answer = answers.parse(content)
    except _UNREADABLE as error:
      said = ' '.join(content.split())[:100]
      raise _Fault(f'a malformed response ({error!r}): {said}') from None
    return dataclasses.replace(answer, text=self._safe(answer.text))

  def _safe(self, text: str) -> str:
    """The text without the key, should a server send it back."""
    return text if self._key is None else text.replace(self._key, '***')


def _check_url(base_url: str) -> str:
  parts = urllib.parse.urlsplit(base_url)
  if '@' in base_url or parts.query or parts.fragment:
    raise ValueError(
      'BASE_URL is to be scheme, host and path alone: a key belongs into the '
      'environment variable API_KEY_VARIABLE.'
    )
  if parts.scheme not in ('http', 'https') or not parts.hostname:
    raise ValueError(f'BASE_URL {base_url!r} is no http or https address.')
  return base_url.rstrip('/')


def _api_key(variable: str | None) -> str | None:
  if variable is None:
    return None
  # Neither is shown: the one may be the other by mistake.
  if not re.fullmatch(r'[A-Za-z_][A-Za-z0-9_]*', variable):
    raise ValueError(
      'API_KEY_VARIABLE is the name of an environment variable, not a key.'
    )
  key = os.environ.get(variable, '').strip()
  if not key:
    raise ValueError(
      'The environment variable that API_KEY_VARIABLE names is not set or '
      'empty; None is for a server that asks for no key.'
    )
  if not re.fullmatch(r'[!-~]+', key):
    raise ValueError(
      'The key in the environment variable API_KEY_VARIABLE has characters '
      'that no header can hold.'
    )
  return key


def _retry_after(value: str | None) -> float | None:
  """Seconds, of seconds or a date; None: not said."""
  if value is None:
    return None
  try:
    return max(0.0, float(value))
  except ValueError:
    pass
  try:
    date = email.utils.parsedate_to_datetime(value)
  except ValueError:
    return None
  return max(0.0, date.timestamp() - time.time())
