"""What every objective shares: feedback, log-ratios, gradient and update."""

from collections.abc import Callable
from collections.abc import Mapping
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ipo_md import models
from ipo_md import optim as optimizers
from ipo_md import sampling
from ipo_md.algorithms import losses
from ipo_md.core import types

Metrics = Mapping[str, Any]
Loss = Callable[..., jax.Array]

# Their gradient needs samples of the policy, and sums over their tokens.
POLICY_GRADIENTS = ('policy_gradient', 'reinforce')


def ended_of(tokens: types.Tokens, eos_id: int) -> jax.Array:
  """[B, K] whether a completion reached EOS."""
  return jnp.any(tokens.mask & (tokens.ids == eos_id), axis=-1)


def feedback_of(loss: Loss) -> str:
  """'preference' or 'rewards': the name of a loss's second parameter."""
  return list(inspect.signature(loss).parameters)[1]


def policy_loss(
  policy: types.Params,
  labelled: types.Labelled,
  *,
  model: models.Model,
  loss: Loss,
  per_token: bool,
  context: types.Context | None = None,
  sampled: jax.Array | None = None,
  rng: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
  """What online and offline steps share: completions -> loss, metrics.

  Args:
    policy: its parameters.
    labelled: completions, feedback and the reference's log-probabilities.
    model: the network.
    loss: an objective of `losses`.
    per_token: log-ratios are means over tokens rather than sums.
    context: the prompts as `policy` reads them; None: they are read here.
    sampled: [B, K, T] log-probabilities that the sampling loop found, to be
      compared; None: not known.
    rng: key for dropout, consumed; None: no dropout.
  """
  kind = feedback_of(loss)
  name = getattr(loss, 'func', loss).__name__
  require(labelled, kind, name)
  if per_token and name in POLICY_GRADIENTS:
    raise ValueError(
      f'PER_TOKEN = True with LOSS = {name}: its gradient needs '
      'log-probabilities summed over tokens.'
    )
  feedback = getattr(labelled, kind)
  extra, compared = {}, {}
  if 'completion_mask' in inspect.signature(loss).parameters:
    extra['completion_mask'] = labelled.completion_mask
  mask = labelled.completions.completions.mask
  log_probs, aux = sampling.log_probs(
    model, policy, labelled.completions, context=context, rng=rng
  )
  if sampled is not None:
    error = jnp.mean(jnp.abs(log_probs - sampled), where=mask)
    compared = {'sampling_error': jax.lax.stop_gradient(error)}
  log_prob = sampling.sum_or_mean(log_probs, mask, per_token=per_token)
  log_ratios = log_prob - labelled.reference_log_prob
  value = jnp.mean(loss(log_ratios, feedback, **extra))
  real = labelled.completion_mask
  return value + aux, {
    'loss': value,
    'tokens': jnp.sum(mask),
    'log_ratio': jnp.mean(log_ratios, where=real),
    kind: jnp.mean(feedback, where=real if feedback.ndim == 2 else None),
    **_chosen_and_rejected(log_prob, feedback, real),
    **compared,
  }


def _chosen_and_rejected(
  log_prob: jax.Array, feedback: jax.Array, real: jax.Array
) -> Metrics:
  """How likely the better and the worse completion are, means over prompts.

  Both may fall while their difference grows: InfoNCA lets the chosen one fall,
  NCA does not (https://arxiv.org/abs/2402.05369). Of rewards the highest and
  the lowest count; of a tie the mean of both completions.

  Args:
    log_prob: [B, K] of the policy, nats.
    feedback: preference [B] or rewards [B, K].
    real: [B, K] completions that are there.
  """
  if log_prob.shape[-1] < 2:
    return {}
  if feedback.ndim == 1:
    first = losses.hard_label(feedback)
    weights = jnp.stack([first, 1 - first], axis=-1)
    chosen, rejected = weights, 1 - weights
  else:
    best = jnp.argmax(jnp.where(real, feedback, -jnp.inf), axis=-1)
    worst = jnp.argmin(jnp.where(real, feedback, jnp.inf), axis=-1)
    chosen, rejected = (
      jax.nn.one_hot(k, log_prob.shape[-1]) for k in (best, worst)
    )
  return {
    'chosen_log_prob': jnp.mean(jnp.sum(chosen * log_prob, axis=-1)),
    'rejected_log_prob': jnp.mean(jnp.sum(rejected * log_prob, axis=-1)),
  }


def update(
  state: types.TrainState,
  frozen: types.FrozenParams,
  objective: Callable[[types.Params], tuple[jax.Array, Metrics]],
  model: models.Model,
  optimizer: optax.GradientTransformation,
) -> tuple[types.TrainState, Metrics]:
  def of_state(params):
    with jax.named_scope('log_probs'):
      return objective(model.policy(params, frozen))

  grads, metrics = jax.grad(of_state, has_aux=True)(state.params)
  with jax.named_scope('update'):
    state, applied = optimizers.apply(optimizer, grads, state)
    return state, {**metrics, **applied}


def require(labelled: types.Labelled, field: str, who: str) -> None:
  """Raises ValueError if a loss's feedback is not there."""
  if getattr(labelled, field) is None:
    other = {'preference': 'rewards', 'rewards': 'preference'}[field]
    hint = ''
    if field == 'preference':
      hint = ' Rewards give one if MIXTURE_COEFS has 2 entries.'
    raise ValueError(
      f'{who} needs {field}, but judge or data set give only {other}: change '
      f'LOSS, JUDGE or MIXTURE_OR_TASK_NAME.{hint}'
    )
