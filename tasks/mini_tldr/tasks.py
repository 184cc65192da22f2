"""The embedded task: seqio tasks on generated posts, without a download.

  mini_tldr_sft           inputs, targets: posts and references of mixed quality
  mini_tldr_prompts       the same; an online run reads only the inputs
  mini_tldr_pairs         inputs, targets [2, T], preference: pairs and the
                          ground truth's preference
  mini_tldr_scored        inputs, targets [4, T], rewards [4]: summaries and the
                          ground truth's scores
  mini_tldr_cyclic_pairs, mini_tldr_cyclic_scored
                          the same summaries, judged by `cyclic_truth`

`inputs` are bare tokens, to which the model's prompt format is added, and
`targets` end in EOS. Inputs have up to 72 tokens, targets up to 32.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import os
from typing import Any

import seqio
import tensorflow as tf

from tasks.lib import metrics
from tasks.mini_tldr import cyclic_truth
from tasks.mini_tldr import truth
from tasks.mini_tldr import writers

SIZES = {'train': 40_960, 'validation': 4_096, 'test': 4_096}
VOCABULARY = seqio.SentencePieceVocabulary(
  os.path.join(os.path.dirname(__file__), 'mini_tldr.model')
)


def _references(split: str) -> Iterator[dict[str, Any]]:
  for index in range(SIZES[split]):
    post, summary = writers.reference(split, index)
    yield {'inputs': post.text, 'targets': summary}


def _pairs(
  split: str, *, preference: Callable[[str, str, str], float]
) -> Iterator[dict[str, Any]]:
  for index in range(SIZES[split]):
    post, y_1, y_2 = writers.compared(split, index)
    yield {
      'inputs': post.text,
      'targets': [y_1, y_2],
      'preference': preference(post.text, y_1, y_2),
    }


def _scored(
  split: str, *, rewards: Callable[[str, Sequence[str]], list[float]]
) -> Iterator[dict[str, Any]]:
  for index in range(SIZES[split]):
    post, summaries = writers.several(split, index, count=4)
    yield {
      'inputs': post.text,
      'targets': summaries,
      'rewards': rewards(post.text, summaries),
    }


def _source(
  examples: Callable[[str], Iterator[dict[str, Any]]],
) -> seqio.FunctionDataSource:
  """Returns a source of generated examples, which stay in memory."""

  @functools.cache
  def columns(split: str) -> dict[str, list]:
    rows = list(examples(split))
    return {name: [row[name] for row in rows] for name in rows[0]}

  def dataset(
    split: str, shuffle_files: bool, seed: int | None = None
  ) -> tf.data.Dataset:
    del shuffle_files, seed  # The order is fixed. The loader shuffles.
    return tf.data.Dataset.from_tensor_slices(columns(split))

  return seqio.FunctionDataSource(
    dataset, splits=tuple(SIZES), num_input_examples=SIZES
  )


def _tokenize_several(
  dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
  """Tokenises K summaries with EOS and pads them to one length."""
  vocabulary = output_features['targets'].vocabulary

  def tokenize(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    targets = vocabulary.encode_tf(example['targets'])
    end = tf.fill([targets.nrows(), 1], vocabulary.eos_id)
    scores = {
      name: tf.cast(example[name], tf.float32)
      for name in ('preference', 'rewards')
      if name in example
    }
    return scores | {
      'inputs': vocabulary.encode_tf(example['inputs']),
      'inputs_pretokenized': example['inputs'],
      'targets': tf.concat([targets, end], axis=1).to_tensor(),
      'targets_pretokenized': example['targets'],
    }

  return dataset.map(tokenize, num_parallel_calls=tf.data.AUTOTUNE)


_INPUTS = seqio.Feature(VOCABULARY, add_eos=False)

for _name in ('mini_tldr_sft', 'mini_tldr_prompts'):
  seqio.TaskRegistry.add(
    _name,
    source=_source(_references),
    preprocessors=[
      seqio.preprocessors.tokenize,
      seqio.preprocessors.append_eos_after_trim,
    ],
    output_features={
      'inputs': _INPUTS,
      'targets': seqio.Feature(VOCABULARY, add_eos=True),
    },
    metric_fns=[metrics.rouge],
  )


def _add_several(
  name: str,
  examples: Callable[[str], Iterator[dict[str, Any]]],
  score: str,
  rank: int,
) -> None:
  """Registers a task of K summaries with a score of this rank."""
  seqio.TaskRegistry.add(
    name,
    source=_source(examples),
    preprocessors=[_tokenize_several],
    output_features={
      'inputs': _INPUTS,
      'targets': seqio.Feature(VOCABULARY, add_eos=False, rank=2),
      score: seqio.Feature(
        seqio.PassThroughVocabulary(0),
        add_eos=False,
        rank=rank,
        dtype=tf.float32,
      ),
    },
  )


for _name, _truth in (
  ('mini_tldr', truth),
  ('mini_tldr_cyclic', cyclic_truth),
):
  _add_several(
    f'{_name}_pairs',
    functools.partial(_pairs, preference=_truth.preference),
    'preference',
    rank=0,
  )
  _add_several(
    f'{_name}_scored',
    functools.partial(_scored, rewards=_truth.rewards),
    'rewards',
    rank=1,
  )
