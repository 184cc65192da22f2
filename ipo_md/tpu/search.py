"""The largest batch and the smallest slice that fit, by compiling them."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from ipo_md.core import tpu_slices

Attempt = Callable[['Case'], tuple[dict[str, Any], str]]


@dataclasses.dataclass(frozen=True)
class Case:
  """What is compiled.

  Attributes:
    topology: of each slice.
    num_slices: how many.
    mesh_shape: MESH_SHAPE.
    batch_size: BATCH_SIZE.
    microbatches: MICROBATCHES.
  """

  topology: str
  num_slices: int
  mesh_shape: tuple[int, ...]
  batch_size: int
  microbatches: int = 1

  @property
  def chips(self) -> int:
    return tpu_slices.size(self.topology) * self.num_slices


def largest_batch(case: Case, attempt: Attempt, fits: bool) -> dict[str, Any]:
  """The largest BATCH_SIZE that fits, a multiple of `_unit`.

  Doubles or halves until one fits and one does not, then halves the gap; what
  fits at 64 times the size to start from is said to be no limit.
  """
  unit = _unit(case)
  low, high = (case.batch_size, None) if fits else (0, case.batch_size)
  while high is None or high - low > unit:
    size = 2 * low if high is None else (low + high) // 2 // unit * unit
    if size > 64 * max(case.batch_size, unit):
      break
    fits = attempt(dataclasses.replace(case, batch_size=size))[0]['fits']
    print(f'BATCH_SIZE {size} {"fits" if fits else "does not fit"}.')
    low, high = (size, high) if fits else (low, size)
  return {'largest_batch_size': low or None, 'is_limit': high is not None}


def smallest_slice(case: Case, attempt: Attempt) -> dict[str, Any]:
  """The smallest slice of the same chip that fits.

  One axis of MESH_SHAPE is -1. Slices that the mesh or the batch does not
  divide are left out, each with what is wrong with it.
  """
  kind = case.topology.partition(':')[0]
  tried = {}
  for shape in tpu_slices.chip(case.topology).slices:
    topology = f'{kind}:{shape}'
    try:
      report, _ = attempt(dataclasses.replace(case, topology=topology))
    except ValueError as error:
      tried[topology] = str(error)
      continue
    tried[topology] = 'fits' if report['fits'] else 'does not fit'
    print(f'{topology}: {tried[topology]}')
    if report['fits']:
      return {'smallest_slice': topology, 'tried': tried}
  return {'smallest_slice': None, 'tried': tried}


def _unit(case: Case) -> int:
  """What a batch must be a multiple of: MICROBATCHES x data x fsdp."""
  sizes = [size for size in case.mesh_shape if size != -1]
  rest = case.chips // math.prod(sizes)
  data, fsdp = (rest if s == -1 else s for s in case.mesh_shape[:2])
  return data * fsdp * case.microbatches
