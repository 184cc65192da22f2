"""Checkpoints of T5X and Hugging Face, both ways."""

import functools
import json
import pathlib
import shutil
import signal
import tracemalloc

from etils import epath
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore

from ipo_md.checkpoints import arrays
from ipo_md.checkpoints import convert
from ipo_md.checkpoints import formats
from ipo_md.checkpoints import hf
from ipo_md.checkpoints import orbax
from ipo_md.checkpoints import safetensors_io
from ipo_md.checkpoints import t5x
from ipo_md.core import types
from ipo_md.models import decoder_only
from ipo_md.models import model
from ipo_md.models import t5

TESTDATA = pathlib.Path(__file__).parents[1] / 'testdata'
T5X = TESTDATA / 't5x' / 't5x_tiny_checkpoint' / 'checkpoint_3'
HF = TESTDATA / 'hf'
FAMILIES = ('t5_v1_1', 'llama', 'mistral', 'mixtral')
# In bfloat16 shards, relu and tied, tied but not scaled; see make.py.
VARIANTS = ('llama_3', 't5_v1_0', 't5_v1_1_shared')


@functools.cache
def _network(family, **overrides):
  """The model that config.json describes."""
  fields = hf.model_fields(
    json.loads((HF / family / 'config.json').read_text())
  )
  network = t5.T5 if family.startswith('t5') else decoder_only.DecoderOnly
  fields |= {'dropout_rate': 0.0, 'scan': False} | overrides
  return model.Model(functools.partial(network, **fields))


def _t5x_network():
  return _network(
    't5_v1_1',
    vocab_size=256,
    emb_dim=64,
    head_dim=16,
    num_decoder_layers=2,
    mlp_dim=128,
  )


def _load(network, path, **kwargs):
  return formats.load_params(
    str(path), network.abstract_params, network.config, name='PATH', **kwargs
  )


def _convert(network, source, output, output_format):
  convert.convert(
    model=network,
    initial_checkpoint_path=str(source),
    output_dir=str(output),
    output_format=output_format,
  )


def _equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize('family', FAMILIES + VARIANTS)
def test_logits_are_those_of_the_reference(family):
  network = _network(family)
  golden = np.load(HF / family / 'expected.npz')
  mask, inputs = golden['mask'], golden['ids']
  real = mask
  if family.startswith('t5'):
    inputs = golden['decoder_input_ids']
    real = np.ones(inputs.shape, bool)
  else:  # the first token is the prompt
    mask = mask & (np.arange(mask.shape[1]) < 1)

  @jax.jit
  def logits(params):
    context = network.encode(params, types.Tokens(golden['ids'], mask))
    hidden, _, _ = network.decode(params, inputs[:, None], context)
    return network.logits(params, hidden)[:, 0]

  with jax.default_matmul_precision('highest'):
    actual = logits(_load(network, HF / family))
  scale = np.max(np.abs(golden['logits']))
  np.testing.assert_allclose(
    actual[real], golden['logits'][real], rtol=0, atol=2e-5 * scale
  )


def test_router_loss_is_that_of_the_reference():
  """Padding does not count; the mean over layers is of their losses."""
  network = _network('mixtral', router_loss_weight=1.0)
  golden = np.load(HF / 'mixtral' / 'expected.npz')
  ids, mask = golden['ids'], golden['mask']

  @jax.jit
  def loss(params):
    first = types.Tokens(ids, mask & (np.arange(mask.shape[1]) < 1))
    context = network.encode(params, first)
    return network.decode(params, ids[:, None], context, mask=mask[:, None])[2]

  expected = np.load(HF / 'mixtral' / 'router_loss.npz')['losses']
  actual = loss(_load(network, HF / 'mixtral'))
  np.testing.assert_allclose(actual, expected.mean(), rtol=1e-5)


def test_t5x_checkpoint_has_its_sums():
  stored = t5x.read_native(epath.Path(T5X))
  contents = json.loads(
    (T5X.parents[1] / 't5x_tiny_checkpoint_contents.json').read_text()
  )
  targets = {k for k in contents if k.startswith('target/')}
  assert {f'target/{name}' for name in stored} == targets
  for name, array in stored.items():
    expected = contents[f'target/{name}']
    values = array.read().astype(np.float64)
    assert list(values.shape) == expected['shape']
    np.testing.assert_allclose(values.sum(), expected['sum'], rtol=1e-12)
    np.testing.assert_allclose((values**2).sum(), expected['sumsq'], rtol=1e-12)


@pytest.mark.parametrize(
  ('family', 'output_format'),
  [
    *((family, 'hf') for family in FAMILIES + VARIANTS),
    ('mixtral', 'orbax'),
    ('t5_v1_1', 'orbax'),
    ('t5_v1_1', 't5x'),
    ('t5_v1_1', 't5x_orbax'),
  ],
)
def test_there_and_back_is_bit_exact(tmp_path, family, output_format):
  network = _network(family)
  expected = _load(network, HF / family)
  _convert(network, HF / family, tmp_path / 'there', output_format)
  _equal(_load(network, tmp_path / 'there'), expected)
  _convert(network, tmp_path / 'there', tmp_path / 'back', 'hf')
  _equal(_load(network, tmp_path / 'back'), expected)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['back', 'there']


def test_safetensors_in_shards_and_in_bfloat16(tmp_path):
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
  _equal({k: v.read() for k, v in stored.items()}, values)


def test_arrays_go_straight_onto_the_mesh():
  network = _network('mixtral')
  mesh = jax.make_mesh(
    (2, 2), ('fsdp', 'expert'), axis_types=(AxisType.Auto,) * 2
  )
  rules = {'embed': 'fsdp', 'expert': 'expert'}
  abstract = jax.tree.map(
    lambda leaf, axes: jax.ShapeDtypeStruct(
      leaf.shape,
      leaf.dtype,
      sharding=NamedSharding(mesh, PartitionSpec(*map(rules.get, axes))),
    ),
    network.abstract_params,
    network.logical_axes,
  )
  sharded = formats.load_params(
    str(HF / 'mixtral'), abstract, network.config, name='PATH'
  )
  _equal(sharded, _load(network, HF / 'mixtral'))
  kernel = sharded['decoder']['layers']['mlp']['experts']['wo']['kernel']
  assert kernel.addressable_shards[0].data.shape == (3, 2, 56, 16)


def test_missing_reward_head_is_left_out():
  network = _network('llama', reward_head=True)
  params = _load(network, HF / 'llama', fresh=('reward_head',))
  assert 'reward_head' not in params['decoder']
  with pytest.raises(ValueError, match='score.weight: missing there'):
    _load(network, HF / 'llama')


def _copy(source, tmp_path):
  shutil.copytree(source, tmp_path / 'copy')
  return tmp_path / 'copy'


def _edit_config(path, **changes):
  file = path / 'config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _drop(path, field):
  config = json.loads(path.read_text())
  del config[field]
  path.write_text(json.dumps(config))


def _truncate(path):
  path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda p: _edit_config(p, model_type='bert'), "model_type 'bert'"),
    (lambda p: _edit_config(p, d_ff=65), 'mlp_dim: 65 there, 64 in the model'),
    (lambda p: _truncate(p / 'model.safetensors'), 'truncated'),
    (
      lambda p: (p / 'model.safetensors').rename(p / 'pytorch_model.bin'),
      'pytorch_model.bin: pickles',
    ),
    (lambda p: (p / 'model.safetensors').unlink(), 'no model.safetensors'),
    (lambda p: _truncate(p / 'config.json'), 'config.json: '),
    (lambda p: _edit_config(p, d_kv=None), 'head_dim: None there, 8 in the'),
    (lambda p: _drop(p / 'config.json', 'd_ff'), "has no field 'd_ff'"),
    (
      lambda p: _edit_config(p, layer_norm_epsilon=1e-5),
      'layer_norm_epsilon 1e-05; 1e-6 is read',
    ),
  ],
)
def test_damaged_directory_is_one_error(tmp_path, damage, message):
  path = _copy(HF / 't5_v1_1', tmp_path)
  damage(path)
  with pytest.raises(ValueError, match=message):
    _convert(_network('t5_v1_1'), path, tmp_path / 'output', 'orbax')
  assert sorted(p.name for p in tmp_path.iterdir()) == ['copy']


def test_damaged_t5x_checkpoint_is_one_error(tmp_path):
  path = _copy(T5X, tmp_path)
  network = _t5x_network()
  _load(network, path)
  folder = 'target.decoder.layers_1.mlp.wo.kernel'
  (path / folder / '0.0').unlink()  # a chunk, which zarr would read as zeros
  with pytest.raises(ValueError, match=folder):
    _convert(network, path, tmp_path / 'output', 'hf')
  assert sorted(p.name for p in tmp_path.iterdir()) == ['copy']
  shutil.rmtree(path / folder)
  with pytest.raises(ValueError, match=folder):
    _load(network, path)
  _truncate(path / 'checkpoint')
  with pytest.raises(ValueError, match='checkpoint is truncated'):
    _load(network, path)


def test_a_flipped_byte_of_ours_is_not_converted(tmp_path):
  network = _network('t5_v1_1')
  _convert(network, HF / 't5_v1_1', tmp_path / 'ours', 'orbax')
  folder = tmp_path / 'ours' / 'checkpoints' / '0' / 'default'
  file = max(folder.rglob('*'), key=lambda p: p.stat().st_size)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 4
  file.write_bytes(content)
  with pytest.raises(ValueError, match=f'PATH .*0 is damaged: .*{file.name}'):
    _convert(network, tmp_path / 'ours', tmp_path / 'output', 'hf')
  assert sorted(p.name for p in tmp_path.iterdir()) == ['ours']


def test_the_best_checkpoint_of_a_model_dir_is_converted(tmp_path):
  network = _network('t5_v1_1')
  abstract = arrays.flatten(network.abstract_params)
  for step in (1, 2):
    stored = {
      path: arrays.Stored(
        leaf.shape,
        leaf.dtype,
        functools.partial(np.full, leaf.shape, step, leaf.dtype),
      )
      for path, leaf in abstract.items()
    }
    layout = {path: [arrays.Piece(path)] for path in abstract}
    orbax.write(
      epath.Path(tmp_path / 'run'),
      arrays.Checkpoint(stored, layout),
      abstract,
      step=step,
    )
  rows = ({'step': 1, 'win_rate': 0.7}, {'step': 2, 'win_rate': 0.6})
  (tmp_path / 'run' / 'metrics.jsonl').write_text(
    ''.join(json.dumps(row) + '\n' for row in rows)
  )
  for name, value in (('run:best', 1), ('run', 2)):
    _convert(network, tmp_path / name, tmp_path / f'to_{value}', 'hf')
    for leaf in jax.tree.leaves(_load(network, tmp_path / f'to_{value}')):
      np.testing.assert_array_equal(leaf, value)


def test_other_model_is_named_with_shapes_and_gin_file(tmp_path):
  tiny = model.Model(
    functools.partial(
      t5.T5, **(_t5x_network().config.__dict__ | {'emb_dim': 32})
    )
  )
  with pytest.raises(
    ValueError, match=r'scale: \(64,\) there, \(32,\) in the model'
  ):
    _load(tiny, T5X)
  shapes = {
    'token_embedder/embedding': (32128, 1024),
    'encoder/relpos_bias/rel_embedding': (16, 32),
    'encoder/layers_0/mlp/wo/kernel': (2816, 1024),
  }
  stored = {
    name: arrays.Stored(shape, np.float32, None)
    for name, shape in shapes.items()
  }
  with pytest.raises(ValueError, match='fits gin/models/t5_1_1_large.gin'):
    arrays.check(
      'PATH',
      stored,
      {},
      {},
      advice=formats.fitting.advice(formats.fitting.fields(stored)),
    )


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('nothing', 'not a directory'),
    ('x.pkl', 'x.pkl: pickle'),
    ('', 'no checkpoint'),
  ],
)
def test_paths_that_are_no_checkpoint(tmp_path, name, message):
  with pytest.raises(ValueError, match=f'PATH.*{message}'):
    _load(_network('llama'), tmp_path / name)


def test_bfloat16_and_inline_arrays_of_t5x(tmp_path):
  """T5X may store targets in bfloat16, and small arrays in the index."""
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
  tree = {'target': {'a': spec, 'b': t5x._encode(inline)}, 'state': {}}
  (tmp_path / 'checkpoint').write_bytes(
    t5x.msgpack.packb({'version': 3, 'optimizer': tree})
  )
  stored = t5x.read_native(epath.Path(tmp_path))
  checkpoint = arrays.Checkpoint(stored, {k: [arrays.Piece(k)] for k in 'ab'})
  loaded = checkpoint.load(
    {
      'a': jax.ShapeDtypeStruct((2, 3), jnp.float32),
      'b': jax.ShapeDtypeStruct((3,), jnp.float32),
    }
  )
  _equal(loaded, {'a': values.astype(np.float32), 'b': inline})


def test_sigterm_leaves_no_partial_directory(tmp_path):
  before = signal.getsignal(signal.SIGTERM)
  with (
    pytest.raises(SystemExit) as stopped,
    convert.new_directory(str(tmp_path / 'output')) as directory,
  ):
    (directory / 'half').write_text('')
    signal.raise_signal(signal.SIGTERM)
  assert stopped.value.code == 143
  assert not list(tmp_path.iterdir())
  assert signal.getsignal(signal.SIGTERM) == before


class _Bucket:
  """Stands for Cloud Storage: gs://NAME is the folder root/NAME."""

  def __init__(self, root):
    self._root = root

  def __getattr__(self, method):
    here = lambda x: str(x).replace('gs://', f'{self._root}/')
    called = getattr(epath.backend.os_backend, method)
    return lambda *args, **kwargs: called(
      *(here(a) if str(a).startswith('gs://') else a for a in args), **kwargs
    )


def test_paths_of_cloud_storage(tmp_path, monkeypatch):
  """Read and written through etils and tensorstore alone."""
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
  network = _network('t5_v1_1')
  expected = _load(network, HF / 't5_v1_1')
  shutil.copytree(HF / 't5_v1_1', tmp_path / 'b' / 'hf')
  _convert(network, 'gs://b/hf', 'gs://b/t5x', 't5x')
  _convert(network, 'gs://b/t5x', 'gs://b/again', 'hf')
  _convert(network, HF / 't5_v1_1', tmp_path / 'b' / 'ours', 'orbax')
  for name in ('t5x', 'again', 'ours'):
    _equal(_load(network, f'gs://b/{name}'), expected)
  with pytest.raises(ValueError, match='PATH gs://b/none is not a directory'):
    _load(network, 'gs://b/none')


@pytest.mark.parametrize('write', [orbax.write, orbax.write_t5x])
def test_orbax_is_written_few_arrays_at_a_time(tmp_path, monkeypatch, write):
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


def test_orbax_itself_reads_what_is_written(tmp_path):
  network = _network('t5_v1_1')
  _convert(network, HF / 't5_v1_1', tmp_path / 'there', 't5x_orbax')
  state = tmp_path / 'there' / 'checkpoint_0' / 'state'
  with ocp.PyTreeCheckpointer() as checkpointer:
    tree = checkpointer.restore(state)
  assert tree['state']['step'] == 0
  stored = t5x.read_ocdbt(epath.Path(state), 'target')
  assert arrays.flatten(tree['target']).keys() == stored.keys()
  for name, array in arrays.flatten(tree['target']).items():
    np.testing.assert_array_equal(array, stored[name].read())


def test_what_a_config_does_not_say_is_what_transformers_takes():
  config = json.loads((TESTDATA / 'hf' / 'mistral' / 'config.json').read_text())
  del config['sliding_window']
  assert hf.model_fields(config)['sliding_window'] == 4096
  config = json.loads((TESTDATA / 'hf' / 'mixtral' / 'config.json').read_text())
  del config['sliding_window']
  assert hf.model_fields(config)['sliding_window'] is None
