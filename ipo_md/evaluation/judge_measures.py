"""Measures how well a judge predicts the preference on labelled pairs."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from ipo_md.evaluation import statistics

_CONFIDENCE_BINS = 10  # Each has a width of 1/20.
_LENGTH_BINS = 5


def compared(
  said: Mapping[str, np.ndarray], truth: np.ndarray, longer: np.ndarray
) -> dict[str, dict[str, Any]]:
  """Compares the answers of judges with the truth on N pairs.

  Args:
    said: Judge -> [N, 2] P(y_1 > y_2 | x), with y_1 shown first and second.
    truth: [N] true preference.
    longer: [N] tokens of y_1 minus tokens of y_2.

  Returns:
    `agreement`: judge -> [share, low, high, N], see `statistics.agreement`.
    `calibration`: judge -> see `calibration`.
    `by_length`: judge -> see `by_length`.
    `order_consistency`: judge -> [share, low, high, N] of pairs in which it
      names the same winner in both orders.
  """
  found = {
    name: {}
    for name in ('agreement', 'calibration', 'by_length', 'order_consistency')
  }
  for judge, both in said.items():
    p = np.round(both.mean(axis=-1), 6)
    consistent = statistics.order_consistency(*np.round(both, 6).T)
    found['agreement'][judge] = [*statistics.agreement(p, truth), len(p)]
    found['calibration'][judge] = calibration(p, truth)
    found['by_length'][judge] = by_length(p, truth, longer)
    found['order_consistency'][judge] = [*consistent, len(p)]
  return found


def calibration(preference: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
  """Computes accuracy by confidence and the expected calibration error.

    confidence = max(p, 1 - p)
    ECE = sum_b n_b / N |accuracy_b - confidence_b|

  The sum is over bins of confidence from 1/2 to 1
  (https://arxiv.org/abs/1706.04599). A tie of either side counts 1/2.

  Args:
    preference: [N] P(y_1 > y_2 | x) by a judge.
    truth: [N] true preference.

  Returns:
    `bins` with the mean `confidence`, the `accuracy` and the `count` of each
    bin that is not empty, and `ece`.
  """
  right = _right(preference, truth)
  confidence = np.maximum(preference, 1 - preference)
  scaled = (2 * confidence - 1) * _CONFIDENCE_BINS
  which = np.minimum(scaled.astype(int), _CONFIDENCE_BINS - 1)
  bins = [
    {
      'confidence': float(confidence[which == b].mean()),
      'accuracy': float(right[which == b].mean()),
      'count': int((which == b).sum()),
    }
    for b in np.unique(which)
  ]
  gaps = [b['count'] * abs(b['accuracy'] - b['confidence']) for b in bins]
  return {'bins': bins, 'ece': sum(gaps) / len(right)}


def by_length(
  preference: np.ndarray, truth: np.ndarray, longer: np.ndarray
) -> list[dict[str, float]]:
  """Computes accuracy by how much longer the better completion is.

  A judge that prefers long completions is right if the difference is positive
  and wrong if it is negative. Pairs that are ties to the truth are left out.

  Args:
    preference: [N] P(y_1 > y_2 | x) by a judge.
    truth: [N] true preference.
    longer: [N] tokens of y_1 minus tokens of y_2.

  Returns:
    `low` and `high` (both inclusive, tokens), `accuracy` and `count` of each
    bin. Bins hold about the same number of pairs, and equal differences are in
    the same bin.
  """
  decided = truth != 0.5
  difference = (longer * np.sign(truth - 0.5))[decided]
  right = _right(preference, truth)[decided]
  if not len(right):
    return []
  inner = np.arange(1, _LENGTH_BINS) / _LENGTH_BINS
  edges = np.quantile(difference, inner, method='lower')
  which = np.searchsorted(edges, difference)
  return [
    {
      'low': int(difference[which == b].min()),
      'high': int(difference[which == b].max()),
      'accuracy': float(right[which == b].mean()),
      'count': int((which == b).sum()),
    }
    for b in np.unique(which)
  ]


def blind_preference(
  scores: Sequence[Sequence[Mapping[str, Any]]],
  truth: np.ndarray,
  features: Sequence[str],
) -> np.ndarray:
  """Predicts the preference from a few measures of the completions alone.

    P(y_1 > y_2) = sigmoid(c . (f(y_1) - f(y_2)))

  c is fitted to the very pairs that are judged, which favours this judge. A
  learned judge that does not beat it may know nothing but these measures.

  Args:
    scores: N lists of the measures of two completions.
    truth: [N] true preference, to which c is fitted.
    features: Names of the measures that the judge sees.

  Returns:
    [N] predicted preference.
  """
  difference = np.array(
    [[float(a[f]) - float(b[f]) for f in features] for a, b in scores]
  )
  varied = difference[:, np.any(difference != 0, axis=0)]
  if not varied.size:
    return np.full(len(difference), 0.5)
  varied = varied / np.sqrt(np.mean(varied**2, axis=0))
  labels = (np.sign(truth - 0.5) + 1) / 2
  coefs, _ = statistics.firth_logistic(varied, labels)
  return special.expit(varied @ coefs)


def _right(preference: np.ndarray, truth: np.ndarray) -> np.ndarray:
  """Returns [N] 1 if both name the same winner, 1/2 if either sees a tie."""
  return (1 + np.sign(preference - 0.5) * np.sign(truth - 0.5)) / 2
