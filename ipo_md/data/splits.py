"""A split of a task, or a range of its examples.

train            all examples of the split `train`
train[:1000]     its first 1,000
train[500:1000]  the 500 that follow its first 500
train[500:]      all but its first 500
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import re

_RANGE = re.compile(r'(?P<name>[^\[\]]+)\[(?P<start>\d*):(?P<stop>\d*)\]')


@dataclasses.dataclass(frozen=True)
class Split:
  """Examples from `start` up to, not including, `stop` of the split `name`."""

  name: str
  start: int = 0
  stop: int | None = None

  def size(self, examples: int) -> int:
    """Returns how many of the split's examples the range has."""
    stop = examples if self.stop is None else min(self.stop, examples)
    return max(stop - self.start, 0)


def read(text: str, *, place: str, names: Sequence[str]) -> Split:
  """Reads the text of a split.

  Args:
    text: The name of a split, or a range of its examples.
    place: Who has the splits, for messages.
    names: The names of the splits that there are.

  Raises:
    ValueError: There is no such split, or the range is empty or malformed.
  """
  if text in names:
    return Split(text)
  found = _RANGE.fullmatch(text)
  name = found['name'] if found else text.partition('[')[0]
  if name not in names:
    raise ValueError(f'{place} has no split {name!r}, only {sorted(names)}.')
  if not found:
    raise ValueError(
      f'{place}: {text!r} is no range of the split {name!r}. A range has '
      f"numbers of examples, such as '{name}[:1000]' or '{name}[500:1000]'."
    )
  start = int(found['start'] or 0)
  stop = int(found['stop']) if found['stop'] else None
  if stop is not None and stop <= start:
    raise ValueError(f'{place}: the range {text!r} is empty.')
  return Split(name, start, stop)
