"""Hugging Face's names and config.json for our networks.

The checkpoint is a directory with config.json and safetensors. Every 2-D kernel
is stored as [out, in]; T5's relative positions as [buckets, heads].
"""

from collections.abc import Collection
from collections.abc import Mapping
from typing import Any

from ipo_md import models
from ipo_md.checkpoints import arrays

_PROJECTIONS = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}
_DECODER_MLP = {'wi_0': 'gate_proj', 'wi_1': 'up_proj', 'wo': 'down_proj'}
_EXPERT_MLP = {'wi_0': 'w1', 'wi_1': 'w3', 'wo': 'w2'}

# Copies of the embedding, buffers, and a table that T5 1.0 has and never uses.
_IGNORED = (
  'encoder.embed_tokens.weight',
  'decoder.embed_tokens.weight',
  'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight',
  'rotary_emb.inv_freq',
)


def _t5_names() -> dict[str, str]:
  """Parameter path -> their name; {0} is the layer."""
  names = {
    'token_embedder/embedding': 'shared',
    'decoder/logits_dense/kernel': 'lm_head',
    'decoder/reward_head/kernel': 'reward_head',
  }
  # Sub-layers of a block in order: the norm's name here, the module's there.
  blocks = {
    'encoder': {'attention': 'SelfAttention', 'mlp': 'DenseReluDense'},
    'decoder': {
      'self_attention': 'SelfAttention',
      'encoder_decoder_attention': 'EncDecAttention',
      'mlp': 'DenseReluDense',
    },
  }
  norms = {'encoder_decoder_attention': 'cross_attention'}
  for side, sublayers in blocks.items():
    bias = f'{side}.block.0.layer.0.SelfAttention.relative_attention_bias'
    names[f'{side}/relpos_bias/rel_embedding'] = bias
    names[f'{side}/{side}_norm/scale'] = f'{side}.final_layer_norm'
    for i, (ours, theirs) in enumerate(sublayers.items()):
      prefix = f'{side}.block.{{0}}.layer.{i}'
      norm = f'pre_{norms.get(ours, ours)}_layer_norm'
      names[f'{side}/layers/{norm}/scale'] = f'{prefix}.layer_norm'
      kernels = (
        {k: k for k in ('wi', 'wi_0', 'wi_1', 'wo')}
        if ours == 'mlp'
        else _PROJECTIONS
      )
      for kernel, name in kernels.items():
        path = f'{side}/layers/{ours}/{kernel}/kernel'
        names[path] = f'{prefix}.{theirs}.{name}'
  return names


def _decoder_names() -> dict[str, str]:
  """Parameter path -> their name; {0} is the layer, {1} the expert."""
  layer = 'model.layers.{0}'
  names = {
    'token_embedder/embedding': 'model.embed_tokens',
    'decoder/decoder_norm/scale': 'model.norm',
    'decoder/logits_dense/kernel': 'lm_head',
    'decoder/reward_head/kernel': 'score',
    'pre_self_attention_layer_norm/scale': f'{layer}.input_layernorm',
    'pre_mlp_layer_norm/scale': f'{layer}.post_attention_layernorm',
    'mlp/router/kernel': f'{layer}.block_sparse_moe.gate',
  }
  for ours, theirs in _PROJECTIONS.items():
    names[f'self_attention/{ours}/kernel'] = f'{layer}.self_attn.{theirs}_proj'
  for ours, theirs in _DECODER_MLP.items():
    names[f'mlp/{ours}/kernel'] = f'{layer}.mlp.{theirs}'
  for ours, theirs in _EXPERT_MLP.items():
    names[f'mlp/experts/{ours}/kernel'] = (
      f'{layer}.block_sparse_moe.experts.{{1}}.{theirs}'
    )
  return {
    path
    if path.startswith(('token', 'decoder'))
    else f'decoder/layers/{path}': n
    for path, n in names.items()
  }


def layout(
  config: Any, abstract: Mapping[str, Any], *, shared_head: bool = False
) -> arrays.Layout:
  """Where the parameters of a network with this config are.

  Args:
    config: `Model.config`.
    abstract: path -> shaped parameter.
    shared_head: whether `logits_dense` is to be a copy of the embedding.
  """
  names = (
    _t5_names() if isinstance(config, models.T5Config) else _decoder_names()
  )
  pieces = {}
  for path, leaf in abstract.items():
    name = f'{names[path]}.weight'
    transposed = path.endswith(('/kernel', '/rel_embedding'))
    indices = [()]
    if '/layers/' in path:
      indices = [(i,) for i in range(leaf.shape[0])]
    if '/experts/' in path:
      indices = [(*i, e) for i in indices for e in range(leaf.shape[1])]
    pieces[path] = [
      arrays.Piece(name.format(*index), index, transposed) for index in indices
    ]
  head, embedding = 'decoder/logits_dense/kernel', 'token_embedder/embedding'
  if shared_head and head in pieces:
    pieces[head] = [arrays.Piece(pieces[embedding][0].name, transposed=True)]
  return pieces


def has_shared_head(config: Mapping[str, Any], stored: Collection[str]) -> bool:
  """Whether a T5's head is its embedding, be the states scaled or not."""
  return (
    config['model_type'] in ('t5', 'mt5')
    and config.get('tie_word_embeddings', True)
    and 'lm_head.weight' not in stored
  )


def ignored(config: Any, name: str) -> bool:
  """Whether a checkpoint may hold this array besides the parameters."""
  tied = config.logits_via_embedding and name == 'lm_head.weight'
  return tied or name.endswith(_IGNORED)


def model_fields(config: Mapping[str, Any]) -> dict[str, Any]:
  """What config.json says of our config's fields.

  Raises:
    ValueError: the model_type, or a variant of it, is not one of ours.
  """
  kind = config.get('model_type')
  if kind in ('t5', 'mt5'):
    return _t5_fields(config)
  if kind in ('llama', 'mistral', 'mixtral'):
    return _decoder_fields(config)
  raise ValueError(
    f"model_type {kind!r}; 't5', 'mt5', 'llama', 'mistral' and "
    "'mixtral' are read."
  )


def _t5_fields(config: Mapping[str, Any]) -> dict[str, Any]:
  # The head reads scaled states where it is the embedding. Version 5 of
  # transformers says so apart and has tie_word_embeddings True in any case.
  scaled = config.get(
    'scale_decoder_outputs',
    config['model_type'] == 't5' and config.get('tie_word_embeddings', True),
  )
  epsilon = config.get('layer_norm_epsilon', 1e-6)
  if epsilon != 1e-6:
    raise ValueError(f'layer_norm_epsilon {epsilon}; 1e-6 is read.')
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
      f'rope_type {kind!r} and attention_bias {config.get("attention_bias")}; '
      "'default' and 'llama3' without a bias are read."
    )
  if config['hidden_act'] != 'silu':
    raise ValueError(f"hidden_act {config['hidden_act']!r}; 'silu' is read.")
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
    # What transformers takes where the file does not say.
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
  """The config.json of a network, the inverse of `model_fields`."""
  if isinstance(config, models.T5Config):
    return _t5_json(config)
  return _decoder_json(config)


def _t5_json(cfg: models.T5Config) -> dict[str, Any]:
  projections = {('relu',): 'relu', ('gelu', 'linear'): 'gated-gelu'}
  if cfg.mlp_activations not in projections:
    raise ValueError(
      f'T5.mlp_activations {cfg.mlp_activations}: a config.json can say '
      f'{list(projections)}.'
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
