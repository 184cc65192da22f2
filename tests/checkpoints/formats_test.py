"""Parameters read from checkpoints of any format."""

import functools

import jax
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from ipo_md.checkpoints import arrays
from ipo_md.checkpoints import formats
from ipo_md.checkpoints import gin_advice
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
  with pytest.raises(
    ValueError, match='score.weight: missing from the checkpoint'
  ):
    networks.load(network, networks.HF / 'llama')


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
      advice=gin_advice.advice(gin_advice.fields(stored)),
    )
