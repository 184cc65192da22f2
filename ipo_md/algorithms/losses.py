"""The objectives: one pure function of log-ratios and feedback each.

  rho_i = log pi(y_i | x) - log pi_ref(y_i | x)     [B, K] `log_ratios`

The log-ratios are summed over the tokens of y_i, or averaged over them
(`sampling.sum_or_mean`). The decorator of a function declares what it needs:
the feedback is either `preference` [B], P(y_1 > y_2 | x), or `rewards` [B, K],
one score for each completion. Only log pi carries a gradient; pi_ref, feedback
and samples are constants. Every function returns the loss of each prompt, [B].

The same functions serve completions that were just sampled and completions of
a data set. Hyperparameters have no default. A wrong value raises a ValueError
when the step is traced, before it is compiled.

  loss = losses.ipo(log_ratios, preference, tau=0.1)  # [B]
"""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp

from ipo_md.algorithms import loss_checks
from ipo_md.algorithms import needs


@needs.declare(feedback='preference', completions=2)
def ipo(
  log_ratios: jax.Array, preference: jax.Array, *, tau: float
) -> jax.Array:
  """Identity preference optimisation, the squared form.

    L = p (h - 1/(2 tau))^2 + (1 - p) (-h - 1/(2 tau))^2,   h = rho_1 - rho_2

  Online IPO of https://arxiv.org/abs/2403.08635 (eq. 11) if y_1 and y_2 are
  sampled from the policy, IPO-MD if they are sampled from its mixture with the
  reference, offline IPO (https://arxiv.org/abs/2310.12036, eq. 17) on the pairs
  of a data set. The form tau h^2 - h that is often coded is tau times this
  loss, less a constant.

  Args:
    log_ratios: [B, 2] log-ratios of policy and reference, nats.
    preference: [B] probabilities P(y_1 > y_2 | x).
    tau: Weight of the divergence from the reference. The minimum is at h =
      (2 p - 1) / (2 tau).

  Returns:
    [B] losses.
  """
  loss_checks.require_positive('losses.ipo', tau=tau)
  margin = 1 / (2 * tau)
  return _soft_label(
    'ipo', log_ratios, preference, lambda h: jnp.square(h - margin)
  )


@needs.declare(feedback='preference', completions=2)
def dpo(
  log_ratios: jax.Array, preference: jax.Array, *, beta: float
) -> jax.Array:
  """Direct preference optimisation.

    L = -p log sigmoid(beta h) - (1 - p) log sigmoid(-beta h)
    h = rho_1 - rho_2

  See https://arxiv.org/abs/2305.18290. The online form with a soft label is
  that of https://arxiv.org/abs/2403.08635, which calls beta tau.

  Args:
    log_ratios: [B, 2] log-ratios of policy and reference, nats.
    preference: [B] probabilities P(y_1 > y_2 | x).
    beta: Scale of the log-ratios.

  Returns:
    [B] losses.
  """
  loss_checks.require_positive('losses.dpo', beta=beta)
  return _soft_label(
    'dpo', log_ratios, preference, lambda h: -jax.nn.log_sigmoid(beta * h)
  )


@needs.declare(feedback='preference', completions=2)
def slic(
  log_ratios: jax.Array, preference: jax.Array, *, beta: float
) -> jax.Array:
  """Sequence likelihood calibration on log-ratios.

    L = p max(0, 1 - beta h) + (1 - p) max(0, 1 + beta h),   h = rho_1 - rho_2

  This is the hinge-norm of RSO (https://arxiv.org/abs/2309.06657). SLiC-HF
  (https://arxiv.org/abs/2305.10425) itself has no reference policy.

  Args:
    log_ratios: [B, 2] log-ratios of policy and reference, nats.
    preference: [B] probabilities P(y_1 > y_2 | x).
    beta: Inverse of the margin.

  Returns:
    [B] losses.
  """
  loss_checks.require_positive('losses.slic', beta=beta)
  return _soft_label(
    'slic', log_ratios, preference, lambda h: jnp.maximum(0, 1 - beta * h)
  )


@needs.declare(
  feedback='preference',
  completions=2,
  on_policy='first',
  mean_over_tokens=False,
)
def policy_gradient(
  log_ratios: jax.Array, preference: jax.Array, *, tau: float
) -> jax.Array:
  """Policy gradient of winning against a second player (Nash-MD-PG).

    L = -rho_1 SG[p - 1/2 - tau rho_1],   SG = stop-gradient

  See https://arxiv.org/abs/2312.00886. The gradient is unbiased only if y_1 is
  sampled from pi. y_2 comes from the mixture (Nash-MD), from a moving average
  of the policy (Nash-EMA) or from pi itself, and receives no gradient. Only the
  gradient is meaningful, not the value, and it needs log-probabilities that are
  summed over tokens.

  Args:
    log_ratios: [B, 2] log-ratios of policy and reference, nats.
    preference: [B] probabilities P(y_1 > y_2 | x).
    tau: Weight of KL(pi, pi_ref).

  Returns:
    [B] surrogate losses.
  """
  loss_checks.require_positive('losses.policy_gradient', tau=tau)
  loss_checks.require_pair('losses.policy_gradient', log_ratios, preference)
  rho_1 = log_ratios[:, 0]
  return -rho_1 * jax.lax.stop_gradient(preference - 0.5 - tau * rho_1)


@needs.declare(
  feedback='rewards', completions=1, on_policy='all', mean_over_tokens=False
)
def reinforce(
  log_ratios: jax.Array, rewards: jax.Array, *, tau: float
) -> jax.Array:
  """Policy gradient of a reward with a penalty on the divergence (RL).

    L = -(1/K) sum_i rho_i SG[a_i - b_i],   a_i = r_i - tau rho_i
    b_i = mean of a_j over j != i, 0 if K = 1

  For K = 1 this is the RL baseline of https://arxiv.org/abs/2403.08635. With
  more completions the others serve as the baseline
  (https://arxiv.org/abs/2402.14740), which changes the variance and not the
  mean. The gradient is unbiased only if every y_i is sampled from pi. Only the
  gradient is meaningful, not the value, and it needs log-probabilities that are
  summed over tokens.

  Args:
    log_ratios: [B, K] log-ratios of policy and reference, nats.
    rewards: [B, K] scores of the completions.
    tau: Weight of KL(pi, pi_ref).

  Returns:
    [B] surrogate losses.
  """
  loss_checks.require_positive('losses.reinforce', tau=tau)
  loss_checks.require_rewards('losses.reinforce', log_ratios, rewards, 1)
  advantage = rewards - tau * log_ratios
  k = log_ratios.shape[1]
  if k > 1:
    others = jnp.sum(advantage, axis=1, keepdims=True) - advantage
    advantage -= others / (k - 1)
  return -jnp.mean(log_ratios * jax.lax.stop_gradient(advantage), axis=1)


@needs.declare(feedback='rewards', completions=2, reads_mask=True)
def nca(
  log_ratios: jax.Array,
  rewards: jax.Array,
  *,
  beta: float,
  alpha: float,
  completion_mask: jax.Array | None = None,
) -> jax.Array:
  """Noise contrastive alignment.

    L = -sum_i [w_i log sigmoid(s_i) + (1/K) log sigmoid(-s_i)]
    s_i = beta rho_i,   w = softmax(rewards / alpha)

  See https://arxiv.org/abs/2402.05369. For pairs and alpha = 0 this is the
  paper's -log sigmoid(s_w) - 1/2 log sigmoid(-s_w) - 1/2 log sigmoid(-s_l).
  The published code fixes K = 4 and divides scores by 1e-4 before the softmax,
  so its labels are one-hot, as they are here at alpha = 0.

  Args:
    log_ratios: [B, K] log-ratios of policy and reference, nats; K >= 2.
    rewards: [B, K] scores of the completions.
    beta: Scale of the log-ratios.
    alpha: Temperature of the rewards. At 0 the best completions share w = 1.
    completion_mask: [B, K] True on real completions. The others are left out,
      and K counts those that remain. None means that all are real.

  Returns:
    [B] losses.
  """
  loss_checks.require_positive('losses.nca', beta=beta)
  loss_checks.require_rewards('losses.nca', log_ratios, rewards, 2)
  mask = loss_checks.full_mask(completion_mask, log_ratios)
  weights = _reward_weights('nca', rewards, mask, alpha)
  scores = beta * jnp.where(mask, log_ratios, 0)
  count = jnp.sum(mask, axis=1, keepdims=True)
  terms = weights * jax.nn.log_sigmoid(scores)
  terms += jax.nn.log_sigmoid(-scores) / jnp.maximum(count, 1)
  return -jnp.sum(jnp.where(mask, terms, 0), axis=1)


@needs.declare(feedback='rewards', completions=2, reads_mask=True)
def info_nca(
  log_ratios: jax.Array,
  rewards: jax.Array,
  *,
  beta: float,
  alpha: float,
  completion_mask: jax.Array | None = None,
) -> jax.Array:
  """InfoNCA: cross-entropy of which of K completions was preferred.

    L = -sum_i w_i log softmax(s)_i
    s_i = beta rho_i,   w = softmax(rewards / alpha)

  See https://arxiv.org/abs/2402.05369. With K = 2 and alpha = 0 this is `dpo`.

  Args:
    log_ratios: [B, K] log-ratios of policy and reference, nats; K >= 2.
    rewards: [B, K] scores of the completions.
    beta: Scale of the log-ratios.
    alpha: Temperature of the rewards. At 0 the best completions share w = 1.
    completion_mask: [B, K] True on real completions. The others are left out.
      None means that all are real.

  Returns:
    [B] losses.
  """
  loss_checks.require_positive('losses.info_nca', beta=beta)
  loss_checks.require_rewards('losses.info_nca', log_ratios, rewards, 2)
  mask = loss_checks.full_mask(completion_mask, log_ratios)
  weights = _reward_weights('info_nca', rewards, mask, alpha)
  scores = beta * jnp.where(mask, log_ratios, 0)
  scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
  terms = weights * jax.nn.log_softmax(scores, axis=1)
  return -jnp.sum(jnp.where(mask, terms, 0), axis=1)


def bradley_terry(rewards: jax.Array, preference: jax.Array) -> jax.Array:
  """Bradley-Terry loss of a reward model on pairs.

    L = -p log sigmoid(r_1 - r_2) - (1 - p) log sigmoid(r_2 - r_1)

  Args:
    rewards: [B, 2] scores by the model in training.
    preference: [B] probabilities P(y_1 > y_2 | x).

  Returns:
    [B] losses.
  """
  return _soft_label(
    'bradley_terry', rewards, preference, lambda h: -jax.nn.log_sigmoid(h)
  )


def cross_entropy(
  log_probs: jax.Array, log_z: jax.Array, *, z_loss: float
) -> jax.Array:
  """Cross-entropy of given tokens, with T5X's penalty on the normaliser.

    L = -log pi(token) + z_loss (log Z)^2

  Args:
    log_probs: [...] log-probabilities of the tokens
      (`sampling.token_log_probs`).
    log_z: [...] logarithms of the softmax's denominator.
    z_loss: Weight of the penalty, which keeps log Z near 0. T5X uses 1e-4.

  Returns:
    [...] losses of the tokens.
  """
  if not 0 <= z_loss < math.inf:
    raise ValueError(
      f'losses.cross_entropy.z_loss = {z_loss} must not be negative.'
    )
  return -log_probs + z_loss * jnp.square(log_z)


def hard_label(
  preference: jax.Array, rng: jax.Array | None = None
) -> jax.Array:
  """Rounds preferences [B] to 1 or 0, and to 1/2 for a tie. Ignores `rng`."""
  del rng
  return (jnp.sign(preference - 0.5) + 1) / 2


def sampled_label(preference: jax.Array, rng: jax.Array) -> jax.Array:
  """Draws labels [B] that are 1 with the given probabilities, and else 0."""
  label = jax.random.bernoulli(rng, preference)
  return jnp.where(jnp.isnan(preference), preference, label)


def _soft_label(
  name: str,
  scores: jax.Array,
  preference: jax.Array,
  loss: Callable[[jax.Array], jax.Array],
) -> jax.Array:
  """Returns p L(y_1, y_2) + (1 - p) L(y_2, y_1) for a loss of the margin h."""
  loss_checks.require_pair(f'losses.{name}', scores, preference)
  h = scores[:, 0] - scores[:, 1]
  return preference * loss(h) + (1 - preference) * loss(-h)


def _reward_weights(
  name: str, rewards: jax.Array, mask: jax.Array, alpha: float
) -> jax.Array:
  """Returns softmax(rewards / alpha) over real completions; ties share at 0."""
  if not 0 <= alpha < math.inf:
    raise ValueError(f'losses.{name}.alpha = {alpha} must not be negative.')
  lowest = jnp.finfo(rewards.dtype).min
  rewards = jnp.where(mask, rewards, lowest)
  gap = rewards - jnp.max(rewards, axis=1, keepdims=True)  # 0 for the best
  if alpha == 0:
    weights = jnp.where(jnp.isnan(gap), gap, gap == 0)  # NaN is not hidden
    weights = jnp.where(mask, weights, 0)
  else:
    weights = jnp.where(mask, jnp.exp(gap / alpha), 0)
  total = jnp.sum(weights, axis=1, keepdims=True)
  return (weights / jnp.maximum(total, 1)).astype(rewards.dtype)
