"""Orbax checkpoints that are written here."""

import tracemalloc

from etils import epath
from flax import traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ipo_md.checkpoints import arrays
from ipo_md.checkpoints import orbax
from ipo_md.checkpoints import t5x
from tests.checkpoints import networks


@pytest.mark.parametrize('write', [orbax.write, orbax.write_t5x])
def test_few_arrays_are_in_memory_at_a_time(tmp_path, monkeypatch, write):
  monkeypatch.setattr(orbax, '_FILE_BYTES', 2**21)
  shape, count = (512, 1024), 16  # 2 MiB each
  names = [f'a{i}' for i in range(count)]
  made = lambda: np.ones(shape, np.float32)
  checkpoint = arrays.Checkpoint(
    {name: arrays.Stored(shape, np.float32, made) for name in names},
    {name: [arrays.Piece(name)] for name in names},
  )
  abstract = {name: jax.ShapeDtypeStruct(shape, np.float32) for name in names}
  tracemalloc.start()
  write(epath.Path(tmp_path), checkpoint, abstract, step=0)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < count * 2**21 / 2


def test_orbax_restores_what_is_written(tmp_path):
  network = networks.network('t5_v1_1')
  networks.convert(
    network, networks.HF / 't5_v1_1', tmp_path / 'there', 't5x_orbax'
  )
  state = tmp_path / 'there' / 'checkpoint_0' / 'state'
  with ocp.PyTreeCheckpointer() as checkpointer:
    tree = checkpointer.restore(state)
  assert tree['state']['step'] == 0
  stored = t5x.read_ocdbt(epath.Path(state), 'target')
  target = traverse_util.flatten_dict(tree['target'], sep='/')
  assert target.keys() == stored.keys()
  for name, array in target.items():
    np.testing.assert_array_equal(array, stored[name].read())
