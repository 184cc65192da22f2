"""Parameters as sampling wants them: see `models.Model.decode_form`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ipo_md.core import sharding
from ipo_md.models import layer_stack
from ipo_md.models import packed_kernels

# A parameter with one of these axes is multiplied in the activations' type.
_MULTIPLIED = ('joined_kv', 'mlp', 'vocab')

# So is a norm's scale.
_NORMS = (('layers', 'embed'), ('embed',))

# The last two axes of kernels: inputs, then outputs. An embedding has them the
# other way round, being a table of rows that one takes.
_KERNELS = (
  ('embed', 'joined_kv'),
  ('joined_kv', 'embed'),
  ('embed', 'mlp'),
  ('mlp', 'embed'),
  ('embed', 'vocab'),
)


def of_array(
  array: jax.Array, axes: tuple[str, ...], config: Any, *, int8: bool = False
) -> jax.Array | layer_stack.PerLayer | packed_kernels.Kernel:
  """One parameter.

  Args:
    array: float32.
    axes: names of its axes.
    config: of the network: `dtype` of activations.
    int8: whether kernels are rounded to int8, but those of experts:

      W_io ~ s_o q_io,   s_o = max_i |W_io| / 127,   q = round(W / s)
  """
  # Experts have products of their own.
  if axes[-2:] not in _KERNELS or 'expert' in axes:
    if set(axes) & set(_MULTIPLIED) or axes in _NORMS:
      array = array.astype(config.dtype)
    return _placed(array, axes)
  if not int8:
    return _rearranged(array.astype(config.dtype), axes)
  largest = jnp.max(jnp.abs(array), axis=-2)
  scale = jnp.where(largest > 0, largest, 1.0) / 127
  array = jnp.round(array / scale[..., None, :]).astype(jnp.int8)
  return packed_kernels.Scaled(
    _rearranged(array, axes), _placed(scale, (*axes[:-2], axes[-1]))
  )


def _rearranged(
  kernel: jax.Array, axes: tuple[str, ...]
) -> packed_kernels.Kernel:
  """A kernel in the order that suits the machine."""
  if sharding.on_one_cpu():
    panels = packed_kernels.in_panels(kernel)
    parts = tuple(_layers_apart(x, axes) for x in panels.parts)
    return panels.replace(parts=parts)
  axes = (*axes[:-2], axes[-1], axes[-2])
  return packed_kernels.Transposed(_placed(kernel.swapaxes(-1, -2), axes))


def _placed(
  array: jax.Array, axes: tuple[str, ...]
) -> jax.Array | layer_stack.PerLayer:
  """Gathered off `fsdp`, and each layer apart."""
  array = _layers_apart(_gathered(array, axes), axes)
  # Without the barrier each token lays a layer's vectors out anew.
  vectors = axes[0] == 'layers' and len(axes) == 2
  return jax.lax.optimization_barrier(array) if vectors else array


def _layers_apart(
  array: jax.Array, axes: tuple[str, ...]
) -> jax.Array | layer_stack.PerLayer:
  if axes[0] != 'layers':
    return array
  return layer_stack.take_apart(array, array.shape[0])


def _gathered(array: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """The array, split over the mesh that is set as RULES say but for `fsdp`."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return array
  spec = [sharding.RULES.get(axis) for axis in axes]
  spec = [None if axis == 'fsdp' else axis for axis in spec]
  return jax.lax.with_sharding_constraint(array, PartitionSpec(*spec))
