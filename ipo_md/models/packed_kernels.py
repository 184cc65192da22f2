"""What stands for a kernel W [in, out] while tokens are sampled.

A token at a time is few rows x, and the time of x W is that of reading W. So
sampling keeps W in the order in which the machine reads it best. Each class
here has what `models.Dense` and `models.project` ask of a kernel: an index,
`astype`, x @ kernel, and `product`.
"""

import math
from typing import Any
from typing import Self

import flax.struct
import jax
from jax import lax
import jax.numpy as jnp

# Columns of a panel, and the most panels of a product, each of which has a copy
# of the rows: with more, the copies of 64 rows and more leave the cache.
_COLUMNS = 64
_PANELS = 16


class Kernel:
  """What all of them have in common."""

  def __getitem__(self, index: Any) -> Self:
    return jax.tree.map(lambda x: x[index], self)

  def astype(self, dtype: Any) -> Self:
    return jax.tree.map(lambda x: x.astype(dtype), self)

  def __rmatmul__(self, x: jax.Array) -> jax.Array:
    return self.product(x, x.dtype)

  def product(self, x: jax.Array, dtype: Any) -> jax.Array:
    """[N, in] -> x W, [N, out] in `dtype`.

    Multiplied in W's type and accumulated in `dtype`; integers in x's type and
    in float32.
    """
    raise NotImplementedError


@flax.struct.dataclass
class Transposed(Kernel):
  """W^T, each output's weights in a row."""

  array: jax.Array  # [..., out, in]

  def product(self, x: jax.Array, dtype: Any) -> jax.Array:
    return lax.dot_general(
      x.astype(self.array.dtype),
      self.array,
      (((1,), (1,)), ((), ())),
      preferred_element_type=dtype,
    )


@flax.struct.dataclass
class Panels(Kernel):
  """W in panels of 64 columns, for a CPU.

  XLA's product of few rows packs a kernel strip by strip, each made of short
  pieces that lie far apart, and waits for them. A panel lies in one piece, and
  a product of panels is one of a batch.
  """

  # [..., P, in, 64] each, P at most 16. The last is padded with columns of 0.
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
  """[..., in, out] -> the same in panels."""
  *lead, inputs, outputs = kernel.shape
  panels = math.ceil(outputs / _COLUMNS)
  pad = [(0, 0)] * (kernel.ndim - 1) + [(0, panels * _COLUMNS - outputs)]
  kernel = jnp.pad(kernel, pad).reshape(*lead, inputs, panels, _COLUMNS)
  kernel = kernel.swapaxes(-3, -2)
  parts = [
    kernel[..., i : i + _PANELS, :, :] for i in range(0, panels, _PANELS)
  ]
  return Panels(tuple(parts), outputs)


@flax.struct.dataclass
class Scaled(Kernel):
  """W_io = s_o q_io, of integers q."""

  kernel: Transposed | Panels  # int8
  scale: jax.Array  # [..., out]

  def astype(self, dtype: Any) -> 'Scaled':
    return self.replace(kernel=self.kernel.astype(dtype))

  def product(self, x: jax.Array, dtype: Any) -> jax.Array:
    out = self.kernel.astype(x.dtype).product(x, jnp.float32) * self.scale
    return out.astype(dtype)
