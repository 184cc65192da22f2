"""Multiplies each row by the matrix of its group, as experts need."""

import functools

import jax
from jax import lax
import jax.numpy as jnp


@jax.custom_vjp
def matmul(x: jax.Array, kernels: jax.Array, sizes: jax.Array) -> jax.Array:
  """Computes y_i = x_i kernels[g(i)] for rows sorted by group.

  The cost is that of [M, in] x [in, out] and does not grow with the number of
  groups. Accelerators use `lax.ragged_dot`. On a CPU that function multiplies
  every row by every matrix, so a loop over blocks of rows replaces it.

  Args:
    x: [M, in] rows, sorted by group.
    kernels: [G, in, out] matrix of each group.
    sizes: [G] number of rows in each group; the sum is M.

  Returns:
    [M, out] products.
  """
  return lax.platform_dependent(
    x, kernels, sizes, cpu=_blocked, default=lax.ragged_dot
  )


def _forward(x, kernels, sizes):
  return matmul(x, kernels, sizes), (x, kernels, sizes)


def _backward(saved, grad):
  x, kernels, sizes = saved
  grad_x = matmul(grad, kernels.swapaxes(1, 2), sizes)
  grad_kernels = lax.platform_dependent(
    x, grad, sizes, cpu=_blocked_outer, default=_ragged_outer
  )
  return grad_x, grad_kernels.astype(kernels.dtype), None


matmul.defvjp(_forward, _backward)


@jax.custom_vjp
def permute(x: jax.Array, order: jax.Array, inverse: jax.Array) -> jax.Array:
  """Permutes rows as x[order]; the gradient gathers instead of scattering.

  Args:
    x: [M, ...] rows.
    order: [M] permutation.
    inverse: [M] inverse of the permutation.

  Returns:
    [M, ...] permuted rows.
  """
  del inverse
  return jnp.take(x, order, axis=0)


def _permute_forward(x, order, inverse):
  return jnp.take(x, order, axis=0), (order, inverse)


def _permute_backward(saved, grad):
  _, inverse = saved
  return jnp.take(grad, inverse, axis=0), None, None


permute.defvjp(_permute_forward, _permute_backward)


def _ragged_outer(x, grad, sizes):
  """Sums outer products by group: [M, in], [M, out] -> [G, in, out]."""
  dimensions = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())),
    lhs_ragged_dimensions=[0],
    rhs_group_dimensions=[],
  )
  return lax.ragged_dot_general(x, grad, sizes, dimensions)


def _block_rows(rows: int, groups: int) -> int:
  """Returns a power of two near the mean number of rows in a group."""
  return min(128, max(8, 1 << (rows // groups).bit_length()))


def _blocks(sizes: jax.Array, rows: int):
  """Divides the groups into blocks of rows.

  Returns:
    The number of blocks, and a function that maps the number of a block to its
    group, its first row and the rows left in the group from there on.
  """
  starts = jnp.cumsum(sizes) - sizes
  count = (sizes + rows - 1) // rows
  ends = jnp.cumsum(count)

  def block(i):
    group = jnp.searchsorted(ends, i, side='right')
    offset = (i - (ends[group] - count[group])) * rows
    return group, starts[group] + offset, sizes[group] - offset

  return ends[-1], block


def _blocked(x, kernels, sizes):
  rows = _block_rows(x.shape[0], kernels.shape[0])
  number, block = _blocks(sizes, rows)
  padded = jnp.pad(x, ((0, rows), (0, 0)))

  def body(i, y):
    group, first, _ = block(i)
    part = lax.dynamic_slice_in_dim(padded, first, rows) @ kernels[group]
    # Rows beyond the end of the group are wrong until the first block of the
    # next group, which starts there, overwrites them.
    return lax.dynamic_update_slice_in_dim(y, part, first, axis=0)

  y = jnp.zeros((padded.shape[0], kernels.shape[2]), x.dtype)
  return lax.fori_loop(0, number, body, y)[: x.shape[0]]


def _blocked_outer(x, grad, sizes):
  rows = _block_rows(x.shape[0], sizes.shape[0])
  number, block = _blocks(sizes, rows)
  pad = functools.partial(jnp.pad, pad_width=((0, rows), (0, 0)))
  x, grad = pad(x), pad(grad)

  def body(i, total):
    group, first, left = block(i)
    x_rows = lax.dynamic_slice_in_dim(x, first, rows)
    x_rows = jnp.where(jnp.arange(rows)[:, None] < left, x_rows, 0)
    part = x_rows.T @ lax.dynamic_slice_in_dim(grad, first, rows)
    return total.at[group].add(part)

  total = jnp.zeros((sizes.shape[0], x.shape[1], grad.shape[1]), x.dtype)
  return lax.fori_loop(0, number, body, total)
