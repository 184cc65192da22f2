"""Tests of checkpoints of LoRA adapters and of their export."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import seqio

from ipo_md.checkpoints import convert
from ipo_md.checkpoints import export_lora
from ipo_md.checkpoints import formats
from ipo_md.checkpoints import manager as manager_lib
from ipo_md.core import types
from ipo_md.models import lora
from tests.checkpoints import families
from tests.checkpoints import families_test
from tests.models import lora_networks

VOCABULARY = seqio.ByteVocabulary()


@pytest.fixture(scope='module', name='saved', params=['t5', 'decoder'])
def saved_fixture(request, tmp_path_factory):
  """Yields a model, its parameters and checkpoints of adapters and base."""
  model = lora_networks.network(request.param)
  params, frozen = lora_networks.trained(model)
  path = tmp_path_factory.mktemp(request.param)
  for name, tree in (('base', frozen.reference), ('run', params)):
    adapts = None
    if name == 'run':
      adapts = manager_lib.adapted(model, str(path / 'base'))
    with manager_lib.open_manager(
      str(path / name), keep=manager_lib.Keep()
    ) as manager:
      state = types.TrainState(step=jnp.int32(1), params=tree, opt_state=())
      manager_lib.save(manager, state, VOCABULARY, adapts=adapts)
  return model, params, frozen, path


def export(model, path, output_format):
  export_lora.export(
    model=model,
    initial_checkpoint_path=str(path / 'run'),
    reference_checkpoint_path=str(path / 'base'),
    output_dir=str(path / output_format),
    output_format=output_format,
    context_length=64,
    eos_id=1,
  )
  return path / output_format


def test_a_model_dir_of_adapters_is_read_as_the_whole_policy(saved, tmp_path):
  model, params, frozen, path = saved
  read = functools.partial(
    formats.read_params,
    abstract=model.base.abstract_params,
    config=model.config,
    name='CHECKPOINT_PATH',
  )
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(a, e, atol=1e-6),
    read(str(path / 'run')),
    lora_networks.merged(model, params, frozen),
  )
  convert.convert(
    model=model.base,
    initial_checkpoint_path=str(path / 'run'),
    output_dir=str(tmp_path / 'whole'),
    output_format='hf',
    context_length=64,
    eos_id=1,
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    read(str(tmp_path / 'whole')),
    read(str(path / 'run')),
  )
  (path / 'base').rename(tmp_path / 'base')
  message = 'CHECKPOINT_PATH .*run holds LoRA adapters, and their reference '
  with pytest.raises(
    ValueError, match=f'{message}.*/base/checkpoints/1 is not'
  ):
    read(str(path / 'run'))
  with pytest.raises(ValueError, match='gin/runs/export_lora.gin'):
    read(str(path / 'run'))
  (tmp_path / 'base').rename(path / 'base')


@pytest.mark.parametrize('output_format', ['hf', 'orbax', 't5x'])
def test_merged_export_is_the_policy(saved, output_format):
  model, params, frozen, path = saved
  output = export(model, path, output_format)
  loaded = formats.read_params(
    str(output),
    model.base.abstract_params,
    model.config,
    name='INITIAL_CHECKPOINT_PATH',
  )
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(a, e, atol=1e-6),
    loaded,
    lora_networks.merged(model, params, frozen),
  )


def test_export_with_another_alpha_is_refused(saved):
  model, _, _, path = saved
  other = lora.Lora(
    model.base, rank=model.rank, alpha=3 * model.alpha, targets=model.targets
  )
  with pytest.raises(ValueError, match='LORA_ALPHA .* in the run of .*run'):
    export(other, path, 'peft')
  assert not (path / 'peft').exists()


def test_peft_export_has_its_names_and_its_product(saved):
  """Each module is W + alpha / r B A in Hugging Face's orientation."""
  model, params, frozen, path = saved
  output = export(model, path, 'peft')
  arrays = safetensors.numpy.load_file(output / 'adapter_model.safetensors')
  config = json.loads((output / 'adapter_config.json').read_text())
  shutil.rmtree(path / 'hf', ignore_errors=True)
  whole = safetensors.numpy.load_file(
    export(model, path, 'hf') / 'model.safetensors'
  )
  convert.convert(
    model=model.base,
    initial_checkpoint_path=str(path / 'base'),
    output_dir=str(path / 'base_hf'),
    output_format='hf',
    context_length=64,
    eos_id=1,
  )
  base = safetensors.numpy.load_file(path / 'base_hf' / 'model.safetensors')
  prefix, suffix = 'base_model.model.', '.lora_A.weight'
  modules = [
    name.removeprefix(prefix).removesuffix(suffix)
    for name in arrays
    if name.endswith(suffix)
  ]
  adapted = {n for n in whole if not np.array_equal(whole[n], base[n])}
  assert {f'{module}.weight' for module in modules} == adapted
  for module in modules:
    assert module.split('.')[-1] in config['target_modules']
    a = arrays[f'{prefix}{module}.lora_A.weight']
    b = arrays[f'{prefix}{module}.lora_B.weight']
    assert a.shape[0] == b.shape[1] == config['r']
    np.testing.assert_allclose(
      base[f'{module}.weight'] + config['lora_alpha'] / config['r'] * b @ a,
      whole[f'{module}.weight'],
      atol=1e-6,
    )


@pytest.mark.parametrize(
  ('targets', 'ranks'),
  [
    (lora_networks.TARGETS, {'qkv_proj': 9, 'gate_up_proj': 3}),
    (('query', 'value'), {'qkv_proj': 6}),
    (('key', 'wi_1', 'wo'), {'qkv_proj': 3, 'gate_up_proj': 3}),
    (('out',), {}),
  ],
)
def test_peft_export_joins_the_adapters_of_fused_kernels(
  targets, ranks, tmp_path
):
  """Phi-3 stores q, k, v as one array, and gate and up as another."""
  families.write('phi3', tmp_path / 'base')
  model = lora.Lora(
    families_test.network('phi3'), rank=3, alpha=6.0, targets=targets
  )
  params = jax.tree.map(
    lambda x: 0.3 * jax.random.normal(jax.random.key(2), x.shape),
    model.init(jax.random.key(1)),
  )
  with manager_lib.open_manager(
    str(tmp_path / 'run'), keep=manager_lib.Keep()
  ) as manager:
    state = types.TrainState(step=jnp.int32(1), params=params, opt_state=())
    adapts = manager_lib.adapted(model, str(tmp_path / 'base'))
    manager_lib.save(manager, state, VOCABULARY, adapts=adapts)
  output = export(model, tmp_path, 'peft')
  arrays = safetensors.numpy.load_file(output / 'adapter_model.safetensors')
  config = json.loads((output / 'adapter_config.json').read_text())
  assert config['rank_pattern'] == ranks
  whole = safetensors.numpy.load_file(
    export(model, tmp_path, 'hf') / 'model.safetensors'
  )
  base = safetensors.numpy.load_file(tmp_path / 'base' / 'model.safetensors')
  adapted = {n for n in whole if not np.array_equal(whole[n], base[n])}
  suffix = '.lora_A.weight'
  names = {n.removesuffix(suffix) for n in arrays if n.endswith(suffix)}
  prefix = 'base_model.model.'
  assert {f'{n.removeprefix(prefix)}.weight' for n in names} == adapted
  for name in names:
    module = name.rpartition('.')[2]
    assert module in config['target_modules']
    a, b = arrays[f'{name}.lora_A.weight'], arrays[f'{name}.lora_B.weight']
    rank = config['rank_pattern'].get(module, config['r'])
    alpha = config['alpha_pattern'].get(module, config['lora_alpha'])
    assert a.shape[0] == b.shape[1] == rank
    weight = f'{name.removeprefix(prefix)}.weight'
    np.testing.assert_allclose(
      base[weight] + alpha / rank * b @ a, whole[weight], atol=1e-6
    )
