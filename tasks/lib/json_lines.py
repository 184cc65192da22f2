"""Reads JSON lines, with errors that name the file, the row and the field."""

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

_LISTED = 20  # bad rows that a message lists
_LARGEST = float(np.finfo(np.float32).max)


class BadRow(ValueError):
  """A row with wrong content. The message names the field."""


def field(row: Any, path: str, kind: type | tuple[type, ...]) -> Any:
  """Returns row['a']['b'] for the path 'a.b'. A number indexes a list.

    content = field(row, 'messages.0.content', str)

  Args:
    row: The parsed row.
    path: Names and list indices, joined by dots.
    kind: The type or types that the field may have.

  Raises:
    BadRow: The field is absent or has another type.
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
  """Returns a field that is a finite float32 number or the text of one.

  Raises:
    BadRow: The field is absent or is not such a number.
  """
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
  """Returns MAX_BAD_ROWS of the environment, 0 by default.

  It is for tasks whose files are named in the environment, too.
  """
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
  """Parses each row of JSON-lines files, gzipped or not.

  Args:
    paths: Paths of the files.
    parse: A function of a row. It returns None to leave the row out and raises
      BadRow if the row is wrong.
    max_bad_rows: MAX_BAD_ROWS, the number of bad rows that are left out and
      listed before reading fails.

  Yields:
    A key 'file:row' and the value that `parse` returned.

  Raises:
    ValueError: There are more bad rows, or a file is absent or unreadable.
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
