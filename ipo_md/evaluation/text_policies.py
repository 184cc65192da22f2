"""Reads policies of another model as the texts that `infer` wrote.

Their tokens may be of another vocabulary. Judges that read text can compare
them with policies of the run's own model; judges that read tokens cannot.
"""

import dataclasses
import math
import os
import re
import unicodedata

from etils import epath
import numpy as np

from ipo_md import data
from ipo_md.core import identity
from ipo_md.core import row_files
from ipo_md.evaluation import completions_file
from ipo_md.evaluation import drawn_samples


def is_texts(path: str) -> bool:
  """Returns whether a path is the MODEL_DIR of an `infer` run."""
  folder = epath.Path(path)
  return (folder / completions_file.NAME).exists() and not (
    folder / 'checkpoints'
  ).exists()


def identify(path: str, name: str) -> identity.Identity | None:
  """Identifies the completions of an `infer` run.

  Args:
    path: MODEL_DIR of the run.
    name: Name of the policy, for messages.
  """
  return identity.of_file(str(epath.Path(path) / completions_file.NAME), name)


def read(
  name: str, path: str, count: int, dataset: data.Dataset, width: int
) -> drawn_samples.Drawn:
  """Reads the first completion of each prompt.

  Args:
    name: Name of the policy, for messages.
    path: MODEL_DIR of the `infer` run.
    count: EVAL_EXAMPLES, the number of prompts.
    dataset: Data set whose prompts the run should have completed.
    width: T, the width of the empty token arrays.

  Returns:
    Completions with K = 1. Their log-probabilities are NaN, and of their tokens
    only the number is known.

  Raises:
    ValueError: The run has too few lines, a line of another form, or a line for
      another prompt.
  """
  place = f'POLICIES[{name!r}] {path}'
  file = os.fspath(epath.Path(path) / completions_file.NAME)
  lines = list(row_files.lines(file, f'POLICIES[{name!r}]'))
  if len(lines) < count:
    raise ValueError(
      f'{place} has completions of {len(lines)} prompts, but EVAL_EXAMPLES '
      f'is {count}.'
    )
  rows = []
  for n, (task, row) in enumerate(data.first_rows(dataset, count)):
    try:
      line = row_files.parse_row(lines[n])
      theirs = row_files.field(line, 'prompt', str)
      first = row_files.field(line, 'completions.0', dict)
      completion = {
        'text': row_files.field(first, 'text', str),
        'ids': (),
        'ended': bool(first['ended']),
        'log_prob': math.nan,
        'log_ratio': math.nan,
      }
      length = int(first['tokens']) - completion['ended']
    except (ValueError, KeyError, TypeError, IndexError) as error:
      raise ValueError(
        f'{place}: line {n + 1} of {completions_file.NAME} was not written by '
        f'gin/runs/infer.gin ({error!r}).'
      ) from error
    ours = dataset.vocabulary.decode(
      dataset.examples[task].prompts.row(row).tolist()
    )
    if _letters(ours) != _letters(theirs):
      raise ValueError(
        f'{place}: prompt {n} is {theirs[:60]!r}, but here it is '
        f'{ours[:60]!r}. Both runs need the same PROMPT_TASK and the same '
        'split (INFER_SPLIT, HELD_OUT_SPLIT).'
      )
    rows.append({'prompt': ours, 'completions': [completion], 'length': length})
  prompts = dataset.prompts(data.first_rows(dataset, count))
  drawn = drawn_samples.from_rows(rows, prompts, dataset, width)
  lengths = np.array([[row['length']] for row in rows])
  return dataclasses.replace(drawn, length=lengths)


def _letters(text: str) -> str:
  """Returns the letters and digits of a text, in lower case.

  Vocabularies decode spaces and symbols differently.
  """
  text = unicodedata.normalize('NFKC', text).lower()
  return re.sub('[^a-z0-9]', '', text)
