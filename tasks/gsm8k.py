"""GSM8K: grade-school mathematics, the final answer compared exactly.

  gsm8k   inputs, targets: a question, its solution that ends in '#### 18'

GSM8K_DIR names a directory of train.jsonl and test.jsonl as published, rows of
question and answer. There is no validation split: the last 500 rows of
train.jsonl are taken for one. MAX_BAD_ROWS in the environment is how many rows
of a file may be left out. The metric `exact_match` looks at the number
behind '####' alone.

Cobbe et al., arXiv 2110.14168.
"""

from collections.abc import Mapping
import decimal
import os
import re
from typing import Any

from tasks.lib import json_lines
from tasks.lib import metrics
from tasks.lib import text_tasks

_VALIDATION = 500  # rows
_FINAL = re.compile(r'####[\s$]*(-?\s*\$?[\d.,]*\d)')


def final_answer(text: str, **unused: Any) -> str | None:
  """The number behind the first '####', as 1234.5; None: there is none.

  '#### 1,234.50', '#### $1234.5' and '####1234.5' are the same number.
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
    raise json_lines.BadRow("field 'answer' has no number behind '####'")
  return {'inputs': question, 'targets': answer}


def _files(split: str) -> list[str]:
  file = 'test.jsonl' if split == 'test' else 'train.jsonl'
  if 'GSM8K_DIR' not in os.environ:
    raise ValueError(
      f'GSM8K_DIR is not set: it names the directory of {file}, rows of '
      'question and answer.'
    )
  return [os.path.join(os.environ['GSM8K_DIR'], file)]


def _rows(split: str) -> text_tasks.Rows:
  allowed = json_lines.max_bad_rows()
  read = json_lines.read(_files(split), _example, max_bad_rows=allowed)
  rows = [row for _, row in read]
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
