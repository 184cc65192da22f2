"""Parameters as sampling wants them: see `model.Model.decode_form`."""

from typing import Any

import jax
from jax.sharding import PartitionSpec

from ipo_md import sharding
from ipo_md.models import layers
from ipo_md.models import stacks

# A parameter with one of these axes is multiplied in the activations' type.
_MULTIPLIED = ('joined_kv', 'mlp', 'vocab')

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
  array: jax.Array, axes: tuple[str, ...], config: Any
) -> jax.Array | stacks.PerLayer | layers.Transposed:
  """One parameter.

  Args:
    array: float32.
    axes: names of its axes.
    config: of the network: `dtype` of activations.
  """
  if set(axes) & set(_MULTIPLIED):
    array = array.astype(config.dtype)
  # Experts have products of their own.
  transposed = axes[-2:] in _KERNELS and 'expert' not in axes
  if transposed:
    array = array.swapaxes(-1, -2)
    axes = (*axes[:-2], axes[-1], axes[-2])
  array = _gathered(array, axes)
  if axes[0] == 'layers':
    array = stacks.take_apart(array, array.shape[0])
  return layers.Transposed(array) if transposed else array


def _gathered(array: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """The array, split over the mesh that is set as RULES say but for `fsdp`."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return array
  spec = [sharding.RULES.get(axis) for axis in axes]
  spec = [None if axis == 'fsdp' else axis for axis in spec]
  return jax.lax.with_sharding_constraint(array, PartitionSpec(*spec))
