"""Learning rate schedules with T5X's formulas.

A schedule maps the number of updates made so far to the learning rate of the
next one. `optax.schedules` has the same shapes, but rounds differently during
a warm-up (by up to 4e-6 relative) and ends a cosine where T5X starts a new
cycle. `stepwise` agrees bit for bit and is optax's.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Schedule = Callable[[jax.Array], jax.Array]

_MIN_LEARNING_RATE = 1e-8  # T5X's floor of every schedule


def constant(*, learning_rate: float, warmup_steps: int = 0) -> Schedule:
  """A constant rate after a linear warm-up.

  Args:
    learning_rate: Rate after the warm-up.
    warmup_steps: Length of the warm-up, in updates.
  """
  return lambda step: _floor(learning_rate * _warmup(step, warmup_steps))


def linear(
  *, learning_rate: float, warmup_steps: int, decay_steps: int
) -> Schedule:
  """A linear warm-up, then a linear decay to 0.

  This is T5X's `linear_decay` with decay_factor = 1 / decay_steps.

  Args:
    learning_rate: Rate after the warm-up.
    warmup_steps: Length of the warm-up, in updates.
    decay_steps: Length of the decay, in updates.
  """

  def schedule(step):
    decay = 1 - (step - warmup_steps) / decay_steps
    return _floor(
      learning_rate * jnp.minimum(_warmup(step, warmup_steps), decay)
    )

  return schedule


def rsqrt(*, learning_rate: float, warmup_steps: int) -> Schedule:
  """A linear warm-up, then learning_rate sqrt(warmup_steps / step).

  This is T5X's `rsqrt_normalized_decay`. T5X's `rsqrt_decay` with
  base_learning_rate b has learning_rate = b / sqrt(warmup_steps).

  Args:
    learning_rate: Rate after the warm-up.
    warmup_steps: Length of the warm-up, in updates.
  """

  def schedule(step):
    decay = jnp.sqrt(warmup_steps / jnp.maximum(step, warmup_steps))
    return _floor(learning_rate * _warmup(step, warmup_steps) * decay)

  return schedule


def cosine(
  *, learning_rate: float, warmup_steps: int, steps_per_cycle: int
) -> Schedule:
  """A linear warm-up, then half a period of a cosine down to 0.

  As in T5X, the cosine starts again after a cycle, without a warm-up.

  Args:
    learning_rate: Rate after the warm-up.
    warmup_steps: Length of the warm-up, in updates.
    steps_per_cycle: Length of the decay, in updates.
  """

  def schedule(step):
    progress = jnp.maximum(0.0, (step - warmup_steps) / steps_per_cycle) % 1.0
    decay = 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return _floor(learning_rate * _warmup(step, warmup_steps) * decay)

  return schedule


def stepwise(
  *, learning_rate: float, decay_factor: float, steps_per_decay: int
) -> Schedule:
  """A rate that is multiplied by a factor at regular intervals.

  Args:
    learning_rate: Initial rate.
    decay_factor: Factor of each decay.
    steps_per_decay: Number of updates between decays.
  """
  decay = optax.schedules.exponential_decay(
    learning_rate, steps_per_decay, decay_factor, staircase=True
  )
  return lambda step: _floor(decay(step))


def _warmup(step: jax.Array, warmup_steps: int) -> jax.Array | float:
  return jnp.minimum(1.0, step / max(1, warmup_steps)) if warmup_steps else 1.0


def _floor(learning_rate: jax.typing.ArrayLike) -> jax.Array:
  return jnp.maximum(learning_rate, _MIN_LEARNING_RATE)


def learning_rate_at(
  learning_rate: float | Schedule, step: jax.Array
) -> jax.Array:
  """Evaluates a learning rate.

  Args:
    learning_rate: Number or schedule.
    step: Number of updates made so far.

  Returns:
    [] float32 rate of the next update.
  """
  rate = learning_rate(step) if callable(learning_rate) else learning_rate
  return jnp.asarray(rate, jnp.float32)
