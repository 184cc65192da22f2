"""Checkpoints of a run, thin over Orbax, and parameters out of any of them.

  MODEL_DIR/config.gin        the bindings of the run, which it must keep
  MODEL_DIR/checkpoints/N     types.TrainState after N updates
  MODEL_DIR/COMPLETED         the run reached TRAIN_STEPS

Saves are asynchronous and atomic: a folder N is there whole or not at all.
"""

from collections.abc import Sequence
import difflib
import hashlib
import json
import re
from typing import Any

from etils import epath
import jax
import orbax.checkpoint as ocp
import seqio

from ipo_md import telemetry
from ipo_md import types

# Bindings that a resumed run may change: they leave its trajectory as it is.
_MAY_CHANGE = (
  'MODEL_DIR',
  'TRAIN_STEPS',
  'MESH_SHAPE',
  'CACHE_DIR',
  'LOG_PERIOD',
  'EVAL_PERIOD',
  'CHECKPOINT_PERIOD',
)


def claim(model_dir: str, config: str) -> None:
  """Makes MODEL_DIR this run's, or checks that it already is.

  Args:
    model_dir: MODEL_DIR, created if it is not there.
    config: all bindings, `gin.config_str()`.

  Raises:
    ValueError: the directory cannot be written, holds another run, or holds
      files of something else.
  """
  directory = epath.Path(model_dir)
  path = directory / 'config.gin'
  if path.exists():
    ours, theirs = _bindings(config), _bindings(path.read_text())
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


def _bindings(config: str) -> list[str]:
  """The bindings of a config, one a line, without those that may change."""
  config = re.sub(r'\\\n\s*', '', config)
  config = re.sub(r'\n\s+', ' ', config)
  lines = [re.sub(r'\s+', ' ', line).strip() for line in config.splitlines()]
  return [
    line
    for line in lines
    if line
    and not line.startswith('#')
    and line.split(' = ')[0] not in _MAY_CHANGE
  ]


def is_completed(model_dir: str, train_steps: int) -> bool:
  """Whether MODEL_DIR holds a run that reached TRAIN_STEPS."""
  path = epath.Path(model_dir) / 'COMPLETED'
  return path.exists() and int(path.read_text()) >= train_steps


def complete(model_dir: str, train_steps: int) -> None:
  """Marks the run as finished: nothing else does."""
  if jax.process_index() == 0:
    (epath.Path(model_dir) / 'COMPLETED').write_text(f'{train_steps}\n')


def manager(model_dir: str, *, keep: int | None) -> ocp.CheckpointManager:
  """Orbax's manager of MODEL_DIR/checkpoints; keep None: all of them."""
  return ocp.CheckpointManager(
    epath.Path(model_dir) / 'checkpoints',
    options=ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      cleanup_tmp_directories=True,
      create=True,
      save_decision_policy=ocp.checkpoint_managers.FixedIntervalPolicy(1),
    ),
  )


def save(
  checkpoints: ocp.CheckpointManager,
  state: types.TrainState,
  vocabulary: seqio.Vocabulary,
) -> None:
  """Starts to save a state, unless its step is saved already.

  Raises:
    RuntimeError: this or an earlier save failed, as on a full disk.
  """
  step = int(state.step)
  try:
    if step in checkpoints.all_steps():
      return
    checkpoints.save(
      step,
      args=ocp.args.StandardSave(state),
      custom_metadata={'vocabulary': describe(vocabulary)},
    )
  except (OSError, ValueError, RuntimeError) as error:
    raise _cannot_save(checkpoints, error) from error


def wait(checkpoints: ocp.CheckpointManager) -> None:
  """Waits until what was saved is on disk. Raises RuntimeError if it is not."""
  try:
    checkpoints.wait_until_finished()
  except (OSError, ValueError, RuntimeError) as error:
    raise _cannot_save(checkpoints, error) from error


def _cannot_save(
  checkpoints: ocp.CheckpointManager, error: Exception
) -> RuntimeError:
  last = checkpoints.latest_step()
  return RuntimeError(
    f'A checkpoint could not be saved under {checkpoints.directory} '
    f'(MODEL_DIR); the last one there is of step {last}. {error}'
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
  abstract: types.Params,
  *,
  name: str,
  vocabulary: seqio.Vocabulary | None = None,
  fresh: Sequence[str] = (),
) -> types.Params:
  """Reads the parameters of a checkpoint straight onto the mesh.

  Args:
    path: a MODEL_DIR, whose latest checkpoint is taken; MODEL_DIR:best, for
      the one of the highest win rate; or MODEL_DIR/checkpoints/N.
    abstract: `jax.ShapeDtypeStruct`s with shardings.
    name: of the gin parameter that holds the path, for messages.
    vocabulary: of the run; the checkpoint must have been made with it.
    fresh: names of modules that the checkpoint may lack, such as a reward
      head; they are left out of the result then.

  Returns:
    A tree like `abstract`.

  Raises:
    ValueError: there is no checkpoint, or it is of another model or vocabulary.
  """
  step_dir = _step_dir(path, name)
  if vocabulary is not None:
    metadata = json.loads((step_dir / '_CHECKPOINT_METADATA').read_text())
    theirs = metadata['custom_metadata'].get('vocabulary')
    if theirs not in (None, describe(vocabulary)):
      raise ValueError(
        f'{name} {step_dir} was trained with vocabulary {theirs}, and this '
        f'run has {describe(vocabulary)} (MIXTURE_OR_TASK_NAME).'
      )
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    stored = checkpointer.metadata(step_dir / 'default').item_metadata.tree
    stored = _shapes(stored['params'])
    wanted = _drop_fresh(abstract, stored, fresh)
    _check_shapes(step_dir, name, stored, _shapes(wanted))
    wanted = {'params': wanted}
    restored = checkpointer.restore(
      step_dir / 'default',
      args=ocp.args.PyTreeRestore(
        item=wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
      ),
    )
  return restored['params']


def _step_dir(path: str, name: str) -> epath.Path:
  if not path:
    raise ValueError(f'{name} is not set: the path of a checkpoint is needed.')
  path, best, _ = path.partition(':best')
  directory = epath.Path(path)
  if directory.name.isdigit() and directory.exists():
    return directory
  for folder in (directory / 'checkpoints', directory):
    if folder.exists():
      steps = [int(d.name) for d in folder.iterdir() if d.name.isdigit()]
      if steps and best:
        metrics = telemetry.read_metrics(str(directory))
        rates = {s: metrics.get(s, {}).get('win_rate') for s in steps}
        rates = {s: rate for s, rate in rates.items() if rate is not None}
        if not rates:
          raise ValueError(
            f'{name} {path}:best: no win rate was measured at the steps '
            f'{sorted(steps)} of its checkpoints (EVAL_PERIOD).'
          )
        return folder / str(max(rates, key=rates.get))
      if steps:
        return folder / str(max(steps))
  raise ValueError(
    f'{name} {path} holds no checkpoint: neither {path}/checkpoints/N nor '
    f'{path}/N is there.'
  )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): tuple(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _drop_fresh(
  abstract: types.Params, stored: dict[str, Any], fresh: Sequence[str]
) -> types.Params:
  def drop(tree, prefix):
    kept = {}
    for key, value in tree.items():
      place = f'{prefix}{key}'
      missing = not any(s.startswith(f'{place}/') for s in stored)
      if key in fresh and missing:
        continue
      kept[key] = drop(value, f'{place}/') if isinstance(value, dict) else value
    return kept

  return drop(abstract, '')


def _check_shapes(
  directory: epath.Path,
  name: str,
  stored: dict[str, tuple[int, ...]],
  wanted: dict[str, tuple[int, ...]],
) -> None:
  problems = [
    f'{key}: {stored.get(key, "missing")} there, {shape} in the model'
    for key, shape in wanted.items()
    if stored.get(key) != shape
  ]
  problems += [
    f'{key}: {shape} there, not in the model'
    for key, shape in stored.items()
    if key not in wanted and 'reward_head' not in key
  ]
  if problems:
    raise ValueError(
      f'{name} {directory} is of another model than the gin file of this run '
      f'({len(problems)} arrays differ):\n  ' + '\n  '.join(problems[:5])
    )


def describe(vocabulary: seqio.Vocabulary) -> str:
  """A name that two vocabularies share only if they are the same."""
  content = getattr(vocabulary, 'sp_model', None)
  digest = hashlib.sha256(content).hexdigest()[:12] if content else 'built in'
  return f'{type(vocabulary).__name__}({vocabulary.vocab_size}, {digest})'
