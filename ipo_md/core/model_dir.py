"""Which run a MODEL_DIR belongs to, and whether that run has finished."""

from collections.abc import Sequence
import difflib
import re

from etils import epath
import jax

# Bindings that a resumed run may change: they leave its trajectory as it is.
_MAY_CHANGE = (
  'MODEL_DIR',
  'TRAIN_STEPS',
  'MESH_SHAPE',
  'CACHE_DIR',
  'LOG_PERIOD',
  'EVAL_PERIOD',
  'CHECKPOINT_PERIOD',
  'KEEP_CHECKPOINTS',
  'KEEP_PERIOD',
  'KEEP_BEST',
  'HANG_SECONDS',
  'PROFILE_START',
  'PROFILE_STEPS',
  'NEITHER',
  'BASE_URL',
  'API_KEY_VARIABLE',
  'RATER_CACHE',
  'PRICES',
  'CONCURRENCY',
  'TIMEOUT',
  'ATTEMPTS',
)


def claim(
  model_dir: str, config: str, *, may_change: Sequence[str] = ()
) -> None:
  """Makes MODEL_DIR this run's, or checks that it already is.

  Args:
    model_dir: MODEL_DIR, created if it is not there.
    config: all bindings, `gin.config_str()`.
    may_change: bindings that do not count for this kind of run.

  Raises:
    ValueError: the directory cannot be written, holds another run, or holds
      files of something else.
  """
  directory = epath.Path(model_dir)
  path = directory / 'config.gin'
  if _has_saved(directory):
    if not path.exists():
      raise ValueError(
        f'MODEL_DIR {model_dir} holds results without their config.gin, so '
        'they may be of another run; choose another one.'
      )
    ours = bindings(config, may_change)
    theirs = bindings(path.read_text(), may_change)
    if ours != theirs:
      changes = [
        line
        for line in difflib.unified_diff(theirs, ours, lineterm='', n=0)
        if line[0] in '+-' and line[:3] not in ('+++', '---')
      ]
      raise ValueError(
        f'MODEL_DIR {model_dir} holds a run with other bindings; choose '
        'another one, or give the run its own (- there, + here):\n  '
        + '\n  '.join(changes[:12])
      )
    return
  try:
    directory.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
      path.write_text(config)
  except OSError as error:
    raise ValueError(
      f'MODEL_DIR {model_dir} cannot be written: {error}.'
    ) from error


def _has_saved(directory: epath.Path) -> bool:
  """Whether a run left something to lose; else its bindings are forgotten."""
  files = ('COMPLETED', 'results.json', 'completions.jsonl')
  if any((directory / name).exists() for name in files):
    return True
  folder = directory / 'checkpoints'
  return folder.exists() and any(d.name.isdigit() for d in folder.iterdir())


def bindings(config: str, may_change: Sequence[str] = ()) -> list[str]:
  """The bindings of a config, one a line, without those that may change."""
  config = re.sub(r'\\\n\s*', '', config)
  config = re.sub(r'\n\s+', ' ', config)
  lines = [re.sub(r'\s+', ' ', line).strip() for line in config.splitlines()]
  # A schedule may refer to TRAIN_STEPS as well: then it may not change.
  fixed = {'TRAIN_STEPS'} if config.count('%TRAIN_STEPS') > 1 else set()
  return [
    line
    for line in lines
    if line
    and not line.startswith('#')
    and line.split(' = ')[0] not in {*_MAY_CHANGE, *may_change} - fixed
  ]


def is_completed(model_dir: str, train_steps: int) -> bool:
  """Whether MODEL_DIR holds a run that reached TRAIN_STEPS."""
  path = epath.Path(model_dir) / 'COMPLETED'
  return path.exists() and int(path.read_text()) >= train_steps


def complete(model_dir: str, train_steps: int) -> None:
  """Marks the run as finished: nothing else does. Atomic."""
  if jax.process_index() == 0:
    path = epath.Path(model_dir) / 'COMPLETED.partial'
    path.write_text(f'{train_steps}\n')
    path.replace(path.with_suffix(''))


def reopen(model_dir: str) -> None:
  """Unmarks a finished run that goes on to more steps."""
  if jax.process_index() == 0:
    (epath.Path(model_dir) / 'COMPLETED').unlink(missing_ok=True)
