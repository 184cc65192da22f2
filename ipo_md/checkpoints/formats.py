"""Opens checkpoints of any of five formats.

  'orbax'      a MODEL_DIR, or its checkpoints/N
  't5x'        T5X's native checkpoint_N
  't5x_orbax'  T5X's Orbax checkpoint_N
  'hf'         a Hugging Face directory with config.json and safetensors
  'gguf'       a GGUF file, or a folder with one, read and not written

A checkpoint of another model is a single error, raised before any array is
read.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import json
from typing import Any

from etils import epath
from flax import traverse_util
import jax
import numpy as np

from ipo_md.checkpoints import arrays
from ipo_md.checkpoints import gguf_file
from ipo_md.checkpoints import gin_advice
from ipo_md.checkpoints import hf
from ipo_md.checkpoints import hf_config
from ipo_md.checkpoints import hf_fused
from ipo_md.checkpoints import hf_tied
from ipo_md.checkpoints import locate
from ipo_md.checkpoints import safetensors_io
from ipo_md.checkpoints import t5x
from ipo_md.core import types


def read_params(
  path: str,
  abstract: types.Params,
  config: Any,
  *,
  name: str,
  fresh: Sequence[str] = (),
) -> types.Params:
  """Reads parameters onto the devices of their shardings, array by array.

  Args:
    path: Path of a checkpoint in any format.
    abstract: Tree of `jax.ShapeDtypeStruct`, with shardings or without.
    config: Configuration of the model, `Model.config`.
    name: Name of the gin parameter with the path, for error messages.
    fresh: Names of modules that the checkpoint may lack, such as a reward
      head. Missing ones are left out of the result.

  Raises:
    ValueError: The checkpoint is missing, damaged or of another model.
  """
  checkpoint, flat = open_checkpoint(path, abstract, config, name, fresh)
  return traverse_util.unflatten_dict(checkpoint.load(flat), sep='/')


def open_checkpoint(
  path: str,
  abstract: types.Params,
  config: Any,
  name: str,
  fresh: Sequence[str] = (),
) -> tuple[arrays.Checkpoint, Mapping[str, Any]]:
  """Opens a checkpoint without reading its arrays.

  Only copies of an embedding are read, to compare them (`hf_tied.resolve`).
  Arguments and errors are those of `read_params`.

  Returns:
    The checkpoint, and the shape of every parameter that it has, by path.
  """
  kind, directory = locate.detect(path, name)
  if kind == 'orbax':
    locate.check_whole(directory.parent, name)
  flat = traverse_util.flatten_dict(abstract, sep='/')
  what = f'{name} {directory}'
  fields, ignored = {}, lambda array: 'reward_head' in array
  if kind in ('hf', 'gguf'):
    file = directory / 'config.json' if kind == 'hf' else directory
    theirs, fields = hf_config.read(file)
    _check_config(f'{name} {file}', fields, config, ('logits_via_embedding',))
    stored, own_head = hf_tied.resolve(
      what,
      theirs,
      safetensors_io.read(directory)
      if kind == 'hf'
      else gguf_file.read(directory, theirs),
    )
    stored = hf_fused.split(what, theirs['model_type'], config, stored)
    if own_head:
      fields = hf_tied.with_own_head(what, theirs, fields, config)
    _check_config(f'{name} {file}', fields, config)
    shared = hf.has_shared_head(theirs, stored)
    layout = hf.layout(config, flat, theirs['model_type'], shared_head=shared)
    ignored = lambda array: hf.ignored(config, array)
  elif kind == 'orbax':
    layout = {parameter: [arrays.Piece(parameter)] for parameter in flat}
    stored = t5x.read_ocdbt(directory, 'params')
    lora = metadata(directory).get('lora')
    if lora and not layout.keys() & stored.keys():
      return _open_adapted(
        f'{name} {path}', stored, lora, abstract, config, fresh
      )
  else:
    layout = t5x.layout(flat)
    stored = (
      t5x.read_native(directory)
      if kind == 't5x'
      else t5x.read_ocdbt(directory, 'target')
    )
  lacking = {
    parameter
    for parameter, pieces in layout.items()
    if set(parameter.split('/')) & set(fresh) and pieces[0].name not in stored
  }
  flat = {p: leaf for p, leaf in flat.items() if p not in lacking}
  layout = {p: pieces for p, pieces in layout.items() if p not in lacking}
  arrays.check(
    what,
    stored,
    layout,
    flat,
    ignored=ignored,
    advice=_advice(fields or gin_advice.fields(stored), config, stored, layout),
  )
  return arrays.Checkpoint(stored, layout, what), flat


def _advice(
  fields: Mapping[str, Any],
  config: Any,
  stored: Mapping[str, arrays.Stored],
  layout: arrays.Layout,
) -> str:
  """Returns the last line of the error about arrays that differ."""
  advice = gin_advice.advice(fields, config)
  head = [p for p in layout if 'reward_head' in p.split('/')]
  if advice or all(layout[path][0].name in stored for path in head):
    return advice
  return (
    'It has no reward head. A language model is a judge as it is with '
    'gin/judges/likelihood.gin or gin/judges/comparator.gin, after the model '
    '(REWARD_HEAD = 0); for the others, gin/runs/judge.gin trains a judge.'
  )


def metadata(directory: epath.Path) -> dict[str, Any]:
  """Reads what a run saved in addition to the arrays of a checkpoint.

  Args:
    directory: Directory of the arrays, from `locate.detect`.

  Returns:
    'vocabulary', a name of the run's vocabulary; 'lora', see
    `manager.adapted`. Empty for other formats.

  Raises:
    ValueError: The metadata is damaged.
  """
  path = directory.parent / '_CHECKPOINT_METADATA'
  if not path.exists():
    return {}
  try:
    return json.loads(path.read_text()).get('custom_metadata') or {}
  except (ValueError, AttributeError) as error:
    raise ValueError(
      f'{path.parent} is damaged: {path.name} ({error})'
    ) from error


def _open_adapted(
  what: str,
  stored: Mapping[str, arrays.Stored],
  lora: Mapping[str, Any],
  abstract: types.Params,
  config: Any,
  fresh: Sequence[str],
) -> tuple[arrays.Checkpoint, Mapping[str, Any]]:
  """Opens the adapters of a run with LoRA, merged with their reference."""
  try:
    reference, flat = open_checkpoint(
      lora['reference'],
      abstract,
      config,
      f'{what} holds LoRA adapters, and their reference',
      fresh,
    )
  except ValueError as error:
    error.add_note(
      'If the reference has moved, gin/runs/export_lora.gin writes the whole '
      'policy. Its REFERENCE_CHECKPOINT_PATH is the new place.'
    )
    raise
  shapes = {}
  for path in {name.rpartition('/')[0] for name in stored} & flat.keys():
    *lead, rows, columns = flat[path].shape
    for letter, shape in (
      ('a', (*lead, rows, lora['rank'])),
      ('b', (*lead, lora['rank'], columns)),
    ):
      shapes[f'{path}/{letter}'] = jax.ShapeDtypeStruct(shape, np.float32)
  layout = {path: [arrays.Piece(path)] for path in shapes}
  arrays.check(what, stored, layout, shapes)
  adapters = arrays.Checkpoint(stored, layout, what)
  return arrays.merged(reference, adapters, flat, lora['scale']), flat


def _check_config(
  what: str,
  fields: Mapping[str, Any],
  config: Any,
  later: Sequence[str] = (),
) -> None:
  """Raises a ValueError if fields differ, but not for those checked `later`."""
  ours = {key: getattr(config, key, None) for key in fields}
  differing = [
    f'{key}: {value} in the checkpoint, {ours[key]} in the model'
    for key, value in fields.items()
    if key not in later and not gin_advice.same(ours[key], value)
  ]
  if differing:
    advice = gin_advice.advice(fields, config)
    raise ValueError(
      f'{what} is of another model:\n  '
      + '\n  '.join([*differing[:8], advice]).rstrip()
    )
