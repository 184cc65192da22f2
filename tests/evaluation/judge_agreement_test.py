"""Checks how judges are measured on labelled pairs, by hand and in a run."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipo_md.checkpoints import manager
from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.data import dataset as dataset_lib
from ipo_md.data import prompt_format
from ipo_md.evaluation import judge_accuracy
from ipo_md.evaluation import judge_agreement
from ipo_md.evaluation import judge_measures
from ipo_md.judges import comparison
from ipo_md.judges import host
from ipo_md.judges import template as template_lib
from ipo_md.models import model as model_lib
from ipo_md.models import t5
from tasks.mini_tldr import tasks
from tasks.mini_tldr import truth as truth_lib


def test_calibration_by_hand():
  #                 right  wrong  right  a tie  truth ties
  judged = np.array([0.94, 0.06, 0.07, 0.5, 0.94])
  truth = np.array([1.0, 1.0, 0.0, 1.0, 0.5])
  found = judge_measures.calibration(judged, truth)
  first, last = found['bins']
  assert first == {'confidence': 0.5, 'accuracy': 0.5, 'count': 1}
  assert last['count'] == 4
  assert last['accuracy'] == pytest.approx(2.5 / 4)
  assert last['confidence'] == pytest.approx((0.94 * 3 + 0.93) / 4)
  gap = last['confidence'] - last['accuracy']
  assert found['ece'] == pytest.approx(4 / 5 * gap)


def test_calibration_of_a_calibrated_judge():
  """Draws the labels from its answers, so accuracy equals confidence."""
  rng = np.random.default_rng(0)
  judged = rng.uniform(size=200_000)
  truth = (rng.uniform(size=judged.size) < judged).astype(float)
  found = judge_measures.calibration(judged, truth)
  assert len(found['bins']) == 10
  for b in found['bins']:
    assert abs(b['accuracy'] - b['confidence']) < 0.015
  assert found['ece'] < 0.01
  assert judge_measures.calibration(1 - judged, 1 - truth)[
    'ece'
  ] == pytest.approx(found['ece'])
  certain = judge_measures.calibration((judged > 0.5).astype(float), truth)
  assert certain['bins'][0]['confidence'] == 1
  assert certain['ece'] == pytest.approx(0.25, abs=0.01)


def test_a_judge_of_length_is_right_if_the_better_is_longer():
  rng = np.random.default_rng(0)
  longer = rng.integers(-20, 21, 1000)
  truth = rng.choice([0.0, 0.5, 1.0], 1000)
  judged = (1 + np.sign(longer)) / 2
  bins = judge_measures.by_length(judged, truth, longer)
  assert sum(b['count'] for b in bins) == np.sum(truth != 0.5)
  assert len(bins) == 5
  for b in bins:
    assert b['low'] <= b['high']
    if b['low'] > 0 or b['high'] < 0:
      assert b['accuracy'] == (b['low'] > 0)
  # The same pairs, swapped, give the same bins.
  assert bins == judge_measures.by_length(1 - judged, 1 - truth, -longer)
  ties = judge_measures.by_length(judged, np.full(1000, 0.5), longer)
  assert ties == []
  equal = judge_measures.by_length(judged, truth, np.zeros(1000, int))
  assert [b['low'] for b in equal] == [0]


def test_order_consistency():
  both = np.array([[0.9, 0.8], [0.9, 0.2], [0.5, 0.9], [0.1, 0.2]])
  found = judge_measures.compared(
    {'judge': both}, np.array([1, 1, 1, 0]), np.arange(4)
  )
  share, low, high, count = found['order_consistency']['judge']
  assert (share, count) == (2.5 / 4, 4)
  assert low < share < high
  # (0.9 + 0.2) / 2 > 1/2, so averaged over both orders all four are right.
  assert found['agreement']['judge'][0] == 1


def always(first, second, count=64):
  """Answers of a judge that are the same for all pairs."""
  return np.tile([float(first), float(second)], (count, 1))


@pytest.mark.parametrize(
  ('judged', 'said'),
  [
    (
      always(1, 0),
      'does not judge: it names the completion shown first in 100 %',
    ),
    (
      always(0, 1),
      'does not judge: it names the completion shown second in 100',
    ),
    (always(0.8, 0.2), 'does not judge'),
    (always(0.7, 0.4), 'judges by the size of its probabilities alone'),
    (always(0.5, 0.5), 'does not judge: it names no winner in any of 64 pairs'),
    (always(np.nan, np.nan), 'does not judge: it names no winner'),
    # Ties, as of equal completions, hide nothing.
    (np.concatenate([always(1, 0), always(0.5, 0.5)]), 'does not judge'),
    (np.concatenate([always(1, 0), always(1, 1, 9)]), 'hardly judges'),
    (np.stack([always(1, 0), always(1, 0)], axis=1), 'does not judge'),
    (always(1, 1), None),
    (np.concatenate([always(1, 0), always(1, 1)]), None),
    (always(1, 0, 2), None),
    (np.zeros((0, 2)), None),
  ],
)
def test_a_judge_that_does_not_judge_is_said_to(judged, said):
  warning = judge_measures.warning(judged)
  assert (warning is None) == (said is None)
  if said is not None:
    assert said in warning
    assert judge_measures.warnings_of({'a': judged}) == {'a': warning}
  else:
    assert judge_measures.warnings_of({'a': judged}) == {}


def test_the_warning_reaches_the_command_line_and_the_tables():
  both = {'rater': always(1, 0, 8), 'good': always(1, 1, 8)}
  found = judge_measures.compared(both, np.ones(8), np.arange(8))
  assert found['judge_warnings'].keys() == {'rater'}
  assert 'WARNING: rater does not judge' in judge_accuracy.describe(found)
  assert 'WARNING: good' not in judge_accuracy.describe(found)
  fine = judge_measures.compared(
    {'good': both['good']}, np.ones(8), np.arange(8)
  )
  tables = judge_agreement.by_kind({'a': found, 'b': fine})
  assert tables['judge_warnings'].keys() == {'a'}
  assert 'judge_warnings' not in judge_agreement.by_kind({'b': fine})
  (line,) = judge_agreement.warning_lines(tables)
  assert line.startswith('rater does not judge')
  assert line.endswith('(a)')


def test_blind_judge_sees_its_features_alone():
  rng = np.random.default_rng(0)
  words = rng.integers(0, 9, (200, 2))
  kept = rng.integers(0, 3, (200, 2))
  scores = [
    [{'words': w, 'kept': k} for w, k in zip(*row, strict=True)]
    for row in zip(words, kept, strict=True)
  ]
  by_words = (1 + np.sign(words[:, 1] - words[:, 0])) / 2
  by_kept = (1 + np.sign(kept[:, 0] - kept[:, 1])) / 2
  seen = judge_measures.blind_preference(scores, by_words, ['words'])
  decided = by_words != 0.5
  assert np.all((seen > 0.5)[decided] == (by_words > 0.5)[decided])
  unseen = judge_measures.blind_preference(scores, by_kept, ['words'])
  assert 0.3 < np.mean((unseen > 0.5) == (by_kept > 0.5)) < 0.65


MODEL = model_lib.Model(
  functools.partial(
    t5.T5,
    vocab_size=tasks.VOCABULARY.vocab_size,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_dim=16,
    mlp_activations=('gelu', 'linear'),
    logits_via_embedding=False,
    dropout_rate=0.0,
    scan=False,
  )
)


def dataset(name='mini_tldr_pairs'):
  return dataset_lib.load(
    mixture_or_task_name=name,
    task_feature_lengths={'inputs': 74, 'targets': 32},
    split='validation',
    prompt_format=prompt_format.PromptFormat(suffix=(1,)),
  )


@pytest.fixture(scope='module')
def comparator(tmp_path_factory):
  """Saves a random comparator, whose answers depend on the order."""
  path = str(tmp_path_factory.mktemp('judge'))
  params = MODEL.init(jax.random.key(0))
  state = types.TrainState(step=jnp.int32(1), params=params, opt_state=())
  with manager.open_manager(path, keep=manager.Keep()) as saved:
    manager.save(saved, state, tasks.VOCABULARY)
    manager.wait(saved)
  template = template_lib.Template(
    vocabulary=tasks.VOCABULARY,
    prompt='{text} summary 1 {first} summary 2 {second} better',
    length=144,
    prompt_format=prompt_format.PromptFormat(suffix=(1,)),
  )
  judge = functools.partial(
    comparison.comparator, model=MODEL, template=template, answers=('1', '2')
  )
  return params, judge, path


@pytest.mark.slow
def test_a_judge_alone(tmp_path, comparator, capsys):
  _, judge, path = comparator
  run = functools.partial(
    judge_accuracy.judge_accuracy,
    model_dir=str(tmp_path),
    mesh_shape=(1, -1, 1),
    judges={
      'comparator': host.LearnedJudge(
        judge=judge, model=MODEL, checkpoint_path=path, batch_size=8
      ),
      'truth': host.TextJudge(truth_lib.preference),
    },
    dataset=dataset,
    examples=20,
  )
  run()
  found = json.loads((tmp_path / 'results.json').read_text())
  assert found['pairs'] == 20
  for kind in ('agreement', 'calibration', 'by_length', 'order_consistency'):
    assert found[kind]['held_out_pairs'].keys() == {'comparator', 'truth'}
  # One of the pairs is a tie, which counts 1/2.
  assert found['agreement']['held_out_pairs']['truth'][0] == 19.5 / 20
  assert found['order_consistency']['held_out_pairs']['truth'][0] == 19.5 / 20
  assert found['calibration']['held_out_pairs']['truth']['ece'] == 0
  said = capsys.readouterr().out
  assert '20 pairs' in said
  assert 'labelled pairs: examples ' in said
  run()
  assert 'complete' in capsys.readouterr().out
  with pytest.raises(ValueError, match='mini_tldr_sft has no pairs'):
    run(
      model_dir=str(tmp_path / 'b'),
      dataset=functools.partial(dataset, 'mini_tldr_sft'),
    )


def test_both_orders_of_a_comparator_reach_the_table(comparator):
  """Checks that LearnedJudge returns both orders and not their mean twice."""
  params, judge, path = comparator
  samples, _ = judge_agreement.labelled_pairs(dataset(), 8)
  with jax.set_mesh(sharding.make_mesh((1, -1, 1))):
    both = host.LearnedJudge(
      judge=judge, model=MODEL, checkpoint_path=path, batch_size=8
    )(samples, [(0, 1), (1, 0)])
    both = np.stack(list(both), axis=1)
  judged = jax.jit(judge)(params, samples.tokens)
  np.testing.assert_allclose(both[:, 0].mean(-1), judged.preference, atol=1e-6)
  np.testing.assert_allclose(both[:, 0, 0], judged.matrix[:, 0, 1], atol=1e-6)
  assert np.abs(both[:, 0, 0] - both[:, 0, 1]).max() > 1e-4
  # The swapped pair has the same two answers.
  np.testing.assert_allclose(both[:, 1], 1 - both[:, 0, ::-1], atol=1e-6)
