"""GGUF files are read as the Hugging Face checkpoints that they came from."""

import sys

from etils import epath
import numpy as np
import pytest

from ipo_md.checkpoints import gguf_file
from ipo_md.checkpoints import load
from ipo_md.checkpoints import locate
from tests.checkpoints import families
from tests.checkpoints import families_test
from tests.checkpoints import networks

gguf = pytest.importorskip('gguf')

NAMES = {theirs: ours for ours, theirs in gguf_file._NAMES.items()}
FAMILIES = ('llama2', 'llama_bias', 'linear', 'qwen2', 'qwen3')


def _name(name):
  module, _, part = name.rpartition('.')
  layer = ''
  if module.startswith('model.layers.'):
    _, _, number, module = module.split('.', 3)
    layer = f'blk.{number}.'
  return f'{layer}{NAMES[module]}.{part}'


def _permuted(array, heads):
  apart = array.reshape(heads, 2, -1, *array.shape[1:])
  return apart.swapaxes(1, 2).reshape(array.shape)


def write(path, family, quantisation='F32', change=lambda writer: None):
  """Writes a GGUF file as llama.cpp's converter does."""
  config = families.CONFIGS[family]
  kind = config['model_type']
  writer = gguf.GGUFWriter(str(path), kind)
  writer.add_block_count(config['num_hidden_layers'])
  writer.add_context_length(64)
  writer.add_embedding_length(config['hidden_size'])
  writer.add_feed_forward_length(config['intermediate_size'])
  writer.add_head_count(config['num_attention_heads'])
  writer.add_head_count_kv(config['num_key_value_heads'])
  writer.add_key_length(config['head_dim'])
  writer.add_layer_norm_rms_eps(config['rms_norm_eps'])
  writer.add_rope_freq_base(config['rope_theta'])
  if 'rope_scaling' in config:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(config['rope_scaling']['factor'])
  change(writer)
  for name, shape in families.shapes(config).items():
    array = families.array(name, shape)
    for letter, heads in (
      ('q', config['num_attention_heads']),
      ('k', config['num_key_value_heads']),
    ):
      if kind == 'llama' and f'.{letter}_proj.' in name:
        array = _permuted(array, heads)
    kind_of = gguf.GGMLQuantizationType[quantisation]
    if quantisation == 'F32' or array.ndim == 1 or shape[1] % 32:
      writer.add_tensor(_name(name), array)
      continue
    data = gguf.quants.quantize(array, kind_of)
    writer.add_tensor(_name(name), data, raw_dtype=kind_of)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.mark.parametrize('family', FAMILIES)
def test_a_file_is_the_checkpoint_that_it_came_from(family, tmp_path):
  file = write(tmp_path / f'{family}.gguf', family)
  model = families_test.network(family)
  original = families.write(family, tmp_path / 'original')
  expected = networks.load(model, original)
  networks.assert_equal(networks.load(model, file), expected)
  networks.assert_equal(networks.load(model, tmp_path), expected)
  assert locate.detect(str(tmp_path), 'PATH') == ('gguf', epath.Path(file))


@pytest.mark.parametrize(
  ('quantisation', 'error'),
  [('F16', 1e-3), ('BF16', 4e-3), ('Q8_0', 8e-3), ('Q4_0', 0.2), ('Q4_1', 0.2)],
)
def test_quantised_arrays_are_near_the_original(tmp_path, quantisation, error):
  file = write(tmp_path / 'qwen3.gguf', 'qwen3', quantisation)
  model = families_test.network('qwen3')
  found = networks.load(model, file)['decoder']['layers']['mlp']
  original = families.write('qwen3', tmp_path / 'original')
  expected = networks.load(model, original)['decoder']['layers']['mlp']
  difference = np.max(
    np.abs(found['wi_0']['kernel'] - expected['wi_0']['kernel'])
  )
  assert 0 < difference < error


def test_a_converted_file_has_a_config(tmp_path):
  file = write(tmp_path / 'llama2.gguf', 'llama2')
  model = families_test.network('llama2')
  networks.convert(model, file, tmp_path / 'out', 'hf')
  networks.assert_equal(
    networks.load(model, tmp_path / 'out'), networks.load(model, file)
  )


def test_another_file_has_another_identity(tmp_path):
  file = write(tmp_path / 'llama2.gguf', 'llama2')
  first = load.identity(str(file), 'PATH')
  assert load.identity(str(tmp_path), 'PATH') == first
  write(file, 'llama2', 'F16')
  assert load.identity(str(file), 'PATH') != first


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda w: w.add_expert_count(4), 'experts are not read from GGUF'),
    (
      lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN),
      "rope scaling 'yarn' are not read",
    ),
    (
      lambda w: w.add_tensor('rope_freqs.weight', np.ones(4, np.float32)),
      'scaled frequencies .rope_freqs.weight. are not',
    ),
  ],
)
def test_what_is_not_read_is_one_line(tmp_path, change, message):
  file = write(tmp_path / 'llama2.gguf', 'llama2', change=change)
  with pytest.raises(ValueError, match=message) as error:
    networks.load(families_test.network('llama2'), file)
  assert '\n' not in str(error.value)


def test_types_and_damage_are_named(tmp_path):
  file = write(tmp_path / 'qwen2.gguf', 'qwen2', 'Q5_0')
  with pytest.raises(ValueError, match='weight has the type Q5_0, which is no'):
    networks.load(families_test.network('qwen2'), file)
  file.write_bytes(b'GGUX' + file.read_bytes()[4:])
  with pytest.raises(ValueError, match='qwen2.gguf is damaged: '):
    networks.load(families_test.network('qwen2'), file)
  write(tmp_path / 'llama2.gguf', 'llama2')
  with pytest.raises(ValueError, match='has 2 GGUF files: give the path'):
    locate.detect(str(tmp_path), 'PATH')


def test_the_missing_package_is_named(tmp_path, monkeypatch):
  file = write(tmp_path / 'llama2.gguf', 'llama2')
  monkeypatch.setitem(sys.modules, 'gguf', None)
  with pytest.raises(ValueError, match=r"pip install 'ipo_md\[gguf\]'"):
    networks.load(families_test.network('llama2'), file)
