"""Hugging Face's config.json."""

import json

from ipo_md.checkpoints import hf_config
from tests.checkpoints import networks


def test_missing_fields_have_the_defaults_of_transformers():
  config = json.loads((networks.HF / 'mistral' / 'config.json').read_text())
  del config['sliding_window']
  assert hf_config.model_fields(config)['sliding_window'] == 4096
  config = json.loads((networks.HF / 'mixtral' / 'config.json').read_text())
  del config['sliding_window']
  assert hf_config.model_fields(config)['sliding_window'] is None
