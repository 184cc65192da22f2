"""Names the gin files whose model has the shape of a checkpoint."""

import ast
from collections.abc import Mapping
import dataclasses
import pathlib
import re
from typing import Any

from etils import epath
import numpy as np

from ipo_md import models
from ipo_md.checkpoints import arrays

_GIN = pathlib.Path(__file__).parents[2] / 'gin' / 'models'
_BINDING = re.compile(r'^\w+\.(T5|DecoderOnly)\.(\w+) = ([^%#@\n]+)', re.M)
_CONFIGS = {'T5': models.T5Config, 'DecoderOnly': models.DecoderOnlyConfig}
_STATED = re.compile(
  r'^(?:[\w.]+\.)?(T5Config|T5|DecoderOnly)\.(\w+) = ([^\n]+)', re.M
)
# Fields that do not change what the parameters mean.
_OPTIONS = ('dtype', 'scan', 'remat_policy', 'dropout_rate', 'reward_head')
_INCLUDE = re.compile(r"^include '.*/([^/'\n]+)'", re.M)


def network_of(file: epath.Path) -> dict[str, Any]:
  """Returns the fields of a network that a gin file states.

  It may be T5X's (network.T5Config.emb_dim = 512) or ours. Settings that do not
  change the network, such as its dtype, are left out.

  Args:
    file: config.gin or operative_config.gin of a run.

  Raises:
    ValueError: The file states no network, or not all of it.
  """
  text = re.sub(r'\\\n\s*', '', file.read_text())
  macros = dict(re.findall(r'^(\w+) = ([^@\n]+)', text, re.M))
  stated, families = {}, set()
  for family, key, value in _STATED.findall(text):
    value = macros.get(value.strip().removeprefix('%'), value).strip()
    try:
      stated[key] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      continue  # a function, or a macro that is no literal
    families.add(family.removesuffix('Config'))
  config = _CONFIGS[families.pop()] if len(families) == 1 else None
  if config is None:
    raise ValueError(f'{file} states no network (network.T5Config.emb_dim).')
  if config is models.T5Config:  # T5X's defaults
    stated = {
      'mlp_activations': ('relu',),
      'logits_via_embedding': False,
    } | stated
  known = {field.name: field for field in dataclasses.fields(config)}
  found = {k: stated[k] for k in stated if k in known and k not in _OPTIONS}
  if missing := [
    name
    for name, field in known.items()
    if name not in found
    and name not in _OPTIONS
    and field.default is dataclasses.MISSING
  ]:
    raise ValueError(
      f'{file} does not state {", ".join(missing)} of its network.'
    )
  return found


def fields(stored: Mapping[str, arrays.Stored]) -> dict[str, Any]:
  """Infers fields of `Model.config` from a checkpoint's shapes.

  Args:
    stored: Arrays of a T5X checkpoint or of a MODEL_DIR, by name.
  """
  found = {}
  for name, array in stored.items():
    if name.endswith('token_embedder/embedding'):
      found['vocab_size'], found['emb_dim'] = array.shape
    elif name.endswith('encoder/relpos_bias/rel_embedding'):
      found['num_heads'] = array.shape[0]
    elif name.endswith('/mlp/wo/kernel'):
      found['mlp_dim'] = array.shape[-2]
  return found


def same(one: Any, other: Any) -> bool:
  """Says whether two fields of configurations mean the same.

  Floats are compared as float32, because a field may have been stored in it:

    same(1e-5, 9.999999747378752e-06)  # True
  """
  if isinstance(one, list | tuple) and isinstance(other, list | tuple):
    return len(one) == len(other) and all(map(same, one, other))
  if float in (type(one), type(other)) and _number(one) and _number(other):
    first, second = np.array([one, other], np.float32)
    return bool(first == second)
  return one == other


def _number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def advice(found: Mapping[str, Any], config: Any) -> str:
  """Returns a sentence that names the gin files with these fields.

  Args:
    found: Fields of the checkpoint's model.
    config: Configuration of the run's model. If it has the same fields, no
      other file would help, and the sentence is empty.
  """
  if all(same(getattr(config, k, None), value) for k, value in found.items()):
    return ''
  matching = [
    file.name
    for file in sorted(_GIN.glob('*.gin'))
    if not file.name.startswith('judge_') and _agrees(_bindings(file), found)
  ]
  if not matching:
    return 'No file in gin/models matches it.'
  return 'It matches ' + ', '.join(f'gin/models/{f}' for f in matching) + '.'


def _agrees(ours: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
  return bool(ours) and all(
    key in ours and same(ours[key], value) for key, value in found.items()
  )


def _bindings(file: pathlib.Path) -> dict[str, Any]:
  """Returns the fields of the network that a file binds, and the defaults.

  Fields without a literal value are left out. A file that completes no network,
  such as one that others include, has none.
  """
  bindings, family = _literals(file)
  if family is None or 'emb_dim' not in bindings:
    return {}
  defaults = {
    field.name: field.default
    for field in dataclasses.fields(_CONFIGS[family])
    if field.default is not dataclasses.MISSING
  }
  return defaults | bindings


def _literals(file: pathlib.Path) -> tuple[dict[str, Any], str | None]:
  text = file.read_text()
  bindings, family = {}, None
  for included in _INCLUDE.findall(text):
    more, theirs = _literals(_GIN / included)
    bindings, family = bindings | more, theirs or family
  for network, key, value in _BINDING.findall(text):
    bindings[key] = ast.literal_eval(value.strip())
    family = network
  return bindings, family
