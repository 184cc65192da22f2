"""Closed forms of what the algorithms do in a preference game.

The notation is that of `exact`. Fixed points are policies at which an algorithm
stops; gradients are its expected gradients in the logits of a policy.
"""

import numpy as np

from ipo_md.games import exact


def nash_md_step(
  policy: np.ndarray,
  preference: np.ndarray,
  reference: np.ndarray,
  *,
  tau: float,
  eta: float,
) -> np.ndarray:
  """Takes one step of tabular Nash-MD (https://arxiv.org/abs/2312.00886).

    m ∝ pi^(1 - eta tau) pi_ref^(eta tau),   pi' ∝ m exp(eta p(y > m))

  Args:
    policy: [n] policy pi.
    preference: [n, n] p(y > y').
    reference: [n] reference policy, positive.
    tau: Weight of the divergence from the reference.
    eta: Step size.

  Returns:
    [n] next policy pi'.
  """
  opponent = exact.mixture(policy, reference, eta * tau)
  return exact.tilt(opponent, eta * (preference @ opponent))


def nash_md(
  preference: np.ndarray, reference: np.ndarray, *, tau: float, steps: int
) -> np.ndarray:
  """Runs tabular Nash-MD from the reference.

  The step size 2 / (tau (t + 2)) bounds KL(nash, pi_T) by 8 / (tau^2 (T + 1)).
  A constant step size would leave a bias of order eta tau.

  Args:
    preference: [n, n] p(y > y').
    reference: [n] reference policy, positive.
    tau: Weight of the divergence from the reference.
    steps: Number of steps.

  Returns:
    [steps + 1, n] policies.

  Raises:
    ValueError: The arguments are not a game.
  """
  exact.check_game(preference, reference, tau)
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
  """Returns the policy at which IPO-MD(b) and Nash-MD-PG(b) stop.

    pi ∝ pi_ref exp(p(y > m) / tau),   m ∝ pi^(1 - b) pi_ref^b

  m is the Nash equilibrium at tau / (1 - b), and the reference for b = 1. It
  mixes whole sequences, so a mixture of tokens has this fixed point only when
  completions have one token.

  Args:
    preference: [n, n] p(y > y').
    reference: [n] reference policy, positive.
    tau: Weight of the divergence from the reference.
    mixture_coef: b, the weight of the reference in the mixture.

  Returns:
    [n] policy pi.

  Raises:
    ValueError: The arguments are not a game, or b is outside [0, 1].
  """
  exact.check_game(preference, reference, tau)
  if not 0 <= mixture_coef <= 1:
    raise ValueError(
      f'mixture_coef {mixture_coef} is not in [0, 1] (MIXTURE_COEFS).'
    )
  m = reference
  if mixture_coef < 1:
    m = exact.nash(preference, reference, tau=tau / (1 - mixture_coef))
  return exact.tilt(reference, preference @ m / tau)


def offline_ipo(
  pairs: np.ndarray,
  preference: np.ndarray,
  reference: np.ndarray,
  *,
  tau: float,
) -> np.ndarray:
  """Minimises the IPO loss on a data set, by least squares.

    sum_{y, y'} pairs(y, y') (rho(y) - rho(y') - (2 p(y > y') - 1) / (2 tau))^2

  Args:
    pairs: [n, n] probability of (y_1, y_2) in the data.
    preference: [n, n] p(y > y').
    reference: [n] reference policy, positive.
    tau: Weight of the divergence from the reference.

  Returns:
    [n] policy. Actions that no pair links keep the ratio of the reference.

  Raises:
    ValueError: The arguments are not a game.
  """
  exact.check_game(preference, reference, tau)
  weights = pairs + pairs.T
  laplacian = np.diag(weights.sum(axis=1)) - weights
  wanted = (weights * (2 * preference - 1) / (2 * tau)).sum(axis=1)
  return exact.tilt(
    reference, np.linalg.pinv(laplacian, hermitian=True) @ wanted
  )


def policy_gradient(
  policy: np.ndarray,
  payoff: np.ndarray,
  reference: np.ndarray,
  *,
  tau: float,
) -> np.ndarray:
  """Differentiates sum_y pi(y) payoff(y) - tau KL(pi, pi_ref) in the logits.

  The payoff counts as a constant: p(y > pi) for self-play, p(y > m) for
  Nash-MD-PG, and a reward for RL.

  Args:
    policy: [n] policy, positive.
    payoff: [n] payoff of each action.
    reference: [n] reference policy, positive.
    tau: Weight of the divergence from the reference.

  Returns:
    [n] gradient, of which a step uphill improves the policy.
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
  """Differentiates E (h - 1/(2 tau))^2 in the logits, both y sampled from m.

    -(4/tau) E_m grad log pi(y) [p(y > m) - 1/2 - tau rho(y) + tau E_m rho]

  For m = pi this is -(4/tau) times the gradient of self-play.

  Args:
    policy: [n] policy pi, positive.
    sampler: [n] policy m, from which both completions are sampled.
    preference: [n, n] p(y > y').
    reference: [n] reference policy, positive.
    tau: Weight of the divergence from the reference.

  Returns:
    [n] gradient of the loss, of which a step downhill improves the policy.
  """
  log_ratio = np.log(policy) - np.log(reference)
  centred = log_ratio - sampler @ log_ratio
  weight = sampler * (preference @ sampler - 0.5 - tau * centred)
  return -4 / tau * (weight - policy * weight.sum())
