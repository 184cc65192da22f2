"""Tests of UltraFeedback on hand-made files in the original schema."""

import json
import pathlib
import shutil
import tempfile
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from ipo_md.data import dataset as dataset_lib
from ipo_md.data import prompt_format
from tasks import build
from tasks.builders import ultrafeedback as ultrafeedback_builder
from tasks.mini_tldr import tasks

VOCABULARY = tasks.VOCABULARY
FILES = (
  'evol_instruct',
  'false_qa',
  'flan',
  'sharegpt',
  'truthful_qa',
  'ultrachat',
)


def _rating(value):
  return {'Rating': value, 'Rationale': 'because', 'Type': ['1'], 'Text': 'x'}


def _completion(response, score, rating='4'):
  return {
    'model': 'alpaca-7b',
    'principle': 'helpfulness',
    'custom_system_prompt': 'You are an assistant.',
    'response': response,
    'critique': 'fine',
    'overall_score': 10.0,
    'fine-grained_score': score,
    'annotations': {
      'instruction_following': _rating(rating),
      'honesty': _rating('N/A'),
      'truthfulness': _rating('3'),
      'helpfulness': _rating('5'),
    },
  }


def _row(instruction, responses, scores, **extra):
  return {
    'source': 'flan',
    'instruction': instruction,
    'models': ['alpaca-7b'] * len(responses),
    'completions': [
      _completion(r, s) for r, s in zip(responses, scores, strict=True)
    ],
    'correct_answers': ['None'],
    'incorrect_answers': ['None'],
  } | extra


def _held_out_instruction():
  return next(
    f'held out {i}'
    for i in range(1000)
    if zlib.crc32(f'held out {i}'.encode()) % 32 == 0
  )


ROWS = {
  'evol_instruct': [
    _row('my dog', ['a cat', 'a dog', 'dog', 'cat'], [1.5, 4.25, 3, 2]),
    _row('my cat', ['a dog', 'a cat'], [2.0, 5.0]),
  ],
  'flan': [
    _row('one', ['cat'], ['3.5']),
    _row('none', [], []),
    _row('\u4f60\u597d \U0001f600 ' * 5000, ['', 'dog', 'cat'], [1, 1, 1]),
  ],
  'ultrachat': [_row(_held_out_instruction(), ['dog', 'cat'], [1, 2])],
}


def _write(folder, rows=None):
  for name in FILES:
    lines = [json.dumps(row) + '\n' for row in (rows or ROWS).get(name, [])]
    pathlib.Path(folder, f'{name}.jsonl').write_text(''.join(lines))


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  original = tmp_path_factory.mktemp('original')
  _write(original)
  data_dir = str(tmp_path_factory.mktemp('tfds'))
  build.build('ultrafeedback', data_dir=data_dir, manual_dir=str(original))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tfds.core.constants, 'DATA_DIR', data_dir)
    yield data_dir


def _load(name, **kwargs):
  return dataset_lib.load(
    mixture_or_task_name=name,
    task_feature_lengths={'inputs': 16, 'targets': 8},
    split='train',
    prompt_format=prompt_format.PromptFormat(suffix=(1,)),
    vocabulary=VOCABULARY,
    module='tasks.ultrafeedback',
    **kwargs,
  )


def _by_prompt(dataset):
  """Returns the examples by the text of their prompt."""
  out = {}
  for i in range(len(dataset)):
    row = dataset.rows([(0, i)])
    prompts = row.completions.prompts
    ids = prompts.ids[0, : prompts.mask.sum() - 1].tolist()
    out[VOCABULARY.decode(ids)] = row
  return out


def _texts(row):
  tokens = row.completions.completions
  return [
    VOCABULARY.decode(tokens.ids[0, k][tokens.mask[0, k]].tolist()[:-1])
    for k in range(tokens.ids.shape[1])
  ]


class TestBuilder:
  def test_rows(self, built):
    builder = tfds.builder('ultrafeedback', data_dir=built)
    assert builder.info.splits['train'].num_examples == 5
    (held_out,) = builder.as_data_source(split='validation')
    assert held_out['instruction'].decode() == _held_out_instruction()
    assert np.isnan(held_out['ratings']['honesty']).all()
    assert list(held_out['ratings']['helpfulness']) == [5, 5]
    assert list(held_out['fine_grained_scores']) == [1, 2]
    assert list(held_out['overall_scores']) == [10, 10]

  @pytest.mark.parametrize(
    ('row', 'match'),
    [
      (
        _row('a', ['b', 'c'], [1, 'good']),
        r"flan.jsonl, row 1: field 'completions.1.fine-grained_score' is "
        "'good', not a number",
      ),
      (_row('a', ['b'], [None]), "fine-grained_score' is null"),
      (_row('a', ['b'], [float('nan')]), "fine-grained_score' is nan"),
      (_row('a', ['b'] * 5, [1] * 5), "field 'completions' has 5"),
      (_row(None, ['b'], [1]), "field 'instruction' is null"),
      (_row(' ', ['b'], [1]), "field 'instruction' is empty"),
      (
        _row('a', ['b'], [1], completions=[{'model': 'x'}]),
        "field 'completions.0.response' is missing",
      ),
    ],
  )
  def test_bad_rows(self, tmp_path, row, match):
    _write(tmp_path, {'flan': [row]})
    with pytest.raises(ValueError, match=match):
      build.build(
        'ultrafeedback',
        data_dir=str(tmp_path / 'tfds'),
        manual_dir=str(tmp_path),
      )
    assert not list((tmp_path / 'tfds').glob('**/*.array_record*'))


class TestTasks:
  def test_rewards(self, built):
    del built
    dataset = _load('ultrafeedback_rewards')
    assert dataset.counts['completions_missing'] == 2 + 1
    assert dataset.counts['examples'] == 3  # of at least two completions
    rows = _by_prompt(dataset)
    row = rows['my dog']
    assert _texts(row) == ['a cat', 'a dog', 'dog', 'cat']
    np.testing.assert_array_equal(row.rewards, [[1.5, 4.25, 3, 2]])
    row = rows['my cat']
    assert row.completion_mask.tolist() == [[True, True, False, False]]
    np.testing.assert_array_equal(row.rewards, [[2, 5, 0, 0]])
    # An empty response is a completion of EOS alone, not an absent one.
    (empty,) = (r for r in rows.values() if r.completion_mask.sum() == 3)
    assert empty.completions.completions.ids[0, 0, :2].tolist() == [1, 0]

  def test_pairs(self, built):
    del built
    rows = _by_prompt(_load('ultrafeedback_pairs'))
    assert len(rows) == 3  # of at least two completions
    first = _texts(rows['my dog'])
    assert first[0] == 'a dog'
    assert first[1] in ('a cat', 'dog', 'cat')
    assert _texts(rows['my cat']) == ['a cat', 'a dog']
    assert [float(r.preference[0]) for r in rows.values()].count(0.5) == 1
    again = _by_prompt(_load('ultrafeedback_pairs'))
    assert _texts(again['my dog']) == first

  def test_supervised_and_prompts(self, built):
    del built
    rows = _by_prompt(_load('ultrafeedback_sft'))
    assert _texts(rows['my dog']) == ['a dog']
    assert _texts(rows['my cat']) == ['a cat']
    assert len(rows) == 4  # 'none' has no completion to imitate
    dataset = _load('ultrafeedback_prompts', prompts_only=True)
    assert len(dataset) == 5
    assert dataset.counts['prompts_cut'] == 1


class UltrafeedbackTest(tfds.testing.DatasetBuilderTestCase):
  DATASET_CLASS = ultrafeedback_builder.Ultrafeedback
  SPLITS = {'train': 5, 'validation': 1}
  SKIP_CHECKSUMS = True  # there are no published checksums

  @classmethod
  def setUpClass(cls):
    cls.EXAMPLE_DIR = tempfile.mkdtemp()
    _write(cls.EXAMPLE_DIR)
    cls.addClassCleanup(shutil.rmtree, cls.EXAMPLE_DIR)
    super().setUpClass()
