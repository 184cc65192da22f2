"""Estimates from judgements, each with its 95 % interval.

A judgement is a preference p = P(y_1 > y_2 | x) in [0, 1], averaged over both
orders; p = 1/2 is a tie. All estimates are computed in float64, deterministic
and symmetric: replacing p by 1 - p mirrors the estimate and its interval at
1/2.
"""

from typing import NamedTuple

import numpy as np
from scipy import special
from scipy import stats

from ipo_md.core import intervals


class Estimate(NamedTuple):
  """An estimate and the ends of its 95 % interval."""

  value: float
  low: float
  high: float


def win_rate(preference: np.ndarray) -> Estimate:
  """Estimates the win rate, the mean over prompts of [p > 1/2] + 1/2 [p = 1/2].

    win_rate(np.array([0.9, 0.5, 0.51, 0.2])).value  # 0.625

  Args:
    preference: [N] P(y_1 > y_2 | x).

  Returns:
    The win rate of y_1 with the interval of `intervals.score_interval`.
  """
  preference = _judgements(preference)
  wins = np.sum(preference > 0.5)
  ties = np.sum(preference == 0.5)
  count = preference.size
  low, high = intervals.score_interval(wins, ties, count)
  return Estimate(float((wins + ties / 2) / count), float(low), float(high))


def mean_preference(preference: np.ndarray) -> Estimate:
  """Estimates the mean of p over prompts.

  The interval is the closed form of a BCa bootstrap of the mean (ABC: DiCiccio
  and Efron 1992, Biometrika 79, 231). It follows the skew of the judgements and
  needs no resampling:

    mean + se w / (1 - a w)^2,   w = a +- z,   a = skewness / (6 sqrt(n))

  If all judgements are 0, 1/2 or 1, the mean is the win rate, and the interval
  is that of `win_rate`, which is also valid near 0 and 1. If all judgements are
  the same and neither 0 nor 1, the interval has width 0.

  Args:
    preference: [N] P(y_1 > y_2 | x).
  """
  preference = _judgements(preference)
  if np.all(np.isin(preference, (0, 0.5, 1))) and np.any(preference != 0.5):
    return win_rate(preference)
  mean = preference.mean()
  spread = preference.std()
  if spread < 1e-12:
    return Estimate(float(mean), float(mean), float(mean))
  standard_error = spread / np.sqrt(preference.size)
  acceleration = stats.skew(preference) / (6 * np.sqrt(preference.size))
  w = acceleration + np.array([-intervals.Z, intervals.Z])
  ends = mean + standard_error * w / (1 - acceleration * w) ** 2
  low, high = np.clip(ends, 0, 1)
  return Estimate(float(mean), float(low), float(high))


def paired_difference(first: np.ndarray, second: np.ndarray) -> Estimate:
  """Estimates the mean of first - second on the same prompts.

  The interval is Student's. The difference is significant (two-sided, 5 %) if 0
  lies outside it.

  Args:
    first: [N] measure of the completions of one policy.
    second: [N] measure of the completions of another policy, in the same order.

  Raises:
    ValueError: The two measures have different shapes.
  """
  if np.shape(first) != np.shape(second):
    raise ValueError(
      f'Paired measures need the same prompts, but have shapes '
      f'{np.shape(first)} and {np.shape(second)}.'
    )
  return t_interval(
    np.asarray(first, np.float64) - np.asarray(second, np.float64)
  )


def t_interval(values: np.ndarray) -> Estimate:
  """Estimates the mean of independent values, with Student's interval.

  The interval of a single value is infinite.

  Args:
    values: [N] values, at least one.
  """
  values = _not_empty(values)
  mean = float(values.mean())
  if values.size == 1:
    return Estimate(mean, -np.inf, np.inf)
  half = _t_quantile(values.size - 1) * stats.sem(values)
  return Estimate(mean, float(mean - half), float(mean + half))


def length_controlled_win_rate(
  preference: np.ndarray, length_difference: np.ndarray
) -> Estimate | None:
  """Predicts the win rate for completions of equal length.

  A logistic regression on the difference d in length is evaluated at d = 0:

    logit P(y_1 wins) = c_0 + c_1 d / rms(d),   win rate = sigmoid(c_0)

  A tie is a label of 1/2. This follows the length control of AlpacaEval 2
  (https://arxiv.org/abs/2404.04475) without its terms per prompt. The fit has
  Firth's penalty (1993, Biometrika 80, 27), so it is finite even if the length
  separates wins from defeats, or if there are only wins.

  The interval is Wald's on c_0 with a variance that knows of ties. With t_i = 1
  for a tie, pi_i (1 - pi_i) - t_i / 4 estimates the variance of a label without
  bias, so that of the coefficients is

    H^-1 (sum_i x_i x_i' (pi_i (1 - pi_i) - s t_i / 4)) H^-1

  where H is the information and s = n / (n + z^2). Without ties it is the
  inverse of H. s keeps the width of ties alone at that of
  `intervals.score_interval`, about z^2 / n.

  Args:
    preference: [N] P(y_1 > y_2 | x).
    length_difference: [N] length of y_1 minus length of y_2.

  Returns:
    The estimate, or None if all differences are the same and not 0: the effect
    of length cannot then be told from the rest.

  Raises:
    ValueError: The arguments have different shapes.
  """
  preference = _judgements(preference)
  difference = np.asarray(length_difference, np.float64)
  if difference.shape != preference.shape:
    raise ValueError(
      f'There are {preference.size} judgements but {difference.size} '
      'differences in length.'
    )
  labels = (np.sign(preference - 0.5) + 1) / 2
  columns = [np.ones_like(labels)]
  if np.ptp(difference) > 0:
    columns.append(difference / np.sqrt(np.mean(difference**2)))
  elif difference[0] != 0:
    return None
  inputs = np.stack(columns, 1)
  coefs, covariance = firth_logistic(inputs, labels)
  smallest = intervals.Z**2 / (labels.size + intervals.Z**2)
  of_ties = (1 - smallest) / 4 * (inputs @ covariance[0])[labels == 0.5] ** 2
  variance = covariance[0, 0] - of_ties.sum()
  half = intervals.Z * np.sqrt(max(variance, smallest * covariance[0, 0]))
  value, low, high = special.expit(coefs[0] + np.array([0, -half, half]))
  return Estimate(float(value), float(low), float(high))


def firth_logistic(
  inputs: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Fits a logistic regression with Firth's penalty.

  The solver is Newton's method on the score X' (y - pi + leverage (1/2 - pi)).
  Each step changes a coefficient by at most 1.

  Args:
    inputs: [N, M] inputs.
    labels: [N] labels in [0, 1].

  Returns:
    [M] coefficients and their covariance [M, M].
  """
  coefs = np.zeros(inputs.shape[1])
  for _ in range(200):
    rates = special.expit(inputs @ coefs)
    weights = rates * (1 - rates)
    covariance = np.linalg.inv((inputs * weights[:, None]).T @ inputs)
    leverage = weights * np.einsum('nm,mk,nk->n', inputs, covariance, inputs)
    score = inputs.T @ (labels - rates + leverage * (0.5 - rates))
    step = covariance @ score
    step /= max(1, np.abs(step).max())
    coefs += step
    if np.abs(step).max() < 1e-10:
      break
  return coefs, covariance


def order_consistency(first: np.ndarray, second: np.ndarray) -> Estimate:
  """Estimates how often a judge names the same winner in both orders.

  Args:
    first: [N] or [N, J] P(y_1 > y_2 | x) with y_1 shown first.
    second: [N] or [N, J] P(y_1 > y_2 | x) with y_1 shown second.

  Returns:
    The share of pairs, estimated as in `agreement`.
  """
  return agreement(first, second)


def agreement(first: np.ndarray, second: np.ndarray) -> Estimate:
  """Estimates how often two judges name the same winner.

  A pair in which either judge sees a tie counts 1/2.

  Args:
    first: [N] P(y_1 > y_2 | x) by one judge, or [N, J] for J pairs per prompt.
    second: [N] or [N, J] P(y_1 > y_2 | x) of the same pairs by another judge.

  Returns:
    The share of pairs, with an interval over prompts.

  Raises:
    ValueError: The arguments have different shapes.
  """
  first, second = (np.asarray(x, np.float64) for x in (first, second))
  if first.shape != second.shape:
    raise ValueError(
      f'Two judges must judge the same pairs, but their judgements have shapes '
      f'{first.shape} and {second.shape}.'
    )
  shape = first.shape
  first, second = _judgements(first.ravel()), _judgements(second.ravel())
  same = (1 + np.sign(first - 0.5) * np.sign(second - 0.5)) / 2
  if len(shape) == 1:
    return win_rate(same)
  return mean_preference(same.reshape(shape).mean(axis=1))


def seed_means(rates: np.ndarray) -> Estimate:
  """Estimates the mean win rate of runs that differ in their seed.

    mean +- t(nu) sqrt(s_a^2 / A + s_b^2 / B)      clipped to [0, 1]

  s_a and s_b are the standard deviations of the means of the seeds on either
  side, and nu is Welch's number of degrees of freedom. If a side has one seed,
  its term is left out, and the interval holds for that very run. The interval
  covers the variation between seeds; the prompts are the same for all. If two
  or three seeds happen to agree, the interval is narrower than they justify: it
  covers about .91 with 5 x 2 seeds (tests/benchmarks/intervals.py).

  Args:
    rates: [A, B] win rate of seed a over seed b of the other side, A B > 1.
  """
  rates = np.asarray(rates, np.float64)
  terms = [
    (means.var(ddof=1) / means.size, means.size - 1)
    for means in (rates.mean(axis=1), rates.mean(axis=0))
    if means.size > 1
  ]
  mean, variance = float(rates.mean()), sum(term for term, _ in terms)
  if not variance:
    return Estimate(mean, mean, mean)
  freedom = variance**2 / sum(term**2 / nu for term, nu in terms)
  half = _t_quantile(freedom) * np.sqrt(variance)
  low, high = np.clip([mean - half, mean + half], 0, 1)
  return Estimate(mean, float(low), float(high))


def _t_quantile(freedom: float) -> float:
  """Returns the half-width of Student's interval in standard errors."""
  return float(stats.t.ppf((1 + intervals.CONFIDENCE) / 2, freedom))


def _judgements(preference: np.ndarray) -> np.ndarray:
  """Returns [N] preferences in float64; raises ValueError unless in [0, 1]."""
  preference = _not_empty(preference)
  wrong = preference[~((preference >= 0) & (preference <= 1))]
  if wrong.size:
    raise ValueError(
      f'A preference is a probability, but {wrong.size} of {preference.size} '
      f'judgements are not; the first of them is {wrong[0]}.'
    )
  return preference


def _not_empty(values: np.ndarray) -> np.ndarray:
  """Returns [N] values in float64, or raises ValueError if there are none."""
  values = np.asarray(values, np.float64)
  if values.ndim != 1 or not values.size:
    raise ValueError(
      f'Expected a non-empty list of numbers but got shape {values.shape}. Is '
      'the set of evaluation prompts empty?'
    )
  return values
