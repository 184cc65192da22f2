"""Tasks of a few hand-made rows of tokens, for the tests of the data wing."""

import functools

import jax
import numpy as np
import seqio
import tensorflow as tf

from ipo_md.data import dataset as dataset_lib
from ipo_md.data import prompt_format as prompt_format_lib

VOCABULARY = seqio.ByteVocabulary()  # ids 3 + byte, EOS 1, padding 0
FORMAT = prompt_format_lib.PromptFormat(prefix=(2,), suffix=(1,))
_TOKENS = seqio.Feature(VOCABULARY, add_eos=True)


def add_task(name, columns, *, targets_rank=1):
  """Registers a task unless it exists, and returns its name.

  Args:
    name: Name of the task.
    columns: Rows of token ids or scores, by feature.
    targets_rank: 1 for a single target, 2 for K targets.
  """

  def source(split, shuffle_files, seed=None):
    del split, shuffle_files, seed
    rows = [
      dict(zip(columns, r, strict=True))
      for r in zip(*columns.values(), strict=True)
    ]
    signature = {}
    for key, values in columns.items():
      integer = key in ('inputs', 'targets')
      rank = np.ndim(values[0])
      signature[key] = tf.TensorSpec(
        [None] * rank, tf.int32 if integer else tf.float32
      )
    return tf.data.Dataset.from_generator(
      lambda: iter(rows), output_signature=signature
    )

  features = {
    'inputs': _TOKENS,
    'targets': seqio.Feature(VOCABULARY, rank=targets_rank),
  }
  if name not in seqio.TaskRegistry.names():
    seqio.TaskRegistry.add(
      name,
      source=seqio.FunctionDataSource(
        source,
        splits=['train'],
        num_input_examples={'train': len(columns['inputs'])},
      ),
      preprocessors=[],
      output_features={k: features[k] for k in columns if k in features},
    )
  return name


def load(
  name, inputs=6, targets=4, prompt_format=FORMAT, split='train', **kwargs
):
  return dataset_lib.load(
    mixture_or_task_name=name,
    task_feature_lengths={'inputs': inputs, 'targets': targets},
    split=split,
    prompt_format=prompt_format,
    **kwargs,
  )


def sharding(devices=1):
  mesh = jax.make_mesh(
    (devices, 1, 1),
    ('data', 'fsdp', 'tensor'),
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
    devices=jax.devices()[:devices],
  )
  return jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec(('data', 'fsdp'))
  )


@functools.cache
def supervised():
  """A task of 40 rows, in which row i has the prompt [10 + i] * (1 + i % 6)."""
  return add_task(
    'supervised',
    {
      'inputs': [[10 + i] * (1 + i % 6) for i in range(40)],
      'targets': [[20, 21, 22, 23, 24, 1][: 2 + i % 5] for i in range(40)],
    },
  )


@functools.cache
def numbered_pairs():
  """A task of 20 pairs of single tokens, with preferences."""
  return add_task(
    'numbered_pairs',
    {
      'inputs': [[10 + i] for i in range(20)],
      'targets': [[[30 + i], [60 + i]] for i in range(20)],
      'preference': [i / 20 for i in range(20)],
    },
    targets_rank=2,
  )


@functools.cache
def completions_of_three():
  """A task of three prompts with up to three completions and rewards."""
  return add_task(
    'completions_of_three',
    {
      'inputs': [[5, 6], [7], [8]],
      'targets': [
        [[9, 1, 0, 0, 0], [9, 9, 9, 9, 1], [0, 0, 0, 0, 0]],
        [[4, 4, 1], [0, 0, 0], [2, 1, 0]],
        [[0, 0], [3, 1], [3, 1]],
      ],
      'rewards': [[1.0, 2.0, np.nan], [3.0, np.nan, 5.0], [np.nan, 4.0, 6.0]],
    },
    targets_rank=2,
  )
