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
import re
from typing import Any

from tasks.lib import json_lines
from tasks.lib import metrics
from tasks.lib import text_tasks
from tasks.lib import train_test_files

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
  return train_test_files.files(
    split, variable='GSM8K_DIR', fields='question and answer'
  )


def _rows(split: str) -> text_tasks.Rows:
  return train_test_files.rows(split, _files(split), _example)


text_tasks.add_task(
  'gsm8k',
  text_tasks.Source(
    _rows,
    files=_files,
    signature=text_tasks.SUMMARY,
    splits=train_test_files.SPLITS,
  ),
  targets_rank=1,
  postprocess_fn=final_answer,
  metric_fns=[metrics.exact_match],
)
