"""A judge of mini_tldr that cannot see the post: how far form alone gets one.

  P(y_1 > y_2) = sigmoid(w . (f(y_1) - f(y_2)))

with f what a reader of the summary alone can count. A learned judge that is no
better than this one has not learnt to look a fact up.
"""

from collections.abc import Sequence

import numpy as np

from tasks import mini_tldr_truth as truth


def features(summary: str) -> list[float]:
  """Facts stated, questions, and what is wrong with the form."""
  read = truth.read_summary(summary)
  return [
    len(read.facts),
    read.repeated,
    read.fillers,
    read.malformed,
    bool(read.questions),
    max(0, len(read.questions) - 1),
    read.words,
  ]


def fit(
  pairs: Sequence[tuple[str, str]],
  preferences: Sequence[float],
  *,
  steps: int = 300,
) -> np.ndarray:
  """Logistic regression by gradient descent on standardised differences.

  Args:
    pairs: summaries (y_1, y_2).
    preferences: P(y_1 > y_2) of each pair.
    steps: of gradient descent; the problem is convex and small.

  Returns:
    w, one weight for each feature.
  """
  first, second = zip(*pairs, strict=True)
  differences = _matrix(first) - _matrix(second)
  scale = differences.std(axis=0) + 1e-9
  differences /= scale
  weights = np.zeros(differences.shape[1])
  for _ in range(steps):
    predicted = 1 / (1 + np.exp(-differences @ weights))
    error = predicted - np.asarray(preferences)
    weights -= differences.T @ error / len(differences) + 1e-4 * weights
  return weights / scale


def preference(weights: np.ndarray, y_1: str, y_2: str) -> float:
  """P(y_1 > y_2)."""
  difference = np.subtract(features(y_1), features(y_2)) @ weights
  return float(1 / (1 + np.exp(-difference)))


def _matrix(summaries: Sequence[str]) -> np.ndarray:
  return np.array([features(s) for s in summaries], np.float64)
