"""Every family written again, refused, adapted, differentiated and split."""

import copy
import dataclasses
import json

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ipo_md.checkpoints import hf_config
from ipo_md.checkpoints import hf_families
from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.models import decoder_config
from ipo_md.models import lora
from tests.checkpoints import families
from tests.checkpoints import families_test
from tests.checkpoints import networks

DECODERS = [name for name in families.CONFIGS if not families.is_t5(name)]
PROMPTS = types.Tokens(
  jnp.array([[5, 9, 3], [8, 4, 0]] * 4),
  jnp.array([[1, 1, 1], [1, 1, 0]] * 4, bool),
)


def _arrays(path):
  return safetensors.numpy.load_file(path / 'model.safetensors')


@pytest.mark.parametrize('family', families.CONFIGS)
def test_export_has_the_same_arrays_and_fields(tmp_path, family):
  """Bit for bit, through a MODEL_DIR and with the original as the source."""
  path = families.write(family, tmp_path / 'original')
  model = families_test.network(family)
  networks.convert(model, path, tmp_path / 'run', 'orbax')
  networks.convert(
    model,
    tmp_path / 'run',
    tmp_path / 'out',
    'hf',
    hf_source_path=str(path),
    context_length=None,
  )
  networks.assert_equal(_arrays(tmp_path / 'out'), _arrays(path))
  ours, theirs = (
    json.loads((folder / 'config.json').read_text())
    for folder in (tmp_path / 'out', path)
  )
  assert theirs.items() <= ours.items()


@pytest.mark.parametrize('family', DECODERS)
def test_config_that_is_made_gives_the_same_network(family):
  fields = hf_config.model_fields(families.CONFIGS[family])
  cfg = decoder_config.DecoderOnlyConfig(dropout_rate=0.0, **fields)
  config = hf_config.config_json(cfg)
  kind = families.CONFIGS[family]['model_type']
  whole = {'phi3': 'mistral', 'phi3_partial': 'phi3'}
  assert config['model_type'] == whole.get(family, kind)
  again = decoder_config.DecoderOnlyConfig(
    dropout_rate=0.0, **hf_config.model_fields(config)
  )
  assert hf_config._shape(dataclasses.asdict(again)) == hf_config._shape(
    dataclasses.asdict(cfg)
  )


def test_the_scalar_of_scores_is_an_integer():
  """Transformers 5 refuses a float."""
  cfg = families_test.network('gemma2').config
  scalar = hf_config.config_json(cfg)['query_pre_attn_scalar']
  assert isinstance(scalar, int)
  assert scalar == 20


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'norms': 'after'}, 'DecoderOnly.norms = after: no model_type'),
    (
      {'attention_bias': 'qkv', 'rope_layers': (True, False)},
      'DecoderOnly.*no model_type of config.json has this',
    ),
    ({'logits_soft_cap': 3.0}, 'DecoderOnly.'),
  ],
)
def test_a_network_of_no_family_is_not_exported(changes, message):
  fields = hf_config.model_fields(families.CONFIGS['llama2'])
  cfg = decoder_config.DecoderOnlyConfig(dropout_rate=0.0, **fields | changes)
  with pytest.raises(ValueError, match=message):
    hf_config.config_json(cfg)


def _changed(family, **changes):
  return copy.deepcopy(families.CONFIGS[family]) | changes


REFUSED = [
  (_changed('llama2', model_type='umt5'), "'umt5' is not supported, because"),
  (_changed('llama2', model_type='gemma3'), 'it reads images'),
  (_changed('llama2', model_type='qwen2_moe'), 'shared by all tokens'),
  (_changed('llama2', model_type='mamba'), "'mamba' is not supported. Suppor"),
  (_changed('llama2', mlp_bias=True), 'mlp_bias True is not supported'),
  (_changed('mistral', attention_bias=True), 'attention_bias is not supported'),
  (_changed('llama2', hidden_act='gelu'), "hidden_act 'gelu' is not support"),
  (
    _changed('gemma2', hidden_activation='gelu'),
    "hidden_activation 'gelu' is not",
  ),
  (
    _changed('llama2', partial_rotary_factor=0.5),
    'partial_rotary_factor 0.5 is only supported for phi3',
  ),
  (
    _changed('phi3', rope_scaling={'type': 'longrope'}),
    "rope_type 'longrope' is not supported, only default, linear",
  ),
  (
    _changed('phi3', rope_scaling={'type': 'yarn', 'factor': 2.0}),
    "rope_type 'yarn' is not supported for phi3",
  ),
  (
    _changed('qwen2', layer_types=['chunked_attention', 'full_attention']),
    "layer_types has .'chunked_attention'.",
  ),
  (
    _changed('qwen2', layer_types=['full_attention']),
    'layer_types has 1, but it needs',
  ),
  (
    _changed('qwen2', layer_types=['sliding_attention'] * 2),
    'no sliding_window is set',
  ),
  (
    _changed('mistral', layer_types=['sliding_attention', 'full_attention']),
    "layer_types is not supported for 'mistral'",
  ),
  (_changed('smollm3', no_rope_layers=[1, 0]), 'no_rope_layers has 2 values'),
  (
    _changed('gemma3', attn_logit_softcapping=50.0),
    'attn_logit_softcapping 50.0 is not',
  ),
  (
    _changed('gemma2', use_bidirectional_attention=True),
    'use_bidirectional_attention True',
  ),
  (_changed('qwen3_moe', mlp_only_layers=[0]), r'mlp_only_layers \[0\] is not'),
  (_changed('qwen3_moe', decoder_sparse_step=2), 'decoder_sparse_step 2 is'),
  (
    _changed('llama2', rope_parameters={'full_attention': {'rope_theta': 1e4}}),
    'only supported for gemma3_text',
  ),
  (
    _changed('gemma3', rope_parameters={'rope_theta': 1e4}),
    'needs full_attention and sliding_attention',
  ),
  (
    _changed('flan_t5', feed_forward_proj='gelu'),
    "feed_forward_proj 'gelu' is",
  ),
]


@pytest.mark.parametrize(('config', 'message'), REFUSED)
def test_what_is_not_supported_is_refused_by_name(tmp_path, config, message):
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match=message) as error:
    hf_config.read(tmp_path / 'config.json')
  assert '\n' not in str(error.value)
  assert str(tmp_path / 'config.json') in str(error.value)


def test_dynamic_scaling_is_refused_beyond_the_original_length():
  model = families_test.network('dynamic', rope_original_length=6)
  params = model.abstract_params
  context = jax.eval_shape(model.encode, params, PROMPTS)
  decode = lambda length: jax.eval_shape(
    model.decode, params, jnp.ones((8, 1, length), jnp.int32), context
  )
  decode(3)
  with pytest.raises(ValueError, match='have 7 positions.*length, 6: shorten'):
    decode(4)


def test_fused_kernels_of_another_size_are_refused(tmp_path):
  path = families.write('phi3', tmp_path)
  weights = _arrays(path)
  name = 'model.layers.1.self_attn.qkv_proj.weight'
  weights[name] = weights[name][:-1]
  safetensors.numpy.save_file(weights, path / 'model.safetensors')
  with pytest.raises(ValueError, match=f'{name} has the shape .95, 32.'):
    networks.load(families_test.network('phi3'), path)


@pytest.mark.parametrize(
  ('flags', 'expected'),
  [
    ([True, True, False, True, True, False, True], (True, True, False)),
    ([True, True], (True,)),
    ([False, True, True], (False, True, True)),
    ([True], (True,)),
  ],
)
def test_pattern_is_the_shortest(flags, expected):
  assert hf_families.pattern(flags) == expected


ALL = pytest.mark.parametrize(
  'family',
  [
    'gemma3',
    *(
      pytest.param(family, marks=pytest.mark.proof)
      for family in ('qwen2', 'olmo2', 'smollm3', 'qwen3_moe', 'gemma2')
    ),
    'phi3_partial',
  ],
)


def _loss(model, params, k=2):
  context = model.encode(params, PROMPTS)
  inputs = jax.random.randint(jax.random.key(0), (8, k, 6), 3, families.VOCAB)
  hidden, _, _ = model.decode(params, inputs, context)
  return jnp.mean(jax.nn.log_softmax(model.logits(params, hidden))[..., 7])


@ALL
@pytest.mark.parametrize(
  'remat_policy', [pytest.param('none', marks=pytest.mark.proof), 'full']
)
@pytest.mark.slow
def test_gradients_reach_every_parameter(family, remat_policy):
  for scan in (False, True):
    model = families_test.network(family, scan=scan, remat_policy=remat_policy)
    params = model.init(jax.random.key(0))
    grads = jax.jit(jax.grad(lambda p, model=model: _loss(model, p)))(params)
    for path, grad in flax.traverse_util.flatten_dict(grads, sep='/').items():
      assert np.all(np.isfinite(grad)), path
      # A bias of all keys alike changes no weight of attention.
      assert np.any(grad != 0) or path.endswith('key/bias'), path


@ALL
@pytest.mark.slow
def test_a_mesh_changes_no_loss(family):
  model = families_test.network(family, scan=True, vocab_size=64)
  params = model.init(jax.random.key(1))
  loss = jax.jit(lambda p: _loss(model, p))
  expected = loss(params)
  mesh = sharding.make_mesh((2, 2, 2))
  with jax.set_mesh(mesh):
    split = jax.tree.map(
      lambda x, like: jax.device_put(x, like.sharding),
      params,
      sharding.abstract_params(mesh, model.abstract_params, model.logical_axes),
    )
    found = loss(split)
  np.testing.assert_allclose(found, expected, rtol=2e-5)


@pytest.mark.parametrize(
  'family',
  [
    'qwen2',
    *(
      pytest.param(family, marks=pytest.mark.proof)
      for family in ('gemma3', 'olmo2', 'qwen3_moe')
    ),
  ],
)
def test_adapters_leave_biases_and_norms_alone(family, tmp_path):
  base = families_test.network(family, scan=True)
  model = lora.Lora(base, rank=2, alpha=4.0, targets=('query', 'value'))
  reference = networks.load(base, families.write(family, tmp_path))
  adapters = model.init(jax.random.key(0))
  paths = flax.traverse_util.flatten_dict(adapters, sep='/')
  assert all('/kernel/' in path for path in paths)
  adapters = jax.tree.map(lambda x: x + 0.1, adapters)
  merged = flax.traverse_util.flatten_dict(reference, sep='/')
  low = flax.traverse_util.flatten_dict(adapters, sep='/')
  for path in {p[:-2] for p in low}:
    merged[path] += 2.0 * low[f'{path}/a'] @ low[f'{path}/b']
  merged = flax.traverse_util.unflatten_dict(merged, sep='/')
  policy = model.policy(adapters, types.FrozenParams(reference=reference))
  np.testing.assert_allclose(
    _loss(model, policy), _loss(base, merged), rtol=1e-5
  )
  found = families_test.greedy(model, policy, PROMPTS)
  np.testing.assert_array_equal(
    found, families_test.greedy(base, merged, PROMPTS)
  )
