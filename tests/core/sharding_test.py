"""Every family on every mesh axis gives what one device gives."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import optax
import pytest

from ipo_md.core import partitioning
from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.models import decoder_only
from ipo_md.models import lora
from ipo_md.models import model as model_lib
from ipo_md.models import t5
from ipo_md.sampling import sequences

pytestmark = pytest.mark.slow

COMMON = {
  'vocab_size': 64,
  'emb_dim': 16,
  'num_heads': 8,
  'head_dim': 4,
  'mlp_dim': 32,
  'dropout_rate': 0.0,
}
DECODER = COMMON | {
  'num_kv_heads': 8,
  'num_layers': 2,
  'logits_via_embedding': False,
  'rope_theta': 1e4,
  'norm_epsilon': 1e-5,
}
FAMILIES = {
  't5': (
    t5.T5,
    COMMON
    | {
      'num_encoder_layers': 2,
      'num_decoder_layers': 2,
      'mlp_activations': ('gelu', 'linear'),
      'logits_via_embedding': True,
    },
  ),
  # Llama is it without the window.
  'mistral': (
    decoder_only.DecoderOnly,
    DECODER | {'num_kv_heads': 4, 'sliding_window': 3},
  ),
  'mixtral': (
    decoder_only.DecoderOnly,
    DECODER | {'num_experts': 4, 'router_loss_weight': 0.1},
  ),
}


@functools.cache
def network(family: str) -> model_lib.Model:
  module, sizes = FAMILIES[family]
  return model_lib.Model(functools.partial(module, **sizes))


def batch() -> types.Completions:
  """Prompts and completions of all lengths."""

  def tokens(seed, *shape):
    ids = jax.random.randint(jax.random.key(seed), shape, 2, 64)
    length = 1 + jnp.arange(np.prod(shape[:-1])).reshape(shape[:-1]) % shape[-1]
    mask = jnp.arange(shape[-1]) < length[..., None]
    return types.Tokens(ids=jnp.where(mask, ids, 0), mask=mask)

  return types.Completions(
    prompts=tokens(1, 8, 5), completions=tokens(2, 8, 2, 4)
  )


def loss(params, completions, *, model):
  log_probs, aux = sequences.log_probs(model, params, completions)
  return jnp.mean(jnp.sum(log_probs, axis=-1) ** 2) + aux


@functools.cache
def on_one_device(family: str):
  model = network(family)
  params = model.init(jax.random.key(0))
  value = jax.value_and_grad(functools.partial(loss, model=model))
  return params, jax.jit(value)(params, batch())


@pytest.mark.parametrize(
  ('family', 'mesh_shape'),
  [
    ('t5', (2, 2, 2)),
    ('mistral', (2, 2, 2)),
    ('mixtral', (2, 2, 2)),
    ('mixtral', (1, 2, 2, 2)),
  ],
)
def test_loss_and_gradients_are_those_of_one_device(family, mesh_shape):
  model = network(family)
  params, (expected_loss, expected) = on_one_device(family)
  mesh = sharding.make_mesh(mesh_shape)
  placed = sharding.params(mesh, model.abstract_params, model.logical_axes)
  value = jax.value_and_grad(functools.partial(loss, model=model))
  with jax.set_mesh(mesh):
    value = jax.jit(value, out_shardings=(sharding.replicated(mesh), placed))
    actual_loss, actual = value(
      jax.device_put(params, placed),
      jax.device_put(batch(), sharding.batch(mesh)),
    )
  np.testing.assert_allclose(actual_loss, expected_loss, rtol=1e-5)
  scale = max(np.max(np.abs(g)) for g in jax.tree.leaves(expected))
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=1e-5 * scale),
    actual,
    expected,
  )
  # Something is split where the mesh splits parameters.
  split = {axis for s in jax.tree.leaves(placed) for axis in s.spec if axis}
  sizes = dict(zip(sharding.MESH_AXES, mesh_shape, strict=False))
  assert split == {a for a, n in sizes.items() if n > 1 and a != 'data'}


@pytest.mark.parametrize(
  ('mesh_shape', 'shape'),
  [
    ((2, 2, 2), (2, 2, 2, 1)),
    ((1, -1, 1), (1, 8, 1, 1)),
    ((2, 1, 1, -1), (2, 1, 1, 4)),
  ],
)
def test_a_mesh_is_of_all_devices(mesh_shape, shape):
  mesh = sharding.make_mesh(mesh_shape)
  assert tuple(mesh.shape.values()) == shape
  assert mesh.axis_names == sharding.MESH_AXES


@pytest.mark.parametrize(
  'mesh_shape',
  [(2, 2, 1), (3, -1, 1), (-1, -1, 2), (2, 2, 2, 1, 1)],
)
def test_a_mesh_that_is_not_of_the_devices_names_both(mesh_shape):
  with pytest.raises(ValueError, match='MESH_SHAPE = .* the 8 devices'):
    sharding.make_mesh(mesh_shape)


@pytest.mark.parametrize('mesh_shape', [8, (0, -1, 1), (-1, -8, 1), (2, '4')])
def test_sizes_of_a_mesh_are_numbers(mesh_shape):
  with pytest.raises(ValueError, match='MESH_SHAPE = .*: sizes of'):
    sharding.make_mesh(mesh_shape)


@pytest.mark.parametrize('rules', [{'embed': 'foo'}, {'embeds': 'fsdp'}])
def test_a_rule_of_no_axis_names_those_there_are(rules):
  model = network('t5')
  with pytest.raises(ValueError, match="rule '.*have axes .*'embed'.*'fsdp'"):
    sharding.params(
      sharding.make_mesh((1, 8, 1)),
      model.abstract_params,
      model.logical_axes,
      rules,
    )


def test_an_axis_that_does_not_divide_names_parameter_and_mesh_axis():
  mesh = sharding.make_mesh((1, 1, 8))
  model = network('t5')
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      [30 if size == 32 else size for size in x.shape], x.dtype
    ),
    model.abstract_params,
  )
  with pytest.raises(
    ValueError, match=r"kernel.*size 30 is not divisible by .*'tensor'.*size 8"
  ):
    sharding.params(mesh, abstract, model.logical_axes)


def test_moments_are_split_as_their_parameters_and_the_rest_is_not():
  mesh = sharding.make_mesh((1, 4, 2))
  model = network('mistral')
  placed = sharding.params(mesh, model.abstract_params, model.logical_axes)
  state = jax.eval_shape(optax.adam(1.0).init, model.abstract_params)
  adam = sharding.like_params(mesh, state, placed)[0]
  assert adam.count.spec == PartitionSpec()
  jax.tree.map(lambda a, b: a == b or pytest.fail(f'{a}, {b}'), adam.mu, placed)
  kernel = adam.nu['decoder']['layers']['mlp']['wo']['kernel']
  assert kernel.spec == PartitionSpec(None, 'tensor', 'fsdp')


def test_adapters_are_split_along_the_kernels_axes():
  mesh = sharding.make_mesh((1, 4, 2))
  model = lora.Lora(network('mistral'), rank=3, alpha=3.0, targets=('query',))
  placed = sharding.params(mesh, model.abstract_params, model.logical_axes)
  query = placed['decoder']['layers']['self_attention']['query']['kernel']
  assert query['a'].spec == PartitionSpec(None, 'fsdp', None)
  assert query['b'].spec == PartitionSpec(None, None, 'tensor')


def test_the_reference_may_lie_otherwise_than_the_policy():
  mesh = sharding.make_mesh((1, 4, 2))
  model = network('t5')
  whole = sharding.abstract_params(
    mesh, model.abstract_params, model.logical_axes, {}
  )
  assert {s.sharding.spec for s in jax.tree.leaves(whole)} >= {
    PartitionSpec(None, None, None)
  }
  assert sharding.bytes_per_device(whole) == sum(
    x.size * 4 for x in jax.tree.leaves(model.abstract_params)
  )


def test_the_table_has_a_line_for_each_parameter():
  mesh = sharding.make_mesh((1, 4, 2))
  model = network('t5')
  placed = sharding.abstract_params(
    mesh, model.abstract_params, model.logical_axes
  )
  lines = sharding.table(placed).splitlines()
  assert len(lines) == len(jax.tree.leaves(placed)) + 2
  line = next(x for x in lines if x.startswith('encoder/layers/mlp/wo/kernel'))
  assert line.split('  ')[0] == 'encoder/layers/mlp/wo/kernel'
  assert '(2, 32, 16)' in line
  assert "(None, 'tensor', 'fsdp')" in line
  assert line.endswith(str(2 * 32 * 16 * 4 // 8))
  assert lines[-1].endswith(f'{sharding.bytes_per_device(placed):,}')


def test_slices_divide_the_data_axis():
  """Two slices of four devices: only `data` crosses from one to the other."""

  class Device:
    platform = device_kind = 'cpu'

    def __init__(self, number):
      self.id, self.slice_index, self.process_index = number, number // 4, 0

  devices = [Device(i) for i in range(8)]
  mesh = sharding.make_mesh((2, 2, 2), devices)
  for slice_index in range(2):
    inside = mesh.devices[slice_index].flatten()
    assert {d.slice_index for d in inside} == {slice_index}
  with pytest.raises(ValueError, match='data, 1, is not .* the 2 slices'):
    sharding.make_mesh((1, 4, 2), devices)


def test_activations_are_split_along_the_batch():
  mesh = sharding.make_mesh((2, 2, 2))
  with jax.set_mesh(mesh):
    tree = jax.jit(partitioning.split_batch)(
      {'x': jnp.ones((8, 3)), 'odd': jnp.ones((6, 3)), 'loss': jnp.ones(())}
    )
  assert tree['x'].sharding.spec[0] == sharding.BATCH_AXES
  assert tree['odd'].shape == (6, 3)


@pytest.mark.parametrize('size', [None, 1, 8])
def test_one_cpu_is_known(size):
  if size is None:
    assert partitioning.on_one_cpu()
    return
  mesh = sharding.make_mesh((1, size, 1), jax.devices()[:size])
  with jax.set_mesh(mesh):
    traced = []
    jax.eval_shape(lambda: traced.append(partitioning.on_one_cpu()))
  assert traced == [size == 1]
