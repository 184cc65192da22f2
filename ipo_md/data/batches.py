"""Turns a data set into the global batches of a run.

The batch of a step is a function of (seed, step). Each epoch is an indexable
global shuffle, so there is no iterator and no state to save. Each host makes
the rows that its devices hold, so any number of hosts reads the same global
batch.
"""

from __future__ import annotations

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
  """Maps a step to its global batch.

    make = Batches(dataset, batch_size=32, seed=0, sharding=sharding)
    batch = make(step)

  Args:
    dataset: A data set with at least one batch of examples.
    batch_size: B, the number of examples over all hosts.
    seed: Seed of the order of the examples, which differs between epochs.
    sharding: Sharding of axis 0 over the batch axes of the mesh.

  Raises:
    ValueError: The mesh does not divide the batch, or the data set is smaller
      than one batch.
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
    """Returns the sharded batch of a step.

    Returns:
      Tokens [B, P] if the data set has bare prompts, otherwise Labelled with B
      rows.
    """
    first = step * self._batch_size
    rows = self._dataset.rows([self._order[first + i] for i in self._local])
    return _to_global(rows, self._batch_size, self._sharding)


def order(dataset: dataset_lib.Dataset, seed: int) -> grain.MapDataset:
  """Returns an endless, indexable sequence of (task index, row)."""
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
  """Yields every example once in the order of the task, for evaluation.

  Args:
    dataset: The data set to read.
    batch_size: B, the number of examples over all hosts.
    sharding: Sharding of axis 0.
    limit: Number of examples to read. None reads all of them.

  Yields:
    A batch and a [B] mask, which is False on the rows that fill up the last
    batch. These rows repeat the first row of the batch.
  """
  local = _local_rows(batch_size, sharding)
  rows = dataset_lib.first_rows(dataset, limit)
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
  """Raises a ValueError if the batch axes of the mesh do not divide a batch.

  Args:
    batch_size: B, the number of examples over all hosts.
    sharding: Sharding of axis 0.
    name: Name of the gin macro that sets batch_size, for the error message.
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
  """Returns the rows of the global batch that this host's devices hold."""
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
  """Yields make(step) for each step and makes the next one in a thread.

  An error in `make` is raised when its result is requested. When the iterator
  is closed, the batch that is being made is finished and no other is started.

  Args:
    make: A function of a step, such as `Batches`.
    steps: The steps, in order.
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
