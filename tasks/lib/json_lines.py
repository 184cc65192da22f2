"""Rows of JSON-lines files, with errors that name file, row and field."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import gzip
import json
import math
import os
import sys
from typing import Any
from typing import TypeVar

import numpy as np

T = TypeVar('T')

_LISTED = 20  # bad rows that are named
_LARGEST = float(np.finfo(np.float32).max)


class BadRow(ValueError):
  """A row that does not hold what it should; says which field."""


def field(row: Any, path: str, kind: type | tuple[type, ...]) -> Any:
  """row['a']['b'] for the path 'a.b'; a number in it indexes a list.

  Raises:
    BadRow: there is no such field, or it is not of this kind.
  """
  value = row
  for part in path.split('.'):
    try:
      value = value[int(part)] if isinstance(value, list) else value[part]
    except (KeyError, IndexError, TypeError, ValueError):
      raise BadRow(f'field {path!r} is missing') from None
  if not isinstance(value, kind) or isinstance(value, bool):
    raise BadRow(f'field {path!r} is {_short(value)}, not of the type expected')
  if isinstance(value, str) and not _is_unicode(value):
    raise BadRow(f'field {path!r} has half of a surrogate pair, so is no text')
  return value


def number(row: Any, path: str) -> float:
  """A finite number that float32 holds, or the text of one."""
  value = field(row, path, (int, float, str))
  try:
    value = float(value)
  except ValueError:
    raise BadRow(f'field {path!r} is {value!r}, not a number') from None
  except OverflowError:
    value = math.inf
  if not math.isfinite(value):
    raise BadRow(f'field {path!r} is {value}, not a number')
  if abs(value) > _LARGEST:
    raise BadRow(f'field {path!r} is {value}, too large for float32')
  return value


def max_bad_rows() -> int:
  """MAX_BAD_ROWS of the environment, for tasks whose files it names, too."""
  text = os.environ.get('MAX_BAD_ROWS', '0')
  if not text.isdigit():
    raise ValueError(f'MAX_BAD_ROWS = {text!r} in the environment is no count.')
  return int(text)


def read(
  paths: Iterable[str],
  parse: Callable[[dict[str, Any]], T | None],
  *,
  max_bad_rows: int = 0,
) -> Iterator[tuple[str, T]]:
  """Parses each row of files of JSON lines, gzipped or not.

  Args:
    paths: of the files.
    parse: makes something of a row; None leaves the row out; a BadRow says
      what is wrong with it.
    max_bad_rows: MAX_BAD_ROWS, so many bad rows are left out and listed.

  Yields:
    a key, 'file:row', and what parse made of the row.

  Raises:
    ValueError: more bad rows than that, or a missing file.
  """
  bad = []
  for path in paths:
    name = os.path.basename(path)
    for number_, line in enumerate(_lines(path), 1):
      if not line.strip():
        continue
      try:
        parsed = parse(_load(line))
      except BadRow as error:
        bad.append(f'{path}, row {number_}: {error}')
        if len(bad) > max_bad_rows:
          listed = '\n  '.join(bad[-_LISTED:])
          raise ValueError(
            f'Bad rows: {len(bad)}, allowed: {max_bad_rows} (MAX_BAD_ROWS).\n'
            f'  {listed}'
          ) from None
      else:
        if parsed is not None:
          yield f'{name}:{number_}', parsed
  if bad:
    listed = '\n  '.join(bad[:_LISTED])
    print(f'Bad rows left out: {len(bad)}\n  {listed}', file=sys.stderr)


def _lines(path: str) -> Iterator[bytes]:
  if not os.path.isfile(path):
    raise ValueError(f'There is no file {path}.')
  try:
    with (gzip.open if path.endswith('.gz') else open)(path, 'rb') as file:
      yield from file
  except (OSError, EOFError) as error:
    raise ValueError(f'{path} cannot be read: {error}') from None


def _load(line: bytes) -> dict[str, Any]:
  try:
    row = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise BadRow(f'not JSON: {error}') from None
  if not isinstance(row, dict):
    raise BadRow(f'not an object: {_short(row)}')
  return row


def _is_unicode(text: str) -> bool:
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def _short(value: Any) -> str:
  text = json.dumps(value, ensure_ascii=False)
  return text if len(text) < 60 else f'{text[:60]}...'
