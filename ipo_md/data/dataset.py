"""A data set: the examples of a task with the prompt format of a model.

`batches` turns it into the global arrays of a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools

from etils import epy
import jax
import numpy as np

from ipo_md.core import identity
from ipo_md.core import model_dir as model_dir_lib
from ipo_md.core import paths
from ipo_md.core import types
from ipo_md.data import examples as examples_lib
from ipo_md.data import prompt_format as prompt_format_lib
from ipo_md.data import registry
from ipo_md.data import splits
from ipo_md.data import token_cache
from ipo_md.data import vocabularies

with epy.lazy_imports():
  import seqio


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Examples with the lengths and the prompt format of a run.

  Attributes:
    examples: Examples of the task, or of each task of a mixture.
    rates: Mixing rates, one per task.
    lengths: {'inputs': P, 'targets': T}. Bare prompts need no T.
    prompt_format: Prompt format of the model.
    prompts_only: Whether `rows` returns Tokens [B, P] instead of Labelled.
    vocabulary: Vocabulary of the tokens.
    counts: Numbers of what was found or changed in the rows, as `count` says.
  """

  examples: tuple[examples_lib.Examples, ...]
  rates: tuple[float, ...]
  lengths: Mapping[str, int]
  prompt_format: prompt_format_lib.PromptFormat
  prompts_only: bool
  vocabulary: types.Vocabulary
  counts: Mapping[str, int]

  def __len__(self) -> int:
    return sum(len(e) for e in self.examples)

  def rows(
    self, indices: Sequence[tuple[int, int]]
  ) -> types.Labelled | types.Tokens:
    """Returns examples as numpy arrays.

    Targets longer than T are truncated at the end. A single target, which
    supervised training imitates, keeps its last token, EOS. One of several
    targets ends without EOS, as a sampled completion of T tokens does.

    Args:
      indices: B pairs of (task index, row).

    Returns:
      Tokens [B, P] if `prompts_only`, otherwise Labelled with B rows.
    """
    return (
      self.prompts(indices) if self.prompts_only else self.labelled(indices)
    )

  def prompts(self, indices: Sequence[tuple[int, int]]) -> types.Tokens:
    """Returns the prompts [B, P] of examples, as `rows` does."""
    length = self.lengths['inputs']
    bare = [self.examples[task].prompts.row(row) for task, row in indices]
    rendered = [
      ragged.row(row)
      for task, row in indices
      if (ragged := self.examples[task].rendered) is not None
    ]
    if len(rendered) < len(bare):
      return self.prompt_format.tokens(bare, length)
    return self.prompt_format.rendered(rendered, bare, length)

  def labelled(self, indices: Sequence[tuple[int, int]]) -> types.Labelled:
    """Returns examples with their completions, as `rows` does."""
    prompts = self.prompts(indices)
    k = self.examples[0].k
    completions = []
    for task, row in indices:
      targets = self.examples[task].completions
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

    def score(name: str) -> jax.Array | None:
      if name not in self.examples[0].scores:
        return None
      values = [self.examples[task].scores[name][row] for task, row in indices]
      values = np.stack(values)
      return types.as_leaf(
        values if values.ndim == 1 else np.where(mask, values, 0.0)
      )

    return types.Labelled(
      completions=types.Completions(prompts=prompts, completions=tokens),
      completion_mask=mask,
      preference=score('preference'),
      rewards=score('rewards'),
      reference_log_prob=score('reference_log_prob'),
    )


@identity.reads(module=identity.of_module)
@model_dir_lib.may_change('cache_dir')
def load(
  *,
  mixture_or_task_name: str | None,
  task_feature_lengths: Mapping[str, int],
  split: str,
  prompt_format: prompt_format_lib.PromptFormat,
  prompts_only: bool = False,
  vocabulary: types.Vocabulary | None = None,
  cache_dir: str | None = None,
  module: str | Sequence[str] | None = None,
) -> Dataset:
  """Tokenises a task, or each task of a mixture.

  Args:
    mixture_or_task_name: MIXTURE_OR_TASK_NAME, a name registered with seqio.
    task_feature_lengths: TASK_FEATURE_LENGTHS, {'inputs': P, 'targets': T}. P
      includes the prefix and the suffix of the prompt format, T includes EOS.
    split: Name of the split, or a range of its examples, such as
      'train[:1000]' (`splits`). Each task of a mixture is read in this range.
    prompt_format: Prompt format of the model.
    prompts_only: Whether the run samples its own completions and ignores those
      of the task.
    vocabulary: VOCABULARY, the vocabulary of the model. None uses the
      vocabulary of the task.
    cache_dir: CACHE_DIR, a local directory for the tokens. None tokenises the
      task at every start.
    module: MIXTURE_OR_TASK_MODULE, imported before the task is looked up.

  Raises:
    ValueError: The module cannot be imported, a name or a length does not fit
      the task, or an example cannot be used.
  """
  task_or_mixture = registry.find(mixture_or_task_name, module=module)
  if isinstance(task_or_mixture, seqio.Mixture):
    # As seqio does, a mixture leaves out the tasks that lack the split.
    every = task_or_mixture.tasks
    name = splits.parse(split).name
    tasks = [task for task in every if name in task.splits] or every
    rates = tuple(float(task_or_mixture.get_rate(t)) for t in tasks)
  else:
    tasks, rates = [task_or_mixture], (1.0,)
  for task in tasks:
    _check_lengths(task, task_feature_lengths, prompts_only)
  room = prompt_format.room(task_feature_lengths['inputs'])
  if vocabulary is not None:
    tasks = [vocabularies.with_vocabulary(task, vocabulary) for task in tasks]
  vocabulary = tasks[0].output_features['inputs'].vocabulary
  vocabularies.check_readable(vocabulary)
  chat = prompt_format.chat(vocabulary, task_feature_lengths['inputs'])
  read = examples_lib.tokenise
  if cache_dir is not None:
    cache_dir = paths.absolute(cache_dir, 'CACHE_DIR')
    read = functools.partial(
      token_cache.load, cache_dir=cache_dir, module=module
    )
  examples = tuple(
    read(task, split=split, feature_lengths=task_feature_lengths, chat=chat)
    for task in tasks
  )
  kinds = {(e.k, tuple(e.scores)) for e in examples}
  if len(kinds) > 1 and not prompts_only:
    raise ValueError(
      f'The tasks of mixture {mixture_or_task_name} differ in the number of '
      f'completions or in their scores: {sorted(kinds)}.'
    )
  limit = None if prompts_only else task_feature_lengths['targets']
  return Dataset(
    examples=examples,
    rates=rates,
    lengths=dict(task_feature_lengths),
    prompt_format=prompt_format,
    prompts_only=prompts_only,
    vocabulary=vocabulary,
    counts=count(examples, vocabulary, room=room, limit=limit),
  )


def count(
  examples: Sequence[examples_lib.Examples],
  vocabulary: types.Vocabulary,
  *,
  room: int,
  limit: int | None,
) -> dict[str, int]:
  """Counts examples, and what was found or changed in them.

  Args:
    examples: Examples of each task.
    vocabulary: Vocabulary of the tokens.
    room: Number of prompt tokens that fit.
    limit: Number of target tokens that fit. None ignores the targets.

  Returns:
    examples               examples
    prompts_cut            truncated prompts
    targets_cut            truncated completions
    completions_missing    absent completions of the K of each example
    completions_identical  examples two of whose completions are the same, as
                           they are cut
    tokens_unknown         tokens that stand for text that the vocabulary lacks
    and the sums of `examples.FOUND` that the tasks have. Of bare prompts, only
    those of prompts and rows_dropped.
  """
  counts = {
    'examples': sum(len(e) for e in examples),
    'prompts_cut': sum(
      int((e.prompts.lengths > room).sum())
      if e.rendered is None
      else e.found['prompts_cut']
      for e in examples
    ),
  }
  read = [e.prompts for e in examples]
  if limit is not None:
    read += [e.completions for e in examples]
    lengths = np.concatenate([e.completions.lengths for e in examples])
    counts['targets_cut'] = int((lengths > limit).sum())
    counts['completions_missing'] = int((lengths == 0).sum())
    same = [_identical(e, limit) for e in examples]
    counts['completions_identical'] = sum(same)
  unknown = vocabulary.unk_id
  counts['tokens_unknown'] = (
    0 if unknown is None else sum(int((r.ids == unknown).sum()) for r in read)
  )
  for name in examples_lib.FOUND:
    if name in counts:
      continue
    if limit is None and not name.startswith(('prompts_', 'rows_dropped')):
      continue
    if any(name in e.found for e in examples):
      counts[name] = sum(e.found.get(name, 0) for e in examples)
  return counts


def _identical(examples: examples_lib.Examples, limit: int) -> int:
  """Counts the examples two of whose completions are the same when cut."""
  targets, k = examples.completions, examples.k
  lengths = np.minimum(targets.lengths, limit).reshape(-1, k)
  # Only completions of one length can be the same.
  ordered = np.sort(lengths, axis=1)
  equal = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > 0)
  found = 0
  for row in np.flatnonzero(equal.any(axis=1)).tolist():
    cut = [targets.row(row * k + i)[:limit].tobytes() for i in range(k)]
    present = [content for content in cut if content]
    found += len(set(present)) < len(present)
  return found


def _check_lengths(
  task: seqio.Task, lengths: Mapping[str, int], prompts_only: bool
) -> None:
  needed = ['inputs'] if prompts_only else ['inputs', 'targets']
  for feature in needed:
    if feature not in task.output_features:
      raise ValueError(
        f'Task {task.name} has no feature {feature!r}, only '
        f'{sorted(task.output_features)}. It holds bare prompts for online '
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
        f'TASK_FEATURE_LENGTHS names {feature!r}, but only '
        "'inputs' and 'targets' have a length."
      )


def check_vocabulary(dataset: Dataset, vocab_size: int) -> None:
  """Raises a ValueError if the data set does not fit the model.

  The vocabulary of the data set must not exceed the embedding of the model and
  must end texts with the token at which the model stops. The ids of the prompt
  format must be in the vocabulary.

  Args:
    dataset: Data set of the run.
    vocab_size: Size of the model's embedding.
  """
  size = dataset.vocabulary.vocab_size
  if size > vocab_size:
    raise ValueError(
      f'The vocabulary of the task, {dataset.vocabulary}, has {size} ids and '
      f'the model {vocab_size} (its vocab_size). Change MIXTURE_OR_TASK_NAME '
      'or VOCABULARY so that they match.'
    )
  ours, theirs = dataset.prompt_format.eos_id, dataset.vocabulary.eos_id
  if ours is not None and types.eos_ids(ours)[0] != theirs:
    raise ValueError(
      f'The model stops at EOS_ID {ours}, but the vocabulary of the task, '
      f'{dataset.vocabulary}, ends texts with {theirs}. Set VOCABULARY to the '
      'vocabulary of the model, or choose another MIXTURE_OR_TASK_NAME.'
    )
  ids = (*dataset.prompt_format.opening, *dataset.prompt_format.ending)
  if ids and not 0 <= min(ids) <= max(ids) < size:
    raise ValueError(
      f'PromptFormat has ids outside of the vocabulary of {size}: {ids}.'
    )


def first_rows(dataset: Dataset, count: int | None) -> list[tuple[int, int]]:
  """Returns the first pairs of (task index, row), in task order.

  Args:
    dataset: Data set of the rows.
    count: Number of pairs. None returns all of them.
  """
  rows = [(t, r) for t, e in enumerate(dataset.examples) for r in range(len(e))]
  return rows[:count]
