"""Tests of GSM8K and of the metrics of tasks."""

import dataclasses
import json

import numpy as np
import pytest
import seqio

from ipo_md.data import dataset as dataset_lib
from ipo_md.data import prompt_format
from ipo_md.evaluation import task_metrics
from ipo_md.judges import samples as samples_lib
from tasks import gsm8k
from tasks import xsum
from tasks.lib import metrics
from tasks.lib import train_test_files

VOCABULARY = seqio.ByteVocabulary()


@pytest.mark.parametrize(
  ('text', 'number'),
  [
    ('48 + 24 = <<48+24=72>>72\n#### 72', '72'),
    ('####72', '72'),
    ('#### 1,234.50', '1234.5'),
    ('#### $18.00', '18'),
    ('#### -5', '-5'),
    ('#### 600', '600'),
    ('#### 7 apples. #### 8', '7'),
    ('#### 18.', '18'),
    ('the answer is 72', None),
    ('#### none', None),
    ('#### 1.2.3', None),
    ('', None),
  ],
)
def test_final_answers(text, number):
  assert gsm8k.final_answer(text, example=None, is_target=True) == number


def test_metrics_by_hand():
  assert metrics.exact_match(['7', '8', None], ['7', '9', None]) == {
    'exact_match': pytest.approx(100 / 3)
  }
  found = metrics.rouge(['the cat sat', 'a'], ['the cat ran', 'b'])
  assert found['rouge1'] == pytest.approx(100 * (2 / 3) / 2)
  assert found['rouge2'] == pytest.approx(100 * (1 / 2) / 2)
  assert found['rougeLsum'] == pytest.approx(100 * (2 / 3) / 2)


@pytest.fixture(name='load')
def load_fixture(tmp_path, monkeypatch):
  monkeypatch.setenv('GSM8K_DIR', str(tmp_path))
  monkeypatch.setattr(train_test_files, 'VALIDATION', 2)
  rows = [
    {'question': f'What is {n} + 1?', 'answer': f'It is.\n#### {n + 1}'}
    for n in range(5)
  ]

  def load(split, rows=rows):
    for file in ('train', 'test'):
      text = '\n'.join(json.dumps(row) for row in rows)
      (tmp_path / f'{file}.jsonl').write_text(text)
    return dataset_lib.load(
      mixture_or_task_name='gsm8k',
      task_feature_lengths={'inputs': 64, 'targets': 64},
      split=split,
      prompt_format=prompt_format.PromptFormat(),
      vocabulary=VOCABULARY,
    )

  return load


def test_the_folder_may_be_relative_or_start_with_a_tilde(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  monkeypatch.chdir('/')
  for given, folder in (('~/math', '/home/me/math'), ('math', '/math')):
    monkeypatch.setenv('GSM8K_DIR', given)
    assert gsm8k._files('test') == [f'{folder}/test.jsonl']
    monkeypatch.setenv('XSUM_DIR', given)
    assert xsum._files('test') == [f'{folder}/test.jsonl']
  monkeypatch.setenv('GSM8K_DIR', '')
  with pytest.raises(ValueError, match='GSM8K_DIR is empty'):
    gsm8k._files('test')


def test_exact_match_of_completions(load):
  assert [len(load(s)) for s in ('train', 'validation', 'test')] == [3, 2, 5]
  dataset = load('validation')
  measure = task_metrics.of_task(dataset, 2, mixture_or_task_name='gsm8k')
  assert measure(['', ''], ['So\n#### 4.0', 'So 5']) == [
    {'exact_match': 100.0},
    {'exact_match': 0.0},
  ]


def test_exact_match_as_a_judge(load):
  dataset = dataclasses.replace(load('validation'), prompts_only=True)
  judge = task_metrics.MetricJudge(lambda: dataset, 'gsm8k', 'exact_match')
  samples = samples_lib.Samples(
    tokens=None,
    vocabulary=None,
    prompts=['What is 3 + 1?', 'What is 4 + 1?'],
    texts=[['#### 4', '4'], ['#### 6', 'none']],
  )
  (found,) = judge(samples, [(0, 1)])
  np.testing.assert_array_equal(found, [[1, 1], [0.5, 0.5]])
  other = dataclasses.replace(samples, prompts=['What is 9 + 1?'] * 2)
  with pytest.raises(ValueError, match='gsm8k alone'):
    list(judge(other, [(0, 1)]))
  rouge = dataclasses.replace(judge, metric='rouge1')
  with pytest.raises(ValueError, match="'rouge1'.*exact_match"):
    list(rouge(samples, [(0, 1)]))


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ({'question': 'a'}, "'answer' is missing"),
    ({'question': ' ', 'answer': '#### 1'}, "'question' is empty"),
    ({'question': 'a', 'answer': '12'}, "'answer' has no number after '####'"),
  ],
)
def test_bad_rows(load, row, message):
  with pytest.raises(ValueError, match=message):
    load('test', [row])
