"""The score interval of a win rate or of any other share."""

import numpy as np
import numpy.typing as npt
from scipy import stats

CONFIDENCE = 0.95
Z = stats.norm.ppf((1 + CONFIDENCE) / 2)  # 1.96


def score_interval(
  wins: npt.ArrayLike, ties: npt.ArrayLike, count: npt.ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
  """Computes the 95 % score interval of a win rate in which a tie counts 1/2.

    (w - theta)^2 = z^2 (theta (1 - theta) - tau(theta) / 4) / n

  is solved for theta on both sides of w = (wins + ties / 2) / n. tau(theta) is
  the maximum-likelihood rate of ties when the win rate is theta. The interval
  is that of Tango (1998, Statistics in Medicine 17, 891) for the difference of
  paired proportions, 2 theta - 1.

  Without ties it is Wilson's interval, which SciPy has (`binomtest`), but for
  integers alone and one share at a time.

  Args:
    wins: [...] number of judgements for y_1. It need not be an integer.
    ties: [...] number of ties.
    count: [...] number of judgements, ties and defeats included.

  Returns:
    [...] lower ends and [...] upper ends.
  """
  wins, ties, count = np.broadcast_arrays(
    *(np.asarray(x, np.float64) for x in (wins, ties, count))
  )
  losses = count - wins - ties
  observed = (wins + ties / 2) / count

  def rejected(theta):
    # tau solves n t^2 - (2 ties + wins b + losses a) t + ties a b = 0, with
    # a = 2 theta and b = 2 (1 - theta). The smaller root keeps the rates of
    # wins and of losses at or above 0.
    a, b = 2 * theta, 2 * (1 - theta)
    linear = 2 * ties + wins * b + losses * a
    root = np.sqrt(np.maximum(linear**2 - 4 * count * ties * a * b, 0))
    tau = 2 * ties * a * b / np.maximum(linear + root, 1e-300)
    variance = np.maximum(theta * (1 - theta) - tau / 4, 0)
    return (observed - theta) ** 2 > Z**2 * variance / count

  def bisect(outside, inside):
    for _ in range(60):
      middle = (outside + inside) / 2
      reject = rejected(middle)
      outside = np.where(reject, middle, outside)
      inside = np.where(reject, inside, middle)
    return (outside + inside) / 2

  low = bisect(np.zeros_like(observed), observed)
  high = bisect(np.ones_like(observed), observed)
  return np.where(observed == 0, 0, low), np.where(observed == 1, 1, high)
