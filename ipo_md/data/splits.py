"""A split of a task, or a range of its examples.

train            all examples of the split `train`
train[:1000]     its first 1,000
train[500:1000]  the 500 that follow its first 500
train[500:]      all but its first 500
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math
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

  def overlaps(self, other: Split) -> bool:
    """Returns whether two ranges of a task can have an example in common."""
    ends = [math.inf if s.stop is None else s.stop for s in (self, other)]
    return self.name == other.name and max(self.start, other.start) < min(ends)


def parse(text: str) -> Split:
  """Reads the text of a split; what is no range is the name of a split."""
  found = _RANGE.fullmatch(text)
  if found is None:
    return Split(text)
  stop = int(found['stop']) if found['stop'] else None
  return Split(found['name'], int(found['start'] or 0), stop)


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
  found, name = parse(text), text.partition('[')[0]
  if name not in names:
    raise ValueError(f'{place} has no split {name!r}, only {sorted(names)}.')
  if found.name != name:
    raise ValueError(
      f'{place}: {text!r} is no range of the split {name!r}. A range has '
      f"numbers of examples, such as '{name}[:1000]' or '{name}[500:1000]'."
    )
  if found.stop is not None and found.stop <= found.start:
    raise ValueError(f'{place}: the range {text!r} is empty.')
  return found
