"""The modules of which both model families are made.

Names of parameters and of logical axes are T5X's. Arrays are flattened to two
axes before every matrix product: with more, the backward pass is twice as slow
on a CPU.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
from typing import Any

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp

from ipo_md.models import packed_kernels

# With no more rows than this a CPU is faster at E x^T than at x E^T, for the
# table E of a tied head.
_FEW_ROWS = 64


def kernel_init(distribution: str, divisor: float = 1.0) -> Callable:
  """Variance scaling over the fan-in of the last two axes."""

  def init(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    scaling = jax.nn.initializers.variance_scaling(
      1.0,
      'fan_in',
      distribution,
      in_axis=-2,
      out_axis=-1,
      batch_axis=tuple(range(len(shape) - 2)),
    )
    return scaling(key, shape) / divisor

  return init


class Dense(nnx.Module):
  """x @ kernel, without bias.

  Args:
    rngs: random keys.
    shape: of the kernel, [..., in, out]; leading axes are layers or experts.
    axes: its logical axes.
    init: (key, shape) -> kernel.
  """

  def __init__(
    self,
    rngs: nnx.Rngs,
    shape: Sequence[int],
    axes: Sequence[str],
    init: Callable = kernel_init('truncated_normal'),
  ):
    self.kernel = nnx.Param(init(rngs.params(), shape), axes=tuple(axes))

  def __call__(self, x: jax.Array, dtype: Any) -> jax.Array:
    """[..., in] -> [..., out] in `dtype`."""
    flat = x.reshape(-1, x.shape[-1]).astype(dtype)
    out = flat @ self.kernel[...].astype(dtype)
    return out.reshape(*x.shape[:-1], out.shape[-1])


class Norm(nnx.Module):
  """x / sqrt(mean(x^2) + epsilon) * scale: no mean, no bias."""

  def __init__(self, shape: Sequence[int], axes: Sequence[str], epsilon: float):
    self.scale = nnx.Param(jnp.ones(shape), axes=tuple(axes))
    self.epsilon = epsilon

  def __call__(self, x: jax.Array, dtype: Any) -> jax.Array:
    x = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    x = (x * lax.rsqrt(mean_square + self.epsilon)).astype(dtype)
    return x * self.scale[...].astype(dtype)


class Embed(nnx.Module):
  """A vector for every token."""

  def __init__(self, rngs: nnx.Rngs, vocab_size: int, emb_dim: int, std: float):
    self.embedding = nnx.Param(
      jax.random.normal(rngs.params(), (vocab_size, emb_dim)) * std,
      axes=('vocab', 'embed'),
    )

  def __call__(self, ids: jax.Array, dtype: Any) -> jax.Array:
    return jnp.take(self.embedding[...], ids, axis=0, mode='clip').astype(dtype)


def project(
  x: jax.Array,
  kernel: jax.Array | packed_kernels.Kernel,
  contract: int,
) -> jax.Array:
  """[..., E] hidden states times a head, accumulated in float32.

  The product is taken in the kernel's type: float32 in training, as T5X does,
  less for a copy of the weights made for sampling.

  Args:
    x: [..., E].
    kernel: [E, V] with contract = 0, [V, E] with contract = 1.
    contract: axis of the kernel that is summed over.
  """
  flat = x.reshape(-1, x.shape[-1])
  if isinstance(kernel, packed_kernels.Kernel):
    out = kernel.product(flat, jnp.float32)
  else:
    out = _times(flat.astype(kernel.dtype), kernel, contract)
  return out.reshape(*x.shape[:-1], out.shape[-1])


def _times(x: jax.Array, kernel: jax.Array, contract: int) -> jax.Array:
  """[N, E] times a head -> [N, V] float32."""
  dot = functools.partial(lax.dot_general, preferred_element_type=jnp.float32)
  plain = lambda x, kernel: dot(x, kernel, (((1,), (contract,)), ((), ())))
  if contract == 0 or x.shape[0] > _FEW_ROWS:
    return plain(x, kernel)

  def table_first(x, table):  # without the barrier XLA turns it round again
    out = dot(table, x, (((1,), (1,)), ((), ())))
    return lax.optimization_barrier(out).T

  return lax.platform_dependent(x, kernel, cpu=table_first, default=plain)


ACTIVATIONS = {
  'relu': jax.nn.relu,
  'gelu': jax.nn.gelu,  # the tanh approximation
  'silu': jax.nn.silu,
  'linear': lambda x: x,
}


class Mlp(nnx.Module):
  """wo(product of activation_i(wi_i(x))), e.g. ('gelu', 'linear').

  Args:
    rngs: random keys.
    lead: sizes of the kernels' leading axes, e.g. (L,).
    lead_axes: their names.
    emb_dim: E.
    mlp_dim: width between the two products.
    activations: names, one for each input kernel.
  """

  def __init__(
    self,
    rngs: nnx.Rngs,
    lead: Sequence[int],
    lead_axes: Sequence[str],
    *,
    emb_dim: int,
    mlp_dim: int,
    activations: Sequence[str],
  ):
    unknown = set(activations) - set(ACTIVATIONS)
    if unknown:
      raise ValueError(
        f'mlp_activations has {sorted(unknown)}, not among '
        f'{sorted(ACTIVATIONS)}.'
      )
    self.activations = tuple(activations)
    self.names = (
      ('wi',)
      if len(activations) == 1
      else tuple(f'wi_{i}' for i in range(len(activations)))
    )
    for name in self.names:
      shape, axes = (*lead, emb_dim, mlp_dim), (*lead_axes, 'embed', 'mlp')
      setattr(self, name, Dense(rngs, shape, axes))
    self.wo = Dense(
      rngs, (*lead, mlp_dim, emb_dim), (*lead_axes, 'mlp', 'embed')
    )

  def __call__(
    self,
    x: jax.Array,
    dtype: Any,
    *,
    dropout: Callable[[jax.Array], jax.Array] = lambda x: x,
    product: Callable[[Dense, jax.Array], jax.Array] | None = None,
  ) -> jax.Array:
    """[..., E] -> [..., E].

    Args:
      x: [..., E].
      dtype: of the activations.
      dropout: applied between the two products.
      product: (dense, x) -> its product, where a kernel has more than two
        axes left.
    """
    product = product or (lambda dense, x: dense(x, dtype))
    hidden = 1
    for name, activation in zip(self.names, self.activations, strict=True):
      y = product(getattr(self, name), x)
      hidden = ACTIVATIONS[activation](y) * hidden
    return product(self.wo, dropout(hidden))


def dropout(x: jax.Array, rate: float, rng: jax.Array | None) -> jax.Array:
  """Drops features, the same ones at all T of [..., T, E]. None: identity."""
  if rng is None or not rate:
    return x
  shape = (*x.shape[:-2], 1, x.shape[-1])
  keep = jax.random.bernoulli(rng, 1 - rate, shape)
  return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def split(rng: jax.Array | None, n: int) -> Sequence[jax.Array | None]:
  """n keys, or n times None."""
  return (None,) * n if rng is None else jax.random.split(rng, n)


def reward(kernel: jax.Array, hidden: jax.Array, mask: jax.Array) -> jax.Array:
  """D outputs for each completion: the head at its last real token.

  Args:
    kernel: [E, D].
    hidden: [B, K, T, E].
    mask: [B, K, T] bool, right-padded.

  Returns:
    [B, K, D] float32.
  """
  last = jnp.maximum(jnp.sum(mask, axis=-1) - 1, 0)
  hidden = jnp.take_along_axis(hidden, last[..., None, None], axis=2)
  return project(hidden, kernel, 0)[:, :, 0]
