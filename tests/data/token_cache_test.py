"""Tests of the cache of tokens on disk."""

import functools
import importlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import seqio
import tensorflow as tf

from ipo_md.data import dataset as dataset_lib
from ipo_md.data import examples
from ipo_md.data import prompt_format
from ipo_md.data import token_cache

_VOCABULARY = seqio.ByteVocabulary()


def _lines(path, *, suffix='', vocabulary=_VOCABULARY):
  """Makes a task on the lines 'prompt|target' of a file."""

  @seqio.map_over_dataset
  def split_line(line, suffix):
    parts = tf.strings.split(line, '|')
    return {'inputs': parts[0] + suffix, 'targets': parts[1]}

  return seqio.Task(
    'lines',
    source=seqio.TextLineDataSource({'train': str(path)}),
    preprocessors=[
      functools.partial(split_line, suffix=suffix),
      seqio.preprocessors.tokenize,
      seqio.preprocessors.append_eos_after_trim,
    ],
    output_features={
      'inputs': seqio.Feature(vocabulary, add_eos=False),
      'targets': seqio.Feature(vocabulary),
    },
  )


@pytest.fixture
def path(tmp_path):
  file = tmp_path / 'lines.txt'
  file.write_text('one|1\ntwo two|22\nthree|\u00e9\n')
  return file


def _load(task, tmp_path, lengths=None):
  return token_cache.load(
    task,
    split='train',
    feature_lengths=lengths or {'inputs': 9, 'targets': 9},
    cache_dir=str(tmp_path / 'cache'),
  )


def _caches(tmp_path):
  return sorted(os.listdir(tmp_path / 'cache'))


def _assert_same(a, b):
  for x, y in ((a.prompts, b.prompts), (a.targets, b.targets)):
    np.testing.assert_array_equal(x.ids, y.ids)
    np.testing.assert_array_equal(x.starts, y.starts)
  assert a.k == b.k
  assert a.scores.keys() == b.scores.keys()


class TestCache:
  def test_same_examples_as_without_cache(self, path, tmp_path):
    task = _lines(path)
    plain = examples.tokenise(
      task, split='train', feature_lengths={'inputs': 9, 'targets': 9}
    )
    _assert_same(_load(task, tmp_path), plain)
    assert _VOCABULARY.decode(plain.prompts.row(1).tolist()) == 'two two'
    assert plain.targets.row(2).tolist() == [0xC3 + 3, 0xA9 + 3, 1]

  def test_made_once(self, path, tmp_path, monkeypatch):
    first = _load(_lines(path), tmp_path)
    monkeypatch.setattr(examples, 'chunks', None)
    second = _load(_lines(path), tmp_path)
    _assert_same(first, second)
    assert isinstance(second.prompts.ids, np.memmap)

  @pytest.mark.parametrize(
    'change', ['file', 'lengths', 'argument', 'vocabulary', 'bad rows']
  )
  def test_stale(self, path, tmp_path, change, monkeypatch):
    _load(_lines(path), tmp_path)
    if change == 'file':
      path.write_text('four|4\n')
      assert len(_load(_lines(path), tmp_path)) == 1
    elif change == 'lengths':
      _load(_lines(path), tmp_path, {'inputs': 9, 'targets': 2})
    elif change == 'argument':
      changed = _load(_lines(path, suffix='!'), tmp_path)
      assert changed.prompts.row(0)[-1] == ord('!') + 3
    elif change == 'bad rows':
      monkeypatch.setenv('MAX_BAD_ROWS', '2')
      _load(_lines(path), tmp_path)
    else:
      _load(_lines(path, vocabulary=seqio.ByteVocabulary(7)), tmp_path)
    assert len(_caches(tmp_path)) == 2

  def test_damaged_cache_is_made_again(self, path, tmp_path):
    task = _lines(path)
    plain = examples.tokenise(
      task, split='train', feature_lengths={'inputs': 9, 'targets': 9}
    )
    _load(task, tmp_path)
    (name,) = _caches(tmp_path)
    for damaged in ('inputs.bin', 'info.json'):
      file = tmp_path / 'cache' / name / damaged
      file.write_bytes(file.read_bytes()[:-4])
      _assert_same(_load(task, tmp_path), plain)
      assert _caches(tmp_path) == [name]

  def test_the_directory_is_local(self, path):
    with pytest.raises(ValueError, match='CACHE_DIR gs://b/c is not a local'):
      token_cache.load(
        _lines(path), split='train', feature_lengths={}, cache_dir='gs://b/c'
      )

  def test_interrupted_leaves_nothing(self, path, tmp_path, monkeypatch):
    chunks = examples.chunks

    def interrupted(*args):
      yield next(chunks(*args))
      raise KeyboardInterrupt

    monkeypatch.setattr(examples, 'chunks', interrupted)
    with pytest.raises(KeyboardInterrupt):
      _load(_lines(path), tmp_path)
    assert not _caches(tmp_path)

  def test_killed_process_is_cleaned_up_after(self, path, tmp_path):
    cache = tmp_path / 'cache'
    code = (
      'import os, signal\n'
      'from ipo_md.data import token_cache\n'
      f'with token_cache._unfinished({str(cache)!r}) as folder:\n'
      "  open(os.path.join(folder, 'inputs.bin'), 'w').close()\n"
      '  os.kill(os.getpid(), signal.SIGKILL)\n'
    )
    cache.mkdir()
    killed = subprocess.run([sys.executable, '-c', code])
    assert killed.returncode == -signal.SIGKILL
    assert _caches(tmp_path)[0].startswith('unfinished-')
    with token_cache._unfinished(str(cache)) as writing:
      assert _caches(tmp_path) == [os.path.basename(writing)]
      _load(_lines(path), tmp_path)
      assert os.path.exists(writing)
    (name,) = _caches(tmp_path)
    assert name.startswith('lines-train-')

  def test_info_describes_the_cache(self, path, tmp_path):
    _load(_lines(path), tmp_path)
    (name,) = _caches(tmp_path)
    info = json.loads((tmp_path / 'cache' / name / 'info.json').read_text())
    assert info['source']['feature_lengths'] == {'inputs': 9, 'targets': 9}
    assert info['source']['files'][0][0] == str(path)
    assert any('token_cache_test' in name for name in info['source']['code'])

  def test_code_of_the_task(self, path, tmp_path, monkeypatch):
    """A change of any loaded module of the task's package is noticed."""
    package = tmp_path / 'my_package'
    package.mkdir()
    (package / '__init__.py').write_text('')
    (package / 'layout.py').write_text('SUFFIX = ""\n')
    (package / 'news.py').write_text(
      'from my_package import layout\n\n\n'
      'def keep(dataset):\n  return dataset\n'
    )
    (package / 'unused.py').write_text('')
    monkeypatch.syspath_prepend(tmp_path)
    news = importlib.import_module('my_package.news')
    task = _lines(path)
    code = functools.partial(token_cache.describe, task, 'train', {'inputs': 9})
    assert not any(name.startswith('my_package') for name in code()['code'])
    expected = {'my_package', 'my_package.layout', 'my_package.news'}
    named = code('my_package.news')['code']
    assert {n for n in named if n.startswith('my_package')} == expected
    assert 'ipo_md.data.examples' in named
    task = task.replace(preprocessors=[news.keep, *task.preprocessors])
    found = token_cache.describe(task, 'train', {'inputs': 9})['code']
    assert expected <= found.keys()
    (package / 'layout.py').write_text('SUFFIX = "!"\n')
    changed = token_cache.describe(task, 'train', {'inputs': 9})['code']
    assert {n for n in found if found[n] != changed[n]} == {'my_package.layout'}

  def test_through_data_load(self, path, tmp_path):
    task = _lines(path)
    if task.name not in seqio.TaskRegistry.names():
      seqio.TaskRegistry.add_provider(task.name, task)
    dataset = dataset_lib.load(
      mixture_or_task_name='lines',
      task_feature_lengths={'inputs': 9, 'targets': 9},
      split='train',
      prompt_format=prompt_format.PromptFormat(),
      vocabulary=seqio.ByteVocabulary(5),
      cache_dir=str(tmp_path / 'cache'),
    )
    assert dataset.vocabulary.vocab_size == 264
    assert dataset.counts['examples'] == 3


def test_a_reader_that_is_imported_later(path, monkeypatch):
  """The fingerprint is that of a process which has read a task already."""
  describe = lambda: token_cache.describe(
    _lines(path), 'train', {'inputs': 9, 'targets': 9}
  )
  importlib.import_module('ipo_md.data.hf_vocabulary')
  after = describe()
  monkeypatch.delitem(sys.modules, 'ipo_md.data.hf_vocabulary')
  assert describe() == after
