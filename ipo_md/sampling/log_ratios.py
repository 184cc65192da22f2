"""Log-probabilities for the two sides of a log-ratio.

  rho = log pi(y | x) - log pi_ref(y | x)

A log-ratio is a small difference of large numbers. Both sides therefore go
through one function in one precision, in which their rounding errors are equal
where the policies are equal and small elsewhere. The gradient of rho comes from
the pass of the loss in the network's own type, which needs no such care.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp

from ipo_md import models
from ipo_md.core import types
from ipo_md.sampling import sequences

DTYPES = ('float32', 'bfloat16', 'float16')


def log_prob(
  model: models.Model,
  params: types.Params,
  completions: types.Completions,
  *,
  per_token: bool = False,
  dtype: str = 'float32',
) -> jax.Array:
  """Computes the log-probability of completions as one side of a log-ratio.

  The policy and the reference read the prompts and the completions without
  dropout and without a gradient. A network that rounds has activations and
  products in `dtype` here. A TPU then multiplies float32 in three passes of
  bfloat16, because its default, a single pass, would round the operands.

    rho = log_prob(model, policy, completions) - log_prob(
        model, reference, completions)

  Args:
    model: Network of the policy and the reference.
    params: Parameters of the one or the other.
    completions: K completions of each of B prompts.
    per_token: Whether the result is a mean over tokens rather than a sum.
    dtype: Type of the activations, if those of the network are narrower than
      float32.

  Returns:
    [B, K] float32, nats.

  Raises:
    ValueError: The type is unknown.
  """
  check_dtype(dtype)
  precision = contextlib.nullcontext()
  if rounds(model):
    model = model.in_dtype(dtype)
    if dtype == 'float32':
      precision = jax.default_matmul_precision('high')
  with precision:
    log_probs, _ = sequences.log_probs(
      model, jax.lax.stop_gradient(params), completions
    )
  return sequences.sum_or_mean(
    log_probs, completions.completions.mask, per_token=per_token
  )


def check_dtype(dtype: str) -> None:
  """Raises a ValueError if log-ratios are not computed in this type."""
  if dtype not in DTYPES:
    raise ValueError(
      f'log_ratio_dtype = {dtype!r} must be one of {", ".join(DTYPES)}.'
    )


def rounds(model: models.Model) -> bool:
  """Returns whether the activations of a network are narrower than float32."""
  return jnp.dtype(model.config.dtype).itemsize < 4


@jax.custom_jvp
def with_value(differentiable: jax.Array, value: jax.Array) -> jax.Array:
  """Returns an array with the gradient of the first argument.

  Args:
    differentiable: Array whose derivatives count.
    value: Array of the same shape whose values count.
  """
  del differentiable
  return value


@with_value.defjvp
def _with_value_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, Any]:
  return primals[1], tangents[0]
