"""Finds the largest batch or the smallest slice that fits, by compiling."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from ipo_md.core import tpu_slices

Attempt = Callable[['Case'], tuple[dict[str, Any], str]]


@dataclasses.dataclass(frozen=True)
class Case:
  """One configuration to compile.

  Attributes:
    topology: TOPOLOGY of each slice.
    num_slices: NUM_SLICES, the number of slices.
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
    """Number of chips in all slices."""
    return tpu_slices.size(self.topology) * self.num_slices

  @property
  def devices(self) -> int:
    """Number of JAX's devices in all slices."""
    return self.chips * tpu_slices.chip(self.topology).devices


def largest_batch(case: Case, attempt: Attempt, fits: bool) -> dict[str, Any]:
  """Finds the largest BATCH_SIZE that fits, in multiples of `_unit`.

  The search doubles or halves the size until one size fits and another does
  not, and then halves the gap. If 64 times the initial size fits, the result
  says that it is no limit.

  Args:
    case: Configuration with the initial size.
    attempt: Function that compiles a case and reports on it.
    fits: Whether the initial size fits.

  Returns:
    The entries largest_batch_size (None if none fits) and is_limit.
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
  """Finds the smallest slice of the same chip that fits.

  Args:
    case: Configuration with an axis of -1 in MESH_SHAPE.
    attempt: Function that compiles a case and reports on it.

  Returns:
    The entries smallest_slice (None if none fits) and tried, the outcome or
    the error of each slice.
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
  """Divisor of every valid batch: MICROBATCHES x data x fsdp."""
  sizes = [size for size in case.mesh_shape if size != -1]
  rest = case.devices // math.prod(sizes)
  data, fsdp = (rest if s == -1 else s for s in case.mesh_shape[:2])
  return data * fsdp * case.microbatches
