"""The rotary positions of a config.json, to and from fields of the network.

Version 4 of transformers states them in rope_theta and rope_scaling, version 5
in rope_parameters, with a dictionary for each type of layer if they differ.
"""

from collections.abc import Mapping
import math
from typing import Any

from ipo_md import models

_KINDS = ('default', 'linear', 'dynamic', 'yarn', 'llama3')
_NESTED = ('full_attention', 'sliding_attention')


def read(
  config: Mapping[str, Any], head_dim: int, theta: float
) -> dict[str, Any]:
  """Returns the fields of `Model.config` about rotary positions.

  Args:
    config: Contents of config.json.
    head_dim: Number of features of a head.
    theta: Base of the frequencies if config.json has none.

  Raises:
    ValueError: The positions are not supported.
    KeyError: A field is missing.
  """
  phi = config['model_type'] == 'phi3'
  rope = _parameters(config)
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind not in _KINDS or (phi and kind == 'yarn'):
    raise ValueError(
      f'rope_type {kind!r} is not supported'
      f'{" for phi3" if kind == "yarn" else ""}, only '
      f'{", ".join(_KINDS)}.'
    )
  fields = {
    'rope_theta': rope.get('rope_theta') or config.get('rope_theta') or theta,
    'rope_factor': 1.0,
    'rotary_dim': None,
  }
  share = rope.get('partial_rotary_factor')
  share = config.get('partial_rotary_factor') if share is None else share
  if share not in (None, 1):
    if not phi:
      raise ValueError(
        f'partial_rotary_factor {share} is only supported for phi3.'
      )
    fields['rotary_dim'] = int(head_dim * share)
  if kind == 'default':
    return fields
  return fields | {'rope_scaling': kind} | _scaling(kind, config, rope)


def _parameters(config: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns the parameters of the layers without a window of their own."""
  rope = config.get('rope_parameters') or {}
  nested = any(key in rope for key in _NESTED)
  if config['model_type'] == 'gemma3_text':
    if rope and not nested:
      raise ValueError(
        'rope_parameters of gemma3_text needs full_attention and '
        'sliding_attention.'
      )
    own = rope.get('full_attention') or {}
    return own or config.get('rope_scaling') or {}
  if nested:
    raise ValueError(
      'rope_parameters that differ by the type of a layer are only supported '
      'for gemma3_text.'
    )
  return rope or config.get('rope_scaling') or {}


def local_theta(config: Mapping[str, Any]) -> float:
  """Returns the base of the frequencies in Gemma 3's local layers."""
  rope = (config.get('rope_parameters') or {}).get('sliding_attention') or {}
  kind = rope.get('rope_type', 'default')
  if kind != 'default':
    raise ValueError(
      f'rope_type {kind!r} is not supported for sliding_attention.'
    )
  return rope.get('rope_theta') or config.get('rope_local_base_freq') or 1e4


def _scaling(
  kind: str, config: Mapping[str, Any], rope: Mapping[str, Any]
) -> dict[str, Any]:
  if kind == 'linear':
    return {'rope_factor': rope['factor']}
  if kind == 'dynamic':
    return {
      'rope_factor': rope['factor'],
      'rope_original_length': config['max_position_embeddings'],
    }
  original = config.get(
    'original_max_position_embeddings',
    rope.get('original_max_position_embeddings'),
  )
  original = original or config['max_position_embeddings']
  if kind == 'llama3':
    return {
      'rope_factor': rope['factor'],
      'rope_low_frequency_factor': rope['low_freq_factor'],
      'rope_high_frequency_factor': rope['high_freq_factor'],
      'rope_original_length': original,
    }
  factor = rope.get('factor') or config['max_position_embeddings'] / original
  return {
    'rope_factor': factor,
    'rope_low_frequency_factor': rope.get('beta_slow') or 1,
    'rope_high_frequency_factor': rope.get('beta_fast') or 32,
    'rope_original_length': original,
    'rope_attention_factor': _attention_factor(rope, factor),
    'rope_truncate': rope.get('truncate', True),
  }


def _attention_factor(rope: Mapping[str, Any], factor: float) -> float:
  """Returns yarn's factor of cosines and sines."""
  if rope.get('attention_factor') is not None:
    return rope['attention_factor']

  def scale(weight=1.0):
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

  if rope.get('mscale') and rope.get('mscale_all_dim'):
    return scale(rope['mscale']) / scale(rope['mscale_all_dim'])
  return scale()


def write(kind: str, cfg: models.DecoderOnlyConfig) -> dict[str, Any]:
  """Returns the fields of a config.json, in version 4's form.

  Args:
    kind: Its model_type.
    cfg: Configuration of the network.
  """
  config: dict[str, Any] = {'rope_theta': cfg.rope_theta}
  if kind == 'gemma3_text':
    local = cfg.local_rope_theta
    config['rope_local_base_freq'] = cfg.rope_theta if local is None else local
  if kind == 'phi3' and cfg.rotary_dim is not None:
    config['partial_rotary_factor'] = cfg.rotary_dim / cfg.head_dim
  if cfg.rope_factor == 1:
    return config
  scaling: dict[str, Any] = {
    'rope_type': cfg.rope_scaling,
    'factor': cfg.rope_factor,
  }
  if cfg.rope_scaling == 'dynamic':
    config['max_position_embeddings'] = cfg.rope_original_length
  if cfg.rope_scaling in ('llama3', 'yarn'):
    scaling['original_max_position_embeddings'] = cfg.rope_original_length
  low, high = cfg.rope_low_frequency_factor, cfg.rope_high_frequency_factor
  if cfg.rope_scaling == 'llama3':
    scaling |= {'low_freq_factor': low, 'high_freq_factor': high}
  if cfg.rope_scaling == 'yarn':
    scaling |= {
      'beta_slow': low,
      'beta_fast': high,
      'attention_factor': cfg.rope_attention_factor,
      'truncate': cfg.rope_truncate,
    }
  return config | {'rope_scaling': scaling}
