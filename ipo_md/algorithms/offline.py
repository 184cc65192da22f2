"""Updates on the completions and the feedback of a data set."""

import functools

import jax
import jax.numpy as jnp
import optax

from ipo_md import models
from ipo_md import sampling
from ipo_md.algorithms import objective as objective_lib
from ipo_md.core import types


def offline_step(
  state: types.TrainState,
  frozen: types.FrozenParams,
  batch: types.Labelled,
  rng: jax.Array,
  *,
  model: models.Model,
  loss: objective_lib.Loss,
  optimizer: optax.GradientTransformation,
  per_token: bool = False,
) -> tuple[types.TrainState, objective_lib.Metrics]:
  """Updates on a data set's completions and feedback.

  Args:
    state: donated.
    frozen: the reference, unless the batch has its log-probabilities.
    batch: labelled completions.
    rng: key for dropout, consumed.
    model: network of policy and reference.
    loss: an objective of `losses` that does not need the policy's samples.
    optimizer: of the policy.
    per_token: log-ratios are means over tokens rather than sums.

  Returns:
    The next state; loss, log_ratio, preference or rewards, chosen_log_prob and
    rejected_log_prob.
  """
  name = getattr(loss, 'func', loss).__name__
  if name in objective_lib.POLICY_GRADIENTS:
    raise ValueError(
      f'LOSS = {name} needs samples of the policy, which an offline run does '
      'not draw: take gin/runs/online.gin or another LOSS.'
    )
  mask = batch.completions.completions.mask
  reference_log_prob = batch.reference_log_prob
  if reference_log_prob is None:
    with jax.named_scope('log_probs'):
      log_probs, _ = sampling.log_probs(
        model, frozen.reference, batch.completions
      )
    reference_log_prob = jnp.sum(log_probs, axis=-1)
  if per_token:
    reference_log_prob /= jnp.maximum(jnp.sum(mask, axis=-1), 1)
  batch = batch.replace(reference_log_prob=reference_log_prob)
  objective = functools.partial(
    objective_lib.policy_loss,
    labelled=batch,
    model=model,
    loss=loss,
    per_token=per_token,
    rng=rng,
  )
  return objective_lib.update(state, frozen, objective, model, optimizer)
