"""Finds the checkpoint that a path means, and its format."""

import os
from typing import Literal

from etils import epath

from ipo_md.checkpoints import checksums
from ipo_md.checkpoints import foreign
from ipo_md.checkpoints import gguf_file
from ipo_md.checkpoints import t5x
from ipo_md.core import metrics as metrics_lib
from ipo_md.core import paths

Format = Literal['orbax', 't5x', 't5x_orbax', 'hf', 'gguf']  # see `formats`


def detect(path: str, name: str) -> tuple[Format, epath.Path]:
  """Returns the format of a checkpoint and the directory of its arrays.

  That of GGUF is a file.

  Args:
    path: Path of a checkpoint, or of a directory of numbered ones, of which the
      latest is taken; or MODEL_DIR:best, for the one with the highest win rate.
    name: Name of the gin parameter with the path, for error messages.

  Raises:
    ValueError: There is no checkpoint.
  """
  if not isinstance(path, str) or not path.strip():
    raise ValueError(f'{name} is {path!r}: it has to be a path, in quotes.')
  path, best, _ = path.partition(':best')
  path = paths.absolute(path, name)
  if best:
    path = _best(path, name)
  directory = epath.Path(path)
  if (file := gguf_file.find(directory)) and file == directory:
    return 'gguf', file
  if not directory.is_dir():
    raise ValueError(
      f'{name} {path} is not a directory.' + foreign.cause(directory)
    )
  if (directory / 'config.json').exists():
    return 'hf', directory
  if file is not None:
    return 'gguf', file
  for candidate in (directory, *_numbered(directory)):
    if t5x.is_native(candidate):
      return 't5x', candidate
    if t5x.is_orbax(candidate):
      return 't5x_orbax', candidate / 'state'
    if (candidate / 'default' / 'manifest.ocdbt').exists():
      return 'orbax', candidate / 'default'
  raise ValueError(
    f'{name} {path} is no checkpoint: it has no config.json (Hugging Face), no '
    'checkpoint or state (T5X) and no checkpoints/N (a MODEL_DIR).'
    + foreign.cause(directory)
  )


def resolve(path: str, name: str) -> str:
  """Returns the absolute path of the checkpoint that a path means.

  Arguments and errors are those of `detect`.
  """
  kind, directory = detect(path, name)
  found = str(directory.parent if kind in ('orbax', 't5x_orbax') else directory)
  return found if '://' in found else os.path.abspath(found)


def check_whole(checkpoint: epath.Path, name: str) -> None:
  """Checks that no file of a run's checkpoint is damaged.

  No other checkpoint replaces a damaged one, since it would be another model.
  A checkpoint without checksums is accepted as it is.

  Args:
    checkpoint: MODEL_DIR/checkpoints/N.
    name: Name of the gin parameter with the path, for the error message.

  Raises:
    ValueError: A file is missing or has changed.
  """
  if not (checkpoint / checksums.FILE).exists():
    return
  if files := checksums.damaged_files(checkpoint):
    others = [
      step
      for step in checksums.numbered(checkpoint.parent)
      if str(step) != checkpoint.name
    ]
    raise ValueError(
      f'{name} {checkpoint} is damaged: {", ".join(files[:3])}'
      + (f' and {len(files) - 3} more files' if len(files) > 3 else '')
      + (f'. There are others, of the steps {others}.' if others else '.')
    )


def _best(path: str, name: str) -> str:
  """Returns the checkpoint of a MODEL_DIR with the highest win rate."""
  folder = epath.Path(path) / 'checkpoints'
  if not folder.exists():
    raise ValueError(
      f'{name} {path}:best: {path} is not a MODEL_DIR, it has no checkpoints.'
    )
  steps = checksums.numbered(folder)
  metrics = metrics_lib.read_metrics(path)
  rates = {
    step: metrics[step]['win_rate']
    for step in steps
    if 'win_rate' in metrics.get(step, {})
  }
  if not rates:
    raise ValueError(
      f'{name} {path}:best: no win rate was measured at the steps '
      f'{steps} of its checkpoints (EVAL_PERIOD).'
    )
  return str(folder / str(max(rates, key=lambda step: rates[step])))


def _numbered(directory: epath.Path) -> list[epath.Path]:
  """Returns the checkpoints in a MODEL_DIR of this project or of T5X.

  The latest comes first.
  """
  found = []
  for folder in (directory / 'checkpoints', directory):
    if folder.exists():
      found += [
        (int(number), child)
        for child in folder.iterdir()
        if (number := child.name.removeprefix('checkpoint_')).isdigit()
      ]
  return [child for _, child in sorted(found, reverse=True)]
