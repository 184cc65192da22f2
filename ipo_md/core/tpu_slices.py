"""Describes TPU chips, the slices that Google Cloud offers, and GPUs.

Launching and compiling share this table. It uses the standard library only,
because launch/ runs on machines that do not have JAX.
"""

from collections.abc import Mapping
import dataclasses
import difflib
import math
import re
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
      and v5p have 8, v6e has 16, and tpu7x 32 if each of its two TensorCores
      has as many as v6e).
    slices: Usual topologies, written as the chips along each axis.
    accelerator: Prefix of Google's accelerator type: 'v5litepod' in
      'v5litepod-16'.
    units: What one chip adds to the number in the accelerator type, which
      counts TensorCores on v4 and v5p, and chips on v5e and v6e.
    runtime: Software version of a TPU VM
      (https://cloud.google.com/tpu/docs/runtimes). Empty if Cloud TPU's API
      does not offer the chip, but GKE does.
    cubes: Largest number of 4 x 4 x 4 cubes in a slice; 0 if a slice is flat.
      Any topology that is made of cubes is on offer, its axes in rising order.
    devices: Number of devices that JAX sees in one chip.
    options: Options that libtpu needs to present a chip as such devices.
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
  cubes: int = 0
  devices: int = 1
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def device(self) -> 'Chip':
    """The figures of one device, which has an equal part of its chip."""
    return dataclasses.replace(
      self,
      flops=self.flops / self.devices,
      hbm_bytes=self.hbm_bytes / self.devices,
      hbm_bandwidth=self.hbm_bandwidth / self.devices,
      ici_bandwidth=self.ici_bandwidth / self.devices,
      devices=1,
    )

  def has(self, shape: str) -> bool:
    """Returns whether a topology such as '4x4x8' is on offer."""
    if shape in self.slices:
      return True
    if not re.fullmatch(r'[1-9]\d*x[1-9]\d*x[1-9]\d*', shape):
      return False
    sizes = [int(size) for size in shape.split('x')]
    return (
      not any(size % 4 for size in sizes)
      and sizes == sorted(sizes)
      and math.prod(sizes) <= 64 * self.cubes
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
  """One GPU, with the figures of its data sheet.

  Attributes:
    flops: Rate of bfloat16 matrix products without sparsity, in FLOP/s. The
      data sheets of H100, H200 and L4 state twice that, with sparsity.
    hbm_bandwidth: Bandwidth of the memory, in bytes/s.
  """

  flops: float
  hbm_bandwidth: float


_FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBES = (
  *('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8'),
  *('8x8x16', '8x16x16', '16x16x16'),
)

# "System architecture" of https://docs.cloud.google.com/tpu/docs/NAME with v4,
# v5e, v5p, v6e and tpu7x. The pages state the links' bandwidth both ways
# together. tpu7x: each of the two devices of a chip is a TensorCore.
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
    cubes=64,
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
    slices=(*_CUBES, '16x16x24'),
    accelerator='v5p',
    units=2,
    runtime='v2-alpha-tpuv5',
    cubes=96,
  ),
  'v6e': Chip(
    flops=918e12,
    hbm_bytes=32 * 2**30,
    hbm_bandwidth=1640e9,
    ici_bandwidth=400e9,
    clock=1.75e9,
    slices=_FLAT,
    accelerator='v6e',
    units=1,
    runtime='v2-alpha-tpuv6e',
  ),
  'tpu7x': Chip(
    flops=2307e12,
    hbm_bytes=192 * 2**30,
    hbm_bandwidth=7380e9,
    ici_bandwidth=600e9,
    clock=2.2e9,
    slices=_CUBES,
    accelerator='tpu7x',
    units=2,
    runtime='',
    cubes=144,
    devices=2,
  ),
}

# By what JAX calls a device, which is the name that the driver gives it.
# https://www.nvidia.com/en-us/data-center/NAME with a100, h100, h200 and l4.
_A100_40GB = Gpu(flops=312e12, hbm_bandwidth=1555e9)
GPUS = {
  'NVIDIA A100-SXM4-40GB': _A100_40GB,
  'NVIDIA A100-PCIE-40GB': _A100_40GB,
  'NVIDIA A100-SXM4-80GB': Gpu(flops=312e12, hbm_bandwidth=2039e9),
  'NVIDIA A100 80GB PCIe': Gpu(flops=312e12, hbm_bandwidth=1935e9),
  'NVIDIA H100 80GB HBM3': Gpu(flops=989.5e12, hbm_bandwidth=3350e9),
  'NVIDIA H200': Gpu(flops=989.5e12, hbm_bandwidth=4800e9),
  'NVIDIA L4': Gpu(flops=121e12, hbm_bandwidth=300e9),
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
  if not found.has(shape):
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
