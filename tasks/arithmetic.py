"""Addition with an exact checker: a reasoning task without a download.

  arithmetic   inputs, targets: '47 + 86 =' and '133', or a wrong sum

The two numbers have up to two digits. Targets of the train split are right for
about half of the problems, so a policy that is fine-tuned on them solves some
of the problems, and online training against `reward` can teach it to solve
most. Targets of the other splits are right. No problem is in two splits.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import hashlib
import re
from typing import Any

from tasks.lib import metrics
from tasks.lib import text_tasks

LIMIT = 100  # numbers are below it
_RIGHT = 0.5  # share of right targets in the train split
_BUCKETS = {'train': range(2, 16), 'validation': (0,), 'test': (1,)}
_PROBLEM = re.compile(r'(\d+) \+ (\d+) =')


def _hash(*key: int | str) -> int:
  return int.from_bytes(hashlib.blake2b(repr(key).encode()).digest()[:8], 'big')


def problems(split: str) -> Iterator[tuple[int, int]]:
  """Yields the pairs of numbers of a split, in a fixed random order."""
  pairs = [(a, b) for a in range(LIMIT) for b in range(LIMIT)]
  for a, b in sorted(pairs, key=lambda pair: _hash('order', *pair)):
    if _hash('split', a, b) % 16 in _BUCKETS[split]:
      yield a, b


def _rows(split: str) -> text_tasks.Rows:
  for a, b in problems(split):
    answer = a + b
    if split == 'train' and _hash('right', a, b) % 1024 >= 1024 * _RIGHT:
      # Wrong by a carry, a digit or both, as people are wrong.
      answer += (-10, -1, 1, 10, 9, -9)[_hash('error', a, b) % 6]
    yield {'inputs': f'{a} + {b} =', 'targets': str(max(answer, 0))}


def solution(prompt: str) -> str:
  """Returns the answer of a problem.

  Raises:
    ValueError: The prompt is not a problem of this task.
  """
  found = _PROBLEM.search(prompt)
  if found is None:
    raise ValueError(f'{prompt!r} is not a problem of arithmetic.')
  return str(int(found[1]) + int(found[2]))


def reward(
  prompts: Sequence[str], completions: Sequence[Sequence[str]]
) -> list[list[float]]:
  """Returns 1 for a right answer and 0 for every other text.

  Args:
    prompts: N problems.
    completions: K completions of each of them.
  """
  return [
    [float(text.strip() == solution(prompt)) for text in row]
    for prompt, row in zip(prompts, completions, strict=True)
  ]


def _answer(text: str, **unused: Any) -> str:
  return text.strip()


text_tasks.add_task(
  'arithmetic',
  text_tasks.Source(
    _rows,
    files=lambda split: [f'arithmetic {split}'],  # made, not read
    signature=text_tasks.SUMMARY,
    splits=tuple(_BUCKETS),
  ),
  targets_rank=1,
  postprocess_fn=_answer,
  metric_fns=[metrics.exact_match],
)
