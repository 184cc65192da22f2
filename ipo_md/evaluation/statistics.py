"""Estimates from judgements, each with its 95 % interval.

A judgement is a preference p = P(y_1 > y_2 | x) in [0, 1], averaged over both
orders; p = 1/2 is a tie. Everything here is numpy in float64, deterministic,
and symmetric: 1 - p in place of p mirrors the estimate and its interval at 1/2.
"""

from typing import NamedTuple

import numpy as np
from scipy import special
from scipy import stats

CONFIDENCE = 0.95
_Z = stats.norm.ppf((1 + CONFIDENCE) / 2)


class Estimate(NamedTuple):
  """A value and the ends of its 95 % interval."""

  value: float
  low: float
  high: float


def win_rate(preference: np.ndarray) -> Estimate:
  """Mean over prompts of [p > 1/2] + 1/2 [p = 1/2].

  Args:
    preference: [N] P(y_1 > y_2 | x).

  Returns:
    The win rate of y_1 with the interval of `score_interval`.
  """
  preference = _judgements(preference)
  wins = np.sum(preference > 0.5)
  ties = np.sum(preference == 0.5)
  count = preference.size
  low, high = score_interval(wins, ties, count)
  return Estimate(float((wins + ties / 2) / count), float(low), float(high))


def score_interval(
  wins: np.ndarray, ties: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Score interval of a win rate in which a tie counts 1/2.

    (w - theta)^2 = z^2 (theta (1 - theta) - tau(theta) / 4) / n

  solved for theta on both sides of w = (wins + ties / 2) / n; tau(theta) is
  the maximum-likelihood rate of ties when the win rate is theta. It is the
  interval of Tango (1998, Statistics in Medicine 17, 891) for the difference
  of paired proportions, 2 theta - 1. Without ties it is Wilson's.

  Args:
    wins: number of judgements for y_1, any shape.
    ties: number of ties, the same shape.
    count: number of judgements, ties and defeats included.

  Returns:
    Lower and upper end, of the shape of wins.
  """
  wins, ties, count = np.broadcast_arrays(
    *(np.asarray(x, np.float64) for x in (wins, ties, count))
  )
  losses = count - wins - ties
  observed = (wins + ties / 2) / count

  def rejected(theta):
    # tau solves n t^2 - (2 ties + wins b + losses a) t + ties a b = 0, with
    # a = 2 theta, b = 2 (1 - theta); its smaller root keeps the rates of wins
    # and losses at or above 0.
    a, b = 2 * theta, 2 * (1 - theta)
    linear = 2 * ties + wins * b + losses * a
    root = np.sqrt(np.maximum(linear**2 - 4 * count * ties * a * b, 0))
    tau = 2 * ties * a * b / np.maximum(linear + root, 1e-300)
    variance = np.maximum(theta * (1 - theta) - tau / 4, 0)
    return (observed - theta) ** 2 > _Z**2 * variance / count

  def bisect(outside, inside):
    for _ in range(60):
      middle = (outside + inside) / 2
      reject = rejected(middle)
      outside = np.where(reject, middle, outside)
      inside = np.where(reject, inside, middle)
    return (outside + inside) / 2

  low = bisect(np.zeros_like(observed), observed)
  high = bisect(np.ones_like(observed), observed)
  return np.where(observed == 0, 0, low), np.where(observed == 1, 1, high)


def mean_preference(preference: np.ndarray) -> Estimate:
  """Mean of p over prompts.

  The interval is BCa in its closed form for a mean (ABC: DiCiccio and Efron
  1992, Biometrika 79, 231), so it follows the skew of the judgements and needs
  no resampling:

    mean + se w / (1 - a w)^2,   w = a +- z,   a = skewness / (6 sqrt(n))

  Where all are 0, 1/2 or 1 the mean is the win rate, and its interval that of
  `win_rate`, which holds near 0 and 1 as well. Judgements that are all
  the same and neither 0 nor 1 have an interval of width 0.

  Args:
    preference: [N] P(y_1 > y_2 | x).
  """
  preference = _judgements(preference)
  if np.all(np.isin(preference, (0, 0.5, 1))) and np.any(preference != 0.5):
    return win_rate(preference)
  mean = preference.mean()
  centred = preference - mean
  spread = np.sqrt(np.mean(centred**2))
  if spread < 1e-12:
    return Estimate(float(mean), float(mean), float(mean))
  standard_error = spread / np.sqrt(preference.size)
  acceleration = np.sum(centred**3) / (6 * np.sum(centred**2) ** 1.5)
  w = acceleration + np.array([-_Z, _Z])
  ends = mean + standard_error * w / (1 - acceleration * w) ** 2
  low, high = np.clip(ends, 0, 1)
  return Estimate(float(mean), float(low), float(high))


def paired_difference(first: np.ndarray, second: np.ndarray) -> Estimate:
  """Mean of first - second on the same prompts, with its t interval.

  The difference is significant (two-sided, 5 %) where 0 lies outside.

  Args:
    first: [N] a measure of each completion of one policy.
    second: [N] the same of another policy, in the same order.
  """
  if np.shape(first) != np.shape(second):
    raise ValueError(
      f'Paired measures need the same prompts: {np.shape(first)} and '
      f'{np.shape(second)}.'
    )
  return t_interval(
    np.asarray(first, np.float64) - np.asarray(second, np.float64)
  )


def t_interval(values: np.ndarray) -> Estimate:
  """Mean of independent values with Student's interval, as over seed means.

  With a single value the interval is infinite.

  Args:
    values: [N], at least one.
  """
  values = _not_empty(values)
  mean = float(values.mean())
  if values.size == 1:
    return Estimate(mean, -np.inf, np.inf)
  half = stats.t.ppf((1 + CONFIDENCE) / 2, values.size - 1) * (
    values.std(ddof=1) / np.sqrt(values.size)
  )
  return Estimate(mean, float(mean - half), float(mean + half))


def length_controlled_win_rate(
  preference: np.ndarray, length_difference: np.ndarray
) -> Estimate | None:
  """The win rate that a logistic fit predicts for completions of equal length.

    logit P(y_1 wins) = c_0 + c_1 d / rms(d),   read at d = 0: sigmoid(c_0)

  with d the difference in length; a tie is a label of 1/2. After the length
  control of AlpacaEval 2 (arXiv 2404.04475), without its per-prompt terms. The
  fit has Firth's penalty (1993, Biometrika 80, 27), finite when length or
  nothing at all separates wins from defeats; the interval is Wald's on c_0.

  Args:
    preference: [N] P(y_1 > y_2 | x).
    length_difference: [N] length of y_1 minus length of y_2.

  Returns:
    The estimate, or None where all differences are the same and not 0: then
    length cannot be told from the rest.
  """
  preference = _judgements(preference)
  difference = np.asarray(length_difference, np.float64)
  if difference.shape != preference.shape:
    raise ValueError(
      f'{preference.size} judgements but {difference.size} length differences.'
    )
  labels = (np.sign(preference - 0.5) + 1) / 2
  columns = [np.ones_like(labels)]
  if np.ptp(difference) > 0:
    columns.append(difference / np.sqrt(np.mean(difference**2)))
  elif difference[0] != 0:
    return None
  coefs, covariance = firth_logistic(np.stack(columns, 1), labels)
  half = _Z * np.sqrt(covariance[0, 0])
  value, low, high = special.expit(coefs[0] + np.array([0, -half, half]))
  return Estimate(float(value), float(low), float(high))


def firth_logistic(
  inputs: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Coefficients [M] of inputs [N, M] and their covariance [M, M].

  Newton's method on the score X' (y - pi + leverage (1/2 - pi)), each step
  at most 1 long in every coefficient.
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
  """How often a judge names the same winner whichever completion comes first.

  Args:
    first: [N] or [N, J] P(y_1 > y_2 | x) with y_1 shown first.
    second: the same with y_1 shown second.

  Returns:
    The share of pairs as in `agreement`.
  """
  return agreement(first, second)


def agreement(first: np.ndarray, second: np.ndarray) -> Estimate:
  """How often two judges name the same winner; 1/2 where either sees a tie.

  Args:
    first: [N] P(y_1 > y_2 | x) by one judge, or [N, J] of J pairs a prompt.
    second: the same by another, in the same order.

  Returns:
    The share, with an interval over prompts.
  """
  first, second = (np.asarray(x, np.float64) for x in (first, second))
  if first.shape != second.shape:
    raise ValueError(
      f'Two judges of the same pairs: {first.shape} and {second.shape} given.'
    )
  shape = first.shape
  first, second = _judgements(first.ravel()), _judgements(second.ravel())
  same = (1 + np.sign(first - 0.5) * np.sign(second - 0.5)) / 2
  if len(shape) == 1:
    return win_rate(same)
  return mean_preference(same.reshape(shape).mean(axis=1))


def seed_means(rates: np.ndarray) -> Estimate:
  """Mean win rate of runs that differ in their seed, and its t interval.

    mean +- t(nu) sqrt(s_a^2 / A + s_b^2 / B)      cut to [0, 1]

  s_a and s_b are the spreads of the means of each seed of the one side and of
  the other, nu is Welch's. With one seed on a side its term is left out: the
  interval is then for that very run. What it covers is the variation between
  seeds; prompts are the same for all. Seeds that happen to agree give an
  interval of no width, which two or three of them do not justify.

  Args:
    rates: [A, B] win rate of seed a over the other side's seed b, A B > 1.
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
  half = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(variance)
  low, high = np.clip([mean - half, mean + half], 0, 1)
  return Estimate(mean, float(low), float(high))


def _judgements(preference: np.ndarray) -> np.ndarray:
  preference = _not_empty(preference)
  wrong = preference[~((preference >= 0) & (preference <= 1))]
  if wrong.size:
    raise ValueError(
      f'A preference is a probability; {wrong.size} of {preference.size} '
      f'judgements are not, the first is {wrong[0]}.'
    )
  return preference


def _not_empty(values: np.ndarray) -> np.ndarray:
  values = np.asarray(values, np.float64)
  if values.ndim != 1 or not values.size:
    raise ValueError(
      f'Expected a non-empty list of numbers, got shape {values.shape}: is the '
      'set of evaluation prompts empty?'
    )
  return values
