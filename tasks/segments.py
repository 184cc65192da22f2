"""What all tasks on text share: sources, and text -> bare token segments.

A source yields examples of text; `SUMMARY` has one target, `COMPLETIONS` has
some, each with a reward, or two with a preference.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

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
    return tf.data.Dataset.from_generator(
      lambda: self._rows(split), output_signature=self._signature
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


@seqio.map_over_dataset
def tokenise(
  example: Mapping[str, tf.Tensor],
  output_features: Mapping[str, seqio.Feature],
) -> dict[str, tf.Tensor]:
  """Text -> tokens: `inputs` bare, `targets` [*] or [K, *] with EOS."""
  vocabulary = output_features['inputs'].vocabulary
  out = dict(example)
  out['inputs'] = vocabulary.encode_tf(example['inputs'])
  if 'targets' in example:
    tokens = vocabulary.encode_tf(example['targets'])
    out['targets'] = tf.concat([tokens, [vocabulary.eos_id]], axis=0)
  if 'completions' in example:
    tokens = vocabulary.encode_tf(out.pop('completions'))
    end = tf.fill([tokens.nrows(), 1], vocabulary.eos_id)
    out['targets'] = tf.concat([tokens, end], axis=1).to_tensor()
  return out


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
):
  """Registers a task of text.

  Args:
    name: of the task.
    source: of examples of text.
    preprocessors: what comes after `tokenise`.
    scores: 'preference' or 'rewards', where the examples have them.
    targets_rank: 1 for a lone target, 2 for K; None: bare prompts.
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
  )
