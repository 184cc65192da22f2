"""T5X's native checkpoints."""

import json
import shutil

from etils import epath
from flax import serialization
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tensorstore

from ipo_md.checkpoints import arrays
from ipo_md.checkpoints import t5x
from tests.checkpoints import networks


def test_arrays_have_the_sums_that_t5x_computed():
  stored = t5x.read_native(epath.Path(networks.T5X))
  contents = json.loads(
    (networks.T5X.parents[1] / 't5x_tiny_checkpoint_contents.json').read_text()
  )
  targets = {k for k in contents if k.startswith('target/')}
  assert {f'target/{name}' for name in stored} == targets
  for name, array in stored.items():
    expected = contents[f'target/{name}']
    values = array.read().astype(np.float64)
    assert list(values.shape) == expected['shape']
    np.testing.assert_allclose(values.sum(), expected['sum'], rtol=1e-12)
    np.testing.assert_allclose((values**2).sum(), expected['sumsq'], rtol=1e-12)


def test_damaged_checkpoint_is_one_error(tmp_path):
  path = networks.copied(networks.T5X, tmp_path)
  network = networks.t5x_network()
  networks.load(network, path)
  folder = 'target.decoder.layers_1.mlp.wo.kernel'
  (path / folder / '0.0').unlink()  # zarr reads a missing chunk as zeros
  with pytest.raises(ValueError, match=folder):
    networks.convert(network, path, tmp_path / 'output', 'hf')
  assert sorted(p.name for p in tmp_path.iterdir()) == ['copy']
  shutil.rmtree(path / folder)
  with pytest.raises(ValueError, match=folder):
    networks.load(network, path)
  networks.truncate(path / 'checkpoint')
  with pytest.raises(ValueError, match='checkpoint is truncated'):
    networks.load(network, path)


def test_bfloat16_and_inline_arrays(tmp_path):
  """T5X may store parameters in bfloat16 and small arrays in the index."""
  values = np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3)
  inline = np.arange(3, dtype=np.float32)
  spec = {
    'driver': 'zarr',
    'kvstore': {'driver': 'file', 'path': f'{tmp_path}/target.a/'},
    'metadata': {
      'shape': [2, 3],
      'chunks': [1, 2],
      'compressor': {'id': 'zstd'},
    },
    'dtype': 'bfloat16',
  }
  tensorstore.open(spec, create=True).result().write(values).result()
  spec['kvstore'] = {'driver': 'gfile', 'path': 'gs://placeholder/x/target.a/'}
  tree = {'target': {'a': spec, 'b': inline}, 'state': {}}
  (tmp_path / 'checkpoint').write_bytes(
    serialization.msgpack_serialize({'version': 3, 'optimizer': tree})
  )
  stored = t5x.read_native(epath.Path(tmp_path))
  checkpoint = arrays.Checkpoint(stored, {k: [arrays.Piece(k)] for k in 'ab'})
  loaded = checkpoint.load(
    {
      'a': jax.ShapeDtypeStruct((2, 3), jnp.float32),
      'b': jax.ShapeDtypeStruct((3,), jnp.float32),
    }
  )
  networks.assert_equal(loaded, {'a': values.astype(np.float32), 'b': inline})


def test_inline_arrays_in_chunks(tmp_path, monkeypatch):
  """Flax splits an array that is too long for msgpack."""
  monkeypatch.setattr(serialization, 'MAX_CHUNK_SIZE', 16)
  inline = np.arange(15, dtype=np.float32).reshape(3, 5)
  index = {'optimizer': {'target': {'a': {'b': inline}}}}
  content = serialization.msgpack_serialize(index)
  assert b'__msgpack_chunked_array__' in content
  (tmp_path / 'checkpoint').write_bytes(content)
  stored = t5x.read_native(epath.Path(tmp_path))
  networks.assert_equal(
    {k: v.read() for k, v in stored.items()}, {'a/b': inline}
  )


@pytest.mark.parametrize('target', [3, {'a': 3}, {'a': {}, 'b': [1]}])
def test_index_without_arrays_is_an_error(tmp_path, target):
  content = serialization.msgpack_serialize({'optimizer': {'target': target}})
  (tmp_path / 'checkpoint').write_bytes(content)
  with pytest.raises(ValueError, match='checkpoint has no optimizer/target'):
    t5x.read_native(epath.Path(tmp_path))
