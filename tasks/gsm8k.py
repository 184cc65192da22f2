"""GSM8K: grade-school mathematics with an exact match of the final answer.

  gsm8k   inputs, targets: a question and a solution that ends in '#### 18'

GSM8K_DIR names a directory with the published train.jsonl and test.jsonl, rows
of question and answer. The last 500 rows of train.jsonl are the validation
split. MAX_BAD_ROWS in the environment is the number of rows of a file that may
be left out. The metric `exact_match` compares only the number after '####'.

Cobbe et al., arXiv 2110.14168.
"""

from collections.abc import Mapping
import decimal
import os
import re
from typing import Any

from ipo_md.core import paths
from tasks.lib import json_lines
from tasks.lib import metrics
from tasks.lib import text_tasks

_VALIDATION = 500  # rows
_FINAL = re.compile(r'####[\s$]*(-?\s*\$?[\d.,]*\d)')


def final_answer(text: str, **unused: Any) -> str | None:
  """Returns the number after the first '####', or None if there is none.

  '#### 1,234.50', '#### $1234.5' and '####1234.5' all give '1234.5'.

  Args:
    text: A solution.
    **unused: Arguments that seqio passes to a postprocessor.
  """
  found = _FINAL.search(text)
  if found is None:
    return None
  try:
    number = decimal.Decimal(re.sub(r'[\s$,]', '', found[1]))
  except decimal.InvalidOperation:
    return None
  return f'{number.normalize():f}'


def _example(row: Mapping[str, Any]) -> dict[str, Any]:
  question = json_lines.field(row, 'question', str)
  answer = json_lines.field(row, 'answer', str)
  if not question.strip():
    raise json_lines.BadRow("field 'question' is empty")
  if final_answer(answer) is None:
    raise json_lines.BadRow("field 'answer' has no number after '####'")
  return {'inputs': question, 'targets': answer}


def _files(split: str) -> list[str]:
  file = 'test.jsonl' if split == 'test' else 'train.jsonl'
  if 'GSM8K_DIR' not in os.environ:
    raise ValueError(
      f'GSM8K_DIR is not set. It names the directory of {file}, rows of '
      'question and answer.'
    )
  folder = paths.absolute(os.environ['GSM8K_DIR'], 'GSM8K_DIR')
  return [os.path.join(folder, file)]


def _rows(split: str) -> text_tasks.Rows:
  allowed = json_lines.max_bad_rows()
  rows = list(
    text_tasks.rows_of_files(_files(split), _example, max_bad_rows=allowed)
  )
  if split == 'train':
    return iter(rows[:-_VALIDATION])
  return iter(rows[-_VALIDATION:] if split == 'validation' else rows)


text_tasks.add_task(
  'gsm8k',
  text_tasks.Source(
    _rows,
    files=_files,
    signature=text_tasks.SUMMARY,
    splits=('train', 'validation', 'test'),
  ),
  targets_rank=1,
  postprocess_fn=final_answer,
  metric_fns=[metrics.exact_match],
)
