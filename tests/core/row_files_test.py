"""Tests of the reader of every file of texts and rows."""

import gzip
import json

import pytest

from ipo_md.core import row_files
from ipo_md.data import conversations

SEPARATORS = ['\u2028', '\u2029', '\u0085', '\f', '\v', '\x1c', '\x1d', '\r']


def prompts_of(path):
  found = conversations.prompts_of(str(path), 'PROMPTS_FILE')
  return [conversations.plain(messages) for _, messages in found]


def rows_of(path, **kwargs):
  return [v for _, v in row_files.read([str(path)], dict, **kwargs)]


@pytest.mark.parametrize('separator', SEPARATORS)
def test_a_line_ends_at_a_line_feed_alone(tmp_path, separator):
  text = f'a{separator}b'
  path = tmp_path / 'prompts.txt'
  path.write_bytes(f'{text}\nc\n'.encode())
  assert prompts_of(path) == [text, 'c']
  assert list(row_files.lines(str(path))) == [text, 'c']
  path = tmp_path / 'prompts.jsonl'
  line = json.dumps({'prompt': text}, ensure_ascii=False)
  path.write_bytes(f'{line}\n{line}'.encode())
  assert prompts_of(path) == [text, text]
  assert rows_of(path) == [{'prompt': text}] * 2


@pytest.mark.parametrize('name', ['p.txt', 'p.jsonl', 'p.jsonl.gz', 'p.gz'])
@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('mark', ['', '\ufeff'])
@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_forms_of_a_file(tmp_path, name, zipped, mark, end):
  """A file is unzipped by its content, whatever its name says."""
  texts = ['caf\u00e9', '\u65e5\u672c \U0001f642']
  lines = texts
  if 'jsonl' in name:
    lines = [json.dumps({'prompt': text}) for text in texts]
  content = (mark + ''.join(line + end for line in lines)).encode()
  path = tmp_path / name
  path.write_bytes(gzip.compress(content, mtime=0) if zipped else content)
  assert prompts_of(path) == texts


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'a\ncaf\xe9\n', 'row 2: not UTF-8: byte 0xe9 at 3; convert the file'),
    ('a'.encode('utf-16'), 'row 1: the file is UTF-16'),
    (b'a\nb\0\n', 'row 2: the prompt has a NUL character at 1'),
    (b'a\n\nb\n', 'row 2: the prompt is empty'),
    (b'a\n \xe3\x80\x80\n', 'row 2: the prompt is empty'),
    (b'a\n\xef\xbb\xbfb\n', 'row 2: starts with a byte order mark'),
    (b'', 'is empty'),
    (gzip.compress(b'a\n' * 99, mtime=0)[:-9], 'cannot be read'),
    (b'\x1f\x8b', 'cannot be read'),
    (b'\x1f\x8b\x08' + b'\x00' * 30, 'cannot be read'),
    (b'\xed\xa0\xbd\n', 'row 1: not UTF-8'),
  ],
)
def test_texts_that_are_refused(tmp_path, content, message):
  path = tmp_path / 'prompts.txt'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=f'PROMPTS_FILE.* {message}|{message}'):
    prompts_of(path)


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ('{"text": "a"}', "field 'prompt' is missing"),
    ('{"prompt": "a\\ud83d"}', "field 'prompt' has half of a surrogate pair"),
    ('{"prompt": "\\udc00a"}', 'half of a surrogate pair at 0'),
    ('{"prompt": "a\\u0000"}', "field 'prompt' has a NUL"),
    ('{"prompt": ["a"]}', "field 'prompt.0' is .* not an object"),
    ('{"prompt": true}', 'is true, not a text'),
    ('{"prompt": "\\n\\t"}', "field 'prompt' is empty"),
    ('{"prompt": "a", "prompt": "b"}', "field 'prompt' is there twice"),
    ('["a"]', 'not an object'),
    ('"a"', 'not an object'),
    ('{"prompt": "a"} {"prompt": "b"}', 'not JSON: Extra data'),
    ('{"prompt": ' + '9' * 5000 + '}', 'not JSON'),
  ],
)
def test_rows_that_are_refused(tmp_path, row, message):
  path = tmp_path / 'prompts.jsonl'
  path.write_text('{"prompt": "a"}\n\n' + row + '\n')
  place = f'PROMPTS_FILE {path}, row 3: .*{message}'
  with pytest.raises(ValueError, match=place):
    prompts_of(path)


def test_files_that_are_none(tmp_path):
  for path, message in (
    (tmp_path / 'none', 'There is no file .*none .PROMPTS_FILE.'),
    (tmp_path, '.PROMPTS_FILE. cannot be read: it is a folder'),
    ('', 'There is no file  .PROMPTS_FILE.'),
  ):
    with pytest.raises(ValueError, match=message):
      prompts_of(path)


def test_bad_rows_are_listed(tmp_path, capsys):
  path = tmp_path / 'rows.jsonl'
  path.write_bytes(b'{"a": 1}\n[]\n{"a": "\xff"}\n')
  bad = []
  assert rows_of(path, max_bad_rows=2, bad=bad) == [{'a': 1}]
  assert [line.split(': ')[0] for line in bad] == [
    f'{path}, row 2',
    f'{path}, row 3',
  ]
  assert 'Bad rows left out: 2' in capsys.readouterr().err
