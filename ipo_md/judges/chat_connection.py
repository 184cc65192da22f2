"""One request to an OpenAI-compatible endpoint, and the answer to it.

POST BASE_URL/chat/completions
{"model": ..., "messages": [{"role": "user", "content": prompt}], ...}
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import math
import os
import re
import time
from typing import Any
import urllib.parse

import urllib3

from ipo_md.judges import retry as retry_lib

_MAX_BYTES = 10_000_000  # of a response
# `_parse` raises these, also where JSON nests too deep or a number is too
# large.
_UNREADABLE = (
  LookupError,
  AttributeError,
  TypeError,
  ValueError,
  OverflowError,
  RecursionError,
)


@dataclasses.dataclass(frozen=True)
class Answer:
  """The answer of a language model to one prompt.

  Attributes:
    text: The text, empty if the model refused to answer.
    tokens: Each token of the text with the log-probabilities of its
      alternatives and of itself, or None if the server returns none.
    usage: Numbers of prompt tokens and of answer tokens as the server counts
      them, or 0 if it does not.
  """

  text: str
  tokens: Sequence[tuple[str, Mapping[str, float]]] | None
  usage: tuple[int, int]


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

  def post(self, body: str) -> Answer:
    """Makes one attempt at a request.

    Raises:
      TransientError: Another attempt may succeed.
      ValueError: The server refuses the request.
      RuntimeError: The server asks to wait for longer than LONGEST_WAIT.
    """
    response, content = self._exchange(body)
    if response.status == 200:
      return self._answer(content)
    excerpt = self._redact(' '.join(content.split())[:300])
    message = f'status {response.status}: {excerpt}'
    if not self._retry.is_retry('POST', response.status):
      raise ValueError(
        f'{self.url} refuses the request with {message} (BASE_URL, RATER = '
        f'{self._model!r}, API_KEY_VARIABLE, RATER_PARAMETERS = '
        f'{self._parameters}).'
      )
    delay = self._retry.get_retry_after(response)
    if delay is not None and delay > retry_lib.LONGEST_WAIT:
      raise RuntimeError(
        f'{self.url} asks to wait for {delay:.0f} s ({message}). The answers '
        'that arrived are stored in RATER_CACHE; start the run again then.'
      )
    raise retry_lib.TransientError(message, delay, busy=response.status == 429)

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

  def _answer(self, content: str) -> Answer:
    content = self._redact(content)
    try:
      answer = _parse(content)
    except _UNREADABLE as error:
      excerpt = ' '.join(content.split())[:100]
      raise retry_lib.TransientError(
        f'a malformed response ({error!r}): {excerpt}'
      ) from None
    return dataclasses.replace(answer, text=self._redact(answer.text))

  def _redact(self, text: str) -> str:
    """Hides the key, in case the server echoes it."""
    return text if self._key is None else text.replace(self._key, '***')


def _parse(content: str) -> Answer:
  """Reads the answer in the body of a response."""
  response = json.loads(content)
  choice = response['choices'][0]
  text = choice['message'].get('content') or ''
  if not isinstance(text, str):
    raise TypeError('the content is not a string')
  listed = (choice.get('logprobs') or {}).get('content')
  usage = response.get('usage') or {}
  return Answer(
    text=text,
    tokens=None if listed is None else [_token(item) for item in listed],
    usage=(
      int(usage.get('prompt_tokens') or 0),
      int(usage.get('completion_tokens') or 0),
    ),
  )


def _token(item: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
  listed = [item, *(item.get('top_logprobs') or [])]
  found = {other['token']: float(other['logprob']) for other in listed}
  # The log-probability of an alternative may be -inf.
  if not math.isfinite(found[item['token']]) or max(found.values()) > 1e-3:
    raise ValueError('a log-probability is not finite or exceeds 0')
  return item['token'], found


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
