r"""Tests of the reading of a language model's text, by what a reader would say.

Each text is read twice: as it is, and with the two names swapped, which has to
swap what is read.
"""

import re

import pytest

from ipo_md.judges import answers

ONE = (
  '1',
  ' 1',
  '1.',
  '**1**',
  '`1`',
  '(1)',
  '[1]',
  '[[1]]',
  '"1"',
  "'1'",
  '1!',
  '１',
  '１。',
  '①',
  '#1',
  '1</s>',
  '1<|im_end|>',
  '\n\n1\n\n',
  'One',
  'one.',
  'First',
  '1st',
  'Summary 1',
  'summary #1.',
  'Summary one',
  'Summary - 1',
  'The first summary.',
  'The first one is better.',
  'Option 1',
  'Response 1 is better.',
  'Answer: 1',
  '**Answer:** 1',
  'Answer: Summary 1',
  'Final answer: [[1]]',
  'Preferred summary: 1',
  'Preferred Summary - 1',
  'The answer is 1.',
  'My choice is Summary 1.',
  'The better summary is 1.',
  'The better of the 2 summaries is 1.',
  '$\\boxed{1}$',
  '<answer>1</answer>',
  '{"answer": 1}',
  '{"winner": "1", "reason": "2 misses the point"}',
  '```json\n{"preferred": 1}\n```',
  '1\n\nBecause it is more accurate.',
  '1 because 2 leaves out the main point.',
  '1, because it names the cause.',
  '1 - it is closer to the text.',
  '1: it is closer to the text.',
  '1 - Summary 2 has more details, but some of them are false.',
  '1, although 2 is better written.',
  '1 <|endoftext|>',
  '答案：1',
  '1️⃣',
  '1\n\n2. It is shorter.',
  '1. It is shorter.',
  '1. While 2 is more concise, 1 is more complete.',
  '1, not 2',
  '1 (not 2)',
  '1 rather than 2',
  '1 over 2',
  '1 > 2',
  '2 < 1',
  '1 is better than 2',
  'Summary 1 is better than Summary 2.',
  'Summary 1 is slightly better than summary 2, since it is complete.',
  '2 is worse than 1.',
  'Summary 2 is not as good as Summary 1.',
  'Not 2, but 1.',
  'I prefer 1.',
  'I prefer summary 1 over summary 2.',
  'I would choose 1',
  'Both are good, but 1 is better.',
  'Neither is perfect, but summary 1 is slightly better.',
  'Of the 2 summaries, 1 is better.',
  'Summary 1 wins.',
  'I think 1',
  'Definitely 1!',
  'Summary 2 is short. Summary 1 names the cause.\n\nAnswer: 1',
  'Summary 2 is short. Summary 1 names the cause.\n1',
  'Summary 2 is short and summary 1 is long. Therefore, 1.',
  'Answer: 2. Wait, that is not so.\nAnswer: 1',
  'Which one is better, 1 or 2? 1',
  '<think>Summary 2 is short, and 1 is long.</think>\n1',
  'Summary 2 is short, so 2?</think>1',
  '<think>2</think><think>2</think>1',
  '<thinking>I prefer 2.</thinking>\n\nSummary 1',
  '[THINK]2 is better[/THINK]1',
  '◁think▷2 is better◁/think▷1',
  '<|channel|>analysis<|message|>2 is better<|end|><|start|>assistant'
  '<|channel|>final<|message|>1',
)
ONE += (
  'Summary 1 is more accurate than Summary 2.',
  'Summary 1 is more concise and accurate.',
  '2 is less clear than 1.',
  'The correct answer is not 2, it is 1.',
  '2 loses to 1',
  'Summary 2 has 3 errors, so 1',
  'Choose between 1 and 2: 1',
  'Output 1 or 2: 1',
  "I'd say 1.",
  'I vote 1',
  'I believe it is summary 1.',
)
NEITHER = (
  'Loser: 1',
  'Rejected: 1',
  'I reject 1.',
  'I dislike 1',
  'Less good: 1',
  'Not better: 1',
  'Worse: 1',
  'The worse summary is 1.',
  '1 is terrible.',
  '1 is incoherent.',
  '1 is too long.',
  '1 does badly',
  'Step 1: read the text.',
  '1. Read both summaries carefully',
  'Rating: 1',
  'Score: 1',
  'I have 2 hands.',
  'Page 1',
  'Error 1',
  'If accuracy matters, answer: 1. If style matters, answer: 2.',
  '1 is not more accurate than 2',
  '',
  ' ',
  '12',
  '1.5',
  '1,5',
  '1/2',
  '½',
  '-1',
  'v1',
  '1%',
  '3',
  '0',
  'A',
  'both',
  'Neither',
  'Neither.',
  'Neither of the 2 summaries is good.',
  'Neither of these 2.',
  'Both of the 2 are equal',
  'Both of the 2 summaries are poor.',
  'Neither 1 nor 2',
  'Neither 1 nor 2 is good.',
  'Not 1',
  'Not 1.',
  'not summary 1',
  'Definitely not 1',
  'I would not choose 1.',
  "It isn't 1.",
  '1 or 2',
  '1 and 2',
  '1 and 2 are equal.',
  '1, 2',
  '1 2',
  '1\n2',
  '1/2',
  '1 = 2',
  '1 vs. 2',
  '1 or 2?',
  '1?',
  'Is 1 better?',
  'Summary 1 and summary 2 are equally good.',
  'Summaries 1 and 2 are the same.',
  "It's a tie between 1 and 2.",
  "I can't say that 1 is better than 2.",
  'It is unclear whether 1 is better than 2.',
  '1 is not better than 2',
  "I'm sorry, but I cannot compare them.",
  'As an AI, I cannot choose 1.',
  'There is 1 error in summary 2.',
  'In 2 words: both poor.',
  'I need 1 sentence more.',
  'Answer: 1 or 2',
  'Answer: neither',
  'The answer is not 1.',
  'The first sentence of summary 2 is wrong.',
  'Summary 1: 8/10\nSummary 2: 6/10',
  '1\n\nSummary 2 is better.',
  '1. Summary 1 is short.\n2. Summary 2 is long.',
  '1 is better in style and 2 is better in content.',
  '<think>Summary 1 is better, so the answer is 1',
  '<think>The answer is 1</think>',
  '<think>1</think>Neither',
)
# Cut off at the limit of tokens, and what they say nevertheless.
CUT = {
  '1': '1',
  '1\n\nBecause it': '1',
  '1. It is': '1',
  '1, since': '1',
  'Answer: 1': '1',
  '1 is better than': '1',
  'Summary 1': '1',
  'Summary 1 is': None,
  '1 is': None,
  '1 and': None,
  'I think that 1': None,
  'Summary 2 is short.\n1': None,
  '<think>Summary 1': None,
}


def swap(text: str) -> str:
  """Swaps the names in a text."""
  pairs = [('1', '2'), ('one', 'two'), ('first', 'second'), ('①', '②')]
  pairs += [('１', '２'), ('1st', '2nd'), ('One', 'Two'), ('First', 'Second')]
  swaps = dict(pairs) | {b: a for a, b in pairs}
  swaps |= {'first one': 'second one', 'Which one': 'Which one'}
  swaps |= {f'the {n}': f'the {n}' for n in '12'}  # numbers of things
  swaps |= {f'these {n}': f'these {n}' for n in '12'}
  found = '|'.join(sorted(map(re.escape, swaps), key=len, reverse=True))
  return re.sub(found, lambda match: swaps[match[0]], text)


def name(text: str, whole: bool = True) -> str | None:
  reading = answers.read(text, whole=whole)
  return reading and reading.name


@pytest.mark.parametrize('text', ONE)
def test_what_a_reader_takes_for_one_and_swapped_for_two(text):
  assert name(text) == '1'
  assert name(swap(text)) == '2'


@pytest.mark.parametrize('text', NEITHER)
def test_what_a_reader_takes_for_neither_in_both_orders(text):
  assert name(text) is None
  assert name(swap(text)) is None


@pytest.mark.parametrize('text', CUT)
def test_what_is_cut_off_counts_by_what_is_already_said(text):
  assert name(text, whole=False) == CUT[text]
  if CUT[text]:
    assert name(swap(text), whole=False) == '2'
  else:
    assert name(swap(text), whole=False) is None


def test_there_are_fifty_kinds_of_answers():
  assert len({*ONE, *NEITHER}) >= 50
  assert not {*ONE} & {*NEITHER}


@pytest.mark.parametrize(
  ('text', 'place'),
  [
    ('1', 'first'),
    ('1 is better than 2', 'first'),
    ('Summary 2 is short.\nAnswer: 1', 'last'),
    ('2 is worse than 1', None),
  ],
)
def test_the_place_of_the_answer(text, place):
  assert answers.read(text) == answers.Reading('1', place)


@pytest.mark.parametrize(
  'text', ['1 ' * 20_000, '<think>' * 5_000, '(' * 50_000, 'a1 ' * 20_000]
)
def test_long_texts_are_read_in_time(text):
  answers.read(text)


def test_the_rule_takes_any_text():
  hypothesis = pytest.importorskip('hypothesis')
  texts = hypothesis.strategies.text(alphabet="12 .,\n<>/not is better?'the①②")

  @hypothesis.settings(max_examples=300, deadline=None)
  @hypothesis.given(texts)
  def check(text):
    assert name(text) in (None, '1', '2')

  check()
