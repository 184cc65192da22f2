"""Tiny checkpoint folders of every family, in the format of their authors.

The weights are a function of the name of each array, so that a script with
transformers and a test without it see the same model:

  families.write('gemma3', tmp_path)
"""

import json
import zlib

import numpy as np
import safetensors.numpy

VOCAB, PROMPT, NEW = 61, 13, 8
LENGTHS = (13, 7, 1)  # of the prompts

_SIZES = {
  'vocab_size': VOCAB,
  'hidden_size': 32,
  'intermediate_size': 40,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 12,
  'hidden_act': 'silu',
  'rms_norm_eps': 1e-5,
  'rope_theta': 100.0,
  'max_position_embeddings': 64,
  'tie_word_embeddings': False,
  'bos_token_id': 1,
  'eos_token_id': 2,
  'pad_token_id': 0,
}
_GEMMA = {
  'hidden_activation': 'gelu_pytorch_tanh',
  'query_pre_attn_scalar': 20,
  'sliding_window': 5,
  'tie_word_embeddings': True,
}
_T5 = {
  'model_type': 't5',
  'vocab_size': VOCAB,
  'd_model': 32,
  'd_kv': 12,
  'd_ff': 40,
  'num_heads': 3,
  'num_layers': 2,
  'feed_forward_proj': 'gated-gelu',
  'tie_word_embeddings': False,
  'decoder_start_token_id': 0,
  'pad_token_id': 0,
  'eos_token_id': 1,
}


def _llama(**changes):
  return _SIZES | {'model_type': 'llama'} | changes


def _rope(**scaling):
  return _llama(rope_scaling=scaling)


CONFIGS = {
  'llama2': _llama(num_key_value_heads=4, head_dim=8),
  'llama_bias': _llama(attention_bias=True),
  'llama_relu': _llama(hidden_act='relu', tie_word_embeddings=True),
  'linear': _rope(type='linear', factor=3.0),
  'dynamic': _rope(rope_type='dynamic', factor=2.0),
  'yarn': _rope(
    rope_type='yarn',
    factor=4.0,
    beta_fast=2.0,
    beta_slow=0.5,
    original_max_position_embeddings=8,
  ),
  # The layout of version 5 of transformers.
  'yarn_5': _llama(
    rope_theta=None,
    rope_parameters={
      'rope_type': 'yarn',
      'rope_theta': 150.0,
      'factor': 8.0,
      'beta_fast': 1.0,
      'beta_slow': 0.25,
      'mscale': 0.7,
      'mscale_all_dim': 0.4,
      'truncate': False,
      'original_max_position_embeddings': 8,
    },
  ),
  'llama3': _rope(
    rope_type='llama3',
    factor=8.0,
    low_freq_factor=0.5,
    high_freq_factor=2.0,
    original_max_position_embeddings=8,
  ),
  'smollm3': _SIZES
  | {
    'model_type': 'smollm3',
    'num_hidden_layers': 5,
    'no_rope_layers': [1, 1, 1, 0, 1],
    'tie_word_embeddings': True,
  },
  'smollm3_window': _SIZES
  | {
    'model_type': 'smollm3',
    'num_hidden_layers': 4,
    'no_rope_layer_interval': 2,
    'use_sliding_window': True,
    'sliding_window': 4,
  },
  'qwen2': _SIZES | {'model_type': 'qwen2', 'head_dim': 8},
  'qwen2_window': _SIZES
  | {
    'model_type': 'qwen2',
    'num_hidden_layers': 3,
    'use_sliding_window': True,
    'sliding_window': 5,
    'max_window_layers': 1,
  },
  'qwen3': _SIZES | {'model_type': 'qwen3', 'tie_word_embeddings': True},
  'qwen3_bias': _SIZES | {'model_type': 'qwen3', 'attention_bias': True},
  'qwen3_moe': _SIZES
  | {
    'model_type': 'qwen3_moe',
    'num_experts': 4,
    'num_experts_per_tok': 2,
    'moe_intermediate_size': 24,
    'norm_topk_prob': True,
    'decoder_sparse_step': 1,
    'mlp_only_layers': [],
  },
  'qwen3_moe_unscaled': _SIZES
  | {
    'model_type': 'qwen3_moe',
    'num_experts': 4,
    'num_experts_per_tok': 3,
    'moe_intermediate_size': 24,
    'norm_topk_prob': False,
  },
  'mixtral': _SIZES
  | {
    'model_type': 'mixtral',
    'num_local_experts': 4,
    'num_experts_per_tok': 2,
    'sliding_window': None,
  },
  'mistral': _SIZES | {'model_type': 'mistral', 'sliding_window': 5},
  'gemma2': _SIZES
  | _GEMMA
  | {
    'model_type': 'gemma2',
    'num_hidden_layers': 3,
    'attn_logit_softcapping': 2.0,
    'final_logit_softcapping': 3.0,
  },
  'gemma3': _SIZES
  | _GEMMA
  | {
    'model_type': 'gemma3_text',
    'num_hidden_layers': 4,
    'sliding_window_pattern': 3,
    'rope_local_base_freq': 20.0,
    'rope_scaling': {'rope_type': 'linear', 'factor': 8.0},
  },
  'gemma3_5': _SIZES
  | _GEMMA
  | {
    'model_type': 'gemma3_text',
    'num_hidden_layers': 3,
    'rope_theta': None,
    'layer_types': [
      'full_attention',
      'sliding_attention',
      'full_attention',
    ],
    'rope_parameters': {
      'full_attention': {'rope_type': 'default', 'rope_theta': 500.0},
      'sliding_attention': {'rope_type': 'default', 'rope_theta': 30.0},
    },
    'final_logit_softcapping': 4.0,
  },
  'olmo2': _SIZES | {'model_type': 'olmo2'},
  'phi3': _SIZES | {'model_type': 'phi3', 'sliding_window': 5},
  'phi3_partial': _SIZES
  | {'model_type': 'phi3', 'head_dim': 16, 'partial_rotary_factor': 0.75},
  't5_1_0': _T5 | {'feed_forward_proj': 'relu', 'tie_word_embeddings': True},
  'flan_t5': _T5,
  'ul2': _T5 | {'feed_forward_proj': 'gated-silu'},
  'byt5': _T5 | {'num_layers': 3, 'num_decoder_layers': 1},
  'mt5': _T5 | {'model_type': 'mt5'},
}
# What a config.json must have that version 5 of transformers writes as null.
CONFIGS = {
  name: {k: v for k, v in config.items() if (k, v) != ('rope_theta', None)}
  for name, config in CONFIGS.items()
}


def is_t5(family):
  return CONFIGS[family]['model_type'] in ('t5', 'mt5')


def shapes(config):
  """Returns the shape of every array of a checkpoint, by name."""
  if config['model_type'] in ('t5', 'mt5'):
    return _t5_shapes(config)
  kind, e = config['model_type'], config['hidden_size']
  gemma, moe = kind.startswith('gemma'), 'num_experts_per_tok' in config
  m = config.get('moe_intermediate_size', config['intermediate_size'])
  d = config['head_dim']
  h, g = (
    config[f'num_{name}_heads'] * d for name in ('attention', 'key_value')
  )
  found = {'model.embed_tokens.weight': (VOCAB, e), 'model.norm.weight': (e,)}
  if not config['tie_word_embeddings']:
    found['lm_head.weight'] = (VOCAB, e)
  layer = {'post_attention_layernorm.weight': (e,)}
  if kind != 'olmo2':
    layer['input_layernorm.weight'] = (e,)
  if gemma or kind == 'olmo2':
    layer['post_feedforward_layernorm.weight'] = (e,)
  if gemma:
    layer['pre_feedforward_layernorm.weight'] = (e,)
  layer['self_attn.o_proj.weight'] = (e, h)
  if kind == 'phi3':
    layer['self_attn.qkv_proj.weight'] = (h + 2 * g, e)
    layer['mlp.gate_up_proj.weight'] = (2 * m, e)
    layer['mlp.down_proj.weight'] = (e, m)
  else:
    for name, rows in (('q', h), ('k', g), ('v', g)):
      layer[f'self_attn.{name}_proj.weight'] = (rows, e)
      if kind == 'qwen2' or config.get('attention_bias'):
        layer[f'self_attn.{name}_proj.bias'] = (rows,)
    if config.get('attention_bias'):
      layer['self_attn.o_proj.bias'] = (e,)
  if kind in ('qwen3', 'qwen3_moe', 'gemma3_text'):
    layer['self_attn.q_norm.weight'] = layer['self_attn.k_norm.weight'] = (d,)
  if kind == 'olmo2':
    layer['self_attn.q_norm.weight'] = (h,)
    layer['self_attn.k_norm.weight'] = (g,)
  if moe:
    mlp = 'block_sparse_moe' if kind == 'mixtral' else 'mlp'
    gate, up, down = ('gate_proj', 'up_proj', 'down_proj')
    if kind == 'mixtral':
      gate, up, down = 'w1', 'w3', 'w2'
    experts = config.get('num_experts', config.get('num_local_experts'))
    layer[f'{mlp}.gate.weight'] = (experts, e)
    for x in range(experts):
      layer[f'{mlp}.experts.{x}.{gate}.weight'] = (m, e)
      layer[f'{mlp}.experts.{x}.{up}.weight'] = (m, e)
      layer[f'{mlp}.experts.{x}.{down}.weight'] = (e, m)
  elif kind != 'phi3':
    layer['mlp.gate_proj.weight'] = layer['mlp.up_proj.weight'] = (m, e)
    layer['mlp.down_proj.weight'] = (e, m)
  for i in range(config['num_hidden_layers']):
    found |= {f'model.layers.{i}.{name}': s for name, s in layer.items()}
  return found


def _t5_shapes(config):
  e, m = config['d_model'], config['d_ff']
  joined = config['num_heads'] * config['d_kv']
  found = {'shared.weight': (VOCAB, e)}
  if not config['tie_word_embeddings']:
    found['lm_head.weight'] = (VOCAB, e)
  layers = config['num_layers']
  for side, count in (
    ('encoder', layers),
    ('decoder', config.get('num_decoder_layers', layers)),
  ):
    found[f'{side}.final_layer_norm.weight'] = (e,)
    bias = f'{side}.block.0.layer.0.SelfAttention.relative_attention_bias'
    found[f'{bias}.weight'] = (32, config['num_heads'])
    names = ['SelfAttention', 'EncDecAttention', 'DenseReluDense']
    if side == 'encoder':
      names.remove('EncDecAttention')
    for i in range(count):
      for j, name in enumerate(names):
        prefix = f'{side}.block.{i}.layer.{j}'
        found[f'{prefix}.layer_norm.weight'] = (e,)
        if name != 'DenseReluDense':
          for letter in 'qkv':
            found[f'{prefix}.{name}.{letter}.weight'] = (joined, e)
          found[f'{prefix}.{name}.o.weight'] = (e, joined)
          continue
        gated = config['feed_forward_proj'].startswith('gated')
        for wi in ('wi_0', 'wi_1') if gated else ('wi',):
          found[f'{prefix}.{name}.{wi}.weight'] = (m, e)
        found[f'{prefix}.{name}.wo.weight'] = (e, m)
  return found


def array(name, shape, *, offset=False):
  """Returns the weights of a name; norms with an offset lie around 0."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  x = rng.standard_normal(shape).astype(np.float32)
  if 'norm' in name:
    return (0.0 if offset else 1.0) + np.float32(0.3) * x
  # Without a factor of 1 / sqrt(D), T5 needs small queries.
  return np.float32(0.1 if name.endswith('.q.weight') else 0.25) * x


def write(family, path):
  """Writes config.json and model.safetensors of a family into a directory."""
  path.mkdir(parents=True, exist_ok=True)
  config = CONFIGS[family]
  offset = config['model_type'].startswith('gemma')
  safetensors.numpy.save_file(
    {
      name: array(name, shape, offset=offset)
      for name, shape in shapes(config).items()
    },
    path / 'model.safetensors',
  )
  (path / 'config.json').write_text(json.dumps(config))
  return path


def texts():
  """Returns prompts [N, P], their mask and completions [N, T]."""
  rng = np.random.default_rng(0)
  prompts = rng.integers(3, VOCAB, (len(LENGTHS), PROMPT))
  mask = np.arange(PROMPT) < np.array(LENGTHS)[:, None]
  return prompts, mask, rng.integers(3, VOCAB, (len(LENGTHS), NEW))
