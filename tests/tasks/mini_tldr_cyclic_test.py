"""Tests of the embedded task's cyclic preferences."""

import itertools

import numpy as np
import pytest
import seqio

from ipo_md.evaluation import transitivity
from tasks.mini_tldr import cyclic_truth
from tasks.mini_tldr import grammar
from tasks.mini_tldr import tasks
from tasks.mini_tldr import truth
from tasks.mini_tldr import writers
from tests.tasks import mini_tldr_test

POST = mini_tldr_test.POST  # facts: in denver, feel guilty, work as nurse
THOROUGH = 'in denver, feel guilty, work as nurse. should i quit my job?'
BRIEF = 'in denver, feel guilty.'
ASKING = 'should i quit my job?'


@pytest.mark.parametrize(
  ('summary', 'virtues', 'faults'),
  [
    (THOROUGH, (1, 1 / 2, 1), 0),
    (BRIEF, (2 / 3, 5 / 6, 0), 0),
    (ASKING, (0, 19 / 24, 1), 0),
    ('', (0, 1, 0), 0),
    ('should i move out?', (0, 5 / 6, 0), 0.75),
    ('in boston, in boston, please be kind, x.', (0, 2 / 3, 0), 3.5),
    (' '.join(['x'] * 40), (0, 0, 0), 0.75),
  ],
)
def test_virtues_and_faults_by_hand(summary, virtues, faults):
  assert cyclic_truth.virtues(POST, summary) == pytest.approx(virtues)
  assert cyclic_truth.faults(POST, summary) == faults
  (measured,) = cyclic_truth.measures([POST], [summary])
  assert measured['coverage'] == pytest.approx(virtues[0])
  assert measured['faults'] == faults


def test_a_circle_by_hand():
  """Coverage beats brevity, brevity beats style, and style beats coverage."""
  circle = (THOROUGH, BRIEF, ASKING)
  scores = [
    cyclic_truth.advantage(POST, circle[i], circle[(i + 1) % 3])
    for i in range(3)
  ]
  a, b, c = (np.array(cyclic_truth.virtues(POST, y)) for y in circle)
  expected = [8 * np.cross(*pair).sum() for pair in ((a, b), (b, c), (c, a))]
  np.testing.assert_allclose(scores, expected)
  assert min(scores) > 1


def test_faults_count_in_every_comparison():
  for right, wrong in (
    (BRIEF, 'in denver, feel bored.'),
    (BRIEF, 'in denver, denver guilty.'),
  ):
    assert cyclic_truth.preference(POST, right, wrong) > 0.6


def test_preferences_are_skew_symmetric():
  for index in range(200):
    post, y_1, y_2 = writers.compared('train', index)
    p = cyclic_truth.preference(post.text, y_1, y_2)
    assert 0 <= p <= 1
    assert p + cyclic_truth.preference(post.text, y_2, y_1) == pytest.approx(
      1, abs=1e-12
    )
    assert cyclic_truth.preference(post.text, y_1, y_1) == 0.5


def test_summaries_of_different_writers_form_cycles():
  """A seventh of the triples do; under the other ground truth none does."""
  pairs = list(itertools.combinations(range(5), 2))
  found = {truth: [], cyclic_truth: []}
  for index in range(300):
    post = grammar.post('validation', index)
    dice = grammar.Dice('cycles', index)
    texts = [writers.write(post, w, dice) for w in writers.COMPARED_WRITERS]
    for judge, rows in found.items():
      rows.append(
        [judge.preference(post.text, texts[i], texts[k]) for i, k in pairs]
      )
  share, zero = (
    transitivity.intransitive_triples(pairs, np.array(found[judge]))
    for judge in (cyclic_truth, truth)
  )
  assert 0.12 < share < 0.18
  assert zero == 0


def test_pairs_are_those_of_the_other_task():
  for name, judge in (('mini_tldr', truth), ('mini_tldr_cyclic', cyclic_truth)):
    dataset = seqio.get_mixture_or_task(f'{name}_pairs').get_dataset(
      {'inputs': 72, 'targets': 32}, split='validation', shuffle=False
    )
    for index, row in enumerate(dataset.take(5).as_numpy_iterator()):
      post, *summaries = writers.compared('validation', index)
      assert row['targets_pretokenized'].tolist() == [
        summary.encode() for summary in summaries
      ]
      assert row['preference'] == np.float32(
        judge.preference(post.text, *summaries)
      )


@pytest.mark.parametrize('name', ['mini_tldr', 'mini_tldr_cyclic'])
def test_scored_task(name):
  task = seqio.get_mixture_or_task(f'{name}_scored')
  dataset = task.get_dataset(
    {'inputs': 72, 'targets': 32}, split='test', shuffle=False
  )
  vocab = tasks.VOCABULARY
  for index, row in enumerate(dataset.take(10).as_numpy_iterator()):
    post, texts = writers.several('test', index, count=4)
    assert row['inputs_pretokenized'].decode() == post.text
    assert row['rewards'].shape == (4,) and row['targets'].shape[0] == 4
    for ids, text in zip(row['targets'], texts, strict=True):
      assert vocab.decode(ids[: np.sum(ids != 0) - 1].tolist()) == text
    if name == 'mini_tldr':
      expected = [truth.score(post.text, text).total for text in texts]
    else:
      expected = [
        np.mean([cyclic_truth.advantage(post.text, y, z) for z in texts])
        for y in texts
      ]
      assert sum(row['rewards']) == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(row['rewards'], expected, rtol=1e-5, atol=1e-6)
