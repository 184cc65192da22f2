"""Kernels that Phi-3 stores as one array, because they read the same input.

  self_attn.qkv_proj.weight   [(H + 2 G) D, E]   rows of q_proj, k_proj, v_proj
  mlp.gate_up_proj.weight     [2 M, E]           rows of gate_proj, up_proj

Here each of them is an array of its own under the name that Llama has.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import numpy as np

from ipo_md.checkpoints import arrays
from ipo_md.checkpoints import hf_families

_PARTS = {
  'qkv_proj': ('q_proj', 'k_proj', 'v_proj'),
  'gate_up_proj': ('gate_proj', 'up_proj'),
}

_WHOLE = {part: module for module, parts in _PARTS.items() for part in parts}

Shapes = Mapping[str, tuple[tuple[int, ...], Any]]  # name -> shape, dtype


def is_fused(kind: str) -> bool:
  """Says whether the models of a model_type store such arrays."""
  return kind in hf_families.FAMILIES and hf_families.FAMILIES[kind].fused


def split(
  what: str, kind: str, config: Any, stored: Mapping[str, arrays.Stored]
) -> Mapping[str, arrays.Stored]:
  """Returns the arrays of a checkpoint with every kernel on its own.

  Args:
    what: Name of the checkpoint in error messages.
    kind: model_type of the config.json.
    config: Configuration of the network, `Model.config`.
    stored: Arrays of the checkpoint, by name.

  Raises:
    ValueError: An array has another number of rows than its kernels.
  """
  if not is_fused(kind):
    return stored
  rows = _part_rows(config)
  found = {}
  for name, array in stored.items():
    module = _module(name)
    if module not in _PARTS:
      found[name] = array
      continue
    if array.shape[:1] != (sum(rows[module]),):
      raise ValueError(
        f'{what}: {name} has the shape {array.shape}, but '
        f'{", ".join(_PARTS[module])} have {sum(rows[module])} rows in the '
        'model.'
      )
    start = 0
    for part, count in zip(_PARTS[module], rows[module], strict=True):
      found[name.replace(module, part)] = _rows(array, start, start + count)
      start += count
  return found


def joined(
  kind: str, shapes: Shapes, read: Callable[[str], np.ndarray]
) -> tuple[Shapes, Callable[[str], np.ndarray]]:
  """Returns the shapes and the values of arrays as a family stores them.

  Args:
    kind: model_type of the config.json.
    shapes: Shapes and types of the arrays, with every kernel on its own.
    read: Function from one of their names to the array.
  """
  if not is_fused(kind):
    return shapes, read
  parts: dict[str, list[str]] = {}
  for name in shapes:
    module = _module(name)
    parts.setdefault(
      name.replace(module, _WHOLE[module]) if module in _WHOLE else name, []
    ).append(name)
  order = {part: i for names in _PARTS.values() for i, part in enumerate(names)}
  for names in parts.values():
    names.sort(key=lambda name: order.get(_module(name), 0))

  def shape(names: list[str]) -> tuple[tuple[int, ...], Any]:
    (_, *rest), dtype = shapes[names[0]]
    return (sum(shapes[name][0][0] for name in names), *rest), dtype

  def array(name: str) -> np.ndarray:
    if parts[name] == [name]:
      return read(name)
    return np.concatenate([read(part) for part in parts[name]])

  fused = {
    name: shapes[name] if names == [name] else shape(names)
    for name, names in parts.items()
  }
  return fused, array


def joined_adapters(
  kind: str, config: Any, adapters: Mapping[str, tuple[Any, Any]]
) -> tuple[dict[str, tuple[Any, Any]], dict[str, int]]:
  """Returns the adapters of the arrays that a family stores.

  With n of the kernels of one array adapted, at rank r:

    A = [A_1; ..; A_n]  [n r, in]   B = diag(B_1, .., B_n)  [out, n r]

  so that B A has the rows B_i A_i. The rows of other kernels are 0 in B.

  Args:
    kind: model_type of the config.json.
    config: Configuration of the network, `Model.config`.
    adapters: Module, such as model.layers.0.self_attn.q_proj, -> A [r, in] and
      B [out, r].

  Returns:
    The adapters by the module that is stored, and n for each of `_PARTS` that
    has adapters.
  """
  if not is_fused(kind):
    return dict(adapters), {}
  found, groups = {}, {}
  for module, pair in adapters.items():
    place, _, part = module.rpartition('.')
    if part in _WHOLE:
      groups.setdefault(f'{place}.{_WHOLE[part]}', {})[part] = pair
    else:
      found[module] = pair
  counts = {}
  for module, parts in groups.items():
    name = module.rpartition('.')[2]
    rank = next(iter(parts.values()))[0].shape[0]
    down, up = [], []
    for part, rows in zip(_PARTS[name], _part_rows(config)[name], strict=True):
      block = np.zeros((rows, len(parts) * rank), np.float32)
      if part in parts:
        a, b = parts[part]
        block[:, len(down) * rank : (len(down) + 1) * rank] = b
        down.append(a)
      up.append(block)
    found[module] = np.concatenate(down), np.concatenate(up)
    counts[name] = len(parts)
  return found, counts


def _part_rows(config: Any) -> dict[str, tuple[int, ...]]:
  keys = config.num_kv_heads * config.head_dim
  return {
    'qkv_proj': (config.num_heads * config.head_dim, keys, keys),
    'gate_up_proj': (config.mlp_dim, config.mlp_dim),
  }


def _module(name: str) -> str:
  return name.split('.')[-2]


def _rows(array: arrays.Stored, start: int, stop: int) -> arrays.Stored:
  return arrays.Stored(
    (stop - start, *array.shape[1:]),
    array.dtype,
    lambda: array.read()[start:stop],
  )
