"""Weighted sums of the rewards of several judges."""

import math

import numpy as np
import pytest

from ipo_md import judges

GIVEN = judges.Samples(
  tokens=None,
  vocabulary=None,
  prompts=['one', 'two'],
  texts=[['a b', 'ccc'], ['d', '']],
)


def of(count):
  return judges.RewardFunction(
    lambda prompts, completions: [
      [count(t) for t in row] for row in completions
    ]
  )


PARTS = {'length': of(len), 'spaces': of(lambda text: text.count(' '))}


def test_rewards_are_added_by_weight():
  judge = judges.WeightedRewards(
    judges=PARTS, weights={'length': 0.5, 'spaces': -2}
  )
  np.testing.assert_allclose(judge.rewards(GIVEN), [[-0.5, 1.5], [0.5, 0]])
  found = judges.in_both_orders(judge, GIVEN, [(0, 1)])[:, 0]
  np.testing.assert_allclose(found[:, 0], 1 / (1 + np.exp([2, -0.5])))
  np.testing.assert_array_equal(found[:, 0], found[:, 1])


def test_scales_bring_rewards_to_one_unit():
  judge = judges.WeightedRewards(
    judges=PARTS,
    weights={'length': 1.0, 'spaces': 1.0},
    scales={'length': (2.0, 4.0)},
  )
  np.testing.assert_allclose(
    judge.rewards(GIVEN), [[1.25, 0.25], [-0.25, -0.5]]
  )


def test_a_sum_may_be_part_of_a_sum():
  inner = judges.WeightedRewards(
    judges=PARTS, weights={'length': 1.0, 'spaces': 0.0}
  )
  outer = judges.WeightedRewards(judges={'inner': inner}, weights={'inner': 3})
  np.testing.assert_allclose(
    outer.rewards(GIVEN), 3 * PARTS['length'].rewards(GIVEN)
  )


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'weights': {'length': 1.0}}, "REWARD_JUDGES.*'spaces'.*REWARD_WEIGHTS"),
    ({'judges': {}, 'weights': {}}, 'at least one'),
    ({'scales': {'size': (0.0, 1.0)}}, r"REWARD_SCALES names \['size'\]"),
    ({'scales': {'length': (0.0, 0.0)}}, "REWARD_SCALES.*'length'.*above 0"),
    ({'scales': {'length': 2.0}}, 'a mean and a standard'),
    ({'scales': {'length': (0.0, math.inf)}}, 'a mean and a standard'),
    ({'weights': {'length': math.nan, 'spaces': 1}}, 'REWARD_WEIGHTS.*nan'),
    ({'weights': {'length': '1', 'spaces': 1}}, "'1' must be a finite"),
    ({'weights': {'length': True, 'spaces': 1}}, 'True must be a finite'),
    (
      {
        'judges': PARTS
        | {'spaces': judges.TextJudge(lambda prompt, y_1, y_2: 0.5)}
      },
      r"REWARD_JUDGES\['spaces'\] gives no rewards",
    ),
  ],
)
def test_settings_that_contradict_each_other_raise(changes, message):
  arguments = {'judges': PARTS, 'weights': {'length': 1.0, 'spaces': 1.0}}
  with pytest.raises(ValueError, match=message):
    judges.WeightedRewards(**arguments | changes)
