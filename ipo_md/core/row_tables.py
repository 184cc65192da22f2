"""Reads rows of Parquet files and of the Arrow files that `datasets` saves.

A file is read a few rows at a time, whatever its size. pyarrow is imported
when the first such file is read.
"""

from collections.abc import Iterator
from typing import Any

from etils import epath

_PARQUET = b'PAR1'
_ARROW_FILE = b'ARROW1'
_ARROW_STREAM = b'\xff\xff\xff\xff'
_ROWS = 256  # converted together


def is_table(path: str) -> bool:
  """Returns whether a file is Parquet or Arrow, by its first bytes."""
  with epath.Path(path).open('rb') as file:
    first = file.read(6)
  return first.startswith((_PARQUET, _ARROW_FILE, _ARROW_STREAM))


def rows(path: str) -> Iterator[dict[str, Any] | str]:
  """Yields the rows of a table, or the reason why a row is none.

  Fields that are null are left out, as they are in JSON.

  Args:
    path: Path of a file that `is_table`.

  Raises:
    ValueError: pyarrow is absent, or the file is damaged.
  """
  try:
    import pyarrow
  except ImportError:
    raise ValueError(
      f'{path} is a file of Parquet or Arrow, which pyarrow reads. Install it '
      'with `pip install pyarrow`.'
    ) from None
  try:
    for batch in _batches(path):
      for start in range(0, batch.num_rows, _ROWS):
        yield from _converted(batch.slice(start, _ROWS))
  except (pyarrow.ArrowException, OSError) as error:
    reason = ' '.join(str(error).split())
    raise ValueError(f'{path} cannot be read: {reason}') from None


def _batches(path: str) -> Iterator[Any]:
  """Yields record batches of pyarrow."""
  import pyarrow
  from pyarrow import ipc
  from pyarrow import parquet

  if '://' in path:  # Objects of a bucket are read whole.
    opened = pyarrow.BufferReader(epath.Path(path).read_bytes())
  else:
    opened = pyarrow.memory_map(path)
  with opened as source:
    first = source.read(6)
    source.seek(0)
    if first.startswith(_PARQUET):
      file = parquet.ParquetFile(source, pre_buffer=False)
      yield from file.iter_batches(batch_size=_ROWS)
    elif first == _ARROW_FILE:
      reader = ipc.open_file(source)
      for i in range(reader.num_record_batches):
        yield reader.get_batch(i)
    else:
      yield from ipc.open_stream(source)


def _converted(batch: Any) -> Iterator[dict[str, Any] | str]:
  try:
    found = batch.to_pylist()
  except UnicodeDecodeError as error:
    if batch.num_rows > 1:
      for i in range(batch.num_rows):
        yield from _converted(batch.slice(i, 1))
    else:
      yield f'not UTF-8: byte 0x{error.object[error.start]:02x}'
    return
  yield from map(_without_nulls, found)


def _without_nulls(value: Any) -> Any:
  """Leaves out the fields of a row, or of an object in it, that are null."""
  if isinstance(value, dict):
    return {k: _without_nulls(v) for k, v in value.items() if v is not None}
  if isinstance(value, list):
    return [_without_nulls(item) for item in value]
  return value
