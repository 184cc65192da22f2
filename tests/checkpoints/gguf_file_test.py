"""GGUF files are read as the Hugging Face checkpoints that they came from."""

import sys
import types

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


def test_a_file_without_embeddings_is_named():
  reader = types.SimpleNamespace(tensors=[])
  with pytest.raises(ValueError, match='a.gguf has no array token_embd.weight'):
    gguf_file._vocab_size(reader, epath.Path('a.gguf'))


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


def _k_block(kind, rng):
  """Returns 256 weights in a block of llama.cpp's layout, and their values.

  Q4_K: w = d s_j q - m t_j, with 4-bit q and 6-bit s and t of 8 groups.
  Q6_K: w = d s_j (q - 32), with 6-bit q and 8-bit s of 16 groups.
  """
  d, m = np.float16(0.01), np.float16(0.02)
  scalar = lambda x: np.array([x], np.float16).view(np.uint8)
  if kind == 'Q4_K':
    q = rng.integers(0, 16, 256)
    s, t = rng.integers(0, 64, (2, 8))
    packed = np.zeros(12, np.uint8)
    packed[:4] = s[:4] | (s[4:] >> 4) << 6
    packed[4:8] = t[:4] | (t[4:] >> 4) << 6
    packed[8:] = (s[4:] & 15) | (t[4:] & 15) << 4
    low, high = q.reshape(4, 2, 32).swapaxes(0, 1)
    parts = [scalar(d), scalar(m), packed, (low | high << 4).ravel()]
    values = float(d) * np.repeat(s, 32) * q - float(m) * np.repeat(t, 32)
  else:
    q = rng.integers(0, 64, 256)
    s = rng.integers(-128, 128, 16)
    # Of each half of 128: bits 0 to 3 of q[l] and q[l + 64] share a byte, and
    # bits 4 and 5 of q[l], q[l + 32], q[l + 64] and q[l + 96].
    low = (q & 15).reshape(2, 2, 64)
    high = (q >> 4).reshape(2, 4, 32) << 2 * np.arange(4)[:, None]
    parts = [
      (low[:, 0] | low[:, 1] << 4).ravel(),
      high.sum(axis=1).ravel(),
      s.astype(np.int8).view(np.uint8),
      scalar(d),
    ]
    values = float(d) * np.repeat(s, 16) * (q - 32)
  return np.concatenate([p.astype(np.uint8) for p in parts]), values


@pytest.mark.parametrize('kind', ['Q4_K', 'Q6_K'])
def test_k_quants_have_the_values_that_their_layout_says(kind, tmp_path):
  rng = np.random.default_rng(0)
  blocks, values = zip(*(_k_block(kind, rng) for _ in range(6)), strict=True)
  writer = gguf.GGUFWriter(str(tmp_path / 'k.gguf'), 'qwen2')
  writer.add_tensor(
    'blk.0.ffn_down.weight',
    np.stack(blocks).reshape(3, -1),  # [3, 512]
    raw_dtype=gguf.GGMLQuantizationType[kind],
  )
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  found = gguf_file.read(
    epath.Path(tmp_path / 'k.gguf'),
    {
      'model_type': 'qwen2',
      'num_attention_heads': 4,
      'num_key_value_heads': 2,
    },
  )
  array = found['model.layers.0.mlp.down_proj.weight']
  assert array.shape == (3, 512)
  np.testing.assert_allclose(
    array.read(), np.reshape(values, (3, 512)), rtol=1e-6
  )
