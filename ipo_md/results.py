"""From judgements to results.json and completions.jsonl: numbers alone."""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import math
import pathlib
from typing import Any

import numpy as np

from ipo_md import statistics

_DECIMALS = 6


def pairs(count: int) -> list[tuple[int, int]]:
  """(i, k) for i < k, row by row: the order of what `completions` writes."""
  return [(i, k) for i in range(count) for k in range(i + 1, count)]


def matrices(
  policies: Sequence[str],
  judged: Mapping[str, np.ndarray],
  lengths: Mapping[str, np.ndarray],
) -> dict[str, Any]:
  """Everything that compares two policies, by judge.

  Args:
    policies: M names.
    judged: judge -> [N, M (M - 1) / 2] P(y_i > y_k | x) for i < k.
    lengths: policy -> [N] tokens of its completions, without EOS.

  Returns:
    `win_rate[judge][i][k]` of row i over column k with `interval`,
    `mean_preference` with `mean_preference_interval`, and
    `length_controlled_win_rate` with its interval, None where length cannot
    be told from the rest. The diagonal is 1/2.
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
    for column, (i, k) in enumerate(pairs(len(policies))):
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
  """Values and intervals of the upper triangle -> both whole matrices."""
  values = [[0.5] * count for _ in range(count)]
  intervals = [[[0.5, 0.5]] * count for _ in range(count)]
  for (i, k), estimate in estimates.items():
    if estimate is None:
      values[i][k] = values[k][i] = None
      intervals[i][k] = intervals[k][i] = None
      continue
    values[i][k], values[k][i] = estimate.value, 1 - estimate.value
    intervals[i][k] = [estimate.low, estimate.high]
    intervals[k][i] = [1 - estimate.high, 1 - estimate.low]
  return values, intervals


def measures(
  policies: Sequence[str],
  scores: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
  """Means of what is measured of each completion.

  Args:
    policies: names; the first is the baseline.
    scores: policy -> N measures by name, numbers or booleans.

  Returns:
    measure -> policy -> mean, and `paired_difference`: measure -> policy ->
    mean difference from the baseline on the same prompts, with its interval.
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
  folder: pathlib.Path,
  found: Mapping[str, Any],
  prompts: Sequence[str],
  texts: Mapping[str, Sequence[str]],
  scores: Mapping[str, Sequence[Mapping[str, Any]]],
  judged: Mapping[str, np.ndarray],
) -> None:
  """Writes results.json and completions.jsonl; numbers to six decimals.

  Args:
    folder: MODEL_DIR.
    found: all of results.json.
    prompts: N texts.
    texts: policy -> N completions.
    scores: policy -> N measures by name.
    judged: judge -> [N, J] preferences of the pairs of `pairs`.
  """
  content = json.dumps(rounded(found), indent=1, sort_keys=True)
  (folder / 'results.json').write_text(content + '\n')
  lines = []
  for n, prompt in enumerate(prompts):
    line = {
      'prompt': prompt,
      'completions': {
        policy: {'text': texts[policy][n], 'score': scores[policy][n]}
        for policy in texts
      },
      'preference': {judge: p[n].tolist() for judge, p in judged.items()},
    }
    lines.append(json.dumps(rounded(line), sort_keys=True) + '\n')
  (folder / 'completions.jsonl').write_text(''.join(lines))


def rounded(value: Any) -> Any:
  """Numbers to six decimals, never -0; numpy's as Python's."""
  if isinstance(value, Mapping):
    return {key: rounded(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [rounded(item) for item in value]
  if isinstance(value, np.generic):
    return rounded(value.item())
  if isinstance(value, float):
    return round(value, _DECIMALS) + 0.0 if math.isfinite(value) else None
  return value
