"""Tests of addition with an exact checker."""

import numpy as np
import pytest
import seqio

from ipo_md.data import dataset as dataset_lib
from ipo_md.data import prompt_format
from tasks import arithmetic


def test_no_problem_is_in_two_splits():
  found = [
    list(arithmetic.problems(s)) for s in ('train', 'validation', 'test')
  ]
  assert [len(pairs) for pairs in found] == [8745, 638, 617]
  assert len(set().union(*found)) == arithmetic.LIMIT**2


def test_about_half_of_the_training_targets_are_right():
  def rewards(split):
    rows = list(arithmetic._rows(split))
    prompts = [row['inputs'] for row in rows]
    return np.array(
      arithmetic.reward(prompts, [[row['targets']] for row in rows])
    )

  assert 0.48 < rewards('train').mean() < 0.52
  assert rewards('test').all() and rewards('validation').all()


@pytest.mark.parametrize(
  ('text', 'right'),
  [
    ('133', 1),
    (' 133 ', 1),
    ('132', 0),
    ('', 0),
    ('0133', 0),
    ('133.', 0),
    ('133 133', 0),
    ('1 33', 0),
  ],
)
def test_reward(text, right):
  assert arithmetic.reward(['47 + 86 =', '1 + 1 ='], [[text], ['2']]) == [
    [right],
    [1],
  ]


def test_another_prompt_is_refused():
  with pytest.raises(ValueError, match="'what' is not a problem of arithmetic"):
    arithmetic.reward(['what'], [['1']])


def test_task():
  dataset = dataset_lib.load(
    mixture_or_task_name='arithmetic',
    task_feature_lengths={'inputs': 10, 'targets': 4},
    split='test',
    prompt_format=prompt_format.PromptFormat(suffix=(1,)),
    vocabulary=seqio.ByteVocabulary(),
  )
  assert dataset.counts['prompts_cut'] == dataset.counts['targets_cut'] == 0
  batch = dataset.rows([(0, i) for i in range(20)])
  decode = seqio.ByteVocabulary().decode
  problems = list(arithmetic.problems('test'))[:20]
  for i, (a, b) in enumerate(problems):
    prompt = batch.completions.prompts
    ids = prompt.ids[i][prompt.mask[i]].tolist()
    assert decode(ids[:-1]) == f'{a} + {b} =' and ids[-1] == 1
    ids = batch.completions.completions.ids[i, 0]
    assert decode(ids[ids > 1].tolist()) == str(a + b)
