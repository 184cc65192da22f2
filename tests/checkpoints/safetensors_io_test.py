"""Safetensors files."""

import shutil

from etils import epath
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from ipo_md.checkpoints import safetensors_io
from tests.checkpoints import networks


def test_shards_and_bfloat16(tmp_path):
  values = {
    'a': np.arange(12, dtype=np.float32).reshape(3, 4),
    'b': np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3),
    'c': np.float32(7).reshape(()),
  }
  shapes = {k: (v.shape, v.dtype) for k, v in values.items()}
  directory = epath.Path(tmp_path)
  safetensors_io.write(directory, shapes, values.get, shard_bytes=50)
  assert len(list(tmp_path.glob('*.safetensors'))) == 2
  stored = safetensors_io.read(directory)
  networks.assert_equal({k: v.read() for k, v in stored.items()}, values)


def _write(path, **values):
  shapes = {k: (v.shape, v.dtype) for k, v in values.items()}
  safetensors_io.write(epath.Path(path), shapes, values.get, shard_bytes=16)


def test_the_library_reads_what_is_written(tmp_path):
  value = np.arange(12, dtype=np.float32).reshape(3, 4).T  # not contiguous
  _write(tmp_path, a=value)
  loaded = safetensors.numpy.load_file(tmp_path / 'model.safetensors')
  networks.assert_equal(loaded, {'a': value})


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda p: p.write_bytes(b'{"a": 1}'), 'truncated or not a safetensors'),
    (lambda p: p.unlink(), 'index.json names .*00002.*, which is missing'),
    (
      lambda p: shutil.copy(p.with_name('model-00001-of-00002.safetensors'), p),
      r"index.json and its files differ in \['b'\]",
    ),
  ],
)
def test_damaged_shard_is_one_error(tmp_path, damage, message):
  _write(tmp_path, a=np.zeros(4, np.float32), b=np.zeros(4, np.float32))
  damage(tmp_path / 'model-00002-of-00002.safetensors')
  with pytest.raises(ValueError, match=message):
    safetensors_io.read(epath.Path(tmp_path))


def test_unknown_dtype_is_an_error(tmp_path):
  safetensors.numpy.save_file(
    {'a': np.zeros(4, np.uint8)}, tmp_path / 'model.safetensors'
  )
  with pytest.raises(ValueError, match='a has dtype U8, which is not read'):
    safetensors_io.read(epath.Path(tmp_path))


@pytest.mark.parametrize(
  ('index', 'said'),
  [
    ('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', True),
    ('{"weight_map": {"b": "model-00001-of-00001.safetensors"', True),
    ('{"weight_map": {"a": "model.safetensors"}}', False),
    ('', False),
  ],
)
def test_a_single_file_beside_an_index_is_read(tmp_path, capsys, index, said):
  """As transformers does, whatever shards the index names."""
  shard = tmp_path / 'model-00001-of-00002.safetensors'
  safetensors.numpy.save_file({'a': np.zeros(4, np.float32)}, shard)
  value = {'a': np.ones(4, np.float32)}
  safetensors.numpy.save_file(value, tmp_path / 'model.safetensors')
  (tmp_path / 'model.safetensors.index.json').write_text(index)
  stored = safetensors_io.read(epath.Path(tmp_path))
  networks.assert_equal({k: v.read() for k, v in stored.items()}, value)
  out = ''.join(capsys.readouterr())
  assert ('has both model.safetensors and' in out) == said
