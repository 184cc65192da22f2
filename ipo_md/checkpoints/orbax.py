"""Writes Orbax checkpoints with few arrays in memory at a time."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any

from etils import epath
from flax import traverse_util
import numpy as np
import orbax.checkpoint as ocp

from ipo_md.checkpoints import arrays
from ipo_md.checkpoints import t5x
from ipo_md.core import progress

# Orbax holds a file in memory until it has this size. As many arrays are made
# at a time.
_FILE_BYTES = 10**8


@dataclasses.dataclass(frozen=True)
class _Later:
  """A leaf of a tree to save: an array that is made when it is written."""

  shape: tuple[int, ...]
  dtype: np.dtype
  make: Callable[[], np.ndarray]

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  @property
  def nbytes(self) -> int:
    return self.size * self.dtype.itemsize


class _LaterHandler(ocp.type_handlers.NumpyHandler):
  """Saves like `NumpyHandler`, but makes the arrays of one file at a time."""

  async def serialize(
    self,
    values: Sequence[_Later],
    infos: Sequence[ocp.type_handlers.ParamInfo],
    args: Sequence[ocp.SaveArgs] | None = None,
  ) -> Sequence[Any]:
    args = args or [ocp.SaveArgs()] * len(values)
    first, size = 0, 0
    rows = progress.progress(values, len(values), 'converting')
    for i, value in enumerate(rows, 1):
      size += value.nbytes
      if size >= _FILE_BYTES or i == len(values):
        part = slice(first, i)
        made = [later.make() for later in values[part]]
        for saved in await super().serialize(made, infos[part], args[part]):
          try:
            saved.result()
          except BaseException:  # on SIGTERM, its thread would go on writing
            saved.result()
            raise
        first, size = i, 0
    return []


def _handler(*, use_zarr3: bool) -> ocp.PyTreeCheckpointHandler:
  return ocp.PyTreeCheckpointHandler(
    use_zarr3=use_zarr3,
    type_handler_registry=ocp.type_handlers.create_type_handler_registry(
      (_Later, _LaterHandler(deepcopy_host_arrays=False))
    ),
  )


def write(
  directory: epath.Path,
  checkpoint: arrays.Checkpoint,
  abstract: Mapping[str, Any],
  *,
  step: int,
) -> None:
  """Writes checkpoints/`step` into a directory, which becomes a MODEL_DIR.

  Args:
    directory: Directory that exists.
    checkpoint: Parameters to write.
    abstract: Shape and dtype of every parameter, by path.
    step: Number of the checkpoint.
  """

  def later(path, leaf):
    make = lambda: np.asarray(checkpoint.load({path: leaf})[path])
    return _Later(tuple(leaf.shape), np.dtype(leaf.dtype), make)

  params = {path: later(path, leaf) for path, leaf in abstract.items()}
  with ocp.CheckpointManager(
    directory / 'checkpoints',
    item_handlers=_handler(use_zarr3=True),
    options=ocp.CheckpointManagerOptions(enable_async_checkpointing=False),
  ) as manager:
    manager.save(
      step,
      args=ocp.args.PyTreeSave(
        {'params': traverse_util.unflatten_dict(params, sep='/')},
        ocdbt_target_data_file_size=_FILE_BYTES,
      ),
      custom_metadata={},
    )


def write_t5x(
  directory: epath.Path,
  checkpoint: arrays.Checkpoint,
  abstract: Mapping[str, Any],
  *,
  step: int,
) -> None:
  """Writes checkpoint_`step` of T5X, in its Orbax format, into a directory.

  Args:
    directory: Directory that exists.
    checkpoint: Parameters to write.
    abstract: Shape and dtype of every parameter, by path.
    step: Number of the checkpoint.
  """
  directory = directory / f'checkpoint_{step}'

  def later(path, piece):
    stored = abstract[path]
    make = lambda: checkpoint.read(path, piece.index).astype(stored.dtype)
    shape = piece.stored_shape(stored.shape)
    return _Later(shape, np.dtype(stored.dtype), make)

  target = {
    piece.name: later(path, piece)
    for path, pieces in t5x.layout(abstract).items()
    for piece in pieces
  }
  number = _Later((), np.dtype(np.int32), lambda: np.array(step, np.int32))
  tree = {
    'target': traverse_util.unflatten_dict(target, sep='/'),
    'state': {'step': number, 'param_states': {}},
  }
  with ocp.Checkpointer(_handler(use_zarr3=False)) as checkpointer:
    checkpointer.save(
      directory / 'state',
      args=ocp.args.PyTreeSave(tree, ocdbt_target_data_file_size=_FILE_BYTES),
    )
  (directory / 'commit_success.txt').write_text('')
