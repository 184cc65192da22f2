"""Adafactor as in T5X, and Adam.

Gin binds the hyperparameters of an optimizer, and the run, which knows the
model, makes it:

  optimizer(logical_axes) -> optax.GradientTransformation

A learning rate is a number or a schedule (`schedules`).
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ipo_md import models
from ipo_md.core import types
from ipo_md.optim import schedules

# Logical axes along which parameters are stacked. Each entry of a stack is a
# parameter of its own.
STACKED = ('layers', 'expert')


class AdafactorState(NamedTuple):
  """The second moments: float32 trees with the structure of the parameters.

  A factored kernel [..., R, C] has v_row, with the size of the smaller side,
  and v_col, with that of the larger side. Other parameters have v. A moment
  that a parameter does not have is a 0 of shape [..., 1], as in T5X.
  """

  count: jax.Array  # [] int32
  v_row: Any
  v_col: Any
  v: Any


def adafactor(
  logical_axes: types.Params,
  *,
  learning_rate: float | schedules.Schedule,
  decay_rate: float = 0.8,
  clipping_threshold: float | None = 1.0,
  multiply_by_parameter_scale: bool = True,
  min_dim_size_to_factor: int = 128,
  max_gradient_norm: float | None = None,
) -> optax.GradientTransformation:
  """Makes T5X's variant of Adafactor (https://arxiv.org/abs/1804.04235).

    v_t     = d v_{t-1} + (1 - d) g^2,   d = 1 - t^-decay_rate
    u       = g / sqrt(v),   u /= max(1, RMS(u) / clipping_threshold)
    update  = - learning_rate max(RMS(parameter), 1e-3) u

  The update of LoRA's adapters is - learning_rate u, as large as Adam's. One
  adapter of each pair starts at 0, so its scale would be 1e-3 and it would
  hardly move.

  The second moment v of a kernel is factored into its row and column means.
  Every entry of a stack (`STACKED` leads its logical axes) has its own scale,
  clipping and factors, whereas `optax.adafactor` treats the stack as one
  array.

  `min_dim_size_to_factor` applies to every kernel, so that stacking changes no
  number. T5X applies it to unstacked parameters only: with scanned layers, its
  logical axis rules factor kernels of any size. The two differ on scanned
  kernels with a side below the limit, which only very small networks have, and
  a lower limit makes them agree on those kernels.

    optimizer = optim.adafactor(model.logical_axes, learning_rate=1e-3)
    state = optimizer.init(params)

  Args:
    logical_axes: Axis names of each parameter, from `Model.logical_axes`.
    learning_rate: Number or schedule, relative to the scale of a parameter,
      and absolute for adapters.
    decay_rate: Exponent of the decay of the second moment.
    clipping_threshold: Largest RMS of an update. None disables clipping.
    multiply_by_parameter_scale: Whether updates are multiplied by the scale of
      the parameter, adapters excepted. If not, the learning rate is absolute.
    min_dim_size_to_factor: Smallest side of a kernel that is factored.
    max_gradient_norm: Largest global norm of the gradients, which are clipped
      before anything else. None disables clipping.

  Returns:
    The optimizer. Its state is an `AdafactorState`.
  """

  def init_one(param):
    empty = jnp.zeros((1,), jnp.float32)
    if _is_factored(param, min_dim_size_to_factor):
      small, large = sorted(param.shape)
      return jnp.zeros(small), jnp.zeros(large), empty
    return empty, empty, jnp.zeros(param.shape, jnp.float32)

  def update_one(grad, param, v_row, v_col, v, *, decay, rate, scaled):
    square = jnp.square(grad) + 1e-30
    if _is_factored(param, min_dim_size_to_factor):
      small, large = _sides(param)
      v_row = decay * v_row + (1 - decay) * jnp.mean(square, axis=large)
      v_col = decay * v_col + (1 - decay) * jnp.mean(square, axis=small)
      row_factor = (v_row / jnp.mean(v_row)) ** -0.5
      update = (
        grad
        * jnp.expand_dims(row_factor, large)
        * jnp.expand_dims(v_col**-0.5, small)
      )
    else:
      v = decay * v + (1 - decay) * square
      update = grad * v**-0.5
    if clipping_threshold is not None:
      update /= jnp.maximum(1.0, _rms(update) / clipping_threshold)
    if scaled:
      rate *= jnp.maximum(_rms(param), 1e-3)
    return -rate * update, v_row, v_col, v

  def init(params):
    def leaf(param, axes):
      return _per_entry(init_one, axes)(param)

    out = jax.tree.map(leaf, params, logical_axes)
    return AdafactorState(jnp.zeros((), jnp.int32), *_unzip(params, out))

  def update(updates, state, params=None):
    decay = 1 - (state.count.astype(jnp.float32) + 1) ** -decay_rate
    rate = schedules.learning_rate_at(learning_rate, state.count)

    def leaf(param, axes, grad, *moments):
      adapter = models.LORA_RANK_AXIS in axes
      function = functools.partial(
        update_one,
        decay=decay,
        rate=rate,
        scaled=multiply_by_parameter_scale and not adapter,
      )
      return _per_entry(function, axes)(
        grad.astype(jnp.float32), param.astype(jnp.float32), *moments
      )

    out = jax.tree.map(
      leaf, params, logical_axes, updates, state.v_row, state.v_col, state.v
    )
    updates, *moments = _unzip(params, out)
    return updates, AdafactorState(state.count + 1, *moments)

  return _clipped(max_gradient_norm, optax.GradientTransformation(init, update))


def adam(
  logical_axes: types.Params,
  *,
  learning_rate: float | schedules.Schedule,
  b1: float = 0.9,
  b2: float = 0.999,
  epsilon: float = 1e-8,
  weight_decay: float = 0.0,
  max_gradient_norm: float | None = None,
) -> optax.GradientTransformation:
  """Makes Adam, or AdamW (https://arxiv.org/abs/1711.05101) with weight decay.

  Args:
    logical_axes: Axis names of each parameter. Only `adafactor` reads them.
    learning_rate: Number or schedule, absolute.
    b1: Decay of the first moment.
    b2: Decay of the second moment.
    epsilon: Number added to the root of the second moment.
    weight_decay: Factor of learning_rate times the parameter that every update
      subtracts.
    max_gradient_norm: Largest global norm of the gradients. None disables
      clipping.

  Returns:
    The optimizer, `optax.adamw`.
  """
  del logical_axes
  rate = lambda step: schedules.learning_rate_at(learning_rate, step)
  return _clipped(
    max_gradient_norm,
    optax.adamw(rate, b1=b1, b2=b2, eps=epsilon, weight_decay=weight_decay),
  )


class SkippingState(NamedTuple):
  """The state of `skipping`."""

  inner: Any
  in_a_row: jax.Array  # [] int32, updates skipped since the last one made


def skipping(
  optimizer: optax.GradientTransformation, *, max_gradient_norm: float | None
) -> optax.GradientTransformation:
  """Skips updates whose gradient is not finite or too large.

  A skipped update changes neither the parameters nor the optimizer's state. It
  still counts as a step, and its batch is spent. `optax.apply_if_finite` has no
  limit on the norm, and applies a bad update after a number of errors.

  Args:
    optimizer: Optimizer that makes the updates.
    max_gradient_norm: Largest global norm of the gradients before clipping.
      None allows any finite norm.

  Returns:
    The optimizer. Its state is a `SkippingState`.
  """

  def init(params):
    return SkippingState(optimizer.init(params), jnp.zeros((), jnp.int32))

  def update(updates, state, params=None):
    norm = optax.tree.norm(updates)
    good = jnp.isfinite(norm)
    if max_gradient_norm is not None:
      good &= norm <= max_gradient_norm
    updates, inner = optimizer.update(updates, state.inner, params)
    return (
      jax.tree.map(lambda u: jnp.where(good, u, 0), updates),
      SkippingState(
        jax.tree.map(lambda n, o: jnp.where(good, n, o), inner, state.inner),
        jnp.where(good, 0, state.in_a_row + 1),
      ),
    )

  return optax.GradientTransformation(init, update)


def apply(
  optimizer: optax.GradientTransformation,
  grads: types.Params,
  state: types.TrainState,
) -> tuple[types.TrainState, dict[str, jax.Array]]:
  """Applies one update to the training state.

  Args:
    optimizer: Optimizer that makes the update.
    grads: Gradients of the parameters.
    state: Training state.

  Returns:
    The next state, and the metrics grad_norm and, with `skipping`,
    skipped_in_a_row.
  """
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  metrics = {'grad_norm': optax.tree.norm(grads)}
  if isinstance(opt_state, SkippingState):
    metrics['skipped_in_a_row'] = opt_state.in_a_row
  return state.replace(
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    opt_state=opt_state,
  ), metrics


def _clipped(
  max_gradient_norm: float | None, optimizer: optax.GradientTransformation
) -> optax.GradientTransformation:
  if max_gradient_norm is None:
    return optimizer
  return optax.chain(optax.clip_by_global_norm(max_gradient_norm), optimizer)


def _per_entry(function: Callable, axes: tuple[str, ...]) -> Callable:
  """Maps a function of one parameter over a stack of parameters."""
  for axis in axes:
    if axis not in STACKED:
      break
    function = jax.vmap(function)
  return function


def _sides(param: jax.Array) -> tuple[int, int]:
  """Returns the axes of the smaller and of the larger side of a kernel."""
  return (0, 1) if param.shape[0] <= param.shape[1] else (1, 0)


def _is_factored(param: jax.Array, min_dim_size_to_factor: int) -> bool:
  return param.ndim == 2 and min(param.shape) >= min_dim_size_to_factor


def _rms(x: jax.Array) -> jax.Array:
  return jnp.sqrt(jnp.mean(jnp.square(x)))


def _unzip(params: types.Params, out: Any) -> list[Any]:
  """Turns a tree of tuples into a list of trees like `params`."""
  structure = jax.tree.structure(params)
  columns = zip(*structure.flatten_up_to(out), strict=True)
  return [jax.tree.unflatten(structure, column) for column in columns]
