"""Preference games solved exactly, in float64 numpy.

A game is a matrix `preference` [n, n] with p(y > y') in row y and column y';
p(y > y') + p(y' > y) = 1, cycles allowed. A player with policy pi against pi'
is paid

  E p(y > y') - tau KL(pi, pi_ref) + tau KL(pi', pi_ref),

so every game has one Nash equilibrium, and it is symmetric (Munos et al.,
https://arxiv.org/abs/2312.00886). Nothing here knows how a policy is trained:
these are the points where the training runs have to arrive.
"""

from collections.abc import Callable
from collections.abc import Sequence
import itertools
import math
from typing import Any

import numpy as np
import scipy.optimize

Array = Any  # numpy or JAX


def cyclic_game(p_12: float, p_23: float, p_31: float) -> np.ndarray:
  """Three actions of which each beats the next with the given probability."""
  return np.array(
    [
      [0.5, p_12, 1 - p_31],
      [1 - p_12, 0.5, p_23],
      [p_31, 1 - p_23, 0.5],
    ]
  )


def random_game(rng: np.random.Generator, n: int) -> np.ndarray:
  """A uniformly random game of n actions whose majorities contain a cycle."""
  while True:
    upper = np.triu(rng.uniform(size=(n, n)), 1)
    preference = upper + np.tril(1 - upper.T, -1) + 0.5 * np.eye(n)
    # Majorities without a cycle beat n - 1, n - 2, ..., 0 actions.
    wins = np.sort((preference > 0.5).sum(axis=1))
    if (wins != np.arange(n)).any():
      return preference


def tilt(reference: np.ndarray, scores: np.ndarray) -> np.ndarray:
  """pi ∝ reference exp(scores).

  With scores r / tau, the best policy for a reward (or the best response, r =
  p(y > pi')) less tau KL(pi, reference).
  """
  log_policy = np.log(reference) + scores
  policy = np.exp(log_policy - log_policy.max())
  return policy / policy.sum()


def mixture(
  policy: np.ndarray, reference: np.ndarray, mixture_coef: float
) -> np.ndarray:
  """policy^(1 - b) reference^b, normalised; b weighs the reference."""
  log_ratio = np.log(policy) - np.log(reference)
  return tilt(reference, (1 - mixture_coef) * log_ratio)


def kl(policy: np.ndarray, other: np.ndarray) -> float:
  """KL(policy, other) in nats; 0 log 0 = 0."""
  support = policy > 0
  ratio = np.log(policy[support]) - np.log(other[support])
  return float(policy[support] @ ratio)


def exploitability(
  policy: np.ndarray,
  preference: np.ndarray,
  reference: np.ndarray,
  *,
  tau: float,
) -> float:
  """What the best response to `policy` gains over playing `policy` itself.

    tau log sum_y pi_ref(y) exp(p(y > pi) / tau) - 1/2 + tau KL(pi, pi_ref)

  At least 0, and 0 at the Nash equilibrium alone.
  """
  _check_game(preference, reference, tau)
  scores = preference @ policy / tau
  top = scores.max()
  best = tau * (top + np.log(reference @ np.exp(scores - top)))
  return float(best - 0.5 + tau * kl(policy, reference))


def nash(
  preference: np.ndarray, reference: np.ndarray, *, tau: float
) -> np.ndarray:
  """The regularised Nash equilibrium: pi ∝ pi_ref exp(p(y > pi) / tau).

  Newton's method on u = log(pi / pi_ref), from a large temperature down to
  tau. With A = preference - 1/2, the Jacobian is 1 - A (diag(pi) - pi pi^T) /
  tau; A is antisymmetric and the other factor is not negative, so it is never
  singular.

  Args:
    preference: [n, n] p(y > y').
    reference: [n] policy, positive.
    tau: weight of the divergence from the reference.

  Returns:
    [n] policy, to about 1e-14.

  Raises:
    ValueError: the matrix is not a preference, or the reference is no policy.
    RuntimeError: no convergence; tau is below what float64 resolves.
  """
  _check_game(preference, reference, tau)
  antisymmetric = (preference - preference.T) / 2
  u = np.zeros(len(reference))
  steps = max(1, int(np.ceil(4 * np.log2(max(1 / tau, 1)))))
  for temperature in np.geomspace(max(tau, 1.0), tau, steps + 1):
    u = _newton(antisymmetric, reference, temperature, u)
  return tilt(reference, u)


def _newton(
  antisymmetric: np.ndarray, reference: np.ndarray, tau: float, u: np.ndarray
) -> np.ndarray:
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
    else:  # as close as rounding allows
      if np.abs(error).max() <= 1e-12 * max(1.0, 1 / tau):
        return u
      break
  raise RuntimeError(f'No Nash equilibrium found at tau = {tau}.')


def nash_md_step(
  policy: np.ndarray,
  preference: np.ndarray,
  reference: np.ndarray,
  *,
  tau: float,
  eta: float,
) -> np.ndarray:
  """One step of tabular Nash-MD (https://arxiv.org/abs/2312.00886).

  m ∝ pi^(1 - eta tau) pi_ref^(eta tau),   pi' ∝ m exp(eta p(y > m))
  """
  opponent = mixture(policy, reference, eta * tau)
  return tilt(opponent, eta * (preference @ opponent))


def nash_md(
  preference: np.ndarray, reference: np.ndarray, *, tau: float, steps: int
) -> np.ndarray:
  """Policies [steps + 1, n] of tabular Nash-MD, from the reference.

  Its step size 2 / (tau (t + 2)) bounds KL(nash, pi_T) by 8 / (tau^2 (T + 1));
  a constant one leaves a bias of order eta tau.
  """
  _check_game(preference, reference, tau)
  policies = [np.asarray(reference, np.float64)]
  for t in range(steps):
    eta = 2 / (tau * (t + 2))
    policies.append(
      nash_md_step(policies[-1], preference, reference, tau=tau, eta=eta)
    )
  return np.stack(policies)


def mixture_fixed_point(
  preference: np.ndarray,
  reference: np.ndarray,
  *,
  tau: float,
  mixture_coef: float,
) -> np.ndarray:
  """Where IPO-MD(b) and Nash-MD-PG(b) stop.

    pi ∝ pi_ref exp(p(y > m) / tau),   m ∝ pi^(1 - b) pi_ref^b

  m is the Nash equilibrium at tau / (1 - b), the reference for b = 1. It mixes
  whole sequences: a token-level mixture has this fixed point for one-token
  completions only.
  """
  _check_game(preference, reference, tau)
  if not 0 <= mixture_coef <= 1:
    raise ValueError(f'{mixture_coef} is not in [0, 1] (MIXTURE_COEFS).')
  m = reference
  if mixture_coef < 1:
    m = nash(preference, reference, tau=tau / (1 - mixture_coef))
  return tilt(reference, preference @ m / tau)


def offline_ipo(
  pairs: np.ndarray,
  preference: np.ndarray,
  reference: np.ndarray,
  *,
  tau: float,
) -> np.ndarray:
  """The minimum of IPO on a data set, by least squares.

    sum_{y, y'} pairs(y, y') (rho(y) - rho(y') - (2 p(y > y') - 1) / (2 tau))^2

  Args:
    pairs: [n, n] probability of (y_1, y_2) in the data.
    preference: [n, n] p(y > y').
    reference: [n] policy, positive.
    tau: weight of the divergence from the reference.

  Returns:
    [n] policy; actions that no pair links keep the reference's ratio.
  """
  _check_game(preference, reference, tau)
  weights = pairs + pairs.T
  laplacian = np.diag(weights.sum(axis=1)) - weights
  wanted = (weights * (2 * preference - 1) / (2 * tau)).sum(axis=1)
  return tilt(reference, np.linalg.pinv(laplacian, hermitian=True) @ wanted)


def policy_gradient(
  policy: np.ndarray,
  payoff: np.ndarray,
  reference: np.ndarray,
  *,
  tau: float,
) -> np.ndarray:
  """Gradient in the logits of sum_y pi(y) payoff(y) - tau KL(pi, pi_ref).

  The payoff is a constant: p(y > pi) for self-play, p(y > m) for Nash-MD-PG, a
  reward for RL.
  """
  advantage = payoff - tau * (np.log(policy) - np.log(reference))
  return policy * (advantage - policy @ advantage)


def ipo_gradient(
  policy: np.ndarray,
  sampler: np.ndarray,
  preference: np.ndarray,
  reference: np.ndarray,
  *,
  tau: float,
) -> np.ndarray:
  """Gradient in the logits of E (h - 1/(2 tau))^2, both y sampled from m.

    -(4/tau) E_m grad log pi(y) [p(y > m) - 1/2 - tau rho(y) + tau E_m rho]

  For m = pi it is -(4/tau) times the gradient of self-play.
  """
  log_ratio = np.log(policy) - np.log(reference)
  centred = log_ratio - sampler @ log_ratio
  weight = sampler * (preference @ sampler - 0.5 - tau * centred)
  return -4 / tau * (weight - policy * weight.sum())


def expected_loss(
  loss: Callable[[Array, Array], Array],
  log_ratio: Array,
  feedback: np.ndarray,
  samplers: Sequence[Array],
) -> Array:
  """The mean of a loss over all y_1, ..., y_K, each of its own sampler.

  Args:
    loss: (log_ratios [N, K], feedback) -> [N], as in losses.py.
    log_ratio: [n] of each action. A JAX array can be differentiated through.
    feedback: a preference [n, n], given to the loss as p(y_1 > y_2) [N], or
      rewards [n], given as [N, K].
    samplers: K policies [n].

  Returns:
    [] expected loss. Costs n^K.
  """
  actions = range(len(feedback))
  y = np.array(list(itertools.product(actions, repeat=len(samplers))))
  weights = math.prod(m[y[:, i]] for i, m in enumerate(samplers))
  known = feedback[y] if feedback.ndim == 1 else feedback[y[:, 0], y[:, 1]]
  return (weights * loss(log_ratio[y], known)).sum()


def stationary_point(
  gradient: Callable[[np.ndarray], np.ndarray], start: np.ndarray
) -> np.ndarray:
  """The logits of a policy at which an expected gradient is 0.

  Divided by the policy, the gradient does not fade where an action dies out, so
  that corners are found only if they are stationary.

  Args:
    gradient: logits [..., V] -> gradient in them, of the same shape.
    start: [..., V] logits, from where it is sought.

  Returns:
    [..., V] logits, of which the last of each row is 0: a constant added to a
    row changes no policy.

  Raises:
    RuntimeError: none was found. A hinge has kinks and not always one.
  """

  def logits(free):
    rows = free.reshape(*start.shape[:-1], -1)
    return np.concatenate([rows, np.zeros_like(start[..., :1])], axis=-1)

  def field(free):
    x = logits(free)
    policy = np.exp(x - x.max(axis=-1, keepdims=True))
    policy /= policy.sum(axis=-1, keepdims=True)
    return (gradient(x) / policy)[..., :-1].ravel()

  free = (start[..., :-1] - start[..., -1:]).ravel()
  found = scipy.optimize.root(field, free, method='hybr', tol=1e-13)
  if not np.abs(field(found.x)).max() <= 1e-9:
    raise RuntimeError(f'No stationary point found: {found.message}')
  return logits(found.x)


def sequence_log_probs(logits: np.ndarray) -> np.ndarray:
  """[nodes, V] logits of a tree -> [V^depth] log-probabilities of sequences.

  Nodes and sequences are numbered as in models/tabular.py.
  """
  shifted = logits - logits.max(axis=1, keepdims=True)
  log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
  total, first = np.zeros(1), 0
  while first < len(log_probs):
    rows = log_probs[first : first + len(total)]
    first += len(total)
    total = (total[:, None] + rows).ravel()
  return total


def nash_averaging(win_rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Ranks policies so that copies of one of them change nothing.

  The Nash equilibrium of greatest entropy of the game without regularisation
  (Balduzzi et al., https://arxiv.org/abs/1806.02643). It is the limit, tau to
  0, of the equilibria regularised towards uniform, taken here at tau = 1e-8.

  Args:
    win_rates: [n, n] of row over column, w(i, j) + w(j, i) = 1.

  Returns:
    [n] weights of the equilibrium, and [n] skills: the win rate against it,
    1/2 on its support and below elsewhere.
  """
  n = len(win_rates)
  weights = nash(win_rates, np.full(n, 1 / n), tau=1e-8)
  return weights, win_rates @ weights


def _check_game(preference: np.ndarray, reference: np.ndarray, tau: float):
  n = len(reference)
  if preference.shape != (n, n):
    raise ValueError(
      f'preference {preference.shape} does not fit the {n} actions of the'
      ' reference.'
    )
  off = np.abs(preference + preference.T - 1)
  if not off.max() <= 1e-9 or preference.min() < 0 or preference.max() > 1:
    i, j = np.unravel_index(np.argmax(off), off.shape)
    raise ValueError(
      'A preference lies in [0, 1] and p(i > j) + p(j > i) = 1, but'
      f' p({i} > {j}) = {preference[i, j]}, p({j} > {i}) = {preference[j, i]}.'
    )
  if not (reference > 0).all() or abs(reference.sum() - 1) > 1e-9:
    raise ValueError(
      f'The reference must be positive and sum to 1: {reference}.'
    )
  if not 0 < tau < np.inf:
    raise ValueError(f'tau = {tau} must be positive (TAU).')
