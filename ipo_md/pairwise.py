"""Judges of side-by-side comparisons, one seam for all kinds.

  judge(samples, pairs) -> [N, J, 2]

For each of N prompts and J pairs (i, k) of completions, P(y_i > y_k | x) with
y_i shown first, and with y_i shown second. A judge that sees no order gives
the same number twice.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np
from scipy import special
import seqio

from ipo_md import checkpoints
from ipo_md import judges
from ipo_md import sharding
from ipo_md import telemetry
from ipo_md import types
from ipo_md.models import model as model_lib

Pairs = Sequence[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Samples:
  """K completions of each of N prompts, on the host, as tokens and as text.

  Attributes:
    tokens: numpy arrays, prompts [N, P] and completions [N, K, T].
    vocabulary: of the tokens.
    prompts: N texts.
    texts: N lists of K texts.
  """

  tokens: types.Completions
  vocabulary: seqio.Vocabulary
  prompts: Sequence[str]
  texts: Sequence[Sequence[str]]

  @classmethod
  def of(
    cls, tokens: types.Completions, vocabulary: seqio.Vocabulary
  ) -> 'Samples':
    """Decodes tokens. Special tokens, such as EOS, leave no trace."""
    decode = functools.partial(_decode, vocabulary=vocabulary)
    return cls(
      tokens=tokens,
      vocabulary=vocabulary,
      prompts=decode(tokens.prompts),
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


Judge = Callable[[Samples, Pairs], np.ndarray]
# (prompts, completions) -> measures of each completion by name, numbers.
Measure = Callable[[Sequence[str], Sequence[str]], Sequence[Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class TextJudge:
  """A function of texts as a judge, such as a task's ground truth.

  Attributes:
    preference: (prompt, y_1, y_2) -> P(y_1 > y_2 | x).
  """

  preference: Callable[[str, str, str], float]

  def __call__(self, samples: Samples, pairs: Pairs) -> np.ndarray:
    return np.array(
      [
        [
          (
            self.preference(prompt, row[i], row[k]),
            1 - self.preference(prompt, row[k], row[i]),
          )
          for i, k in pairs
        ]
        for prompt, row in zip(samples.prompts, samples.texts, strict=True)
      ]
    )


class LearnedJudge:
  """A judge of `judges` with a checkpoint, on the device.

  One that compares, hence gives a matrix, reads each pair; another gives
  rewards and reads each completion once.

  Args:
    judge: of `judges`, its network bound.
    model: that network.
    checkpoint_path: of its parameters.
    batch_size: prompts that are judged at a time.
    label: shown while it judges.
  """

  def __init__(
    self,
    *,
    judge: judges.Judge,
    model: model_lib.Model,
    checkpoint_path: str,
    batch_size: int,
    label: str = 'judging',
  ):
    self._judge = jax.jit(judge)
    self._model = model
    self.checkpoint_path = checkpoint_path
    self._batch_size = batch_size
    self._label = label
    self._params = None

  def __call__(self, samples: Samples, pairs: Pairs) -> np.ndarray:
    params = self._load(samples.vocabulary)
    two = jax.eval_shape(self._judge, params, _columns(samples.tokens, (0, 1)))
    if two.matrix is not None:
      matrices = np.stack(self._run(params, samples.tokens, pairs, 'matrix'), 1)
      return np.stack([matrices[..., 0, 1], 1 - matrices[..., 1, 0]], axis=-1)
    if two.rewards is not None:
      every = range(len(samples.texts[0]))
      (rewards,) = self._run(params, samples.tokens, [every], 'rewards')
      first, second = np.array(pairs).T
      margin = rewards[:, first].astype(np.float64) - rewards[:, second]
      found = special.expit(margin)
    else:
      found = np.stack(
        self._run(params, samples.tokens, pairs, 'preference'), axis=1
      )
    return np.stack([found, found], axis=-1)

  def _load(self, vocabulary: seqio.Vocabulary) -> types.Params:
    if self._params is None:
      self._params = checkpoints.load_params(
        self.checkpoint_path,
        self._model,
        jax.sharding.get_mesh(),
        name='the checkpoint path of a judge',
        vocabulary=vocabulary,
      )
    return self._params

  def _run(
    self,
    params: types.Params,
    tokens: types.Completions,
    groups: Sequence[Sequence[int]],
    field: str,
  ) -> list[np.ndarray]:
    """A field of what it says about each group of columns, [N, ...] each."""
    count = tokens.prompts.ids.shape[0]
    placed = sharding.batch(jax.sharding.get_mesh())
    starts = range(0, count, self._batch_size)
    work = [(columns, start) for columns in groups for start in starts]
    found = []
    for columns, start in telemetry.progress(work, len(work), self._label):
      rows = np.arange(start, start + self._batch_size) % count
      batch = jax.tree.map(lambda x, r=rows: x[r], _columns(tokens, columns))
      judged = self._judge(params, jax.device_put(batch, placed))
      found.append(getattr(judged, field))
    found = multihost_utils.process_allgather(found, tiled=True)
    size = len(starts)
    return [
      np.concatenate(found[g * size : (g + 1) * size])[:count]
      for g in range(len(groups))
    ]


def preference(judge: Judge, samples: Samples, pairs: Pairs) -> np.ndarray:
  """[N, J] P(y_i > y_k | x), both orders averaged, to six decimals.

  Rounded here, so that what is written down gives the same statistics.
  """
  return np.round(np.mean(judge(samples, pairs), axis=-1), 6)


def best_of(judge: Judge, samples: Samples) -> np.ndarray:
  """[N] the completion that a judge prefers over the others of its prompt."""
  k = len(samples.texts[0])
  pairs = [(i, j) for i in range(k) for j in range(i + 1, k)]
  judged = preference(judge, samples, pairs)
  score = np.zeros((len(judged), k))
  for n, (i, j) in enumerate(pairs):
    score[:, i] += judged[:, n]
    score[:, j] += 1 - judged[:, n]
  return np.argmax(score, axis=1)


def _columns(
  tokens: types.Completions, columns: Sequence[int]
) -> types.Completions:
  pick = lambda x: x[:, list(columns)]
  return tokens.replace(completions=jax.tree.map(pick, tokens.completions))


def _decode(tokens: types.Tokens, vocabulary: seqio.Vocabulary) -> list[str]:
  special_ids = [vocabulary.eos_id, vocabulary.bos_id, vocabulary.pad_id]
  keep = tokens.mask & ~np.isin(tokens.ids, special_ids)
  return [
    vocabulary.decode(row[mask].tolist())
    for row, mask in zip(tokens.ids, keep, strict=True)
  ]
