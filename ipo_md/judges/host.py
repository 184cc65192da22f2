"""Judges that run on the host and compare completions of the same prompts.

  judge(samples, pairs) yields [N, 2] for each pair (i, k)

The two numbers are P(y_i > y_k | x) for each of N prompts with y_i shown first
and with y_i shown second. A judge that does not depend on the order yields the
same number twice. NaN stands for an answer that names no winner and counts as a
tie. A judge yields pair by pair, so that each result can be stored as soon as
it is known.

  judge.rewards(samples) returns [N, K], or None

A judge that declares rewards has this method too. P(y_i > y_k | x) is then
sigmoid(r_i - r_k) (Bradley-Terry), which `of_rewards` yields.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import functools

import jax
from jax.experimental import multihost_utils
import numpy as np
from scipy import special

from ipo_md import checkpoints
from ipo_md import models
from ipo_md.core import identity
from ipo_md.core import part_store
from ipo_md.core import progress
from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.judges import declaration
from ipo_md.judges import learned
from ipo_md.judges import samples as samples_lib


@declaration.declare(runs_on='host')
@dataclasses.dataclass(frozen=True)
class TextJudge:
  """Judges by a function of texts, such as the ground truth of a task.

    TextJudge(lambda prompt, y_1, y_2: float(len(y_1) < len(y_2)))

  Attributes:
    preference: Function (prompt, y_1, y_2) -> P(y_1 > y_2 | x).
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


@identity.reads(checkpoint_path=checkpoints.identify)
@declaration.declare(
  runs_on='host',
  gives=('preference', 'rewards'),
  reads='tokens',
  checkpoint=lambda judge: judge.checkpoint_path,
)
class LearnedJudge:
  """Runs a `DeviceJudge` with the parameters of a checkpoint.

  A judge that gives a matrix reads each pair. A judge that gives only rewards
  reads each completion once.

  Args:
    judge: The judge, with its network bound.
    model: The network of the judge. Its additional head is left out if the
      judge does not read it.
    checkpoint_path: Path of the judge's parameters.
    batch_size: Number of prompts that are judged at a time.
    label: Text shown by the progress bar. None shows none, for a judge that is
      called at every update.
  """

  def __init__(
    self,
    *,
    judge: learned.DeviceJudge,
    model: models.Model,
    checkpoint_path: str,
    batch_size: int,
    label: str | None = 'judging',
  ):
    self._gives = declaration.found(judge)
    if self._gives is not None and not self._gives.reads_head:
      model = model.without_reward_head()
      judge = functools.partial(judge, model=model)
    self._judge = jax.jit(judge)
    self._model = model
    self.checkpoint_path = checkpoint_path
    self._batch_size = batch_size
    self._label = label
    self._params = None

  def __call__(
    self, samples: samples_lib.Samples, pairs: samples_lib.Pairs
  ) -> Iterator[np.ndarray]:
    params, tokens = self._load(samples), self._tokens(samples)
    two = jax.eval_shape(self._judge, params, _columns(tokens, (0, 1)))
    if two.matrix is not None:
      for found in self._run(params, tokens, pairs, 'matrix'):
        yield np.stack([found[:, 0, 1], 1 - found[:, 1, 0]], axis=-1)
    elif two.rewards is not None:
      every = range(len(samples.texts[0]))
      (rewards,) = self._run(params, tokens, [every], 'rewards')
      yield from of_rewards(rewards, pairs)
    else:
      for found in self._run(params, tokens, pairs, 'preference'):
        yield np.stack([found] * 2, axis=-1)

  def rewards(self, samples: samples_lib.Samples) -> np.ndarray | None:
    """Returns rewards [N, K] in nats, or None if the judge gives none."""
    if self._gives is not None and 'rewards' not in self._gives.gives:
      return None
    params, tokens = self._load(samples), self._tokens(samples)
    every = range(len(samples.texts[0]))
    judged = jax.eval_shape(self._judge, params, _columns(tokens, every))
    if judged.rewards is None:
      return None
    (rewards,) = self._run(params, tokens, [every], 'rewards')
    return rewards

  def _tokens(self, samples: samples_lib.Samples) -> types.Completions:
    """Returns the prompts [N, P] and completions [N, K, T] that are read."""
    return samples.tokens

  def _vocabulary(self, samples: samples_lib.Samples) -> types.Vocabulary:
    """Returns the vocabulary of `_tokens`."""
    return samples.vocabulary

  def _load(self, samples: samples_lib.Samples) -> types.Params:
    if self._params is None:
      self._params = checkpoints.load_params(
        self.checkpoint_path,
        self._model,
        jax.sharding.get_mesh(),
        name='the checkpoint path of a judge',
        vocabulary=self._vocabulary(samples),
      )
    return self._params

  def _run(
    self,
    params: types.Params,
    tokens: types.Completions,
    groups: Sequence[Sequence[int]],
    field: str,
  ) -> Iterator[np.ndarray]:
    """Yields a field of the judge's feedback on each group of completions.

    Args:
      params: Parameters of the judge.
      tokens: K completions of each of N prompts.
      groups: Indices of the completions that are judged together.
      field: Name of a field of `types.Labelled`.

    Yields:
      [N, ...] values of the field.
    """
    count = tokens.prompts.ids.shape[0]
    placed = sharding.batch(jax.sharding.get_mesh())
    starts = range(0, count, self._batch_size)
    work = [(columns, start) for columns in groups for start in starts]
    found = []
    shown = work
    if self._label is not None:
      shown = progress.progress(work, len(work), self._label)
    for columns, start in shown:
      rows = np.arange(start, start + self._batch_size) % count
      batch = jax.tree.map(lambda x, r=rows: x[r], _columns(tokens, columns))
      judged = self._judge(params, jax.device_put(batch, placed))
      found.append(getattr(judged, field))
      if start == starts[-1]:
        found = multihost_utils.process_allgather(found, tiled=True)
        yield np.concatenate(found)[:count]
        found = []


@declaration.declare(runs_on='host', parts=lambda judge: [judge.judge])
class CachedJudge:
  """Stores the judgements of another judge, and asks it about new pairs only.

  Args:
    judge: The judge that is asked about pairs without a stored judgement.
    name: Name of the judge.
    parts: The folder that holds the judgements.
    recipe: Everything that determines the judgements of `judge`.
  """

  def __init__(
    self,
    judge: samples_lib.HostJudge,
    name: str,
    parts: part_store.Folder,
    recipe: part_store.Recipe,
  ):
    self.judge, self._name, self._parts = judge, name, parts
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
    found: list[list | np.ndarray | None] = [
      self._parts.get('judgements', self._name, recipe) for recipe in recipes
    ]
    missing = [j for j, rows in enumerate(found) if rows is None]
    if missing:
      judged = self.judge(samples, [pairs[j] for j in missing])
      for j, rows in zip(missing, judged, strict=True):
        found[j] = rows
        self._parts.put('judgements', self._name, recipes[j], rows.tolist())
    yield from map(np.asarray, found)


def in_both_orders(
  judge: samples_lib.HostJudge,
  samples: samples_lib.Samples,
  pairs: samples_lib.Pairs,
) -> np.ndarray:
  """Returns the judgements of all pairs in both orders.

  Args:
    judge: The judge.
    samples: K completions of each of N prompts.
    pairs: J pairs of indices into the completions, possibly none.

  Returns:
    [N, J, 2] P(y_i > y_k | x), with y_i shown first and shown second.
  """
  if not pairs:
    return np.zeros((len(samples.prompts), 0, 2))
  return np.stack(list(judge(samples, pairs)), axis=1)


def preference(
  judge: samples_lib.HostJudge,
  samples: samples_lib.Samples,
  pairs: samples_lib.Pairs,
) -> np.ndarray:
  """Returns the preferences between pairs, averaged over both orders.

    preference(judge, samples, [(0, 1)])[:, 0]

  Args:
    judge: The judge.
    samples: K completions of each of N prompts.
    pairs: J pairs of indices into the completions, possibly none.

  Returns:
    [N, J] P(y_i > y_k | x).
  """
  return samples_lib.mean_over_orders(in_both_orders(judge, samples, pairs))


def feedback(
  judge: samples_lib.HostJudge, samples: samples_lib.Samples
) -> tuple[np.ndarray | None, np.ndarray | None]:
  """Returns what a judge says about the K completions of each prompt.

    preference, rewards = feedback(judge, samples)

  Args:
    judge: The judge.
    samples: K completions of each of N prompts.

  Returns:
    [N] preference, None unless K = 2; and [N, K] rewards, None if the judge
    gives none.

  Raises:
    ValueError: The judge only compares, and K is not 2.
  """
  k = len(samples.texts[0])
  rewards = None
  if 'rewards' in declaration.gives(judge):
    rewards = judge.rewards(samples)  # pyright: ignore[reportFunctionMemberAccess]  # as it declares
  if rewards is not None:
    (judged,) = of_rewards(rewards, [(0, 1)]) if k == 2 else (None,)
    return None if judged is None else judged[:, 0], rewards
  if k != 2:
    raise ValueError(
      f'MIXTURE_COEFS has {k} entries, but JUDGE gives no rewards: it compares '
      '2 completions of a prompt.'
    )
  return preference(judge, samples, [(0, 1)])[:, 0], None


def of_rewards(
  rewards: np.ndarray, pairs: samples_lib.Pairs
) -> Iterator[np.ndarray]:
  """Yields the preferences of a judge that gives rewards.

  Args:
    rewards: [N, K] rewards in nats.
    pairs: Pairs of indices into the completions.

  Yields:
    [N, 2] sigmoid(r_i - r_k) of each pair, the same in both orders.
  """
  for i, k in pairs:
    margin = rewards[:, i].astype(np.float64) - rewards[:, k]
    yield np.stack([special.expit(margin)] * 2, axis=-1)


def best_of(
  judge: samples_lib.HostJudge, samples: samples_lib.Samples
) -> np.ndarray:
  """Returns the completion of each prompt that a judge prefers to the others.

  Args:
    judge: The judge, which compares all pairs.
    samples: K completions of each of N prompts.

  Returns:
    [N] index of the completion with the highest sum of preferences.
  """
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
