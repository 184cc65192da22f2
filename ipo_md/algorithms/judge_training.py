"""Steps that train judges on preferences, of the form of `steps`."""

import jax
import jax.numpy as jnp
import optax

from ipo_md import judges
from ipo_md import models
from ipo_md.algorithms import losses
from ipo_md.algorithms import objective as objective_lib
from ipo_md.core import types


def reward_step(
  state: types.TrainState,
  frozen: types.FrozenParams,
  batch: types.Labelled,
  rng: jax.Array,
  *,
  model: models.Model,
  optimizer: optax.GradientTransformation,
  judge: judges.DeviceJudge,
) -> tuple[types.TrainState, objective_lib.Metrics]:
  """Bradley-Terry likelihood of preferences under a judge's rewards.

  Args:
    state: donated.
    frozen: unused, but for what `Model.policy` takes of it.
    batch: pairs with their preference.
    rng: key for dropout, consumed.
    model: of the judge.
    optimizer: of its parameters.
    judge: one that gives rewards, with `model` and `rng` still open.

  Returns:
    The next state; loss, accuracy, tokens.
  """
  objective_lib.require(batch, 'preference', 'reward_step')

  def objective(params):
    judged = judge(params, batch.completions, model=model, rng=rng)
    objective_lib.require(judged, 'rewards', 'reward_step')
    loss = jnp.mean(losses.bradley_terry(judged.rewards, batch.preference))
    return loss, {
      'loss': loss,
      'accuracy': jnp.mean(agreement(judged.preference, batch.preference)),
      'tokens': jnp.sum(batch.completions.completions.mask),
    }

  return objective_lib.update(state, frozen, objective, model, optimizer)


def comparator_step(
  state: types.TrainState,
  frozen: types.FrozenParams,
  batch: types.Labelled,
  rng: jax.Array,
  *,
  model: models.Model,
  optimizer: optax.GradientTransformation,
  template: judges.Template,
  answers: tuple[str, str],
) -> tuple[types.TrainState, objective_lib.Metrics]:
  """Cross-entropy of a comparator's answer, on both orders of each pair.

    L = -1/2 [p log P('1' | y_1, y_2) + (1 - p) log P('2' | y_1, y_2)
              + p log P('2' | y_2, y_1) + (1 - p) log P('1' | y_2, y_1)]

  The prompts are joined here, on the device, by the function that judges too.

  Args:
    state: donated.
    frozen: unused, but for what `Model.policy` takes of it.
    batch: pairs with their preference.
    rng: key for dropout, consumed.
    model: a language model.
    optimizer: of its parameters.
    template: its prompt.
    answers: see `judges.comparator_log_probs`.

  Returns:
    The next state; loss, accuracy (of both orders averaged), tokens.
  """
  objective_lib.require(batch, 'preference', 'comparator_step')

  def objective(params):
    log_probs = judges.comparator_log_probs(
      params,
      batch.completions,
      model=model,
      template=template,
      answers=answers,
      rng=rng,
    )
    straight = jnp.stack([batch.preference, 1 - batch.preference], axis=-1)
    labels = jnp.stack([straight, straight[:, ::-1]], axis=1)
    loss = -jnp.mean(jnp.sum(labels * log_probs, axis=-1))
    p = jax.nn.sigmoid(log_probs[..., 0] - log_probs[..., 1])
    judged = (p[:, 0] + 1 - p[:, 1]) / 2
    return loss, {
      'loss': loss,
      'accuracy': jnp.mean(agreement(judged, batch.preference)),
      'tokens': jnp.sum(batch.completions.completions.mask),
    }

  return objective_lib.update(state, frozen, objective, model, optimizer)


def judge_metrics(
  state: types.TrainState,
  frozen: types.FrozenParams,
  batch: types.Labelled,
  rng: jax.Array,
  *,
  model: models.Model,
  judge: judges.DeviceJudge,
) -> objective_lib.Metrics:
  """Agreement of the judge in training with held-out preferences."""
  del rng
  policy = model.policy(state.params, frozen)
  judged = judge(policy, batch.completions, model=model)
  return {'accuracy': jnp.mean(agreement(judged.preference, batch.preference))}


def agreement(judged: jax.Array, label: jax.Array) -> jax.Array:
  """[B] 1 where two preferences name the same winner, 1/2 where one ties."""
  return 0.5 + 2 * (losses.hard_label(judged) - 0.5) * (
    losses.hard_label(label) - 0.5
  )
