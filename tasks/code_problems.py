"""Code with unit tests, in the format of HumanEval.

  code_problems  inputs, targets: the start of a program, and its task_id

CODE_FILE names a file of JSON lines, which may be gzipped, rows of task_id,
prompt, test and entry_point. All of them are the split 'test'. MAX_BAD_ROWS in
the environment is the number of rows that may be left out. The metric
`pass_rate` runs the tests of a completion in a sandbox (tasks/lib/sandbox.py);
a target is only the name of these tests, so it cannot be trained on.

Chen et al., Evaluating Large Language Models Trained on Code, arXiv 2107.03374.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
import os
import re
from typing import Any

import numpy as np

from ipo_md.core import paths
from tasks.lib import json_lines
from tasks.lib import sandbox
from tasks.lib import text_tasks

# HumanEval's stop sequences, and the end of a block.
_STOP = re.compile(r'\n(?:class|def|#|if|print|```)')
_FENCE = re.compile(
  r'```(python3?|py)?[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)', re.S | re.I
)


def program(problem: Mapping[str, str], completion: str) -> str:
  """Returns the code of a completion with the tests of a problem.

  A fenced block that defines the function replaces it in the prompt, so the
  imports and functions before it stay. Any other block that is marked as Python
  continues the prompt, and so does a completion without one, up to the next
  statement that is not indented.

  Args:
    problem: Fields of a row.
    completion: A completion of its prompt.
  """
  prompt, name = problem['prompt'], problem['entry_point']
  blocks = _FENCE.findall(completion)
  define = re.compile(rf'^(?:async )?def {name}\b', re.M)
  whole = next((code for _, code in blocks if define.search(code)), None)
  parts = [code for language, code in blocks if language]
  if whole is not None:
    begun = define.search(prompt)
    code = (prompt[: begun.start()] if begun else '') + whole
  elif parts:
    code = prompt + parts[0]
  else:
    body = _STOP.split(completion, maxsplit=1)[0]
    if re.match(r' {3}\S', body):  # SentencePiece drops a first space.
      body = f' {body}'
    code = prompt + body
  return f'{code}\n\n{problem["test"]}\n\ncheck({name})\n'


def pass_rate(
  targets: Sequence[str], predictions: Sequence[str]
) -> Mapping[str, float]:
  """Returns how often a completion passes its tests.

  Args:
    targets: [N] task_ids of CODE_FILE.
    predictions: [N] completions.

  Raises:
    ValueError: A target is no task_id of CODE_FILE, or the sandbox does not
      work here.
  """
  (file,) = _files('test')
  problems = _problems(file)
  passed = []
  for target, completion in zip(targets, predictions, strict=True):
    if target not in problems:
      raise ValueError(
        f'{target!r} is no task_id of CODE_FILE {file}: VOCABULARY has to '
        'write task_ids exactly.'
      )
    passed.append(sandbox.run(program(problems[target], completion)).passed)
  return {'pass_rate': 100 * float(np.mean(passed))}


def _problem(row: Mapping[str, Any]) -> dict[str, str]:
  names = ('task_id', 'prompt', 'test', 'entry_point')
  found = {name: json_lines.field(row, name, str) for name in names}
  if not found['task_id'] or found['task_id'] != found['task_id'].strip():
    raise json_lines.BadRow("field 'task_id' is empty or has spaces around it")
  if not found['entry_point'].isidentifier():
    raise json_lines.BadRow("field 'entry_point' is no name of a function")
  if 'def check(' not in found['test']:
    raise json_lines.BadRow("field 'test' does not define check(candidate)")
  return found


def _example(row: Mapping[str, Any]) -> dict[str, Any]:
  problem = _problem(row)
  return {'inputs': problem['prompt'], 'targets': problem['task_id']}


@functools.cache
def _problems(file: str) -> dict[str, dict[str, str]]:
  allowed, found = json_lines.max_bad_rows(), {}
  for key, row in json_lines.read([file], _problem, max_bad_rows=allowed):
    if row['task_id'] in found:
      raise ValueError(f'{file}, {key}: task_id {row["task_id"]!r} is not new.')
    found[row['task_id']] = row
  return found


def _files(split: str) -> list[str]:
  del split
  if 'CODE_FILE' not in os.environ:
    raise ValueError(
      'CODE_FILE is not set. It names a file of JSON lines, rows of task_id, '
      'prompt, test and entry_point.'
    )
  sandbox.check()  # before a run samples what it cannot test
  return [paths.absolute(os.environ['CODE_FILE'], 'CODE_FILE')]


def _rows(split: str) -> text_tasks.Rows:
  (file,) = _files(split)
  _problems(file)
  allowed = json_lines.max_bad_rows()
  return text_tasks.rows_of_files([file], _example, max_bad_rows=allowed)


text_tasks.add_task(
  'code_problems',
  text_tasks.Source(
    _rows, files=_files, signature=text_tasks.SUMMARY, splits=('test',)
  ),
  targets_rank=1,
  metric_fns=[pass_rate],
)
