"""Samples on the host, as tokens and as text, and the type of host judges."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from ipo_md import data
from ipo_md.core import types

Pairs = Sequence[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Samples:
  """K completions of each of N prompts, on the host, as tokens and as text.

  Attributes:
    tokens: Numpy arrays of the prompts [N, P] and the completions [N, K, T].
    vocabulary: The vocabulary of the tokens.
    prompts: N prompts as text, without what the prompt format adds.
    texts: N lists of K completions as text.
  """

  tokens: types.Completions
  vocabulary: types.Vocabulary
  prompts: Sequence[str]
  texts: Sequence[Sequence[str]]

  @classmethod
  def of(cls, tokens: types.Completions, dataset: data.Dataset) -> 'Samples':
    """Decodes tokens. Special tokens, such as EOS, are dropped.

    Args:
      tokens: Numpy arrays of the prompts [N, P] and the completions [N, K, T].
      dataset: The data set of the prompts, which has their vocabulary and
        their prompt format.
    """
    decode = functools.partial(_decode, vocabulary=dataset.vocabulary)
    return cls(
      tokens=tokens,
      vocabulary=dataset.vocabulary,
      prompts=decode_prompts(tokens.prompts, dataset),
      texts=[
        decode(types.Tokens(ids=ids, mask=mask))
        for ids, mask in zip(
          tokens.completions.ids, tokens.completions.mask, strict=True
        )
      ],
    )

  def take(self, columns: np.ndarray) -> 'Samples':
    """Selects the completions columns[n, :] of each prompt n.

    Args:
      columns: [N, K'] indices of completions.
    """
    pick = lambda x: np.take_along_axis(x, columns[..., None], axis=1)
    return dataclasses.replace(
      self,
      tokens=self.tokens.replace(
        completions=jax.tree.map(pick, self.tokens.completions)
      ),
      texts=[
        [row[k] for k in chosen]
        for row, chosen in zip(self.texts, columns, strict=True)
      ],
    )

  @staticmethod
  def concatenate(parts: Sequence['Samples']) -> 'Samples':
    """Concatenates completions of the same prompts along K."""
    first = parts[0]
    return dataclasses.replace(
      first,
      tokens=first.tokens.replace(
        completions=jax.tree.map(
          lambda *x: np.concatenate(x, axis=1),
          *(part.tokens.completions for part in parts),
        )
      ),
      texts=[
        [text for part in row for text in part]
        for row in zip(*(part.texts for part in parts), strict=True)
      ],
    )


# (samples, pairs) -> [N, 2] for each pair (i, k); see `judges.host`.
HostJudge = Callable[[Samples, Pairs], Iterable[np.ndarray]]
# (prompts, completions) -> the metrics of each completion, by name.
Measure = Callable[[Sequence[str], Sequence[str]], Sequence[Mapping[str, Any]]]


def decode_prompts(prompts: types.Tokens, dataset: data.Dataset) -> list[str]:
  """Decodes prompts [N, P] without what the prompt format adds."""
  return _decode(dataset.prompt_format.bare(prompts), dataset.vocabulary)


def _decode(tokens: types.Tokens, vocabulary: types.Vocabulary) -> list[str]:
  # The mask leaves out padding. Its id may be that of a token of the text.
  special_ids = [
    i for i in (vocabulary.eos_id, vocabulary.bos_id) if i is not None
  ]
  shown = tokens.mask & ~np.isin(tokens.ids, special_ids)
  return [
    vocabulary.decode(row[mask].tolist())
    for row, mask in zip(tokens.ids, shown, strict=True)
  ]


def mean_over_orders(judged: np.ndarray) -> np.ndarray:
  """Averages preferences over both orders of a pair.

  The mean is rounded to six decimals, so that statistics of a results file are
  those of the run that wrote it.

  Args:
    judged: [..., 2] P(y_1 > y_2 | x) with y_1 shown first and shown second.
      NaN, which stands for no answer, counts as 1/2.

  Returns:
    [...] preferences.
  """
  return np.round(np.mean(np.nan_to_num(judged, nan=0.5), axis=-1), 6)
