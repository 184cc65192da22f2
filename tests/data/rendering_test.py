"""Tests of tasks and prompt files that are read with a chat template."""

import json
import pathlib

import numpy as np
import pytest

from ipo_md.data import conversations
from ipo_md.data import dataset as dataset_lib
from ipo_md.data import encoding
from ipo_md.data import examples
from ipo_md.data import hf_vocabulary
from ipo_md.data import preview
from ipo_md.data import prompt_format
from tasks import preference_files
from tests.data import hand_made

DATA = pathlib.Path(__file__).parents[1] / 'testdata/chat'
IM_END = 4
SYSTEM = {'role': 'system', 'content': 'S'}


def turn(role, content):
  return {'role': role, 'content': content}


TALK = [SYSTEM, turn('user', 'a'), turn('assistant', 'b'), turn('user', 'c')]


@pytest.fixture(name='vocabulary', scope='module')
def vocabulary_fixture():
  return hf_vocabulary.TokenizerVocabulary(
    str(DATA / 'byte_level/tokenizer.json'), eos_id=IM_END, bos_id=0
  )


def format_of(template='chatml', **kwargs):
  path = str(DATA / 'templates' / f'{template}.jinja')
  return prompt_format.PromptFormat(template=path, **kwargs)


def load(name, vocabulary, template='chatml', lengths=(96, 32), **kwargs):
  return dataset_lib.load(
    mixture_or_task_name=name,
    task_feature_lengths={'inputs': lengths[0], 'targets': lengths[1]},
    split='train',
    prompt_format=format_of(template),
    vocabulary=vocabulary,
    **kwargs,
  )


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return {'train': str(path)}


def shown(dataset, row):
  """Returns the prompt, its plain form and the completions as texts."""
  batch = dataset.rows([(0, row)])
  prompts, targets = batch.completions.prompts, batch.completions.completions
  show = lambda tokens: encoding.show(
    dataset.vocabulary, tokens.ids[tokens.mask].tolist()
  )
  first = lambda x: type(x)(ids=x.ids[0], mask=x.mask[0])
  bare = dataset.prompt_format.bare(prompts)
  tokens = type(bare)(ids=prompts.ids[0], mask=prompts.mask[0])
  k = targets.ids.shape[1]
  return [
    show(tokens),
    show(first(bare)),
    *(
      show(type(bare)(targets.ids[0, i], targets.mask[0, i])) for i in range(k)
    ),
  ]


def test_pairs_of_several_turns(tmp_path, vocabulary):
  rows = [
    {'prompt': TALK, 'chosen': 'd', 'rejected': [turn('assistant', 'e')]},
    {
      'prompt': 'c',
      'chosen': [*TALK, turn('assistant', 'd')],
      'rejected': [*TALK, turn('assistant', 'e')],
    },
    {
      'chosen': [*TALK, turn('assistant', 'd')],
      'rejected': [*TALK, turn('assistant', 'e')],
    },
    {
      'prompt': TALK[1:],
      'system': 'S',
      'chosen': [turn('assistant', 'd')],
      'rejected': 'e',
    },
    {
      'prompt': 'a',  # The first turn of the user, not the last one.
      'chosen': [*TALK, turn('assistant', 'd')],
      'rejected': [*TALK, turn('assistant', 'e')],
    },
  ]
  name = preference_files.pairs(files=write(tmp_path / 'p.jsonl', rows))
  dataset = load(name, vocabulary)
  im = lambda role, text: f'<|im_start|>{role}\n{text}<|im_end|>\n'
  prompt = ''.join(im(t['role'], t['content']) for t in TALK)
  expected = [
    prompt + '<|im_start|>assistant\n',
    'System: S\n\nUser: a\n\nAssistant: b\n\nUser: c',
    'd<|im_end|>',
    'e<|im_end|>',
  ]
  for row in range(len(rows)):
    assert shown(dataset, row) == expected


def test_one_turn_and_the_cache(tmp_path, vocabulary):
  rows = [{'prompt': ' Hi\n', 'chosen': 'a', 'rejected': '<|im_end|>'}]
  name = preference_files.pairs(files=write(tmp_path / 'p.jsonl', rows))
  cache = str(tmp_path / 'cache')
  for _ in range(2):
    dataset = load(name, vocabulary, cache_dir=cache)
    assert shown(dataset, 0)[1:] == [
      ' Hi\n',
      'a<|im_end|>',
      '<|im_end|><|im_end|>',
    ]
    assert dataset.rows([(0, 0)]).completions.completions.ids[0, 1, 1] != IM_END
    assert dataset.counts['completions_with_special_tokens'] == 1
    assert dataset.counts['prompts_trimmed'] == 0
  other = hf_vocabulary.TokenizerVocabulary(vocabulary.path, eos_id=1, bos_id=0)
  tags = load(name, other, 'tags_with_eos', cache_dir=cache)
  assert shown(tags, 0)[0].startswith('<|user|>\n Hi\n</s>\n')


def test_a_trimming_template_is_counted(tmp_path, vocabulary):
  rows = [{'prompt': ' Hi', 'chosen': ' a', 'rejected': 'b'}] * 2
  files = write(tmp_path / 'p.jsonl', rows)
  eot = hf_vocabulary.TokenizerVocabulary(vocabulary.path, eos_id=7, bos_id=0)
  dataset = load(preference_files.pairs(files=files), eot, 'headers_trimmed')
  assert dataset.counts['prompts_trimmed'] == 2
  assert dataset.counts['completions_trimmed'] == 2
  assert shown(dataset, 0)[2] == 'a<|eot_id|>'


def test_rewards_with_absent_completions(tmp_path, vocabulary):
  rows = [
    {'prompt': TALK, 'completions': ['d', 'e'], 'rewards': [1, 2]},
    {'prompt': 'a', 'completions': ['d', 'e', 'f'], 'scores': [1, 2, 3]},
    {
      'prompt': 'a',
      'chosen': 'd',
      'rejected': 'e',
      'score_chosen': 4,
      'score_rejected': 2.5,
    },
  ]
  files = write(tmp_path / 'r.jsonl', rows)
  dataset = load(preference_files.rewards(files=files, k=3), vocabulary)
  batch = dataset.rows([(0, 0), (0, 1), (0, 2)])
  assert batch.completion_mask.sum(axis=1).tolist() == [2, 3, 2]
  np.testing.assert_array_equal(batch.rewards[2], [4, 2.5, 0])
  assert shown(dataset, 0)[2:] == ['d<|im_end|>', 'e<|im_end|>', '']


def test_supervised_rows(tmp_path, vocabulary):
  rows = [
    {'messages': [*TALK, turn('assistant', 'd')]},
    {'prompt': TALK, 'completion': [turn('assistant', 'd')]},
    {'prompt': TALK, 'chosen': 'd', 'rejected': 'e'},
  ]
  files = write(tmp_path / 's.jsonl', rows)
  dataset = load(preference_files.supervised(files=files), vocabulary)
  assert len({tuple(shown(dataset, i)) for i in range(3)}) == 1
  assert shown(dataset, 0)[2] == 'd<|im_end|>'


def test_refused_rows(tmp_path, vocabulary, capsys):
  talk = {'prompt': TALK, 'chosen': 'd', 'rejected': 'e'}
  good = {'prompt': 'a', 'chosen': 'd', 'rejected': 'e'}
  files = write(tmp_path / 'p.jsonl', [talk, good, {}, talk, good, talk])
  gemma = hf_vocabulary.TokenizerVocabulary(vocabulary.path, eos_id=9, bos_id=0)
  for bad in (0, 1, 3):
    name = preference_files.pairs(files=files, max_bad_rows=bad)
    with pytest.raises(ValueError, match=f'allowed: {bad} .MAX_BAD_ROWS') as e:
      load(name, gemma, 'no_system_turn')
    if bad:
      assert 'p.jsonl, row 1: ' in str(e.value)
      assert 'refuses it: There is no system turn here' in str(e.value)
  name = preference_files.pairs(files=files, max_bad_rows=4)
  dataset = load(name, gemma, 'no_system_turn')
  assert len(dataset) == 2
  assert dataset.counts['rows_dropped'] == 4
  assert 'p.jsonl, row 6: the chat template' in capsys.readouterr().err
  assert shown(dataset, 1)[2:] == ['d<end_of_turn>', 'e<end_of_turn>']


def test_rows_that_are_too_long(tmp_path, vocabulary):
  rows = [
    {'prompt': 'Hi there ' * 50, 'chosen': 'd', 'rejected': 'e'},
    {'prompt': TALK * 9, 'chosen': 'd', 'rejected': 'e'},
    {'prompt': 'a', 'chosen': 'd', 'rejected': 'e'},
  ]
  files = write(tmp_path / 'p.jsonl', rows)
  dataset = load(
    preference_files.pairs(files=files), vocabulary, lengths=(64, 8)
  )
  assert dataset.counts['prompts_cut'] == 1
  assert dataset.counts['prompts_turns_dropped'] == 1
  for row in (0, 1):
    assert shown(dataset, row)[0].endswith(
      '<|im_end|>\n<|im_start|>assistant\n'
    )
  with pytest.raises(
    ValueError, match="'inputs'. is 12, but the chat template"
  ):
    load(preference_files.pairs(files=files), vocabulary, lengths=(12, 8))


@pytest.mark.slow
def test_the_embedded_task(vocabulary):
  dataset = dataset_lib.load(
    mixture_or_task_name='mini_tldr_pairs',
    task_feature_lengths={'inputs': 400, 'targets': 200},
    split='validation',
    prompt_format=format_of(),
    vocabulary=vocabulary,
    module='tasks.mini_tldr',
  )
  prompt, bare, chosen, rejected = shown(dataset, 3)
  assert f'<|im_start|>user\n{bare}<|im_end|>\n' in prompt
  assert chosen.endswith('<|im_end|>')
  assert chosen != rejected


def test_tasks_without_texts(vocabulary):
  with pytest.raises(ValueError, match='Task supervised yields tokens without'):
    load(hand_made.supervised(), vocabulary)


def test_a_vocabulary_of_another_kind(tmp_path):
  rows = [{'prompt': 'a', 'chosen': 'd', 'rejected': 'e'}]
  name = preference_files.pairs(files=write(tmp_path / 'p.jsonl', rows))
  with pytest.raises(
    ValueError, match='CHAT_TEMPLATE .* needs the tokenizer.j'
  ):
    load(name, hand_made.VOCABULARY)


def test_prompts_of_a_file(tmp_path, vocabulary):
  path = tmp_path / 'prompts.jsonl'
  write(
    path,
    [
      {'prompt': 'a'},
      {'prompt': TALK},
      {'messages': TALK + [turn('assistant', 'd')]},
    ],
  )
  prompts = list(conversations.prompts_of(str(path), 'PROMPTS_FILE'))
  chat = format_of().chat(vocabulary, 96)
  found = examples.of_prompts('p', prompts, vocabulary, chat)
  one, two, three = (found.rendered.row(i).tolist() for i in range(3))
  assert one == list(chat.rows([TALK[1:2]], [()])[0].prompt)
  assert two == three == list(chat.rows([TALK], [()])[0].prompt)
  place = f'PROMPTS_FILE {path}, row 2: field .prompt. has the turns system'
  with pytest.raises(ValueError, match=place):
    examples.of_prompts('p', prompts, vocabulary)
  gemma = hf_vocabulary.TokenizerVocabulary(vocabulary.path, eos_id=9, bos_id=0)
  refusing = format_of('no_system_turn').chat(gemma, 96)
  with pytest.raises(ValueError, match=f'{path}, row 2: the chat template'):
    examples.of_prompts('p', prompts, vocabulary, refusing)


def test_an_eos_that_ends_no_turn(tmp_path, vocabulary):
  """It is found even where there are prompts alone."""
  other = hf_vocabulary.TokenizerVocabulary(vocabulary.path, eos_id=1, bos_id=0)
  with pytest.raises(ValueError, match="'<.im_end.>'.* id 4, but EOS_ID is 1"):
    format_of().chat(other, 96)
  with pytest.raises(ValueError, match="template_arguments is 'a'. It must be"):
    format_of(template_arguments='a')
  assert format_of(template_arguments={'a': 1}).chat(vocabulary, 96)


def test_preview(tmp_path, vocabulary, capsys):
  rows = [{'prompt': TALK, 'chosen': 'd', 'rejected': 'e'}]
  name = preference_files.pairs(files=write(tmp_path / 'p.jsonl', rows))
  preview.preview(dataset=lambda: load(name, vocabulary))
  out = capsys.readouterr().out
  assert 'Tokens of the rendered prompts; 96 fit' in out
  assert '<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n' in out


def test_trees_of_prompts():
  """Prompts with a plain form pass through JAX like any others."""
  chat = format_of()
  prompts = chat.rendered([np.array([1, 2, 3])], [np.array([9, 8, 7, 6])], 3)
  assert prompts.bare.ids.tolist() == [[9, 8, 7]]
  assert chat.bare(prompts).mask.all()
  front = format_of(cut_prompts='front').rendered(
    [np.array([1])], [np.array([9, 8, 7, 6])], 3
  )
  assert front.bare.ids.tolist() == [[8, 7, 6]]
