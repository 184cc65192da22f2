"""Arrays of checkpoints: weights that are not finite, and joined pieces."""

import shutil
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from ipo_md.checkpoints import arrays
from tests.checkpoints import networks

NAME = 'model.layers.1.mlp.down_proj.weight'


def _damaged(tmp_path, value, dtype):
  path = tmp_path / 'copy'
  shutil.copytree(networks.HF / 'llama', path)
  stored = safetensors.numpy.load_file(path / 'model.safetensors')
  stored[NAME] = stored[NAME].astype(dtype)
  stored[NAME][3, 5] = value
  safetensors.numpy.save_file(stored, path / 'model.safetensors')
  return path


@pytest.mark.parametrize(
  ('value', 'dtype'),
  [
    (np.nan, np.float32),
    (np.inf, np.float16),
    (-np.inf, np.float32),
    (np.nan, ml_dtypes.bfloat16),
    (1e300, np.float64),  # infinite as float32
  ],
)
def test_weights_that_are_not_finite_are_refused(tmp_path, value, dtype):
  path = _damaged(tmp_path, value, dtype)
  with pytest.raises(ValueError, match=f'PATH .*copy: {NAME} is not finite'):
    networks.load(networks.network('llama'), path)


@pytest.mark.parametrize('output_format', ['orbax', 't5x', 't5x_orbax'])
def test_no_other_format_passes_them_on(tmp_path, monkeypatch, output_format):
  path = _damaged(tmp_path, np.nan, np.float32)
  network = networks.network('llama')
  with pytest.raises(ValueError, match='not finite'):
    networks.convert(network, path, tmp_path / 'output', output_format)
  assert not (tmp_path / 'output').exists()
  with monkeypatch.context() as patch:
    patch.setattr(arrays, '_check_finite', lambda what, array: None)
    networks.convert(network, path, tmp_path / 'output', output_format)
  with pytest.raises(
    ValueError, match='PATH .*output.*: decoder/layers.*/mlp/wo/.* not finite'
  ):
    networks.load(network, tmp_path / 'output')


def test_the_check_takes_no_memory_of_the_size_of_the_array():
  value = np.zeros(2**24, np.float32)  # 64 MiB
  tracemalloc.start()
  arrays._check_finite('it', value.reshape(2**12, -1).T)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 2**22


def test_pieces_are_joined_into_one_array():
  value = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
  stored = {
    f'{i}{e}': arrays.Stored((4,), np.float32, lambda v=value[i, e]: v)
    for i in range(2)
    for e in range(3)
  }
  layout = {
    'a': [arrays.Piece(f'{i}{e}', (i, e)) for e in range(3) for i in range(2)]
  }
  checkpoint = arrays.Checkpoint(stored, layout)
  np.testing.assert_array_equal(checkpoint.read('a', (1,)), value[1])
  np.testing.assert_array_equal(checkpoint.read('a', ()), value)
  np.testing.assert_array_equal(checkpoint.read('a', (1, 2)), value[1, 2])
  with pytest.raises(KeyError, match=r'a\(2,\) is not in the checkpoint'):
    checkpoint.read('a', (2,))
