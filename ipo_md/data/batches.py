"""From a data set to the global arrays of a step.

The batch of a step is a function of (seed, step): an indexable global shuffle
of each epoch, no iterator and no state to save. Each host makes the rows that
its devices hold, so any number of hosts reads the same global batch.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import concurrent.futures
import math
from typing import Any
from typing import TypeVar

import grain
import jax
import numpy as np

from ipo_md.core import types
from ipo_md.data import dataset as dataset_lib

T = TypeVar('T')


class Batches:
  """The global batch of every step, a function of (seed, step).

  Args:
    dataset: at least one batch of examples.
    batch_size: B over all hosts.
    seed: of the order; each epoch has another one.
    sharding: of axis 0, the batch axes of the mesh.

  Raises:
    ValueError: the mesh does not divide the batch, or the data set is smaller
      than it.
  """

  def __init__(
    self,
    dataset: dataset_lib.Dataset,
    *,
    batch_size: int,
    seed: int,
    sharding: jax.sharding.NamedSharding,
  ):
    if len(dataset) < batch_size:
      raise ValueError(
        f'BATCH_SIZE {batch_size} is more than the {len(dataset)} examples of '
        'the data set (MIXTURE_OR_TASK_NAME).'
      )
    self._dataset = dataset
    self._batch_size = batch_size
    self._sharding = sharding
    self._local = _local_rows(batch_size, sharding)
    self._order = order(dataset, seed)

  def __call__(self, step: int) -> types.Labelled | types.Tokens:
    """Tokens [B, P] or Labelled of B, in the sharding."""
    first = step * self._batch_size
    rows = self._dataset.rows([self._order[first + i] for i in self._local])
    return _to_global(rows, self._batch_size, self._sharding)


def order(dataset: dataset_lib.Dataset, seed: int) -> grain.MapDataset:
  """An endless, indexable sequence of (number of the task, row)."""
  shuffled = []
  for task, examples in enumerate(dataset.examples):
    key = np.random.SeedSequence([seed, task]).generate_state(1)[0]
    rows = grain.MapDataset.range(len(examples)).shuffle(seed=int(key))
    rows = rows.map(lambda row, task=task: (task, row))
    shuffled.append(rows.repeat())
  return grain.MapDataset.mix(shuffled, dataset.rates)


def in_order(
  dataset: dataset_lib.Dataset,
  *,
  batch_size: int,
  sharding: jax.sharding.NamedSharding,
  limit: int | None = None,
) -> Iterator[tuple[types.Labelled | types.Tokens, jax.Array]]:
  """Each example once, in the task's order, for evaluation.

  Args:
    dataset: what is evaluated.
    batch_size: B over all hosts.
    sharding: of axis 0.
    limit: the first so many examples alone.

  Yields:
    a batch, and [B] bool: False where the last batch repeats its first row for
    want of examples.
  """
  local = _local_rows(batch_size, sharding)
  rows = [(t, r) for t, e in enumerate(dataset.examples) for r in range(len(e))]
  rows = rows[:limit]
  for first in range(0, len(rows), batch_size):
    batch = rows[first : first + batch_size]
    mask = np.arange(batch_size) < len(batch)
    batch += batch[:1] * (batch_size - len(batch))
    yield _to_global(
      (dataset.rows([batch[i] for i in local]), mask[local]),
      batch_size,
      sharding,
    )


def check_size(
  batch_size: int, sharding: jax.sharding.NamedSharding, name: str
) -> None:
  """Raises ValueError if the batch axes of the mesh do not divide a batch.

  Args:
    batch_size: B over all hosts.
    sharding: of axis 0.
    name: of the gin parameter that holds batch_size.
  """
  axes = sharding.spec[0] if len(sharding.spec) else None
  axes = (axes,) if isinstance(axes, str) else axes or ()
  parts = math.prod(sharding.mesh.shape[axis] for axis in axes)
  if batch_size < 1 or batch_size % parts:
    raise ValueError(
      f'{name} {batch_size} is not divisible by {parts}, the size of the '
      f'batch axes {axes} (MESH_SHAPE = {dict(sharding.mesh.shape)}).'
    )


def _local_rows(
  batch_size: int, sharding: jax.sharding.NamedSharding
) -> np.ndarray:
  """Rows of the global batch that this host's devices hold."""
  check_size(batch_size, sharding, 'BATCH_SIZE')
  held = sharding.addressable_devices_indices_map((batch_size,)).values()
  rows = [np.arange(batch_size)[index] for index in held]
  return np.unique(np.concatenate(rows))


def _to_global(
  rows: Any, batch_size: int, sharding: jax.sharding.NamedSharding
) -> Any:
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(
      sharding, x, (batch_size, *x.shape[1:])
    ),
    rows,
  )


def prefetch(make: Callable[[int], T], steps: Iterable[int]) -> Iterator[T]:
  """make(step) for each step, the next one made in a thread meanwhile.

  An error in `make` is raised where its result is asked for. Nothing runs on
  after the iterator is closed, but for the one batch that is being made.
  """
  with concurrent.futures.ThreadPoolExecutor(1, 'data') as thread:
    pending = None
    for step in steps:
      following = thread.submit(make, step)
      if pending is not None:
        yield pending.result()
      pending = following
    if pending is not None:
      yield pending.result()
