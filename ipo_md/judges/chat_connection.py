"""One request to an OpenAI-compatible endpoint, and the answer to it.

POST BASE_URL/chat/completions
{"model": ..., "messages": [{"role": "user", "content": prompt}], ...}

A failure is either final, such as an invalid key or a quota that is used up, or
another attempt may cure it. `chat_response` reads the body of a response.
"""

from collections.abc import Mapping
import dataclasses
import json
import os
import re
import time
from typing import Any
from typing import NoReturn
import urllib.parse

import urllib3

from ipo_md.judges import chat_response
from ipo_md.judges import retry as retry_lib

_MAX_BYTES = 10_000_000  # of a response


class Connection:
  """A language model on a server.

  Args:
    base_url: BASE_URL, such as 'https://api.openai.com/v1'.
    model: RATER, the server's name of the model.
    api_key_variable: API_KEY_VARIABLE, the environment variable that holds the
      key, or None if the server needs no key.
    parameters: RATER_PARAMETERS, further fields of the request.
    concurrency: Number of connections that stay open.
    timeout: TIMEOUT, the seconds that a response may take.
    retry: Tells which statuses are transient, and reads Retry-After.

  Raises:
    ValueError: The address is invalid, or the key is missing.
  """

  def __init__(
    self,
    *,
    base_url: str,
    model: str,
    api_key_variable: str | None,
    parameters: Mapping[str, Any],
    concurrency: int,
    timeout: float,
    retry: retry_lib.Retry,
  ):
    self.url = _check_url(base_url) + '/chat/completions'
    self._model, self._parameters = model, dict(parameters)
    self._key = _api_key(api_key_variable)
    self._timeout, self._retry = timeout, retry
    # The pool repeats no attempt: it would not see a slow or malformed body.
    self._pool = urllib3.PoolManager(maxsize=concurrency, retries=False)

  def request(self, prompt: str) -> str:
    """Returns the body of the request about a prompt, as JSON."""
    body = {
      'model': self._model,
      'messages': [{'role': 'user', 'content': prompt}],
      'stream': False,
      **self._parameters,
    }
    return json.dumps(body, sort_keys=True)

  def post(self, body: str) -> chat_response.Answer:
    """Makes one attempt at a request.

    Raises:
      TransientError: Another attempt may succeed.
      ValueError: The server refuses the request.
      RuntimeError: The server asks to wait for longer than LONGEST_WAIT.
    """
    response, content = self._exchange(body)
    content = self._redact(content)
    if response.status != 200:
      delay = self._retry.get_retry_after(response)
      error = chat_response.error_of(content)
      self._fail(response.status, error, content, delay)
    try:
      answer = chat_response.read(content)
    except chat_response.BodyError as error:
      self._fail(error.status, error.fields, content, None)
    return dataclasses.replace(answer, text=self._redact(answer.text))

  def _fail(
    self,
    status: int,
    error: Mapping[str, Any],
    content: str,
    delay: float | None,
  ) -> NoReturn:
    """Raises the error that a status and the server's words amount to.

    Args:
      status: Status of the response, or the one that its body names.
      error: Fields of the error in the body.
      content: The body.
      delay: Seconds for which the server asks to wait, or None.
    """
    message = f'status {status}: {" ".join(content.split())[:300]}'
    if kind := chat_response.permanent_kind(error):
      raise ValueError(
        f'{self.url} refuses all requests ({kind}), and waiting does not help: '
        f'{message}. Mend the account behind API_KEY_VARIABLE (RATER = '
        f'{self._model!r}) and start the run again. The answers that arrived '
        'are stored in RATER_CACHE.'
      )
    if not self._retry.is_retry('POST', status):
      raise ValueError(
        f'{self.url} refuses the request with {message} (BASE_URL, RATER = '
        f'{self._model!r}, API_KEY_VARIABLE, RATER_PARAMETERS = '
        f'{self._parameters}). The answers that arrived are stored in '
        'RATER_CACHE.'
      )
    if delay is not None and delay > retry_lib.LONGEST_WAIT:
      raise RuntimeError(
        f'{self.url} asks to wait for {delay:.0f} s ({message}). The answers '
        'that arrived are stored in RATER_CACHE; start the run again then.'
      )
    busy = status in retry_lib.BUSY_STATUSES
    raise retry_lib.TransientError(message, delay, busy=busy)

  def _exchange(self, body: str) -> tuple[urllib3.BaseHTTPResponse, str]:
    """Sends a body and reads the response to its end."""
    headers = {'Content-Type': 'application/json'}
    if self._key is not None:
      headers['Authorization'] = f'Bearer {self._key}'
    deadline = time.monotonic() + self._timeout
    try:
      response = self._pool.request(
        'POST',
        self.url,
        body=body.encode(),
        headers=headers,
        timeout=self._timeout,
        redirect=False,
        preload_content=False,
      )
      try:
        content = self._read(response, deadline)
      except BaseException:
        response.close()  # or its rest would be read as the next response
        raise
      response.release_conn()
    except (urllib3.exceptions.HTTPError, OSError) as error:
      message = self._redact(f'{type(error).__name__}: {error}')
      raise retry_lib.TransientError(message) from None
    return response, content

  def _read(self, response: urllib3.BaseHTTPResponse, deadline: float) -> str:
    """Reads the body. Bytes that trickle in do not extend the deadline."""
    content = b''
    while chunk := response.read1(2**16):
      content += chunk
      if time.monotonic() > deadline:
        raise retry_lib.TransientError(
          f'the response took longer than {self._timeout} s'
        )
      if len(content) > _MAX_BYTES:
        raise retry_lib.TransientError(
          f'the response is longer than {_MAX_BYTES:,} bytes'
        )
    return content.decode(errors='replace')

  def _redact(self, text: str) -> str:
    """Hides the key, in case the server echoes it."""
    return text if self._key is None else text.replace(self._key, '***')


def _check_url(base_url: str) -> str:
  parts = urllib.parse.urlsplit(base_url)
  if '@' in base_url or parts.query or parts.fragment:
    raise ValueError(
      'BASE_URL must consist of scheme, host and path alone. A key belongs in '
      'the environment variable that API_KEY_VARIABLE names.'
    )
  if parts.scheme not in ('http', 'https') or not parts.hostname:
    raise ValueError(f'BASE_URL {base_url!r} is not an http or https address.')
  return base_url.rstrip('/')


def _api_key(variable: str | None) -> str | None:
  if variable is None:
    return None
  # No message shows either of them: a key may be given as the name by mistake.
  if not re.fullmatch(r'[A-Za-z_][A-Za-z0-9_]*', variable):
    raise ValueError(
      'API_KEY_VARIABLE is the name of an environment variable, not a key.'
    )
  key = os.environ.get(variable, '').strip()
  if not key:
    raise ValueError(
      'The environment variable that API_KEY_VARIABLE names is unset or empty. '
      'API_KEY_VARIABLE = None is for a server that needs no key.'
    )
  if not re.fullmatch(r'[!-~]+', key):
    raise ValueError(
      'The key in the environment variable that API_KEY_VARIABLE names has '
      'characters that a header cannot hold.'
    )
  return key
