"""Checks estimates by hand, by simulation and against SciPy."""

import numpy as np
import pytest
from scipy import special
from scipy import stats

from ipo_md.evaluation import statistics

REPETITIONS = 2000


def mirrored(estimate):
  """Returns the value and the interval as seen from the other side."""
  return [1 - estimate.value, 1 - estimate.high, 1 - estimate.low]


def test_win_rate_counts_a_tie_half():
  estimate = statistics.win_rate(np.array([0.9, 0.5, 0.51, 0.2]))
  assert estimate.value == 2.5 / 4
  assert estimate.low < estimate.value < estimate.high
  assert statistics.win_rate(np.full(64, 0.5)).value == 0.5


def test_mirror():
  rng = np.random.default_rng(0)
  preference = np.round(rng.beta(2, 1, 300), 1)
  length = rng.normal(0.3, 2, 300)
  for estimate in (statistics.win_rate, statistics.mean_preference):
    np.testing.assert_allclose(
      estimate(1 - preference), mirrored(estimate(preference)), atol=1e-9
    )
  np.testing.assert_allclose(
    statistics.length_controlled_win_rate(1 - preference, -length),
    mirrored(statistics.length_controlled_win_rate(preference, length)),
    atol=1e-9,
  )


@pytest.mark.parametrize('shape', [(1, 1), (8, 2), (3, 0.05)])
def test_mean_preference_covers(shape):
  rng = np.random.default_rng(2)
  draws = rng.beta(*shape, size=(REPETITIONS, 256))
  ends = np.array([statistics.mean_preference(row)[1:] for row in draws])
  truth = shape[0] / sum(shape)
  coverage = np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1]))
  assert 0.93 <= coverage <= 0.975


def test_mean_preference_agrees_with_bca_bootstrap():
  preference = np.random.default_rng(3).beta(3, 0.2, 100)
  bootstrap = stats.bootstrap(
    (preference,), np.mean, n_resamples=40000, method='BCa', rng=0
  ).confidence_interval
  estimate = statistics.mean_preference(preference)
  width = estimate.high - estimate.low
  np.testing.assert_allclose(
    estimate[1:], [bootstrap.low, bootstrap.high], atol=0.02 * width
  )
  assert statistics.mean_preference(np.full(9, 0.5)) == (0.5, 0.5, 0.5)


def test_t_interval_and_paired_difference_match_scipy():
  rng = np.random.default_rng(4)
  first, second = rng.normal(0.3, 1, 40), rng.normal(0, 1, 40)
  expected = stats.ttest_rel(first, second).confidence_interval()
  found = statistics.paired_difference(first, second)
  np.testing.assert_allclose(found[1:], [expected.low, expected.high])
  np.testing.assert_allclose(found.value, np.mean(first - second))
  assert statistics.t_interval([2.0]) == (2.0, -np.inf, np.inf)
  with pytest.raises(ValueError, match='same prompts'):
    statistics.paired_difference(first, second[1:])


def test_length_control_recovers_the_rate_at_equal_length():
  rng = np.random.default_rng(5)
  length = rng.normal(3, 4, 20000)
  wins = rng.random(20000) < special.expit(0.4 + 0.5 * length)
  estimate = statistics.length_controlled_win_rate(wins, length)
  assert estimate.low < special.expit(0.4) < estimate.high
  assert estimate.high - estimate.low < 0.03
  assert statistics.win_rate(wins).value > 0.75


@pytest.mark.parametrize('rate', [0.5, 0.8])
@pytest.mark.parametrize('tied', [0.0, 0.3, 0.9])
@pytest.mark.parametrize('near', [False, True])
def test_length_control_covers_with_ties(rate, tied, near):
  """Ties lie anywhere, or where the lengths are nearly the same."""
  rng = np.random.default_rng(6)
  covered = 0
  for _ in range(500):
    length = rng.normal(0, 10, 200).round()
    rates = special.expit(special.logit(rate) + length / 20)
    ties = tied * 2 * np.minimum(rates, 1 - rates)
    if near:
      ties *= np.exp(-((length / 8) ** 2))
    drawn = rng.random(200)
    wins, losses = drawn < rates - ties / 2, drawn >= rates + ties / 2
    preference = 0.5 + 0.5 * wins - 0.5 * losses
    found = statistics.length_controlled_win_rate(preference, length)
    covered += found.low <= rate <= found.high
  assert 0.925 <= covered / 500 <= 0.97


def test_length_control_of_ties_alone_is_as_wide_as_the_score_interval():
  ties, length = np.full(200, 0.5), np.arange(200) - 100
  found = statistics.length_controlled_win_rate(ties, length)
  score = statistics.win_rate(ties)
  np.testing.assert_allclose(found, score, atol=3e-4)


def test_length_control_without_ties_is_walds():
  rng = np.random.default_rng(7)
  length, wins = rng.normal(0, 1, 50), rng.random(50) < 0.7
  inputs = np.stack([np.ones(50), length / np.sqrt(np.mean(length**2))], 1)
  coefs, covariance = statistics.firth_logistic(inputs, wins.astype(float))
  found = statistics.length_controlled_win_rate(wins, length)
  half = 1.959964 * np.sqrt(covariance[0, 0])
  np.testing.assert_allclose(
    special.logit(found), coefs[0] + np.array([0, -half, half]), atol=1e-6
  )


def test_length_control_survives_separation():
  length = np.arange(-20, 20)
  by_length = statistics.length_controlled_win_rate(length >= 0, length)
  assert by_length.low < 0.5 < by_length.high
  always = statistics.length_controlled_win_rate(np.ones(40), length)
  assert 0.9 < always.value < 1
  assert 0.5 < always.low < always.high <= 1
  wins = np.arange(40) % 4 > 0
  equal = statistics.length_controlled_win_rate(wins, np.zeros(40))
  np.testing.assert_allclose(equal.value, 30.5 / 41, atol=1e-9)  # By Firth.
  assert statistics.length_controlled_win_rate(wins, np.full(40, 2)) is None


def test_agreement_and_order_consistency():
  first = np.array([0.9, 0.8, 0.1, 0.5])
  second = np.array([0.6, 0.3, 0.2, 0.9])
  assert statistics.agreement(first, second).value == 2.5 / 4
  assert statistics.order_consistency(first, second).value == 2.5 / 4
  assert statistics.agreement(first, 1 - first).value == 0.5 / 4


@pytest.mark.parametrize('bad', [[], [0.2, 1.2], [np.nan]])
def test_bad_judgements(bad):
  for estimate in (statistics.win_rate, statistics.mean_preference):
    with pytest.raises(ValueError, match='empty|probability'):
      estimate(bad)
