"""Preference games and their exact equilibria, in float64 numpy.

A game is a matrix `preference` [n, n] that holds p(y > y') in row y and column
y', with p(y > y') + p(y' > y) = 1. Cycles are allowed. A player with policy pi
who meets pi' receives

  E p(y > y') - tau KL(pi, pi_ref) + tau KL(pi', pi_ref),

so every game has exactly one Nash equilibrium, and it is symmetric (Munos et
al., https://arxiv.org/abs/2312.00886). Nothing here knows how a policy is
trained: these are the points at which training runs have to arrive.

  preference = cyclic_game(0.95, 0.8, 0.6)
  policy = nash(preference, np.full(3, 1 / 3), tau=0.1)
"""

import numpy as np
from scipy import special


def cyclic_game(p_12: float, p_23: float, p_31: float) -> np.ndarray:
  """Returns a game of three actions, each of which beats the next one.

  Args:
    p_12: Probability that action 1 beats action 2.
    p_23: Probability that action 2 beats action 3.
    p_31: Probability that action 3 beats action 1.

  Returns:
    [3, 3] preference.
  """
  return np.array(
    [
      [0.5, p_12, 1 - p_31],
      [1 - p_12, 0.5, p_23],
      [p_31, 1 - p_23, 0.5],
    ]
  )


def random_game(rng: np.random.Generator, n: int) -> np.ndarray:
  """Draws a uniformly random game of n actions whose majorities have a cycle.

  Args:
    rng: Source of randomness.
    n: Number of actions, at least 3.

  Returns:
    [n, n] preference.
  """
  while True:
    upper = np.triu(rng.uniform(size=(n, n)), 1)
    preference = upper + np.tril(1 - upper.T, -1) + 0.5 * np.eye(n)
    # Without a cycle the actions beat n - 1, n - 2, ..., 0 others.
    wins = np.sort((preference > 0.5).sum(axis=1))
    if (wins != np.arange(n)).any():
      return preference


def tilt(reference: np.ndarray, scores: np.ndarray) -> np.ndarray:
  """Reweights a policy by exponentiated scores: pi ∝ reference exp(scores).

  With scores r / tau this is the policy that maximises the reward r less tau
  KL(pi, reference); with r = p(y > pi') it is the best response to pi'.

  Args:
    reference: [n] policy, positive.
    scores: [n] scores.

  Returns:
    [n] policy.
  """
  return special.softmax(np.log(reference) + scores)


def mixture(
  policy: np.ndarray, reference: np.ndarray, mixture_coef: float
) -> np.ndarray:
  """Returns the geometric mixture pi^(1 - b) pi_ref^b, normalised.

  Args:
    policy: [n] policy, positive.
    reference: [n] reference policy, positive.
    mixture_coef: b, the weight of the reference.

  Returns:
    [n] policy.
  """
  log_ratio = np.log(policy) - np.log(reference)
  return tilt(reference, (1 - mixture_coef) * log_ratio)


def kl(policy: np.ndarray, other: np.ndarray) -> float:
  """Returns KL(policy, other) in nats, with 0 log 0 = 0.

  Args:
    policy: [n] policy.
    other: [n] policy.
  """
  return float(special.rel_entr(policy, other).sum())


def exploitability(
  policy: np.ndarray,
  preference: np.ndarray,
  reference: np.ndarray,
  *,
  tau: float,
) -> float:
  """Returns what the best response to a policy gains over the policy itself.

    tau log sum_y pi_ref(y) exp(p(y > pi) / tau) - 1/2 + tau KL(pi, pi_ref)

  It is at least 0, and it is 0 at the Nash equilibrium alone.

  Args:
    policy: [n] policy.
    preference: [n, n] p(y > y').
    reference: [n] reference policy, positive.
    tau: Weight of the divergence from the reference.

  Raises:
    ValueError: The arguments are not a game.
  """
  check_game(preference, reference, tau)
  scores = preference @ policy / tau
  best = tau * special.logsumexp(scores, b=reference)
  return float(best - 0.5 + tau * kl(policy, reference))


def nash(
  preference: np.ndarray, reference: np.ndarray, *, tau: float
) -> np.ndarray:
  """Solves for the regularised Nash equilibrium.

    pi ∝ pi_ref exp(p(y > pi) / tau)

  The solver is Newton's method on u = log(pi / pi_ref), continued from a large
  temperature down to tau. With A = preference - 1/2, the Jacobian is 1 - A
  (diag(pi) - pi pi^T) / tau. It is never singular, because A is antisymmetric
  and the other factor is positive semi-definite.

  Args:
    preference: [n, n] p(y > y').
    reference: [n] reference policy, positive.
    tau: Weight of the divergence from the reference.

  Returns:
    [n] policy, to about 1e-14.

  Raises:
    ValueError: The arguments are not a game.
    RuntimeError: Newton's method did not converge, because tau is smaller than
      float64 resolves.
  """
  check_game(preference, reference, tau)
  antisymmetric = (preference - preference.T) / 2
  u = np.zeros(len(reference))
  steps = max(1, int(np.ceil(4 * np.log2(max(1 / tau, 1)))))
  for temperature in np.geomspace(max(tau, 1.0), tau, steps + 1):
    u = _newton(antisymmetric, reference, temperature, u)
  return tilt(reference, u)


def _newton(
  antisymmetric: np.ndarray, reference: np.ndarray, tau: float, u: np.ndarray
) -> np.ndarray:
  """Solves u = A tilt(reference, u) / tau by Newton's method with line search.

  Args:
    antisymmetric: [n, n] A, the preference minus 1/2.
    reference: [n] reference policy.
    tau: Temperature.
    u: [n] first guess of log(pi / pi_ref).

  Returns:
    [n] solution.
  """

  def residual(u):
    return u - antisymmetric @ tilt(reference, u) / tau

  error = residual(u)
  for _ in range(100):
    if np.abs(error).max() <= 1e-14 * max(1.0, 1 / tau):
      return u
    pi = tilt(reference, u)
    jacobian = (
      np.eye(len(u)) - antisymmetric @ (np.diag(pi) - np.outer(pi, pi)) / tau
    )
    step = np.linalg.solve(jacobian, error)
    for scale in 0.5 ** np.arange(40):
      new_error = residual(u - scale * step)
      if np.linalg.norm(new_error) < np.linalg.norm(error):
        u, error = u - scale * step, new_error
        break
    else:  # No step improves: u is as exact as rounding allows, or stuck.
      if np.abs(error).max() <= 1e-12 * max(1.0, 1 / tau):
        return u
      break
  raise RuntimeError(f'No Nash equilibrium was found at tau = {tau}.')


def nash_averaging(win_rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Ranks policies in a way that copies of a policy do not change.

  The weights are the Nash equilibrium of greatest entropy of the unregularised
  game (Balduzzi et al., https://arxiv.org/abs/1806.02643). It is the limit, for
  tau to 0, of the equilibria regularised towards the uniform policy, and is
  computed here at tau = 1e-8.

  Args:
    win_rates: [n, n] win rate of row over column, w(i, j) + w(j, i) = 1.

  Returns:
    [n] weights of the equilibrium, and [n] skills: the win rate against the
    equilibrium, which is 1/2 on its support and lower elsewhere.
  """
  n = len(win_rates)
  weights = nash(win_rates, np.full(n, 1 / n), tau=1e-8)
  return weights, win_rates @ weights


def check_game(
  preference: np.ndarray, reference: np.ndarray, tau: float
) -> None:
  """Raises ValueError unless the arguments are a game."""
  n = len(reference)
  if preference.shape != (n, n):
    raise ValueError(
      f'The preference has shape {preference.shape}, which does not fit the'
      f' {n} actions of the reference.'
    )
  off = np.abs(preference + preference.T - 1)
  if not off.max() <= 1e-9 or preference.min() < 0 or preference.max() > 1:
    i, j = np.unravel_index(np.argmax(off), off.shape)
    raise ValueError(
      'A preference must lie in [0, 1] with p(i > j) + p(j > i) = 1, but'
      f' p({i} > {j}) = {preference[i, j]} and'
      f' p({j} > {i}) = {preference[j, i]}.'
    )
  if not (reference > 0).all() or abs(reference.sum() - 1) > 1e-9:
    raise ValueError(
      f'The reference must be positive and sum to 1, but is {reference}.'
    )
  if not 0 < tau < np.inf:
    raise ValueError(f'tau = {tau} must be positive and finite (TAU).')
