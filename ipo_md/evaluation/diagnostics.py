"""Diagnostics beside win rates: diversity, reliability of judges, seeds."""

from collections.abc import Mapping
from collections.abc import Sequence
import itertools
from typing import Any

import numpy as np

from ipo_md import games
from ipo_md.evaluation import judge_measures
from ipo_md.evaluation import statistics


def distinct(texts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
  """Computes the share of distinct n-grams of words in a policy's completions.

  The share falls with the number of prompts, so it compares policies on the
  same prompts only.

  Args:
    texts: Completions by policy.

  Returns:
    `distinct_1`, `distinct_2` and `distinct_3`: policy -> share, or None if the
    completions have no such n-gram.
  """
  shares = {}
  for n in (1, 2, 3):
    shares[f'distinct_{n}'] = {}
    for policy, completions in texts.items():
      words = [text.split() for text in completions]
      grams = [
        tuple(row[i : i + n]) for row in words for i in range(len(row) - n + 1)
      ]
      share = len(set(grams)) / len(grams) if grams else None
      shares[f'distinct_{n}'][policy] = share
  return shares


def reliability(
  preference: Mapping[str, np.ndarray], judged: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """Measures how far judges agree with themselves and with one another.

  Intervals are over prompts.

  Args:
    preference: Judge -> [N, J] preference.
    judged: Judge -> [N, J, 2] preference in each order, NaN for no winner.

  Returns:
    `compared_order_consistency`: judge -> [share, low, high, number] of
      judgements that name the same winner in both orders. The share is 1 for a
      judge that does not see the order.
    `compared_judge_warnings`: judge -> `judge_measures.warning` about it, if
      there is one.
    `judge_agreement`: judge -> judge -> [share, low, high] of judgements that
      name the same winner.
    `neither`: judge -> number of answers that name no winner.
  """
  orders = {
    # A tie in one order counts 1/2, but a judge that does not see the order is
    # consistent even in its ties.
    name: np.nan_to_num(both, nan=0.5)
    if sees_order(both)
    else np.ones_like(both)
    for name, both in judged.items()
    if both.size
  }
  return {
    'compared_order_consistency': {
      name: [
        *statistics.order_consistency(both[..., 0], both[..., 1]),
        both[..., 0].size,
      ]
      for name, both in orders.items()
    },
    'compared_judge_warnings': judge_measures.warnings_of(judged),
    'judge_agreement': {
      a: {
        b: list(statistics.agreement(p, q))
        for b, q in preference.items()
        if b != a and p.size
      }
      for a, p in preference.items()
      if len(preference) > 1
    },
    'neither': {
      name: int(np.isnan(both).sum()) for name, both in judged.items()
    },
  }


def sees_order(judged: np.ndarray) -> bool:
  """Returns whether a judge's answers [..., 2] depend on the order shown."""
  first, second = np.moveaxis(judged, -1, 0)
  return not np.allclose(first, second, atol=1e-5, equal_nan=True)


def nash_averaging(
  policies: Sequence[str], win_rate: Mapping[str, Sequence[Sequence[Any]]]
) -> dict[str, Any]:
  """Ranks the policies by `games.nash_averaging` of their win rates.

  Args:
    policies: M names.
    win_rate: Judge -> [M, M] win rates, None for pairs that were not judged.

  Returns:
    Judge -> `weights` and `skills` by policy, for judges of all pairs.
  """
  out = {}
  for judge, matrix in win_rate.items():
    if any(value is None for row in matrix for value in row):
      continue
    weights, skills = games.nash_averaging(np.array(matrix))
    out[judge] = {
      'weights': dict(zip(policies, weights, strict=True)),
      'skills': dict(zip(policies, skills, strict=True)),
    }
  return out


def seeds(
  policies: Sequence[str],
  groups: Mapping[str, Sequence[str]],
  win_rate: Mapping[str, Sequence[Sequence[Any]]],
) -> dict[str, list[dict[str, Any]]]:
  """Averages the win rates of policies that were trained with several seeds.

  Args:
    policies: M names of the rows.
    groups: Policy -> the rows that are its seeds.
    win_rate: Judge -> [M, M] win rates, None for pairs that were not judged.

  Returns:
    Judge -> a list with an entry for each ordered pair of groups: `policy`,
    `over`, `win_rates` [seeds of the one, seeds of the other], `mean` and
    `t_interval_over_seed_means` (`statistics.seed_means`).
  """
  out = {judge: [] for judge in win_rate}
  for judge, matrix in win_rate.items():
    for a, b in itertools.combinations(groups, 2):
      rates = [
        [matrix[policies.index(i)][policies.index(k)] for k in groups[b]]
        for i in groups[a]
      ]
      if len(groups[a]) * len(groups[b]) == 1 or None in sum(rates, []):
        continue
      rates = np.array(rates)
      for name, other, values in ((a, b, rates), (b, a, 1 - rates.T)):
        mean, *interval = statistics.seed_means(values)
        out[judge].append(
          {
            'policy': name,
            'over': other,
            'win_rates': values.tolist(),
            'mean': mean,
            't_interval_over_seed_means': interval,
          }
        )
  return out
