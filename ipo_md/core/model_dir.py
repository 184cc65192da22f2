"""Which run a MODEL_DIR belongs to, and whether that run has finished.

  MODEL_DIR/config.gin    the bindings of the run, which it has to keep
  MODEL_DIR/inputs.json   what the run reads by path (see `identity`)
  MODEL_DIR/OWNER.json    the process that works on it (see `ownership`)
  MODEL_DIR/COMPLETED     the run reached its end
  MODEL_DIR/earlier/N     metrics of runs that ended before they saved anything

A run may change some of its settings when it is resumed: those that leave its
results as they are (see `bindings`).
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import difflib
import functools

from etils import epath
import jax

from ipo_md.core import bindings as bindings_lib
from ipo_md.core import identity
from ipo_md.core import metrics
from ipo_md.core import ownership
from ipo_md.core import paths
from ipo_md.core import private_apis

_CONFIG = 'config.gin'
_OF_A_RUN = (
  _CONFIG,
  identity.FILE,
  'versions.json',
  'profile',
  'tensorboard',
  'wandb',
  'model',
  metrics.METRICS_FILE,
  metrics.PERFORMANCE_FILE,
)

absolute = paths.absolute
bindings = bindings_lib.kept
may_change = bindings_lib.may_change


def check(
  model_dir: str,
  config: str,
  *,
  inputs: identity.Inputs | None = None,
  accept_changed_inputs: bool = False,
) -> str:
  """Checks that MODEL_DIR is free or holds this run. Writes nothing.

  Args:
    model_dir: MODEL_DIR, which need not exist.
    config: All bindings, as `gin.config_str()` gives them.
    inputs: What the run reads by path, from `identity.of_run`.
    accept_changed_inputs: ACCEPT_CHANGED_INPUTS, whether results that were made
      from other inputs are accepted.

  Returns:
    The absolute path of MODEL_DIR.

  Raises:
    ValueError: The directory holds another run or one from other inputs, or
      belongs to a run that lives.
  """
  model_dir = paths.absolute(model_dir, 'MODEL_DIR')
  directory = epath.Path(model_dir)
  if not isinstance(accept_changed_inputs, bool):
    raise ValueError(
      f'ACCEPT_CHANGED_INPUTS = {accept_changed_inputs!r} is neither True nor '
      'False.'
    )

  def compare() -> None:
    ownership.check(model_dir)
    _compare(directory, config, inputs or {}, accept_changed_inputs)

  _in_first(compare)
  return model_dir


def claim(
  model_dir: str,
  config: str,
  *,
  inputs: identity.Inputs | None = None,
  accept_changed_inputs: bool = False,
) -> str:
  """Makes MODEL_DIR this run's: checks it, and records bindings and inputs.

  Metrics of another run that saved nothing are set aside, to MODEL_DIR/earlier.

  Arguments, result and errors are those of `check`; and a directory that cannot
  be written is an error.
  """
  model_dir = paths.absolute(model_dir, 'MODEL_DIR')
  _in_first(
    lambda: _claim(
      epath.Path(model_dir), config, inputs or {}, accept_changed_inputs
    )
  )
  return model_dir


@contextlib.contextmanager
def claimed(
  model_dir: str,
  config: str,
  *,
  inputs: identity.Inputs | None = None,
  accept_changed_inputs: bool = False,
) -> Iterator[str]:
  """Claims MODEL_DIR and owns it for as long as the block runs.

    with model_dir.claimed('/runs/ipo', gin.config_str()) as folder:
      ...

  All processes of a run share the ownership of process 0.

  Arguments, result and errors are those of `claim`; and a run that owns the
  directory and lives is an error (see `ownership`).
  """
  model_dir = paths.absolute(model_dir, 'MODEL_DIR')
  directory = epath.Path(model_dir)
  with contextlib.ExitStack() as stack:

    def own_and_claim() -> None:
      _make(directory)
      stack.enter_context(ownership.owned(model_dir))
      _claim(directory, config, inputs or {}, accept_changed_inputs)

    _in_first(own_and_claim)
    yield model_dir


def _claim(
  directory: epath.Path, config: str, inputs: identity.Inputs, accept: bool
) -> None:
  _compare(directory, config, inputs, accept)
  _make(directory)
  try:
    _record(directory, config, inputs)
  except OSError as error:
    raise ValueError(_cannot_write(directory, error)) from error


def _make(directory: epath.Path) -> None:
  try:
    directory.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(_cannot_write(directory, error)) from error


def _compare(
  directory: epath.Path, config: str, inputs: identity.Inputs, accept: bool
) -> None:
  """Raises a ValueError if results of other bindings or inputs are there."""
  if _has_saved(directory):
    _compare_bindings(directory, config)
    _compare_inputs(directory, inputs, accept)


def _cannot_write(directory: epath.Path, error: OSError) -> str:
  return f'MODEL_DIR {directory} cannot be written: {error}.'


def _in_first(action: Callable[[], None]) -> None:
  """Runs an action in process 0 alone; its ValueError is raised in all."""
  error = ''
  if private_apis.process_id() == 0:
    try:
      action()
    except ValueError as raised:
      if private_apis.process_count() == 1:
        raise
      error = str(raised)
  if error := private_apis.exchange(error)[0]:
    raise ValueError(error)


def _compare_bindings(directory: epath.Path, config: str) -> None:
  path = directory / _CONFIG
  if not path.exists():
    raise ValueError(
      f'MODEL_DIR {directory} holds results without their config.gin, so '
      'they may belong to another run; choose another one.'
    )
  ours, theirs = bindings(config), bindings(path.read_text())
  if ours != theirs:
    changes = [
      line
      for line in difflib.unified_diff(theirs, ours, lineterm='', n=0)
      if line[0] in '+-' and line[:3] not in ('+++', '---')
    ]
    raise ValueError(
      f'MODEL_DIR {directory} holds a run with other bindings; choose '
      'another one, or give the run its own (- there, + here):\n  '
      + '\n  '.join(changes[:12])
    )


def _compare_inputs(
  directory: epath.Path, inputs: identity.Inputs, accept: bool
) -> None:
  changes = identity.changes(identity.read(directory), inputs)
  if not changes:
    return
  if accept:
    _say_accepted(str(directory), tuple(changes))
    return
  raise ValueError(
    f'MODEL_DIR {directory} holds results from other inputs. Choose another '
    'MODEL_DIR, restore the inputs, or accept the change with '
    'ACCEPT_CHANGED_INPUTS=True:\n  ' + '\n  '.join(changes[:12])
  )


@functools.cache  # A run that checks a folder claims it afterwards.
def _say_accepted(directory: str, changes: tuple[str, ...]) -> None:
  print(
    f'MODEL_DIR {directory}: the results that it holds are from other inputs '
    '(ACCEPT_CHANGED_INPUTS):\n  ' + '\n  '.join(changes),
    flush=True,
  )


def _record(
  directory: epath.Path, config: str, inputs: identity.Inputs
) -> None:
  """Writes config.gin of a new run and the inputs; sets old metrics aside."""
  path = directory / _CONFIG
  if _has_saved(directory):
    # What was removed since stays known.
    inputs = {**identity.read(directory), **inputs}
  else:
    if any((directory / name).exists() for name in _OF_A_RUN[2:]) and not (
      path.exists() and _same(path.read_text(), config)
    ):
      _set_aside(directory)
    path.write_text(config)
  if inputs:
    identity.write(directory, inputs)
  else:
    (directory / identity.FILE).unlink(missing_ok=True)


def _same(one: str, other: str) -> bool:
  """Returns whether configurations are equal, of which MODEL_DIR is no part."""
  return bindings_lib.every(one) == bindings_lib.every(other)


def _set_aside(directory: epath.Path) -> None:
  """Moves what another run wrote to MODEL_DIR/earlier/N."""
  earlier = directory / 'earlier'
  earlier.mkdir(exist_ok=True)
  taken = [int(d.name) for d in earlier.iterdir() if d.name.isdigit()]
  place = earlier / str(max(taken, default=0) + 1)
  place.mkdir()
  for name in _OF_A_RUN:
    if (directory / name).exists():
      (directory / name).rename(place / name)
  print(
    f'MODEL_DIR {directory} had metrics of a run with other bindings, which '
    f'saved no checkpoint. They are in {place} now.',
    flush=True,
  )


def _has_saved(directory: epath.Path) -> bool:
  """Returns whether a run left results; else its bindings are forgotten."""
  files = ('COMPLETED', 'results.json', 'completions.jsonl')
  if any((directory / name).exists() for name in files):
    return True
  return bool(_checkpoints(directory))


def _checkpoints(directory: epath.Path) -> list[int]:
  folder = directory / 'checkpoints'
  if not folder.exists():
    return []
  return [int(d.name) for d in folder.iterdir() if d.name.isdigit()]


def is_completed(model_dir: str, train_steps: int) -> bool:
  """Returns whether MODEL_DIR holds a run that reached `train_steps`."""
  path = epath.Path(model_dir) / 'COMPLETED'
  return path.exists() and int(path.read_text()) >= train_steps


def check_steps(model_dir: str, train_steps: int) -> None:
  """Checks that a run has not made more updates than it is to make.

  Args:
    model_dir: MODEL_DIR, which need not exist.
    train_steps: TRAIN_STEPS.

  Raises:
    ValueError: It has. The results of fewer updates are not there any more.
  """
  directory = epath.Path(model_dir)
  done = _checkpoints(directory)
  if (directory / 'COMPLETED').exists():
    done.append(int((directory / 'COMPLETED').read_text()))
  if max(done, default=0) > train_steps:
    raise ValueError(
      f'TRAIN_STEPS {train_steps} is less than the {max(done):,} updates that '
      f'MODEL_DIR {model_dir} holds already. Set it to at least {max(done)}, '
      'or choose another MODEL_DIR.'
    )


def complete(model_dir: str, train_steps: int) -> None:
  """Marks a run as finished, atomically. Nothing else does."""
  if jax.process_index() == 0:
    path = epath.Path(model_dir) / 'COMPLETED.partial'
    path.write_text(f'{train_steps}\n')
    path.replace(path.with_suffix(''))


def reopen(model_dir: str) -> None:
  """Removes the mark of a finished run that goes on to more steps."""
  if jax.process_index() == 0:
    (epath.Path(model_dir) / 'COMPLETED').unlink(missing_ok=True)
