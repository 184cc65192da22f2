"""Measures how far preferences are from those that a reward explains."""

from collections.abc import Mapping
from collections.abc import Sequence
import itertools

import numpy as np
from scipy import optimize
from scipy import special


def table(
  judged_pairs: Sequence[tuple[int, int]], judged: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
  """Returns both measures of each judge, where they are defined.

  Args:
    judged_pairs: J pairs (i, k), i < k, of M completions of a prompt.
    judged: Judge -> [N, J] P(y_i > y_k | x) on N prompts, NaN for no answer.

  Returns:
    `intransitive_triples` and `bradley_terry_kl`, judge -> value.
  """
  kinds = {
    'intransitive_triples': intransitive_triples,
    'bradley_terry_kl': bradley_terry_kl,
  }
  found = {}
  for kind, measure in kinds.items():
    values = {name: measure(judged_pairs, p) for name, p in judged.items()}
    found[kind] = {name: x for name, x in values.items() if x is not None}
  return {kind: values for kind, values in found.items() if values}


def intransitive_triples(
  judged_pairs: Sequence[tuple[int, int]], preference: np.ndarray
) -> float | None:
  """Returns the share of triples of completions that form a cycle.

    y_i > y_k > y_m > y_i, where y > z means P(y > z | x) > 1/2

  Triples with a tie do not count. Of random tournaments, 1/4 are cycles.

  Args:
    judged_pairs: J pairs (i, k), i < k, of M completions of a prompt.
    preference: [N, J] P(y_i > y_k | x).

  Returns:
    The share of all triples of all prompts, or None if none can be decided.
  """
  columns = {pair: n for n, pair in enumerate(judged_pairs)}
  cycles = decided = 0
  for i, k, m in itertools.combinations(range(_count(judged_pairs)), 3):
    sides = [(i, k), (k, m), (i, m)]
    if not all(side in columns for side in sides):
      continue
    one, two, both = (preference[:, columns[side]] - 0.5 for side in sides)
    clear = one * two * both != 0
    clear &= np.isfinite(one * two * both)
    decided += clear.sum()
    cycles += (clear & (one * two > 0) & (one * both < 0)).sum()
  return float(cycles / decided) if decided else None


def bradley_terry_kl(
  judged_pairs: Sequence[tuple[int, int]], preference: np.ndarray
) -> float | None:
  """Returns the divergence from the nearest Bradley-Terry model.

    min over r of mean over pairs of KL(P_ik || sigmoid(r_i - r_k)), in nats

  with rewards r of their own for each prompt. It is 0 for preferences that a
  reward explains and log 2 for a certain cycle of three completions. Rewards
  stay within 30 nats, so a certain order of 12 completions is 7e-4 away.

  Args:
    judged_pairs: J pairs (i, k), i < k, of M completions of a prompt.
    preference: [N, J] P(y_i > y_k | x).

  Returns:
    The mean over prompts without a missing answer, or None if fewer than three
    completions were all compared.
  """
  count = _count(judged_pairs)
  p = preference[np.isfinite(preference).all(axis=-1)]
  every = set(itertools.combinations(range(count), 2))
  if count < 3 or not len(p) or every - set(judged_pairs):
    return None
  ones, others = np.transpose(judged_pairs)
  into = np.zeros((len(judged_pairs), count))
  into[np.arange(len(into)), ones] = 1
  into[np.arange(len(into)), others] -= 1

  def cross_entropy(flat):
    scores = flat.reshape(len(p), count) @ into.T
    value = np.logaddexp(0, scores) - p * scores
    gradient = (special.expit(scores) - p) @ into
    return value.mean(), gradient.ravel() / p.size

  best = optimize.minimize(
    cross_entropy,
    np.zeros(len(p) * count),
    jac=True,
    method='L-BFGS-B',
    bounds=[(-30, 30)] * (len(p) * count),
    options={'ftol': 1e-10, 'gtol': 1e-12},
  )
  entropy = special.entr(p) + special.entr(1 - p)
  return max(0.0, float(best.fun - entropy.mean()))


def _count(judged_pairs: Sequence[tuple[int, int]]) -> int:
  return 1 + max((k for _, k in judged_pairs), default=0)
