"""Checks the numbers of results.json by hand."""

import numpy as np

from ipo_md.evaluation import results


def test_matrices_by_hand():
  judged = {'truth': np.array([[1, 0.5, 0], [1, 0.5, 1], [0, 0.5, 1.0]])}
  lengths = {n: np.array([i, 2 * i, 3]) for i, n in enumerate('abc')}
  found = results.matrices(list('abc'), results.pairs(3), judged, lengths)
  np.testing.assert_allclose(
    found['win_rate']['truth'],
    [[1 / 2, 2 / 3, 1 / 2], [1 / 3, 1 / 2, 2 / 3], [1 / 2, 1 / 3, 1 / 2]],
  )
  low, high = found['interval']['truth'][0][1]
  np.testing.assert_allclose(
    found['interval']['truth'][1][0], [1 - high, 1 - low]
  )
  assert low < 2 / 3 < high


def test_measures_by_hand():
  scores = {'a': [{'kept': 1}, {'kept': 2}], 'b': [{'kept': 2}, {'kept': 5}]}
  found = results.measures(['a', 'b'], scores)
  assert found['kept'] == {'a': 1.5, 'b': 3.5}
  assert found['paired_difference']['kept']['b'][0] == 2
