"""Tests of the rows that tokenisation rejects."""

import numpy as np
import pytest

from ipo_md.data import examples
from ipo_md.data import registry
from tests.data import hand_made


def test_split():
  with pytest.raises(ValueError, match="no split 'test'"):
    examples.tokenise(
      registry.find(hand_made.supervised()), split='test', feature_lengths={}
    )


@pytest.mark.parametrize(
  ('name', 'columns', 'match'),
  [
    (
      'empty_prompt',
      {'inputs': [[3], []], 'targets': [[4, 1], [4, 1]]},
      'Row 1 of task empty_prompt, split train has an empty prompt',
    ),
    (
      'empty_target',
      {'inputs': [[3], [3]], 'targets': [[4, 1], []]},
      'Row 1 .* has no completion',
    ),
    (
      'two_and_three',
      {'inputs': [[3], [3]], 'targets': [[[4], [5]], [[4], [5], [6]]]},
      'Row 1 .* has 3 targets where others have 2',
    ),
    (
      'bad_preference',
      {
        'inputs': [[3], [3]],
        'targets': [[[4], [5]]] * 2,
        'preference': [0.5, 1.5],
      },
      'Row 1 .* `preference` outside of 0 to 1',
    ),
    (
      'preference_nan',
      {'inputs': [[3]], 'targets': [[[4], [5]]], 'preference': [np.nan]},
      'Row 0 .* `preference` outside of 0 to 1',
    ),
    (
      'half_a_pair',
      {
        'inputs': [[3], [3]],
        'targets': [[[4], [5]], [[4], [0]]],
        'preference': [0.5, 1.0],
      },
      'Row 1 .* `preference` but not all of its completions',
    ),
    (
      'bad_reward',
      {
        'inputs': [[3], [3]],
        'targets': [[[4], [5]]] * 2,
        'rewards': [[0.0, 1.0], [np.nan, 1.0]],
      },
      'Row 1 .* `rewards` that is not a number',
    ),
    (
      'lone_reward',
      {
        'inputs': [[3], [3]],
        'targets': [[[4], [5]], [[0], [5]]],
        'rewards': [[0.0, 1.0], [0.0, 1.0]],
      },
      'Row 1 .* `rewards` and one completion',
    ),
    (
      'missing_reward',
      {'inputs': [[3]], 'targets': [[[4], [5]]], 'rewards': [[1.0]]},
      '1 values a row for 2 completions',
    ),
  ],
)
def test_rows(name, columns, match):
  rank = np.ndim(columns['targets'][0])
  hand_made.add_task(name, columns, targets_rank=rank)
  with pytest.raises(ValueError, match=match):
    hand_made.load(name)
