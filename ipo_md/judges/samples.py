"""Completions on the host, as tokens and as text, and types of host judges."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import seqio

from ipo_md import data
from ipo_md.core import types

Pairs = Sequence[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Samples:
  """K completions of each of N prompts, on the host, as tokens and as text.

  Attributes:
    tokens: numpy arrays, prompts [N, P] and completions [N, K, T].
    vocabulary: of the tokens.
    prompts: N texts, without what a prompt format adds.
    texts: N lists of K texts.
  """

  tokens: types.Completions
  vocabulary: seqio.Vocabulary
  prompts: Sequence[str]
  texts: Sequence[Sequence[str]]

  @classmethod
  def of(cls, tokens: types.Completions, dataset: data.Dataset) -> 'Samples':
    """Decodes tokens. Special tokens, such as EOS, leave no trace.

    Args:
      tokens: numpy arrays.
      dataset: of the prompts, for its vocabulary and prompt format.
    """
    decode = functools.partial(_decode, vocabulary=dataset.vocabulary)
    return cls(
      tokens=tokens,
      vocabulary=dataset.vocabulary,
      prompts=bare_texts(tokens.prompts, dataset),
      texts=[
        decode(types.Tokens(ids=ids, mask=mask))
        for ids, mask in zip(
          tokens.completions.ids, tokens.completions.mask, strict=True
        )
      ],
    )

  def take(self, columns: np.ndarray) -> 'Samples':
    """The completions columns[n, :] of each prompt n."""
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
  def beside(parts: Sequence['Samples']) -> 'Samples':
    """Completions of the same prompts, one part after the other."""
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


HostJudge = Callable[[Samples, Pairs], Iterable[np.ndarray]]
# (prompts, completions) -> measures of each completion by name, numbers.
Measure = Callable[[Sequence[str], Sequence[str]], Sequence[Mapping[str, Any]]]


def bare_texts(prompts: types.Tokens, dataset: data.Dataset) -> list[str]:
  """Prompts [N, P], decoded without what a prompt format adds."""
  return _decode(dataset.prompt_format.bare(prompts), dataset.vocabulary)


def _decode(tokens: types.Tokens, vocabulary: seqio.Vocabulary) -> list[str]:
  special_ids = [vocabulary.eos_id, vocabulary.bos_id, vocabulary.pad_id]
  keep = tokens.mask & ~np.isin(tokens.ids, special_ids)
  return [
    vocabulary.decode(row[mask].tolist())
    for row, mask in zip(tokens.ids, keep, strict=True)
  ]


def both_orders(judged: np.ndarray) -> np.ndarray:
  """[..., 2] P(y_1 > y_2 | x) in each order -> [...] their mean.

  NaN, no answer, counts 1/2. Rounded to six decimals, so that what is written
  down gives the same statistics.
  """
  return np.round(np.mean(np.nan_to_num(judged, nan=0.5), axis=-1), 6)
