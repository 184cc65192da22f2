"""Judges of side-by-side comparisons, one seam for all kinds.

  judge(samples, pairs) yields [N, 2] for each pair (i, k)

P(y_i > y_k | x) for each of N prompts, with y_i shown first and with y_i shown
second. A judge that sees no order gives the same number twice; NaN is an answer
that names no winner and counts as a tie. Pair by pair, so that what is judged
can be kept.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses

import jax
from jax.experimental import multihost_utils
import numpy as np
from scipy import special
import seqio

from ipo_md import checkpoints
from ipo_md import models
from ipo_md.core import part_store
from ipo_md.core import progress
from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.judges import learned
from ipo_md.judges import samples as samples_lib


@dataclasses.dataclass(frozen=True)
class TextJudge:
  """A function of texts as a judge, such as a task's ground truth.

  Attributes:
    preference: (prompt, y_1, y_2) -> P(y_1 > y_2 | x).
  """

  preference: Callable[[str, str, str], float]

  def __call__(
    self, samples: samples_lib.Samples, pairs: samples_lib.Pairs
  ) -> Iterator[np.ndarray]:
    rows = list(zip(samples.prompts, samples.texts, strict=True))
    for i, k in pairs:
      yield np.array(
        [
          (
            self.preference(prompt, row[i], row[k]),
            1 - self.preference(prompt, row[k], row[i]),
          )
          for prompt, row in rows
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
    judge: learned.DeviceJudge,
    model: models.Model,
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

  def __call__(
    self, samples: samples_lib.Samples, pairs: samples_lib.Pairs
  ) -> Iterator[np.ndarray]:
    params = self._load(samples.vocabulary)
    two = jax.eval_shape(self._judge, params, _columns(samples.tokens, (0, 1)))
    if two.matrix is not None:
      for found in self._run(params, samples.tokens, pairs, 'matrix'):
        yield np.stack([found[:, 0, 1], 1 - found[:, 1, 0]], axis=-1)
    elif two.rewards is not None:
      every = range(len(samples.texts[0]))
      (rewards,) = self._run(params, samples.tokens, [every], 'rewards')
      for i, k in pairs:
        margin = rewards[:, i].astype(np.float64) - rewards[:, k]
        yield np.stack([special.expit(margin)] * 2, axis=-1)
    else:
      for found in self._run(params, samples.tokens, pairs, 'preference'):
        yield np.stack([found] * 2, axis=-1)

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
  ) -> Iterator[np.ndarray]:
    """A field of what it says about each group of columns, [N, ...] each."""
    count = tokens.prompts.ids.shape[0]
    placed = sharding.batch(jax.sharding.get_mesh())
    starts = range(0, count, self._batch_size)
    work = [(columns, start) for columns in groups for start in starts]
    found = []
    for columns, start in progress.progress(work, len(work), self._label):
      rows = np.arange(start, start + self._batch_size) % count
      batch = jax.tree.map(lambda x, r=rows: x[r], _columns(tokens, columns))
      judged = self._judge(params, jax.device_put(batch, placed))
      found.append(getattr(judged, field))
      if start == starts[-1]:
        found = multihost_utils.process_allgather(found, tiled=True)
        yield np.concatenate(found)[:count]
        found = []


class Kept:
  """A judge whose judgements of each pair are kept on disk.

  Args:
    judge: is asked about what is not there.
    name: of the judge.
    parts: where judgements are.
    recipe: all that the judge is made of.
  """

  def __init__(
    self,
    judge: samples_lib.HostJudge,
    name: str,
    parts: part_store.Folder,
    recipe: part_store.Recipe,
  ):
    self._judge, self._name, self._parts = judge, name, parts
    self._recipe = {'judge': name, **recipe}

  def __call__(
    self, samples: samples_lib.Samples, pairs: samples_lib.Pairs
  ) -> Iterator[np.ndarray]:
    tokens = samples.tokens.completions
    columns = {
      k: part_store.digest(
        [
          samples.prompts,
          [row[k] for row in samples.texts],
          np.where(tokens.mask[:, k], tokens.ids[:, k], -1).tolist(),
        ]
      )
      for k in {k for pair in pairs for k in pair}
    }
    recipes = [
      {**self._recipe, 'pair': [columns[i], columns[k]]} for i, k in pairs
    ]
    found = [
      self._parts.get('judgements', self._name, recipe) for recipe in recipes
    ]
    missing = [j for j, rows in enumerate(found) if rows is None]
    if missing:
      judged = self._judge(samples, [pairs[j] for j in missing])
      for j, rows in zip(missing, judged, strict=True):
        found[j] = rows
        self._parts.put('judgements', self._name, recipes[j], rows.tolist())
    yield from map(np.asarray, found)


def orders(
  judge: samples_lib.HostJudge,
  samples: samples_lib.Samples,
  pairs: samples_lib.Pairs,
) -> np.ndarray:
  """[N, J, 2] what a judge yields."""
  if not pairs:  # a lone policy
    return np.zeros((len(samples.prompts), 0, 2))
  return np.stack(list(judge(samples, pairs)), axis=1)


def preference(
  judge: samples_lib.HostJudge,
  samples: samples_lib.Samples,
  pairs: samples_lib.Pairs,
) -> np.ndarray:
  """[N, J] P(y_i > y_k | x), both orders averaged."""
  return samples_lib.both_orders(orders(judge, samples, pairs))


def best_of(
  judge: samples_lib.HostJudge, samples: samples_lib.Samples
) -> np.ndarray:
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
