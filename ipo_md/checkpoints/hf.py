"""Hugging Face's checkpoints: directories of config.json and safetensors.

Every 2-D kernel is stored as [out, in], and T5's relative positions as
[buckets, heads].
"""

from collections.abc import Collection
from collections.abc import Mapping
import json
from typing import Any

from etils import epath
import numpy as np

from ipo_md import models
from ipo_md.checkpoints import arrays
from ipo_md.checkpoints import hf_config
from ipo_md.checkpoints import hf_fused
from ipo_md.checkpoints import hf_source
from ipo_md.checkpoints import safetensors_io

_PROJECTIONS = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}
_DECODER_MLP = {'wi_0': 'gate_proj', 'wi_1': 'up_proj', 'wo': 'down_proj'}
_MIXTRAL_MLP = {'wi_0': 'w1', 'wi_1': 'w3', 'wo': 'w2'}

# Copies of the embedding, buffers, and a table of T5 1.0 that is never used.
_IGNORED = (
  'encoder.embed_tokens.weight',
  'decoder.embed_tokens.weight',
  'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight',
  'rotary_emb.inv_freq',
)


def _t5_names() -> dict[str, str]:
  """Returns T5's module of each parameter path, with {0} for the layer."""
  names = {
    'token_embedder/embedding': 'shared',
    'decoder/logits_dense/kernel': 'lm_head',
    'decoder/reward_head/kernel': 'reward_head',
  }
  # The sublayers of a block in order, each with the name of its module there.
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


def _decoder_names(config: Any, kind: str) -> dict[str, str]:
  """Returns the decoder's module of each parameter path.

  {0} stands for the layer and {1} for the expert.

  Args:
    config: Configuration of the network, `Model.config`.
    kind: model_type of the config.json.
  """
  layer = 'model.layers.{0}'
  names = {
    'token_embedder/embedding': 'model.embed_tokens',
    'decoder/decoder_norm/scale': 'model.norm',
    'decoder/logits_dense/kernel': 'lm_head',
    'decoder/reward_head/kernel': 'score',
  }
  inner = {
    'pre_self_attention_layer_norm/scale': 'input_layernorm',
    'post_self_attention_layer_norm/scale': 'post_attention_layernorm',
    'pre_mlp_layer_norm/scale': 'pre_feedforward_layernorm',
    'post_mlp_layer_norm/scale': 'post_feedforward_layernorm',
    'self_attention/query_norm/scale': 'self_attn.q_norm',
    'self_attention/key_norm/scale': 'self_attn.k_norm',
  }
  if config.norms == 'before':  # the name says what it comes after
    inner['pre_mlp_layer_norm/scale'] = 'post_attention_layernorm'
  for ours, theirs in _PROJECTIONS.items():
    for part in ('kernel', 'bias'):
      inner[f'self_attention/{ours}/{part}'] = f'self_attn.{theirs}_proj'
  for ours, theirs in _DECODER_MLP.items():
    inner[f'mlp/{ours}/kernel'] = f'mlp.{theirs}'
  mixtral = kind == 'mixtral'
  mlp = 'block_sparse_moe' if mixtral else 'mlp'
  inner['mlp/router/kernel'] = f'{mlp}.gate'
  for ours, theirs in (_MIXTRAL_MLP if mixtral else _DECODER_MLP).items():
    inner[f'mlp/experts/{ours}/kernel'] = f'{mlp}.experts.{{1}}.{theirs}'
  return names | {
    f'decoder/layers/{path}': f'{layer}.{name}' for path, name in inner.items()
  }


def layout(
  config: Any,
  abstract: Mapping[str, Any],
  kind: str,
  *,
  shared_head: bool = False,
) -> arrays.Layout:
  """Returns Hugging Face's layout of a network's parameters.

  Args:
    config: Configuration of the network, `Model.config`.
    abstract: Shape of every parameter, by path.
    kind: model_type of the config.json.
    shared_head: Whether `logits_dense` is read from the embedding.
  """
  names = (
    _t5_names()
    if isinstance(config, models.T5Config)
    else _decoder_names(config, kind)
  )
  pieces = {}
  for path, leaf in abstract.items():
    name = f'{names[path]}.{"bias" if path.endswith("/bias") else "weight"}'
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
  """Says whether a T5's head is its embedding, with scaled states or without.

  Args:
    config: Contents of config.json.
    stored: Names of the checkpoint's arrays.
  """
  return (
    config['model_type'] in hf_config.T5_KINDS
    and config.get('tie_word_embeddings', True)
    and 'lm_head.weight' not in stored
  )


def ignored(config: Any, name: str) -> bool:
  """Says whether a checkpoint may hold this array beside the parameters."""
  tied = config.logits_via_embedding and name == 'lm_head.weight'
  head = name in ('score.weight', 'reward_head.weight')
  return tied or head or name.endswith(_IGNORED)


def write(
  directory: epath.Path,
  checkpoint: arrays.Checkpoint,
  abstract: Mapping[str, Any],
  config: Any,
  source: hf_source.Source,
) -> None:
  """Writes a Hugging Face directory, with one array in memory at a time.

  Args:
    directory: Directory that exists.
    checkpoint: Parameters to write.
    abstract: Shape and dtype of every parameter, by path.
    config: Configuration of the network, `Model.config`.
    source: What to write beside the weights.

  Raises:
    ValueError: A config.json cannot describe the network, or the source is of
      another model.
  """
  theirs = source.config_json(config)
  kind = theirs['model_type']
  pieces = {
    piece.name: (path, piece)
    for path, parts in layout(config, abstract, kind).items()
    for piece in parts
  }
  shapes = {
    name: (
      piece.stored_shape(abstract[path].shape),
      np.dtype(abstract[path].dtype),
    )
    for name, (path, piece) in pieces.items()
  }

  def array(name: str) -> np.ndarray:
    path, piece = pieces[name]
    _, dtype = shapes[name]
    return piece.oriented(checkpoint.read(path, piece.index).astype(dtype))

  source.copy_files(directory)
  safetensors_io.write(directory, *hf_fused.joined(kind, shapes, array))
  text = json.dumps(theirs, indent=2)
  (directory / 'config.json').write_text(text + '\n')
