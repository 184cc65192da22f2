"""Weights in the form that the sampling loop reads.

`models.Model.decode_form` applies `for_sampling` to every parameter.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.models import cpu_layouts
from ipo_md.models import layer_stack
from ipo_md.models import sampling_kernels

# Parameters with one of these axes are multiplied in the type of the
# activations, as are the scales of norms without an offset.
_MULTIPLIED = ('joined_kv', 'mlp', 'vocab')
_NORMS = (('layers', 'embed'), ('layers', 'head_dim'), ('embed',))

# The last two axes of kernels: inputs, then outputs. An embedding table has
# the reverse order and is read row by row.
_KERNELS = (
  ('embed', 'joined_kv'),
  ('joined_kv', 'embed'),
  ('embed', 'mlp'),
  ('mlp', 'embed'),
  ('embed', 'vocab'),
)


def for_sampling(
  array: jax.Array, axes: tuple[str, ...], config: Any, *, int8: bool = False
) -> jax.Array | layer_stack.PerLayer | sampling_kernels.Kernel:
  """Converts one parameter for the sampling loop.

  Kernels are rounded on request, one scale per output:

    W_io ~ s_o q_io,   s_o = max_i |W_io| / 127,   q = round(W / s)

  Args:
    array: Parameter in float32.
    axes: Names of its logical axes.
    config: Configuration of the network, whose `dtype` activations have.
    int8: Whether kernels are rounded to int8. Kernels of experts never are.

  Returns:
    The parameter, cast, gathered and rearranged.
  """
  # Experts have their own products (`grouped_matmul`).
  if axes[-2:] not in _KERNELS or 'expert' in axes:
    norm = axes in _NORMS and not config.norm_offset
    if norm or set(axes) & set(_MULTIPLIED):
      array = array.astype(config.dtype)
    return _placed(array, axes)
  if not int8:
    return _rearranged(array.astype(config.dtype), axes)
  largest = jnp.max(jnp.abs(array), axis=-2)
  scale = jnp.where(largest > 0, largest, 1.0) / 127
  array = jnp.round(array / scale[..., None, :]).astype(jnp.int8)
  return sampling_kernels.Scaled(
    _rearranged(array, axes), _placed(scale, (*axes[:-2], axes[-1]))
  )


def _rearranged(
  kernel: jax.Array, axes: tuple[str, ...]
) -> sampling_kernels.Kernel:
  """Puts a kernel into the memory order that the machine reads fastest."""
  if cpu_layouts.enabled():
    panels = cpu_layouts.in_panels(kernel)
    parts = tuple(_layers_apart(x, axes) for x in panels.parts)
    return panels.replace(parts=parts)
  axes = (*axes[:-2], axes[-1], axes[-2])
  return sampling_kernels.Transposed(_placed(kernel.swapaxes(-1, -2), axes))


def _placed(array: jax.Array, axes: tuple[str, ...]) -> types.Params:
  """Gathers an array off the `fsdp` axis and separates its layers."""
  array = _layers_apart(_gathered(array, axes), axes)
  # Without the barrier every token lays out the vectors of a layer again.
  vectors = axes[0] == 'layers' and len(axes) == 2
  return jax.lax.optimization_barrier(array) if vectors else array


def _layers_apart(array: jax.Array, axes: tuple[str, ...]) -> types.Params:
  if axes[0] != 'layers':
    return array
  return layer_stack.take_apart(array, array.shape[0])


def _gathered(array: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """Splits an array over the current mesh by RULES, except along `fsdp`."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return array
  spec = [sharding.RULES.get(axis) for axis in axes]
  spec = [None if axis == 'fsdp' else axis for axis in spec]
  return jax.lax.with_sharding_constraint(array, PartitionSpec(*spec))
