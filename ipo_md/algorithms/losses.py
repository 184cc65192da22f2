"""The objectives: one pure function of log-ratios and feedback each.

  rho_i = log pi(y_i | x) - log pi_ref(y_i | x)     [B, K] `log_ratios`

summed over the tokens of y_i, or their mean: `sequences.log_ratios` decides.
The name of a function's second parameter says which feedback it needs:
`preference` [B] is P(y_1 > y_2 | x), `rewards` [B, K] one score a completion.
Only log pi carries a gradient; pi_ref, feedback and samples are constants.
Every function returns the loss of each prompt, [B].

The same functions serve completions that were just sampled and completions of
a data set. Hyperparameters have no default, and a wrong one is a ValueError
when the step is traced, before it is compiled.
"""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp


def ipo(
  log_ratios: jax.Array, preference: jax.Array, *, tau: float
) -> jax.Array:
  """Identity preference optimisation, the squared form.

    L = p (h - 1/(2 tau))^2 + (1 - p) (-h - 1/(2 tau))^2,   h = rho_1 - rho_2

  Online IPO of https://arxiv.org/abs/2403.08635 (eq. 11) if y_1 and y_2 are
  sampled from the policy, IPO-MD if from its mixture with the reference,
  offline IPO (https://arxiv.org/abs/2310.12036, eq. 17) on a data set's pairs.
  The form tau h^2 - h that is often coded is tau times this less a constant.

  Args:
    log_ratios: [B, 2] policy over reference.
    preference: [B] P(y_1 > y_2 | x).
    tau: weight of the divergence from the reference; h is drawn to
      (2 p - 1) / (2 tau).

  Returns:
    [B] loss.
  """
  _require_positive('ipo', tau=tau)
  margin = 1 / (2 * tau)
  return _soft_label(
    'ipo', log_ratios, preference, lambda h: jnp.square(h - margin)
  )


def dpo(
  log_ratios: jax.Array, preference: jax.Array, *, beta: float
) -> jax.Array:
  """Direct preference optimisation.

    L = -p log sigmoid(beta h) - (1 - p) log sigmoid(-beta h)
    h = rho_1 - rho_2

  https://arxiv.org/abs/2305.18290; online and with a soft label as in
  https://arxiv.org/abs/2403.08635, where beta is called tau.

  Args:
    log_ratios: [B, 2] policy over reference.
    preference: [B] P(y_1 > y_2 | x).
    beta: scale of the log-ratios.

  Returns:
    [B] loss.
  """
  _require_positive('dpo', beta=beta)
  return _soft_label(
    'dpo', log_ratios, preference, lambda h: -jax.nn.log_sigmoid(beta * h)
  )


def slic(
  log_ratios: jax.Array, preference: jax.Array, *, beta: float
) -> jax.Array:
  """Sequence likelihood calibration on log-ratios.

    L = p max(0, 1 - beta h) + (1 - p) max(0, 1 + beta h),   h = rho_1 - rho_2

  The hinge-norm of RSO (https://arxiv.org/abs/2309.06657); SLiC-HF
  (https://arxiv.org/abs/2305.10425) itself has no reference policy.

  Args:
    log_ratios: [B, 2] policy over reference.
    preference: [B] P(y_1 > y_2 | x).
    beta: inverse of the margin.

  Returns:
    [B] loss.
  """
  _require_positive('slic', beta=beta)
  return _soft_label(
    'slic', log_ratios, preference, lambda h: jnp.maximum(0, 1 - beta * h)
  )


def policy_gradient(
  log_ratios: jax.Array, preference: jax.Array, *, tau: float
) -> jax.Array:
  """Nash-MD-PG: policy gradient of winning against the second player.

    L = -rho_1 SG[p - 1/2 - tau rho_1],   SG = stop-gradient

  https://arxiv.org/abs/2312.00886. Unbiased only if y_1 is sampled from pi;
  y_2 comes from the mixture (Nash-MD), from a moving average of the policy
  (Nash-EMA) or from pi itself, and gets no gradient. The value means nothing:
  only the gradient does, and it needs log-probabilities summed over tokens.

  Args:
    log_ratios: [B, 2] policy over reference.
    preference: [B] P(y_1 > y_2 | x).
    tau: weight of KL(pi, pi_ref).

  Returns:
    [B] surrogate loss.
  """
  _require_positive('policy_gradient', tau=tau)
  _require_pair('policy_gradient', log_ratios, preference)
  rho_1 = log_ratios[:, 0]
  return -rho_1 * jax.lax.stop_gradient(preference - 0.5 - tau * rho_1)


def reinforce(
  log_ratios: jax.Array, rewards: jax.Array, *, tau: float
) -> jax.Array:
  """Policy gradient of a reward regularised towards the reference.

    L = -(1/K) sum_i rho_i SG[a_i - b_i],   a_i = r_i - tau rho_i
    b_i = mean of a_j over j != i, 0 if K = 1

  The RL baseline of https://arxiv.org/abs/2403.08635 for K = 1; with more
  completions the others are the baseline (https://arxiv.org/abs/2402.14740),
  which changes the variance and not the mean. Unbiased only if every y_i is
  sampled from pi. The value means nothing: only the gradient does, and it
  needs log-probabilities summed over tokens.

  Args:
    log_ratios: [B, K] policy over reference.
    rewards: [B, K].
    tau: weight of KL(pi, pi_ref).

  Returns:
    [B] surrogate loss.
  """
  _require_positive('reinforce', tau=tau)
  _require_rewards('reinforce', log_ratios, rewards, 1)
  advantage = rewards - tau * log_ratios
  k = log_ratios.shape[1]
  if k > 1:
    others = jnp.sum(advantage, axis=1, keepdims=True) - advantage
    advantage -= others / (k - 1)
  return -jnp.mean(log_ratios * jax.lax.stop_gradient(advantage), axis=1)


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

  https://arxiv.org/abs/2402.05369. For pairs and alpha = 0 this is the
  paper's -log sigmoid(s_w) - 1/2 log sigmoid(-s_w) - 1/2 log sigmoid(-s_l).
  The published code fixes K = 4 and divides scores by 1e-4 before the softmax,
  so that its labels are one-hot: alpha = 0 here.

  Args:
    log_ratios: [B, K] policy over reference, K >= 2.
    rewards: [B, K].
    beta: scale of the log-ratios.
    alpha: temperature of the rewards; 0: the best completions share w = 1.
    completion_mask: [B, K] True on real completions, the others are left out
      and K is what remains; None: all are real.

  Returns:
    [B] loss.
  """
  _require_positive('nca', beta=beta)
  _require_rewards('nca', log_ratios, rewards, 2)
  mask = _full_mask(completion_mask, log_ratios)
  weights = _reward_weights('nca', rewards, mask, alpha)
  scores = beta * jnp.where(mask, log_ratios, 0)
  count = jnp.sum(mask, axis=1, keepdims=True)
  terms = weights * jax.nn.log_sigmoid(scores)
  terms += jax.nn.log_sigmoid(-scores) / jnp.maximum(count, 1)
  return -jnp.sum(jnp.where(mask, terms, 0), axis=1)


def info_nca(
  log_ratios: jax.Array,
  rewards: jax.Array,
  *,
  beta: float,
  alpha: float,
  completion_mask: jax.Array | None = None,
) -> jax.Array:
  """InfoNCA: which of K completions was preferred.

    L = -sum_i w_i log softmax(s)_i
    s_i = beta rho_i,   w = softmax(rewards / alpha)

  https://arxiv.org/abs/2402.05369. With K = 2 and alpha = 0 this is `dpo`.

  Args:
    log_ratios: [B, K] policy over reference, K >= 2.
    rewards: [B, K].
    beta: scale of the log-ratios.
    alpha: temperature of the rewards; 0: the best completions share w = 1.
    completion_mask: [B, K] True on real completions, the others are left out;
      None: all are real.

  Returns:
    [B] loss.
  """
  _require_positive('info_nca', beta=beta)
  _require_rewards('info_nca', log_ratios, rewards, 2)
  mask = _full_mask(completion_mask, log_ratios)
  weights = _reward_weights('info_nca', rewards, mask, alpha)
  scores = beta * jnp.where(mask, log_ratios, 0)
  scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
  terms = weights * jax.nn.log_softmax(scores, axis=1)
  return -jnp.sum(jnp.where(mask, terms, 0), axis=1)


def bradley_terry(rewards: jax.Array, preference: jax.Array) -> jax.Array:
  """The loss of a reward model on pairs.

    L = -p log sigmoid(r_1 - r_2) - (1 - p) log sigmoid(r_2 - r_1)

  Args:
    rewards: [B, 2], of the model in training.
    preference: [B] P(y_1 > y_2 | x).

  Returns:
    [B] loss.
  """
  return _soft_label(
    'bradley_terry', rewards, preference, lambda h: -jax.nn.log_sigmoid(h)
  )


def cross_entropy(
  log_probs: jax.Array, log_z: jax.Array, *, z_loss: float
) -> jax.Array:
  """Cross-entropy of given tokens with T5X's penalty on the normaliser.

    L = -log pi(token) + z_loss (log Z)^2

  Args:
    log_probs: [...] of the tokens, as `sampling.token_log_probs` gives them.
    log_z: [...] logarithm of the softmax's denominator.
    z_loss: weight of the penalty, which keeps log Z near 0; T5X uses 1e-4.

  Returns:
    [...] loss of each token.
  """
  if not 0 <= z_loss < math.inf:
    raise ValueError(f'losses.cross_entropy.z_loss = {z_loss} is negative.')
  return -log_probs + z_loss * jnp.square(log_z)


def hard_label(
  preference: jax.Array, rng: jax.Array | None = None
) -> jax.Array:
  """[B] preferences -> 1, 0, or 1/2 for a tie. rng: as of `sampled_label`."""
  del rng
  return (jnp.sign(preference - 0.5) + 1) / 2


def sampled_label(preference: jax.Array, rng: jax.Array) -> jax.Array:
  """[B] preferences -> 1 with that probability, else 0. rng: key, consumed."""
  label = jax.random.bernoulli(rng, preference)
  return jnp.where(jnp.isnan(preference), preference, label)


def _soft_label(
  name: str,
  scores: jax.Array,
  preference: jax.Array,
  loss: Callable[[jax.Array], jax.Array],
) -> jax.Array:
  """p L(y_1, y_2) + (1 - p) L(y_2, y_1) for a loss of the margin h."""
  _require_pair(name, scores, preference)
  h = scores[:, 0] - scores[:, 1]
  return preference * loss(h) + (1 - preference) * loss(-h)


def _reward_weights(
  name: str, rewards: jax.Array, mask: jax.Array, alpha: float
) -> jax.Array:
  """softmax(rewards / alpha) over real completions; ties share at alpha 0."""
  if not 0 <= alpha < math.inf:
    raise ValueError(f'losses.{name}.alpha = {alpha} is negative (ALPHA).')
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


def _full_mask(
  completion_mask: jax.Array | None, log_ratios: jax.Array
) -> jax.Array:
  if completion_mask is None:
    return jnp.ones(log_ratios.shape, bool)
  return completion_mask


def _require_positive(name: str, **hyperparameters: float):
  for key, value in hyperparameters.items():
    if not 0 < value < math.inf:
      raise ValueError(
        f'losses.{name}.{key} = {value} must be positive ({key.upper()}).'
      )


def _require_pair(name: str, scores: jax.Array, preference: jax.Array):
  if scores.ndim != 2 or scores.shape[1] != 2:
    raise ValueError(
      f'losses.{name} compares 2 completions of a prompt, got scores of shape'
      f' {scores.shape}: MIXTURE_COEFS needs 2 entries.'
    )
  if preference.shape != scores.shape[:1]:
    raise ValueError(
      f'losses.{name} needs a preference of shape {scores.shape[:1]}, got'
      f' {preference.shape}: change LOSS, or a judge or data of rewards.'
    )


def _require_rewards(
  name: str, log_ratios: jax.Array, rewards: jax.Array, k: int
):
  if log_ratios.ndim != 2 or log_ratios.shape[1] < k:
    raise ValueError(
      f'losses.{name} needs {k} completions of a prompt or more, got'
      f' log-ratios of shape {log_ratios.shape}: lengthen MIXTURE_COEFS.'
    )
  if rewards.shape != log_ratios.shape:
    raise ValueError(
      f'losses.{name} needs rewards of shape {log_ratios.shape}, got'
      f' {rewards.shape}: change LOSS, or a judge or data of preferences.'
    )
