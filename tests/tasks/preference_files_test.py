"""Tests of preference files and XSum on hand-made JSON lines."""

import gzip
import json

import numpy as np
import pytest
import seqio

from ipo_md.data import dataset as dataset_lib
from ipo_md.data import prompt_format
from tasks import preference_files
from tasks.mini_tldr import tasks

pytestmark = pytest.mark.slow

VOCABULARY = tasks.VOCABULARY
PAIRS = [
  {'prompt': 'my dog', 'chosen': 'a dog', 'rejected': 'a cat'},
  {
    'prompt': 'my cat',
    'chosen': [
      {'role': 'user', 'content': 'my cat'},
      {'role': 'assistant', 'content': 'a cat'},
    ],
    'rejected': [{'role': 'assistant', 'content': 'dog'}],
  },
]
SCORED = [
  {'prompt': 'my dog', 'completions': ['a', 'b', 'c'], 'scores': [1, '2.5', 0]},
  {'prompt': 'my cat', 'completions': ['a', 'b'], 'scores': [0.25, -1]},
]


def _write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return {'train': str(path)}


def _load(name, split='train', **kwargs):
  return dataset_lib.load(
    mixture_or_task_name=name,
    task_feature_lengths={'inputs': 16, 'targets': 8},
    split=split,
    prompt_format=prompt_format.PromptFormat(suffix=(1,)),
    vocabulary=VOCABULARY,
    **kwargs,
  )


def _turns(*roles):
  messages = [{'role': role, 'content': 'a'} for role in roles]
  return json.dumps({'prompt': 'a', 'chosen': messages, 'rejected': 'c'})


def _texts(row):
  tokens = row.completions.completions
  return [
    VOCABULARY.decode(tokens.ids[0, k][tokens.mask[0, k]].tolist()[:-1])
    for k in range(tokens.ids.shape[1])
  ]


# A row of pairs, and what is said of it.
BAD_ROWS = [
  ('{"prompt": "a"', 'pairs.jsonl, row 3: not JSON'),
  ('[1, 2]', 'row 3: not an object'),
  (
    '{"prompt": "a", "chosen": "b"}',
    "row 3: field 'rejected' is missing",
  ),
  (
    '{"prompt": "a", "chosen": 1, "rejected": "c"}',
    "row 3: field 'chosen' is 1",
  ),
  (
    '{"prompt": " ", "chosen": "b", "rejected": "c"}',
    "row 3: field 'prompt' is empty",
  ),
  (
    '{"prompt": "\\ud83d", "chosen": "b", "rejected": "c"}',
    "row 3: field 'prompt' has half of a surrogate pair",
  ),
  ('[' * 100_000, 'row 3: not JSON'),
  (
    '{"prompt": "a\\u0000", "chosen": "b", "rejected": "c"}',
    "row 3: field 'prompt' has a NUL character at 1",
  ),
  (
    '{"prompt": "a", "prompt": "d", "chosen": "b", "rejected": "c"}',
    "row 3: field 'prompt' is there twice",
  ),
  (
    '{"prompt": [{"role": "system", "content": "a"}, {"role": "user", '
    '"content": "a"}], "chosen": "b", "rejected": "c"}',
    "row 3: field 'prompt' has the turns system, user before the completion"
    '. Only a chat template reads more .* set CHAT_TEMPLATE',
  ),
  (
    '{"prompt": [], "chosen": "b", "rejected": "c"}',
    "row 3: field 'prompt' is empty",
  ),
  (
    '{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", '
    '"content": "a"}], "chosen": "b", "rejected": "c"}',
    "row 3: field 'prompt' ends with a turn of the assistant",
  ),
  (
    '{"prompt": "a", "system": "d", "chosen": "b", "rejected": "c"}',
    "row 3: field 'prompt' has the turns system, user before",
  ),
  (
    '{"prompt": "a", "history": [["d", "e"]], "chosen": "b", "rejected": "c"}',
    "row 3: field 'history' is not read",
  ),
  (
    '{"prompt": "a", "tools": [{"name": "d"}], "chosen": "b", "rejected": "c"}',
    "row 3: field 'tools' is not read",
  ),
  (
    '{"prompt": "a", "completion": "b", "label": true}',
    "row 3: field 'label' marks one completion as good or bad",
  ),
  (
    '{"chosen": "b", "rejected": "c"}',
    "row 3: field 'prompt' is missing",
  ),
  *(
    (
      _turns(*turns),
      f"row 3: field 'chosen' has the turns {named} before the completion",
    )
    for turns, named in (
      (
        ['user', 'assistant', 'user', 'assistant'],
        'user, assistant, user',
      ),
      (['system', 'user', 'assistant'], 'system, user'),
    )
  ),
  *(
    (
      _turns(*turns),
      "row 3: field 'chosen' has other turns before the completion",
    )
    for turns in (['system', 'assistant'], ['assistant', 'assistant'])
  ),
  *(
    (
      _turns(*turns),
      f"row 3: field 'chosen' has the turns {named}. The last one must be",
    )
    for turns, named in (
      (['user', 'assistant', 'user'], 'user, assistant, user'),
      (['user'], 'user'),
      (['assistant', 'user'], 'assistant, user'),
      (['user', 'assistant', 'tool'], 'user, assistant, tool'),
      (['model'], 'model'),
      ([], 'none'),
    )
  ),
  (
    _turns('user', 'assistant').replace('"a"', '"b"', 1),
    "field 'chosen.0.content' is another text than `prompt`",
  ),
  (
    '{"prompt": "a", "chosen": [{"from": "gpt", "text": "b"}]}',
    "field 'chosen.0.value' is missing",
  ),
  (
    '{"prompt": "a", "chosen": [{"content": "b"}]}',
    "field 'chosen.0.role' is missing",
  ),
  (
    '{"prompt": "a", "chosen": [{"role": "assistant", "content": "", '
    '"tool_calls": [1]}]}',
    "field 'chosen.0.tool_calls' is not supported",
  ),
  (
    '{"prompt": "a", "chosen": [{"role": "assistant", "content": '
    '[{"type": "text", "text": "b"}]}]}',
    r"field 'chosen.0.content' is .* not a text",
  ),
]


class TestPairs:
  def test_rows(self, tmp_path):
    files = _write(tmp_path / 'pairs.jsonl', PAIRS)
    name = preference_files.pairs(files=files)
    assert preference_files.pairs(files=files) == name
    dataset = _load(name)
    assert _texts(dataset.rows([(0, 0)])) == ['a dog', 'a cat']
    assert _texts(dataset.rows([(0, 1)])) == ['a cat', 'dog']
    assert dataset.rows([(0, 0), (0, 1)]).preference.tolist() == [1, 1]

  def test_gzip_and_cache(self, tmp_path):
    path = tmp_path / 'pairs.jsonl.gz'
    with gzip.open(path, 'wt') as file:
      file.writelines(json.dumps(row) + '\n' for row in PAIRS)
    name = preference_files.pairs(files={'train': str(path)})
    cache = str(tmp_path / 'cache')
    assert len(_load(name, cache_dir=cache)) == 2
    with gzip.open(path, 'wt') as file:
      file.write(json.dumps(PAIRS[0]) + '\n')
    assert len(_load(name, cache_dir=cache)) == 1

  @pytest.mark.parametrize(('line', 'match'), BAD_ROWS)
  def test_bad_rows(self, tmp_path, line, match):
    files = _write(tmp_path / 'pairs.jsonl', PAIRS)
    with open(files['train'], 'a') as file:
      file.write(line + '\n')
    with pytest.raises(ValueError, match=match):
      _load(preference_files.pairs(files=files))

  def test_bad_rows_are_left_out(self, tmp_path):
    files = _write(tmp_path / 'pairs.jsonl', PAIRS)
    with open(files['train'], 'a') as file:
      file.writelines(line + '\n' for line, _ in BAD_ROWS)
    assert len(_load(preference_files.pairs(files=files, max_bad_rows=99))) == 2
    with pytest.raises(ValueError, match='row 3: not JSON'):
      _load(preference_files.pairs(files=files, max_bad_rows=1))

  def test_missing_and_unreadable_files(self, tmp_path):
    for path, message in (
      (tmp_path / 'none', f'There is no file {tmp_path / "none"}'),
      (tmp_path, f'{tmp_path} cannot be read: it is a folder'),
    ):
      name = preference_files.pairs(files={'train': str(path)})
      with pytest.raises(ValueError, match=message):
        _load(name)
    path = tmp_path / 'cut.jsonl.gz'
    path.write_bytes(gzip.compress(json.dumps(PAIRS[0]).encode())[:-9])
    name = preference_files.pairs(files={'train': str(path)})
    with pytest.raises(ValueError, match='cut.jsonl.gz cannot be read'):
      _load(name)

  def test_counts(self, tmp_path):
    rows = [
      {'prompt': 'my dog </s>', 'chosen': 'a', 'rejected': 'a'},
      {'prompt': 'my dog', 'chosen': '', 'rejected': '  '},
      {'prompt': 'my dog', 'chosen': 'a <pad>', 'rejected': ''},
      {'prompt': 'my dog', 'chosen': 'a ' * 9, 'rejected': 'a ' * 8},
    ]
    bad = {'prompt': 'a'}
    files = _write(tmp_path / 'counts.jsonl', [bad, *rows[:2], bad, *rows[2:]])
    with open(files['train'], 'a') as file:
      file.write('{}\n')
    name = preference_files.pairs(files=files, max_bad_rows=3)
    cache = str(tmp_path / 'cache')
    for _ in range(2):
      counts = _load(name, cache_dir=cache).counts
      assert counts | {'tokens_unknown': 0} == {
        'examples': 4,
        'prompts_cut': 0,
        'targets_cut': 2,
        'completions_missing': 0,
        # The first, the empty one and the one that is cut.
        'completions_identical': 3,
        'tokens_unknown': 0,
        'rows_dropped': 3,
        'rows_empty': 1,
        'prompts_with_special_tokens': 1,
        'prompts_trimmed': 0,
        'completions_with_special_tokens': 1,
        'completions_trimmed': 0,
        'completions_empty': 3,
      }
      assert counts['tokens_unknown'] > 0  # of </s> and <pad>
    bare = _load(name, prompts_only=True).counts
    assert [k for k in bare if k.startswith(('comp', 'targets'))] == []
    assert bare['rows_dropped'] == 3


class TestRewards:
  def test_rows(self, tmp_path):
    files = _write(tmp_path / 'scored.jsonl', SCORED)
    dataset = _load(preference_files.rewards(files=files, k=4))
    rows = dataset.rows([(0, 0), (0, 1)])
    np.testing.assert_array_equal(
      rows.rewards, [[1, 2.5, 0, 0], [0.25, -1, 0, 0]]
    )
    assert rows.completion_mask.sum(axis=1).tolist() == [3, 2]

  @pytest.mark.parametrize(
    ('row', 'match'),
    [
      (SCORED[0] | {'scores': [1, 2]}, "'scores' has 2 for 3"),
      (
        SCORED[0] | {'scores': [1, 2, 'x']},
        "'scores.2' is 'x', not a number",
      ),
      (SCORED[0] | {'scores': [1, 2, 10**400]}, "'scores.2' is inf"),
      (
        SCORED[0] | {'scores': [1, 2, -1e300]},
        "row 1: field 'scores.2' is -1e.300, too large",
      ),
      (SCORED[0] | {'scores': [1, 2, float('nan')]}, "'scores.2' is nan"),
      (
        SCORED[0] | {'completions': ['a'] * 5},
        "'completions' has 5, more than k = 4",
      ),
      (
        SCORED[0] | {'completions': ['a'], 'scores': [1]},
        "row 1: field 'completions' has 1, whose score has no other to compare "
        'with',
      ),
    ],
  )
  def test_bad_rows(self, tmp_path, row, match):
    files = _write(tmp_path / 'scored.jsonl', [row])
    with pytest.raises(ValueError, match=match):
      _load(preference_files.rewards(files=files, k=4))


class TestSupervised:
  def test_both_formats(self, tmp_path):
    files = _write(tmp_path / 'mixed.jsonl', [PAIRS[0], SCORED[0]])
    dataset = _load(preference_files.supervised(files=files))
    assert _texts(dataset.rows([(0, 0)])) == ['a dog']
    assert _texts(dataset.rows([(0, 1)])) == ['b']

  @pytest.mark.parametrize('label', [True, False])
  def test_rows_with_a_label(self, tmp_path, label):
    row = {'prompt': 'a', 'completion': 'b', 'label': label}
    files = _write(tmp_path / 'labelled.jsonl', [row])
    with pytest.raises(ValueError, match="row 1: field 'label' marks one"):
      _load(preference_files.supervised(files=files))


def test_the_vocabulary_of_bytes(tmp_path):
  files = _write(tmp_path / 'pairs.jsonl', PAIRS)
  dataset = dataset_lib.load(
    mixture_or_task_name=preference_files.pairs(files=files),
    task_feature_lengths={'inputs': 16, 'targets': 8},
    split='train',
    prompt_format=prompt_format.PromptFormat(),
    vocabulary=seqio.ByteVocabulary(),
  )
  rows = dataset.rows([(0, 0)])
  assert rows.completions.completions.ids[0, 0, :6].tolist() == [
    *(b + 3 for b in b'a dog'),
    1,
  ]


class TestXsum:
  def test_json_lines(self, tmp_path, monkeypatch):
    monkeypatch.setenv('XSUM_DIR', str(tmp_path))
    row = {'document': 'my dog.', 'summary': 'a dog.', 'id': '1'}
    _write(tmp_path / 'train.jsonl', [row])
    rows = _load('xsum_prompts', module='tasks.xsum').rows([(0, 0)])
    prompt = rows.completions.prompts
    assert prompt.ids[0, : prompt.mask.sum()].tolist() == [
      *VOCABULARY.encode('POST: my dog.'),
      1,
    ]
    assert _texts(rows) == ['a dog.']
    with pytest.raises(ValueError, match='There is no file .*test.jsonl'):
      _load('xsum_prompts', 'test', module='tasks.xsum')

  def test_bad_rows(self, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('XSUM_DIR', str(tmp_path))
    rows = [
      {'document': 'my dog.', 'summary': 'a dog.', 'id': '1'},
      {'document': ' ', 'summary': 'nothing.', 'id': '2'},
    ]
    _write(tmp_path / 'train.jsonl', rows)
    with pytest.raises(ValueError, match="row 2: field 'document' is empty"):
      _load('xsum_prompts', module='tasks.xsum')
    monkeypatch.setenv('MAX_BAD_ROWS', '1')
    assert len(_load('xsum_prompts', module='tasks.xsum')) == 1
    assert 'Bad rows left out: 1' in capsys.readouterr().err
    monkeypatch.setenv('MAX_BAD_ROWS', 'all')
    with pytest.raises(ValueError, match="MAX_BAD_ROWS = 'all'"):
      _load('xsum_prompts', module='tasks.xsum')

  def test_neither(self, tmp_path, monkeypatch):
    monkeypatch.delenv('XSUM_DIR', raising=False)
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    with pytest.raises(ValueError, match='set XSUM_DIR to a directory'):
      _load('xsum_prompts', module='tasks.xsum')
