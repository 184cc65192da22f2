"""Hugging Face's config.json."""

import json

from etils import epath
import numpy as np
import pytest

from ipo_md.checkpoints import hf_config
from tests.checkpoints import networks


def test_missing_fields_have_the_defaults_of_transformers():
  config = json.loads((networks.HF / 'mistral' / 'config.json').read_text())
  del config['sliding_window']
  assert hf_config.model_fields(config)['sliding_window'] == 4096
  config = json.loads((networks.HF / 'mixtral' / 'config.json').read_text())
  del config['sliding_window']
  assert hf_config.model_fields(config)['sliding_window'] is None


def _through_float32(config):
  return {
    key: float(np.float32(value)) if isinstance(value, float) else value
    for key, value in config.items()
  }


@pytest.mark.parametrize(
  ('family', 'changes'),
  [
    ('llama', {'rms_norm_eps': 9.999999974752427e-07}),
    ('mistral', {'rope_theta': float(np.float32(1e6 + 0.3))}),
    ('t5_v1_1', {'layer_norm_epsilon': 9.999999974752427e-07}),
    ('t5_v1_1', {'d_ff': 64.0}),
  ],
)
def test_floats_are_compared_as_float32(tmp_path, family, changes):
  path = networks.copied(networks.HF / family, tmp_path)
  config = json.loads((path / 'config.json').read_text())
  rope = {'rope_theta': 1e6 + 0.3} if 'rope_theta' in changes else {}
  if rope:
    config.pop('rope_parameters', None)
  (path / 'config.json').write_text(json.dumps(config | changes))
  network = networks.network(family, **rope)
  networks.assert_equal(
    networks.load(network, path),
    networks.load(networks.network(family), networks.HF / family),
  )


def test_another_epsilon_is_still_another_model(tmp_path):
  path = networks.copied(networks.HF / 'llama', tmp_path)
  config = json.loads((path / 'config.json').read_text())
  (path / 'config.json').write_text(
    json.dumps(config | {'rms_norm_eps': 1.001e-5})
  )
  with pytest.raises(ValueError, match='norm_epsilon: 1.001e-05 in the check'):
    networks.load(networks.network('llama', norm_epsilon=1e-5), path)


def test_rope_scaling_that_went_through_float32(tmp_path):
  path = networks.copied(networks.HF / 'llama_3', tmp_path)
  config = json.loads((path / 'config.json').read_text())
  key = 'rope_parameters' if 'rope_parameters' in config else 'rope_scaling'
  config[key] = _through_float32(config[key] | {'high_freq_factor': 4.1})
  (path / 'config.json').write_text(json.dumps(config))
  networks.load(
    networks.network('llama_3', rope_high_frequency_factor=4.1), path
  )


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('[]', 'config.json: it is no JSON object'),
    ('{"rms_norm_eps": null}', 'rms_norm_eps is None, not a number'),
  ],
)
def test_what_is_no_config_is_one_line(tmp_path, text, message):
  base = json.loads((networks.HF / 'llama' / 'config.json').read_text())
  found = json.loads(text)
  path = epath.Path(tmp_path / 'config.json')
  path.write_text(json.dumps(base | found if found else found))
  with pytest.raises(ValueError, match=message):
    hf_config.read(path)
