"""Tests of examples, data and batches on tasks of a few hand-made rows."""

import functools
import itertools
import os
import pickle
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
import seqio
import tensorflow as tf

from ipo_md.core import types
from ipo_md.data import batches
from ipo_md.data import dataset as dataset_lib
from ipo_md.data import examples
from ipo_md.data import prompt_format as prompt_format_lib
from ipo_md.data import vocabularies

_VOCABULARY = seqio.ByteVocabulary()  # ids 3 + byte, EOS 1, padding 0
_TOKENS = seqio.Feature(_VOCABULARY, add_eos=True)
_FORMAT = prompt_format_lib.PromptFormat(prefix=(2,), suffix=(1,))


def _add_task(name, columns, *, targets_rank=1):
  """Registers a task whose columns are lists of token ids and scores."""

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
    'targets': seqio.Feature(_VOCABULARY, rank=targets_rank),
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


def _load(name, inputs=6, targets=4, prompt_format=_FORMAT, **kwargs):
  return dataset_lib.load(
    mixture_or_task_name=name,
    task_feature_lengths={'inputs': inputs, 'targets': targets},
    split='train',
    prompt_format=prompt_format,
    **kwargs,
  )


def _sharding(devices=1):
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
def _supervised():
  """40 rows; row i has the prompt [10 + i] * (1 + i % 6)."""
  return _add_task(
    'supervised',
    {
      'inputs': [[10 + i] * (1 + i % 6) for i in range(40)],
      'targets': [[20, 21, 22, 23, 24, 1][: 2 + i % 5] for i in range(40)],
    },
  )


@functools.cache
def _pairs_of_numbers():
  return _add_task(
    'pairs_of_numbers',
    {
      'inputs': [[10 + i] for i in range(20)],
      'targets': [[[30 + i], [60 + i]] for i in range(20)],
      'preference': [i / 20 for i in range(20)],
    },
    targets_rank=2,
  )


@functools.cache
def _pairs():
  return _add_task(
    'pairs',
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


class TestRows:
  def test_supervised(self):
    dataset = _load(_supervised())
    batch = dataset.rows([(0, 0), (0, 5), (0, 3)])
    np.testing.assert_array_equal(
      batch.completions.prompts.ids,
      [
        [2, 10, 1, 0, 0, 0],
        [2, 15, 15, 15, 15, 1],  # 6 tokens, of which 4 fit
        [2, 13, 13, 13, 13, 1],
      ],
    )
    np.testing.assert_array_equal(
      batch.completions.prompts.mask.sum(-1), [3, 6, 6]
    )
    np.testing.assert_array_equal(
      batch.completions.completions.ids[:, 0],
      [[20, 21, 0, 0], [20, 21, 0, 0], [20, 21, 22, 24]],
    )
    np.testing.assert_array_equal(
      batch.completions.completions.mask[:, 0].sum(-1), [2, 2, 4]
    )
    assert batch.completion_mask.tolist() == [[True]] * 3
    assert batch.preference is None
    assert batch.rewards is None

  def test_a_lone_target_keeps_its_last_token(self):
    batch = _load(_supervised()).rows([(0, 4)])
    # 20 21 22 23 24 1 in four tokens
    np.testing.assert_array_equal(
      batch.completions.completions.ids[0, 0], [20, 21, 22, 1]
    )

  def test_counts(self):
    lengths = [1 + i % 6 for i in range(40)]
    assert _load(_supervised()).counts == {
      'examples': 40,
      'prompts_cut': sum(n > 4 for n in lengths),
      'targets_cut': sum(2 + i % 5 > 4 for i in range(40)),
      'completions_missing': 0,
    }

  def test_prompts_cut_at_the_front(self):
    name = _add_task('counted', {'inputs': [[3, 4, 5, 6, 7]]})
    front = prompt_format_lib.PromptFormat(
      prefix=(2,), suffix=(1,), cut_prompts='front'
    )
    tokens = _load(name, 4, prompts_only=True, prompt_format=front)
    np.testing.assert_array_equal(tokens.rows([(0, 0)]).ids, [[2, 6, 7, 1]])
    tokens = _load(name, 4, prompts_only=True)
    np.testing.assert_array_equal(tokens.rows([(0, 0)]).ids, [[2, 3, 4, 1]])

  def test_closing_is_never_cut(self):
    name = _add_task('closed', {'inputs': [[3, 4, 5, 6, 7], [8]]})
    closed = prompt_format_lib.PromptFormat(
      prefix=(2,), suffix=(1,), closing='?', vocabulary=_VOCABULARY
    )
    mark = ord('?') + 3
    dataset = _load(name, 5, prompts_only=True, prompt_format=closed)
    tokens = dataset.rows([(0, 0), (0, 1)])
    np.testing.assert_array_equal(
      tokens.ids, [[2, 3, 4, mark, 1], [2, 8, mark, 1, 0]]
    )
    bare = closed.bare(tokens)
    np.testing.assert_array_equal(bare.mask, [[0, 1, 1, 0, 0], [0, 1, 0, 0, 0]])
    assert dataset.counts['prompts_cut'] == 1

  def test_texts_around_the_prompt(self):
    chat = prompt_format_lib.PromptFormat(
      prefix=(2, '<'), suffix=('>', 1), vocabulary=_VOCABULARY
    )
    opening, ending = ord('<') + 3, ord('>') + 3
    tokens = chat.tokens([np.array([5, 6, 7])], 6)
    assert tokens.ids.tolist() == [[2, opening, 5, 6, ending, 1]]

  def test_pairs(self):
    dataset = _load(_pairs())
    batch = dataset.rows([(0, 0), (0, 1), (0, 2)])
    np.testing.assert_array_equal(
      batch.completions.completions.ids,
      [
        [[9, 1, 0, 0], [9, 9, 9, 9], [0, 0, 0, 0]],
        [[4, 4, 1, 0], [0, 0, 0, 0], [2, 1, 0, 0]],
        [[0, 0, 0, 0], [3, 1, 0, 0], [3, 1, 0, 0]],
      ],
    )
    np.testing.assert_array_equal(
      batch.completion_mask,
      [[True, True, False], [True, False, True], [False, True, True]],
    )
    assert batch.preference is None
    np.testing.assert_array_equal(
      batch.rewards, [[1, 2, 0], [3, 0, 5], [0, 4, 6]]
    )
    assert dataset.counts['completions_missing'] == 3
    assert dataset.counts['targets_cut'] == 1

  def test_prompts_only(self):
    tokens = _load(_pairs(), prompts_only=True).rows([(0, 1)])
    assert isinstance(tokens, types.Tokens)
    np.testing.assert_array_equal(tokens.ids, [[2, 7, 1, 0, 0, 0]])


def _prompts(batch):
  return np.asarray(batch.completions.prompts.ids)


def _three_batches(sharding):
  dataset = _load(_pairs_of_numbers())
  make = batches.Batches(dataset, batch_size=8, seed=5, sharding=sharding)
  return [make(step) for step in range(3)]


def _write_shards(port, host, directory):
  """What host 0 or 1 of two holds of three batches."""
  jax.distributed.initialize(f'localhost:{port}', 2, host)
  mesh = jax.make_mesh(
    (2, 2, 1),
    ('data', 'fsdp', 'tensor'),
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )
  spec = jax.sharding.PartitionSpec(('data', 'fsdp'))
  made = _three_batches(jax.sharding.NamedSharding(mesh, spec))
  shards = []
  for leaf in jax.tree.leaves(made):
    held = sorted(leaf.addressable_shards, key=lambda s: s.index[0].start)
    rows = np.concatenate([np.asarray(s.data) for s in held])
    shards.append((held[0].index[0].start, rows))
  with open(os.path.join(directory, str(host)), 'wb') as file:
    pickle.dump(shards, file)


class TestBatches:
  def test_an_epoch_is_every_example_once(self):
    dataset = _load(_supervised())
    batch = batches.Batches(dataset, batch_size=8, seed=0, sharding=_sharding())
    epochs = [
      np.concatenate([_prompts(batch(s))[:, 1] for s in range(e, e + 5)])
      for e in (0, 5)
    ]
    for epoch in epochs:
      assert sorted(epoch) == list(range(10, 50))
    assert epochs[0].tolist() != epochs[1].tolist()
    assert epochs[0].tolist() != sorted(epochs[0])

  def test_seed_and_step_decide(self):
    dataset = _load(_supervised())
    make = functools.partial(
      batches.Batches, dataset, batch_size=8, sharding=_sharding()
    )
    resumed = make(seed=3)(7)
    through = list(map(make(seed=3), range(8)))[7]
    jax.tree.map(np.testing.assert_array_equal, resumed, through)
    other = make(seed=4)(7)
    assert (_prompts(other) != _prompts(resumed)).any()

  @pytest.mark.parametrize('devices', [2, 8])
  def test_the_mesh_does_not_change_the_batch(self, devices):
    dataset = _load(_supervised())
    make = functools.partial(batches.Batches, dataset, batch_size=8, seed=0)
    one = make(sharding=_sharding())(2)
    many = make(sharding=_sharding(devices))(2)
    jax.tree.map(np.testing.assert_array_equal, one, many)
    ids = many.completions.prompts.ids
    assert ids.addressable_shards[0].data.shape == (8 // devices, 6)

  def test_two_hosts_read_one_batch(self, tmp_path):
    """Two processes of two devices against this one of four."""
    with socket.socket() as s:
      s.bind(('localhost', 0))
      port = s.getsockname()[1]
    environment = os.environ | {
      'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
      'PYTHONPATH': os.getcwd(),
    }
    hosts = [
      subprocess.Popen(
        [sys.executable, __file__, str(port), str(host), str(tmp_path)],
        env=environment,
      )
      for host in range(2)
    ]
    expected = jax.device_get(_three_batches(_sharding(4)))
    assert [host.wait(timeout=300) for host in hosts] == [0, 0]
    for host in range(2):
      with open(tmp_path / str(host), 'rb') as file:
        shards = pickle.load(file)
      for (start, rows), leaf in zip(
        shards, jax.tree.leaves(expected), strict=True
      ):
        assert start == host * 4
        np.testing.assert_array_equal(rows, leaf[start : start + 4])

  def test_mixture_rates(self):
    other = _add_task('other', {'inputs': [[90]] * 7, 'targets': [[20, 1]] * 7})
    if 'mixed' not in seqio.MixtureRegistry.names():
      seqio.MixtureRegistry.add('mixed', [(_supervised(), 3.0), (other, 1.0)])
    dataset = _load('mixed')
    assert len(dataset) == 47
    batch = batches.Batches(dataset, batch_size=8, seed=0, sharding=_sharding())
    ids = np.concatenate([_prompts(batch(s))[:, 1] for s in range(10)])
    assert (ids == 90).sum() == 20

  def test_in_order(self):
    dataset = _load(_supervised(), prompts_only=True)
    out = list(
      batches.in_order(dataset, batch_size=8, sharding=_sharding(2), limit=13)
    )
    first = np.concatenate([np.asarray(tokens.ids)[:, 1] for tokens, _ in out])
    mask = np.concatenate([np.asarray(mask) for _, mask in out])
    assert first[mask].tolist() == list(range(10, 23))
    assert len(out) == 2
    assert mask.sum() == 13


class TestPrefetch:
  def test_values_in_order(self):
    assert list(batches.prefetch(lambda s: s * s, range(5))) == [0, 1, 4, 9, 16]
    assert list(batches.prefetch(lambda s: s, [])) == []

  def test_one_ahead_and_no_more(self):
    made = []
    iterator = batches.prefetch(made.append, itertools.count())
    next(iterator)
    deadline = time.time() + 5
    while len(made) < 2 and time.time() < deadline:
      time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) == 2
    iterator.close()
    assert not [t for t in threading.enumerate() if t.name.startswith('data')]

  def test_errors_are_raised(self):
    def make(step):
      if step == 2:
        raise ValueError('row 17')
      return step

    iterator = batches.prefetch(make, range(5))
    assert [next(iterator), next(iterator)] == [0, 1]
    with pytest.raises(ValueError, match='row 17'):
      next(iterator)


class TestErrors:
  def test_misspelt_task(self):
    _supervised()
    with pytest.raises(ValueError, match='Nearest: supervised'):
      _load('supervisd')

  def test_split(self):
    with pytest.raises(ValueError, match="no split 'test'"):
      examples.tokenise(
        examples.find(_supervised()), split='test', feature_lengths={}
      )

  @pytest.mark.parametrize(
    ('lengths', 'match'),
    [
      ({'inputs': 6}, "length of at least 1 for 'targets'"),
      ({'inputs': 6, 'targets': 0}, "length of at least 1 for 'targets'"),
      ({'inputs': 2, 'targets': 4}, 'no room for a prompt'),
      ({'inputs': 6, 'targets': 4, 'input': 3}, "names 'input'"),
    ],
  )
  def test_lengths(self, lengths, match):
    with pytest.raises(ValueError, match=match):
      dataset_lib.load(
        mixture_or_task_name=_supervised(),
        task_feature_lengths=lengths,
        split='train',
        prompt_format=_FORMAT,
      )

  def test_targets_asked_of_bare_prompts(self):
    name = _add_task('bare', {'inputs': [[3], [4]]})
    with pytest.raises(ValueError, match="no feature 'targets'"):
      _load(name)

  @pytest.mark.parametrize(
    ('name', 'columns', 'match'),
    [
      (
        'empty_prompt',
        {'inputs': [[3], []], 'targets': [[4, 1], [4, 1]]},
        'Row 1 of task empty_prompt, split train has an empty prompt',
      ),
      (
        'empty_target',
        {'inputs': [[3], [3]], 'targets': [[4, 1], []]},
        'Row 1 .* has no completion',
      ),
      (
        'two_and_three',
        {'inputs': [[3], [3]], 'targets': [[[4], [5]], [[4], [5], [6]]]},
        'Row 1 .* has 3 targets where others have 2',
      ),
      (
        'bad_preference',
        {
          'inputs': [[3], [3]],
          'targets': [[[4], [5]]] * 2,
          'preference': [0.5, 1.5],
        },
        'Row 1 .* `preference` outside of 0 to 1',
      ),
      (
        'preference_nan',
        {'inputs': [[3]], 'targets': [[[4], [5]]], 'preference': [np.nan]},
        'Row 0 .* `preference` outside of 0 to 1',
      ),
      (
        'half_a_pair',
        {
          'inputs': [[3], [3]],
          'targets': [[[4], [5]], [[4], [0]]],
          'preference': [0.5, 1.0],
        },
        'Row 1 .* `preference` and not all of its completions',
      ),
      (
        'bad_reward',
        {
          'inputs': [[3], [3]],
          'targets': [[[4], [5]]] * 2,
          'rewards': [[0.0, 1.0], [np.nan, 1.0]],
        },
        'Row 1 .* `rewards` that is not a number',
      ),
      (
        'lone_reward',
        {
          'inputs': [[3], [3]],
          'targets': [[[4], [5]], [[0], [5]]],
          'rewards': [[0.0, 1.0], [0.0, 1.0]],
        },
        'Row 1 .* `rewards` and one completion',
      ),
      (
        'missing_reward',
        {'inputs': [[3]], 'targets': [[[4], [5]]], 'rewards': [[1.0]]},
        '1 values a row for 2 completions',
      ),
    ],
  )
  def test_rows(self, name, columns, match):
    rank = np.ndim(columns['targets'][0])
    _add_task(name, columns, targets_rank=rank)
    with pytest.raises(ValueError, match=match):
      _load(name)

  def test_batch_size(self):
    dataset = _load(_supervised())
    with pytest.raises(ValueError, match='6 is not divisible by 4'):
      batches.Batches(dataset, batch_size=6, seed=0, sharding=_sharding(4))
    with pytest.raises(ValueError, match='48 is more than the 40 examples'):
      batches.Batches(dataset, batch_size=48, seed=0, sharding=_sharding())

  def test_vocabulary(self):
    dataset = _load(_supervised())
    dataset_lib.check_vocabulary(dataset, 259)
    with pytest.raises(ValueError, match='259 ids and the model 256'):
      dataset_lib.check_vocabulary(dataset, 256)
    outside = prompt_format_lib.PromptFormat(suffix=(300,))
    with pytest.raises(ValueError, match='outside of the vocabulary'):
      dataset_lib.check_vocabulary(
        _load(_supervised(), prompt_format=outside), 1000
      )

  def test_a_vocabulary_that_cannot_be_read(self, tmp_path):
    missing = seqio.SentencePieceVocabulary(str(tmp_path / 'spm.model'))
    with pytest.raises(ValueError, match='cannot be read .*spm.model.*VOCAB'):
      _load(_supervised(), vocabulary=missing)

  def test_the_vocabulary_of_a_run(self):
    other = seqio.ByteVocabulary(7)
    name = _supervised()
    assert vocabularies.vocabulary(mixture_or_task_name=name) is _VOCABULARY
    found = vocabularies.vocabulary(mixture_or_task_name=name, vocabulary=other)
    assert found is other

  def test_cut_prompts(self):
    with pytest.raises(ValueError, match='cut_prompts'):
      prompt_format_lib.PromptFormat(cut_prompts='middle')

  def test_closing_without_a_vocabulary(self):
    with pytest.raises(ValueError, match='VOCABULARY'):
      prompt_format_lib.PromptFormat(closing='TL;DR:')


if __name__ == '__main__':
  _write_shards(sys.argv[1], int(sys.argv[2]), sys.argv[3])
