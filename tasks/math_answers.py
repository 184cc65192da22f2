r"""MATH: competition mathematics, whose final answers are compared by meaning.

  math_answers  inputs, targets: a problem and a solution with \boxed{answer}

MATH_DIR names a directory with train.jsonl and test.jsonl, rows of problem and
solution, as published, or of problem and answer; MATH-500 has all three. The
last 500 rows of train.jsonl are the validation split. MAX_BAD_ROWS in the
environment is the number of rows of a file that may be left out. The metric
`math_correct` compares the answer in the last \boxed{...} with math-verify,
which needs `pip install 'ipo_md[math]'`: \frac12, 1/2 and 0.5 are the same.

Hendrycks et al., arXiv 2103.03874.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import re
from typing import Any

import numpy as np

from tasks.lib import equivalence
from tasks.lib import json_lines
from tasks.lib import text_tasks
from tasks.lib import train_test_files

_BOXED = re.compile(r'\\(?:boxed|fbox)\s*(?:\{|([^\s{}$]+))')
_BRACE = re.compile(r'\\.|[{}]', re.DOTALL)


def boxed(text: str) -> str | None:
  r"""Returns what the last \boxed{...} with balanced braces has, or None.

  r'so \boxed{\frac{1}{2}}' gives r'\frac{1}{2}', and r'\boxed 5' gives '5'.
  """
  for found in reversed(list(_BOXED.finditer(text))):
    if found[1]:
      return found[1].rstrip('.,')
    depth = 1
    for brace in _BRACE.finditer(text, found.end()):
      depth += {'{': 1, '}': -1}.get(brace[0], 0)
      if not depth:
        return text[found.end() : brace.start()].strip() or None
  return None


def final_answer(text: str, *, is_target: bool, **unused: Any) -> str:
  r"""Returns the last \boxed{...} alone, or the text if it has none.

  Args:
    text: A solution.
    is_target: Whether the text is a target.
    **unused: Arguments that seqio passes to a postprocessor.

  Raises:
    ValueError: A target has no \boxed{...}.
  """
  answer = boxed(text)
  if answer is not None:
    return rf'\boxed{{{answer}}}'
  if is_target:
    raise ValueError(
      rf'A target of math_answers has lost its \boxed{{...}}: {text[-80:]!r}. '
      'VOCABULARY cannot write backslashes and braces, as that of T5 cannot.'
    )
  return text


def math_correct(
  targets: Sequence[str], predictions: Sequence[str]
) -> Mapping[str, float]:
  r"""Returns how often a prediction has the answer of its target.

  Args:
    targets: [N] correct answers in \boxed{...}.
    predictions: [N] predicted answers in \boxed{...}, or other texts, in which
      math-verify looks for an answer.
  """
  same = [
    t == p or equivalence.same(t, p)
    for t, p in zip(targets, predictions, strict=True)
  ]
  return {'math_correct': 100 * float(np.mean(same))}


def _example(row: Mapping[str, Any]) -> dict[str, Any]:
  problem = json_lines.field(row, 'problem', str)
  if not problem.strip():
    raise json_lines.BadRow("field 'problem' is empty")
  solution = json_lines.field(row, 'solution', str) if 'solution' in row else ''
  if boxed(solution) is None:
    if 'answer' not in row:
      raise json_lines.BadRow(
        r"field 'solution' has no \boxed{...}, and there is no field 'answer'"
      )
    answer = json_lines.field(row, 'answer', str)
    solution = rf'{solution} \boxed{{{answer}}}'.strip()
    if boxed(solution) is None:
      raise json_lines.BadRow("field 'answer' is empty, or its braces are open")
  return {'inputs': problem, 'targets': solution}


def _files(split: str) -> list[str]:
  found = train_test_files.files(
    split, variable='MATH_DIR', fields='problem and solution'
  )
  equivalence.check()  # before a run samples what it cannot compare
  return found


def _rows(split: str) -> text_tasks.Rows:
  return train_test_files.rows(split, _files(split), _example)


text_tasks.add_task(
  'math_answers',
  text_tasks.Source(
    _rows,
    files=_files,
    signature=text_tasks.SUMMARY,
    splits=train_test_files.SPLITS,
  ),
  targets_rank=1,
  postprocess_fn=final_answer,
  metric_fns=[math_correct],
)
