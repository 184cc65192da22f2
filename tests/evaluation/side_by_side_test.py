"""Checks comparisons of a micro T5: repeated, interrupted and refused runs."""

import functools
import json
import math
import shutil

import comparison
import numpy as np
import pytest

from ipo_md.evaluation import drawing
from ipo_md.evaluation import results
from ipo_md.evaluation import side_by_side
from ipo_md.evaluation import statistics
from ipo_md.evaluation import task_metrics
from ipo_md.judges import host
from ipo_md.sampling import sampler as sampler_lib
from tasks.mini_tldr import truth as truth_lib


@pytest.mark.slow
def test_a_run_gives_the_same_bytes_twice(tmp_path, paths, capsys):
  comparison.compare(tmp_path / 'a', paths)
  comparison.compare(tmp_path / 'b', paths)
  for name in ('results.json', 'completions.jsonl', 'index.html'):
    first = (tmp_path / 'a' / name).read_bytes()
    assert first == (tmp_path / 'b' / name).read_bytes()
    assert str(tmp_path).encode() not in first

  found = json.loads((tmp_path / 'a' / 'results.json').read_text())
  assert found['policies'] == ['supervised', 'best_of_3', 'ipo']
  assert found['judges'] == ['ground_truth', 'reward_model']
  assert found['prompts'] == comparison.EXAMPLES
  for judge in found['judges']:
    rates = np.array(found['win_rate'][judge])
    np.testing.assert_allclose(rates + rates.T, 1, atol=2e-6)
    low, high = np.moveaxis(np.array(found['interval'][judge]), -1, 0)
    assert np.all((low <= rates) & (rates <= high))
  # The policy that is the reference has no KL, and best of 3 has its bound.
  assert abs(found['kl']['supervised']) < 1e-4
  assert found['kl']['ipo'] > 1
  assert found['kl']['best_of_3'] == round(math.log(3) - 2 / 3, 6)
  assert 0 < found['length']['ipo'] <= 4
  assert found['paired_difference']['words'].keys() == {'best_of_3', 'ipo'}
  agreed = found['agreement']
  assert agreed['held_out_pairs']['reward_model'][3] == comparison.EXAMPLES
  assert agreed['samples_of_ipo'].keys() == {'reward_model', 'blind'}
  for kind in ('calibration', 'by_length', 'order_consistency'):
    assert found[kind].keys() == agreed.keys()
    assert found[kind]['samples_of_ipo'].keys() == {'reward_model', 'blind'}

  # The lines hold the judgements behind the table.
  lines = (tmp_path / 'a' / 'completions.jsonl').read_text().splitlines()
  lines = [json.loads(line) for line in lines]
  p = np.array([line['preference']['reward_model'][1] for line in lines])
  rate = np.mean((p > 0.5) + (p == 0.5) / 2)
  assert abs(rate - found['win_rate']['reward_model'][0][2]) < 1e-6
  for line in lines:
    text = line['completions']['ipo']
    score = truth_lib.score(line['prompt'], text['text'])
    assert text['score']['words'] == score.words

  assert ', tokens_unknown ' in capsys.readouterr().out
  comparison.compare(tmp_path / 'a', paths)
  assert 'complete' in capsys.readouterr().out


def test_kl_is_over_plain_samples(tmp_path, paths):
  greedy = sampler_lib.Sampler(max_new_tokens=4, eos_id=1, temperature=0.0)
  plain = {'best_of': None, 'agreement': None}
  comparison.compare(tmp_path / 'a', paths, **plain)
  comparison.compare(tmp_path / 'b', paths, **plain, sampler=greedy)
  a, b = (json.loads((tmp_path / x / 'results.json').read_text()) for x in 'ab')
  assert a['kl'] == b['kl']
  assert a['entropy'] == b['entropy']
  assert a['words'] != b['words']


def test_a_tracker_shows_the_win_rates(tmp_path, paths):
  class Recorder:
    def __init__(self):
      self.scalars = {}

    def write_hparams(self, hparams):
      del hparams

    def write_scalars(self, step, scalars):
      assert step == 0
      self.scalars |= scalars

    def write_texts(self, step, texts):
      raise AssertionError

    def write_report(self, tables, files):
      self.tables, self.files = tables, files

    def fail(self):
      raise AssertionError

    def close(self):
      self.texts = [file.read_text() for file in self.files]

  tracker = Recorder()
  plain = {'best_of': None, 'agreement': None}
  comparison.compare(tmp_path, paths, tracker=tracker, **plain)
  found = json.loads((tmp_path / 'results.json').read_text())
  assert tracker.scalars == {
    f'win_rate/{judge}/ipo_over_supervised': found['win_rate'][judge][1][0]
    for judge in ('ground_truth', 'reward_model')
  }
  table = tracker.tables['win_rates']
  assert table.columns == ('judge', 'policy', 'over', 'win rate', 'low', 'high')
  assert table.rows == [
    (
      judge,
      'ipo',
      'supervised',
      found['win_rate'][judge][1][0],
      *found['interval'][judge][1][0],
    )
    for judge in ('ground_truth', 'reward_model')
  ]
  assert [file.name for file in tracker.files] == [
    'results.json',
    'completions.jsonl',
    'index.html',
  ]
  assert json.loads(tracker.texts[0]) == found


def test_bad_configurations(tmp_path, paths):
  best = functools.partial(side_by_side.BestOf, n=3)
  for changes, message in (
    ({'judges': {}}, 'JUDGES'),
    ({'best_of': best(policy='rl', judge='reward_model')}, "BestOf.*'rl'"),
    (
      {
        'best_of': best(policy='ipo', judge='ground_truth'),
        'policies': {'ipo': paths['ipo'], 'best_of_3': paths['ipo']},
      },
      'best_of_3',
    ),
    (
      {
        'policies': {'supervised': paths['ipo'], 'a[0]': 'x', 'a': ['y']},
      },
      r'name a\[0\] twice',
    ),
    ({'policies': {'supervised': paths['ipo'], 'a': []}}, 'POLICIES'),
    ({'compared': 'some'}, "COMPARED = 'some'"),
    (
      {
        'prompts': drawing.Prompts(
          dataset=lambda: comparison.dataset('mini_tldr_prompts', True),
          examples=0,
          batch_size=8,
        )
      },
      'EVAL_EXAMPLES 0',
    ),
    ({'policies': {'supervised': '/nowhere'}}, r"POLICIES\['supervised'\]"),
  ):
    with pytest.raises(ValueError, match=message):
      comparison.compare(tmp_path, paths, **changes)


class Stop(Exception):
  """Stands for a kill."""


def test_an_interrupted_run_does_nothing_twice(tmp_path, paths, monkeypatch):
  plain = {'best_of': None, 'agreement': None}
  calls = {'sample': 0, 'judge': 0}
  limits = {'sample': 3, 'judge': 100}

  def counted(name, function):
    def call(*args, **kwargs):
      if calls[name] == limits[name]:
        raise Stop
      calls[name] += 1
      return function(*args, **kwargs)

    return call

  monkeypatch.setattr(drawing, '_sample', counted('sample', drawing._sample))
  truth = counted('judge', truth_lib.preference)
  # Each pair of three policies takes 24 calls: 12 prompts in 2 orders.
  arguments = plain | {
    'policies': {n: paths[n] for n in ('supervised', 'ipo', 'judge')},
    'judges': {'ground_truth': host.TextJudge(truth)},
  }
  with pytest.raises(Stop):  # In the second batch of the second policy.
    comparison.compare(tmp_path / 'a', paths, **arguments)
  limits['sample'] = 100
  with pytest.raises(Stop):  # In the first pair.
    limits['judge'] = 10
    comparison.compare(tmp_path / 'a', paths, **arguments)
  calls['judge'] = 0
  with pytest.raises(Stop):  # In the second pair.
    limits['judge'] = 30
    comparison.compare(tmp_path / 'a', paths, **arguments)
  limits['judge'] = 100
  assert not (tmp_path / 'a' / 'results.json').exists()
  comparison.compare(tmp_path / 'a', paths, **arguments)
  assert calls == {'sample': 3 + 4, 'judge': 30 + 48}
  limits['judge'] = 1000
  comparison.compare(tmp_path / 'b', paths, **arguments)
  for name in ('results.json', 'completions.jsonl', 'index.html'):
    first = (tmp_path / 'a' / name).read_bytes()
    assert first == (tmp_path / 'b' / name).read_bytes()
  kept_files = [p.name for p in (tmp_path / 'a').glob('*/*.jsonl')]
  assert len(kept_files) == 3 + 3
  assert not list((tmp_path / 'a').glob('**/*.partial'))


def test_results_of_policies_that_were_trained_on_are_not_current(
  tmp_path, paths, capsys
):
  plain = {'best_of': None, 'agreement': None}
  paths = dict(paths)
  for name in paths:
    shutil.copytree(paths[name], tmp_path / name)
    paths[name] = str(tmp_path / name)
  comparison.compare(tmp_path / 'out', paths, **plain)
  comparison.compare(tmp_path / 'out', paths, **plain)
  assert 'is complete' in capsys.readouterr().out
  for name, place in (
    ('ipo', r"POLICIES\['ipo'\]"),
    ('judge', r"JUDGES\['reward_model'\]"),
    ('supervised', 'REFERENCE_CHECKPOINT_PATH'),
  ):
    folder = tmp_path / name / 'checkpoints'
    (folder / '1').rename(folder / '2')
    with pytest.raises(ValueError, match=f'(?s){place}: .* then, .* now'):
      comparison.compare(tmp_path / 'out', paths, **plain)
    (folder / '2').rename(folder / '1')
  comparison.compare(tmp_path / 'out', paths, **plain)


def test_seeds_against_the_baseline(tmp_path, paths):
  three = ('supervised', 'ipo', 'judge')
  comparison.compare(
    tmp_path,
    paths,
    policies={'supervised': paths['ipo'], 'ipo': [paths[n] for n in three]},
    judges={'ground_truth': host.TextJudge(truth_lib.preference)},
    compared='baseline',
    best_of=None,
    agreement=None,
  )
  found = json.loads((tmp_path / 'results.json').read_text())
  names = ['supervised', 'ipo[0]', 'ipo[1]', 'ipo[2]']
  assert found['policies'] == names
  rates = found['win_rate']['ground_truth']
  assert rates[1][2] is None
  assert found['interval']['ground_truth'][1][2] == [None, None]
  assert rates[1][1] == 0.5
  assert found['compared_order_consistency']['ground_truth'][0] == 1
  assert 'nash_averaging' not in found
  ours, theirs = found['seeds']['ground_truth']
  assert (ours['policy'], ours['over']) == ('supervised', 'ipo')
  assert ours['win_rates'] == [rates[0][1:]]
  np.testing.assert_allclose(theirs['mean'], 1 - ours['mean'], atol=2e-6)
  low, high = theirs['t_interval_over_seed_means']
  expected = statistics.t_interval(np.ravel(theirs['win_rates']))
  np.testing.assert_allclose([low, high], expected[1:], atol=1e-5)
  line = json.loads((tmp_path / 'completions.jsonl').open().readline())
  assert [p is None for p in line['preference']['ground_truth']] == [
    pair not in ((0, 1), (0, 2), (0, 3)) for pair in results.pairs(4)
  ]


def minds_order(samples, pairs):
  """Names no winner for prompt 0, and prefers the first answer otherwise."""
  for _ in pairs:
    found = np.tile([0.7, 0.4], (comparison.EXAMPLES, 1))
    found[0] = math.nan
    yield found


def test_orders_neither_and_task_metrics(tmp_path, paths, capsys):
  comparison.compare(
    tmp_path,
    paths,
    judges={'shown_first': minds_order},
    task_metrics=functools.partial(
      task_metrics.of_task, mixture_or_task_name='mini_tldr_prompts'
    ),
    best_of=None,
    agreement=None,
  )
  found = json.loads((tmp_path / 'results.json').read_text())
  assert found['neither'] == {'shown_first': 2}
  share, low, high, count = found['compared_order_consistency']['shown_first']
  assert count == comparison.EXAMPLES
  assert share == round(0.5 / comparison.EXAMPLES, 6)
  assert low < share < high
  (warning,) = found['compared_judge_warnings'].values()
  assert 'the completion shown first in 100 % of its answers' in warning
  assert f'WARNING: shown_first {warning}' in capsys.readouterr().out
  assert json.dumps(warning)[1:-1] in (tmp_path / 'index.html').read_text()
  assert 0 <= found['rouge1']['ipo'] <= 100
  assert found['paired_difference']['rouge2'].keys() == {'ipo'}
  assert 0 < found['distinct_1']['ipo'] <= 1
  assert found['nash_averaging']['shown_first']['weights']['ipo'] < 1e-6
  lines = (tmp_path / 'completions.jsonl').read_text().splitlines()
  first, second = (json.loads(line) for line in lines[:2])
  assert first['preference']['shown_first'] == [0.5]
  assert first['orders']['shown_first'] == [[None, None]]
  assert second['preference']['shown_first'] == [0.55]
  assert second['orders']['shown_first'] == [[0.7, 0.4]]
