"""Writes a checkpoint in another format."""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import json
import signal
import time
from typing import Any

from etils import epath
import numpy as np

from ipo_md import models
from ipo_md.checkpoints import arrays
from ipo_md.checkpoints import checksums
from ipo_md.checkpoints import formats
from ipo_md.checkpoints import hf
from ipo_md.checkpoints import locate
from ipo_md.checkpoints import orbax
from ipo_md.checkpoints import safetensors_io
from ipo_md.checkpoints import t5x


def convert(
  *,
  model: models.Model,
  initial_checkpoint_path: str,
  output_dir: str,
  output_format: locate.Format,
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
  checkpoint, flat = formats.open_checkpoint(
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
  output_format: locate.Format,
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
  safetensors_io.write(directory, shapes, array)
  (directory / 'config.json').write_text(text + '\n')
