"""Parameters read from checkpoints of any format."""

import functools

from etils import epath
from flax import traverse_util
import jax
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from ipo_md.checkpoints import arrays
from ipo_md.checkpoints import convert
from ipo_md.checkpoints import formats
from ipo_md.checkpoints import gin_advice
from ipo_md.checkpoints import hf_source
from ipo_md.models import model
from ipo_md.models import t5
from tests.checkpoints import networks


def test_arrays_go_straight_onto_the_mesh():
  network = networks.network('mixtral')
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
  sharded = formats.read_params(
    str(networks.HF / 'mixtral'), abstract, network.config, name='PATH'
  )
  networks.assert_equal(
    sharded, networks.load(network, networks.HF / 'mixtral')
  )
  kernel = sharded['decoder']['layers']['mlp']['experts']['wo']['kernel']
  assert kernel.addressable_shards[0].data.shape == (3, 2, 56, 16)


def test_missing_reward_head_is_left_out():
  network = networks.network('llama', reward_head=True)
  params = networks.load(network, networks.HF / 'llama', fresh=('reward_head',))
  assert 'reward_head' not in params['decoder']


@pytest.mark.parametrize('output_format', ['hf', 'orbax', 't5x', 't5x_orbax'])
def test_a_language_model_as_a_judge(tmp_path, output_format):
  """It needs no reward head, and one that is there does no harm."""
  headed = networks.network('llama', reward_head=1)
  plain = networks.network('llama')
  path = tmp_path / 'plain'
  networks.convert(plain, networks.HF / 'llama', path, output_format)
  with pytest.raises(ValueError, match='missing from .*') as error:
    networks.load(headed, path)
  assert 'REWARD_HEAD = 0' in str(error.value)
  assert 'gin/judges/likelihood.gin' in str(error.value)
  assert 'gin/models' not in str(error.value)
  params = headed.init(jax.random.key(0))
  assert 'reward_head' in params['decoder']
  flat = traverse_util.flatten_dict(params, sep='/')
  checkpoint = arrays.Checkpoint(
    {
      name: arrays.Stored(
        leaf.shape, leaf.dtype, lambda leaf=leaf: np.asarray(leaf)
      )
      for name, leaf in flat.items()
    },
    {name: [arrays.Piece(name)] for name in flat},
  )
  (tmp_path / 'headed').mkdir()
  convert.write(
    epath.Path(tmp_path / 'headed'),
    checkpoint,
    flat,
    headed.config,
    output_format,
    0,
    hf_source.Source(context_length=64, eos_id=2),
  )
  loaded = networks.load(plain, tmp_path / 'headed')
  assert 'reward_head' not in loaded['decoder']


def test_other_model_is_named_with_shapes_and_gin_file():
  tiny = model.Model(
    functools.partial(
      t5.T5, **(networks.t5x_network().config.__dict__ | {'emb_dim': 32})
    )
  )
  with pytest.raises(
    ValueError, match=r'scale: \(64,\) in the checkpoint, \(32,\) in the model'
  ):
    networks.load(tiny, networks.T5X)
  shapes = {
    'token_embedder/embedding': (32128, 1024),
    'encoder/relpos_bias/rel_embedding': (16, 32),
    'encoder/layers_0/mlp/wo/kernel': (2816, 1024),
  }
  stored = {
    name: arrays.Stored(shape, np.float32, None)
    for name, shape in shapes.items()
  }
  with pytest.raises(ValueError, match='matches gin/models/t5_1_1_large.gin'):
    arrays.check(
      'PATH',
      stored,
      {},
      {},
      advice=gin_advice.advice(gin_advice.fields(stored), tiny.config),
    )
