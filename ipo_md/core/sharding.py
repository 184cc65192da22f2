"""The mesh, and where each axis of each array lives on it.

Mesh axes: `data` (replicas of the model), `fsdp` (parameters and optimizer
state split, gathered where they are used), `tensor` (heads, feed-forward and
vocabulary split), `expert` (experts split).
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from ipo_md.core import types

MESH_AXES = ('data', 'fsdp', 'tensor', 'expert')
BATCH_AXES = ('data', 'fsdp')

# T5X's logical axis names -> mesh axis. An axis not named here is not split.
RULES = {
  'embed': 'fsdp',
  'joined_kv': 'tensor',
  'heads': 'tensor',
  'mlp': 'tensor',
  'vocab': 'tensor',
  'expert': 'expert',
}


def make_mesh(
  mesh_shape: Sequence[int], devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """A mesh of all devices.

  Between the slices of a multi-slice job, which the data centre's network
  joins, lies the outer part of `data` alone.

  Args:
    mesh_shape: MESH_SHAPE, sizes of (data, fsdp, tensor) or (data, fsdp,
      tensor, expert); one of them may be -1, what remains.
    devices: to make it of; None: those there are.

  Raises:
    ValueError: these are no sizes, they do not multiply to the number of
      devices, or the slices do not divide `data`.
  """
  if not isinstance(mesh_shape, Sequence) or not all(
    isinstance(size, int) and (size > 0 or size == -1) for size in mesh_shape
  ):
    raise ValueError(
      f'MESH_SHAPE = {mesh_shape}: sizes of {MESH_AXES[:3]} are needed, one of '
      'them may be -1.'
    )
  devices = jax.devices() if devices is None else devices
  shape = tuple(mesh_shape) + (1,) * (len(MESH_AXES) - len(mesh_shape))
  if len(shape) == len(MESH_AXES) and shape.count(-1) == 1:
    rest = math.prod(size for size in shape if size != -1)
    if rest > 0 and len(devices) % rest == 0:
      shape = tuple(len(devices) // rest if s == -1 else s for s in shape)
  if len(shape) != len(MESH_AXES) or math.prod(shape) != len(devices):
    known = math.prod(size for size in mesh_shape if size != -1)
    raise ValueError(
      f'MESH_SHAPE = {tuple(mesh_shape)}, sizes of {MESH_AXES[:3]} and '
      f'perhaps {MESH_AXES[3]}, multiplies to {known} and does not make the '
      f'{len(devices)} devices there are.'
    )
  # Devices of one slice, and those without slices, have no slice_index.
  slices = len({getattr(device, 'slice_index', 0) for device in devices})
  if shape[0] % slices:
    raise ValueError(
      f'MESH_SHAPE = {tuple(mesh_shape)}: data, {shape[0]}, is not divisible '
      f'by the {slices} slices.'
    )
  inner = (shape[0] // slices, *shape[1:])
  if slices > 1:
    outer = (slices,) + (1,) * (len(MESH_AXES) - 1)
    grid = mesh_utils.create_hybrid_device_mesh(
      inner, outer, devices, allow_split_physical_axes=True
    )
  else:
    grid = mesh_utils.create_device_mesh(
      inner, devices, allow_split_physical_axes=True
    )
  return jax.sharding.Mesh(
    grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES)
  )


def batch(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The sharding of axis 0 of a batch."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def params(
  mesh: jax.sharding.Mesh,
  abstract: types.Params,
  logical_axes: Any,
  rules: Mapping[str, str] = RULES,
) -> Any:
  """The sharding of each parameter.

  Args:
    mesh: of all devices.
    abstract: parameters or their `jax.ShapeDtypeStruct`s.
    logical_axes: `Model.logical_axes`: for each parameter its axes' names.
    rules: logical axis name -> mesh axis.

  Returns:
    A tree like `abstract` of NamedSharding.

  Raises:
    ValueError: a mesh axis does not divide a dimension that it splits, or
      a rule is of no axis.
  """
  named = jax.tree.leaves(logical_axes)
  for name, axis in rules.items():
    if axis not in MESH_AXES or name not in {*RULES, *named}:
      raise ValueError(
        f'Sharding rule {name!r}: {axis!r} (REFERENCE_SHARDING, '
        f'JUDGE_SHARDING): parameters have axes {sorted({*named})}, the mesh '
        f'{MESH_AXES}.'
      )

  def one(path, leaf, axes):
    spec = _spec(mesh, axes, rules)
    for size, name, axis in zip(leaf.shape, axes, spec, strict=True):
      if axis is not None and size % mesh.shape[axis]:
        raise ValueError(
          f'{jax.tree_util.keystr(path)} of shape {leaf.shape}: axis {name!r} '
          f'of size {size} is not divisible by mesh axis {axis!r} of size '
          f'{mesh.shape[axis]} (MESH_SHAPE).'
        )
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(one, abstract, logical_axes)


def _spec(
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
  axes: Sequence[str],
  rules: Mapping[str, str],
) -> PartitionSpec:
  """Each logical axis on its mesh axis, which splits the first one alone."""
  spec = []
  for name in axes:
    axis = rules.get(name)
    taken = axis is None or axis in spec or mesh.shape[axis] == 1
    spec.append(None if taken else axis)
  return PartitionSpec(*spec)


def on_tpu() -> bool:
  """Whether what is traced is for TPUs, as the mesh that is set says."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device is not None and device.platform == 'tpu'


def on_one_cpu() -> bool:
  """Whether what is traced is for a CPU, and the mesh, if any, is of one."""
  mesh = jax.sharding.get_abstract_mesh()
  device = mesh.abstract_device
  platform = device.platform if device else jax.default_backend()
  return platform == 'cpu' and (mesh.empty or mesh.size == 1)


def _batch_parts() -> int:
  """Into how many parts the mesh that is set splits a batch."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else math.prod(mesh.shape[a] for a in BATCH_AXES)


def activation_parts() -> int:
  """Among how many devices activations are split: all but for experts."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.size // mesh.shape.get('expert', 1)


def split_batch(tree: Any) -> Any:
  """Constrains axis 0 of activations to the batch axes of the mesh.

  Left alone, the partitioner may split them as the weights are, and then sends
  activations from chip to chip where it should gather weights. Arrays of
  another size (a batch that the mesh does not divide) are left as they are.
  """
  parts = _batch_parts()

  def one(x):
    if x.ndim < 2 or parts == 1 or x.shape[0] % parts:
      return x
    rest = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES, *rest))

  return jax.tree.map(one, tree)


def map_batch(
  f: Callable[..., jax.Array], params: Any, arrays: Sequence[jax.Array]
) -> jax.Array:
  """f(params, *arrays), for each device's part of the batch apart.

  For what the partitioner cannot know to be one example's business, such as
  sorting rows. Arrays of another size (a batch that the mesh does not divide)
  are taken whole.

  Args:
    f: (params, *arrays) -> array whose axis 0 is that of the arrays.
    params: gathered off the batch axes; other axes stay as they are.
    arrays: [B, ...] each.
  """
  parts = _batch_parts()
  if parts == 1 or arrays[0].shape[0] % parts:
    return f(params, *arrays)
  split = PartitionSpec(BATCH_AXES)
  mapped = jax.shard_map(
    f,
    axis_names=set(BATCH_AXES),
    in_specs=(PartitionSpec(), *(split for _ in arrays)),
    out_specs=split,
    check_vma=False,
  )
  return mapped(params, *arrays)


# For a product whose weight lies on several chips XLA sends the weight's parts
# around the ring and multiplies with one at a time ("windowed einsum"). A step
# has few rows, and each of those products reads all of them. Gathering the
# weight first, beside other work, takes less than half of the cycles.
_TPU_OPTIONS = {'xla_jf_spmd_threshold_for_windowed_einsum_mib': 1_000_000}


def jit_update(step: Callable[..., Any], state_sharding: Any) -> Any:
  """`jax.jit` of (state, ...) -> (state, metrics), the state donated.

  Args:
    step: to be compiled for the mesh that is set.
    state_sharding: of the state, before and after.
  """
  return jax.jit(
    step,
    donate_argnums=0,
    out_shardings=(state_sharding, None),
    compiler_options=_TPU_OPTIONS if on_tpu() else None,
  )


def abstract_params(
  mesh: jax.sharding.Mesh,
  abstract: types.Params,
  logical_axes: Any,
  rules: Mapping[str, str] | None = None,
) -> types.Params:
  """ShapeDtypeStructs with the shardings of `params`; rules None: RULES."""
  rules = RULES if rules is None else rules
  return with_shardings(abstract, params(mesh, abstract, logical_axes, rules))


def with_shardings(abstract: Any, shardings: Any) -> Any:
  """A tree of ShapeDtypeStructs with a tree of shardings in them."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    abstract,
    shardings,
  )


def table(tree: Any) -> str:
  """A line for each array: name, shape, type, spec, bytes on one device.

  Args:
    tree: of arrays or of `jax.ShapeDtypeStruct`s with shardings.
  """
  rows = [('name', 'shape', 'type', 'spec', 'bytes per device')]
  total = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    size = bytes_per_device(leaf)
    total += size
    rows.append(
      (
        jax.tree_util.keystr(path, simple=True, separator='/'),
        str(tuple(leaf.shape)),
        str(leaf.dtype),
        str(tuple(leaf.sharding.spec)),
        f'{size:,}',
      )
    )
  rows.append(('all', '', '', '', f'{total:,}'))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    '  '.join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
    for row in rows
  ]
  return '\n'.join(lines) + '\n'


def bytes_per_device(tree: Any) -> int:
  """Of all arrays of a tree with shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def like_params(
  mesh: jax.sharding.Mesh, abstract: Any, param_shardings: Any
) -> Any:
  """Shardings of a tree that holds arrays shaped like the parameters.

  An optimizer keeps moments under the parameters' own paths: a leaf whose path
  ends as a parameter's does, and whose rank is the same, is split as it is. The
  rest (counters, factored moments) is replicated.

  Args:
    mesh: of all devices.
    abstract: the tree, of `jax.ShapeDtypeStruct`s.
    param_shardings: as from `params`.
  """
  known = dict(jax.tree_util.tree_leaves_with_path(param_shardings))

  def one(path, leaf):
    for start in range(len(path)):
      sharding = known.get(path[start:])
      if sharding is not None and len(sharding.spec) == leaf.ndim:
        return _where_it_divides(sharding, leaf.shape)
    return replicated(mesh)

  return jax.tree_util.tree_map_with_path(one, abstract)


def _where_it_divides(
  sharding: NamedSharding, shape: Sequence[int]
) -> NamedSharding:
  spec = [
    axis if axis is None or size % sharding.mesh.shape[axis] == 0 else None
    for axis, size in zip(sharding.spec, shape, strict=True)
  ]
  return NamedSharding(sharding.mesh, PartitionSpec(*spec))
