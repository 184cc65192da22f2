"""Checks of the arguments of objectives, made when a step is traced."""

import math

import jax
import jax.numpy as jnp


def require_positive(name: str, **hyperparameters: float) -> None:
  """Raises a ValueError unless all are finite and above 0.

  Args:
    name: The objective as gin names it, such as losses.ipo.
    **hyperparameters: Values by name.
  """
  for key, value in hyperparameters.items():
    if not 0 < value < math.inf:
      raise ValueError(f'{name}.{key} = {value} must be positive.')


def require_not_negative(name: str, **hyperparameters: float) -> None:
  """Raises a ValueError unless all are finite and at least 0."""
  for key, value in hyperparameters.items():
    if not 0 <= value < math.inf:
      raise ValueError(f'{name}.{key} = {value} must not be negative.')


def require_pair(name: str, scores: jax.Array, preference: jax.Array) -> None:
  """Raises a ValueError unless scores are [B, 2] and preferences [B]."""
  if scores.ndim != 2 or scores.shape[1] != 2:
    raise ValueError(
      f'{name} compares 2 completions of a prompt, got scores of shape'
      f' {scores.shape}.'
    )
  if preference.shape != scores.shape[:1]:
    raise ValueError(
      f'{name} needs a preference of shape {scores.shape[:1]}, got'
      f' {preference.shape}.'
    )


def require_rewards(
  name: str, log_ratios: jax.Array, rewards: jax.Array, k: int
) -> None:
  """Raises a ValueError unless both are [B, K], with K of at least `k`."""
  if log_ratios.ndim != 2 or log_ratios.shape[1] < k:
    raise ValueError(
      f'{name} needs at least {k} completions of a prompt, got log-ratios of'
      f' shape {log_ratios.shape}.'
    )
  if rewards.shape != log_ratios.shape:
    raise ValueError(
      f'{name} needs rewards of shape {log_ratios.shape}, got {rewards.shape}.'
    )


def full_mask(
  completion_mask: jax.Array | None, log_ratios: jax.Array
) -> jax.Array:
  """Returns the mask [B, K], True everywhere if there is none."""
  if completion_mask is None:
    return jnp.ones(log_ratios.shape, bool)
  return completion_mask
