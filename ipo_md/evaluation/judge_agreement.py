"""Measures how far judges agree with a preference that counts as the truth."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np
from scipy import special

from ipo_md import data
from ipo_md import judges as judges_lib
from ipo_md.evaluation import drawing
from ipo_md.evaluation import statistics

_CONFIDENCE_BINS = 10  # Each has a width of 1/20.
_LENGTH_BINS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
  """The pairs on which judges are compared with one that counts as the truth.

  Attributes:
    truth: Name in JUDGES of the judge that counts as the truth.
    dataset: Function that loads held-out pairs with the truth's preference, or
      None to compare on samples alone.
    facts: Measures. Pairs of samples that differ in one are counted separately.
    form: Measures that a blind judge sees (`blind_preference`).
  """

  truth: str
  dataset: Callable[[], data.Dataset] | None
  facts: Sequence[str]
  form: Sequence[str]


def tables(
  agreement: Agreement,
  drawn: Mapping[str, drawing.Drawn],
  judges: Mapping[str, judges_lib.HostJudge],
  measure: judges_lib.Measure | None,
) -> dict[str, Any]:
  """Compares every judge with the truth, on several sets of pairs.

  The sets are the pairs of the data set (`held_out_pairs`), as many as there
  are prompts, and the samples of each policy (`samples_of_POLICY`). With a
  measure there are also the samples that differ in a fact
  (`samples_of_POLICY_with_other_facts`) and a blind judge (`blind`).

  Args:
    agreement: Truth and pairs of the comparison.
    drawn: Policy -> its samples. The first two of a prompt are a pair.
    judges: Judges by name.
    measure: Measures of completions, or None.

  Returns:
    `agreement`, `calibration`, `by_length` and `order_consistency`, each pairs
    -> judge -> value, as `compared` gives them.
  """
  others = {n: judge for n, judge in judges.items() if n != agreement.truth}
  found = {}
  if agreement.dataset is not None:
    count = len(next(iter(drawn.values())).ended)
    samples, truth = labelled_pairs(agreement.dataset(), count)
    found['held_out_pairs'] = on_pairs(others, samples, truth)
  for name, policy in drawn.items():
    samples = policy.samples
    truth = _both_orders(judges[agreement.truth], samples)
    truth = np.round(truth.mean(axis=-1), 6)
    said = {n: _both_orders(judge, samples) for n, judge in others.items()}
    subsets = {f'samples_of_{name}': np.ones(len(truth), bool)}
    if measure is not None:
      columns = zip(*samples.texts, strict=True)
      scores = [measure(samples.prompts, column) for column in columns]
      scores = list(zip(*scores, strict=True))
      _check_names((*agreement.facts, *agreement.form), scores[0][0])
      blind = blind_preference(scores, truth, agreement.form)
      said['blind'] = np.stack([blind, blind], axis=-1)
      subsets[f'samples_of_{name}_with_other_facts'] = np.array(
        [any(a[f] != b[f] for f in agreement.facts) for a, b in scores]
      )
    longer = _longer(samples)
    for subset, mask in subsets.items():
      if mask.any():
        found[subset] = compared(
          {judge: both[mask] for judge, both in said.items()},
          truth[mask],
          longer[mask],
        )
  return by_kind(found)


def on_pairs(
  judges: Mapping[str, judges_lib.HostJudge],
  samples: judges_lib.Samples,
  truth: np.ndarray,
) -> dict[str, dict[str, Any]]:
  """Compares judges on labelled pairs.

  Args:
    judges: Judges by name.
    samples: Two completions of each of N prompts.
    truth: [N] true preference.

  Returns:
    The result of `compared`.
  """
  said = {name: _both_orders(judge, samples) for name, judge in judges.items()}
  return compared(said, truth, _longer(samples))


def by_kind(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """Turns pairs -> kind -> x into kind -> pairs -> x, as in results.json."""
  kinds = {kind for tables in found.values() for kind in tables}
  return {
    kind: {pairs: tables[kind] for pairs, tables in found.items()}
    for kind in sorted(kinds)
  }


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


def labelled_pairs(
  dataset: data.Dataset, count: int
) -> tuple[judges_lib.Samples, np.ndarray]:
  """Returns the first labelled pairs of a data set.

  Args:
    dataset: Data set of pairs with a preference.
    count: Number of pairs; all of them if there are fewer.

  Returns:
    Two completions of each of N prompts, and their preference [N].

  Raises:
    ValueError: The data set has no preferences.
  """
  indices = [
    (t, r) for t, e in enumerate(dataset.examples) for r in range(len(e))
  ]
  rows = dataset.rows(indices[:count])
  if dataset.prompts_only or rows.preference is None:
    raise ValueError(
      f'Task {dataset.examples[0].name} has no pairs with a preference with '
      'which judges could be compared (PREFERENCE_TASK).'
    )
  samples = judges_lib.Samples.of(rows.completions, dataset)
  return samples, rows.preference


def _right(preference: np.ndarray, truth: np.ndarray) -> np.ndarray:
  """Returns [N] 1 if both name the same winner, 1/2 if either sees a tie."""
  return (1 + np.sign(preference - 0.5) * np.sign(truth - 0.5)) / 2


def _both_orders(
  judge: judges_lib.HostJudge, samples: judges_lib.Samples
) -> np.ndarray:
  """Returns [N, 2] P(y_1 > y_2 | x) in each order; no answer counts 1/2."""
  (both,) = judge(samples, [(0, 1)])
  return np.nan_to_num(both, nan=0.5)


def _longer(samples: judges_lib.Samples) -> np.ndarray:
  """Returns [N] tokens of y_1 minus tokens of y_2."""
  lengths = samples.tokens.completions.mask.sum(axis=-1)
  return lengths[:, 0] - lengths[:, 1]


def _check_names(names: Sequence[str], measures: Mapping[str, Any]) -> None:
  """Raises ValueError if a name is not one of the measures."""
  for name in names:
    if name not in measures:
      raise ValueError(
        f'Agreement.facts or Agreement.form names {name!r}, which is not one '
        f'of the measures {sorted(measures)}.'
      )


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
