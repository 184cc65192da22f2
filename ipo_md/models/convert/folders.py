"""Which checkpoint of a MODEL_DIR is read, and whether it is what was saved."""

from etils import epath

from ipo_md import checksums
from ipo_md import telemetry


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
  metrics = telemetry.read_metrics(path)
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
