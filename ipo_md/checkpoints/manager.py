"""Checkpoints of a run, thin over Orbax, and parameters out of any of them.

  MODEL_DIR/config.gin        the bindings of the run, which it must keep
  MODEL_DIR/checkpoints/N     types.TrainState after N updates
  MODEL_DIR/COMPLETED         the run reached TRAIN_STEPS

Saves are asynchronous and atomic: a folder N is there whole or not at all. What
happens to it later, its checksums tell (`checksums`).
"""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import functools
from typing import Any

from etils import epath
import jax
import orbax.checkpoint as ocp
import seqio

from ipo_md import models
from ipo_md.checkpoints import checksums
from ipo_md.checkpoints import load
from ipo_md.checkpoints import locate
from ipo_md.core import model_dir as model_dir_lib
from ipo_md.core import types

# Under MODEL_DIR/checkpoints: what is deleted goes here first, in one step, so
# that no checkpoint is ever half there. Buckets have no such step.
_DELETED = 'deleted'


@model_dir_lib.may_change('last', 'period', 'best')
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


@contextlib.contextmanager
def open_manager(
  model_dir: str, *, keep: Keep
) -> Iterator[ocp.CheckpointManager]:
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
      custom_metadata={'vocabulary': load.describe(vocabulary), 'lora': adapts},
    )
  except (OSError, ValueError, RuntimeError) as error:
    raise _cannot_save(checkpoints, error) from error


def adapted(
  model: models.Model, reference_checkpoint_path: str | None
) -> dict[str, Any] | None:
  """What makes a whole policy of adapters; None for a model without.

  With it, every *_CHECKPOINT_PATH takes the MODEL_DIR of a run with LoRA, as
  long as the reference stays where it is.
  """
  if not isinstance(model, models.Lora) or reference_checkpoint_path is None:
    return None
  name = 'REFERENCE_CHECKPOINT_PATH'
  reference = locate.resolve(reference_checkpoint_path, name)
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
