"""Describes TPU chips and the slices that Google Cloud offers.

Launching and compiling share this table. It uses the standard library only,
because launch/ runs on machines that do not have JAX.
"""

from collections.abc import Mapping
import dataclasses
import difflib
import math
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """One TPU chip, with the figures of Cloud TPU's documentation.

  Attributes:
    flops: Rate of bfloat16 matrix products, in FLOP/s.
    hbm_bytes: Size of the memory, in bytes.
    hbm_bandwidth: Bandwidth of the memory, in bytes/s.
    ici_bandwidth: Bandwidth to all neighbours together, one way, in bytes/s.
    clock: Clock rate in cycles/s. This is `flops` divided by the FLOPs that the
      matrix units do in one cycle (128 x 128 x 2 per unit; v5e has 4 units, v4
      and v5p have 8, v6e has 16).
    slices: Topologies on offer, written as the chips along each axis.
    accelerator: Prefix of Google's accelerator type: 'v5litepod' in
      'v5litepod-16'.
    units: What one chip adds to the number in the accelerator type, which
      counts TensorCores on v4 and v5p, and chips on v5e and v6e.
    runtime: Software version of a TPU VM
      (https://cloud.google.com/tpu/docs/runtimes).
    options: Options that libtpu needs to present one chip as one device.
  """

  flops: float
  hbm_bytes: float
  hbm_bandwidth: float
  ici_bandwidth: float
  clock: float
  slices: tuple[str, ...]
  accelerator: str
  units: int
  runtime: str
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBES = (
  *('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8'),
  *('8x8x16', '8x16x16', '16x16x16'),
)

# "System architecture" of https://cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}.
CHIPS = {
  'v4': Chip(
    flops=275e12,
    hbm_bytes=32 * 2**30,
    hbm_bandwidth=1228e9,
    ici_bandwidth=300e9,
    clock=1.05e9,
    slices=_CUBES,
    accelerator='v4',
    units=2,
    runtime='tpu-ubuntu2204-base',
    options={'chip_config_name': 'megacore'},
  ),
  'v5e': Chip(
    flops=197e12,
    hbm_bytes=16 * 2**30,
    hbm_bandwidth=819e9,
    ici_bandwidth=200e9,
    clock=1.5e9,
    slices=_FLAT,
    accelerator='v5litepod',
    units=1,
    runtime='v2-alpha-tpuv5-lite',
  ),
  'v5p': Chip(
    flops=459e12,
    hbm_bytes=95 * 2**30,
    hbm_bandwidth=2765e9,
    ici_bandwidth=600e9,
    clock=1.75e9,
    slices=_CUBES,
    accelerator='v5p',
    units=2,
    runtime='v2-alpha-tpuv5',
  ),
  'v6e': Chip(
    flops=918e12,
    hbm_bytes=32 * 2**30,
    hbm_bandwidth=1640e9,
    ici_bandwidth=448e9,
    clock=1.75e9,
    slices=_FLAT,
    accelerator='v6e',
    units=1,
    runtime='v2-alpha-tpuv6e',
  ),
}


def chip(topology: str, *, setting: str = 'TOPOLOGY = ') -> Chip:
  """Returns the chip of a topology such as 'v5e:4x4'.

    tpu_slices.chip('v5e:4x4').hbm_bytes  # 17179869184

  Args:
    topology: Generation and shape, joined by a colon.
    setting: What the user wrote before the topology, for error messages.

  Raises:
    ValueError: The topology does not exist. The message offers the nearest
      ones.
  """
  kind, _, shape = topology.partition(':')
  if kind not in CHIPS:
    near = difflib.get_close_matches(kind, CHIPS, n=1, cutoff=0.3)
    first = near[0] if near else 'v5e'
    raise ValueError(
      f'{setting}{topology!r}: the chips are {", ".join(CHIPS)}. Write for '
      f"example '{first}:{CHIPS[first].slices[3]}'."
    )
  found = CHIPS[kind]
  if shape not in found.slices:
    near = sorted(found.slices, key=lambda s: _distance(shape, s))[:3]
    offered = ' or '.join(repr(f'{kind}:{s}') for s in near)
    raise ValueError(
      f'{setting}{topology!r}: {kind} has no slice {shape!r}. Nearest: '
      f'{offered}.'
    )
  return found


def size(topology: str) -> int:
  """Returns the number of chips in a slice: 16 for 'v5e:4x4'."""
  return math.prod(map(int, topology.partition(':')[2].split('x')))


def _distance(wanted: str, other: str) -> float:
  """Returns how far two slices are apart, in chips and then in letters."""
  letters = 1 - difflib.SequenceMatcher(None, wanted, other).ratio()
  try:
    sizes = [math.prod(map(int, s.split('x'))) for s in (wanted, other)]
    return abs(math.log(sizes[0] / sizes[1])) + letters / 10
  except (ValueError, ZeroDivisionError):
    return letters
