"""Checks a chunk of tokenised examples, and names the row of a fault."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etils import epy
import numpy as np
import numpy.typing as npt

with epy.lazy_imports():
  import tensorflow as tf

SCORES = ('preference', 'rewards', 'reference_log_prob')


def number(
  batch: Mapping[str, Any], k: int | None, place: str, first: int
) -> int:
  """Returns K and raises a ValueError if a row has another number."""
  if 'targets' not in batch:
    return 0
  if 'targets_lengths' not in batch:
    return 1
  lengths = batch['targets_lengths']
  if isinstance(lengths, tf.RaggedTensor):
    sizes = lengths.row_lengths().numpy()
  else:
    sizes = np.full(lengths.shape[0], lengths.shape[1])
  k = int(sizes[0]) if k is None else k
  for row in np.flatnonzero(sizes != k)[:1]:
    raise ValueError(
      f'Row {first + row} of {place} has {sizes[row]} targets where others '
      f'have {k}. Pad with rows of -1.'
    )
  return k


def check_padding(
  chunk: Mapping[str, np.ndarray], k: int, place: str, first: int
) -> None:
  """Raises a ValueError if targets are padded with EOS, whose id is 0.

  A text has no EOS, so two of them at its end can only be padding.
  """
  ends = np.cumsum(chunk['targets_lengths'])[chunk['targets_lengths'] > 1]
  rows = np.flatnonzero(chunk['targets_lengths'] > 1)
  ids = chunk['targets']
  for row in rows[(ids[ends - 1] == 0) & (ids[ends - 2] == 0)][:1]:
    raise ValueError(
      f'Row {first + row // k} of {place} has `targets` padded with 0, which '
      'is EOS of VOCABULARY. Pad with -1.'
    )


def check_rows(
  chunk: Mapping[str, np.ndarray], k: int, place: str, first: int
) -> None:
  """Raises a ValueError at the first row that no run can use."""

  def refuse(bad: npt.ArrayLike, problem: str) -> None:
    for row in np.flatnonzero(bad)[:1]:
      raise ValueError(f'Row {first + row} of {place} {problem}')

  rows = len(chunk['inputs_lengths'])
  refuse(chunk['inputs_lengths'] == 0, 'has an empty prompt (`inputs`).')
  if 'targets' not in chunk:
    return
  present = chunk['targets_lengths'].reshape(rows, k) > 0
  refuse(~present.any(axis=1), 'has no completion (`targets`).')
  for score in SCORES:
    if score not in chunk:
      continue
    values = chunk[score]
    if score == 'preference':
      refuse(
        ~((values >= 0) & (values <= 1)),
        'has a `preference` outside of 0 to 1.',
      )
      refuse(
        ~present.all(axis=1),
        'has a `preference` but not all of its completions (`targets`).',
      )
    elif score == 'rewards' and (present.sum(axis=1) < 2).any():
      refuse(
        present.sum(axis=1) < 2,
        'has `rewards` and one completion (`targets`), so no other score to '
        'compare with. Leave the row out.',
      )
    elif values.shape != present.shape:
      raise ValueError(
        f'`{score}` of {place} has {values.shape[1]} values a row for {k} '
        'completions.'
      )
    else:
      refuse(
        (~np.isfinite(values) & present).any(axis=1),
        f'has a `{score}` that is not a number.',
      )
