"""Sources of text examples, and their tokenisation to bare token segments.

The signature of a source says what its examples hold: a prompt alone
(`PROMPT`), one target (`SUMMARY`), two completions with a preference
(`PREFERENCE`) or several completions with rewards (`REWARDS`). With
`CONVERSATION` the prompt may be a conversation of several turns.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import itertools
import os
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from ipo_md.core import row_paths
from ipo_md.data import encoding
from ipo_md.data import rendering
from tasks.lib import json_lines

# The vocabulary of the public T5 checkpoints. VOCABULARY replaces it.
T5_VOCABULARY = seqio.SentencePieceVocabulary(
  'gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model'
)

PROMPT = {'inputs': tf.TensorSpec([], tf.string)}
SUMMARY = PROMPT | {'targets': tf.TensorSpec([], tf.string)}
COMPLETIONS = PROMPT | {'completions': tf.TensorSpec([None], tf.string)}
PREFERENCE = COMPLETIONS | {'preference': tf.TensorSpec([], tf.float32)}
REWARDS = COMPLETIONS | {'rewards': tf.TensorSpec([None], tf.float32)}

# `inputs` is the plain form of the conversation; see `data.rendering`.
CONVERSATION = {rendering.CONVERSATION: tf.TensorSpec([], tf.string)}

Rows = Iterator[dict[str, Any]]

# A number of each example, of `examples.FOUND`.
_ROWS_DROPPED = 'rows_dropped'

_BATCH = 256  # examples that are converted and tokenised together


class Source(seqio.DataSource):
  """A source of examples that a Python generator makes from files.

    Source(rows, files=files, signature=SUMMARY, splits=('train', 'test'))

  Args:
    rows: A function from a split to its examples, in a fixed order.
    files: A function from a split to the paths of its files. A cache of tokens
      is made again if one of them changes.
    signature: A `tf.TensorSpec` for each name of an example.
    splits: Names of the splits.
    max_bad_rows: MAX_BAD_ROWS, the number of rows that a chat template may
      refuse, together with those that the files have.
  """

  def __init__(
    self,
    rows: Callable[[str], Rows],
    *,
    files: Callable[[str], Sequence[str]],
    signature: Mapping[str, tf.TensorSpec],
    splits: Iterable[str],
    max_bad_rows: int = 0,
  ):
    self._rows = rows
    self._list_files = files
    self.max_bad_rows = max_bad_rows
    self._signature = dict(signature) | {
      _ROWS_DROPPED: tf.TensorSpec([], tf.int64),
      rendering.PLACE: tf.TensorSpec([], tf.string),
    }
    super().__init__(splits=splits)

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return False

  def list_shards(self, split: str) -> Sequence[str]:
    return self._list_files(split)

  def get_dataset(
    self, split: str = 'train', shuffle: bool = False, **unused: Any
  ) -> tf.data.Dataset:
    """Returns the examples in the order of the files, never shuffled."""
    del shuffle, unused
    self._list_files(split)  # raises if they are absent
    batches = tf.data.Dataset.from_generator(
      lambda: self._batches(split),
      output_signature={
        name: tf.RaggedTensorSpec([None, None], spec.dtype)
        if spec.shape.rank
        else tf.TensorSpec([None], spec.dtype)
        for name, spec in self._signature.items()
      },
    )
    return batches.unbatch()

  def _batches(self, split: str) -> Iterator[dict[str, Any]]:
    """Yields many rows at a time, because TensorFlow is slow per element."""
    rows = self._rows(split)
    rows = ({_ROWS_DROPPED: 0, rendering.PLACE: ''} | row for row in rows)
    while batch := list(itertools.islice(rows, _BATCH)):
      yield {
        name: _ragged([row[name] for row in batch], spec.dtype)
        if spec.shape.rank
        else np.array([row[name] for row in batch], spec.dtype.as_numpy_dtype)
        for name, spec in self._signature.items()
      }


def rows_of_files(
  paths: Iterable[str],
  parse: Callable[[dict[str, Any]], dict[str, Any] | None],
  *,
  max_bad_rows: int = 0,
) -> Rows:
  """Yields the examples of files, each with the bad rows before it.

  Args:
    paths: Paths of files of rows, as for `json_lines.read`.
    parse: A function of a row, as for `json_lines.read`.
    max_bad_rows: MAX_BAD_ROWS, as for `json_lines.read`.
  """
  bad, paths = [], list(paths)
  files = itertools.chain.from_iterable(map(row_paths.files, paths))
  named = {os.path.basename(file): file for file in files}
  read = json_lines.read(paths, parse, max_bad_rows=max_bad_rows, bad=bad)
  held, counted = None, 0
  for key, row in read:
    if held is not None:
      yield held
    file, _, number = key.rpartition(':')
    place = f'{named[file]}, row {number}'
    held = row | {_ROWS_DROPPED: len(bad) - counted, rendering.PLACE: place}
    counted = len(bad)
  if held is not None:  # The last example has those that follow it, too.
    yield held | {_ROWS_DROPPED: held[_ROWS_DROPPED] + len(bad) - counted}


def _ragged(rows: list[Sequence[Any]], dtype: tf.DType) -> tf.RaggedTensor:
  return tf.RaggedTensor.from_row_lengths(
    tf.constant([value for row in rows for value in row], dtype),
    tf.constant([len(row) for row in rows], tf.int64),
  )


def tfds_source(
  name: str,
  parse: Callable[[dict[str, Any]], dict[str, Any] | None],
  *,
  signature: Mapping[str, tf.TensorSpec],
  splits: Mapping[str, str] | Sequence[str] = ('train', 'validation', 'test'),
) -> Source:
  """Returns a source on a data set that `tasks.build` made.

  Args:
    name: Name of the builder.
    parse: A function from a row to an example, or to None to leave it out.
    signature: Signature of the examples.
    splits: Names of the splits, or a mapping from them to the builder's.
  """
  theirs = splits if isinstance(splits, Mapping) else {s: s for s in splits}

  def builder():
    return tfds.builder(name, file_format='array_record')

  def files(split: str) -> list[str]:
    info = builder().info
    if theirs[split] not in info.splits:
      raise ValueError(
        f'{name} is not in {info.data_dir}: make it with `python -m '
        f'tasks.build {name}`, or set TFDS_DATA_DIR to the directory that '
        'has it.'
      )
    return [str(path) for path in info.splits[theirs[split]].filepaths]

  def rows(parse: Callable, split: str) -> Rows:
    for row in builder().as_data_source(split=theirs[split]):
      example = parse(row)
      if example is not None:
        yield example

  # The partial makes `parse` visible to the fingerprint of the token cache.
  read = functools.partial(rows, parse)
  return Source(read, files=files, signature=signature, splits=theirs)


def tokenise(
  dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
  """Tokenises `inputs` to [*] bare tokens and adds `targets` with EOS.

  `targets` become [*] tokens, and `completions` [K, *] tokens of `targets`,
  each padded at its right with -1. Features of `examples.FOUND` count what
  was found in the texts of an example. The texts stay as `rendering` reads
  them.

  Raises:
    ValueError: The vocabulary has no EOS.
  """
  vocabulary = output_features['inputs'].vocabulary
  if vocabulary.eos_id is None or vocabulary.eos_id < 0:
    raise ValueError(
      f'VOCABULARY {vocabulary} has no EOS, so no completion could end.'
    )

  def with_eos(tokens: tf.RaggedTensor) -> tf.RaggedTensor:
    end = tf.fill([tokens.nrows(), 1], vocabulary.eos_id)
    return tf.concat([tokens, end], axis=1)

  def tokenise_batch(batch):
    out = dict(batch)
    out[rendering.INPUTS] = batch['inputs']
    if 'targets' in batch or 'completions' in batch:
      out[rendering.TARGETS] = batch.get('targets', batch.get('completions'))
    out['inputs'], found = _encode(batch['inputs'], vocabulary)
    if 'targets' in batch:
      targets, more = _encode(batch['targets'], vocabulary)
      out['targets'] = with_eos(targets)
      out |= _found_in_completions(more[:, tf.newaxis])
    if 'completions' in batch:
      completions = out.pop('completions')
      targets, more = _encode(completions.values, vocabulary)
      out['targets'] = completions.with_values(with_eos(targets))
      out |= _found_in_completions(completions.with_values(more))
    out['prompts_with_special_tokens'] = found[:, 0]
    out['prompts_trimmed'] = found[:, 1]
    return out

  ragged = 'completions' in dataset.element_spec
  batch = dataset.ragged_batch if ragged else dataset.batch
  dataset = batch(_BATCH).map(tokenise_batch, num_parallel_calls=2).unbatch()
  if not ragged:
    return dataset
  return dataset.map(
    lambda x: dict(x) | {'targets': x['targets'].to_tensor(default_value=-1)}
  )


def _found_in_completions(
  found: tf.Tensor | tf.RaggedTensor,
) -> dict[str, tf.Tensor]:
  """Sums what `_encode` found in the [n, K] completions of n examples."""
  special, trimmed, empty = tf.unstack(tf.reduce_sum(found, axis=1), axis=1)
  return {
    'completions_with_special_tokens': special,
    'completions_trimmed': trimmed,
    'completions_empty': empty,
    'rows_empty': tf.reduce_min(found, axis=1)[:, 2],
  }


def _encode(
  texts: tf.Tensor, vocabulary: seqio.Vocabulary
) -> tuple[tf.RaggedTensor, tf.Tensor]:
  """Encodes texts.

  Args:
    texts: [n] texts.
    vocabulary: Vocabulary of the task.

  Returns:
    Ragged [n, *] tokens, and [n, 3] whether a text has special tokens written
    out, was trimmed, and is empty.
  """

  ids, lengths, found = tf.numpy_function(
    functools.partial(_encode_texts, vocabulary),
    [texts],
    (tf.int32, tf.int64, tf.int64),
    stateful=False,
  )
  rows = tf.RaggedTensor.from_row_lengths(
    tf.ensure_shape(ids, [None]), tf.ensure_shape(lengths, [None])
  )
  return rows, tf.ensure_shape(found, [None, 3])


def _encode_texts(
  vocabulary: seqio.Vocabulary, texts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns what `_encode` returns, as flat tokens, lengths and findings.

  It is not defined inside of `_encode`, because AutoGraph would convert it with
  that, and each of its calls for each text.
  """
  decoded = [text.decode() for text in texts]
  rows = encoding.encode(vocabulary, decoded)
  lengths = np.array([len(row) for row in rows], np.int64)
  ids = np.fromiter(itertools.chain.from_iterable(rows), np.int32)
  found = [
    (
      encoding.has_special_tokens(vocabulary, text),
      encoding.is_trimmed(vocabulary, text),
      not text.strip(),
    )
    for text in decoded
  ]
  return ids, lengths, np.array(found, np.int64).reshape(-1, 3)


def exactly(k: int) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
  """Returns a preprocessor that pads to K targets.

  An absent target is a row of -1 with the reward NaN.
  """

  @seqio.map_over_dataset
  def pad(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    out = dict(example)
    missing = k - tf.shape(out['targets'])[0]
    out['targets'] = tf.pad(
      out['targets'], [[0, missing], [0, 0]], constant_values=-1
    )
    out['rewards'] = tf.pad(
      out['rewards'], [[0, missing]], constant_values=float('nan')
    )
    return out

  return pad


def add_task(
  name: str,
  source: seqio.DataSource,
  *,
  preprocessors: Sequence[Callable] = (),
  scores: Sequence[str] = (),
  targets_rank: int | None = None,
  postprocess_fn: Callable | None = None,
  metric_fns: Sequence[Callable] = (),
) -> None:
  """Registers a task of text examples.

  Args:
    name: Name of the task.
    source: Source of text examples.
    preprocessors: Preprocessors that follow `tokenise`.
    scores: 'preference' or 'rewards' if the examples have them.
    targets_rank: 1 for a single target, 2 for K targets, None for bare prompts.
    postprocess_fn: seqio's function of targets and predictions that runs
      before the metrics.
    metric_fns: seqio's metrics of single targets and predictions.
  """
  features = {'inputs': seqio.Feature(T5_VOCABULARY, add_eos=False)}
  if targets_rank is not None:
    features['targets'] = seqio.Feature(T5_VOCABULARY, rank=targets_rank)
  for score in scores:
    features[score] = seqio.Feature(
      seqio.PassThroughVocabulary(0),
      add_eos=False,
      rank=0 if score == 'preference' else 1,
      dtype=tf.float32,
    )
  seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=[tokenise, *preprocessors],
    output_features=features,
    postprocess_fn=postprocess_fn,
    metric_fns=metric_fns,
  )
