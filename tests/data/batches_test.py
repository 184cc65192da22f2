"""Tests of global batches and of prefetching."""

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

from ipo_md.data import batches
from tests.data import hand_made


def _prompts(batch):
  return np.asarray(batch.completions.prompts.ids)


def _three_batches(sharding):
  dataset = hand_made.load(hand_made.numbered_pairs())
  make = batches.Batches(dataset, batch_size=8, seed=5, sharding=sharding)
  return [make(step) for step in range(3)]


def _write_shards(port, host, directory):
  """Writes the rows of three batches that one of two hosts holds."""
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
    dataset = hand_made.load(hand_made.supervised())
    batch = batches.Batches(
      dataset, batch_size=8, seed=0, sharding=hand_made.sharding()
    )
    epochs = [
      np.concatenate([_prompts(batch(s))[:, 1] for s in range(e, e + 5)])
      for e in (0, 5)
    ]
    for epoch in epochs:
      assert sorted(epoch) == list(range(10, 50))
    assert epochs[0].tolist() != epochs[1].tolist()
    assert epochs[0].tolist() != sorted(epochs[0])

  def test_seed_and_step_decide(self):
    dataset = hand_made.load(hand_made.supervised())
    make = functools.partial(
      batches.Batches, dataset, batch_size=8, sharding=hand_made.sharding()
    )
    resumed = make(seed=3)(7)
    through = list(map(make(seed=3), range(8)))[7]
    jax.tree.map(np.testing.assert_array_equal, resumed, through)
    other = make(seed=4)(7)
    assert (_prompts(other) != _prompts(resumed)).any()

  @pytest.mark.parametrize('devices', [2, 8])
  def test_the_mesh_does_not_change_the_batch(self, devices):
    dataset = hand_made.load(hand_made.supervised())
    make = functools.partial(batches.Batches, dataset, batch_size=8, seed=0)
    one = make(sharding=hand_made.sharding())(2)
    many = make(sharding=hand_made.sharding(devices))(2)
    jax.tree.map(np.testing.assert_array_equal, one, many)
    ids = many.completions.prompts.ids
    assert ids.addressable_shards[0].data.shape == (8 // devices, 6)

  @pytest.mark.slow
  def test_two_hosts_read_one_batch(self, tmp_path):
    """Compares two processes of two devices with this one of four."""
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
    expected = jax.device_get(_three_batches(hand_made.sharding(4)))
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
    other = hand_made.add_task(
      'other', {'inputs': [[90]] * 7, 'targets': [[20, 1]] * 7}
    )
    if 'mixed' not in seqio.MixtureRegistry.names():
      seqio.MixtureRegistry.add(
        'mixed', [(hand_made.supervised(), 3.0), (other, 1.0)]
      )
    dataset = hand_made.load('mixed')
    assert len(dataset) == 47
    batch = batches.Batches(
      dataset, batch_size=8, seed=0, sharding=hand_made.sharding()
    )
    ids = np.concatenate([_prompts(batch(s))[:, 1] for s in range(10)])
    assert (ids == 90).sum() == 20

  def test_in_order(self):
    dataset = hand_made.load(hand_made.supervised(), prompts_only=True)
    out = list(
      batches.in_order(
        dataset, batch_size=8, sharding=hand_made.sharding(2), limit=13
      )
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


def test_batch_size():
  dataset = hand_made.load(hand_made.supervised())
  with pytest.raises(ValueError, match='6 is not divisible by 4'):
    batches.Batches(
      dataset, batch_size=6, seed=0, sharding=hand_made.sharding(4)
    )
  with pytest.raises(ValueError, match='48 is more than the 40 examples'):
    batches.Batches(
      dataset, batch_size=48, seed=0, sharding=hand_made.sharding()
    )


if __name__ == '__main__':
  _write_shards(sys.argv[1], int(sys.argv[2]), sys.argv[3])
