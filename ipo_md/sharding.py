"""The mesh, and where each axis of each array lives on it.

Mesh axes: `data` (replicas of the model), `fsdp` (parameters and optimizer
state split, gathered where they are used), `tensor` (heads, feed-forward and
vocabulary split), `expert` (experts split).
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from ipo_md import types

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


def make_mesh(mesh_shape: Sequence[int]) -> jax.sharding.Mesh:
  """A mesh of all devices.

  Args:
    mesh_shape: MESH_SHAPE, sizes of (data, fsdp, tensor) or (data, fsdp,
      tensor, expert); one of them may be -1, what remains.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  shape = tuple(mesh_shape) + (1,) * (len(MESH_AXES) - len(mesh_shape))
  devices = jax.device_count()
  if len(shape) == len(MESH_AXES) and shape.count(-1) == 1:
    rest = math.prod(size for size in shape if size != -1)
    if rest > 0 and devices % rest == 0:
      shape = tuple(devices // rest if s == -1 else s for s in shape)
  if len(shape) != len(MESH_AXES) or math.prod(shape) != devices:
    raise ValueError(
      f'MESH_SHAPE = {tuple(mesh_shape)}, sizes of {MESH_AXES[:3]} and '
      f'perhaps {MESH_AXES[3]}, does not make the {devices} devices there are.'
    )
  return jax.make_mesh(
    shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES)
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
    ValueError: a mesh axis does not divide a dimension that it splits.
  """

  def one(path, leaf, axes):
    spec = []
    for size, name in zip(leaf.shape, axes, strict=True):
      axis = rules.get(name)
      if axis in spec or axis is None or mesh.shape[axis] == 1:
        spec.append(None)
        continue
      if size % mesh.shape[axis]:
        raise ValueError(
          f'{jax.tree_util.keystr(path)} of shape {leaf.shape}: axis {name!r} '
          f'of size {size} is not divisible by mesh axis {axis!r} of size '
          f'{mesh.shape[axis]} (MESH_SHAPE).'
        )
      spec.append(axis)
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree_util.tree_map_with_path(one, abstract, logical_axes)


def abstract_params(
  mesh: jax.sharding.Mesh, abstract: types.Params, logical_axes: Any
) -> types.Params:
  """ShapeDtypeStructs with the shardings of `params`."""
  return with_shardings(abstract, params(mesh, abstract, logical_axes))


def with_shardings(abstract: Any, shardings: Any) -> Any:
  """A tree of ShapeDtypeStructs with a tree of shardings in them."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    abstract,
    shardings,
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
