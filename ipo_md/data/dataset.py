"""Tokenised examples in the form that a run asks for: prompt format, lengths.

`batches` makes the global arrays of a step of them.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools

import jax
import numpy as np
import seqio

from ipo_md.core import model_dir as model_dir_lib
from ipo_md.core import types
from ipo_md.data import examples as examples_lib
from ipo_md.data import prompt_format as prompt_format_lib
from ipo_md.data import token_cache
from ipo_md.data import vocabularies


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Examples with the lengths and the prompt format of a run.

  Attributes:
    examples: of one task, or of each task of a mixture.
    rates: of the mixture, one for each task.
    lengths: {'inputs': P, 'targets': T}; T is not needed for bare prompts.
    prompt_format: of the model.
    prompts_only: `rows` gives Tokens [B, P], not Labelled.
    vocabulary: of the tokens.
    counts: examples, prompts_cut and targets_cut, completions_missing.
  """

  examples: tuple[examples_lib.Examples, ...]
  rates: tuple[float, ...]
  lengths: Mapping[str, int]
  prompt_format: prompt_format_lib.PromptFormat
  prompts_only: bool
  vocabulary: seqio.Vocabulary
  counts: Mapping[str, int]

  def __len__(self) -> int:
    return sum(len(e) for e in self.examples)

  def rows(
    self, indices: Sequence[tuple[int, int]]
  ) -> types.Labelled | types.Tokens:
    """The examples (number of the task, row) as numpy arrays.

    Targets that are too long lose their end. A lone target, which supervised
    training imitates, still ends as it did, with EOS; one of several stops
    without EOS, as a sampled completion does at its last token.
    """
    prompts = self.prompt_format.tokens(
      [self.examples[task].prompts.row(row) for task, row in indices],
      self.lengths['inputs'],
    )
    if self.prompts_only:
      return prompts
    k = self.examples[0].k
    completions = []
    for task, row in indices:
      targets = self.examples[task].targets
      completions += [targets.row(row * k + i) for i in range(k)]
    length = self.lengths['targets']
    if k == 1:
      completions = [
        c if len(c) <= length else np.append(c[: length - 1], c[-1])
        for c in completions
      ]
    tokens = prompt_format_lib.pad([c[:length] for c in completions], length)
    tokens = jax.tree.map(lambda x: x.reshape(-1, k, length), tokens)
    mask = tokens.mask.any(axis=-1)

    def score(name: str) -> np.ndarray | None:
      if name not in self.examples[0].scores:
        return None
      values = [self.examples[task].scores[name][row] for task, row in indices]
      values = np.stack(values)
      return values if values.ndim == 1 else np.where(mask, values, 0.0)

    return types.Labelled(
      completions=types.Completions(prompts=prompts, completions=tokens),
      completion_mask=mask,
      **{name: score(name) for name in examples_lib.SCORES},
    )


@model_dir_lib.may_change('cache_dir')
def load(
  *,
  mixture_or_task_name: str,
  task_feature_lengths: Mapping[str, int],
  split: str,
  prompt_format: prompt_format_lib.PromptFormat,
  prompts_only: bool = False,
  vocabulary: seqio.Vocabulary | None = None,
  cache_dir: str | None = None,
) -> Dataset:
  """Tokenises a task, or each task of a mixture.

  Args:
    mixture_or_task_name: MIXTURE_OR_TASK_NAME, registered with seqio.
    task_feature_lengths: TASK_FEATURE_LENGTHS, {'inputs': P, 'targets': T}.
      P counts the prompt format's prefix and suffix, T counts EOS.
    split: of the task.
    prompt_format: of the model.
    prompts_only: the run samples its own completions; the task's are ignored.
    vocabulary: VOCABULARY, the model's; None: the task's own.
    cache_dir: CACHE_DIR, a local directory that keeps the tokens; None: they
      are made again at every start.

  Raises:
    ValueError: a name or length that does not fit the task, an example that
      cannot be used.
  """
  task_or_mixture = examples_lib.find(mixture_or_task_name)
  if isinstance(task_or_mixture, seqio.Mixture):
    tasks = task_or_mixture.tasks
    rates = tuple(float(task_or_mixture.get_rate(t)) for t in tasks)
  else:
    tasks, rates = [task_or_mixture], (1.0,)
  for task in tasks:
    _check_lengths(task, task_feature_lengths, prompts_only)
  room = prompt_format.room(task_feature_lengths['inputs'])
  if vocabulary is not None:
    tasks = [vocabularies.with_vocabulary(task, vocabulary) for task in tasks]
  vocabularies.check_readable(tasks[0].output_features['inputs'].vocabulary)
  read = examples_lib.tokenise
  if cache_dir is not None:
    read = functools.partial(token_cache.load, cache_dir=cache_dir)
  examples = tuple(
    read(task, split=split, feature_lengths=task_feature_lengths)
    for task in tasks
  )
  kinds = {(e.k, tuple(e.scores)) for e in examples}
  if len(kinds) > 1 and not prompts_only:
    raise ValueError(
      f'The tasks of mixture {mixture_or_task_name} differ in the number of '
      f'completions or in their scores: {sorted(kinds)}.'
    )
  counts = {
    'examples': sum(len(e) for e in examples),
    'prompts_cut': sum(int((e.prompts.lengths > room).sum()) for e in examples),
  }
  if not prompts_only:
    lengths = np.concatenate([e.targets.lengths for e in examples])
    limit = task_feature_lengths['targets']
    counts['targets_cut'] = int((lengths > limit).sum())
    counts['completions_missing'] = int((lengths == 0).sum())
  return Dataset(
    examples=examples,
    rates=rates,
    lengths=dict(task_feature_lengths),
    prompt_format=prompt_format,
    prompts_only=prompts_only,
    vocabulary=tasks[0].output_features['inputs'].vocabulary,
    counts=counts,
  )


def _check_lengths(
  task: seqio.Task, lengths: Mapping[str, int], prompts_only: bool
):
  needed = ['inputs'] if prompts_only else ['inputs', 'targets']
  for feature in needed:
    if feature not in task.output_features:
      raise ValueError(
        f'Task {task.name} has no feature {feature!r}, but '
        f'{sorted(task.output_features)}: it holds bare prompts, for on-line '
        'runs (MIXTURE_OR_TASK_NAME).'
      )
    if lengths.get(feature, 0) < 1:
      raise ValueError(
        f'TASK_FEATURE_LENGTHS has no length of at least 1 for {feature!r}: '
        f'{dict(lengths)}.'
      )
  for feature in lengths:
    if feature not in ('inputs', 'targets'):
      raise ValueError(
        f'TASK_FEATURE_LENGTHS names {feature!r}; the features with a length '
        "are 'inputs' and 'targets'."
      )


def check_vocabulary(dataset: Dataset, vocab_size: int):
  """Raises a ValueError if the model has no embedding for some token.

  Args:
    dataset: of the run.
    vocab_size: the model's.
  """
  size = dataset.vocabulary.vocab_size
  if size > vocab_size:
    raise ValueError(
      f'The vocabulary of the task, {dataset.vocabulary}, has {size} ids and '
      f'the model {vocab_size} (its vocab_size); they do not go together: '
      'change MIXTURE_OR_TASK_NAME or VOCABULARY.'
    )
  ours, theirs = dataset.prompt_format.eos_id, dataset.vocabulary.eos_id
  if ours is not None and ours != theirs:
    raise ValueError(
      f'The model stops at EOS_ID {ours}, but the vocabulary of the task, '
      f'{dataset.vocabulary}, ends texts with {theirs}: set VOCABULARY to that '
      'of the model, or take another MIXTURE_OR_TASK_NAME.'
    )
  ids = (*dataset.prompt_format.opening, *dataset.prompt_format.ending)
  if ids and not 0 <= min(ids) <= max(ids) < size:
    raise ValueError(
      f'PromptFormat has ids outside of the vocabulary of {size}: {ids}.'
    )


def first_rows(dataset: Dataset, count: int) -> list[tuple[int, int]]:
  """The first `count` of (number of the task, row), in the task's order."""
  rows = [(t, r) for t, e in enumerate(dataset.examples) for r in range(len(e))]
  return rows[:count]
