"""Parameters out of any of four formats, and into any of them.

  'orbax'      a MODEL_DIR of ours, or its checkpoints/N
  't5x'        T5X's native checkpoint_N
  't5x_orbax'  T5X's Orbax checkpoint_N
  'hf'         a Hugging Face directory with config.json and safetensors

A checkpoint that does not fit the model is one error, before anything is read.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import json
import os
import signal
import time
from typing import Any
from typing import Literal

from etils import epath
import jax
import numpy as np

from ipo_md import checksums
from ipo_md import types
from ipo_md.models import model as models
from ipo_md.models.convert import arrays
from ipo_md.models.convert import fitting
from ipo_md.models.convert import folders
from ipo_md.models.convert import hf
from ipo_md.models.convert import orbax
from ipo_md.models.convert import safetensors
from ipo_md.models.convert import t5x

Format = Literal['orbax', 't5x', 't5x_orbax', 'hf']


def detect(path: str, name: str) -> tuple[Format, epath.Path]:
  """The format of a checkpoint and the folder of its arrays.

  Args:
    path: of the checkpoint or of the directory that holds numbered ones, the
      latest of which is taken; MODEL_DIR:best, the one of the highest win rate.
    name: of the gin parameter that holds the path, for messages.
  """
  path = folders.without_best(path, name)
  directory = epath.Path(path)
  if not directory.is_dir():
    raise ValueError(
      f'{name} {path} is not a directory.'
      + safetensors.about_pickles(directory)
    )
  if (directory / 'config.json').exists():
    return 'hf', directory
  for candidate in (directory, *_numbered(directory)):
    if t5x.is_native(candidate):
      return 't5x', candidate
    if t5x.is_orbax(candidate):
      return 't5x_orbax', candidate / 'state'
    if (candidate / 'default' / 'manifest.ocdbt').exists():
      return 'orbax', candidate / 'default'
  raise ValueError(
    f'{name} {path} is no checkpoint: there is no config.json (Hugging Face), '
    'no checkpoint or state (T5X), and no checkpoints/N (a MODEL_DIR).'
    + safetensors.about_pickles(directory)
  )


def _numbered(directory: epath.Path) -> list[epath.Path]:
  """Checkpoints in a MODEL_DIR or in one of T5X, the latest first."""
  found = []
  for folder in (directory / 'checkpoints', directory):
    if folder.exists():
      found += [
        (int(number), child)
        for child in folder.iterdir()
        if (number := child.name.removeprefix('checkpoint_')).isdigit()
      ]
  return [child for _, child in sorted(found, reverse=True)]


def load_params(
  path: str,
  abstract: types.Params,
  config: Any,
  *,
  name: str,
  fresh: Sequence[str] = (),
) -> types.Params:
  """Reads parameters straight onto the mesh, one array at a time.

  Args:
    path: of a checkpoint in any format.
    abstract: `jax.ShapeDtypeStruct`s, with shardings or without.
    config: `Model.config`.
    name: of the gin parameter that holds the path, for messages.
    fresh: names of modules that the checkpoint may lack, such as a reward
      head; they are left out of the result then.

  Raises:
    ValueError: there is no checkpoint, it is damaged or of another model.
  """
  checkpoint, flat = open_checkpoint(path, abstract, config, name, fresh)
  return arrays.unflatten(checkpoint.load(flat))


def open_checkpoint(
  path: str,
  abstract: types.Params,
  config: Any,
  name: str,
  fresh: Sequence[str] = (),
) -> tuple[arrays.Checkpoint, Mapping[str, Any]]:
  """The checkpoint, and path -> shape of the parameters that it has.

  Arguments and errors are those of `load_params`; no array is read yet.
  """
  kind, directory = detect(path, name)
  if kind == 'orbax':
    folders.check_whole(directory.parent, name)
  flat = arrays.flatten(abstract)
  fields, ignored = {}, lambda array: 'reward_head' in array
  if kind == 'hf':
    theirs, fields = _read_config(directory / 'config.json')
    _check_config(f'{name} {directory}', fields, config)
    stored = safetensors.read(directory)
    shared = hf.has_shared_head(theirs, stored)
    layout = hf.layout(config, flat, shared_head=shared)
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
    f'{name} {directory}',
    stored,
    layout,
    flat,
    ignored=ignored,
    advice=fitting.advice(fields or fitting.fields(stored)),
  )
  return arrays.Checkpoint(stored, layout), flat


def _read_config(path: epath.Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """config.json, and what it says of our config's fields."""
  try:
    theirs = json.loads(path.read_text())
    return theirs, hf.model_fields(theirs)
  except KeyError as error:
    raise ValueError(f'{path} has no field {error}.') from error
  except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
    raise ValueError(f'{path}: {error}') from error


def metadata(directory: epath.Path) -> dict[str, Any]:
  """What a run of ours saved besides a checkpoint's arrays."""
  path = directory.parent / '_CHECKPOINT_METADATA'
  if not path.exists():
    return {}
  try:
    return json.loads(path.read_text()).get('custom_metadata') or {}
  except (ValueError, AttributeError) as error:
    raise ValueError(
      f'{path.parent} is damaged: {path.name} ({error})'
    ) from error


def resolve(path: str, name: str) -> str:
  """The absolute path of the checkpoint that is read of a folder's."""
  kind, directory = detect(path, name)
  found = str(directory.parent if kind in ('orbax', 't5x_orbax') else directory)
  return found if '://' in found else os.path.abspath(found)


def _open_adapted(
  what: str,
  stored: Mapping[str, arrays.Stored],
  lora: Mapping[str, Any],
  abstract: types.Params,
  config: Any,
  fresh: Sequence[str],
) -> tuple[arrays.Checkpoint, Mapping[str, Any]]:
  """The whole policy of a run with LoRA, merged as its layers are read."""
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
      'policy: it takes the new place as REFERENCE_CHECKPOINT_PATH.'
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
  adapters = arrays.Checkpoint(stored, layout)
  return arrays.merged(reference, adapters, flat, lora['scale']), flat


def _check_config(what: str, fields: Mapping[str, Any], config: Any) -> None:
  ours = {key: getattr(config, key, None) for key in fields}
  differing = [
    f'{key}: {value} there, {ours[key]} in the model'
    for key, value in fields.items()
    if ours[key] != value
  ]
  if differing:
    raise ValueError(
      f'{what}/config.json is of another model:\n  '
      + '\n  '.join([*differing[:8], fitting.advice(fields)]).rstrip()
    )


def convert(
  *,
  model: models.Model,
  initial_checkpoint_path: str,
  output_dir: str,
  output_format: Format,
  step: int = 0,
) -> None:
  """The `convert` run: writes a checkpoint in another format.

  Args:
    model: of both.
    initial_checkpoint_path: of any format.
    output_dir: must not exist; is there whole or not at all.
    output_format: as above.
    step: number of the checkpoint that is written.
  """
  checkpoint, flat = open_checkpoint(
    initial_checkpoint_path,
    model.abstract_params,
    model.config,
    'INITIAL_CHECKPOINT_PATH',
  )
  with new_directory(output_dir) as directory:
    write(directory, checkpoint, flat, model.config, output_format, step)


@contextlib.contextmanager
def new_directory(output_dir: str) -> Iterator[epath.Path]:
  """A folder that becomes `output_dir` once the block has ended well.

  Raises:
    ValueError: it exists already.
    SystemExit: SIGTERM came meanwhile.
  """
  output = epath.Path(output_dir)
  if output.exists():
    raise ValueError(f'OUTPUT_DIR {output_dir} exists already.')
  partial = output.parent / f'{output.name}.partial'
  if partial.exists():
    partial.rmtree()
  partial.mkdir(parents=True)
  # JAX would swallow the signal.
  before = signal.signal(signal.SIGTERM, _stop)
  try:
    yield partial
    partial.rename(output)
  except BaseException:
    _remove(partial)
    raise
  finally:
    signal.signal(signal.SIGTERM, before)


def _remove(directory: epath.Path) -> None:
  """Removes a folder into which threads of a stopped save may still write."""
  end = time.monotonic() + 10
  while directory.exists():
    try:
      directory.rmtree()
    except OSError:
      if time.monotonic() > end:
        raise
      time.sleep(0.1)


def _stop(number: int, frame: Any) -> None:
  del frame
  raise SystemExit(128 + number)


def write(
  directory: epath.Path,
  checkpoint: arrays.Checkpoint,
  flat: Mapping[str, Any],
  config: Any,
  output_format: Format,
  step: int,
) -> None:
  """Writes a checkpoint in a format; arguments as from `open_checkpoint`."""
  if output_format == 't5x':
    t5x.write_native(directory, checkpoint, flat, step=step)
  elif output_format == 't5x_orbax':
    orbax.write_t5x(directory, checkpoint, flat, step=step)
  elif output_format == 'hf':
    _write_hf(directory, checkpoint, flat, config)
  elif output_format == 'orbax':
    orbax.write(directory, checkpoint, flat, step=step)
    checksums.write(directory / 'checkpoints' / str(step))
  else:
    raise ValueError(
      f'OUTPUT_FORMAT {output_format!r} is not among '
      "'orbax', 't5x', 't5x_orbax', 'hf'."
    )


def _write_hf(directory, checkpoint, flat, config) -> None:
  pieces = {
    piece.name: (path, piece)
    for path, parts in hf.layout(config, flat).items()
    for piece in parts
  }
  shapes = {}
  for name, (path, piece) in pieces.items():
    shape = tuple(flat[path].shape[len(piece.index) :])
    shape = shape[::-1] if piece.transposed else shape
    shapes[name] = (shape, np.dtype(flat[path].dtype))

  def array(name):
    path, piece = pieces[name]
    array = checkpoint.read(path, piece.index).astype(shapes[name][1])
    return array.T if piece.transposed else array

  text = json.dumps(hf.config_json(config), indent=2)
  safetensors.write(directory, shapes, array)
  (directory / 'config.json').write_text(text + '\n')
