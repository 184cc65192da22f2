r"""Tests of MATH: what \boxed{...} has, and which answers are the same."""

import importlib.util
import json
import threading
import time

import pytest
import seqio

from ipo_md.data import dataset as dataset_lib
from ipo_md.data import prompt_format
from ipo_md.evaluation import task_metrics
from tasks import math_answers
from tasks.lib import equivalence
from tasks.lib import json_lines
from tasks.lib import train_test_files

VOCABULARY = seqio.ByteVocabulary()


@pytest.mark.parametrize(
  ('text', 'answer'),
  [
    (r'So $x = \boxed{5}$.', '5'),
    (r'\boxed{1} or \boxed{ \frac{1}{2} }', r'\frac{1}{2}'),
    (r'\boxed{\{1, 2\}}', r'\{1, 2\}'),
    (r'\boxed{\left\{ 1 \right.}', r'\left\{ 1 \right.'),
    (r'\fbox{5}', '5'),
    (r'it is $\boxed 5$.', '5'),
    (r'\boxed{3} and \boxed{4', '3'),
    (r'\boxed{3} and \boxed{\frac{4}{5}', '3'),
    (r'\boxed{', None),
    (r'\boxed{}', None),
    (r'boxed{5}', None),
    ('the answer is 5', None),
    ('', None),
  ],
)
def test_boxed(text, answer):
  assert math_answers.boxed(text) == answer


def _correct(target, prediction):
  target, prediction = [
    math_answers.final_answer(text, example=None, is_target=is_target)
    for text, is_target in ((target, True), (prediction, False))
  ]
  found = math_answers.math_correct([target], [prediction])
  assert found['math_correct'] in (0, 100)
  return bool(found['math_correct'])


@pytest.mark.parametrize(
  ('target', 'answers', 'wrong'),
  [
    (r'\frac12', ('1/2', '0.5', r'\dfrac{1}{2}', r'\tfrac 1 2'), ('2', '.25')),
    (r'2\sqrt{3}', (r'\sqrt{12}', r'2 \cdot \sqrt 3'), (r'\sqrt{6}',)),
    ('x^2 + 2x + 1', ('(x+1)^2', '1+2x+x^2'), ('(x-1)^2',)),
    ('1,234', ('1234', r'1{,}234'), ('1.234',)),
    (r'\{1, 2\}', (r'\{2, 1\}',), (r'\{1\}', r'\{1, 2, 3\}')),
    ('[0, 1)', (r'\left[0, 1\right)',), ('[0, 1]', '(0, 1)')),
    ('(2, 1)', (r'\left( 2, 1 \right)',), ('(1, 2)',)),
    (r'5\text{ cm}', ('5', '5 cm', r'5\mathrm{ cm}'), ('6 cm',)),
    (r'50\%', ('50', '0.5'), ('5',)),
    (r'30^\circ', ('30', '30°'), ('60', r'\frac{\pi}{7}')),
    (
      r'\begin{pmatrix} 1 \\ 2 \end{pmatrix}',
      (r'\begin{pmatrix}1\\ \frac42\end{pmatrix}',),
      (r'\begin{pmatrix} 2 \\ 1 \end{pmatrix}',),
    ),
    (r'\text{Tuesday}', ('Tuesday', r'\text{tuesday}'), (r'\text{Monday}',)),
    (r'\text{(B)}', ('B', r'\text{B}'), ('C',)),
    ('x = 3', ('3',), ('4',)),
  ],
)
def test_equivalence(target, answers, wrong):
  for answer in answers:
    assert _correct(rf'\boxed{{{target}}}', rf'so \boxed{{{answer}}}'), answer
  for answer in (*wrong, ''):
    assert not _correct(rf'\boxed{{{target}}}', rf'\boxed{{{answer}}}'), answer


@pytest.mark.parametrize(
  ('prediction', 'correct'),
  [
    (r'The answer is $\frac{1}{2}$.', True),
    ('Final answer: 0.5', True),
    (r'It is \boxed{0.5} and not \boxed{7', True),
    (r'\boxed{0.5}, no, \boxed{7}', False),
    ('I do not know.', False),
    ('', False),
    ('}{' * 99, False),
  ],
)
def test_answers_without_a_box(prediction, correct):
  assert _correct(r'thus \boxed{\frac12}', prediction) == correct


@pytest.mark.parametrize(
  'prediction', [r'\boxed{9^{9^{9^9}}}', 'It is 9**9**9**9']
)
def test_answers_that_take_too_long_are_wrong(prediction):
  start = time.monotonic()
  assert not equivalence.same(r'\boxed{5}', prediction, seconds=0.5)
  assert time.monotonic() - start < 60
  assert equivalence.same(r'\boxed{5}', r'\boxed{5.0}')  # in the next process


def test_the_same_text_is_correct_at_once(monkeypatch):
  monkeypatch.setattr(equivalence, 'same', None)
  assert _correct(r'\boxed{9^{9^{9^9}}}', r'\boxed{9^{9^{9^9}} }')


def test_any_thread_may_compare():
  found = []
  compare = lambda: found.append(equivalence.same(r'\boxed{5}', '5.0'))
  threads = [threading.Thread(target=compare) for _ in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == [True] * 3


@pytest.fixture(name='load')
def load_fixture(tmp_path, monkeypatch):
  monkeypatch.setenv('MATH_DIR', str(tmp_path))
  monkeypatch.setattr(train_test_files, 'VALIDATION', 2)
  rows = [
    {'problem': f'What is {n} / 2?', 'solution': rf'It is $\boxed{{{n}/2}}$.'}
    for n in range(5)
  ]

  def load(split, rows=rows):
    for file in ('train', 'test'):
      text = '\n'.join(json.dumps(row) for row in rows)
      (tmp_path / f'{file}.jsonl').write_text(text)
    return dataset_lib.load(
      mixture_or_task_name='math_answers',
      task_feature_lengths={'inputs': 64, 'targets': 64},
      split=split,
      prompt_format=prompt_format.PromptFormat(),
      vocabulary=VOCABULARY,
    )

  return load


def _measure(dataset, completions):
  count = len(completions)
  measure = task_metrics.of_task(
    dataset, count, mixture_or_task_name='math_answers'
  )
  found = measure([''] * count, completions)
  return [row['math_correct'] for row in found]


def test_completions(load):
  assert [len(load(s)) for s in ('train', 'validation', 'test')] == [3, 2, 5]
  completions = [r'So \boxed{1.5}', r'So \boxed{3}']
  assert _measure(load('validation'), completions) == [100, 0]


def test_fields_of_rows(load):
  """MATH has solutions, MATH-500 answers as well, others answers alone."""
  rows = [
    {'problem': 'x', 'solution': r'\boxed{1}'},
    {'problem': 'x', 'solution': r'\boxed{1}', 'answer': '2'},
    {'problem': 'x', 'solution': 'It is 1.', 'answer': '1'},
    {'problem': 'x', 'answer': '1'},
  ]
  assert _measure(load('test', rows), [r'\boxed{1}'] * 4) == [100] * 4


def test_long_solutions_are_compared_whole(load):
  rows = [{'problem': 'x', 'solution': f'{"So " * 99} \\boxed{{1}}'}]
  assert _measure(load('test', rows), ['1']) == [100]


def test_a_target_that_the_vocabulary_changes_is_refused():
  with pytest.raises(ValueError, match=r"lost its .*'boxed5'.*VOCABULARY"):
    math_answers.final_answer('boxed5', is_target=True)


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ({'problem': 'a'}, r"no .boxed.*no field 'answer'"),
    ({'problem': ' ', 'answer': '1'}, "'problem' is empty"),
    ({'problem': 'a', 'solution': '12'}, r"no .boxed.*no field 'answer'"),
    ({'problem': 'a', 'answer': ' '}, "'answer' is empty"),
    ({'problem': 'a', 'answer': '{'}, 'braces are open'),
    ({'solution': r'\boxed{1}'}, "'problem' is missing"),
  ],
)
def test_bad_rows(row, message):
  with pytest.raises(json_lines.BadRow, match=message):
    math_answers._example(row)


def test_what_is_missing_is_named(load, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r"pip install 'ipo_md\[math\]'\.$"):
    load('test')
  monkeypatch.delenv('MATH_DIR')
  with pytest.raises(ValueError, match='MATH_DIR is not set'):
    load('test')
