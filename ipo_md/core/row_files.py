"""Reads files of texts and of rows, and names what is wrong in them.

Every file of prompts, preferences or completions is read here. Rows are JSON
lines, Parquet, or the Arrow files of a folder that `datasets` saved; a folder
or a pattern such as data/train-*.parquet stands for all of its files. A line
ends at '\\n', or at the '\\r\\n' of Windows, and nowhere else. Texts are UTF-8
with or without a byte order mark. Parquet, Arrow and gzip are known by their
content, not by a name.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import gzip
import io
import itertools
import json
import math
import os
import sys
from typing import Any
from typing import TypeVar
import zlib

from etils import epath
import numpy as np

from ipo_md.core import row_paths
from ipo_md.core import row_tables

T = TypeVar('T')

_LISTED = 20  # bad rows that a message lists
_LARGEST = float(np.finfo(np.float32).max)
_GZIP = b'\x1f\x8b'
_BOM = '\ufeff'


class BadRow(ValueError):
  """A row with wrong content. The message names the field."""


def field(row: Any, path: str, kind: type | tuple[type, ...]) -> Any:
  """Returns `row['a']['b']` for the path 'a.b'. A number indexes a list.

    content = field(row, 'messages.0.content', str)

  Args:
    row: The parsed row.
    path: Names and list indices, joined by dots.
    kind: The type or types that the field may have.

  Raises:
    BadRow: The field is absent, has another type, or is not a text that can be
      tokenised.
  """
  value = row
  for part in path.split('.'):
    try:
      value = value[int(part)] if isinstance(value, list) else value[part]
    except (KeyError, IndexError, TypeError, ValueError):
      raise BadRow(f'field {path!r} is missing') from None
  kinds = kind if isinstance(kind, tuple) else (kind,)
  if not isinstance(value, kinds) or isinstance(value, bool):
    expected = ' or '.join(_NAMES.get(k, k.__name__) for k in kinds)
    raise BadRow(f'field {path!r} is {_short(value)}, not {expected}')
  if isinstance(value, str):
    check_text(value, f'field {path!r}')
  return value


_NAMES = {
  str: 'a text',
  list: 'a list',
  dict: 'an object',
  int: 'a whole number',
  float: 'a number',
}


def check_text(text: str, name: str) -> None:
  """Raises a BadRow if a text has characters that no tokenizer can read."""
  if '\0' in text:
    raise BadRow(f'{name} has a NUL character at {text.index(chr(0))}')
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise BadRow(
      f'{name} has half of a surrogate pair at {error.start}, so is no text'
    ) from None


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
  if not text.isdecimal():
    raise ValueError(f'MAX_BAD_ROWS = {text!r} in the environment is no count.')
  return int(text)


def read(
  paths: Iterable[str],
  parse: Callable[[dict[str, Any]], T | None],
  *,
  max_bad_rows: int = 0,
  bad: list[str] | None = None,
) -> Iterator[tuple[str, T]]:
  """Parses each row of files.

  Args:
    paths: Paths of files, of folders of rows, or patterns; see `row_paths`.
    parse: A function of a row. It returns None to leave the row out and raises
      BadRow if the row is wrong.
    max_bad_rows: MAX_BAD_ROWS, the number of bad rows that are left out and
      listed before reading fails.
    bad: A list to which a message is added for each bad row.

  Yields:
    A key 'file:row' and the value that `parse` returned.

  Raises:
    ValueError: There are more bad rows, or a file is absent or unreadable.
  """
  bad = [] if bad is None else bad
  for path in itertools.chain.from_iterable(map(row_paths.files, paths)):
    name = os.path.basename(path)
    for number_, row in _rows(path):
      try:
        if isinstance(row, BadRow):
          raise row
        parsed = parse(row)
      except BadRow as error:
        bad.append(f'{path}, row {number_}: {error}')
        if len(bad) > max_bad_rows:
          raise ValueError(refusal(bad, max_bad_rows)) from None
      else:
        if parsed is not None:
          yield f'{name}:{number_}', parsed
  report(bad)


def report(bad: Sequence[str]) -> None:
  """Lists bad rows that were left out."""
  if bad:
    listed = '\n  '.join(bad[:_LISTED])
    print(f'Bad rows left out: {len(bad)}\n  {listed}', file=sys.stderr)


def refusal(bad: Sequence[str], allowed: int) -> str:
  """Returns the message about more bad rows than are allowed."""
  listed = '\n  '.join(bad[-_LISTED:])
  return f'Bad rows: {len(bad)}, allowed: {allowed} (MAX_BAD_ROWS).\n  {listed}'


def prompts(
  path: str, macro: str, parse: Callable[[dict[str, Any]], T]
) -> Iterator[tuple[str, str | T]]:
  """Yields the prompts of a file.

  A file whose name ends in .jsonl or .jsonl.gz has rows, and so has a file of
  Parquet or Arrow. Any other file has a prompt on each line.

  Args:
    path: Path of the file, of a folder of rows, or a pattern; see `row_paths`.
    macro: Name of the gin macro of the path, for messages.
    parse: A function from a row to its prompt.

  Yields:
    The place of a prompt, for messages, and the prompt: a text, or what
    `parse` returned.

  Raises:
    ValueError: The file is absent, empty or unreadable, or a row has no prompt.
  """
  found = False
  for file in row_paths.files(path, macro):
    named = file.removesuffix('.gz').endswith('.jsonl')
    is_rows = named or row_tables.is_table(file)
    read_ = _rows(file, macro) if is_rows else _texts(file, macro)
    for number_, row in read_:
      place = f'{macro} {file}, row {number_}'
      try:
        if isinstance(row, BadRow):
          raise row
        prompt = row if isinstance(row, str) else parse(row)
      except BadRow as error:
        raise ValueError(f'{place}: {error}.') from None
      found = True
      yield place, prompt
  if not found:
    raise ValueError(f'{macro} {path} is empty.')


def _rows(
  path: str, name: str = ''
) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
  """Yields the number and the content of each row of a file.

  Yields:
    The number of the row in its file, from 1, and the row, or the reason why it
    is none.
  """
  if row_tables.is_table(path):
    for number_, row in enumerate(row_tables.rows(path), 1):
      yield number_, BadRow(row) if isinstance(row, str) else row
    return
  for number_, line in enumerate(_lines(path, name), 1):
    if not line.strip():
      continue
    try:
      yield number_, parse_row(decode_line(line, number_))
    except BadRow as error:
      yield number_, error


def _texts(path: str, name: str) -> Iterator[tuple[int, str | BadRow]]:
  """Yields the number and the text of each line of a file."""
  for number_, line in enumerate(_lines(path, name), 1):
    try:
      text = decode_line(line, number_)
      check_text(text, 'the prompt')
      if not text.strip():
        raise BadRow('the prompt is empty')
      yield number_, text
    except BadRow as error:
      yield number_, error


def lines(path: str, name: str = '') -> Iterator[str]:
  """Yields the lines of a file without their ends.

  Args:
    path: Path of the file.
    name: What the path is, for messages.

  Raises:
    ValueError: The file is absent or unreadable, or a line is not UTF-8.
  """
  for number_, line in enumerate(_lines(path, name), 1):
    try:
      yield decode_line(line, number_)
    except BadRow as error:
      raise ValueError(f'{path}, row {number_}: {error}.') from None


def _lines(path: str, name: str = '') -> Iterator[bytes]:
  named = f' ({name})' if name else ''
  file = epath.Path(path)
  if not path or not file.exists():
    raise ValueError(f'There is no file {path}{named}.')
  if file.is_dir():
    raise ValueError(f'{path}{named} cannot be read: it is a folder.')
  try:
    # Objects of a bucket are read whole, because their files cannot peek.
    with (
      io.BufferedReader(io.BytesIO(file.read_bytes()))
      if '://' in path
      else open(file, 'rb')
    ) as content:
      if content.peek(2)[:2] == _GZIP:
        with gzip.GzipFile(fileobj=content) as unzipped:
          yield from unzipped
      else:
        yield from content
  except (OSError, EOFError, zlib.error) as error:
    raise ValueError(f'{path}{named} cannot be read: {error}') from None


def decode_line(line: bytes, number_: int) -> str:
  """Returns the text of a line, the first of which has number 1.

  Raises:
    BadRow: The line is not UTF-8.
  """
  if number_ == 1 and line[:2] in (b'\xff\xfe', b'\xfe\xff'):
    raise BadRow('the file is UTF-16, not UTF-8; convert it with `iconv`')
  try:
    text = line.decode()
  except UnicodeDecodeError as error:
    raise BadRow(
      f'not UTF-8: byte 0x{line[error.start]:02x} at {error.start}; convert '
      'the file with `iconv`'
    ) from None
  if number_ == 1:
    text = text.removeprefix(_BOM)
  if text.startswith(_BOM):
    raise BadRow('starts with a byte order mark, as joined files do; remove it')
  return text.removesuffix('\n').removesuffix('\r')


def parse_row(line: str) -> dict[str, Any]:
  """Parses a line that is a JSON object.

  Raises:
    BadRow: It is not one, or names a field twice.
  """
  try:
    row = json.loads(line, object_pairs_hook=_unique)
  except BadRow:
    raise
  except (ValueError, RecursionError) as error:
    raise BadRow(f'not JSON: {error}') from None
  if not isinstance(row, dict):
    raise BadRow(f'not an object: {_short(row)}')
  return row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  row = dict(pairs)
  if len(row) != len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise BadRow(f'field {twice!r} is there twice')
  return row


def _short(value: Any) -> str:
  text = json.dumps(value, default=repr)
  return text if len(text) < 60 else f'{text[:60]}...'
