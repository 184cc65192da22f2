"""Prints examples of a run's data, their lengths and what is truncated."""

from __future__ import annotations

from collections.abc import Callable
import itertools

import jax
import numpy as np

from ipo_md.core import types
from ipo_md.data import dataset as dataset_lib
from ipo_md.data import encoding

_BINS = 12
_BAR = 40  # characters


def preview(
  *, dataset: Callable[[], dataset_lib.Dataset], examples: int = 3
) -> None:
  """Prints the first examples of each task and histograms of lengths.

  Args:
    dataset: A function that loads the data set, `data.load` with its arguments
      bound.
    examples: Number of examples of each task.
  """
  loaded = dataset()
  for name, count in loaded.counts.items():
    print(f'{name:32}{count:12,}')
  room = loaded.prompt_format.room(loaded.lengths['inputs'])
  rendered = [e.rendered for e in loaded.examples if e.rendered is not None]
  rows = rendered or [e.prompts for e in loaded.examples]
  kind = 'rendered prompts' if rendered else 'bare prompts'
  lengths = np.concatenate([r.lengths for r in rows])
  print(f'\nTokens of the {kind}; {room} fit:')
  print(histogram(lengths, room))
  if not loaded.prompts_only:
    lengths = np.concatenate([e.completions.lengths for e in loaded.examples])
    limit = loaded.lengths['targets']
    print(f'\nTokens of the completions with EOS; {limit} fit:')
    print(histogram(lengths[lengths > 0], limit))
  for task, rows in enumerate(loaded.examples):
    for row in range(min(examples, len(rows))):
      print(f'\n--- {rows.name}, example {row + 1} of {len(rows):,}')
      print(example(loaded.rows([(task, row)]), loaded.vocabulary))


def histogram(lengths: np.ndarray, limit: int) -> str:
  """Draws a histogram in which lengths over the limit are marked as cut.

  Args:
    lengths: [N] numbers of tokens, N at least 1.
    limit: Number of tokens that fit.

  Returns:
    The lines of the histogram and a line with the mean and the maximum.
  """
  width = max(1, -(-limit // _BINS))
  edges = [*range(0, limit, width), limit]
  bins = [
    (f'{first + 1} to {last}', (lengths > first) & (lengths <= last))
    for first, last in itertools.pairwise(edges)
  ]
  bins.append((f'over {limit}: cut', lengths > limit))
  counts = [int(within.sum()) for _, within in bins]
  lines = [
    f'  {name:>18} {count:10,} {"#" * round(_BAR * count / max(1, *counts))}'
    for (name, _), count in zip(bins, counts, strict=True)
  ]
  return '\n'.join(
    [*lines, f'  mean {lengths.mean():.1f}, longest {lengths.max()}']
  )


def example(
  batch: types.Labelled | types.Tokens, vocabulary: types.Vocabulary
) -> str:
  """Describes a batch of one example as text and tokens.

  The whole formatted prompt is shown, with its special tokens.
  """
  if isinstance(batch, types.Tokens):
    return _segment('prompt', batch.ids[0][batch.mask[0]], vocabulary)
  prompts = batch.completions.prompts
  parts = [_segment('prompt', prompts.ids[0][prompts.mask[0]], vocabulary)]
  if batch.preference is not None:
    parts.append(f'P(completion 1 is better) = {batch.preference[0]:g}')
  tokens = batch.completions.completions
  for k, present in enumerate(batch.completion_mask[0]):
    name = f'completion {k + 1}'
    if batch.rewards is not None:
      name += f', reward {batch.rewards[0, k]:g}'
    if present:
      ids = tokens.ids[0, k][tokens.mask[0, k]]
      parts.append(_segment(name, ids, vocabulary))
    else:
      parts.append(f'completion {k + 1}: absent')
  return '\n'.join(parts)


def _segment(name: str, ids: jax.Array, vocabulary: types.Vocabulary) -> str:
  numbers = [int(i) for i in ids]
  text = encoding.show(vocabulary, numbers)
  listed = ' '.join(map(str, numbers))
  return f'{name}, {len(numbers)} tokens: {text}\n  {listed}'
