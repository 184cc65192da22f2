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
from typing import Any
from typing import Literal

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from ipo_md import checksums
from ipo_md import types
from ipo_md.models import model as models
from ipo_md.models.convert import arrays
from ipo_md.models.convert import fitting
from ipo_md.models.convert import hf
from ipo_md.models.convert import safetensors
from ipo_md.models.convert import t5x

Format = Literal['orbax', 't5x', 't5x_orbax', 'hf']
# Of Orbax, which holds a file in memory until it is this long.
_FILE_BYTES = 10**8
_PICKLES = ('.bin', '.pt', '.pth', '.pkl', '.pickle', '.ckpt')


def detect(path: str, name: str) -> tuple[Format, epath.Path]:
  """The format of a checkpoint and the folder of its arrays.

  Args:
    path: of the checkpoint or of the directory that holds numbered ones, the
      latest of which is taken.
    name: of the gin parameter that holds the path, for messages.
  """
  directory = epath.Path(path)
  if directory.suffix in _PICKLES:
    raise ValueError(
      f'{name} {path} is a pickle by its name: pickles can run code and are '
      'not read. Save the model as safetensors.'
    )
  if not directory.is_dir():
    raise ValueError(f'{name} {path} is not a directory.')
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
  flat = arrays.flatten(abstract)
  fields, ignored = {}, lambda array: 'reward_head' in array
  if kind == 'hf':
    theirs = json.loads((directory / 'config.json').read_text())
    fields = hf.model_fields(theirs)
    _check_config(f'{name} {directory}', fields, config)
    layout = hf.layout(config, flat)
    stored = safetensors.read(directory)
    ignored = lambda array: hf.ignored(config, array)
  elif kind == 'orbax':
    layout = {parameter: [arrays.Piece(parameter)] for parameter in flat}
    stored = t5x.read_ocdbt(directory, 'params')
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
  """
  output = epath.Path(output_dir)
  if output.exists():
    raise ValueError(f'OUTPUT_DIR {output_dir} exists already.')
  partial = output.parent / f'{output.name}.partial'
  if partial.exists():
    partial.rmtree()
  partial.mkdir(parents=True)
  try:
    yield partial
    partial.rename(output)
  except BaseException:
    partial.rmtree()
    raise


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
    _write_t5x_orbax(directory / f'checkpoint_{step}', checkpoint, flat, step)
  elif output_format == 'hf':
    _write_hf(directory, checkpoint, flat, config)
  elif output_format == 'orbax':
    tree = {'params': arrays.unflatten(checkpoint.load(flat))}
    with ocp.CheckpointManager(
      directory / 'checkpoints',
      item_handlers=_handler(tree, use_zarr3=True),
      options=ocp.CheckpointManagerOptions(enable_async_checkpointing=False),
    ) as manager:
      manager.save(
        step,
        args=ocp.args.PyTreeSave(tree, ocdbt_target_data_file_size=_FILE_BYTES),
        custom_metadata={},
      )
    checksums.write(directory / 'checkpoints' / str(step))
  else:
    raise ValueError(
      f'OUTPUT_FORMAT {output_format!r} is not among '
      "'orbax', 't5x', 't5x_orbax', 'hf'."
    )


def _handler(tree: Any, *, use_zarr3: bool) -> ocp.PyTreeCheckpointHandler:
  """Orbax's, with few arrays in flight: it copies those and encodes them.

  Its limit has to be above the largest array.
  """
  largest = max(x.nbytes for x in jax.tree.leaves(tree))
  return ocp.PyTreeCheckpointHandler(
    save_concurrent_gb=1 + largest // 10**9, use_zarr3=use_zarr3
  )


def _write_t5x_orbax(directory, checkpoint, flat, step) -> None:
  target = {
    piece.name: checkpoint.read(path, piece.index)
    for path, pieces in t5x.layout(flat).items()
    for piece in pieces
  }
  tree = {
    'target': arrays.unflatten(target),
    'state': {'step': np.int32(step), 'param_states': {}},
  }
  with ocp.Checkpointer(_handler(tree, use_zarr3=False)) as checkpointer:
    checkpointer.save(directory / 'state', args=ocp.args.PyTreeSave(tree))
  (directory / 'commit_success.txt').write_text('')


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

  safetensors.write(directory, shapes, array)
  text = json.dumps(hf.config_json(config), indent=2)
  (directory / 'config.json').write_text(text + '\n')
