"""Steps that train judges on the preferences of a data set."""

import functools

import jax
import jax.numpy as jnp
import optax

from ipo_md import judges
from ipo_md import models
from ipo_md.algorithms import losses
from ipo_md.algorithms import objective as objective_lib
from ipo_md.algorithms import step_kinds
from ipo_md.core import averages
from ipo_md.core import types


@step_kinds.declare(trains_judge=True, judge=lambda bound: bound['judge'])
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
  """Makes one update on the Bradley-Terry loss of a judge's rewards.

  Args:
    state: Training state, donated.
    frozen: Frozen parameters. Only LoRA reads them.
    batch: Pairs of completions with their preference.
    rng: Random key for dropout, consumed.
    model: Network of the judge.
    optimizer: Optimizer of its parameters.
    judge: A judge that gives rewards, with `model` and `rng` left open.

  Returns:
    The next state, and metrics: loss, accuracy, tokens.
  """
  label = objective_lib.require(batch, 'preference', 'reward_step')

  def objective(params):
    judged = judge(params, batch.completions, model=model, rng=rng)
    rewards = objective_lib.require(judged, 'rewards', 'reward_step')
    preference = objective_lib.preference_of(judged, 'accuracy')
    of_pairs = losses.bradley_terry(rewards, label)
    return jnp.mean(of_pairs), {
      'loss': averages.mean(of_pairs),
      'accuracy': averages.mean(agreement(preference, label)),
      'tokens': _tokens(batch),
    }

  return objective_lib.update(state, frozen, objective, model, optimizer)


@step_kinds.declare(
  trains_judge=True,
  judge=lambda bound: functools.partial(
    judges.comparator, template=bound['template'], answers=bound['answers']
  ),
)
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
  """Makes one update on the cross-entropy of a comparator's answers.

    L = -1/2 [p log P('1' | y_1, y_2) + (1 - p) log P('2' | y_1, y_2)
              + p log P('2' | y_2, y_1) + (1 - p) log P('1' | y_2, y_1)]

  Both orders of each pair are read. The prompts are joined on the device by the
  function that judges too, so training and judging see identical tokens.

  Args:
    state: Training state, donated.
    frozen: Frozen parameters. Only LoRA reads them.
    batch: Pairs of completions with their preference.
    rng: Random key for dropout, consumed.
    model: A language model.
    optimizer: Optimizer of its parameters.
    template: Template of the judge's prompt.
    answers: The answers if the first or the second completion is better, one
      token each.

  Returns:
    The next state, and metrics: loss, accuracy (both orders averaged), tokens.
  """
  label = objective_lib.require(batch, 'preference', 'comparator_step')

  def objective(params):
    log_probs = judges.comparator_log_probs(
      params,
      batch.completions,
      model=model,
      template=template,
      answers=answers,
      rng=rng,
    )
    straight = jnp.stack([label, 1 - label], axis=-1)
    labels = jnp.stack([straight, straight[:, ::-1]], axis=1)
    of_orders = jnp.sum(labels * log_probs, axis=-1)
    p = jax.nn.sigmoid(log_probs[..., 0] - log_probs[..., 1])
    judged = (p[:, 0] + 1 - p[:, 1]) / 2
    return -jnp.mean(of_orders), {
      'loss': averages.mean(-of_orders),
      'accuracy': averages.mean(agreement(judged, label)),
      'tokens': _tokens(batch),
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
  """Measures how far the judge agrees with held-out preferences."""
  del rng
  policy = model.policy(state.params, frozen)
  judged = judge(policy, batch.completions, model=model)
  label = objective_lib.require(batch, 'preference', 'judge_metrics')
  preference = objective_lib.preference_of(judged, 'accuracy')
  return {'accuracy': averages.mean(agreement(preference, label))}


def _tokens(batch: types.Labelled) -> averages.Sum:
  """Counts the tokens of the completions."""
  return averages.Sum(jnp.sum(batch.completions.completions.mask))


def agreement(judged: jax.Array, label: jax.Array) -> jax.Array:
  """Returns [B] 1 where the winners agree, 0 where not, 1/2 where one ties."""
  return 0.5 + 2 * (losses.hard_label(judged) - 0.5) * (
    losses.hard_label(label) - 0.5
  )
