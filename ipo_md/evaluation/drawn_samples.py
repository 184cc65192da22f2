"""Completions that a policy drew, on the host and as rows of JSON."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from ipo_md import data
from ipo_md import judges
from ipo_md.core import types


@dataclasses.dataclass(frozen=True)
class Drawn:
  """K completions of each of N prompts by one policy, on the host.

  Attributes:
    samples: Completions as tokens and as text.
    length: [N, K] number of tokens without EOS.
    ended: [N, K] whether the completion has EOS.
    log_prob: [N, K] log pi(y | x), nats.
    log_ratio: [N, K] log pi(y | x) - log pi_ref(y | x), nats.
  """

  samples: judges.Samples
  length: np.ndarray
  ended: np.ndarray
  log_prob: np.ndarray
  log_ratio: np.ndarray

  def take(self, columns: np.ndarray) -> 'Drawn':
    """Selects completion columns[n] of each prompt n.

    Args:
      columns: [N] index of a completion.

    Returns:
      The selected completions, K = 1.
    """
    pick = lambda x: np.take_along_axis(x, columns[:, None], axis=1)
    return Drawn(
      samples=self.samples.take(columns[:, None]),
      length=pick(self.length),
      ended=pick(self.ended),
      log_prob=pick(self.log_prob),
      log_ratio=pick(self.log_ratio),
    )


def to_rows(
  tokens: types.Completions,
  log_prob: np.ndarray,
  log_ratio: np.ndarray,
  dataset: data.Dataset,
  eos_id: types.EosId,
) -> list[dict[str, Any]]:
  """Makes a row of JSON for each prompt, the inverse of `from_rows`.

  Args:
    tokens: N prompts and their completions, numpy arrays.
    log_prob: [N, K] log pi(y | x).
    log_ratio: [N, K] log pi(y | x) - log pi_ref(y | x).
    dataset: Data set of the prompts.
    eos_id: Token that ends a completion, or several.

  Returns:
    N rows.
  """
  samples = judges.Samples.of(tokens, dataset)
  ids, mask = tokens.completions.ids, tokens.completions.mask
  ends = types.eos_ids(eos_id)
  return [
    {
      'prompt': prompt,
      'completions': [
        {
          'text': text,
          'ids': ids[n, k][mask[n, k]].tolist(),
          'ended': bool(np.any(np.isin(ids[n, k][mask[n, k]], ends))),
          'log_prob': float(log_prob[n, k]),
          'log_ratio': float(log_ratio[n, k]),
        }
        for k, text in enumerate(samples.texts[n])
      ],
    }
    for n, prompt in enumerate(samples.prompts)
  ]


def from_rows(
  rows: Sequence[Mapping[str, Any]],
  prompts: types.Tokens,
  dataset: data.Dataset,
  length: int,
) -> Drawn:
  """Makes completions from rows of JSON.

  Args:
    rows: N rows with `prompt` and `completions`, as the part store has them.
    prompts: [N, P] tokens of the prompts.
    dataset: Data set of the prompts.
    length: T, the width of the completions.
  """
  completions = [row['completions'] for row in rows]
  column = lambda name: np.array(
    [[c[name] for c in row] for row in completions]
  )
  sizes = np.array([[len(c['ids']) for c in row] for row in completions])
  ids = np.zeros((*sizes.shape, length), np.int32)
  for n, row in enumerate(completions):
    for k, completion in enumerate(row):
      ids[n, k, : sizes[n, k]] = completion['ids']
  tokens = types.Tokens(
    ids=types.as_leaf(ids),
    mask=types.as_leaf(np.arange(length) < sizes[..., None]),
  )
  ended = column('ended')
  return Drawn(
    samples=judges.Samples(
      tokens=types.Completions(prompts=prompts, completions=tokens),
      vocabulary=dataset.vocabulary,
      prompts=[row['prompt'] for row in rows],
      texts=[[c['text'] for c in row] for row in completions],
    ),
    length=sizes - ended,
    ended=ended,
    log_prob=column('log_prob'),
    log_ratio=column('log_ratio'),
  )
