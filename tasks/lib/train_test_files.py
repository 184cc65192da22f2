"""Data sets that are published as a folder with train.jsonl and test.jsonl.

The last rows of train.jsonl are the validation split. MAX_BAD_ROWS in the
environment is the number of rows of a file that may be left out.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import os
from typing import Any

from ipo_md.core import paths
from tasks.lib import json_lines
from tasks.lib import text_tasks

SPLITS = ('train', 'validation', 'test')
VALIDATION = 500  # rows


def files(split: str, *, variable: str, fields: str) -> list[str]:
  """Returns the path of the file that holds a split.

  Args:
    split: One of `SPLITS`.
    variable: Environment variable that names the folder.
    fields: What the rows have, for the message.

  Raises:
    ValueError: The variable is not set.
  """
  file = 'test.jsonl' if split == 'test' else 'train.jsonl'
  if variable not in os.environ:
    raise ValueError(
      f'{variable} is not set. It names the directory of {file}, rows of '
      f'{fields}.'
    )
  return [os.path.join(paths.absolute(os.environ[variable], variable), file)]


def rows(
  split: str,
  found: Sequence[str],
  example: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> text_tasks.Rows:
  """Returns the examples of a split.

  Args:
    split: One of `SPLITS`.
    found: What `files` returns.
    example: A function from a row to its example, as for `json_lines.read`.
  """
  allowed = json_lines.max_bad_rows()
  every = list(text_tasks.rows_of_files(found, example, max_bad_rows=allowed))
  if split == 'train':
    return iter(every[:-VALIDATION])
  return iter(every[-VALIDATION:] if split == 'validation' else every)
