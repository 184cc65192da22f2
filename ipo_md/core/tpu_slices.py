"""TPU chips and slices: one table for launching and compiling. No JAX."""

from collections.abc import Mapping
import dataclasses
import difflib
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip, as Cloud TPU's documentation has it.

  Attributes:
    flops: bfloat16 matrix products, FLOP/s.
    hbm_bytes: of memory.
    hbm_bandwidth: bytes/s.
    ici_bandwidth: bytes/s to all neighbours together, one way.
    clock: cycles/s: flops over the FLOPs of a cycle of its matrix units
      (128 x 128 x 2; 4 of them on v5e, 8 on v4 and v5p, 16 on v6e).
    slices: topologies, chips along each axis.
    options: what libtpu asks for so that a chip is one device.
  """

  flops: float
  hbm_bytes: float
  hbm_bandwidth: float
  ici_bandwidth: float
  clock: float
  slices: tuple[str, ...]
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBES = (
  *('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8'),
  *('8x8x16', '8x16x16', '16x16x16'),
)

# "System architecture" of https://cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}.
CHIPS = {
  'v4': Chip(
    275e12,
    32 * 2**30,
    1228e9,
    300e9,
    1.05e9,
    _CUBES,
    {'chip_config_name': 'megacore'},
  ),
  'v5e': Chip(197e12, 16 * 2**30, 819e9, 200e9, 1.5e9, _FLAT),
  'v5p': Chip(459e12, 95 * 2**30, 2765e9, 600e9, 1.75e9, _CUBES),
  'v6e': Chip(918e12, 32 * 2**30, 1640e9, 448e9, 1.75e9, _FLAT),
}


def chip(topology: str) -> Chip:
  """The chip of a topology such as 'v5e:4x4'.

  Raises:
    ValueError: there is no such topology; offers the nearest ones.
  """
  kind, _, shape = topology.partition(':')
  if kind not in CHIPS:
    near = difflib.get_close_matches(kind, CHIPS, n=1, cutoff=0.3)
    first = near[0] if near else 'v5e'
    raise ValueError(
      f'TOPOLOGY = {topology!r}: chips are {", ".join(CHIPS)}, as in '
      f"'{first}:{CHIPS[first].slices[3]}'."
    )
  found = CHIPS[kind]
  if shape not in found.slices:
    near = sorted(found.slices, key=lambda s: _distance(shape, s))[:3]
    offered = ' or '.join(repr(f'{kind}:{s}') for s in near)
    raise ValueError(
      f'TOPOLOGY = {topology!r}: {kind} has no slice {shape!r}. Nearest: '
      f'{offered}.'
    )
  return found


def size(topology: str) -> int:
  """How many chips a slice has."""
  return math.prod(map(int, topology.partition(':')[2].split('x')))


def _distance(wanted: str, other: str) -> float:
  """How far two slices are apart: in chips, then in letters."""
  letters = 1 - difflib.SequenceMatcher(None, wanted, other).ratio()
  try:
    sizes = [math.prod(map(int, s.split('x'))) for s in (wanted, other)]
    return abs(math.log(sizes[0] / sizes[1])) + letters / 10
  except (ValueError, ZeroDivisionError):
    return letters
