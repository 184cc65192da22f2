"""Hints of gin files that match a checkpoint."""

import json
import pathlib

import pytest

from ipo_md.checkpoints import gin_advice
from ipo_md.checkpoints import hf_config
from tests.checkpoints import networks

GIN = pathlib.Path(gin_advice.__file__).parents[2] / 'gin' / 'models'
LLAMA_3_1 = {
  'model_type': 'llama',
  'vocab_size': 128256,
  'hidden_size': 4096,
  'num_attention_heads': 32,
  'num_key_value_heads': 8,
  'num_hidden_layers': 32,
  'intermediate_size': 14336,
  'hidden_act': 'silu',
  'rms_norm_eps': 9.999999747378752e-06,
  'rope_theta': 500000.0,
  'rope_scaling': {
    'rope_type': 'llama3',
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
  },
}


def _advice(config):
  fields = hf_config.model_fields(config)
  return gin_advice.advice(fields, networks.network('llama').config)


def test_an_epsilon_through_float32_matches():
  expected = 'It matches gin/models/llama_3_1_8b.gin.'
  assert _advice(LLAMA_3_1) == expected


@pytest.mark.parametrize(
  'changes',
  [
    {'rms_norm_eps': 1e-6},
    {'num_hidden_layers': 16},
    {'model_type': 'mistral', 'sliding_window': 4096},
    {
      'model_type': 'mixtral',
      'num_local_experts': 8,
      'num_experts_per_tok': 2,
    },
    {'tie_word_embeddings': True},
    {'rope_scaling': None},
  ],
)
def test_a_file_that_differs_in_a_default_does_not_match(changes):
  assert _advice(LLAMA_3_1 | changes) == 'No file in gin/models matches it.'


def test_a_model_with_the_same_fields_has_no_hint():
  config = json.loads((networks.HF / 'llama' / 'config.json').read_text())
  assert not _advice(config)


def test_every_model_file_is_read():
  read = [f.name for f in GIN.glob('*.gin') if gin_advice._bindings(f)]
  assert {'decoder_tiny.gin', 't5_tiny.gin', 'mixtral_8x7b.gin'} <= set(read)
  assert {'t5.gin', 'decoder_only.gin'}.isdisjoint(read)
