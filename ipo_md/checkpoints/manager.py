"""Saves and restores the checkpoints of a run with Orbax.

  MODEL_DIR/config.gin        bindings of the run, which must not change
  MODEL_DIR/checkpoints/N     types.TrainState after N updates
  MODEL_DIR/COMPLETED         exists once the run has reached TRAIN_STEPS

Saves are asynchronous and atomic: a directory N exists whole or not at all.
Its checksums reveal later damage (see `checksums`).
"""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import functools
import re
from typing import Any
from typing import cast

from etils import epath
import jax
import orbax.checkpoint as ocp

from ipo_md import models
from ipo_md.checkpoints import checksums
from ipo_md.checkpoints import load
from ipo_md.checkpoints import locate
from ipo_md.core import model_dir as model_dir_lib
from ipo_md.core import types

# A checkpoint to delete is first renamed into this directory under
# MODEL_DIR/checkpoints, so that none is ever half deleted. Cloud Storage has no
# such atomic rename.
_DELETED = 'deleted'


@model_dir_lib.may_change('last', 'period', 'best')
@dataclasses.dataclass(frozen=True, kw_only=True)
class Keep:
  """Selects the checkpoints to keep: all that match any of these rules.

  Attributes:
    last: Number of latest checkpoints (KEEP_CHECKPOINTS); None keeps all. With
      fewer than 2, a run cannot continue if its latest checkpoint is damaged.
    period: Interval in steps (KEEP_PERIOD), whose multiples are kept; 0 for
      none.
    best: Number of checkpoints with the highest measured win rates (KEEP_BEST).
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
    """Returns Orbax's form of these rules."""
    managers = ocp.checkpoint_managers
    policies: list[ocp.checkpoint_managers.PreservationPolicy] = [
      managers.LatestN(self.last)
    ]
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


@contextlib.contextmanager
def open_manager(
  model_dir: str, *, keep: Keep
) -> Iterator[ocp.CheckpointManager]:
  """Opens Orbax's manager of MODEL_DIR/checkpoints.

    with checkpoints.open_manager(model_dir, keep=checkpoints.Keep()) as saved:
      checkpoints.save(saved, state, vocabulary)

  Damaged checkpoints are moved away first, so that the latest one is whole. The
  manager is closed at the end, except by one of several processes after an
  error: closing waits for the others to save, and they wait for this one.

  Args:
    model_dir: MODEL_DIR of the run.
    keep: Selection of the checkpoints to keep.

  Raises:
    ValueError: There are checkpoints, but all of them are damaged.
  """
  checksums.set_damaged_aside(model_dir)
  directory = epath.Path(model_dir) / 'checkpoints'
  _finish_deletions(directory)
  saved = ocp.CheckpointManager(
    directory,
    options=ocp.CheckpointManagerOptions(
      preservation_policy=keep.policy(),
      best_fn=_win_rate,  # without it, no metrics are saved
      cleanup_tmp_directories=True,
      todelete_subdir=_DELETED,
      create=True,
      save_decision_policy=ocp.checkpoint_managers.FixedIntervalPolicy(1),
      async_options=ocp.AsyncOptions(
        # Runs before the commit, in process 0 only.
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
  vocabulary: types.Vocabulary,
  win_rate: float | None = None,
  adapts: Mapping[str, Any] | None = None,
) -> None:
  """Starts to save a state, unless its step has been saved already.

  Args:
    checkpoints: Manager, from `open_manager`.
    state: State to save. It may be donated afterwards.
    vocabulary: Vocabulary of the run.
    win_rate: Win rate of this state, if it was measured.
    adapts: Reference of the adapters, from `adapted`.

  Raises:
    RuntimeError: This or an earlier save failed, for instance on a full disk.
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
      custom_metadata={'vocabulary': load.describe(vocabulary), 'lora': adapts},
    )
  except (OSError, ValueError, RuntimeError) as error:
    raise _cannot_save(checkpoints, error) from error


def adapted(
  model: models.Model, reference_checkpoint_path: str | None
) -> dict[str, Any] | None:
  """Describes the reference that the adapters of a model belong to.

  Saved with the adapters, it lets every *_CHECKPOINT_PATH accept the MODEL_DIR
  of a run with LoRA as the whole policy, as long as the reference is not moved.

  Args:
    model: Model of the run.
    reference_checkpoint_path: Path of the reference, if the run has one.

  Returns:
    'reference', its absolute path; 'rank' and 'scale' of the adapters. None for
    a model without adapters.
  """
  if not isinstance(model, models.Lora) or reference_checkpoint_path is None:
    return None
  name = 'REFERENCE_CHECKPOINT_PATH'
  reference = locate.resolve(reference_checkpoint_path, name)
  return {'reference': reference, 'rank': model.rank, 'scale': model.scale}


def wait(checkpoints: ocp.CheckpointManager) -> None:
  """Waits until all saves are on disk.

  Raises:
    RuntimeError: A save failed.
  """
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
    f'the last one is of step {steps[-1]:,}' if steps else 'there is none yet'
  )
  return RuntimeError(
    f'A checkpoint could not be saved under {checkpoints.directory} '
    f'(MODEL_DIR); {last}. {error}'
  )


def restore(
  checkpoints: ocp.CheckpointManager, abstract: types.TrainState
) -> types.TrainState:
  """Restores the latest state of a run.

  Args:
    checkpoints: Manager, from `open_manager`.
    abstract: State of `jax.ShapeDtypeStruct`, with shardings.

  Raises:
    ValueError: The state has another form, that of an earlier version.
  """
  try:
    restored = checkpoints.restore(
      checkpoints.latest_step(), args=ocp.args.StandardRestore(abstract)
    )
  except ValueError as error:
    if 'tree structures do not match' not in str(error):
      raise
    parts = dict.fromkeys(re.findall(r'^(\w+)\S*:$', str(error), re.M))
    raise ValueError(
      f'{checkpoints.directory} was written by an earlier version, whose state '
      f'had other parts ({", ".join(parts)}), so it cannot be resumed. Start '
      'in another MODEL_DIR, with this one as INITIAL_CHECKPOINT_PATH.'
    ) from error
  return cast(types.TrainState, restored)  # Orbax returns what it is given
