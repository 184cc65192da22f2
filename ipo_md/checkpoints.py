"""Checkpoints of a run, thin over Orbax, and parameters out of any of them.

  MODEL_DIR/config.gin        the bindings of the run, which it must keep
  MODEL_DIR/checkpoints/N     types.TrainState after N updates
  MODEL_DIR/COMPLETED         the run reached TRAIN_STEPS

Saves are asynchronous and atomic: a folder N is there whole or not at all. What
happens to it later, its checksums tell (`checksums`).
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import difflib
import functools
import hashlib
import re
from typing import Any

from etils import epath
import jax
import orbax.checkpoint as ocp
import seqio

from ipo_md import checksums
from ipo_md import sharding
from ipo_md import types
from ipo_md.models import lora
from ipo_md.models import model as model_lib
from ipo_md.models.convert import formats

# Under MODEL_DIR/checkpoints: what is deleted goes here first, in one step, so
# that no checkpoint is ever half there. Buckets have no such step.
_DELETED = 'deleted'

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keep:
  """Which checkpoints stay: those that any of these names.

  Attributes:
    last: KEEP_CHECKPOINTS, the latest ones; None: all. With fewer than 2 there
      is none to go back to if the latest one is damaged.
    period: KEEP_PERIOD, those of steps that it divides; 0: none.
    best: KEEP_BEST, those of the highest measured win rates; 0: none.
  """

  last: int | None = 2
  period: int = 0
  best: int = 0

  def __post_init__(self):
    for name, value, least in (
      ('KEEP_CHECKPOINTS', self.last, 1),
      ('KEEP_PERIOD', self.period, 0),
      ('KEEP_BEST', self.best, 0),
    ):
      if value is not None and value < least:
        raise ValueError(f'{name} is {value}, less than {least}.')

  def policy(self) -> ocp.checkpoint_managers.PreservationPolicy:
    managers = ocp.checkpoint_managers
    policies = [managers.LatestN(self.last)]
    if self.period:
      policies.append(managers.EveryNSteps(self.period))
    if self.best:
      policies.append(
        managers.BestN(
          get_metric_fn=_win_rate,
          n=self.best,
          keep_checkpoints_without_metrics=False,
        )
      )
    return managers.AnyPreservationPolicy(policies)


def _win_rate(metrics: Mapping[str, float]) -> float:
  return metrics['win_rate']


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


@contextlib.contextmanager
def manager(model_dir: str, *, keep: Keep) -> Iterator[ocp.CheckpointManager]:
  """Orbax's manager of MODEL_DIR/checkpoints, of which the latest is whole.

  Closed at the end, but not by one of several processes after an error: closing
  waits for the others to save, and those wait for this one to go on.

  Raises:
    ValueError: there are checkpoints, but all are damaged.
  """
  checksums.set_damaged_aside(model_dir)
  directory = epath.Path(model_dir) / 'checkpoints'
  _finish_deletions(directory)
  saved = ocp.CheckpointManager(
    directory,
    options=ocp.CheckpointManagerOptions(
      preservation_policy=keep.policy(),
      best_fn=_win_rate,  # else no metrics are saved
      cleanup_tmp_directories=True,
      todelete_subdir=_DELETED,
      create=True,
      save_decision_policy=ocp.checkpoint_managers.FixedIntervalPolicy(1),
      async_options=ocp.AsyncOptions(
        # Before the commit, in process 0 alone.
        post_finalization_callback=functools.partial(checksums.seal, directory)
      ),
    ),
  )
  try:
    yield saved
  except BaseException:
    if jax.process_count() == 1:
      saved.close()
    raise
  saved.close()


def save(
  checkpoints: ocp.CheckpointManager,
  state: types.TrainState,
  vocabulary: seqio.Vocabulary,
  win_rate: float | None = None,
  adapts: Mapping[str, Any] | None = None,
) -> None:
  """Starts to save a state, unless its step is saved already.

  Args:
    checkpoints: of `manager`.
    state: to be saved; may be donated afterwards.
    vocabulary: of the run.
    win_rate: of this state, if it was measured.
    adapts: of `adapted`.

  Raises:
    RuntimeError: this or an earlier save failed, as on a full disk.
  """
  wait(checkpoints)
  step = int(state.step)
  try:
    if step in checkpoints.all_steps():
      return
    checkpoints.save(
      step,
      args=ocp.args.StandardSave(state),
      metrics=None if win_rate is None else {'win_rate': win_rate},
      custom_metadata={'vocabulary': describe(vocabulary), 'lora': adapts},
    )
  except (OSError, ValueError, RuntimeError) as error:
    raise _cannot_save(checkpoints, error) from error


def adapted(
  model: model_lib.Model, reference_checkpoint_path: str | None
) -> dict[str, Any] | None:
  """What makes a whole policy of adapters; None for a model without.

  With it, every *_CHECKPOINT_PATH takes the MODEL_DIR of a run with LoRA, as
  long as the reference stays where it is.
  """
  if not isinstance(model, lora.Lora) or reference_checkpoint_path is None:
    return None
  name = 'REFERENCE_CHECKPOINT_PATH'
  reference = formats.resolve(reference_checkpoint_path, name)
  return {'reference': reference, 'rank': model.rank, 'scale': model.scale}


def wait(checkpoints: ocp.CheckpointManager) -> None:
  """Waits until what was saved is on disk. Raises RuntimeError if it is not."""
  try:
    checkpoints.wait_until_finished()
  except (OSError, ValueError, RuntimeError) as error:
    raise _cannot_save(checkpoints, error) from error
  _finish_deletions(checkpoints.directory)


def _finish_deletions(directory: epath.Path) -> None:
  if jax.process_index() == 0:
    (directory / _DELETED).rmtree(missing_ok=True)


def _cannot_save(
  checkpoints: ocp.CheckpointManager, error: Exception
) -> RuntimeError:
  steps = checksums.numbered(checkpoints.directory)
  last = (
    f'the last one there is of step {steps[-1]:,}'
    if steps
    else 'there is none yet'
  )
  return RuntimeError(
    f'A checkpoint could not be saved under {checkpoints.directory} '
    f'(MODEL_DIR); {last}. {error}'
  )


def restore(
  checkpoints: ocp.CheckpointManager, abstract: types.TrainState
) -> types.TrainState:
  """The latest state. abstract: ShapeDtypeStructs with shardings."""
  return checkpoints.restore(
    checkpoints.latest_step(), args=ocp.args.StandardRestore(abstract)
  )


def load_params(
  path: str,
  model: model_lib.Model,
  mesh: jax.sharding.Mesh,
  *,
  name: str,
  vocabulary: seqio.Vocabulary | None = None,
  fresh: Sequence[str] = (),
  rules: Mapping[str, str] | None = None,
) -> types.Params:
  """Reads the parameters of a checkpoint straight onto the mesh.

  Args:
    path: a MODEL_DIR, whose latest checkpoint is taken; MODEL_DIR:best, for
      the one of the highest win rate; MODEL_DIR/checkpoints/N; or a checkpoint
      of T5X or Hugging Face (`models.convert.formats`).
    model: whose parameters they are.
    mesh: of all devices.
    name: of the gin parameter that holds the path, for messages.
    vocabulary: of the run; a checkpoint of ours must have been made with it.
    fresh: names of modules that the checkpoint may lack, such as a reward
      head; they are left out of the result then.
    rules: logical axis -> mesh axis; None: `sharding.RULES`.

  Raises:
    ValueError: there is no checkpoint, or it is damaged, or of another model or
      vocabulary.
  """
  if not path:
    raise ValueError(f'{name} is not set: the path of a checkpoint is needed.')
  kind, directory = formats.detect(path, name)
  if kind == 'orbax' and vocabulary is not None:
    theirs = formats.metadata(directory)
    if theirs.get('vocabulary') not in (None, describe(vocabulary)):
      raise ValueError(
        f'{name} {path} was trained with vocabulary {theirs["vocabulary"]}, '
        f'and this run has {describe(vocabulary)} (MIXTURE_OR_TASK_NAME).'
      )
  abstract = sharding.abstract_params(
    mesh, model.abstract_params, model.logical_axes, rules
  )
  return formats.load_params(
    path, abstract, model.config, name=name, fresh=fresh
  )


def identity(path: str, name: str) -> str:
  """A text that changes when `load_params` would read another checkpoint.

  Args:
    path: as `load_params` takes it.
    name: of the gin parameter that holds the path, for messages.
  """
  if not path:
    raise ValueError(f'{name} is not set: the path of a checkpoint is needed.')
  _, directory = formats.detect(path, name)
  metadata = directory.parent / '_CHECKPOINT_METADATA'  # has the time
  written = metadata.read_text() if metadata.exists() else ''
  return f'{directory} {hashlib.sha256(written.encode()).hexdigest()[:12]}'


def describe(vocabulary: seqio.Vocabulary) -> str:
  """A name that two vocabularies share only if they are the same."""
  content = getattr(vocabulary, 'sp_model', None)
  digest = hashlib.sha256(content).hexdigest()[:12] if content else 'built in'
  return f'{type(vocabulary).__name__}({vocabulary.vocab_size}, {digest})'
