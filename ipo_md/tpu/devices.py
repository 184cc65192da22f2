"""Devices of TPU slices, for compilation on a machine without TPUs."""

from collections.abc import Sequence
import importlib.util
import os

from jax.experimental import topologies

from ipo_md.core import sharding
from ipo_md.core import tpu_slices


def devices(topology: str, num_slices: int = 1) -> Sequence[sharding.Device]:
  """Returns the devices of TPU slices as targets of compilation.

  Args:
    topology: TOPOLOGY of each slice, such as 'v5e:4x4' or 'v4:4x4x4'.
    num_slices: NUM_SLICES, the number of slices.

  Raises:
    ValueError: If there is no such topology, or if libtpu is not installed.
  """
  found = tpu_slices.chip(topology)
  if importlib.util.find_spec('libtpu') is None:
    raise ValueError(
      "Compiling for a TPU needs libtpu: pip install -e '.[tpu]' -c "
      'constraints.txt (no TPU is needed).'
    )
  # Without these settings libtpu queries a metadata server and allows only one
  # process.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-4')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('TPU_WORKER_ID', '0')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  options = dict(found.options)
  if num_slices > 1:
    options['num_slices'] = num_slices
  if tpu_slices.size(topology) == 1:
    options['chips_per_host_bounds'] = (1, 1, 1)
  return topologies.get_topology_desc(
    topology, platform='tpu', **options
  ).devices
