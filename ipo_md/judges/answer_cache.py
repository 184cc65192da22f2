"""A local file of a language model's answers, which survives a kill."""

import json
import os
import sqlite3

from ipo_md.judges import chat_response


class Cache:
  """Answers by the hash of their request.

  Args:
    path: RATER_CACHE.

  Raises:
    ValueError: The file cannot be used.
  """

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

  def get(self, request: str) -> chat_response.Answer | None:
    """Returns the answer to a request, or None if there is none."""
    found = self._file.execute(
      'SELECT answer FROM answers WHERE request = ?', (request,)
    ).fetchone()
    if found is None:
      return None
    text, tokens, usage, *rest = json.loads(found[0])
    if not text and not rest:
      return None  # Earlier versions stored failed answers, too.
    return chat_response.Answer(text, tokens, tuple(usage), *rest)

  def put(self, request: str, answer: chat_response.Answer) -> None:
    """Stores the answer to a request."""
    row = [answer.text, answer.tokens, answer.usage]
    if (rest := [answer.refusal, answer.incomplete]) != [None, None]:
      row += rest
    self._file.execute(
      'INSERT OR REPLACE INTO answers VALUES (?, ?)', (request, json.dumps(row))
    )
