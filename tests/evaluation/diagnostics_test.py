"""Checks diagnostics by hand and on degenerate win rates."""

import numpy as np

from ipo_md.evaluation import diagnostics


def test_distinct_by_hand():
  found = diagnostics.distinct(
    {'a': ['the cat the cat', 'the dog'], 'b': ['x']}
  )
  assert found['distinct_1']['a'] == 3 / 6
  assert found['distinct_2']['a'] == 3 / 4
  assert found['distinct_3'] == {'a': 1.0, 'b': None}


def test_nash_averaging_of_degenerate_win_rates():
  for rates in (
    np.full((5, 5), 0.5),
    np.array([[0.5, 1.0], [0.0, 0.5]]),
    np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]]),
  ):
    names = list('abcde')[: len(rates)]
    found = diagnostics.nash_averaging(names, {'judge': rates.tolist()})[
      'judge'
    ]
    weights = np.array(list(found['weights'].values()))
    assert abs(weights.sum() - 1) < 1e-9
    assert max(found['skills'].values()) <= 0.5 + 1e-6
