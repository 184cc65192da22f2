"""Tests measures of cyclic preferences on preferences that are known."""

import itertools

import numpy as np
import pytest
from scipy import special

from ipo_md.evaluation import transitivity

THREE = [(0, 1), (0, 2), (1, 2)]
CYCLE = [1.0, 0.0, 1.0]  # 0 > 1 > 2 > 0
ORDER = [1.0, 1.0, 1.0]


def bradley_terry(rewards):
  pairs = list(itertools.combinations(range(rewards.shape[-1]), 2))
  i, k = np.transpose(pairs)
  return pairs, special.expit(rewards[:, i] - rewards[:, k])


@pytest.mark.parametrize(
  ('rows', 'share'),
  [
    ([CYCLE], 1.0),
    ([[0.0, 1.0, 0.0]], 1.0),  # the other way around
    ([ORDER], 0.0),
    ([CYCLE, ORDER, ORDER, [0.6, 0.7, 0.4]], 0.25),
    ([CYCLE, [1.0, 0.5, 1.0], [1.0, np.nan, 1.0]], 1.0),
    ([[0.5, 0.5, 0.5]], None),
  ],
)
def test_triples_by_hand(rows, share):
  assert transitivity.intransitive_triples(THREE, np.array(rows)) == share


def test_a_quarter_of_random_tournaments_are_cycles():
  p = np.random.default_rng(0).integers(2, size=(20_000, 3)).astype(float)
  share = transitivity.intransitive_triples(THREE, p)
  np.testing.assert_allclose(share, 0.25, atol=0.02)


@pytest.mark.parametrize('count', [3, 5])
def test_a_reward_is_at_distance_zero(count):
  rewards = np.random.default_rng(1).normal(size=(50, count), scale=2)
  pairs, p = bradley_terry(rewards)
  assert transitivity.bradley_terry_kl(pairs, p) < 1e-6
  assert transitivity.intransitive_triples(pairs, p) == 0
  certain = (p > 0.5).astype(float)
  assert transitivity.bradley_terry_kl(pairs, certain) < 1e-3


def test_a_cycle_is_at_the_distance_of_its_answers_from_a_half():
  """By symmetry the nearest model of a cycle is indifferent."""
  for sure in (1.0, 0.9, 0.6):
    p = np.array([[sure, 1 - sure, sure]])
    expected = np.log(2) - special.entr(sure) - special.entr(1 - sure)
    found = transitivity.bradley_terry_kl(THREE, p)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_nearest_model_is_that_of_a_grid():
  p = np.array([[0.9, 0.3, 0.6]])
  grid = np.linspace(-3, 3, 601)
  a, b = np.meshgrid(grid, grid, indexing='ij')  # r_0 - r_1, r_1 - r_2
  near = [special.expit(a), special.expit(a + b), special.expit(b)]
  kl = sum(
    special.rel_entr(x, q) + special.rel_entr(1 - x, 1 - q)
    for x, q in zip(p[0], near, strict=True)
  )
  np.testing.assert_allclose(
    transitivity.bradley_terry_kl(THREE, p), kl.min() / 3, atol=1e-5
  )


def test_what_was_not_compared_is_left_out():
  p = np.array([CYCLE])
  judged = {'truth': p, 'silent': p * np.nan}
  found = transitivity.table(THREE, judged)
  assert found['intransitive_triples'] == {'truth': 1.0}
  assert found['bradley_terry_kl'].keys() == {'truth'}
  baseline = transitivity.table([(0, 1), (0, 2)], {'truth': p[:, :2]})
  assert baseline == {}
  assert transitivity.table([(0, 1)], {'truth': p[:, :1]}) == {}
