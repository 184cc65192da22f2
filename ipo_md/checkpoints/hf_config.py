"""Hugging Face's config.json, to and from the configuration of a network."""

from collections.abc import Mapping
import json
from typing import Any

from etils import epath
import numpy as np

from ipo_md import models
from ipo_md.checkpoints import hf_classifier


def read(path: epath.Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads a config.json.

  Returns:
    Its contents, and the fields of `Model.config` that they determine.

  Raises:
    ValueError: It is damaged, or its model is not supported.
  """
  try:
    config = json.loads(path.read_text())
    if quantised := config.get('quantization_config'):
      raise ValueError(
        f'the weights are quantised ({quantised.get("quant_method")}), which '
        'is not read. Use or save a copy that is not.'
      )
    return config, model_fields(config) | hf_classifier.fields(config)
  except KeyError as error:
    raise ValueError(f'{path} has no field {error}.') from error
  except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
    raise ValueError(f'{path}: {error}') from error


def model_fields(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of `Model.config` that a config.json determines.

    model_fields({'model_type': 't5', 'd_model': 512, ...})['emb_dim']  # 512

  Args:
    config: Contents of config.json.

  Raises:
    ValueError: The model_type, or a variant of it, is not supported.
    KeyError: A field is missing.
  """
  kind = config.get('model_type')
  if kind in ('t5', 'mt5'):
    return _t5_fields(config)
  if kind in ('llama', 'mistral', 'mixtral'):
    return _decoder_fields(config)
  raise ValueError(
    f"model_type {kind!r} is not supported, only 't5', 'mt5', 'llama', "
    "'mistral' and 'mixtral'."
  )


def _t5_fields(config: Mapping[str, Any]) -> dict[str, Any]:
  # A head that is the embedding reads scaled states. Version 5 of transformers
  # has a field of its own for that, and sets tie_word_embeddings in any case.
  scaled = config.get(
    'scale_decoder_outputs',
    config['model_type'] == 't5' and config.get('tie_word_embeddings', True),
  )
  epsilon = config.get('layer_norm_epsilon', 1e-6)
  if np.float32(epsilon) != np.float32(1e-6):
    raise ValueError(
      f'layer_norm_epsilon {epsilon} is not supported, only 1e-6.'
    )
  activation = config.get('feed_forward_proj', 'relu')
  activations = {'relu': ('relu',), 'gated-gelu': ('gelu', 'linear')}
  layers = config['num_layers']
  return {
    'vocab_size': config['vocab_size'],
    'emb_dim': config['d_model'],
    'num_heads': config['num_heads'],
    'head_dim': config['d_kv'],
    'num_encoder_layers': layers,
    'num_decoder_layers': config.get('num_decoder_layers') or layers,
    'mlp_dim': config['d_ff'],
    'mlp_activations': activations.get(activation, (activation,)),
    'logits_via_embedding': scaled,
    'relpos_num_buckets': config.get('relative_attention_num_buckets', 32),
    'relpos_max_distance': config.get('relative_attention_max_distance', 128),
  }


def _decoder_fields(config: Mapping[str, Any]) -> dict[str, Any]:
  heads = config['num_attention_heads']
  rope = config.get('rope_parameters') or config.get('rope_scaling') or {}
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind not in ('default', 'llama3') or config.get('attention_bias'):
    raise ValueError(
      f'rope_type {kind!r} with attention_bias {config.get("attention_bias")} '
      "is not supported, only 'default' and 'llama3' without a bias."
    )
  if config['hidden_act'] != 'silu':
    raise ValueError(
      f"hidden_act {config['hidden_act']!r} is not supported, only 'silu'."
    )
  fields = {
    'vocab_size': config['vocab_size'],
    'emb_dim': config['hidden_size'],
    'num_heads': heads,
    'num_kv_heads': config.get('num_key_value_heads', heads),
    'head_dim': config.get('head_dim') or config['hidden_size'] // heads,
    'num_layers': config['num_hidden_layers'],
    'mlp_dim': config['intermediate_size'],
    'mlp_activations': (config['hidden_act'], 'linear'),
    'logits_via_embedding': config.get('tie_word_embeddings', False),
    'norm_epsilon': config['rms_norm_eps'],
    'rope_theta': rope.get('rope_theta', config.get('rope_theta', 10000.0)),
    'rope_factor': 1.0,
    # The default of transformers if the field is missing.
    'sliding_window': config.get(
      'sliding_window', 4096 if config['model_type'] == 'mistral' else None
    ),
    'num_experts': config.get('num_local_experts', 1),
  }
  if fields['num_experts'] > 1:
    fields['num_experts_per_token'] = config['num_experts_per_tok']
  if kind == 'llama3':
    fields |= {
      'rope_factor': rope['factor'],
      'rope_low_frequency_factor': rope['low_freq_factor'],
      'rope_high_frequency_factor': rope['high_freq_factor'],
      'rope_original_length': rope['original_max_position_embeddings'],
    }
  return fields


def config_json(config: Any) -> dict[str, Any]:
  """Returns the contents of a config.json, the inverse of `model_fields`.

  Args:
    config: Configuration of the network, `Model.config`.

  Raises:
    ValueError: A config.json cannot describe the network.
  """
  if isinstance(config, models.T5Config):
    return _t5_json(config)
  return _decoder_json(config)


def _t5_json(cfg: models.T5Config) -> dict[str, Any]:
  projections = {('relu',): 'relu', ('gelu', 'linear'): 'gated-gelu'}
  if cfg.mlp_activations not in projections:
    raise ValueError(
      f'T5.mlp_activations {cfg.mlp_activations}: a config.json can only '
      f'express {list(projections)}.'
    )
  return {
    'architectures': ['T5ForConditionalGeneration'],
    'model_type': 't5',
    'vocab_size': cfg.vocab_size,
    'd_model': cfg.emb_dim,
    'd_kv': cfg.head_dim,
    'd_ff': cfg.mlp_dim,
    'num_heads': cfg.num_heads,
    'num_layers': cfg.num_encoder_layers,
    'num_decoder_layers': cfg.num_decoder_layers,
    'feed_forward_proj': projections[cfg.mlp_activations],
    'tie_word_embeddings': cfg.logits_via_embedding,
    'scale_decoder_outputs': cfg.logits_via_embedding,
    'relative_attention_num_buckets': cfg.relpos_num_buckets,
    'relative_attention_max_distance': cfg.relpos_max_distance,
    'layer_norm_epsilon': 1e-6,
    'is_encoder_decoder': True,
    'decoder_start_token_id': 0,
    'pad_token_id': 0,
    'eos_token_id': 1,
  }


def _decoder_json(cfg: models.DecoderOnlyConfig) -> dict[str, Any]:
  if cfg.num_experts > 1:
    kind, name = 'mixtral', 'Mixtral'
  elif cfg.sliding_window is not None:
    kind, name = 'mistral', 'Mistral'
  else:
    kind, name = 'llama', 'Llama'
  config = {
    'architectures': [f'{name}ForCausalLM'],
    'model_type': kind,
    'vocab_size': cfg.vocab_size,
    'hidden_size': cfg.emb_dim,
    'head_dim': cfg.head_dim,
    'intermediate_size': cfg.mlp_dim,
    'num_attention_heads': cfg.num_heads,
    'num_key_value_heads': cfg.num_kv_heads,
    'num_hidden_layers': cfg.num_layers,
    'hidden_act': cfg.mlp_activations[0],
    'rms_norm_eps': cfg.norm_epsilon,
    'rope_theta': cfg.rope_theta,
    'tie_word_embeddings': cfg.logits_via_embedding,
    'attention_bias': False,
  }
  if kind != 'llama':
    config['sliding_window'] = cfg.sliding_window
  if kind == 'mixtral':
    config['num_local_experts'] = cfg.num_experts
    config['num_experts_per_tok'] = cfg.num_experts_per_token
    config['router_aux_loss_coef'] = cfg.router_loss_weight
  if cfg.rope_factor != 1:
    config['rope_scaling'] = {
      'rope_type': 'llama3',
      'factor': cfg.rope_factor,
      'low_freq_factor': cfg.rope_low_frequency_factor,
      'high_freq_factor': cfg.rope_high_frequency_factor,
      'original_max_position_embeddings': cfg.rope_original_length,
    }
  return config
