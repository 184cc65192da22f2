"""Measures how well a judge predicts the preference on labelled pairs."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from ipo_md.evaluation import statistics

_CONFIDENCE_BINS = 10  # Each has a width of 1/20.
_LENGTH_BINS = 5
_FLAT = 1e-3  # distance from 1/2 that counts as none
_FEWEST_PAIRS = 3  # that show a judge's answers to depend on position alone


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
    `judge_warnings`: judge -> see `warning`. It is left out if there are none.
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
  if warnings := warnings_of(said):
    found['judge_warnings'] = warnings
  return found


def warnings_of(judged: Mapping[str, np.ndarray]) -> dict[str, str]:
  """Returns judge -> `warning` for the judges that there is one about.

  Args:
    judged: Judge -> [N, 2] or [N, J, 2] P(y_1 > y_2 | x), with y_1 shown first
      and second.
  """
  found = {judge: warning(both) for judge, both in judged.items()}
  return {judge: text for judge, text in found.items() if text is not None}


def warning(judged: np.ndarray) -> str | None:
  """Says if a judge does not judge, but answers by position or not at all.

    warning(np.tile([1.0, 0.0], (64, 1)))
    # 'does not judge: it names the completion shown first in 100 % of ...'

  A judge answers by position if it names the same winner in both orders in none
  of the pairs, or in significantly less than half of them. Pairs that are ties
  in both orders do not count. If the probabilities of such a judge differ from
  order to order, their mean may still tell the better completion.

  Args:
    judged: [N, 2] or [N, J, 2] P(y_1 > y_2 | x), with y_1 shown first and
      second, NaN for no winner.

  Returns:
    What follows the name of the judge in a sentence, or None.
  """
  both = np.round(np.nan_to_num(judged, nan=0.5), 6).reshape(-1, 2)
  if not len(both):
    return None
  decided = both[np.any(both != 0.5, axis=-1)]
  if not len(decided):
    return (
      f'does not judge: it names no winner in any of {len(both):,} pairs (are '
      'the completions of each pair the same?).'
    )
  share, _, high = statistics.order_consistency(*decided.T)
  if len(decided) < _FEWEST_PAIRS or (share > 0 and high >= 0.5):
    return None
  first = np.stack([decided[:, 0], 1 - decided[:, 1]])
  first = np.mean((np.sign(first - 0.5) + 1) / 2)
  place, often = ('first', first) if first >= 0.5 else ('second', 1 - first)
  flat = np.all(np.abs(decided.mean(axis=-1) - 0.5) < _FLAT)
  if share == 0 and flat:
    verdict = 'does not judge'
  elif share == 0:
    verdict = 'judges by the size of its probabilities alone'
  else:
    verdict = 'hardly judges'
  return (
    f'{verdict}: it names the completion shown {place} in {100 * often:.0f} % '
    f'of its answers, and the same winner in both orders in {100 * share:.0f} '
    f'% of {len(decided):,} pairs.'
  )


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
