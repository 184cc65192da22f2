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
from ipo_md.checkpoints import hf_source
from ipo_md.checkpoints import locate
from ipo_md.checkpoints import orbax
from ipo_md.checkpoints import saved_folder
from ipo_md.checkpoints import t5x
from ipo_md.core import types


def convert(
  *,
  model: models.Model,
  initial_checkpoint_path: str,
  output_dir: str,
  output_format: locate.Format,
  step: int = 0,
  hf_source_path: str | None = None,
  context_length: int | None = None,
  bos_id: int | None = None,
  eos_id: types.EosId | None = None,
) -> None:
  """Writes a checkpoint in another format.

  Args:
    model: Model of both checkpoints.
    initial_checkpoint_path: Path of a checkpoint in any format.
    output_dir: Directory to write, which must not exist. It appears whole or
      not at all.
    output_format: Format to write, see `formats`.
    step: Number of the checkpoint that is written.
    hf_source_path: Hugging Face directory of the same model. Its special
      tokens, context length, tokenizer, template and generation_config are
      carried over, for other formats than 'hf' into the folder `model`. None
      takes `initial_checkpoint_path` if it is one.
    context_length: Longest sequence in tokens, for 'hf'. None takes that of the
      Hugging Face directory.
    bos_id: Id of the BOS token, for 'hf' without a Hugging Face directory.
    eos_id: Id of the EOS token, for 'hf' without a Hugging Face directory.

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
  source = hf_source.Source(
    directory=find_source(hf_source_path, initial_checkpoint_path),
    context_length=context_length,
    bos_id=bos_id,
    eos_id=eos_id,
  )
  with atomic.new_directory(output_dir) as directory:
    write(
      directory, checkpoint, flat, model.config, output_format, step, source
    )
    if output_format != 'hf':
      saved_folder.carry(directory, model.config, source)


def find_source(
  hf_source_path: str | None, checkpoint_path: str
) -> epath.Path | None:
  """Returns the Hugging Face directory whose files are carried over.

  Args:
    hf_source_path: Path that was given for it, or None.
    checkpoint_path: Path of the checkpoint that is converted.

  Raises:
    ValueError: `hf_source_path` is not a Hugging Face directory.
  """
  if hf_source_path is None:
    return hf_source.find(checkpoint_path, 'INITIAL_CHECKPOINT_PATH')
  directory = epath.Path(hf_source_path)
  if not (directory / 'config.json').exists():
    raise ValueError(
      f'HF_SOURCE_PATH {hf_source_path} is not a Hugging Face directory: it '
      'has no config.json.'
    )
  return directory


def write(
  directory: epath.Path,
  checkpoint: arrays.Checkpoint,
  flat: Mapping[str, Any],
  config: Any,
  output_format: locate.Format,
  step: int,
  source: hf_source.Source,
) -> None:
  """Writes parameters into a directory, in a given format.

  Args:
    directory: Directory that exists.
    checkpoint: Parameters to write, from `formats.open_checkpoint`.
    flat: Shape of every parameter, by path.
    config: Configuration of the model, `Model.config`.
    output_format: Format to write, see `formats`.
    step: Number of the checkpoint that is written.
    source: What the format 'hf' has beside the weights.

  Raises:
    ValueError: The format is unknown.
  """
  if output_format == 't5x':
    t5x.write_native(directory, checkpoint, flat, step=step)
  elif output_format == 't5x_orbax':
    orbax.write_t5x(directory, checkpoint, flat, step=step)
  elif output_format == 'hf':
    hf.write(directory, checkpoint, flat, config, source)
  elif output_format == 'orbax':
    orbax.write(directory, checkpoint, flat, step=step)
    checksums.write(directory / 'checkpoints' / str(step))
  else:
    raise ValueError(
      f"OUTPUT_FORMAT {output_format!r} is none of 'orbax', 't5x', "
      "'t5x_orbax' and 'hf'."
    )
