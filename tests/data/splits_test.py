"""Tests of ranges of a split."""

import os

import numpy as np
import pytest

from ipo_md.data import splits
from tests.data import hand_made


@pytest.mark.parametrize(
  ('text', 'start', 'stop', 'size'),
  [
    ('train', 0, None, 40),
    ('train[:7]', 0, 7, 7),
    ('train[3:7]', 3, 7, 4),
    ('train[38:]', 38, None, 2),
    ('train[:]', 0, None, 40),
    ('train[30:99]', 30, 99, 10),
    ('train[50:99]', 50, 99, 0),
  ],
)
def test_read(text, start, stop, size):
  found = splits.read(text, place='Task t', names=('train', 'test'))
  assert found == splits.Split('train', start, stop)
  assert found.size(40) == size


def test_a_name_with_brackets_is_a_name():
  found = splits.read('a[:2]', place='Task t', names=('a[:2]', 'a'))
  assert found == splits.Split('a[:2]')


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('dev', "Task t has no split 'dev', only .'test', 'train'."),
    ('dev[:5]', "Task t has no split 'dev'"),
    ('train[:10%]', r"'train\[:10%\]' is no range .* such as 'train\[:1000\]'"),
    ('train[5]', r"'train\[5\]' is no range"),
    ('train[-5:]', r"'train\[-5:\]' is no range"),
    ('train[:5] ', 'is no range'),
    ('train[:5', 'is no range'),
    ('train[:0]', r"the range 'train\[:0\]' is empty"),
    ('train[5:5]', 'is empty'),
    ('train[7:5]', 'is empty'),
    ('', "has no split ''"),
    ('[:5]', "has no split ''"),
  ],
)
def test_refused(text, message):
  with pytest.raises(ValueError, match=message):
    splits.read(text, place='Task t', names=('train', 'test'))


@pytest.mark.parametrize(
  ('one', 'other', 'expected'),
  [
    ('test', 'test', True),
    ('test', 'train', False),
    ('test', 'test[5:]', True),
    ('test[:5]', 'test[4:]', True),
    ('test[:5]', 'test[5:]', False),
    ('test[2:5]', 'test[3:4]', True),
    ('test[:5]', 'train[:5]', False),
  ],
)
def test_overlap(one, other, expected):
  one, other = splits.parse(one), splits.parse(other)
  assert one.overlaps(other) == other.overlaps(one) == expected


@pytest.mark.parametrize('text', ['train[:5]', 'train[4:9]', 'train[36:]'])
@pytest.mark.parametrize('cached', [False, True])
def test_the_rows_are_those_of_the_whole(text, cached, tmp_path):
  cache_dir = str(tmp_path) if cached else None
  whole = hand_made.load(hand_made.supervised())
  part = hand_made.load(hand_made.supervised(), split=text, cache_dir=cache_dir)
  read = splits.read(text, place='', names=['train'])
  rows = range(40)[read.start : read.stop]
  assert len(part) == part.counts['examples'] == len(rows)
  np.testing.assert_array_equal(
    part.rows([(0, i) for i in range(len(rows))]).completions.completions.ids,
    whole.rows([(0, i) for i in rows]).completions.completions.ids,
  )


def test_each_range_has_a_cache_of_its_own(tmp_path):
  for text, size in (('train', 40), ('train[:5]', 5), ('train[:6]', 6)) * 2:
    found = hand_made.load(
      hand_made.supervised(), split=text, cache_dir=str(tmp_path)
    )
    assert len(found) == size
  assert len(os.listdir(tmp_path)) == 3


def test_a_range_beyond_the_end():
  with pytest.raises(ValueError, match=r'split train\[40:50\] has no examples'):
    hand_made.load(hand_made.supervised(), split='train[40:50]')


def test_a_bad_row_is_named_by_its_number_in_the_split():
  name = hand_made.add_task(
    'third_is_empty', {'inputs': [[3]] * 3 + [[]], 'targets': [[4, 1]] * 4}
  )
  assert len(hand_made.load(name, split='train[:3]')) == 3
  with pytest.raises(ValueError, match='Row 3 of task third_is_empty, split'):
    hand_made.load(name, split='train[2:]')
