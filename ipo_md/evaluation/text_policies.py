"""Policies of another model or vocabulary, as the texts that `infer` wrote.

Their tokens are of another vocabulary, so judges that read text compare them
with policies of the run's own model, and judges that read tokens cannot.
"""

import dataclasses
import json
import math
import re
import unicodedata

from etils import epath
import numpy as np

from ipo_md import data
from ipo_md.evaluation import drawing
from ipo_md.evaluation import infer


def is_texts(path: str) -> bool:
  """Whether a policy is given as the MODEL_DIR of an `infer` run."""
  folder = epath.Path(path)
  return (folder / infer.COMPLETIONS_FILE).exists() and not (
    folder / 'checkpoints'
  ).exists()


def read(
  name: str, path: str, count: int, dataset: data.Dataset, width: int
) -> drawing.Drawn:
  """The first completion of each of the first `count` prompts, K = 1.

  Log-probabilities are NaN, and there are no tokens but for their number.

  Args:
    name: of the policy, for messages.
    path: MODEL_DIR of the `infer` run.
    count: EVAL_EXAMPLES.
    dataset: of the prompts that the run is to have completed.
    width: T of the empty token arrays.

  Raises:
    ValueError: there are not as many, or a prompt is another one.
  """
  place = f'POLICIES[{name!r}] {path}'
  lines = (epath.Path(path) / infer.COMPLETIONS_FILE).read_text().split('\n')
  if len(lines) <= count:
    raise ValueError(
      f'{place} has completions of {len(lines) - 1} prompts; EVAL_EXAMPLES is '
      f'{count}.'
    )
  rows = []
  for n, (task, row) in enumerate(data.first_rows(dataset, count)):
    try:
      line = json.loads(lines[n])
      theirs, first = line['prompt'], line['completions'][0]
      completion = {
        'text': first['text'],
        'ids': (),
        'ended': bool(first['ended']),
        'log_prob': math.nan,
        'log_ratio': math.nan,
      }
      length = int(first['tokens']) - completion['ended']
    except (ValueError, KeyError, TypeError, IndexError) as error:
      raise ValueError(
        f'{place}: line {n + 1} of {infer.COMPLETIONS_FILE} is not one of '
        f'gin/runs/infer.gin ({error!r}).'
      ) from error
    ours = dataset.vocabulary.decode(
      dataset.examples[task].prompts.row(row).tolist()
    )
    if _letters(ours) != _letters(theirs):
      raise ValueError(
        f'{place}: prompt {n} is {theirs[:60]!r}, and here {ours[:60]!r}. Both '
        'runs are to have the same PROMPT_TASK and split (INFER_SPLIT, '
        'HELD_OUT_SPLIT).'
      )
    rows.append({'prompt': ours, 'completions': [completion], 'length': length})
  prompts = dataset.rows(data.first_rows(dataset, count))
  drawn = drawing.of_rows(rows, prompts, dataset, width)
  lengths = np.array([[row['length']] for row in rows])
  return dataclasses.replace(drawn, length=lengths)


def _letters(text: str) -> str:
  """What vocabularies agree on: they decode spaces and symbols differently."""
  text = unicodedata.normalize('NFKC', text).lower()
  return re.sub('[^a-z0-9]', '', text)
