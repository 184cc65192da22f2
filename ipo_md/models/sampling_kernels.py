"""Kernels in the form that the sampling loop reads.

The loop multiplies a few rows by each kernel W [in, out], so a product takes
as long as reading W. The loop therefore holds W in the memory order that the
machine reads fastest. Every class here has what `layers.Dense` and
`layers.project` need from a kernel: an index, `astype`, `x @ kernel` and
`product`.
"""

from typing import Any
from typing import Self

import flax.struct
import jax
from jax import lax
import jax.numpy as jnp


class Kernel:
  """Base class of the kernels that the sampling loop reads."""

  def __getitem__(self, index: Any) -> Self:
    return jax.tree.map(lambda x: x[index], self)

  def astype(self, dtype: Any) -> Self:
    return jax.tree.map(lambda x: x.astype(dtype), self)

  def __rmatmul__(self, x: jax.Array) -> jax.Array:
    return self.product(x, x.dtype)

  def product(self, x: jax.Array, dtype: Any) -> jax.Array:
    """Multiplies rows by the kernel.

    The product is taken in the type of W and accumulated in `dtype`. Integer
    kernels are multiplied in the type of x and accumulated in float32.

    Args:
      x: [N, in] rows.
      dtype: Type of the result.

    Returns:
      [N, out] product x W.
    """
    raise NotImplementedError


class Transposed(Kernel, flax.struct.PyTreeNode):
  """The transpose of W: the weights of each output are contiguous."""

  array: jax.Array  # [..., out, in]

  def product(self, x: jax.Array, dtype: Any) -> jax.Array:
    return lax.dot_general(
      x.astype(self.array.dtype),
      self.array,
      (((1,), (1,)), ((), ())),
      preferred_element_type=dtype,
    )


class Scaled(Kernel, flax.struct.PyTreeNode):
  """A kernel rounded to int8 with one scale per output.

  W_io = s_o q_io with integers q.
  """

  kernel: Kernel  # int8
  scale: jax.Array  # [..., out]

  def astype(self, dtype: Any) -> 'Scaled':
    return self.replace(kernel=self.kernel.astype(dtype))

  def product(self, x: jax.Array, dtype: Any) -> jax.Array:
    out = self.kernel.astype(x.dtype).product(x, jnp.float32) * self.scale
    return out.astype(dtype)
