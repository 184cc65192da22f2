"""Prints what a run reads: examples as text and as tokens, lengths, cuts."""

from collections.abc import Callable
from collections.abc import Sequence
import itertools

import numpy as np
import seqio

from ipo_md.core import types
from ipo_md.data import dataset as dataset_lib

_BINS = 12
_BAR = 40  # characters


def preview(
  *, dataset: Callable[[], dataset_lib.Dataset], examples: int = 3
) -> None:
  """Prints the first examples of each task, and histograms of lengths.

  Args:
    dataset: `data.load` of the run.
    examples: how many of each task.
  """
  loaded = dataset()
  for name, count in loaded.counts.items():
    print(f'{name:20}{count:12,}')
  lengths = np.concatenate([e.prompts.lengths for e in loaded.examples])
  room = loaded.prompt_format.room(loaded.lengths['inputs'])
  print(f'\nTokens of the bare prompts; {room} fit:')
  print(histogram(lengths, room))
  if not loaded.prompts_only:
    lengths = np.concatenate([e.targets.lengths for e in loaded.examples])
    limit = loaded.lengths['targets']
    print(f'\nTokens of the completions, EOS included; {limit} fit:')
    print(histogram(lengths[lengths > 0], limit))
  for task, rows in enumerate(loaded.examples):
    for row in range(min(examples, len(rows))):
      print(f'\n--- {rows.name}, example {row + 1} of {len(rows):,}')
      print(example(loaded.rows([(task, row)]), loaded.vocabulary))


def histogram(lengths: np.ndarray, limit: int) -> str:
  """Lines of a histogram; what exceeds the limit is marked as cut.

  Args:
    lengths: [N] at least one.
    limit: tokens that fit.
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
    f'  {name:>18} {count:10,} {"#" * round(_BAR * count / max(counts))}'
    for (name, _), count in zip(bins, counts, strict=True)
  ]
  return '\n'.join(
    [*lines, f'  mean {lengths.mean():.1f}, longest {lengths.max()}']
  )


def example(
  batch: types.Labelled | types.Tokens, vocabulary: seqio.Vocabulary
) -> str:
  """Text and tokens of a batch of one."""
  if isinstance(batch, types.Tokens):
    return _segment('prompt', batch.ids[0][batch.mask[0]], vocabulary)
  prompts = batch.completions.prompts
  parts = [_segment('prompt', prompts.ids[0][prompts.mask[0]], vocabulary)]
  if batch.preference is not None:
    parts.append(f'P(completion 1 is better) = {batch.preference[0]:g}')
  tokens = batch.completions.completions
  for k, there in enumerate(batch.completion_mask[0]):
    name = f'completion {k + 1}'
    if batch.rewards is not None:
      name += f', reward {batch.rewards[0, k]:g}'
    if there:
      ids = tokens.ids[0, k][tokens.mask[0, k]]
      parts.append(_segment(name, ids, vocabulary))
    else:
      parts.append(f'completion {k + 1}: there is none')
  return '\n'.join(parts)


def _segment(
  name: str, ids: Sequence[int], vocabulary: seqio.Vocabulary
) -> str:
  ids = [int(i) for i in ids]
  text = vocabulary.decode(ids)
  return f'{name}, {len(ids)} tokens: {text}\n  {" ".join(map(str, ids))}'
