"""Tests of prompt formats: the parts around a prompt and its truncation."""

import re

import numpy as np
import pytest

from ipo_md.data import prompt_format as prompt_format_lib
from tests.data import hand_made


def test_prompts_cut_at_the_front():
  name = hand_made.add_task('counted', {'inputs': [[3, 4, 5, 6, 7]]})
  front = prompt_format_lib.PromptFormat(
    prefix=(2,), suffix=(1,), cut_prompts='front'
  )
  tokens = hand_made.load(name, 4, prompts_only=True, prompt_format=front)
  np.testing.assert_array_equal(tokens.rows([(0, 0)]).ids, [[2, 6, 7, 1]])
  tokens = hand_made.load(name, 4, prompts_only=True)
  np.testing.assert_array_equal(tokens.rows([(0, 0)]).ids, [[2, 3, 4, 1]])


def test_closing_is_never_cut():
  name = hand_made.add_task('closed', {'inputs': [[3, 4, 5, 6, 7], [8]]})
  closed = prompt_format_lib.PromptFormat(
    prefix=(2,), suffix=(1,), closing='?', vocabulary=hand_made.VOCABULARY
  )
  mark = ord('?') + 3
  dataset = hand_made.load(name, 5, prompts_only=True, prompt_format=closed)
  tokens = dataset.rows([(0, 0), (0, 1)])
  np.testing.assert_array_equal(
    tokens.ids, [[2, 3, 4, mark, 1], [2, 8, mark, 1, 0]]
  )
  bare = closed.bare(tokens)
  np.testing.assert_array_equal(bare.mask, [[0, 1, 1, 0, 0], [0, 1, 0, 0, 0]])
  assert dataset.counts['prompts_cut'] == 1


def test_texts_around_the_prompt():
  chat = prompt_format_lib.PromptFormat(
    prefix=(2, '<'), suffix=('>', 1), vocabulary=hand_made.VOCABULARY
  )
  opening, ending = ord('<') + 3, ord('>') + 3
  tokens = chat.tokens([np.array([5, 6, 7])], 6)
  assert tokens.ids.tolist() == [[2, opening, 5, 6, ending, 1]]


def test_cut_prompts():
  with pytest.raises(ValueError, match='cut_prompts'):
    prompt_format_lib.PromptFormat(cut_prompts='middle')


def test_closing_without_a_vocabulary():
  with pytest.raises(ValueError, match='VOCABULARY'):
    prompt_format_lib.PromptFormat(closing='TL;DR:')


@pytest.mark.parametrize('part', [-5, None, 1.5, True, (1, 2)])
def test_a_part_that_is_no_id_is_named(part):
  with pytest.raises(ValueError, match=f'part {re.escape(repr(part))} in'):
    prompt_format_lib.PromptFormat(prefix=(part,))
