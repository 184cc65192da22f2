"""GGUF files of llama.cpp, read as the Hugging Face checkpoint they came from.

The package `gguf` dequantises one array at a time. Llama's queries and keys are
stored in another order of rows, which is undone:

  Hugging Face  [H, 2, D / 2, E]     GGUF  [H, D / 2, 2, E]
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools
import importlib
import os
import re
from typing import Any

from etils import epath
import numpy as np

from ipo_md.checkpoints import arrays

SUFFIX = '.gguf'
_ARCHITECTURES = ('llama', 'qwen2', 'qwen3')
_TYPES = ('F32', 'F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_1', 'Q4_K', 'Q6_K')
_NAMES = {
  'token_embd': 'model.embed_tokens',
  'output_norm': 'model.norm',
  'output': 'lm_head',
  'attn_norm': 'input_layernorm',
  'ffn_norm': 'post_attention_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj',
  'attn_q_norm': 'self_attn.q_norm',
  'attn_k_norm': 'self_attn.k_norm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}
_LAYER = re.compile(r'blk\.(\d+)\.(.+)')


def find(path: epath.Path) -> epath.Path | None:
  """Returns the GGUF file that a path is or holds; None if there is none.

  Raises:
    ValueError: A folder has several of them.
  """
  if not path.is_dir():
    return path if path.suffix == SUFFIX and path.exists() else None
  found = sorted(p for p in path.iterdir() if p.suffix == SUFFIX)
  if len(found) > 1:
    raise ValueError(
      f'{path} has {len(found)} GGUF files: give the path of one of them, such '
      f'as {found[0]}.'
    )
  return found[0] if found else None


def config(path: epath.Path) -> dict[str, Any]:
  """Returns the contents that a config.json would have.

  Raises:
    ValueError: The file is damaged, or its model is not supported.
  """
  reader, _ = _open(path)
  values = metadata(path)
  kind = values.get('general.architecture')
  if kind not in _ARCHITECTURES:
    raise ValueError(
      f'{path}: the architecture {kind!r} is not read from GGUF, only '
      f'{", ".join(_ARCHITECTURES)}.'
    )

  def value(name: str, default: Any = None) -> Any:
    found = values.get(f'{kind}.{name}', default)
    if found is None:
      raise ValueError(f'{path} has no {kind}.{name}.')
    return found

  names = {tensor.name for tensor in reader.tensors}
  scaling = value('rope.scaling.type', 'none')
  for wrong, what in (
    (value('expert_count', 0), 'experts'),
    ('rope_freqs.weight' in names, 'scaled frequencies (rope_freqs.weight)'),
    (scaling not in ('none', 'linear'), f'rope scaling {scaling!r}'),
    (values.get('split.count', 0) > 1, 'files in several parts'),
  ):
    if wrong:
      raise ValueError(
        f'{path}: {what} are not read from GGUF. Use the checkpoint that it '
        'was made from.'
      )
  heads, width = value('attention.head_count'), value('embedding_length')
  found = {
    'model_type': kind,
    'vocab_size': _vocab_size(reader, path),
    'hidden_size': width,
    'intermediate_size': value('feed_forward_length'),
    'num_hidden_layers': value('block_count'),
    'num_attention_heads': heads,
    'num_key_value_heads': value('attention.head_count_kv', heads),
    'head_dim': value('attention.key_length', width // heads),
    'hidden_act': 'silu',
    'rms_norm_eps': value('attention.layer_norm_rms_epsilon'),
    'rope_theta': value('rope.freq_base', 10000.0),
    'max_position_embeddings': value('context_length'),
    'tie_word_embeddings': 'output.weight' not in names,
    'bos_token_id': values.get('tokenizer.ggml.bos_token_id'),
    'eos_token_id': values.get('tokenizer.ggml.eos_token_id'),
    'pad_token_id': values.get('tokenizer.ggml.padding_token_id'),
  }
  if scaling == 'linear':
    factor = value('rope.scaling.factor')
    found['rope_scaling'] = {'rope_type': 'linear', 'factor': factor}
  if kind == 'llama' and 'blk.0.attn_q.bias' in names:
    found['attention_bias'] = True
  return found


def metadata(path: epath.Path) -> dict[str, Any]:
  """Returns the fields of a file, such as tokenizer.ggml.tokens, by name.

  Raises:
    ValueError: The file is damaged.
  """
  reader, _ = _open(path)
  return {name: field.contents() for name, field in reader.fields.items()}


def _vocab_size(reader: Any, path: epath.Path) -> int:
  for tensor in reader.tensors:
    if tensor.name == 'token_embd.weight':
      return int(tensor.shape[1])
  raise ValueError(f'{path} has no array token_embd.weight.')


def read(
  path: epath.Path, config: Mapping[str, Any]
) -> dict[str, arrays.Stored]:
  """Opens the arrays under the names that Hugging Face gives them.

  Args:
    path: Path of the file.
    config: Contents of a config.json, from `config`.

  Raises:
    ValueError: An array has a type that is not read.
  """
  reader, dequantize = _open(path)
  heads = {
    'attn_q': config['num_attention_heads'],
    'attn_k': config['num_key_value_heads'],
  }
  stored = {}
  for tensor in reader.tensors:
    if tensor.tensor_type.name not in _TYPES:
      raise ValueError(
        f'{path}: {tensor.name} has the type {tensor.tensor_type.name}, which '
        f'is not read, only {", ".join(_TYPES)}.'
      )
    layer = _LAYER.fullmatch(tensor.name)
    name = layer.group(2) if layer else tensor.name
    module, _, part = name.rpartition('.')
    theirs = f'{_NAMES.get(module, module)}.{part}'
    permuted = config['model_type'] == 'llama' and module in heads
    stored[f'model.layers.{layer.group(1)}.{theirs}' if layer else theirs] = (
      arrays.Stored(
        tuple(int(size) for size in reversed(tensor.shape)),
        np.float32,
        functools.partial(
          _array, dequantize, tensor, heads[module] if permuted else None
        ),
      )
    )
  return stored


def _array(dequantize: Callable, tensor: Any, heads: int | None) -> np.ndarray:
  array = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
  array = array.reshape([int(size) for size in reversed(tensor.shape)])
  if heads is None:
    return array
  apart = array.reshape(heads, -1, 2, *array.shape[1:])
  return apart.swapaxes(1, 2).reshape(array.shape)


@functools.lru_cache(maxsize=4)
def _parsed(path: str, size: int, mtime_ns: int) -> Any:
  del size, mtime_ns  # a file that has changed is read again
  return importlib.import_module('gguf').GGUFReader(path)


def _open(path: epath.Path) -> tuple[Any, Callable]:
  """Returns the reader of a file, and the function that dequantises."""
  if '://' in str(path):
    raise ValueError(f'{path}: GGUF is read from local files alone. Copy it.')
  try:
    importlib.import_module('gguf')
    quants = importlib.import_module('gguf.quants')
  except ImportError as error:
    raise ValueError(
      f"{path} needs the package gguf: pip install 'ipo_md[gguf]'."
    ) from error
  try:
    stat = os.stat(path)
    reader = _parsed(str(path), stat.st_size, stat.st_mtime_ns)
    return reader, quants.dequantize
  except (ValueError, IndexError, KeyError, OSError) as error:
    raise ValueError(f'{path} is damaged: {error}') from error
