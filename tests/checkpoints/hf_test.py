"""Hugging Face's checkpoints: names, layouts and damage."""

import json

import jax
import numpy as np
import pytest

from ipo_md.core import types
from tests.checkpoints import networks


@pytest.mark.parametrize('family', networks.FAMILIES + networks.VARIANTS)
def test_logits_are_those_of_the_reference(family):
  network = networks.network(family)
  golden = np.load(networks.HF / family / 'expected.npz')
  mask, inputs = golden['mask'], golden['ids']
  real = mask
  if family.startswith('t5'):
    inputs = golden['decoder_input_ids']
    real = np.ones(inputs.shape, bool)
  else:  # The first token is the prompt.
    mask = mask & (np.arange(mask.shape[1]) < 1)

  @jax.jit
  def logits(params):
    context = network.encode(params, types.Tokens(golden['ids'], mask))
    hidden, _, _ = network.decode(params, inputs[:, None], context)
    return network.logits(params, hidden)[:, 0]

  with jax.default_matmul_precision('highest'):
    actual = logits(networks.load(network, networks.HF / family))
  scale = np.max(np.abs(golden['logits']))
  np.testing.assert_allclose(
    actual[real], golden['logits'][real], rtol=0, atol=2e-5 * scale
  )


def test_router_loss_is_that_of_the_reference():
  """Padding is not counted, and the loss is the mean over the layers."""
  network = networks.network('mixtral', router_loss_weight=1.0)
  golden = np.load(networks.HF / 'mixtral' / 'expected.npz')
  ids, mask = golden['ids'], golden['mask']

  @jax.jit
  def loss(params):
    first = types.Tokens(ids, mask & (np.arange(mask.shape[1]) < 1))
    context = network.encode(params, first)
    return network.decode(params, ids[:, None], context, mask=mask[:, None])[2]

  expected = np.load(networks.HF / 'mixtral' / 'router_loss.npz')['losses']
  actual = loss(networks.load(network, networks.HF / 'mixtral'))
  np.testing.assert_allclose(actual, expected.mean(), rtol=1e-5)


def _edit_config(path, **changes):
  file = path / 'config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _drop(path, field):
  config = json.loads(path.read_text())
  del config[field]
  path.write_text(json.dumps(config))


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda p: _edit_config(p, model_type='bert'), "model_type 'bert'"),
    (
      lambda p: _edit_config(p, d_ff=65),
      'mlp_dim: 65 in the checkpoint, 64 in the model',
    ),
    (lambda p: networks.truncate(p / 'model.safetensors'), 'truncated'),
    (
      lambda p: (p / 'model.safetensors').rename(p / 'pytorch_model.bin'),
      'pytorch_model.bin: pickles',
    ),
    (lambda p: (p / 'model.safetensors').unlink(), 'no model.safetensors'),
    (lambda p: networks.truncate(p / 'config.json'), 'config.json: '),
    (
      lambda p: _edit_config(p, d_kv=None),
      'head_dim: None in the checkpoint, 8 in the',
    ),
    (lambda p: _drop(p / 'config.json', 'd_ff'), "has no field 'd_ff'"),
    (
      lambda p: _edit_config(p, layer_norm_epsilon=1e-5),
      'layer_norm_epsilon 1e-05 is not supported, only 1e-6',
    ),
  ],
)
def test_damaged_directory_is_one_error(tmp_path, damage, message):
  path = networks.copied(networks.HF / 't5_v1_1', tmp_path)
  damage(path)
  with pytest.raises(ValueError, match=message):
    networks.convert(
      networks.network('t5_v1_1'), path, tmp_path / 'output', 'orbax'
    )
  assert sorted(p.name for p in tmp_path.iterdir()) == ['copy']
