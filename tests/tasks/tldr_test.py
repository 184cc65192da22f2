"""Tests of TL;DR on hand-made files in the exact original schema."""

import json
import pathlib
import shutil
import tempfile

import pytest
import tensorflow_datasets as tfds

from ipo_md.data import dataset as dataset_lib
from ipo_md.data import prompt_format
from ipo_md.data import registry
from ipo_md.data import token_cache
from tasks import build
from tasks.builders import tldr as tldr_builder
from tasks.mini_tldr import tasks

VOCABULARY = tasks.VOCABULARY
_MODULES = {'tasks.tldr', 'tasks.builders.tldr', 'tasks.lib.text_tasks'}


def comparison(number, *, split='train', choice=0, post='i broke it.', **extra):
  return {
    'info': {
      'id': f't3_{number}',
      'post': post,
      'title': 'my oven',
      'subreddit': 'relationships',
    },
    'summaries': [
      {'text': ' the first', 'policy': 'sup4_ppo_rm3', 'note': None},
      {'text': ' the second one', 'policy': 'ref', 'note': 'worse'},
    ],
    'choice': choice,
    'worker': 'w0',
    'batch': 'batch3',
    'split': split,
    'extra': {'confidence': 7},
  } | extra


CNN_DM = {
  'info': {'id': 'f1', 'site': 'cnn', 'title': 'a', 'article': 'an article'},
  'summaries': [
    {'text': 'x', 'policy': 'a', 'note': None},
    {'text': 'y', 'policy': 'b', 'note': None},
  ],
  'choice': 1,
  'worker': 'w1',
  'batch': 'batch0_cnndm',
  'split': 'valid2',
  'extra': {},
}
BATCHES = {
  'batch3': [
    comparison(0),
    comparison(1, choice=1, post='my bike.', extra={}),
    comparison(2, post='\u00fcber \u4f60\u597d \U0001f600', extra=None),
    comparison(3, post='very long ' * 3000),
  ],
  'batch11': [
    comparison(4, split='valid1', extra={'confidence': None}),
    comparison(5, split='valid2'),
    CNN_DM,
  ],
}
SUMMARIES = {
  split: [
    {
      'id': f't3_{split}{i}',
      'subreddit': 'tifu',
      'title': 'my oven',
      'post': 'somebody broke my oven.',
      'summary': 'my oven broke.',
    }
    for i in range(2)
  ]
  for split in ('train', 'valid', 'test')
}


def write_rows(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def write_comparisons(folder, batches=None):
  names = [f'batch{i}' for i in (*range(3, 21), 22)] + ['edit_b2_eval_test']
  for name in names:
    write_rows(folder / f'{name}.json', (batches or BATCHES).get(name, []))


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  """Builds both data sets in TFDS_DATA_DIR."""
  original = tmp_path_factory.mktemp('original')
  write_comparisons(original)
  for split, rows in SUMMARIES.items():
    write_rows(original / f'{split}.jsonl', rows)
  data_dir = tmp_path_factory.mktemp('tfds')
  for name in ('tldr_comparisons', 'tldr_summaries'):
    build.build(name, data_dir=str(data_dir), manual_dir=str(original))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tfds.core.constants, 'DATA_DIR', str(data_dir))
    patch.setenv('TFDS_DATA_DIR', str(data_dir))
    yield str(data_dir)


def load(name, split='train', **kwargs):
  return dataset_lib.load(
    mixture_or_task_name=name,
    task_feature_lengths={'inputs': 64, 'targets': 16},
    split=split,
    prompt_format=prompt_format.PromptFormat(
      suffix=(1,), closing='tl;dr:', vocabulary=VOCABULARY
    ),
    vocabulary=VOCABULARY,
    module='tasks.tldr',
    **kwargs,
  )


class TestBuilder:
  def test_rows(self, built):
    builder = tfds.builder('tldr_comparisons', data_dir=built)
    assert {s: i.num_examples for s, i in builder.info.splits.items()} == {
      'train': 4,
      'validation': 1,
      'test': 1,
    }
    rows = {r['id'].decode(): r for r in builder.as_data_source(split='train')}
    assert rows['t3_0']['confidence'] == 7
    assert rows['t3_1']['confidence'] == -1
    assert rows['t3_2']['confidence'] == -1
    assert rows['t3_2']['post'].decode() == '\u00fcber \u4f60\u597d \U0001f600'
    assert len(rows['t3_3']['post']) == 30_000
    assert list(rows['t3_0']['policies']) == [b'sup4_ppo_rm3', b'ref']
    (row,) = builder.as_data_source(split='validation')
    assert row['id'] == b't3_4'
    assert row['confidence'] == -1

  @pytest.mark.parametrize(
    ('row', 'match'),
    [
      (comparison(9, choice=2), "batch3.json, row 1: field 'choice' is 2"),
      (comparison(9, summaries=[]), "row 1: field 'summaries' has 0"),
      (comparison(9, split='valid3'), "row 1: field 'split' is 'valid3'"),
      (comparison(9, post=None), "row 1: field 'info.post' is null"),
      (comparison(9, worker=3), "row 1: field 'worker' is 3"),
      (comparison(9, extra={'confidence': 1e30}), "field 'extra.confidence'"),
    ],
  )
  def test_bad_rows(self, tmp_path, row, match):
    write_comparisons(tmp_path, {'batch3': [row]})
    with pytest.raises(ValueError, match=match):
      build.build(
        'tldr_comparisons',
        data_dir=str(tmp_path / 'tfds'),
        manual_dir=str(tmp_path),
      )
    assert not list((tmp_path / 'tfds').glob('**/*.array_record*'))

  def test_bad_rows_that_are_allowed(self, tmp_path, capsys):
    write_rows(tmp_path / 'valid.jsonl', SUMMARIES['valid'])
    write_rows(tmp_path / 'test.jsonl', SUMMARIES['test'])
    good = [json.dumps(row) for row in SUMMARIES['train']]
    lines = [good[0], '{"id": 3', good[1], '{"id": "x"}']
    (tmp_path / 'train.jsonl').write_text('\n'.join(lines))
    builder = build.build(
      'tldr_summaries',
      data_dir=str(tmp_path / 'tfds'),
      manual_dir=str(tmp_path),
      max_bad_rows=2,
    )
    assert builder.info.splits['train'].num_examples == 2
    listed = capsys.readouterr().err
    assert 'Bad rows left out: 2' in listed
    assert "row 4: field 'subreddit' is missing" in listed

  def test_missing_and_wrong_files(self, tmp_path):
    where = {'data_dir': str(tmp_path / 'tfds'), 'manual_dir': str(tmp_path)}
    with pytest.raises(ValueError, match='lacks test.jsonl, train.jsonl, val'):
      build.build('tldr_summaries', **where)
    write_rows(tmp_path / 'train.jsonl', SUMMARIES['train'])
    with pytest.raises(ValueError, match='lacks test.jsonl, valid.jsonl'):
      build.build('tldr_summaries', **where)
    for split, rows in SUMMARIES.items():
      write_rows(tmp_path / f'{split}.jsonl', rows)
    sums = tmp_path / 'sums'
    sums.write_text(f'{"0" * 64}  train.jsonl\n')
    with pytest.raises(ValueError, match=r'train.jsonl has the SHA-256'):
      build.build('tldr_summaries', checksums=str(sums), **where)
    sums.write_text(f'{"0" * 64}  trian.jsonl\n')
    with pytest.raises(ValueError, match=r'no line for train.jsonl'):
      build.build('tldr_summaries', checksums=str(sums), **where)
    (tmp_path / 'valid.jsonl').write_text('\n')
    with pytest.raises(ValueError, match=r'No row of this split in .*valid'):
      build.build('tldr_summaries', **where)
    with pytest.raises(ValueError, match='not a directory'):
      build.build('tldr_summaries', manual_dir=str(tmp_path / 'nowhere'))


class TestTasks:
  def test_comparisons_token_for_token(self, built):
    del built
    dataset = load('tldr_preference')
    rows = dataset.rows([(0, i) for i in range(4)])
    prompts, tokens = rows.completions.prompts, rows.completions.completions
    closing = [*VOCABULARY.encode('tl;dr:'), 1]
    head = 'SUBREDDIT: r/relationships\nTITLE: my oven\nPOST: '
    expected = {
      (*VOCABULARY.encode(head + 'i broke it.'), *closing): 1,  # choice 0
      (*VOCABULARY.encode(head + 'my bike.'), *closing): 0,
    }
    for i in range(4):
      ids = prompts.ids[i][prompts.mask[i]].tolist()
      # The long post is truncated, but not its closing.
      assert ids[-len(closing) :] == closing
      if tuple(ids) in expected:
        assert rows.preference[i] == expected.pop(tuple(ids))
      for k, summary in enumerate(['the first', 'the second one']):
        assert tokens.ids[i, k][tokens.mask[i, k]].tolist() == [
          *VOCABULARY.encode(summary),
          1,
        ]
    assert not expected
    assert dataset.counts['prompts_cut'] == 1

  def test_summaries(self, built):
    del built
    rows = load('tldr_sft', 'validation').rows([(0, 0)])
    assert rows.completions.completions.ids[0, 0].tolist()[:5] == [
      *VOCABULARY.encode('my oven broke.'),
      1,
    ]
    tokens = load('tldr_prompts', 'test', prompts_only=True).rows([(0, 1)])
    assert tokens.ids[0, : tokens.mask.sum()].tolist() == [
      *VOCABULARY.encode(
        'SUBREDDIT: r/tifu\nTITLE: my oven\nPOST: somebody broke my oven.'
      ),
      *VOCABULARY.encode('tl;dr:'),
      1,
    ]

  def test_fingerprint_covers_the_modules_of_the_task(self, built):
    del built
    task = registry.find('tldr_sft', module='tasks.tldr')
    task = task.replace(output_features={})
    code = token_cache.describe(task, 'train', {'inputs': 8})['code']
    assert code.keys() >= _MODULES

  def test_not_built(self, monkeypatch, tmp_path):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(tmp_path))
    with pytest.raises(ValueError, match='python -m tasks.build tldr_summ'):
      load('tldr_sft')


class TldrSummariesTest(tfds.testing.DatasetBuilderTestCase):
  DATASET_CLASS = tldr_builder.TldrSummaries
  SPLITS = {'train': 2, 'validation': 2, 'test': 2}
  SKIP_CHECKSUMS = True  # there are no published checksums

  @classmethod
  def setUpClass(cls):
    cls.EXAMPLE_DIR = tempfile.mkdtemp()
    for split, rows in SUMMARIES.items():
      write_rows(pathlib.Path(cls.EXAMPLE_DIR, f'{split}.jsonl'), rows)
    cls.addClassCleanup(shutil.rmtree, cls.EXAMPLE_DIR)
    super().setUpClass()


class TldrComparisonsTest(tfds.testing.DatasetBuilderTestCase):
  DATASET_CLASS = tldr_builder.TldrComparisons
  SPLITS = {'train': 4, 'validation': 1, 'test': 1}
  SKIP_CHECKSUMS = True

  @classmethod
  def setUpClass(cls):
    cls.EXAMPLE_DIR = tempfile.mkdtemp()
    write_comparisons(pathlib.Path(cls.EXAMPLE_DIR))
    cls.addClassCleanup(shutil.rmtree, cls.EXAMPLE_DIR)
    super().setUpClass()
