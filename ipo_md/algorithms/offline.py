"""The offline step: updates on the completions and feedback of a data set."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from ipo_md import models
from ipo_md import sampling
from ipo_md.algorithms import needs
from ipo_md.algorithms import objective as objective_lib
from ipo_md.algorithms import step_kinds
from ipo_md.core import types


@step_kinds.declare()
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
  sampled_with: Sequence[float] | None = None,
) -> tuple[types.TrainState, objective_lib.Metrics]:
  """Makes one update on labelled completions.

  Args:
    state: Training state, donated.
    frozen: The reference. It may be None if the batch has its log-probabilities
      or the objective is reference-free.
    batch: Labelled completions.
    rng: Random key for dropout, consumed.
    model: Network of policy and reference. They are compared in its
      `log_ratio_dtype` if there is no dropout. Log-probabilities of the
      reference in the batch are float32.
    loss: An objective of `losses`.
    optimizer: Optimizer of the policy.
    per_token: Whether log-ratios are means over tokens rather than sums.
    sampled_with: K weights of the reference with which the policy of this very
      update sampled the completions (`two_programs`), or None for those of a
      data set, from which an objective that needs samples cannot learn.

  Returns:
    The next state, and metrics: loss, log_ratio, preference or rewards,
    chosen_log_prob, rejected_log_prob and ranking_accuracy.

  Raises:
    ValueError: The objective needs samples of the policy, or a reference that
      is not loaded.
  """
  sampling.check_dtype(model.log_ratio_dtype)
  if sampled_with is not None:
    needs.check_samples(loss, sampled_with)
  elif needs.of(loss).on_policy != 'none':
    raise ValueError(
      f'LOSS = {needs.name(loss)} needs samples of the policy, which an '
      'offline run does not draw: take gin/runs/online.gin or another LOSS.'
    )
  known = batch.reference_log_prob
  if needs.check_reference(loss, frozen.reference if known is None else known):
    batch = batch.replace(
      reference_log_prob=_reference_log_prob(frozen, batch, model, per_token)
    )

  def objective(policy):
    log_prob = None
    if _in_one_precision(loss, model, rng):
      log_prob = sampling.log_prob(
        model,
        policy,
        batch.completions,
        per_token=per_token,
        dtype=model.log_ratio_dtype,
      )
    return objective_lib.policy_loss(
      policy,
      batch,
      model=model,
      loss=loss,
      per_token=per_token,
      log_prob=log_prob,
      rng=rng,
    )

  return objective_lib.update(state, frozen, objective, model, optimizer)


def _in_one_precision(
  loss: objective_lib.Loss, model: models.Model, rng: jax.Array | None
) -> bool:
  """Returns whether log pi has its value from `sampling.log_prob`.

  A loss with dropout is that of the thinned network, in its value too.
  """
  if not needs.of(loss).anchors or not sampling.rounds(model):
    return False
  return rng is None or not model.config.dropout_rate


def _reference_log_prob(
  frozen: types.FrozenParams,
  batch: types.Labelled,
  model: models.Model,
  per_token: bool,
) -> jax.Array:
  """Returns [B, K] log pi_ref(y | x), from the batch where it has them."""
  found = batch.reference_log_prob
  if found is None:
    with jax.named_scope('log_probs'):
      return sampling.log_prob(
        model,
        frozen.reference,
        batch.completions,
        per_token=per_token,
        dtype=model.log_ratio_dtype,
      )
  if per_token:
    mask = batch.completions.completions.mask
    found /= jnp.maximum(jnp.sum(mask, axis=-1), 1)
  return found
