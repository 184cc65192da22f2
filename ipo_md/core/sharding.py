"""The mesh, and how arrays are spread over it.

Mesh axes:
  data    holds replicas of the model.
  fsdp    splits parameters and optimizer state, which are gathered for use.
  tensor  splits heads, feed-forward layers and the vocabulary.
  expert  splits the experts of a mixture.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any
from typing import TypeAlias

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from ipo_md.core import types

Device: TypeAlias = jax.Device  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no stubs

MESH_AXES = ('data', 'fsdp', 'tensor', 'expert')
BATCH_AXES = ('data', 'fsdp')

# T5X's logical axis names and the mesh axes that split them. Other logical
# axes are not split.
RULES = {
  'embed': 'fsdp',
  'joined_kv': 'tensor',
  'heads': 'tensor',
  'mlp': 'tensor',
  'vocab': 'tensor',
  'expert': 'expert',
}


def make_mesh(
  mesh_shape: Sequence[int],
  devices: Sequence[Device] | None = None,
) -> jax.sharding.Mesh:
  """Makes a mesh of all devices.

  The slices of a multi-slice job are joined by the data centre's network.
  Only the outer part of the `data` axis crosses it.

  Args:
    mesh_shape: MESH_SHAPE, the sizes of (data, fsdp, tensor) or (data, fsdp,
      tensor, expert). One size may be -1 and takes the remaining devices.
    devices: Devices of the mesh. None means all devices of the process.

  Returns:
    The mesh, with all four axes.

  Raises:
    ValueError: If the sizes are not valid or do not multiply to the number of
      devices, or if the number of slices does not divide `data`.
  """
  devices = jax.devices() if devices is None else devices
  shape = _mesh_sizes(mesh_shape, len(devices))
  # Devices of a single slice, and devices without slices, have no slice_index.
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


def _mesh_sizes(mesh_shape: Sequence[int], devices: int) -> tuple[int, ...]:
  """The sizes of the four axes for a number of devices."""
  if not isinstance(mesh_shape, Sequence) or not all(
    isinstance(size, int) and (size > 0 or size == -1) for size in mesh_shape
  ):
    raise ValueError(
      f'MESH_SHAPE = {mesh_shape}: sizes of {MESH_AXES[:3]} are needed, one of '
      'them may be -1.'
    )
  shape = tuple(mesh_shape) + (1,) * (len(MESH_AXES) - len(mesh_shape))
  known = math.prod(size for size in shape if size != -1)
  free = len(shape) == len(MESH_AXES) and shape.count(-1) == 1
  if free and devices % known == 0:
    shape = tuple(devices // known if s == -1 else s for s in shape)
  if len(shape) != len(MESH_AXES) or math.prod(shape) != devices:
    raise ValueError(
      f'MESH_SHAPE = {tuple(mesh_shape)}, the sizes of {MESH_AXES[:3]} and '
      f'optionally {MESH_AXES[3]}, multiplies to {known} and does not match '
      f'the {devices} devices there are.'
    )
  return shape


def batch(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The sharding of a batch along axis 0."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The sharding of an array that every device holds in full."""
  return NamedSharding(mesh, PartitionSpec())


def params(
  mesh: jax.sharding.Mesh,
  abstract: types.Params,
  logical_axes: Any,
  rules: Mapping[str, str] = RULES,
) -> Any:
  """Returns the sharding of each parameter.

  Args:
    mesh: Mesh of all devices.
    abstract: Parameters or their `jax.ShapeDtypeStruct`s.
    logical_axes: Axis names of each parameter, from `Model.logical_axes`.
    rules: Mesh axis of each logical axis that is split.

  Returns:
    A tree of NamedShardings with the structure of `abstract`.

  Raises:
    ValueError: If a mesh axis does not divide a dimension that it splits, or
      if a rule names an unknown axis.
  """
  named = jax.tree.leaves(logical_axes)
  for name, axis in rules.items():
    if axis not in MESH_AXES or name not in {*RULES, *named}:
      raise ValueError(
        f'The sharding rule {name!r}: {axis!r} (REFERENCE_SHARDING, '
        f'JUDGE_SHARDING) is not valid: parameters have axes '
        f'{sorted({*named})}, the mesh {MESH_AXES}.'
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
  """Maps logical axes to mesh axes; a mesh axis splits only its first match."""
  spec = []
  for name in axes:
    axis = rules.get(name)
    taken = axis is None or axis in spec or mesh.shape[axis] == 1
    spec.append(None if taken else axis)
  return PartitionSpec(*spec)


def abstract_params(
  mesh: jax.sharding.Mesh,
  abstract: types.Params,
  logical_axes: Any,
  rules: Mapping[str, str] | None = None,
) -> types.Params:
  """Returns `jax.ShapeDtypeStruct`s that carry the shardings of `params`.

  Args:
    mesh: Mesh of all devices.
    abstract: Parameters or their `jax.ShapeDtypeStruct`s.
    logical_axes: Axis names of each parameter, from `Model.logical_axes`.
    rules: Mesh axis of each logical axis that is split. None means `RULES`.
  """
  rules = RULES if rules is None else rules
  return with_shardings(abstract, params(mesh, abstract, logical_axes, rules))


def with_shardings(abstract: Any, shardings: Any) -> Any:
  """Adds a tree of shardings to a tree of `jax.ShapeDtypeStruct`s."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    abstract,
    shardings,
  )


def table(tree: Any) -> str:
  """Renders a table of arrays: name, shape, type, spec, bytes per device.

  Args:
    tree: Arrays, or `jax.ShapeDtypeStruct`s with shardings.

  Returns:
    A header, one line per array and a line with the total.
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
  """Total size on one device of a tree of arrays with shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def like_params(
  mesh: jax.sharding.Mesh, abstract: Any, param_shardings: Any
) -> Any:
  """Returns shardings for a tree that holds arrays shaped like parameters.

  An optimizer stores its moments under the paths of the parameters. A leaf is
  split like the parameter whose path ends its own path, provided that their
  ranks agree. All other leaves (counters, factored moments) are replicated.

  Args:
    mesh: Mesh of all devices.
    abstract: Tree of `jax.ShapeDtypeStruct`s.
    param_shardings: Shardings of the parameters, from `params`.

  Returns:
    A tree of NamedShardings with the structure of `abstract`.
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
  """Drops the mesh axes that do not divide the shape."""
  spec = [
    axis if axis is None or size % sharding.mesh.shape[axis] == 0 else None
    for axis, size in zip(sharding.spec, shape, strict=True)
  ]
  return NamedSharding(sharding.mesh, PartitionSpec(*spec))
