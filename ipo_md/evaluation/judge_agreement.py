"""How far judges agree with what is taken as the truth."""

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

_CONFIDENCE_BINS = 10  # of width 1/20
_LENGTH_BINS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
  """What the judges are compared on, one of them taken as the truth.

  Attributes:
    truth: a name of JUDGES.
    dataset: of held-out pairs with the truth's preference; None: samples alone.
    facts: measures; pairs of samples that differ in one are counted apart.
    form: measures that a blind judge sees (`blind_preference`).
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
  """What `compared` says of each judge but the truth, on several pairs.

  Args:
    agreement: what is compared on what.
    drawn: policy -> its samples, of which the first two of a prompt are a pair.
    judges: by name.
    measure: of completions; None: no subsets and no blind judge.

  Returns:
    agreement, calibration, by_length, order_consistency: each
    pairs -> judge -> what `compared` says. The pairs are those of the data set
    (held_out_pairs), as many as there are prompts, and each policy's own
    samples (samples_of_POLICY).
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
  """`compared` of judges on N pairs whose preference [N] is known."""
  said = {name: _both_orders(judge, samples) for name, judge in judges.items()}
  return compared(said, truth, _longer(samples))


def by_kind(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """pairs -> kind -> x into kind -> pairs -> x, the form of results.json."""
  kinds = {kind for tables in found.values() for kind in tables}
  return {
    kind: {pairs: tables[kind] for pairs, tables in found.items()}
    for kind in sorted(kinds)
  }


def compared(
  said: Mapping[str, np.ndarray], truth: np.ndarray, longer: np.ndarray
) -> dict[str, dict[str, Any]]:
  """How judges do on N labelled pairs.

  Args:
    said: judge -> [N, 2] P(y_1 > y_2 | x), y_1 shown first and second.
    truth: [N] the preference that is taken as true.
    longer: [N] tokens of y_1 minus tokens of y_2.

  Returns:
    agreement: judge -> [share, low, high, N], see `statistics.agreement`.
    calibration: judge -> see `calibration`.
    by_length: judge -> see `by_length`.
    order_consistency: judge -> [share, low, high, N], how often it names the
      same winner in both orders.
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
  """Accuracy by confidence: the reliability curve, and how far it is off.

    confidence = max(p, 1 - p)
    ECE = sum_b n_b / N |accuracy_b - confidence_b|

  over bins of confidence from 1/2 to 1, after arXiv 1706.04599. Accuracy counts
  a tie of either side 1/2, so a label of 1/2 is a toss-up.

  Args:
    preference: [N] P(y_1 > y_2 | x) by a judge.
    truth: [N] the preference that is taken as true.

  Returns:
    bins: confidence (mean), accuracy and count of each bin that is not empty,
    and ece.
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
  """Accuracy by how much longer the better completion is than the worse one.

  A judge that likes length is right where the difference is positive and wrong
  where it is negative. Pairs that the truth ties are left out.

  Args:
    preference: [N] P(y_1 > y_2 | x) by a judge.
    truth: [N] the preference that is taken as true.
    longer: [N] tokens of y_1 minus tokens of y_2.

  Returns:
    low and high (both included, tokens), accuracy and count of bins that hold
    about as many pairs each; equal differences stay together.
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
  """The first `count` labelled pairs, or all there are, and their preference.

  Raises:
    ValueError: the data set has no preferences.
  """
  indices = [
    (t, r) for t, e in enumerate(dataset.examples) for r in range(len(e))
  ]
  rows = dataset.rows(indices[:count])
  if dataset.prompts_only or rows.preference is None:
    raise ValueError(
      f'Task {dataset.examples[0].name} has no pairs with a preference, to '
      'which judges could be compared (PREFERENCE_TASK).'
    )
  samples = judges_lib.Samples.of(rows.completions, dataset)
  return samples, rows.preference


def _right(preference: np.ndarray, truth: np.ndarray) -> np.ndarray:
  """[N] 1 where both name the same winner, 1/2 where either sees a tie."""
  return (1 + np.sign(preference - 0.5) * np.sign(truth - 0.5)) / 2


def _both_orders(
  judge: judges_lib.HostJudge, samples: judges_lib.Samples
) -> np.ndarray:
  """[N, 2] what a judge says of the first two completions; 1/2 for nothing."""
  (both,) = judge(samples, [(0, 1)])
  return np.nan_to_num(both, nan=0.5)


def _longer(samples: judges_lib.Samples) -> np.ndarray:
  """[N] tokens of y_1 minus tokens of y_2."""
  lengths = samples.tokens.completions.mask.sum(axis=-1)
  return lengths[:, 0] - lengths[:, 1]


def _check_names(names: Sequence[str], measures: Mapping[str, Any]) -> None:
  for name in names:
    if name not in measures:
      raise ValueError(
        f'Agreement.facts or Agreement.form names {name!r}; the measures are '
        f'{sorted(measures)}.'
      )


def blind_preference(
  scores: Sequence[Sequence[Mapping[str, Any]]],
  truth: np.ndarray,
  features: Sequence[str],
) -> np.ndarray:
  """What a judge says that knows some measures of two completions alone.

    P(y_1 > y_2) = sigmoid(c . (f(y_1) - f(y_2)))

  c is fitted to the very pairs that are judged, which flatters it: a learned
  judge has to do better than this to know more than these features.

  Args:
    scores: N lists of the measures of two completions.
    truth: [N] preferences that are to be predicted.
    features: names of the measures that it may see.
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
