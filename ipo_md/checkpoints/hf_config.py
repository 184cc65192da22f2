"""Hugging Face's config.json, to and from the configuration of a network."""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

from etils import epath
import numpy as np

from ipo_md import models
from ipo_md.checkpoints import gguf_file
from ipo_md.checkpoints import gin_advice
from ipo_md.checkpoints import hf_classifier
from ipo_md.checkpoints import hf_families

T5_KINDS = ('t5', 'mt5')
# What the network of this project lacks for other values of model_type.
_LACKING = {
  'umt5': 'every layer has relative positions of its own',
  'longt5': 'its attention is local or global by blocks',
  'switch_transformers': 'the layers of a T5 cannot be experts',
  'gemma': 'only Gemma 2 and the text models of Gemma 3 are read',
  'gemma3': 'it reads images; the text model alone, gemma3_text, is read',
  'gemma3n': 'its layers have several streams of activations',
  'qwen2_moe': 'some experts are shared by all tokens',
  'deepseek_v2': 'its keys and values are compressed',
  'deepseek_v3': 'its keys and values are compressed',
  'gpt_oss': 'its attention has sinks',
  'llama4': 'some experts are shared by all tokens',
  'olmo': 'its norms have no scale',
  'olmo3': 'its rotary positions are scaled in some layers only',
  'olmoe': 'its experts have norms over joined queries and keys',
  'granite': 'it multiplies embeddings, residuals and logits by constants',
  'cohere': 'attention and feed-forward layers run in parallel',
  'cohere2': 'attention and feed-forward layers run in parallel',
  'phi': 'attention and feed-forward layers run in parallel',
  'phimoe': 'its router chooses experts in its own way',
  'gpt_neox': 'attention and feed-forward layers run in parallel',
  'falcon': 'attention and feed-forward layers run in parallel',
  'gpt2': 'its positions are learned',
  'opt': 'its positions are learned',
  'bart': 'its positions are learned',
  'bert': 'it predicts masked tokens',
  'bloom': 'its positions are biases of the scores',
  'mpt': 'its positions are biases of the scores',
  'starcoder2': 'its norms have biases',
  'stablelm': 'its norms have biases',
}
_T5_ACTIVATIONS = {
  'relu': ('relu',),
  'gated-gelu': ('gelu', 'linear'),
  'gated-silu': ('silu', 'linear'),
  'gated-relu': ('relu', 'linear'),
  'silu': ('silu',),
}


def read(path: epath.Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads a config.json, or what a GGUF file says instead of one.

  Returns:
    Its contents, and the fields of `Model.config` that they determine.

  Raises:
    ValueError: It is damaged, or its model is not supported.
  """
  if path.suffix == gguf_file.SUFFIX:
    config = gguf_file.config(path)
    return config, model_fields(config)
  try:
    config = json.loads(path.read_text())
    if not isinstance(config, dict):
      raise ValueError('it is no JSON object')
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
  if kind in T5_KINDS:
    return _t5_fields(config)
  if kind in hf_families.FAMILIES:
    return hf_families.read(config)
  lacking = _LACKING.get(str(kind))
  raise ValueError(
    f'model_type {kind!r} is not supported'
    + (f', because {lacking}. ' if lacking else '. ')
    + f'Supported are {", ".join([*T5_KINDS, *hf_families.FAMILIES])}.'
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
  activation = config.get(
    'feed_forward_proj',
    'gated-gelu' if config['model_type'] == 'mt5' else 'relu',
  )
  if activation not in _T5_ACTIVATIONS:
    raise ValueError(
      f'feed_forward_proj {activation!r} is not supported, only '
      f'{", ".join(_T5_ACTIVATIONS)}.'
    )
  layers = config['num_layers']
  return {
    'vocab_size': config['vocab_size'],
    'emb_dim': config['d_model'],
    'num_heads': config['num_heads'],
    'head_dim': config['d_kv'],
    'num_encoder_layers': layers,
    'num_decoder_layers': config.get('num_decoder_layers') or layers,
    'mlp_dim': config['d_ff'],
    'mlp_activations': _T5_ACTIVATIONS[activation],
    'logits_via_embedding': scaled,
    'relpos_num_buckets': config.get('relative_attention_num_buckets', 32),
    'relpos_max_distance': config.get('relative_attention_max_distance', 128),
  }


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
  projections = {value: key for key, value in _T5_ACTIVATIONS.items()}
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
  """Returns the first family's config.json that describes the network."""
  wanted = _shape(dataclasses.asdict(cfg))
  nearest: list[str] = [*wanted]
  for kind in hf_families.FAMILIES:
    config = hf_families.write(kind, cfg)
    try:
      found = _shape(dataclasses.asdict(cfg) | _DEFAULTS | model_fields(config))
    except (ValueError, TypeError, KeyError):
      continue
    differing = [
      key
      for key, value in wanted.items()
      if not gin_advice.same(found[key], value)
    ]
    if not differing:
      return config
    nearest = min(nearest, differing, key=len)
  stated = ', '.join(
    f'DecoderOnly.{key} = {getattr(cfg, key)}' for key in nearest
  )
  raise ValueError(
    f'{stated}: no model_type of config.json has this beside the other fields '
    'of the network.'
  )


# Fields that no config.json determines: they say how a network is trained.
_FREE = (
  'dropout_rate',
  'router_loss_weight',
  'dtype',
  'scan',
  'remat_policy',
  'reward_head',
)
_DEFAULTS = {
  field.name: field.default
  for field in dataclasses.fields(models.DecoderOnlyConfig)
  if field.default is not dataclasses.MISSING and field.name not in _FREE
}


def _shape(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields that shape a network, without those of no effect."""
  shape = {key: value for key, value in fields.items() if key not in _FREE}
  shape['query_scalar'] = shape['query_scalar'] or shape['head_dim']
  shape['rotary_dim'] = shape['rotary_dim'] or shape['head_dim']
  for key in ('local_layers', 'rope_layers'):
    count = shape['num_layers']
    repeated = [shape[key][i % len(shape[key])] for i in range(count)]
    shape[key] = hf_families.pattern(repeated)
  if shape['sliding_window'] is None or not any(shape['local_layers']):
    shape |= {'sliding_window': None, 'local_layers': (True,)}
    shape['local_rope_theta'] = None
  if shape['local_rope_theta'] is None:
    shape['local_rope_theta'] = shape['rope_theta']
    local_scaled = shape['rope_factor'] != 1
  else:
    local_scaled = False
  shape['local_scaled'] = local_scaled and shape['sliding_window'] is not None
  if shape['num_experts'] == 1:
    shape |= {'num_experts_per_token': 1, 'experts_sum_to_one': True}
  used = _ROPE_FIELDS[shape['rope_scaling']]
  if shape['rope_factor'] == 1:
    used, shape['rope_scaling'] = (), 'llama3'
  for key in set(_ROPE_FIELDS['yarn']) - set(used):
    shape[key] = _DEFAULTS[key]
  return shape


_ROPE_FIELDS = {
  'linear': (),
  'dynamic': ('rope_original_length',),
  'llama3': (
    'rope_original_length',
    'rope_low_frequency_factor',
    'rope_high_frequency_factor',
  ),
  'yarn': (
    'rope_original_length',
    'rope_low_frequency_factor',
    'rope_high_frequency_factor',
    'rope_attention_factor',
    'rope_truncate',
  ),
}
