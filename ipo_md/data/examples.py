"""The tokenised examples of a seqio task, as indexable rows of tokens.

A task yields bare token segments under fixed names:

  inputs              [*] tokens of the prompt, without prefix and EOS
  targets             [*] tokens of a completion with EOS, or [K, *] tokens of K
                      completions, each padded at its right with -1, or with 0
                      if EOS has another id. A row of padding is an absent
                      completion.
  preference          [] P(y_1 > y_2 | x), optional, K = 2
  rewards             [K] optional
  reference_log_prob  [K] optional

Features of `FOUND` are optional numbers, whose sums a run shows. Features of
`rendering` are texts, which a chat template reads. Other features are ignored.
Rows are stored as the task yields them: `Dataset` adds the prompt format and
truncates. Only what a chat template makes of a row has its final length.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import re
from typing import Any

from etils import epy
import numpy as np

from ipo_md.core import quiet_imports
from ipo_md.core import types
from ipo_md.data import chat as chat_lib
from ipo_md.data import conversations
from ipo_md.data import encoding
from ipo_md.data import example_checks
from ipo_md.data import rendering
from ipo_md.data import splits

with epy.lazy_imports():
  import seqio
  import tensorflow as tf

SCORES = example_checks.SCORES

# What a task found or changed in the texts of an example, as numbers.
FOUND = (
  'rows_dropped',  # bad rows that were left out before this one
  'rows_empty',  # 1 if all completions are empty
  'prompts_with_special_tokens',  # written out, which are encoded as text
  'prompts_trimmed',
  'prompts_cut',  # by a chat template, whose prompts have their final length
  'prompts_turns_dropped',  # prompts whose oldest turns do not fit
  'completions_with_special_tokens',
  'completions_trimmed',
  'completions_empty',  # of spaces alone, or of nothing
)

_CHUNK = 1024  # examples that are converted together


@dataclasses.dataclass(frozen=True)
class Ragged:
  """Token sequences of any length in one array.

  ids     17 42  5 |  8  1 | |  3 ...   row i is ids[starts[i]:starts[i + 1]]
  starts   0          3     5 5
  """

  ids: np.ndarray  # [tokens] int32
  starts: np.ndarray  # [rows + 1] int64

  def __len__(self) -> int:
    return len(self.starts) - 1

  @property
  def lengths(self) -> np.ndarray:
    """[rows] number of tokens of each row."""
    return np.diff(self.starts)

  def row(self, index: int) -> np.ndarray:
    """Returns the tokens of a row."""
    return self.ids[self.starts[index] : self.starts[index + 1]]


@dataclasses.dataclass(frozen=True)
class Examples:
  """The N examples of one split of a task.

  Attributes:
    name: Name of the task.
    prompts: N rows of prompt tokens.
    targets: N * K rows, of which row i * K + k is completion k of prompt i. An
      empty row is an absent completion. None if the task has bare prompts.
    k: K, or 0 if there are no targets.
    scores: The `SCORES` that the task has, float32. `preference` is [N], the
      others are [N, K].
    found: The sums over the examples of the `FOUND` that the task has.
    rendered: N rows of tokens that a chat template made of the prompts, in
      their final length. None if there is no template.
  """

  name: str
  prompts: Ragged
  targets: Ragged | None
  k: int
  scores: Mapping[str, np.ndarray]
  found: Mapping[str, int] = dataclasses.field(default_factory=dict)
  rendered: Ragged | None = None

  def __len__(self) -> int:
    return len(self.prompts)

  @property
  def completions(self) -> Ragged:
    """The targets; raises a ValueError if the task has bare prompts."""
    if self.targets is None:
      raise ValueError(f'Task {self.name} has bare prompts and no `targets`.')
    return self.targets


def tokenise(
  task: seqio.Task,
  *,
  split: str,
  feature_lengths: Mapping[str, int],
  chat: chat_lib.Chat | None = None,
) -> Examples:
  """Reads a split into memory.

  Args:
    task: A task with the features that this module describes.
    split: Name of the split, or a range of its examples (`splits`).
    feature_lengths: Lengths that are passed to the task's preprocessors.
      Nothing is truncated here.
    chat: The chat template, or None.

  Raises:
    ValueError: The task has no such split, or a row is empty or has scores
      that are not numbers. The message names the row.
  """
  return join(task.name, list(chunks(task, split, feature_lengths, chat)))


def join(name: str, parts: Sequence[Mapping[str, Any]]) -> Examples:
  """Concatenates the column chunks that `chunks` yields."""
  columns = {c: np.concatenate([p[c] for p in parts]) for c in parts[0]}
  return from_columns(name, columns)


def from_columns(name: str, columns: Mapping[str, np.ndarray]) -> Examples:
  """Builds examples from flat columns of tokens, lengths and scores."""

  def ragged(feature: str) -> Ragged:
    starts = np.zeros(len(columns[f'{feature}_lengths']) + 1, np.int64)
    np.cumsum(columns[f'{feature}_lengths'], out=starts[1:])
    return Ragged(ids=columns[feature], starts=starts)

  prompts = ragged('inputs')
  targets = ragged('targets') if 'targets' in columns else None
  return Examples(
    name=name,
    prompts=prompts,
    targets=targets,
    k=len(targets) // len(prompts) if targets else 0,
    scores={s: columns[s] for s in SCORES if s in columns},
    found={f: int(columns[f].sum()) for f in FOUND if f in columns},
    rendered=ragged('rendered') if 'rendered' in columns else None,
  )


def of_prompts(
  name: str,
  prompts: Sequence[tuple[str, chat_lib.Conversation]],
  vocabulary: types.Vocabulary,
  chat: chat_lib.Chat | None = None,
) -> Examples:
  """Tokenises bare prompts that are no task.

  Args:
    name: Name of their source, for messages.
    prompts: N pairs of the place of a prompt, for messages, and its turns.
    vocabulary: Vocabulary of the model.
    chat: The chat template, or None.

  Raises:
    ValueError: There are none, one of them has no tokens, or the template
      refuses one.
  """
  places, turns = zip(*prompts, strict=True) if prompts else ((), ())
  texts = [conversations.plain(messages) for messages in turns]
  rows = encoding.encode(vocabulary, texts)
  for number, row in enumerate(rows):
    if not len(row):
      raise ValueError(f'{name}: prompt {number} has no tokens in VOCABULARY.')
  special = [encoding.has_special_tokens(vocabulary, t) for t in texts]
  trimmed = [encoding.is_trimmed(vocabulary, t) for t in texts]
  columns = {
    'inputs': np.concatenate([np.array(row, np.int32) for row in rows]),
    'inputs_lengths': np.array([len(row) for row in rows], np.int64),
    'prompts_with_special_tokens': np.array(special, np.int64),
    'prompts_trimmed': np.array(trimmed, np.int64),
  }
  columns |= rendering.of_conversations(turns, places, chat)
  return from_columns(name, columns)


def chunks(
  task: seqio.Task,
  split: str,
  feature_lengths: Mapping[str, int],
  chat: chat_lib.Chat | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """Tokenises a split in chunks, in the order of the task.

  Args:
    task: A task with the features that this module describes.
    split: Name of the split, or a range of its examples (`splits`).
    feature_lengths: Lengths that are passed to the task's preprocessors.
    chat: The chat template, or None.

  Yields:
    Columns of n examples: inputs and targets [tokens] int32, inputs_lengths [n]
    and targets_lengths [n * K] int64, the same of `rendered` if there is a chat
    template, and the `SCORES` and the `FOUND` that the task has.

  Raises:
    ValueError: As for `tokenise`.
  """
  found = splits.read(split, place=f'Task {task.name}', names=task.splits)
  tf.config.set_visible_devices([], 'GPU')
  dataset = task.get_dataset(
    sequence_length=dict(feature_lengths),
    split=found.name,
    shuffle=False,
    seed=0,  # of random preprocessors: the data set does not depend on SEED
    num_epochs=1,
    trim_output_features=False,
  )
  if found.start:
    dataset = dataset.skip(found.start)
  if found.stop is not None:
    dataset = dataset.take(found.stop - found.start)
  eos_id = task.output_features['inputs'].vocabulary.eos_id
  if chat is not None:
    rendering.check(dataset.element_spec, task.name)
  dataset = dataset.map(
    functools.partial(
      _flatten, zero_is_padding=eos_id != 0, texts=rendering.names(chat)
    ),
    num_parallel_calls=tf.data.AUTOTUNE,
  )
  dataset = dataset.ragged_batch(_CHUNK).prefetch(2)
  options = tf.data.Options()
  # Fusing maps saves a call per example and map.
  options.experimental_optimization.map_fusion = True
  first, total, k = found.start, 0, None
  place = f'task {task.name}, split {found.name}'
  render = rendering.Renderer(
    chat, place, getattr(task.source, 'max_bad_rows', 0)
  )
  batches = iter(dataset.with_options(options))
  with quiet_imports.quiet():  # SentencePiece logs when it reads the first text
    batch = _next(batches, place)
  while batch is not None:
    chunk = _columns(batch)
    k = example_checks.number(batch, k, place, first)
    example_checks.check_rows(chunk, k, place, first)
    if eos_id == 0 and k > 1:
      example_checks.check_padding(chunk, k, place, first)
    kept = render(chunk, batch, k, first)
    first += len(chunk['inputs_lengths'])
    total += len(kept['inputs_lengths'])
    yield kept
    batch = _next(batches, place)
  if not total:
    raise ValueError(f'Task {task.name}, split {split} has no examples.')
  render.report()


def _next(batches: Iterator[Any], place: str) -> Any:
  """Returns the next batch or None, and shortens the errors of a task."""
  try:
    return next(batches, None)
  except tf.errors.OpError as error:
    cause = re.search(r'^(\w+Error: .*?)\n\n', error.message, re.S | re.M)
    cause = cause.group(1) if cause else error.message
    raise ValueError(f'{place}: {cause.removeprefix("ValueError: ")}') from None


def _flatten(
  example: Mapping[str, tf.Tensor],
  *,
  zero_is_padding: bool,
  texts: Sequence[str],
) -> dict[str, tf.Tensor]:
  """Removes the padding of [K, *] targets and adds their lengths."""
  out = {'inputs': tf.cast(example['inputs'], tf.int32)}
  if 'targets' in example:
    out['targets'] = targets = tf.cast(example['targets'], tf.int32)
  if 'targets' in example and targets.shape.rank == 2:
    width = tf.shape(targets)[1]
    is_token = targets > 0 if zero_is_padding else targets >= 0
    ends = tf.where(is_token, tf.range(1, width + 1), 0)
    lengths = tf.maximum(tf.reduce_max(ends, axis=1), 0)
    out['targets'] = tf.boolean_mask(targets, tf.sequence_mask(lengths, width))
    out['targets_lengths'] = tf.cast(lengths, tf.int64)
  for score in SCORES:
    if score in example:
      out[score] = tf.cast(example[score], tf.float32)
  for name in FOUND:
    if name in example:
      out[name] = tf.cast(example[name], tf.int64)
  return out | {name: example[name] for name in texts if name in example}


def _columns(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
  columns = {
    'inputs': batch['inputs'].flat_values.numpy(),
    'inputs_lengths': batch['inputs'].row_lengths().numpy(),
  }
  if 'targets' in batch:
    columns['targets'] = batch['targets'].flat_values.numpy()
    lengths = batch.get('targets_lengths', batch['targets'].row_lengths())
    columns['targets_lengths'] = _values(lengths)
  rows = len(columns['inputs_lengths'])
  for score in SCORES:
    if score in batch:
      shape = [rows] if score == 'preference' else [rows, -1]
      columns[score] = _values(batch[score]).reshape(shape)
  return columns | {n: _values(batch[n]) for n in FOUND if n in batch}


def _values(batched: tf.Tensor | tf.RaggedTensor) -> np.ndarray:
  if isinstance(batched, tf.RaggedTensor):
    return batched.flat_values.numpy()
  return batched.numpy().reshape(-1)
