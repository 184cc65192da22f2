"""What config.json says about each family of decoder-only networks.

A family is a `model_type`, which says how it differs from Llama: in fields of
the network that all its models have, in what config.json may leave out, and in
what it states beyond Llama's fields.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

from ipo_md import models
from ipo_md.checkpoints import hf_rope

ACTIVATIONS = {
  'silu': 'silu',
  'swish': 'silu',
  'gelu_pytorch_tanh': 'gelu',
  'gelu_new': 'gelu',
  'relu': 'relu',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """How the models of a `model_type` differ from Llama.

  Attributes:
    name: Name of its classes in transformers.
    fields: Fields of `Model.config` that all its models have.
    defaults: Values of fields that config.json may leave out.
    biases: Whether `attention_bias` is read, for queries, keys, values and
      outputs.
    window: Which layers have the sliding window: 'never', 'all' of them, or
      those of its 'types' (layer_types).
    optional_window: Whether `use_sliding_window` turns the window on.
    experts: Field with the number of experts. None: there are no experts.
    fused: Whether the kernels that read the same input are stored as one.
  """

  name: str
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  biases: bool = False
  window: str = 'never'
  optional_window: bool = False
  experts: str | None = None
  fused: bool = False

  def get(self, config: Mapping[str, Any], key: str) -> Any:
    """Returns a field of config.json, or its default, or None."""
    return config.get(key, self.defaults.get(key))


_GEMMA = {'norms': 'around', 'norm_offset': 1.0, 'scale_embeddings': True}
_GEMMA_DEFAULTS = {
  'tie_word_embeddings': True,
  'head_dim': 256,
  'hidden_activation': 'gelu_pytorch_tanh',
  'query_pre_attn_scalar': 256,
  'sliding_window': 4096,
  'rms_norm_eps': 1e-6,
}
FAMILIES = {
  'llama': Family(name='Llama', biases=True),
  'mistral': Family(
    name='Mistral', window='all', defaults={'sliding_window': 4096}
  ),
  'mixtral': Family(
    name='Mixtral',
    window='all',
    experts='num_local_experts',
    defaults={'rope_theta': 1e6},
  ),
  'qwen2': Family(
    name='Qwen2',
    window='types',
    optional_window=True,
    fields={'attention_bias': 'qkv'},
    defaults={'sliding_window': 4096, 'max_window_layers': 28},
  ),
  'qwen3': Family(
    name='Qwen3',
    biases=True,
    window='types',
    optional_window=True,
    fields={'query_key_norm': 'head'},
    defaults={
      'sliding_window': 4096,
      'max_window_layers': 28,
      'head_dim': 128,
    },
  ),
  'qwen3_moe': Family(
    name='Qwen3Moe',
    biases=True,
    window='all',
    optional_window=True,
    experts='num_experts',
    fields={'query_key_norm': 'head'},
    defaults={'sliding_window': 4096},
  ),
  'gemma2': Family(
    name='Gemma2',
    biases=True,
    window='types',
    fields=_GEMMA,
    defaults=_GEMMA_DEFAULTS
    | {'attn_logit_softcapping': 50.0, 'final_logit_softcapping': 30.0},
  ),
  'gemma3_text': Family(
    name='Gemma3',
    biases=True,
    window='types',
    fields=_GEMMA | {'query_key_norm': 'head'},
    defaults=_GEMMA_DEFAULTS | {'rope_theta': 1e6},
  ),
  'olmo2': Family(
    name='Olmo2',
    biases=True,
    fields={'norms': 'after', 'query_key_norm': 'joined'},
    defaults={'rms_norm_eps': 1e-5},
  ),
  'smollm3': Family(
    name='SmolLM3',
    biases=True,
    window='types',
    optional_window=True,
    defaults={'tie_word_embeddings': True, 'rope_theta': 2e6},
  ),
  'phi3': Family(name='Phi3', window='all', fused=True),
}

# Fields that change the network, each with the only values that are supported.
_ONLY = {
  'mlp_bias': (False, None),
  'use_bidirectional_attention': (False, None),
  'mlp_only_layers': ([], None),
  'decoder_sparse_step': (1,),
}


def read(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of `Model.config` that a config.json determines.

  Args:
    config: Contents of config.json, of a family in `FAMILIES`.

  Raises:
    ValueError: A field has a value that is not supported.
    KeyError: A field is missing.
  """
  kind = config['model_type']
  family = FAMILIES[kind]
  for key, values in _ONLY.items():
    if key in config and config[key] not in values:
      raise ValueError(
        f'{key} {config[key]!r} is not supported, only {values[0]!r}.'
      )
  heads, width = config['num_attention_heads'], config['hidden_size']
  head_dim = family.get(config, 'head_dim') or width // heads
  fields = {
    'vocab_size': config['vocab_size'],
    'emb_dim': width,
    'num_heads': heads,
    'num_kv_heads': config.get('num_key_value_heads') or heads,
    'head_dim': head_dim,
    'num_layers': config['num_hidden_layers'],
    'mlp_dim': config[_mlp_key(kind)],
    'mlp_activations': (_activation(config, family), 'linear'),
    'logits_via_embedding': bool(family.get(config, 'tie_word_embeddings')),
    'norm_epsilon': _epsilon(config, family),
    'num_experts': _experts(config, family),
    'attention_bias': 'none',
    'query_key_norm': 'none',
    'norms': 'before',
    'norm_offset': 0.0,
    'scale_embeddings': False,
  }
  if family.biases and config.get('attention_bias'):
    fields['attention_bias'] = 'qkvo'
  elif config.get('attention_bias') and 'attention_bias' not in family.fields:
    raise ValueError(f'attention_bias is not supported for {kind!r}.')
  if fields['num_experts'] > 1:
    fields['num_experts_per_token'] = config['num_experts_per_tok']
    fields['experts_sum_to_one'] = bool(
      config.get('norm_topk_prob', kind == 'mixtral')
    )
  fields |= hf_rope.read(
    config, head_dim, family.defaults.get('rope_theta', 1e4)
  )
  return {
    **fields,
    **family.fields,
    **_caps(config, family),
    **_layers(config),
  }


def _mlp_key(kind: str) -> str:
  return 'moe_intermediate_size' if kind == 'qwen3_moe' else 'intermediate_size'


def _activation(config: Mapping[str, Any], family: Family) -> str:
  key = 'hidden_act'
  if 'hidden_activation' in family.defaults:
    key = 'hidden_activation'
  name = family.get(config, key) or config['hidden_act']
  if name not in ACTIVATIONS:
    raise ValueError(
      f'{key} {name!r} is not supported, only {", ".join(ACTIVATIONS)}.'
    )
  return ACTIVATIONS[name]


def _epsilon(config: Mapping[str, Any], family: Family) -> float:
  found = family.get(config, 'rms_norm_eps') or config['rms_norm_eps']
  if not isinstance(found, float | int):
    raise ValueError(f'rms_norm_eps is {found!r}, not a number.')
  return found


def _experts(config: Mapping[str, Any], family: Family) -> int:
  if family.experts is None:
    return 1
  # Version 5 of transformers reads either name.
  return config.get('num_local_experts') or config[family.experts]


def _caps(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
  """Returns the limits and the scale of Gemma's scores."""
  kind = config['model_type']
  if 'query_pre_attn_scalar' not in family.defaults:
    return {}
  if kind == 'gemma3_text' and config.get('attn_logit_softcapping'):
    raise ValueError(
      f'attn_logit_softcapping {config["attn_logit_softcapping"]} is not '
      'supported for gemma3_text, only null.'
    )
  return {
    'query_scalar': float(family.get(config, 'query_pre_attn_scalar')),
    'attention_soft_cap': family.get(config, 'attn_logit_softcapping'),
    'logits_soft_cap': family.get(config, 'final_logit_softcapping'),
  }


def _layers(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns which layers have the sliding window and which rotate."""
  kind, count = config['model_type'], config['num_hidden_layers']
  family = FAMILIES[kind]
  rotates = [True] * count
  if kind == 'smollm3':
    interval = config.get('no_rope_layer_interval', 4)
    rotates = config.get('no_rope_layers') or [
      (i + 1) % interval != 0 for i in range(count)
    ]
    rotates = [bool(flag) for flag in rotates]
    if len(rotates) != count:
      raise ValueError(
        f'no_rope_layers has {len(rotates)} values, but num_hidden_layers is '
        f'{count}.'
      )
  window = family.get(config, 'sliding_window')
  if family.window == 'never' or (
    family.optional_window and not config.get('use_sliding_window')
  ):
    window = None
  local = _local(config, window, rotates)
  if window is None or not any(local):
    window, local = None, [True]
  fields = {
    'sliding_window': window,
    'local_layers': pattern(local),
    'rope_layers': pattern(rotates),
  }
  if kind == 'gemma3_text':
    fields['local_rope_theta'] = hf_rope.local_theta(config)
  return fields


def _local(
  config: Mapping[str, Any], window: int | None, rotates: Sequence[bool]
) -> list[bool]:
  """Returns for every layer whether it has the window, if there is one."""
  kind, count = config['model_type'], config['num_hidden_layers']
  types = config.get('layer_types')
  if types is not None:
    names = {'sliding_attention': True, 'full_attention': False}
    unknown = sorted(set(types) - names.keys())
    if unknown or len(types) != count:
      raise ValueError(
        f'layer_types has {unknown or len(types)}, but it needs one of '
        f'{list(names)} for each of {count} layers.'
      )
    local = [names[name] for name in types]
    if FAMILIES[kind].window == 'types':
      if any(local) and window is None:
        raise ValueError(
          'layer_types has sliding_attention, but no sliding_window is set'
          ' (sliding_window, use_sliding_window).'
        )
      return local
    if local != [window is not None] * count:
      raise ValueError(f'layer_types is not supported for {kind!r}.')
  if FAMILIES[kind].window != 'types':
    return [True] * count
  if kind == 'smollm3':
    return [not flag for flag in rotates]
  if kind in ('gemma2', 'gemma3_text'):
    period = 2
    if kind == 'gemma3_text':
      period = config.get('sliding_window_pattern', 6)
    return [(i + 1) % period != 0 for i in range(count)]
  first = FAMILIES[kind].get(config, 'max_window_layers')
  return [i >= first for i in range(count)]


def pattern(flags: Sequence[bool]) -> tuple[bool, ...]:
  """Returns the shortest pattern that gives these flags when repeated."""
  for n in range(1, len(flags)):
    if all(flag == flags[i % n] for i, flag in enumerate(flags)):
      return tuple(flags[:n])
  return tuple(flags)


def write(kind: str, cfg: models.DecoderOnlyConfig) -> dict[str, Any]:
  """Returns a config.json of one family, which may not fit the network.

  Args:
    kind: Its model_type.
    cfg: Configuration of the network.
  """
  family = FAMILIES[kind]
  activation = cfg.mlp_activations[0]
  config = {
    'architectures': [f'{family.name}ForCausalLM'],
    'model_type': kind,
    'vocab_size': cfg.vocab_size,
    'hidden_size': cfg.emb_dim,
    'head_dim': cfg.head_dim,
    'intermediate_size': cfg.mlp_dim,
    'num_attention_heads': cfg.num_heads,
    'num_key_value_heads': cfg.num_kv_heads,
    'num_hidden_layers': cfg.num_layers,
    'hidden_act': 'gelu_pytorch_tanh' if activation == 'gelu' else activation,
    'rms_norm_eps': cfg.norm_epsilon,
    'tie_word_embeddings': cfg.logits_via_embedding,
    'attention_bias': family.biases and cfg.attention_bias == 'qkvo',
  }
  config |= hf_rope.write(kind, cfg)
  if family.window != 'never':
    config['sliding_window'] = cfg.sliding_window
  if family.optional_window:
    config['use_sliding_window'] = cfg.sliding_window is not None
  at = lambda flags, i: flags[i % len(flags)]
  windowed = cfg.sliding_window is not None
  if family.window == 'types':
    config['layer_types'] = [
      'sliding_attention'
      if windowed and at(cfg.local_layers, i)
      else 'full_attention'
      for i in range(cfg.num_layers)
    ]
  if kind == 'smollm3':
    config['no_rope_layers'] = [
      int(at(cfg.rope_layers, i)) for i in range(cfg.num_layers)
    ]
  if 'hidden_activation' in family.defaults:
    config['hidden_activation'] = config['hidden_act']
    # Version 5 of transformers takes an integer alone.
    scalar = cfg.query_scalar or cfg.head_dim
    config['query_pre_attn_scalar'] = int(scalar) if scalar % 1 == 0 else scalar
    config['attn_logit_softcapping'] = cfg.attention_soft_cap
    config['final_logit_softcapping'] = cfg.logits_soft_cap
  if family.experts:
    config[family.experts] = cfg.num_experts
    config['num_experts_per_tok'] = cfg.num_experts_per_token
    config['router_aux_loss_coef'] = cfg.router_loss_weight
    config[_mlp_key(kind)] = cfg.mlp_dim
  if kind == 'qwen3_moe':
    config['norm_topk_prob'] = cfg.experts_sum_to_one
  return config
