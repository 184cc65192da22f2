"""The `convert` run, which writes a checkpoint in another format."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from ipo_md import models
from ipo_md.checkpoints import arrays
from ipo_md.checkpoints import atomic
from ipo_md.checkpoints import checksums
from ipo_md.checkpoints import formats
from ipo_md.checkpoints import hf
from ipo_md.checkpoints import locate
from ipo_md.checkpoints import orbax
from ipo_md.checkpoints import t5x


def convert(
  *,
  model: models.Model,
  initial_checkpoint_path: str,
  output_dir: str,
  output_format: locate.Format,
  step: int = 0,
) -> None:
  """Writes a checkpoint in another format.

  Args:
    model: Model of both checkpoints.
    initial_checkpoint_path: Path of a checkpoint in any format.
    output_dir: Directory to write, which must not exist. It appears whole or
      not at all.
    output_format: Format to write, see `formats`.
    step: Number of the checkpoint that is written.

  Raises:
    ValueError: `output_dir` exists, or the checkpoint is missing, damaged or of
      another model.
  """
  checkpoint, flat = formats.open_checkpoint(
    initial_checkpoint_path,
    model.abstract_params,
    model.config,
    'INITIAL_CHECKPOINT_PATH',
  )
  with atomic.new_directory(output_dir) as directory:
    write(directory, checkpoint, flat, model.config, output_format, step)


def write(
  directory: epath.Path,
  checkpoint: arrays.Checkpoint,
  flat: Mapping[str, Any],
  config: Any,
  output_format: locate.Format,
  step: int,
) -> None:
  """Writes parameters into a directory, in a given format.

  Args:
    directory: Directory that exists.
    checkpoint: Parameters to write, from `formats.open_checkpoint`.
    flat: Shape of every parameter, by path.
    config: Configuration of the model, `Model.config`.
    output_format: Format to write, see `formats`.
    step: Number of the checkpoint that is written.

  Raises:
    ValueError: The format is unknown.
  """
  if output_format == 't5x':
    t5x.write_native(directory, checkpoint, flat, step=step)
  elif output_format == 't5x_orbax':
    orbax.write_t5x(directory, checkpoint, flat, step=step)
  elif output_format == 'hf':
    hf.write(directory, checkpoint, flat, config)
  elif output_format == 'orbax':
    orbax.write(directory, checkpoint, flat, step=step)
    checksums.write(directory / 'checkpoints' / str(step))
  else:
    raise ValueError(
      f"OUTPUT_FORMAT {output_format!r} is none of 'orbax', 't5x', "
      "'t5x_orbax' and 'hf'."
    )
