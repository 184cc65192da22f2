"""Modules that both model families use.

The names of parameters and of logical axes are T5X's. Arrays are flattened to
two axes before every matrix product, because on a CPU the backward pass of a
product with more axes is twice as slow.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import Literal

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp

from ipo_md.models import cpu_layouts
from ipo_md.models import sampling_kernels


def kernel_init(
  distribution: Literal['normal', 'truncated_normal', 'uniform'],
  divisor: float = 1.0,
) -> Callable:
  """Makes a variance-scaling initialiser over the fan-in of the last two axes.

  Args:
    distribution: 'normal', 'truncated_normal' or 'uniform'.
    divisor: Number that divides the initial kernel.

  Returns:
    Function (key, shape) -> kernel [..., in, out].
  """

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
  """A linear layer x @ kernel, or x @ kernel + bias.

  Args:
    rngs: Random keys of the parameters.
    shape: Shape [..., in, out] of the kernel, led by layers or experts.
    axes: Names of the kernel's logical axes.
    init: Initialiser (key, shape) -> kernel.
    bias: Whether there is a bias [..., out], which starts at 0.
  """

  def __init__(
    self,
    rngs: nnx.Rngs,
    shape: Sequence[int],
    axes: Sequence[str],
    init: Callable = kernel_init('truncated_normal'),
    *,
    bias: bool = False,
  ):
    self.kernel = nnx.Param(init(rngs.params(), shape), axes=tuple(axes))
    if bias:
      self.bias = nnx.Param(
        jnp.zeros((*shape[:-2], shape[-1])), axes=(*axes[:-2], axes[-1])
      )
    self.has_bias = bias

  def __call__(self, x: jax.Array, dtype: Any) -> jax.Array:
    """Multiplies [..., in] by the kernel and returns [..., out] in `dtype`."""
    flat = x.reshape(-1, x.shape[-1]).astype(dtype)
    out = flat @ self.kernel[...].astype(dtype)
    if self.has_bias:
      out += self.bias[...].astype(dtype)
    return out.reshape(*x.shape[:-1], out.shape[-1])


class Norm(nnx.Module):
  """RMS norm, without mean or bias.

    x / sqrt(mean(x^2) + epsilon) (offset + scale)

  A product with an offset is taken in float32, as Gemma does.
  """

  def __init__(
    self,
    shape: Sequence[int],
    axes: Sequence[str],
    epsilon: float,
    offset: float = 0.0,
  ):
    self.scale = nnx.Param(jnp.full(shape, 1.0 - offset), axes=tuple(axes))
    self.epsilon, self.offset = epsilon, offset

  def __call__(self, x: jax.Array, dtype: Any) -> jax.Array:
    x = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    x *= lax.rsqrt(mean_square + self.epsilon)
    if self.offset:
      scale = self.offset + self.scale[...].astype(jnp.float32)
      return (x * scale).astype(dtype)
    return x.astype(dtype) * self.scale[...].astype(dtype)


class Embed(nnx.Module):
  """An embedding vector for every token of the vocabulary."""

  def __init__(self, rngs: nnx.Rngs, vocab_size: int, emb_dim: int, std: float):
    self.embedding = nnx.Param(
      jax.random.normal(rngs.params(), (vocab_size, emb_dim)) * std,
      axes=('vocab', 'embed'),
    )

  def __call__(self, ids: jax.Array, dtype: Any) -> jax.Array:
    return jnp.take(self.embedding[...], ids, axis=0, mode='clip').astype(dtype)


def project(
  x: jax.Array,
  kernel: jax.Array | sampling_kernels.Kernel,
  contract: int,
) -> jax.Array:
  """Multiplies hidden states by the kernel of a head.

  The product is taken in the type of the kernel and accumulated in float32.
  Kernels are float32 in training, as in T5X, and may be narrower in the copy of
  the weights that the sampling loop reads.

  Args:
    x: [..., E] hidden states.
    kernel: [E, V] kernel with contract = 0, or [V, E] with contract = 1.
    contract: Axis of the kernel that is summed over.

  Returns:
    [..., V] float32.
  """
  flat = x.reshape(-1, x.shape[-1])
  if isinstance(kernel, sampling_kernels.Kernel):
    out = kernel.product(flat, jnp.float32)
  else:
    out = _times(flat.astype(kernel.dtype), kernel, contract)
  return out.reshape(*x.shape[:-1], out.shape[-1])


def _times(x: jax.Array, kernel: jax.Array, contract: int) -> jax.Array:
  """Multiplies rows [N, E] by the kernel of a head: [N, V] float32."""
  plain = lambda x, kernel: lax.dot_general(
    x,
    kernel,
    (((1,), (contract,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
  if contract == 0 or x.shape[0] > cpu_layouts.TABLE_FIRST_ROWS:
    return plain(x, kernel)
  return lax.platform_dependent(
    x, kernel, cpu=cpu_layouts.table_first, default=plain
  )


ACTIVATIONS = {
  'relu': jax.nn.relu,
  'gelu': jax.nn.gelu,  # the tanh approximation
  'silu': jax.nn.silu,
  'linear': lambda x: x,
}


class Mlp(nnx.Module):
  """A feed-forward layer wo(prod_i activation_i(wi_i(x))).

  Args:
    rngs: Random keys of the parameters.
    lead: Sizes of the leading axes of the kernels, such as (L,).
    lead_axes: Names of the leading axes, such as ('layers',).
    emb_dim: Width of inputs and outputs, E.
    mlp_dim: Width between the two products.
    activations: Names of the activations, one per input kernel, such as
      ('gelu', 'linear').

  Raises:
    ValueError: If an activation is unknown.
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
        f'mlp_activations has {sorted(unknown)}, which are not among '
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
    """Applies the layer to activations.

    Args:
      x: [..., E] activations.
      dtype: Type of the activations.
      dropout: Function applied between the two products.
      product: Function (dense, x) -> product, for kernels that have more than
        two axes here. None multiplies by a kernel [in, out].

    Returns:
      [..., E] activations.
    """
    product = product or (lambda dense, x: dense(x, dtype))
    hidden: jax.Array | int = 1
    for name, activation in zip(self.names, self.activations, strict=True):
      y = product(getattr(self, name), x)
      hidden = ACTIVATIONS[activation](y) * hidden
    assert not isinstance(hidden, int)  # there is an activation
    return product(self.wo, dropout(hidden))


def soft_cap(x: jax.Array, cap: float) -> jax.Array:
  """Limits x smoothly to (-cap, cap): cap tanh(x / cap)."""
  return cap * jnp.tanh(x / cap)


def dropout(x: jax.Array, rate: float, rng: jax.Array | None) -> jax.Array:
  """Drops features, the same ones at all T positions.

  Args:
    x: [..., T, E] activations.
    rate: Probability that a feature is dropped.
    rng: Key, consumed. None returns x.

  Returns:
    [..., T, E] activations; remaining features are scaled by 1 / (1 - rate).
  """
  if rng is None or not rate:
    return x
  shape = (*x.shape[:-2], 1, x.shape[-1])
  keep = jax.random.bernoulli(rng, 1 - rate, shape)
  return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def split(
  rng: jax.Array | None, n: int
) -> Sequence[jax.Array | None] | jax.Array:
  """Splits a key into n keys; None gives n times None."""
  return (None,) * n if rng is None else jax.random.split(rng, n)


def reward(kernel: jax.Array, hidden: jax.Array, mask: jax.Array) -> jax.Array:
  """Applies a reward head to the last real token of each completion.

  Args:
    kernel: [E, D] kernel of the head.
    hidden: [B, K, T, E] hidden states.
    mask: [B, K, T] bool, True on real tokens, right-padded.

  Returns:
    [B, K, D] float32 outputs.
  """
  last = jnp.maximum(jnp.sum(mask, axis=-1) - 1, 0)
  hidden = jnp.take_along_axis(hidden, last[..., None, None], axis=2)
  return project(hidden, kernel, 0)[:, :, 0]
