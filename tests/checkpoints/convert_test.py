"""Conversions between the formats."""

import shutil

from etils import epath
import pytest

from ipo_md.checkpoints import t5x
from tests.checkpoints import networks


@pytest.mark.parametrize(
  ('family', 'output_format'),
  [
    *((family, 'hf') for family in networks.FAMILIES + networks.VARIANTS),
    ('mixtral', 'orbax'),
    ('mixtral', 't5x'),
    ('mixtral', 't5x_orbax'),
    ('t5_v1_1', 'orbax'),
    ('t5_v1_1', 't5x'),
    ('t5_v1_1', 't5x_orbax'),
  ],
)
def test_there_and_back_is_bit_exact(tmp_path, family, output_format):
  network = networks.network(family)
  expected = networks.load(network, networks.HF / family)
  networks.convert(
    network, networks.HF / family, tmp_path / 'there', output_format
  )
  networks.assert_equal(networks.load(network, tmp_path / 'there'), expected)
  networks.convert(network, tmp_path / 'there', tmp_path / 'back', 'hf')
  networks.assert_equal(networks.load(network, tmp_path / 'back'), expected)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['back', 'there']


def test_a_checkpoint_with_a_flipped_byte_is_not_converted(tmp_path):
  network = networks.network('t5_v1_1')
  networks.convert(network, networks.HF / 't5_v1_1', tmp_path / 'ours', 'orbax')
  folder = tmp_path / 'ours' / 'checkpoints' / '0' / 'default'
  file = max(folder.rglob('*'), key=lambda p: p.stat().st_size)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 4
  file.write_bytes(content)
  with pytest.raises(ValueError, match=f'PATH .*0 is damaged: .*{file.name}'):
    networks.convert(network, tmp_path / 'ours', tmp_path / 'output', 'hf')
  assert sorted(p.name for p in tmp_path.iterdir()) == ['ours']


class _Bucket:
  """Stands in for Cloud Storage: gs://NAME is the directory root/NAME."""

  def __init__(self, root):
    self._root = root

  def __getattr__(self, method):
    here = lambda x: str(x).replace('gs://', f'{self._root}/')
    called = getattr(epath.backend.os_backend, method)
    return lambda *args, **kwargs: called(
      *(here(a) if str(a).startswith('gs://') else a for a in args), **kwargs
    )


@pytest.mark.slow
def test_paths_of_cloud_storage(tmp_path, monkeypatch):
  """They are read and written by etils and TensorStore."""
  bucket, kvstore = _Bucket(tmp_path), t5x._kvstore
  assert kvstore('gs://b/x/') == {'driver': 'gcs', 'bucket': 'b', 'path': 'x/'}
  monkeypatch.setattr(
    type(epath.Path()),
    '_backend',
    property(lambda p: bucket if p._uri_scheme else epath.backend.os_backend),
  )
  monkeypatch.setattr(
    t5x, '_kvstore', lambda p: kvstore(p.replace('gs://', f'{tmp_path}/'))
  )
  network = networks.network('t5_v1_1')
  expected = networks.load(network, networks.HF / 't5_v1_1')
  shutil.copytree(networks.HF / 't5_v1_1', tmp_path / 'b' / 'hf')
  networks.convert(network, 'gs://b/hf', 'gs://b/t5x', 't5x')
  networks.convert(network, 'gs://b/t5x', 'gs://b/again', 'hf')
  networks.convert(
    network, networks.HF / 't5_v1_1', tmp_path / 'b' / 'ours', 'orbax'
  )
  for name in ('t5x', 'again', 'ours'):
    networks.assert_equal(networks.load(network, f'gs://b/{name}'), expected)
  with pytest.raises(ValueError, match='PATH gs://b/none is not a directory'):
    networks.load(network, 'gs://b/none')
