"""Tests of the rows and the checks of a data set."""

import numpy as np
import pytest
import seqio

from ipo_md.core import types
from ipo_md.data import dataset as dataset_lib
from ipo_md.data import prompt_format as prompt_format_lib
from tests.data import hand_made


def test_supervised():
  dataset = hand_made.load(hand_made.supervised())
  batch = dataset.rows([(0, 0), (0, 5), (0, 3)])
  np.testing.assert_array_equal(
    batch.completions.prompts.ids,
    [
      [2, 10, 1, 0, 0, 0],
      [2, 15, 15, 15, 15, 1],  # 6 tokens, of which 4 fit
      [2, 13, 13, 13, 13, 1],
    ],
  )
  np.testing.assert_array_equal(
    batch.completions.prompts.mask.sum(-1), [3, 6, 6]
  )
  np.testing.assert_array_equal(
    batch.completions.completions.ids[:, 0],
    [[20, 21, 0, 0], [20, 21, 0, 0], [20, 21, 22, 24]],
  )
  np.testing.assert_array_equal(
    batch.completions.completions.mask[:, 0].sum(-1), [2, 2, 4]
  )
  assert batch.completion_mask.tolist() == [[True]] * 3
  assert batch.preference is None
  assert batch.rewards is None


def test_a_lone_target_keeps_its_last_token():
  batch = hand_made.load(hand_made.supervised()).rows([(0, 4)])
  # 20 21 22 23 24 1 in four tokens
  np.testing.assert_array_equal(
    batch.completions.completions.ids[0, 0], [20, 21, 22, 1]
  )


def test_counts():
  lengths = [1 + i % 6 for i in range(40)]
  assert hand_made.load(hand_made.supervised()).counts == {
    'examples': 40,
    'prompts_cut': sum(n > 4 for n in lengths),
    'targets_cut': sum(2 + i % 5 > 4 for i in range(40)),
    'completions_missing': 0,
    'completions_identical': 0,
    'tokens_unknown': 0,
  }


def test_completions_that_are_the_same_as_cut_are_counted():
  name = hand_made.add_task(
    'identical',
    {
      'inputs': [[5]] * 6,
      'targets': [
        [[9, 1], [9, 1]],
        [[9, 1], [8, 1]],
        [[9, 9, 9, 9, 1], [9, 9, 9, 9, 8]],  # the same four tokens
        [[9, 9, 9, 7, 1], [9, 9, 9, 9, 1]],
        [[9, 9, 1], [9, 9, 9]],
        [[1, -1], [1, -1]],
      ],
    },
    targets_rank=2,
  )
  assert hand_made.load(name).counts['completions_identical'] == 3


def test_pairs():
  dataset = hand_made.load(hand_made.completions_of_three())
  batch = dataset.rows([(0, 0), (0, 1), (0, 2)])
  np.testing.assert_array_equal(
    batch.completions.completions.ids,
    [
      [[9, 1, 0, 0], [9, 9, 9, 9], [0, 0, 0, 0]],
      [[4, 4, 1, 0], [0, 0, 0, 0], [2, 1, 0, 0]],
      [[0, 0, 0, 0], [3, 1, 0, 0], [3, 1, 0, 0]],
    ],
  )
  np.testing.assert_array_equal(
    batch.completion_mask,
    [[True, True, False], [True, False, True], [False, True, True]],
  )
  assert batch.preference is None
  np.testing.assert_array_equal(
    batch.rewards, [[1, 2, 0], [3, 0, 5], [0, 4, 6]]
  )
  assert dataset.counts['completions_missing'] == 3
  assert dataset.counts['targets_cut'] == 1


def test_prompts_only():
  tokens = hand_made.load(
    hand_made.completions_of_three(), prompts_only=True
  ).rows([(0, 1)])
  assert isinstance(tokens, types.Tokens)
  np.testing.assert_array_equal(tokens.ids, [[2, 7, 1, 0, 0, 0]])


@pytest.mark.parametrize(
  ('lengths', 'match'),
  [
    ({'inputs': 6}, "length of at least 1 for 'targets'"),
    ({'inputs': 6, 'targets': 0}, "length of at least 1 for 'targets'"),
    ({'inputs': 2, 'targets': 4}, 'no room for a prompt'),
    ({'inputs': 6, 'targets': 4, 'input': 3}, "names 'input'"),
  ],
)
def test_lengths(lengths, match):
  with pytest.raises(ValueError, match=match):
    dataset_lib.load(
      mixture_or_task_name=hand_made.supervised(),
      task_feature_lengths=lengths,
      split='train',
      prompt_format=hand_made.FORMAT,
    )


def test_targets_asked_of_bare_prompts():
  name = hand_made.add_task('bare', {'inputs': [[3], [4]]})
  with pytest.raises(ValueError, match="no feature 'targets'"):
    hand_made.load(name)


def test_vocabulary():
  dataset = hand_made.load(hand_made.supervised())
  dataset_lib.check_vocabulary(dataset, 259)
  with pytest.raises(ValueError, match='259 ids and the model 256'):
    dataset_lib.check_vocabulary(dataset, 256)
  outside = prompt_format_lib.PromptFormat(suffix=(300,))
  with pytest.raises(ValueError, match='outside of the vocabulary'):
    dataset_lib.check_vocabulary(
      hand_made.load(hand_made.supervised(), prompt_format=outside), 1000
    )


class _ZeroEnds(seqio.ByteVocabulary):
  """A vocabulary whose EOS has the id 0."""

  @property
  def eos_id(self):
    return 0


def test_eos_of_id_0():
  """Padding is -1, so that EOS stays and an empty completion is one."""
  name = hand_made.add_task(
    'zero_ends',
    {
      'inputs': [[5], [6], [7]],
      'targets': [
        [[9, 8, 0], [9, 0, -1]],
        [[0, -1, -1], [-1, -1, -1]],
        [[9, 9, 9], [4, 0, -1]],
      ],
    },
    targets_rank=2,
  )
  dataset = hand_made.load(name, vocabulary=_ZeroEnds())
  batch = dataset.rows([(0, 0), (0, 1), (0, 2)])
  np.testing.assert_array_equal(
    batch.completions.completions.mask.sum(-1), [[3, 2], [1, 0], [3, 2]]
  )
  assert batch.completion_mask.tolist() == [
    [True, True],
    [True, False],
    [True, True],
  ]
  assert dataset.counts['completions_missing'] == 1


def test_padding_that_could_be_eos_is_refused():
  name = hand_made.add_task(
    'zero_padded',
    {
      'inputs': [[5], [6]],
      'targets': [[[9, 0], [8, 0]], [[9, 0, 0], [9, 8, 7]]],
    },
    targets_rank=2,
  )
  with pytest.raises(ValueError, match='Row 1 .*padded with 0, which is EOS'):
    hand_made.load(name, vocabulary=_ZeroEnds())
