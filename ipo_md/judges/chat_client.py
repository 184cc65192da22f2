"""Questions to a language model, each of which is asked only once.

Each whole answer is written to a file as soon as it arrives, under a hash of
its request (model, prompt, parameters), so that no run asks the same question
twice. An answer that is empty or was cut off is not stored. The API key is read
from the environment, sent to the server, and stored nowhere.
"""

from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Mapping
from collections.abc import Sequence
import concurrent.futures
import hashlib
import math
import random
import threading
import time
from typing import Any

import urllib3

from ipo_md.core import model_dir
from ipo_md.judges import answer_cache
from ipo_md.judges import chat_connection
from ipo_md.judges import chat_response
from ipo_md.judges import retry as retry_lib

_NOTICE_SECONDS = 30  # between two lines about failed requests


class _StoppedError(Exception):
  """Another question failed for good."""


@model_dir.may_change(
  'base_url',
  'api_key_variable',
  'cache',
  'concurrency',
  'timeout',
  'attempts',
)
class Endpoint:
  """A language model on a server, and the file that stores its answers.

    endpoint = Endpoint(base_url='http://localhost:8000/v1', model='rater',
                        api_key_variable=None, parameters={}, cache='a.sqlite')
    for index, answer, failures in endpoint.ask(prompts): ...

  Args:
    base_url: BASE_URL, such as 'https://api.openai.com/v1'.
    model: RATER, the server's name of the model.
    api_key_variable: API_KEY_VARIABLE, the environment variable that holds the
      key, or None if the server needs no key.
    parameters: RATER_PARAMETERS, further fields of the request.
    cache: RATER_CACHE, a local SQLite file, which is created if it is missing.
    concurrency: CONCURRENCY, the number of questions in flight at a time.
    timeout: TIMEOUT, the seconds that a response may take.
    attempts: ATTEMPTS, the number of attempts at a question before the run
      stops. Being told to wait (status 429) does not count.
    first_delay: Seconds before the second attempt. The delay doubles before
      each further one, up to a minute, and a random half is taken off. A
      Retry-After header takes precedence and holds back all questions.

  Raises:
    ValueError: An argument is invalid, or the key is missing.
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
    self._concurrency, self._timeout = concurrency, timeout
    self._attempts, self._first_delay = attempts, first_delay
    self._retry = retry_lib.Retry.of(attempts=attempts, first_delay=first_delay)
    self._connection = chat_connection.Connection(
      base_url=base_url,
      model=model,
      api_key_variable=api_key_variable,
      parameters=parameters,
      concurrency=concurrency,
      timeout=timeout,
      retry=self._retry,
    )
    self._cache = answer_cache.Cache(cache)
    self._resume = 0.0  # no question is asked before this time
    self._notices = _Notices(model)

  def cached(self, prompts: Sequence[str]) -> list[bool]:
    """Returns whether the answer to each prompt is stored already."""
    return [
      self._cache.get(self._hash(prompt)) is not None for prompt in prompts
    ]

  def ask(
    self,
    prompts: Sequence[str],
    keep: Callable[[chat_response.Answer], bool] = lambda answer: False,
  ) -> Generator[tuple[int, chat_response.Answer, int], None, None]:
    """Answers all prompts, in the order in which the answers arrive.

    Equal prompts are asked once.

    Args:
      prompts: The questions.
      keep: Whether an answer is stored although it is not whole.

    Yields:
      The index of the prompt, its answer, and the number of attempts that
      failed, or -1 if the answer was stored already.

    Raises:
      ValueError: The server refuses the request.
      RuntimeError: ATTEMPTS attempts at a question failed, or the server stayed
        busy. The answers that arrived are stored.
    """
    store = lambda key, answer: (
      self._cache.put(key, answer)
      if answer.incomplete is None or keep(answer)
      else None
    )
    wanted: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
      wanted.setdefault(self._hash(prompt), []).append(index)
    missing = []
    for key, indices in wanted.items():
      stored = self._cache.get(key)
      if stored is None:
        missing.append(key)
      else:
        yield from ((index, stored, -1) for index in indices)
    stop = threading.Event()
    pool = concurrent.futures.ThreadPoolExecutor(self._concurrency, 'chat')
    pending = {
      pool.submit(self._answer, prompts[wanted[key][0]], stop): key
      for key in missing
    }
    try:
      for future in concurrent.futures.as_completed(list(pending)):
        answer, failures = future.result()
        key = pending.pop(future)
        store(key, answer)
        for repeated, index in enumerate(wanted[key]):
          yield index, answer, -1 if repeated else failures
    finally:
      stop.set()
      pool.shutdown(cancel_futures=True)
      for future, key in pending.items():
        if not future.cancelled() and future.exception() is None:
          store(key, future.result()[0])

  def _hash(self, prompt: str) -> str:
    request = self._connection.request(prompt)
    return hashlib.sha256(request.encode()).hexdigest()

  def _answer(
    self, prompt: str, stop: threading.Event
  ) -> tuple[chat_response.Answer, int]:
    """Returns the answer and the number of attempts that failed before it."""
    body = self._connection.request(prompt)
    retry, start = self._retry, time.monotonic()
    while True:
      self._wait_for_server(stop)
      try:
        return self._connection.post(body), len(retry.history)
      except retry_lib.TransientError as error:
        waited = time.monotonic() - start
        try:
          retry = retry.after(error, waited)
        except urllib3.exceptions.MaxRetryError:
          if isinstance(error, chat_response.EmptyError):
            return error.answer, len(retry.history)
          raise RuntimeError(
            f'{self._connection.url} gave no answer to '
            f'{len(retry.history) + 1} requests in {waited:.0f} s (ATTEMPTS = '
            f'{self._attempts}, TIMEOUT = {self._timeout}). The last failure: '
            f'{error}. The answers that arrived are stored in RATER_CACHE; '
            'start the run again.'
          ) from None
        wait = error.delay or retry.get_backoff_time()
        self._notices.failed(error, wait, self._attempts)
        if error.delay:
          self._resume = max(self._resume, time.monotonic() + wait)
        else:
          stop.wait(wait)

  def _wait_for_server(self, stop: threading.Event) -> None:
    """Waits until the time that the server named in a Retry-After header.

    Raises:
      _StoppedError: Another question failed.
    """
    while (wait := self._resume - time.monotonic()) > 0:
      # The random part keeps the questions from resuming all at once.
      if stop.wait(wait + random.uniform(0, self._first_delay)):
        break
    if stop.is_set():
      raise _StoppedError


class _Notices:
  """Says on the command line that requests fail and what is waited for.

  The first failure is said at once, and the later ones are summed up.
  """

  def __init__(self, model: str):
    self._model = model
    self._lock = threading.Lock()
    self._failures, self._said = 0, -math.inf

  def failed(
    self, error: retry_lib.TransientError, wait: float, attempts: int
  ) -> None:
    """Counts a failure, and prints a line if none was printed lately.

    Args:
      error: The failure.
      wait: Seconds until the next attempt.
      attempts: ATTEMPTS.
    """
    with self._lock:
      self._failures += 1
      if time.monotonic() - self._said < _NOTICE_SECONDS:
        return
      self._said = time.monotonic()
      many = 'request' if self._failures == 1 else 'requests'
      until = (
        f'for at most {retry_lib.LONGEST_WAIT / 60:.0f} minutes'
        if error.busy
        else f'in up to {attempts} attempts (ATTEMPTS)'
      )
      asked = ' as the server asks' if error.delay else ''
      print(
        f'{self._model}: {self._failures:,} {many} failed so far; waits '
        f'{wait:.1f} s{asked} and tries again, {until}. The last failure: '
        f'{error}',
        flush=True,
      )
