"""Learning rate schedules, as in T5X."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Schedule = Callable[[jax.Array], jax.Array]


_MIN_LEARNING_RATE = 1e-8  # T5X's floor of every schedule


def constant(*, learning_rate: float, warmup_steps: int = 0) -> Schedule:
  """learning_rate, reached linearly in warmup_steps."""
  return lambda step: _floor(learning_rate * _warmup(step, warmup_steps))


def linear(
  *, learning_rate: float, warmup_steps: int, decay_steps: int
) -> Schedule:
  """Linear to learning_rate, then linear to 0 in decay_steps.

  T5X's `linear_decay` with decay_factor = 1 / decay_steps.
  """

  def schedule(step):
    decay = 1 - (step - warmup_steps) / decay_steps
    return _floor(
      learning_rate * jnp.minimum(_warmup(step, warmup_steps), decay)
    )

  return schedule


def rsqrt(*, learning_rate: float, warmup_steps: int) -> Schedule:
  """Linear to learning_rate, then learning_rate sqrt(warmup_steps / step).

  T5X's `rsqrt_normalized_decay`; its `rsqrt_decay` of base_learning_rate b has
  learning_rate = b / sqrt(warmup_steps).
  """

  def schedule(step):
    decay = jnp.sqrt(warmup_steps / jnp.maximum(step, warmup_steps))
    return _floor(learning_rate * _warmup(step, warmup_steps) * decay)

  return schedule


def cosine(
  *, learning_rate: float, warmup_steps: int, steps_per_cycle: int
) -> Schedule:
  """Linear to learning_rate, then half a cosine to 0 in steps_per_cycle.

  As in T5X it starts again after a cycle, without a warm-up.
  """

  def schedule(step):
    progress = jnp.maximum(0.0, (step - warmup_steps) / steps_per_cycle) % 1.0
    decay = 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return _floor(learning_rate * _warmup(step, warmup_steps) * decay)

  return schedule


def stepwise(
  *, learning_rate: float, decay_factor: float, steps_per_decay: int
) -> Schedule:
  """learning_rate, times decay_factor at every steps_per_decay."""
  return lambda step: _floor(
    learning_rate * decay_factor ** (step // steps_per_decay)
  )


def _warmup(step: jax.Array, warmup_steps: int) -> jax.Array:
  return jnp.minimum(1.0, step / max(1, warmup_steps)) if warmup_steps else 1.0


def _floor(learning_rate: jax.Array) -> jax.Array:
  return jnp.maximum(learning_rate, _MIN_LEARNING_RATE)


def learning_rate_at(
  learning_rate: float | Schedule, step: jax.Array
) -> jax.Array:
  """[] float32 learning rate of the update that follows `step` others."""
  rate = learning_rate(step) if callable(learning_rate) else learning_rate
  return jnp.asarray(rate, jnp.float32)
