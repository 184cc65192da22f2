"""How a program that is being traced is split over the current mesh.

`sharding` says where arrays lie between programs. The functions here belong
inside a program and read the mesh that `jax.set_mesh` has set; without a mesh
they change nothing.
"""

from collections.abc import Callable
from collections.abc import Sequence
import math
from typing import Any

import jax
from jax.sharding import PartitionSpec

from ipo_md.core import sharding


def on_tpu() -> bool:
  """Whether the program is for TPUs, according to the current mesh."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device is not None and device.platform == 'tpu'


def on_one_cpu() -> bool:
  """Whether the program is for a CPU, with no mesh or a mesh of one device."""
  mesh = jax.sharding.get_abstract_mesh()
  device = mesh.abstract_device
  platform = device.platform if device else jax.default_backend()
  return platform == 'cpu' and (mesh.empty or mesh.size == 1)


def _batch_parts() -> int:
  """Number of parts into which the current mesh splits a batch."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return 1
  return math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES)


def activation_parts() -> int:
  """Number of devices that share activations: all axes except `expert`."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.size // mesh.shape.get('expert', 1)


def split_batch(tree: Any) -> Any:
  """Constrains axis 0 of activations to the batch axes of the mesh.

  Without the constraint the partitioner may split activations like the
  weights, and then sends activations between chips where it should gather
  weights. An array whose first axis the mesh does not divide is left alone.

  Args:
    tree: Arrays [B, ...].

  Returns:
    The same arrays, constrained.
  """
  parts = _batch_parts()

  def one(x):
    if x.ndim < 2 or parts == 1 or x.shape[0] % parts:
      return x
    rest = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(
      x, PartitionSpec(sharding.BATCH_AXES, *rest)
    )

  return jax.tree.map(one, tree)


def map_batch(
  f: Callable[..., jax.Array], params: Any, arrays: Sequence[jax.Array]
) -> jax.Array:
  """Computes f(params, *arrays) separately for each device's part of the batch.

  This is for work that the partitioner cannot recognise as independent per
  example, such as sorting rows. A batch that the mesh does not divide is
  computed as a whole.

  Args:
    f: Function (params, *arrays) -> array with the first axis of the arrays.
    params: Parameters, gathered off the batch axes. Other axes stay split.
    arrays: Arrays [B, ...].

  Returns:
    [B, ...] result of f.
  """
  parts = _batch_parts()
  if parts == 1 or arrays[0].shape[0] % parts:
    return f(params, *arrays)
  split = PartitionSpec(sharding.BATCH_AXES)
  mapped = jax.shard_map(
    f,
    axis_names=set(sharding.BATCH_AXES),
    in_specs=(PartitionSpec(), *(split for _ in arrays)),
    out_specs=split,
    check_vma=False,
  )
  return mapped(params, *arrays)


# For a product whose weight is spread over several chips, XLA passes parts of
# the weight around the ring and multiplies by one part at a time ("windowed
# einsum"). A step has few rows, and each partial product reads all of them.
# Gathering the weight first, beside other work, takes less than half as many
# cycles.
_TPU_OPTIONS = {'xla_jf_spmd_threshold_for_windowed_einsum_mib': 1_000_000}


def jit_update(step: Callable[..., Any], state_sharding: Any) -> Any:
  """Applies `jax.jit` to a step (state, ...) -> (state, metrics).

  The state is donated.

  Args:
    step: Step to compile for the current mesh.
    state_sharding: Shardings of the state, the same before and after the step.

  Returns:
    The compiled step.
  """
  return jax.jit(
    step,
    donate_argnums=0,
    out_shardings=(state_sharding, None),
    compiler_options=_TPU_OPTIONS if on_tpu() else None,
  )
