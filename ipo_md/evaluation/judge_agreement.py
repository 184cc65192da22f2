"""Measures how far judges agree with a preference that counts as the truth."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from ipo_md import data
from ipo_md import judges as judges_lib
from ipo_md.core import progress
from ipo_md.evaluation import drawn_samples
from ipo_md.evaluation import judge_measures


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
  """The pairs on which judges are compared with one that counts as the truth.

  Attributes:
    truth: Name in JUDGES of the judge that counts as the truth.
    dataset: Function that loads held-out pairs with the truth's preference, or
      None to compare on samples alone.
    facts: Measures. Pairs of samples that differ in one are counted separately.
    form: Measures that a blind judge sees (`judge_measures.blind_preference`).
  """

  truth: str
  dataset: Callable[[], data.Dataset] | None
  facts: Sequence[str]
  form: Sequence[str]


def tables(
  agreement: Agreement,
  drawn: Mapping[str, drawn_samples.Drawn],
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
    `agreement`, `calibration`, `by_length`, `order_consistency` and, if there
    are any, `judge_warnings`, each pairs -> judge -> value, as
    `judge_measures.compared` gives them.
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
      blind = judge_measures.blind_preference(scores, truth, agreement.form)
      said['blind'] = np.stack([blind, blind], axis=-1)
      subsets[f'samples_of_{name}_with_other_facts'] = np.array(
        [any(a[f] != b[f] for f in agreement.facts) for a, b in scores]
      )
    longer = _longer(samples)
    for subset, mask in subsets.items():
      if mask.any():
        found[subset] = judge_measures.compared(
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
    The result of `judge_measures.compared`.
  """
  said = {name: _both_orders(judge, samples) for name, judge in judges.items()}
  return judge_measures.compared(said, truth, _longer(samples))


def by_kind(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """Turns pairs -> kind -> x into kind -> pairs -> x, as in results.json."""
  kinds = {kind for tables in found.values() for kind in tables}
  return {
    kind: {
      pairs: tables[kind] for pairs, tables in found.items() if kind in tables
    }
    for kind in sorted(kinds)
  }


def warning_lines(found: Mapping[str, Any]) -> list[str]:
  """Formats the warnings about judges in the contents of results.json."""
  groups = {
    'compared policies': found.get('compared_judge_warnings', {}),
    **found.get('judge_warnings', {}),
  }
  return [
    f'{judge} {warning} ({pairs})'
    for pairs, warnings in groups.items()
    for judge, warning in warnings.items()
  ]


def labelled_pairs(
  dataset: data.Dataset, count: int
) -> tuple[judges_lib.Samples, np.ndarray]:
  """Returns the first labelled pairs of a data set, and says its counts.

  Args:
    dataset: Data set of pairs with a preference.
    count: Number of pairs; all of them if there are fewer.

  Returns:
    Two completions of each of N prompts, and their preference [N].

  Raises:
    ValueError: The data set has no preferences.
  """
  rows = None
  if not dataset.prompts_only:
    rows = dataset.labelled(data.first_rows(dataset, count))
  if rows is None or rows.preference is None:
    raise ValueError(
      f'Task {dataset.examples[0].name} has no pairs with a preference with '
      'which judges could be compared (PREFERENCE_TASK).'
    )
  progress.say(f'labelled pairs: {progress.counted(dataset.counts)}')
  samples = judges_lib.Samples.of(rows.completions, dataset)
  return samples, np.asarray(rows.preference)


def _both_orders(
  judge: judges_lib.HostJudge, samples: judges_lib.Samples
) -> np.ndarray:
  """Returns [N, 2] P(y_1 > y_2 | x) in each order; no answer counts 1/2."""
  (both,) = judge(samples, [(0, 1)])
  return np.nan_to_num(both, nan=0.5)


def _longer(samples: judges_lib.Samples) -> np.ndarray:
  """Returns [N] tokens of y_1 minus tokens of y_2."""
  lengths = np.asarray(samples.tokens.completions.mask.sum(axis=-1))
  return lengths[:, 0] - lengths[:, 1]


def _check_names(names: Sequence[str], measures: Mapping[str, Any]) -> None:
  """Raises ValueError if a name is not one of the measures."""
  for name in names:
    if name not in measures:
      raise ValueError(
        f'Agreement.facts or Agreement.form names {name!r}, which is not one '
        f'of the measures {sorted(measures)}.'
      )
