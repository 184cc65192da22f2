"""Tests of preference files in all formats, with a thousand rows each."""

import gzip
import json

import numpy as np
import pyarrow as pa
from pyarrow import ipc
from pyarrow import parquet
import pytest

from ipo_md.core import row_paths
from ipo_md.data import dataset as dataset_lib
from ipo_md.data import prompt_format
from tasks import preference_files
from tasks.mini_tldr import tasks

pytestmark = pytest.mark.slow

TURN = lambda role, content: {'role': role, 'content': content}
WORDS = ['my', 'dog', 'ate', 'the', 'cat', 'and', 'a', 'new', 'oven', 'at']


def text(i, n):
  return ' '.join(WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(n))


def row(i):
  """A row as ultrafeedback_binarized has it; some fields are null."""
  prompt = text(i, 3 + i % 5)
  answer = lambda n: [
    TURN('user', prompt),
    TURN('assistant', text(n, 2 + n % 4)),
  ]
  return {
    'prompt': prompt,
    'prompt_id': f'{i:064x}',
    'chosen': answer(i + 1),
    'rejected': answer(i + 2),
    'score_chosen': 8.5,
    'score_rejected': float(i % 5),
    'note': None if i % 3 else 'n',
  }


ROWS = [row(i) for i in range(1000)]


def json_lines(path, rows):
  lines = ''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in rows)
  path.write_text(lines)
  return path


def gzipped(path, rows):
  plain = json_lines(path.with_suffix('.tmp'), rows)
  path.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
  return path


def parquet_file(path, rows):
  parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=300)
  return path


def arrow_folder(path, rows):
  """A folder as `datasets.Dataset.save_to_disk` writes it, in 11 files."""
  path.mkdir()
  size = -(-len(rows) // 11)
  schema = pa.Table.from_pylist(rows).schema
  names = []
  for n in range(11):
    part = rows[n * size : (n + 1) * size]
    names.append({'filename': f'data-{n:05}-of-00011.arrow'})
    table = pa.Table.from_pylist(part, schema=schema)
    with ipc.new_stream(path / names[-1]['filename'], schema) as writer:
      writer.write_table(table, max_chunksize=37)
  (path / 'state.json').write_text(json.dumps({'_data_files': names}))
  (path / 'dataset_info.json').write_text('{}')
  return path


def arrow_file(path, rows):
  table = pa.Table.from_pylist(rows)
  with ipc.new_file(path, table.schema) as writer:
    writer.write_table(table, max_chunksize=100)
  return path


def parquet_folder(path, rows):
  path.mkdir()
  for n in range(12):  # part-10 follows part-9
    parquet_file(path / f'part-{n}.parquet', rows[n * 90 : (n + 1) * 90])
  return path


def parquet_pattern(path, rows):
  path.mkdir()
  parquet_file(path / 'test-0.parquet', rows[:3])
  parquet_file(path / 'train-0.parquet', rows[:600])
  parquet_file(path / 'train-1.parquet', rows[600:])
  return path / 'train-*.parquet'


FORMATS = {
  'jsonl': json_lines,
  'jsonl.gz': gzipped,
  'parquet': parquet_file,
  'saved': arrow_folder,
  'arrow': arrow_file,
  'parts': parquet_folder,
  'pattern': parquet_pattern,
}


def load(name, split='train', **kwargs):
  return dataset_lib.load(
    mixture_or_task_name=name,
    task_feature_lengths={'inputs': 16, 'targets': 8},
    split=split,
    prompt_format=prompt_format.PromptFormat(suffix=(1,)),
    vocabulary=tasks.VOCABULARY,
    **kwargs,
  )


def columns_of(dataset):
  [examples] = dataset.examples
  return [
    examples.prompts.ids,
    examples.prompts.starts,
    examples.targets.ids,
    examples.targets.starts,
    *examples.scores.values(),
  ]


@pytest.fixture(name='expected', scope='module')
def expected_fixture(tmp_path_factory):
  path = json_lines(tmp_path_factory.mktemp('expected') / 'a.jsonl', ROWS)
  files = {'train': str(path)}
  return {
    'pairs': columns_of(load(preference_files.pairs(files=files))),
    'rewards': columns_of(load(preference_files.rewards(files=files, k=2))),
  }


@pytest.mark.parametrize('form', FORMATS)
def test_a_thousand_rows_are_the_same_in_every_format(tmp_path, form, expected):
  path = FORMATS[form](tmp_path / f'rows.{form}', ROWS)
  files = {'train': str(path)}
  found = columns_of(
    load(preference_files.pairs(files=files), cache_dir=str(tmp_path / 'c'))
  )
  for one, other in zip(found, expected['pairs'], strict=True):
    np.testing.assert_array_equal(one, other)
  assert len(found[1]) == len(ROWS) + 1
  if form == 'parquet':
    found = columns_of(load(preference_files.rewards(files=files, k=2)))
    for one, other in zip(found, expected['rewards'], strict=True):
      np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(found[-1][:3], [[8.5, 0], [8.5, 1], [8.5, 2]])


@pytest.mark.parametrize('form', ['jsonl', 'parquet', 'saved', 'arrow'])
def test_bad_rows_are_named(tmp_path, form):
  rows = [*ROWS[:3], ROWS[3] | {'chosen': ROWS[3]['chosen'][:1]}, *ROWS[4:30]]
  path = FORMATS[form](tmp_path / f'rows.{form}', rows)
  # Of 11 files of 3 rows, row 4 is the first of the second file.
  place = 'data-00001-of-00011.arrow, row 1' if form == 'saved' else 'row 4'
  name = preference_files.pairs(files={'train': str(path)})
  with pytest.raises(
    ValueError, match=f"{place}: field 'chosen' has the turns"
  ):
    load(name)
  name = preference_files.pairs(files={'train': str(path)}, max_bad_rows=1)
  assert load(name).counts['rows_dropped'] == 1


@pytest.mark.parametrize(
  ('column', 'message'),
  [
    (pa.array([1, 2]), "row 1: field 'prompt' is 1, not a text or a list"),
    (pa.array([b'a', b'b']), 'is "b\'a\'", not a text or a list'),
    (pa.array([0.5, 2]), 'is 0.5, not'),
    (pa.array([None, None], pa.string()), "field 'prompt' is missing"),
    (pa.array([['a'], ['b']]), 'field \'prompt.0\' is "a", not an object'),
    (pa.array(['a', 'b\0']), "row 2: field 'prompt' has a NUL"),
    (
      pa.Array.from_buffers(
        pa.string(),
        2,
        [
          None,
          pa.py_buffer(np.array([0, 1, 2], np.int32)),
          pa.py_buffer(b'a\xff'),
        ],
      ),
      'row 2: not UTF-8: byte 0xff',
    ),
    (
      pa.array([{'role': 'user', 'content': 'a'}] * 2),
      'is {"content": "a", "role": "user"}, not|is {"role": "user"',
    ),
  ],
)
def test_a_column_of_another_type(tmp_path, column, message):
  table = pa.table(
    {'prompt': column, 'chosen': ['a'] * 2, 'rejected': ['b'] * 2}
  )
  parquet.write_table(table, tmp_path / 'p.parquet')
  files = {'train': str(tmp_path / 'p.parquet')}
  with pytest.raises(ValueError, match=f'p.parquet, .*{message}'):
    load(preference_files.pairs(files=files))


class TestPaths:
  def test_splits_of_a_folder(self, tmp_path):
    (tmp_path / 'dataset_dict.json').write_text('{"splits": ["train"]}')
    arrow_folder(tmp_path / 'train', ROWS[:20])
    with pytest.raises(
      ValueError, match='folder of the splits train. Name the'
    ):
      row_paths.files(str(tmp_path), 'TRAIN_FILE')

  def test_nothing(self, tmp_path):
    for path, message in (
      (tmp_path / 'none-*.parquet', 'No file matches .*none-.* .TRAIN_FILE.'),
      (tmp_path / 'none', 'There is no file .*none .TRAIN_FILE.'),
      (tmp_path, 'cannot be read: it is a folder without files'),
      ('', 'There is no file'),
    ):
      with pytest.raises(ValueError, match=message):
        row_paths.files(str(path), 'TRAIN_FILE')

  def test_damaged_tables(self, tmp_path):
    for form in ('parquet', 'arrow'):
      path = FORMATS[form](tmp_path / f'a.{form}', ROWS[:20])
      path.write_bytes(path.read_bytes()[:-20])
      name = preference_files.pairs(files={'train': str(path)})
      with pytest.raises(ValueError, match=f'a.{form} cannot be read: '):
        load(name)

  def test_identity_of_a_folder(self, tmp_path):
    path = str(parquet_folder(tmp_path / 'p', ROWS[:500]))
    before = row_paths.identify(path, 'TRAIN_FILE')
    assert before == row_paths.identify(path, 'TRAIN_FILE')
    parquet_file(tmp_path / 'p/part-2.parquet', ROWS[:7])
    assert row_paths.identify(path, 'TRAIN_FILE').digest != before.digest
    assert row_paths.identify(str(tmp_path / 'none'), 'TRAIN_FILE') is None


class TestColumns:
  def test_names_of_the_file(self, tmp_path):
    rows = [
      {'question': 'my dog', 'answers': {'good': 'a', 'bad': 'b'}, 'prompt': 1}
    ]
    columns = {
      'prompt': 'question',
      'chosen': 'answers.good',
      'rejected': 'answers.bad',
    }
    files = {'train': str(json_lines(tmp_path / 'a.jsonl', rows))}
    found = load(preference_files.pairs(files=files, columns=columns))
    plain = [{'prompt': 'my dog', 'chosen': 'a', 'rejected': 'b'}]
    files = {'train': str(json_lines(tmp_path / 'b.jsonl', plain))}
    expected = load(preference_files.pairs(files=files))
    for one, other in zip(*map(columns_of, (found, expected)), strict=True):
      np.testing.assert_array_equal(one, other)

  @pytest.mark.parametrize(
    ('columns', 'message'),
    [
      ({'promt': 'question'}, "COLUMNS names 'promt', .*one of prompt, "),
      ({'prompt': 3}, r"COLUMNS\['prompt'\] is 3: .* in quotes"),
    ],
  )
  def test_fields_that_cannot_be(self, columns, message):
    with pytest.raises(ValueError, match=message):
      preference_files.pairs(files={'train': '/a.jsonl'}, columns=columns)

  def test_errors_name_both(self, tmp_path):
    rows = [{'question': 3, 'chosen': 'a', 'rejected': 'b'}]
    files = {'train': str(json_lines(tmp_path / 'a.jsonl', rows))}
    for theirs, message in (
      ('question', "field 'prompt' is 3, .*'prompt' is 'question' of the file"),
      ('query', "field 'prompt' is missing .*'prompt' is 'query' of the file"),
      (None, "field 'prompt' is missing"),
    ):
      name = preference_files.pairs(files=files, columns={'prompt': theirs})
      with pytest.raises(ValueError, match=f'a.jsonl, row 1: {message}'):
        load(name)


class TestMixtures:
  def test_rates(self, tmp_path):
    one = json_lines(tmp_path / 'one.jsonl', ROWS[:40])
    two = parquet_file(tmp_path / 'two.parquet', ROWS[40:60])
    files = {'train': [(str(one), 3.0), (str(two), 1)], 'validation': str(two)}
    name = preference_files.pairs(files=files)
    assert name == preference_files.pairs(files=files)
    dataset = load(name)
    assert dataset.rates == (3.0, 1.0)
    assert [len(e) for e in dataset.examples] == [40, 20]
    validation = load(name, 'validation')
    assert [len(e) for e in validation.examples] == [20]
    with pytest.raises(ValueError, match="has no split 'test'"):
      load(name, 'test')

  @pytest.mark.parametrize(
    'wrong', ['a.jsonl', ('a.jsonl', 0), ('a.jsonl', -1), ('a', 'b'), ('a',), 3]
  )
  def test_pairs_that_are_none(self, wrong):
    with pytest.raises(
      ValueError, match='TRAIN_FILE. has .* no pair of a path'
    ):
      preference_files.pairs(files={'train': [wrong]})


def test_conversations_without_a_prompt(tmp_path):
  """The implicit form, as messages and as hh-rlhf writes it."""
  talk = lambda end: [TURN('user', 'my dog'), TURN('assistant', end)]
  said = lambda end: f'\n\nHuman: my dog\n\nAssistant: {end}'
  rows = [
    {'chosen': talk('a cat'), 'rejected': talk('a dog')},
    {'chosen': said('a cat'), 'rejected': said('a dog')},
  ]
  files = {'train': str(json_lines(tmp_path / 'a.jsonl', rows))}
  dataset = load(preference_files.pairs(files=files))
  first, second = (dataset.rows([(0, i)]).completions for i in range(2))
  for one, other in (
    (first.prompts, second.prompts),
    (first.completions, second.completions),
  ):
    np.testing.assert_array_equal(one.ids, other.ids)
  other = {'chosen': talk('a cat'), 'rejected': talk('a dog')[1:]}
  files = {'train': str(json_lines(tmp_path / 'b.jsonl', [other]))}
  with pytest.raises(
    ValueError, match="'rejected' has other turns before the c"
  ):
    load(preference_files.pairs(files=files))


@pytest.mark.parametrize(
  'messages',
  [
    [],
    [TURN('user', 'a')],
    [TURN('user', 'a'), TURN('assistant', 'b'), TURN('user', 'c')],
    [TURN('assistant', 'b')],
    [{'role': 'user'}, TURN('assistant', 'b')],
  ],
)
def test_messages_without_a_turn_of_each(tmp_path, messages):
  rows = [{'messages': messages}]
  files = {'train': str(json_lines(tmp_path / 'a.jsonl', rows))}
  with pytest.raises(ValueError, match="a.jsonl, row 1: field 'messages"):
    load(preference_files.supervised(files=files))
