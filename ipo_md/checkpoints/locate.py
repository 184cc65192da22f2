"""Which checkpoint of a MODEL_DIR is read, and whether it is what was saved."""

import os
from typing import Literal

from etils import epath

from ipo_md.checkpoints import checksums
from ipo_md.checkpoints import safetensors_io
from ipo_md.checkpoints import t5x
from ipo_md.core import metrics as metrics_lib


def without_best(path: str, name: str) -> str:
  """A path; for MODEL_DIR:best, that of the checkpoint."""
  path, best, _ = path.partition(':best')
  return _best(path, name) if best else path


def _best(path: str, name: str) -> str:
  """The checkpoint of a MODEL_DIR whose measured win rate is highest."""
  folder = epath.Path(path) / 'checkpoints'
  if not folder.exists():
    raise ValueError(f'{name} {path}:best is not a MODEL_DIR: no {folder}.')
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
  return str(folder / str(max(rates, key=rates.get)))


def check_whole(checkpoint: epath.Path, name: str) -> None:
  """Another checkpoint would be another model, so none is taken in its place.

  What was copied without its checksums is taken as it is.
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
      + (f'. Others there are of the steps {others}.' if others else '.')
    )


Format = Literal['orbax', 't5x', 't5x_orbax', 'hf']


def detect(path: str, name: str) -> tuple[Format, epath.Path]:
  """The format of a checkpoint and the folder of its arrays.

  Args:
    path: of the checkpoint or of the directory that holds numbered ones, the
      latest of which is taken; MODEL_DIR:best, the one of the highest win rate.
    name: of the gin parameter that holds the path, for messages.
  """
  path = without_best(path, name)
  directory = epath.Path(path)
  if not directory.is_dir():
    raise ValueError(
      f'{name} {path} is not a directory.'
      + safetensors_io.about_pickles(directory)
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
    + safetensors_io.about_pickles(directory)
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


def resolve(path: str, name: str) -> str:
  """The absolute path of the checkpoint that is read of a folder's."""
  kind, directory = detect(path, name)
  found = str(directory.parent if kind in ('orbax', 't5x_orbax') else directory)
  return found if '://' in found else os.path.abspath(found)
