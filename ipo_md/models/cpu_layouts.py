"""Memory layouts for a single CPU; no accelerator uses this module.

Reading memory bounds the product of a few rows with a large array, and XLA
reads an array on a CPU at full speed only in contiguous pieces. `enabled` is
the one switch: other modules ask it before they use a layout, and on a TPU,
a GPU or several devices they never do. The layouts reorder arrays and leave
the mathematics alone.

  weights   [in, out]      ->  Panels, [in, 64] each      (`in_panels`)
  keys      [N, H, D, S]   ->  Strips, [D, 64] each       (`in_strips`)
  cosines and sines        ->  rows of a constant table   (`rotation`)
"""

import math
from typing import Any

import flax.struct
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from ipo_md.core import partitioning
from ipo_md.models import sampling_kernels

# Columns of a panel, and the largest number of panels in one product. Each
# panel needs a copy of the rows, and with more panels the copies of 64 or more
# rows no longer fit in the processor's cache.
PANEL_COLUMNS = 64
PANELS = 16

# Columns of a strip of keys. Wider keys are read from memory at half the rate
# when they are multiplied by few queries.
STRIP_COLUMNS = 64

# For up to this many rows x, the product E x^T with the table E of a tied head
# is faster than x E^T.
TABLE_FIRST_ROWS = 64


def enabled() -> bool:
  """Whether the traced program is for a single CPU."""
  return partitioning.on_one_cpu()


class Panels(sampling_kernels.Kernel, flax.struct.PyTreeNode):
  """A kernel in panels of 64 columns.

  For a product with few rows, XLA packs the kernel from short pieces that lie
  far apart in memory, and waits for them. A panel is contiguous, and several
  panels make one batched product.
  """

  # [..., P, in, 64] each, P at most `PANELS`. Zeros pad the last panel.
  parts: tuple[jax.Array, ...]
  outputs: int = flax.struct.field(pytree_node=False)

  def product(self, x: jax.Array, dtype: Any) -> jax.Array:
    out = []
    for part in self.parts:
      rows = jnp.broadcast_to(x.astype(part.dtype), (len(part), *x.shape))
      y = lax.dot_general(
        rows, part, (((2,), (1,)), ((0,), (0,))), preferred_element_type=dtype
      )
      out.append(y.swapaxes(0, 1).reshape(x.shape[0], -1))
    return jnp.concatenate(out, axis=1)[:, : self.outputs]


def in_panels(kernel: jax.Array) -> Panels:
  """Arranges a kernel [..., in, out] in panels."""
  *lead, inputs, outputs = kernel.shape
  panels = math.ceil(outputs / PANEL_COLUMNS)
  pad = [(0, 0)] * (kernel.ndim - 1) + [(0, panels * PANEL_COLUMNS - outputs)]
  kernel = jnp.pad(kernel, pad).reshape(*lead, inputs, panels, PANEL_COLUMNS)
  kernel = kernel.swapaxes(-3, -2)
  parts = [kernel[..., i : i + PANELS, :, :] for i in range(0, panels, PANELS)]
  return Panels(tuple(parts), outputs)


class Strips(flax.struct.PyTreeNode):
  """Keys [N, H, D, S] in strips of 64 columns."""

  array: jax.Array  # [N, H, C, D, 64]; zeros pad the last of C strips
  columns: int = flax.struct.field(pytree_node=False)  # S

  def write(self, keys: jax.Array, index: jax.Array | int) -> 'Strips':
    """Writes keys [N, H, D, T] into the columns from `index` on."""
    array = self.array
    for t in range(keys.shape[-1]):  # the sampling loop writes one
      strip, column = divmod(index + t, array.shape[-1])
      one = keys[:, :, None, :, t, None].astype(array.dtype)
      array = lax.dynamic_update_slice(array, one, (0, 0, strip, 0, column))
    return self.replace(array=array)

  def scores(self, query: jax.Array) -> jax.Array:
    """Multiplies queries [N, H, Q, D] by the keys: [N, H, Q, S] float32."""
    n, h, strips = self.array.shape[:3]
    query = jnp.broadcast_to(
      query[:, :, None], (n, h, strips, *query.shape[2:])
    )
    scores = jnp.einsum(
      'ngcqd,ngcds->ngcqs',
      query,
      self.array,
      preferred_element_type=jnp.float32,
    ).swapaxes(2, 3)
    return scores.reshape(*scores.shape[:3], -1)[..., : self.columns]

  def starting_with(self, narrow: 'jax.Array | Strips') -> 'Strips':
    """Returns these keys with narrower keys in the first columns."""
    if isinstance(narrow, Strips):
      first = narrow.array
    else:  # the keys of a single strip are not arranged
      first = jnp.expand_dims(narrow, 2)
    array = lax.dynamic_update_slice(self.array, first, (0,) * 5)
    return self.replace(array=array)


def in_strips(keys: jax.Array) -> jax.Array | Strips:
  """Arranges keys [N, H, D, S] in strips, unless S fits in a single one."""
  *lead, d, columns = keys.shape
  if columns <= STRIP_COLUMNS:
    return keys
  strips = math.ceil(columns / STRIP_COLUMNS)
  pad = [(0, 0)] * (keys.ndim - 1) + [(0, strips * STRIP_COLUMNS - columns)]
  array = jnp.pad(keys, pad).reshape(*lead, d, strips, STRIP_COLUMNS)
  return Strips(array.swapaxes(-3, -2), columns)


def rotation(
  positions: jax.Array, length: int, frequencies: np.ndarray
) -> tuple[jax.Array, jax.Array]:
  """Looks up `rotary.rotation` in a constant table of `length` rows.

  XLA would compute cosines again at every use, for each head of each layer.
  """
  angles = np.arange(length, dtype=np.float32)[:, None, None] * frequencies
  rows = lambda table: jnp.take(table, positions, axis=0, mode='clip')
  return rows(np.cos(angles)), rows(np.sin(angles))


def table_first(x: jax.Array, table: jax.Array) -> jax.Array:
  """Multiplies few rows [N, E] by a table [V, E] as (E x^T)^T, in float32."""
  out = lax.dot_general(
    table, x, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
  )
  # Without the barrier XLA swaps the operands back.
  return lax.optimization_barrier(out).T
