"""How far judges agree with one that is taken as the truth."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np
from scipy import special

from ipo_md import data
from ipo_md import held_out
from ipo_md import pairwise
from ipo_md import statistics


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


def table(
  agreement: Agreement,
  drawn: Mapping[str, held_out.Drawn],
  judges: Mapping[str, pairwise.Judge],
  measure: pairwise.Measure | None,
) -> dict[str, Any]:
  """How often each judge names the same winner as the truth.

  Args:
    agreement: what is compared on what.
    drawn: policy -> its samples, of which the first two of a prompt are a pair.
    judges: by name.
    measure: of completions; None: no subsets and no blind judge.

  Returns:
    pairs -> judge -> [share, low, high, number of pairs], see
    `statistics.agreement`. The pairs are those of the data set, as many as
    there are prompts, and each policy's own samples.
  """
  others = {n: judge for n, judge in judges.items() if n != agreement.truth}
  found = {}
  if agreement.dataset is not None:
    samples, truth = _labelled_pairs(agreement.dataset(), drawn)
    found['held_out_pairs'] = {
      name: _estimate(_judge(judge, samples), truth)
      for name, judge in others.items()
    }
  for name, policy in drawn.items():
    truth = _judge(judges[agreement.truth], policy.samples)
    said = {n: _judge(judge, policy.samples) for n, judge in others.items()}
    subsets = {f'samples_of_{name}': np.ones(len(truth), bool)}
    if measure is not None:
      columns = zip(*policy.samples.texts, strict=True)
      scores = [measure(policy.samples.prompts, column) for column in columns]
      scores = list(zip(*scores, strict=True))
      _check_names((*agreement.facts, *agreement.form), scores[0][0])
      said['blind'] = blind_preference(scores, truth, agreement.form)
      subsets[f'samples_of_{name}_with_other_facts'] = np.array(
        [any(a[f] != b[f] for f in agreement.facts) for a, b in scores]
      )
    for subset, mask in subsets.items():
      if mask.any():
        found[subset] = {
          judge: _estimate(p[mask], truth[mask]) for judge, p in said.items()
        }
  return found


def _check_names(names: Sequence[str], measures: Mapping[str, Any]) -> None:
  for name in names:
    if name not in measures:
      raise ValueError(
        f'Agreement.facts or Agreement.form names {name!r}; the measures are '
        f'{sorted(measures)}.'
      )


def _estimate(judged: np.ndarray, truth: np.ndarray) -> list[float]:
  return [*statistics.agreement(judged, truth), len(truth)]


def _judge(judge: pairwise.Judge, samples: pairwise.Samples) -> np.ndarray:
  return pairwise.preference(judge, samples, [(0, 1)])[:, 0]


def _labelled_pairs(
  dataset: data.Dataset, drawn: Mapping[str, held_out.Drawn]
) -> tuple[pairwise.Samples, np.ndarray]:
  """As many labelled pairs as there are prompts, and their preference."""
  first = next(iter(drawn.values()))
  count = min(len(dataset), len(first.ended))
  rows = dataset.rows([(0, row) for row in range(count)])
  samples = pairwise.Samples.of(rows.completions, dataset.vocabulary)
  return samples, rows.preference


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
