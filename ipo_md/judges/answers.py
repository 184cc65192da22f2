"""What a language model answered, and the file that keeps it."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import math
import os
import sqlite3
from typing import Any


@dataclasses.dataclass(frozen=True)
class Answer:
  """What the model said.

  Attributes:
    text: empty for a refusal.
    tokens: each token of the text with its alternatives' log-probabilities,
      its own included; None: the server gives none.
    usage: tokens of prompt and answer as the server counts them, 0 if it does
      not.
  """

  text: str
  tokens: Sequence[tuple[str, Mapping[str, float]]] | None
  usage: tuple[int, int]


def parse(content: str) -> Answer:
  """The answer in a response of POST /chat/completions.

  Raises:
    LookupError, AttributeError, TypeError, ValueError, OverflowError,
    RecursionError: there is none.
  """
  response = json.loads(content)
  choice = response['choices'][0]
  text = choice['message'].get('content') or ''
  if not isinstance(text, str):
    raise TypeError('content is no text')
  listed = (choice.get('logprobs') or {}).get('content')
  usage = response.get('usage') or {}
  counts = ('prompt_tokens', 'completion_tokens')
  return Answer(
    text=text,
    tokens=None if listed is None else [_token(item) for item in listed],
    usage=tuple(int(usage.get(name) or 0) for name in counts),
  )


def _token(item: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
  listed = [item, *(item.get('top_logprobs') or [])]
  found = {other['token']: float(other['logprob']) for other in listed}
  # Of an alternative it may be -inf.
  if not math.isfinite(found[item['token']]) or max(found.values()) > 1e-3:
    raise ValueError('a log-probability is none')
  return item['token'], found


class Cache:
  """Answers by the hash of their request, in a file that survives a kill."""

  def __init__(self, path: str):
    try:
      os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
      self._file = sqlite3.connect(path, timeout=60, isolation_level=None)
      self._file.execute('PRAGMA journal_mode = WAL')
      self._file.execute('PRAGMA synchronous = NORMAL')
      self._file.execute(
        'CREATE TABLE IF NOT EXISTS answers '
        '(request TEXT PRIMARY KEY, answer TEXT NOT NULL)'
      )
    except (OSError, sqlite3.Error) as error:
      raise ValueError(
        f'RATER_CACHE {path} cannot be used: {error}.'
      ) from error

  def get(self, request: str) -> Answer | None:
    found = self._file.execute(
      'SELECT answer FROM answers WHERE request = ?', (request,)
    ).fetchone()
    if found is None:
      return None
    text, tokens, usage = json.loads(found[0])
    return Answer(text, tokens, tuple(usage))

  def put(self, request: str, answer: Answer) -> None:
    self._file.execute(
      'INSERT OR IGNORE INTO answers VALUES (?, ?)',
      (request, json.dumps(dataclasses.astuple(answer))),
    )
