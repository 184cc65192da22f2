"""Turns judgements into results.json and completions.jsonl."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import json
import math
from typing import Any

from etils import epath
import numpy as np

from ipo_md import judges
from ipo_md.evaluation import diagnostics
from ipo_md.evaluation import statistics
from ipo_md.evaluation import transitivity

_DECIMALS = 6


def pairs(count: int) -> list[tuple[int, int]]:
  """Lists the pairs (i, k), i < k, row by row, as completions.jsonl does.

  pairs(3)  # [(0, 1), (0, 2), (1, 2)]
  """
  return [(i, k) for i in range(count) for k in range(i + 1, count)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """Completions of N prompts by M policies, J of whose pairs were judged.

  Attributes:
    prompts: N texts.
    texts: Policy -> N completions. The first policy is the baseline.
    scores: Policy -> N measures by name, numbers or booleans. 'length' is the
      number of tokens without EOS.
    pairs: J pairs (i, k), i < k, that were judged.
    judged: Judge -> [N, J, 2] P(y_i > y_k | x) with y_i shown first and second,
      NaN for an answer that names no winner.
    one_vocabulary: Whether all lengths are tokens of one vocabulary.
  """

  prompts: Sequence[str]
  texts: Mapping[str, Sequence[str]]
  scores: Mapping[str, Sequence[Mapping[str, Any]]]
  pairs: Sequence[tuple[int, int]]
  judged: Mapping[str, np.ndarray]
  one_vocabulary: bool = True

  @property
  def policies(self) -> list[str]:
    """The names of the M policies."""
    return list(self.texts)

  @functools.cached_property
  def preference(self) -> dict[str, np.ndarray]:
    """Judge -> [N, J] P(y_i > y_k | x), averaged over both orders."""
    return {
      name: judges.mean_over_orders(judged)
      for name, judged in self.judged.items()
    }

  @functools.cached_property
  def lengths(self) -> dict[str, np.ndarray]:
    """Policy -> [N] lengths in tokens, or in words if vocabularies differ."""
    if self.one_vocabulary:
      return {
        name: np.array([row['length'] for row in rows])
        for name, rows in self.scores.items()
      }
    return {
      name: np.array([len(text.split()) for text in completions])
      for name, completions in self.texts.items()
    }

  @functools.cached_property
  def ordered(self) -> dict[str, np.ndarray]:
    """`judged` of the judges whose answers depend on the order of a pair."""
    return {
      name: judged
      for name, judged in self.judged.items()
      if diagnostics.sees_order(judged)
    }


def found(
  comparison: Comparison, groups: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
  """Computes what results.json says about completions and judgements.

  Args:
    comparison: Completions and judgements.
    groups: POLICIES, name -> the policies that are its seeds.

  Returns:
    Contents of results.json by key.
  """
  policies = comparison.policies
  compared = matrices(
    policies, comparison.pairs, comparison.preference, comparison.lengths
  )
  content = {
    'policies': policies,
    'judges': list(comparison.judged),
    'prompts': len(comparison.prompts),
    **compared,
    **measures(policies, comparison.scores),
    **diagnostics.distinct(comparison.texts),
    **diagnostics.reliability(comparison.preference, comparison.judged),
    **transitivity.table(comparison.pairs, comparison.preference),
    'nash_averaging': diagnostics.nash_averaging(
      policies, compared['win_rate']
    ),
    'seeds': diagnostics.seeds(policies, groups, compared['win_rate']),
  }
  return {name: value for name, value in content.items() if value != {}}


def matrices(
  policies: Sequence[str],
  judged_pairs: Sequence[tuple[int, int]],
  judged: Mapping[str, np.ndarray],
  lengths: Mapping[str, np.ndarray],
) -> dict[str, Any]:
  """Computes every estimate that compares two policies, by judge.

  Args:
    policies: M names.
    judged_pairs: J pairs (i, k) of policies.
    judged: Judge -> [N, J] P(y_i > y_k | x).
    lengths: Policy -> [N] lengths of its completions.

  Returns:
    `win_rate[judge][i][k]` of row i over column k with `interval`,
    `mean_preference` with `mean_preference_interval`, and
    `length_controlled_win_rate` with `length_controlled_interval`. An entry is
    None if the pair was not judged, or if the effect of length cannot be told
    from the rest. The diagonal is 1/2.
  """
  kinds = {
    'win_rate': ('win_rate', 'interval'),
    'mean_preference': ('mean_preference', 'mean_preference_interval'),
    'length_controlled': (
      'length_controlled_win_rate',
      'length_controlled_interval',
    ),
  }
  found = {name: {} for names in kinds.values() for name in names}
  for judge, preference in judged.items():
    estimates = {kind: {} for kind in kinds}
    for column, (i, k) in enumerate(judged_pairs):
      p = preference[:, column]
      difference = lengths[policies[i]] - lengths[policies[k]]
      estimates['win_rate'][i, k] = statistics.win_rate(p)
      estimates['mean_preference'][i, k] = statistics.mean_preference(p)
      estimates['length_controlled'][i, k] = (
        statistics.length_controlled_win_rate(p, difference)
      )
    for kind, (value, interval) in kinds.items():
      found[value][judge], found[interval][judge] = _matrix(
        estimates[kind], len(policies)
      )
  return found


def _matrix(
  estimates: Mapping[tuple[int, int], statistics.Estimate | None], count: int
) -> tuple[list, list]:
  """Fills matrices of values and of intervals from the estimates of pairs."""
  values: list[list[float | None]] = [[None] * count for _ in range(count)]
  intervals: list[list[list[float | None]]] = [
    [[None, None]] * count for _ in range(count)
  ]
  for i in range(count):
    values[i][i], intervals[i][i] = 0.5, [0.5, 0.5]
  for (i, k), estimate in estimates.items():
    if estimate is not None:
      values[i][k], values[k][i] = estimate.value, 1 - estimate.value
      intervals[i][k] = [estimate.low, estimate.high]
      intervals[k][i] = [1 - estimate.high, 1 - estimate.low]
  return values, intervals


def measures(
  policies: Sequence[str],
  scores: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
  """Averages the measures of the completions.

  Args:
    policies: M names; the first is the baseline.
    scores: Policy -> N measures by name, numbers or booleans.

  Returns:
    Measure -> policy -> mean; and under `paired_difference`, measure -> policy
    -> mean difference from the baseline on the same prompts, with its interval.
  """
  names = scores[policies[0]][0].keys()
  columns = {
    name: {
      policy: np.array([float(row[name]) for row in scores[policy]])
      for policy in policies
    }
    for name in names
  }
  found: dict[str, Any] = {
    name: {policy: values.mean() for policy, values in column.items()}
    for name, column in columns.items()
  }
  found['paired_difference'] = {
    name: {
      policy: list(
        statistics.paired_difference(column[policy], column[policies[0]])
      )
      for policy in policies[1:]
    }
    for name, column in columns.items()
  }
  return found


def write(
  folder: epath.Path, results: Mapping[str, Any], comparison: Comparison
) -> None:
  """Writes results.json and completions.jsonl, with numbers to six decimals.

  A line of completions.jsonl holds the `prompt`, the `completions`, and the
  `preference` of each pair of `pairs`, null if it was not judged. For judges
  that see the order, `orders` holds the preference in each order.

  Args:
    folder: MODEL_DIR.
    results: Contents of results.json.
    comparison: Contents of completions.jsonl.
  """
  content = json.dumps(rounded(results), indent=1, sort_keys=True)
  (folder / 'results.json').write_text(content + '\n')
  texts, scores = comparison.texts, comparison.scores
  lines = []
  for n, prompt in enumerate(comparison.prompts):

    def of_all_pairs(judged, n=n):
      known = dict(zip(comparison.pairs, judged[n].tolist(), strict=True))
      return [known.get(pair) for pair in pairs(len(texts))]

    line = {
      'prompt': prompt,
      'completions': {
        policy: {'text': texts[policy][n], 'score': scores[policy][n]}
        for policy in texts
      },
      'preference': {
        judge: of_all_pairs(p) for judge, p in comparison.preference.items()
      },
    }
    if comparison.ordered:
      line['orders'] = {
        judge: of_all_pairs(j) for judge, j in comparison.ordered.items()
      }
    lines.append(json.dumps(rounded(line), sort_keys=True) + '\n')
  (folder / 'completions.jsonl').write_text(''.join(lines))


def rounded(value: Any) -> Any:
  """Rounds all numbers in a value to six decimals, as Python's own types.

  -0 becomes 0; NaN and infinity become None.

  Args:
    value: Mappings, lists and scalars, nested in any way.
  """
  if isinstance(value, Mapping):
    return {key: rounded(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [rounded(item) for item in value]
  if isinstance(value, np.generic):
    return rounded(value.item())
  if isinstance(value, float):
    return round(value, _DECIMALS) + 0.0 if math.isfinite(value) else None
  return value
