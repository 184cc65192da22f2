"""What all tasks on text share: sources, and text -> bare token segments.

A source yields examples of text; `SUMMARY` has one target, `COMPLETIONS` has
some, each with a reward, or two with a preference.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

# Of the public T5 checkpoints; a run may replace it (VOCABULARY).
T5_VOCABULARY = seqio.SentencePieceVocabulary(
  'gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model'
)

PROMPT = {'inputs': tf.TensorSpec([], tf.string)}
SUMMARY = PROMPT | {'targets': tf.TensorSpec([], tf.string)}
COMPLETIONS = PROMPT | {'completions': tf.TensorSpec([None], tf.string)}
PREFERENCE = COMPLETIONS | {'preference': tf.TensorSpec([], tf.float32)}
REWARDS = COMPLETIONS | {'rewards': tf.TensorSpec([None], tf.float32)}

Rows = Iterator[dict[str, Any]]

_BATCH = 256  # examples that are converted and tokenised at a time


class Source(seqio.DataSource):
  """Examples that a Python generator makes of files.

  Args:
    rows: split -> examples, in a fixed order.
    files: split -> the files that they come from; a change of one makes
      tokens that were kept of it stale.
    signature: name -> tf.TensorSpec of an example.
    splits: names of the splits.
  """

  def __init__(
    self,
    rows: Callable[[str], Rows],
    *,
    files: Callable[[str], Sequence[str]],
    signature: Mapping[str, tf.TensorSpec],
    splits: Iterable[str],
  ):
    self._rows = rows
    self._list_files = files
    self._signature = dict(signature)
    super().__init__(splits=splits)

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return False

  def list_shards(self, split: str) -> Sequence[str]:
    return self._list_files(split)

  def get_dataset(
    self, split: str = 'train', shuffle: bool = False, **unused: Any
  ) -> tf.data.Dataset:
    """In the order of the files; a loader shuffles the examples."""
    del shuffle, unused
    self._list_files(split)  # raises if they are not there
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
    """Many rows at a time, for TensorFlow takes long over each."""
    rows = self._rows(split)
    while batch := list(itertools.islice(rows, _BATCH)):
      yield {
        name: _ragged([row[name] for row in batch], spec.dtype)
        if spec.shape.rank
        else np.array([row[name] for row in batch], spec.dtype.as_numpy_dtype)
        for name, spec in self._signature.items()
      }


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
  """A source on a data set in array_record files, made by `tasks.build`.

  Args:
    name: of the builder.
    parse: makes an example of a row; None leaves it out.
    signature: of the examples.
    splits: names of the splits, or ours -> the builder's.
  """
  theirs = splits if isinstance(splits, Mapping) else {s: s for s in splits}

  def builder():
    return tfds.builder(name, file_format='array_record')

  def files(split: str) -> list[str]:
    info = builder().info
    if theirs[split] not in info.splits:
      raise ValueError(
        f'{name} is not in {info.data_dir}: make it with `python -m '
        f'tasks.build {name}`, or set TFDS_DATA_DIR to where it is.'
      )
    return [str(path) for path in info.splits[theirs[split]].filepaths]

  def rows(split: str) -> Rows:
    for row in builder().as_data_source(split=theirs[split]):
      example = parse(row)
      if example is not None:
        yield example

  return Source(rows, files=files, signature=signature, splits=theirs)


def tokenise(
  dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
  """Text -> tokens: `inputs` bare, `targets` [*] or [K, *] with EOS."""
  vocabulary = output_features['inputs'].vocabulary

  def with_eos(texts: tf.Tensor) -> tf.RaggedTensor:
    tokens = _encode(texts, vocabulary)
    end = tf.fill([tokens.nrows(), 1], vocabulary.eos_id)
    return tf.concat([tokens, end], axis=1)

  def tokenise_batch(batch):
    out = dict(batch)
    out['inputs'] = _encode(batch['inputs'], vocabulary)
    if 'targets' in batch:
      out['targets'] = with_eos(batch['targets'])
    if 'completions' in batch:
      completions = out.pop('completions')
      out['targets'] = completions.with_values(with_eos(completions.values))
    return out

  ragged = 'completions' in dataset.element_spec
  batch = dataset.ragged_batch if ragged else dataset.batch
  dataset = batch(_BATCH).map(tokenise_batch, num_parallel_calls=2).unbatch()
  if not ragged:
    return dataset
  return dataset.map(lambda x: dict(x) | {'targets': x['targets'].to_tensor()})


def _encode(texts: tf.Tensor, vocabulary: seqio.Vocabulary) -> tf.RaggedTensor:
  """[n] texts -> [n, *] tokens, SentencePiece on all cores.

  The Python tokenizer takes half the time of TensorFlow's operation.
  """

  def encode(texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    texts = [text.decode() for text in texts]
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
      rows = vocabulary.tokenizer.encode(texts)
    else:
      rows = [vocabulary.encode(text) for text in texts]
    lengths = np.array([len(row) for row in rows], np.int64)
    ids = np.fromiter(itertools.chain.from_iterable(rows), np.int32)
    return ids, lengths

  ids, lengths = tf.numpy_function(
    encode, [texts], (tf.int32, tf.int64), stateful=False
  )
  return tf.RaggedTensor.from_row_lengths(
    tf.ensure_shape(ids, [None]), tf.ensure_shape(lengths, [None])
  )


def exactly(k: int) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
  """K targets: the missing ones are rows of 0, with reward NaN."""

  @seqio.map_over_dataset
  def pad(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    out = dict(example)
    missing = k - tf.shape(out['targets'])[0]
    out['targets'] = tf.pad(out['targets'], [[0, missing], [0, 0]])
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
):
  """Registers a task of text.

  Args:
    name: of the task.
    source: of examples of text.
    preprocessors: what comes after `tokenise`.
    scores: 'preference' or 'rewards', where the examples have them.
    targets_rank: 1 for a lone target, 2 for K; None: bare prompts.
    postprocess_fn: seqio's, of targets and predictions before the metrics.
    metric_fns: seqio's, of lone targets and predictions.
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
