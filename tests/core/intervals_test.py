"""Checks the score interval by simulation, by brute force and against SciPy."""

import numpy as np
import pytest
from scipy import optimize
from scipy import stats

from ipo_md.core import intervals

REPETITIONS = 2000


@pytest.mark.parametrize('tied', [0, 0.5, 0.9])
@pytest.mark.parametrize('count', [256, 1024, 2000])
@pytest.mark.parametrize('rate', [0.5, 0.8, 0.99])
def test_score_interval_covers(rate, count, tied):
  ties = tied * 2 * min(rate, 1 - rate)
  rng = np.random.default_rng(1)
  drawn = rng.multinomial(
    count, [rate - ties / 2, ties, 1 - rate - ties / 2], size=REPETITIONS
  )
  low, high = intervals.score_interval(drawn[:, 0], drawn[:, 1], count)
  coverage = np.mean((low <= rate) & (rate <= high))
  assert coverage >= 0.93
  if rate < 0.99:
    assert coverage <= 0.975


@pytest.mark.parametrize('wins, count', [(0, 5), (3, 7), (128, 256), (20, 20)])
def test_score_interval_without_ties_is_wilson(wins, count):
  wilson = stats.binomtest(wins, count).proportion_ci(method='wilson')
  found = intervals.score_interval(wins, 0, count)
  np.testing.assert_allclose(found, [wilson.low, wilson.high], atol=1e-12)


def test_score_interval_with_ties_by_brute_force():
  wins, ties, losses = 14, 5, 6
  count = wins + ties + losses
  observed = (wins + ties / 2) / count

  def score(theta):
    def cost(t):
      rates = np.array([theta - t / 2, t, 1 - theta - t / 2])
      return -np.dot([wins, ties, losses], np.log(rates))

    largest = 2 * min(theta, 1 - theta)
    t = optimize.minimize_scalar(
      cost,
      bounds=(1e-9, largest - 1e-9),
      method='bounded',
      options={'xatol': 1e-12},
    ).x
    spread = np.sqrt((theta * (1 - theta) - t / 4) / count)
    return abs(observed - theta) / spread - stats.norm.ppf(0.975)

  low = optimize.brentq(score, 0.01, observed)
  high = optimize.brentq(score, observed, 0.99)
  found = intervals.score_interval(wins, ties, count)
  np.testing.assert_allclose(found, [low, high], atol=1e-6)
