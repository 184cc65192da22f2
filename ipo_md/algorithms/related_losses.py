"""Objectives of related work, in the form of `losses`.

Those of pairs: `xpo`, which explores, `simpo`, which has no reference, and
`apo_zero` and `apo_down`, which say where each log-probability goes. Those of K
scored completions: `neural_ndcg` and `approx_ndcg`, which train the ranking
metric itself.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ipo_md.algorithms import loss_checks
from ipo_md.algorithms import losses
from ipo_md.algorithms import needs

_SINKHORN_STEPS = 50


@needs.declare(feedback='preference', completions=2)
def xpo(
  log_ratios: jax.Array, preference: jax.Array, *, beta: float, alpha: float
) -> jax.Array:
  """Exploratory preference optimisation.

    L = -p log sigmoid(beta h) - (1 - p) log sigmoid(-beta h) + alpha rho_2
    h = rho_1 - rho_2

  See https://arxiv.org/abs/2405.21046, algorithm 1: online DPO of a sample of
  the policy, y_1, and one of the reference, y_2. The last term lowers the
  probability of what the reference samples. The paper has log pi(y_2) there,
  which differs by a constant. It is not bounded: a y_2 that beats the policy
  with a probability below alpha / beta ends with a probability of 0.

  Args:
    log_ratios: [B, 2] log-ratios of policy and reference, nats.
    preference: [B] probabilities P(y_1 > y_2 | x).
    beta: Scale of the log-ratios.
    alpha: Weight of the exploration, 0 for none.

  Returns:
    [B] losses.
  """
  loss_checks.require_positive('related_losses.xpo', beta=beta)
  loss_checks.require_not_negative('related_losses.xpo', alpha=alpha)
  plain = losses.dpo(log_ratios, preference, beta=beta)
  return plain + alpha * log_ratios[:, 1]


@needs.declare(feedback='preference', completions=2, anchors=())
def simpo(
  log_probs: jax.Array, preference: jax.Array, *, beta: float, gamma: float
) -> jax.Array:
  """Simple preference optimisation, which has no reference.

    L = -p log sigmoid(beta h - gamma) - (1 - p) log sigmoid(-beta h - gamma)
    h = log pi(y_1 | x) - log pi(y_2 | x)

  See https://arxiv.org/abs/2405.14734, where log pi is a mean over tokens
  (PER_TOKEN).

  Args:
    log_probs: [B, 2] log-probabilities of the policy, nats for each token.
    preference: [B] probabilities P(y_1 > y_2 | x).
    beta: Scale of the log-probabilities.
    gamma: Margin by which the better completion has to win.

  Returns:
    [B] losses.
  """
  loss_checks.require_positive('related_losses.simpo', beta=beta)
  loss_checks.require_not_negative('related_losses.simpo', gamma=gamma)
  return _sides(
    'simpo',
    log_probs,
    preference,
    lambda won, lost: -jax.nn.log_sigmoid(beta * (won - lost) - gamma),
  )


@needs.declare(feedback='preference', completions=2)
def apo_zero(
  log_ratios: jax.Array, preference: jax.Array, *, beta: float
) -> jax.Array:
  """Anchored preference optimisation, for winners better than the policy.

    L(w, l) = 1 - sigmoid(beta rho_w) + sigmoid(beta rho_l)
    L = p L(1, 2) + (1 - p) L(2, 1)

  See https://arxiv.org/abs/2408.06266. The probability of the winner rises and
  that of the loser falls, and the gradient of each vanishes far from the
  reference.

  Args:
    log_ratios: [B, 2] log-ratios of policy and reference, nats.
    preference: [B] probabilities P(y_1 > y_2 | x).
    beta: Scale of the log-ratios.

  Returns:
    [B] losses.
  """
  loss_checks.require_positive('related_losses.apo_zero', beta=beta)
  return _sides(
    'apo_zero',
    log_ratios,
    preference,
    lambda won, lost: jax.nn.sigmoid(-beta * won) + jax.nn.sigmoid(beta * lost),
  )


@needs.declare(feedback='preference', completions=2)
def apo_down(
  log_ratios: jax.Array, preference: jax.Array, *, beta: float
) -> jax.Array:
  """Anchored preference optimisation, for winners worse than the policy.

    L(w, l) = sigmoid(beta rho_w) + 1 - sigmoid(beta (rho_w - rho_l))
    L = p L(1, 2) + (1 - p) L(2, 1)

  See https://arxiv.org/abs/2408.06266. The probability of the winner falls, and
  that of the loser falls further.

  Args:
    log_ratios: [B, 2] log-ratios of policy and reference, nats.
    preference: [B] probabilities P(y_1 > y_2 | x).
    beta: Scale of the log-ratios.

  Returns:
    [B] losses.
  """
  loss_checks.require_positive('related_losses.apo_down', beta=beta)
  return _sides(
    'apo_down',
    log_ratios,
    preference,
    lambda won, lost: (
      jax.nn.sigmoid(beta * won) + jax.nn.sigmoid(beta * (lost - won))
    ),
  )


@needs.declare(feedback='rewards', completions=2, reads_mask=True)
def neural_ndcg(
  log_ratios: jax.Array,
  rewards: jax.Array,
  *,
  beta: float,
  temperature: float,
  completion_mask: jax.Array | None = None,
) -> jax.Array:
  """Ordinal preference optimisation with NeuralNDCG.

    L = -sum_i (P g)_i / log2(1 + i) / max DCG,   g_j = 2^r_j - 1
    P = Sinkhorn(softmax_j(((K + 1 - 2 i) s_j - sum_k |s_j - s_k|) / T))
    s = beta rho

  See https://arxiv.org/abs/2410.04346 (the loss), arXiv 1903.08850 (NeuralSort,
  P) and arXiv 2102.07831 (NeuralNDCG). P approaches the permutation that sorts
  the scores s as T approaches 0. max DCG is the sum with the best order.

  Args:
    log_ratios: [B, K] log-ratios of policy and reference, nats; K >= 2.
    rewards: [B, K] grades, at least 0. Others have no NDCG: the loss is NaN.
    beta: Scale of the log-ratios.
    temperature: T, of the relaxed sort.
    completion_mask: [B, K] True on real completions. The others are left out.
      None means that all are real.

  Returns:
    [B] losses, from -1 to 0. A prompt whose grades are all 0 has the loss 0.
  """
  loss_checks.require_positive(
    'related_losses.neural_ndcg', beta=beta, temperature=temperature
  )
  mask, gains, best = _ranked(
    'neural_ndcg', rewards, completion_mask, log_ratios
  )
  scores = beta * jnp.where(mask, log_ratios, 0)
  both = mask[:, :, None] & mask[:, None]
  apart = jnp.where(both, jnp.abs(scores[:, :, None] - scores[:, None]), 0)
  count = jnp.sum(mask, axis=1)[:, None, None]
  place = 1 + jnp.arange(scores.shape[1])[:, None]
  logits = (count + 1 - 2 * place) * scores[:, None] - jnp.sum(apart, 1)[
    :, None
  ]
  # Rows are places, of which there are as many as real completions.
  real = (place <= count) & mask[:, None]
  logits = jnp.where(real, logits / temperature, jnp.finfo(scores.dtype).min)
  sort = _sinkhorn(jnp.where(real, jax.nn.softmax(logits, axis=-1), 0))
  placed = jnp.sum(sort * gains[:, None], axis=-1)
  return -jnp.sum(placed * _discounts(scores.shape[1]), axis=-1) / best


@needs.declare(feedback='rewards', completions=2, reads_mask=True)
def approx_ndcg(
  log_ratios: jax.Array,
  rewards: jax.Array,
  *,
  beta: float,
  alpha: float,
  completion_mask: jax.Array | None = None,
) -> jax.Array:
  """Ordinal preference optimisation with ApproxNDCG.

    L = -sum_j g_j / log2(1 + rank_j) / max DCG,   g_j = 2^r_j - 1
    rank_j = 1 + sum over k != j of sigmoid(-alpha (s_j - s_k)),   s = beta rho

  See https://arxiv.org/abs/2410.04346 and Qin et al., 2010, A General
  Approximation Framework for Direct Optimization of Information Retrieval
  Measures.

  Args:
    log_ratios: [B, K] log-ratios of policy and reference, nats; K >= 2.
    rewards: [B, K] grades, at least 0. Others have no NDCG: the loss is NaN.
    beta: Scale of the log-ratios.
    alpha: Steepness of the soft comparisons.
    completion_mask: [B, K] True on real completions. The others are left out.
      None means that all are real.

  Returns:
    [B] losses, from -1 to 0. A prompt whose grades are all 0 has the loss 0.
  """
  loss_checks.require_positive(
    'related_losses.approx_ndcg', beta=beta, alpha=alpha
  )
  mask, gains, best = _ranked(
    'approx_ndcg', rewards, completion_mask, log_ratios
  )
  scores = beta * jnp.where(mask, log_ratios, 0)
  ahead = jax.nn.sigmoid(alpha * (scores[:, None] - scores[:, :, None]))
  other = mask[:, None] & ~jnp.eye(scores.shape[1], dtype=bool)
  rank = 1 + jnp.sum(jnp.where(other, ahead, 0), axis=-1)
  return -jnp.sum(gains / jnp.log2(1 + rank), axis=-1) / best


def _sides(
  name: str,
  scores: jax.Array,
  preference: jax.Array,
  loss: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
  """Returns p L(y_1 wins) + (1 - p) L(y_2 wins), of L(winner, loser)."""
  loss_checks.require_pair(f'related_losses.{name}', scores, preference)
  one, two = scores[:, 0], scores[:, 1]
  return preference * loss(one, two) + (1 - preference) * loss(two, one)


def _ranked(
  name: str,
  rewards: jax.Array,
  completion_mask: jax.Array | None,
  log_ratios: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the mask [B, K], the gains [B, K] and the best DCG [B], not 0."""
  loss_checks.require_rewards(f'related_losses.{name}', log_ratios, rewards, 2)
  mask = loss_checks.full_mask(completion_mask, log_ratios)
  gains = jnp.where(mask, jnp.exp2(rewards) - 1, 0)
  gains = jnp.where(gains < 0, jnp.nan, gains)
  in_order = -jnp.sort(-gains, axis=1)
  best = jnp.sum(in_order * _discounts(rewards.shape[1]), axis=1)
  return mask, gains, jnp.where(best == 0, 1, best)


def _discounts(count: int) -> jax.Array:
  """Returns 1 / log2(1 + i) for the places i = 1, .., count."""
  return 1 / jnp.log2(2 + jnp.arange(count))


def _sinkhorn(matrix: jax.Array) -> jax.Array:
  """Scales columns and rows of matrices in turn until both sum to 1."""

  def scale(matrix, _):
    for axis in (-2, -1):
      total = jnp.sum(matrix, axis=axis, keepdims=True)
      matrix = matrix / jnp.where(total == 0, 1, total)  # 0 of a masked one
    return matrix, None

  return jax.lax.scan(scale, matrix, None, length=_SINKHORN_STEPS)[0]
