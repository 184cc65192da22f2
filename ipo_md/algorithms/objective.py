"""What all steps of a policy share: feedback, loss, gradient and update."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ipo_md import models
from ipo_md import optim
from ipo_md import sampling
from ipo_md.algorithms import losses
from ipo_md.algorithms import needs
from ipo_md.core import averages
from ipo_md.core import types

Metrics = Mapping[str, Any]
Loss = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feedback:
  """Feedback on sampled completions: a judge, and what is made of its answer.

  Attributes:
    judge: JUDGE, a judge on the device (`judges.DeviceJudge`), or on the host
      for `two_programs` (`judges.HostJudge`).
    label: LABEL. None takes the judge's preference as the label;
      `losses.hard_label` rounds it and `losses.sampled_label` draws from it.
    truncation_reward: TRUNCATION_REWARD, the reward of a completion that ends
      without EOS. None keeps the judge's reward.
  """

  judge: Callable[..., Any]
  label: Callable[..., jax.Array] | None = None
  truncation_reward: float | None = None

  def check(self, loss: Loss) -> None:
    """Raises a ValueError if JUDGE is none, or a setting does not apply."""
    if not callable(self.judge):
      raise ValueError(
        f'JUDGE, a {type(self.judge).__name__}, cannot be called: it must be a '
        'judge, such as @judges.likelihood.'
      )
    kind = needs.of(loss).feedback
    if self.label is not None and kind != 'preference':
      raise ValueError(
        f'LABEL changes a preference, but LOSS = {needs.name(loss)} needs '
        f'{kind}.'
      )
    if self.truncation_reward is not None and kind != 'rewards':
      raise ValueError(
        f'TRUNCATION_REWARD is a reward, but LOSS = {needs.name(loss)} needs '
        f'a {kind}.'
      )

  def apply(
    self, labelled: types.Labelled, ended: jax.Array, rng: jax.Array
  ) -> types.Labelled:
    """Applies label and truncation reward to what a judge answered.

    Args:
      labelled: The judge's answer.
      ended: [B, K] whether a completion reached EOS.
      rng: Random key for labels that are drawn, consumed.
    """
    if self.label is not None:
      preference = require(labelled, 'preference', 'LABEL')
      preference = self.label(preference, rng=rng)
      labelled = labelled.replace(preference=preference)
    if self.truncation_reward is not None:
      rewards = require(labelled, 'rewards', 'TRUNCATION_REWARD')
      rewards = jnp.where(ended, rewards, self.truncation_reward)
      labelled = labelled.replace(rewards=rewards)
    return labelled


def sample_metrics(tokens: types.Tokens, eos_id: types.EosId) -> Metrics:
  """Measures sampled completions.

  Args:
    tokens: [B, K, T] completions.
    eos_id: Id of the end-of-sequence token, or several.

  Returns:
    length (tokens without EOS), eos_rate and, if K > 1, identical_pairs, the
    share of prompts whose first two completions are the same. Such a pair
    teaches nothing about preferences.
  """
  ended = sampling.ended(tokens, eos_id)
  found = {
    'length': averages.mean(jnp.sum(tokens.mask, axis=-1) - ended),
    'eos_rate': averages.mean(ended),
  }
  if tokens.ids.shape[1] > 1:
    ids = jnp.where(tokens.mask, tokens.ids, -1)
    same = jnp.all(ids[:, 0] == ids[:, 1], axis=-1)
    found['identical_pairs'] = averages.mean(same)
  return found


def check_per_token(loss: Loss, per_token: bool) -> None:
  """Raises a ValueError if an objective cannot average over tokens."""
  if per_token and not needs.of(loss).mean_over_tokens:
    raise ValueError(
      f'PER_TOKEN = True with LOSS = {needs.name(loss)}: its gradient needs '
      'log-probabilities that are summed over tokens.'
    )


def policy_loss(
  policy: types.Params,
  labelled: types.Labelled,
  *,
  model: models.Model,
  loss: Loss,
  per_token: bool,
  context: types.Context | None = None,
  sampled: jax.Array | None = None,
  log_prob: jax.Array | None = None,
  rng: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
  """Computes the loss of labelled completions, for online and offline steps.

  Args:
    policy: Parameters of the policy.
    labelled: Completions, feedback and, unless the objective is reference-free,
      the reference's log-probabilities.
    model: The network of the policy.
    loss: An objective of `losses`.
    per_token: Whether log-ratios are means over tokens rather than sums.
    context: The prompts as the policy reads them; None reads them here.
    sampled: [B, K, T] log-probabilities that the sampling loop found, which are
      compared with those found here; None if there are none.
    log_prob: [B, K] log-probabilities by the policy that were computed like
      those of the reference. The loss has their value and the gradient of those
      found here. None takes the latter for both.
    rng: Random key for dropout, consumed; None for no dropout.

  Returns:
    The loss with the model's auxiliary loss, and metrics (means over prompts,
    real completions or tokens, as `averages` keeps them): loss, tokens,
    log_ratio (log_prob if the objective is reference-free), preference or
    rewards, chosen_log_prob, rejected_log_prob and ranking_accuracy,
    sampling_error.
  """
  needed = needs.of(loss)
  feedback = require(labelled, needed.feedback, f'LOSS = {needs.name(loss)}')
  check_per_token(loss, per_token)
  mask = labelled.completions.completions.mask
  needs.check_completions(loss, mask.shape[1], 'MIXTURE_COEFS or the data set')
  log_probs, aux = sampling.log_probs(
    model, policy, labelled.completions, context=context, rng=rng
  )
  compared = {}
  if sampled is not None:
    error = jax.lax.stop_gradient(jnp.abs(log_probs - sampled))
    compared = {'sampling_error': averages.mean(error, where=mask)}
  found = sampling.sum_or_mean(log_probs, mask, per_token=per_token)
  log_prob = found if log_prob is None else sampling.with_value(found, log_prob)
  log_ratios, *others = [
    log_prob - _log_prob_of(anchor, labelled, loss) for anchor in needed.anchors
  ] or [log_prob]
  real = labelled.completion_mask
  extra: dict[str, jax.Array] = {
    f'{anchor}_log_ratios': ratios
    for anchor, ratios in zip(needed.anchors[1:], others, strict=True)
  }
  if needed.reads_mask:
    extra['completion_mask'] = real
  of_prompts = loss(log_ratios, feedback, **extra)
  value = jnp.mean(of_prompts)
  return value + aux, {
    'loss': averages.mean(of_prompts),
    'tokens': averages.Sum(jnp.sum(mask)),
    _log_ratio_name(needed): averages.mean(log_ratios, where=real),
    **_mean_feedback(needed.feedback, feedback, real),
    **_chosen_and_rejected(log_prob, feedback, real),
    **compared,
  }


def _log_prob_of(
  anchor: str, labelled: types.Labelled, loss: Loss
) -> jax.Array:
  """Returns the [B, K] log-probabilities by an anchor of an objective."""
  found = labelled.player_log_probs.get(anchor)
  if anchor == 'reference':
    found = labelled.reference_log_prob
  if found is None:
    raise ValueError(
      f'LOSS = {needs.name(loss)} needs the log-probabilities of a {anchor}.'
    )
  return found


def _mean_feedback(name: str, feedback: jax.Array, real: jax.Array) -> Metrics:
  """Returns the mean feedback; that of a matrix is always 1/2."""
  if feedback.ndim == 3:
    return {}
  where = real if feedback.ndim == 2 else None
  return {name: averages.mean(feedback, where=where)}


def _log_ratio_name(needed: needs.Needs) -> str:
  if not needed.anchors:
    return 'log_prob'
  anchor = needed.anchors[0]
  return 'log_ratio' if anchor == 'reference' else f'{anchor}_log_ratio'


def _chosen_and_rejected(
  log_prob: jax.Array, feedback: jax.Array, real: jax.Array
) -> Metrics:
  """Computes how likely the better and the worse completion are.

  Both may fall while their difference grows: InfoNCA lets the chosen one fall,
  NCA does not (https://arxiv.org/abs/2402.05369). Of rewards the highest and
  the lowest are compared. A tie counts as the mean of both completions.

    ranking_accuracy = P(log pi(y_w | x) > log pi(y_l | x)), a tie counts 1/2

  of the better and the worse completion, y_w and y_l, is the ranking accuracy
  of https://arxiv.org/abs/2405.19534, which has pairs without ties.

  Args:
    log_prob: [B, K] log-probabilities by the policy, nats.
    feedback: Preferences [B], rewards [B, K] or a matrix [B, K, K], of which
      the mean win rates count.
    real: [B, K] whether a completion exists.

  Returns:
    chosen_log_prob, rejected_log_prob and ranking_accuracy, means over prompts;
    nothing if K = 1.
  """
  if log_prob.shape[-1] < 2:
    return {}
  if feedback.ndim == 3:
    feedback = jnp.mean(feedback, axis=-1)
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
  better = jnp.sum(chosen * log_prob, axis=-1)
  worse = jnp.sum(rejected * log_prob, axis=-1)
  return {
    'chosen_log_prob': averages.mean(better),
    'rejected_log_prob': averages.mean(worse),
    'ranking_accuracy': averages.mean((jnp.sign(better - worse) + 1) / 2),
  }


def update(
  state: types.TrainState,
  frozen: types.FrozenParams,
  objective: Callable[[types.Params], tuple[jax.Array, Metrics]],
  model: models.Model,
  optimizer: optax.GradientTransformation,
) -> tuple[types.TrainState, Metrics]:
  """Makes one update with the gradient of an objective.

  Args:
    state: Training state.
    frozen: Frozen parameters. Only LoRA reads them.
    objective: Parameters of the policy -> loss, metrics.
    model: Network that is trained.
    optimizer: Optimizer of its parameters.

  Returns:
    The next state, and the metrics with those of the optimizer.
  """

  def of_state(params):
    with jax.named_scope('log_probs'):
      return objective(model.policy(params, frozen))

  grads, metrics = jax.grad(of_state, has_aux=True)(state.params)
  with jax.named_scope('update'):
    state, applied = optim.apply(optimizer, grads, state)
    return state, {**metrics, **applied}


def preference_of(judged: types.Labelled, who: str) -> jax.Array:
  """Returns the [B] preference of a judge of pairs.

  Args:
    judged: What the judge answered.
    who: What needs the preference, for the message.

  Raises:
    ValueError: The judge gives rewards alone.
  """
  if judged.preference is None:
    raise ValueError(
      f'{who} needs P(y_1 > y_2 | x), but JUDGE fills no `preference` of '
      'Labelled. Change JUDGE, or let it return one for 2 completions; from '
      'rewards, sigmoid(r_1 - r_2) is usual.'
    )
  return judged.preference


def matrix_of(labelled: types.Labelled) -> jax.Array:
  """Returns P(y_i > y_k | x) of all pairs, of which each judge has a form.

    (M_ik + 1 - M_ki) / 2                a judge that compares, in both orders
    sigmoid(r_i - r_k)                   rewards
    [[1/2, p], [1 - p, 1/2]]             a preference, K = 2

  Args:
    labelled: What a judge answered, or a data set has.

  Returns:
    [B, K, K] probabilities, P_ik + P_ki = 1.
  """
  if labelled.matrix is not None:
    return (labelled.matrix + 1 - jnp.swapaxes(labelled.matrix, 1, 2)) / 2
  if labelled.rewards is not None:
    r = labelled.rewards
    return jax.nn.sigmoid(r[:, :, None] - r[:, None])
  p = require(labelled, 'preference', 'A matrix of preferences')
  half = jnp.full_like(p, 0.5)
  return jnp.stack([half, p, 1 - p, half], axis=-1).reshape(-1, 2, 2)


def require(labelled: types.Labelled, field: str, who: str) -> jax.Array:
  """Returns feedback, or raises a ValueError if it is missing.

  Args:
    labelled: Labelled completions.
    field: 'preference', 'rewards' or 'matrix'.
    who: What needs it, for the message.
  """
  if field == 'matrix':
    return matrix_of(labelled)
  feedback = getattr(labelled, field)
  if feedback is None:
    other = {'preference': 'rewards', 'rewards': 'preference'}[field]
    if labelled.matrix is not None and labelled.preference is None:
      other = 'a matrix'
    hint = ''
    if field == 'preference':
      hint = ' Rewards give one if MIXTURE_COEFS has 2 entries.'
    raise ValueError(
      f'{who} needs {field}, but judge or data set give only {other}: change '
      f'LOSS, JUDGE or MIXTURE_OR_TASK_NAME.{hint}'
    )
  return feedback
