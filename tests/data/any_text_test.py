"""Any text is tokenised as it is written, or its row is refused."""

import contextlib
import functools
import json
import pathlib
import tempfile

import hypothesis
from hypothesis import strategies
import numpy as np
import pytest
import tokenizers as hf

from ipo_md.data import conversations
from ipo_md.data import dataset as dataset_lib
from ipo_md.data import encoding
from ipo_md.data import examples
from ipo_md.data import hf_vocabulary
from ipo_md.data import prompt_format as prompt_format_lib
from tasks import preference_files
from tasks.mini_tldr import tasks

pytestmark = pytest.mark.slow

SPECIAL = ('<|eos|>', '<|bos|>', '<|user|>')
WRITTEN = (*SPECIAL, '</s>', '<pad>', '<unk>', '<extra_id_0>', '<0x0A>')
LENGTHS = {'inputs': 40, 'targets': 20}

# Surrogates and control characters included.
_CHARACTERS = strategies.characters(exclude_categories=())
TEXTS = strategies.one_of(
  strategies.text(_CHARACTERS, max_size=30),
  strategies.sampled_from(
    [
      '',
      ' ',
      '\n',
      '\t \u3000',
      '\0',
      '\ud83d',
      '\u2028',
      '\ufeff',
      'a' * 10**5,
    ]
  ),
  strategies.builds(
    ''.join,
    strategies.lists(
      strategies.sampled_from([*WRITTEN, ' ', 'a', '\n', '\U0001f642', '<|'])
    ),
  ),
)
ROWS = strategies.lists(
  strategies.fixed_dictionaries(
    {'prompt': TEXTS, 'chosen': TEXTS, 'rejected': TEXTS}
  ),
  min_size=1,
  max_size=40,
)


@functools.cache
def byte_level(eos_id: int) -> hf_vocabulary.TokenizerVocabulary:
  """A tokenizer whose ids 0, 1 and 2 are special, with EOS the given one."""
  tokenizer = hf.Tokenizer(hf.models.BPE())
  tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = hf.decoders.ByteLevel()
  trainer = hf.trainers.BpeTrainer(
    vocab_size=280,
    initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
    special_tokens=list(SPECIAL),
    show_progress=False,
  )
  tokenizer.train_from_iterator(['the cat sat on the mat'] * 3, trainer)
  tokenizer.enable_truncation(7)
  tokenizer.enable_padding()
  folder = pathlib.Path(tempfile.mkdtemp())
  tokenizer.save(str(folder / 'tokenizer.json'))
  return hf_vocabulary.TokenizerVocabulary(
    folder / 'tokenizer.json', eos_id=eos_id, bos_id=1 - min(eos_id, 1)
  )


def is_valid(row: dict[str, str]) -> bool:
  """Whether a row has a prompt, and texts that can be encoded."""
  for text in row.values():
    with contextlib.suppress(UnicodeEncodeError):
      text.encode()
      if '\0' not in text:
        continue
    return False
  return bool(row['prompt'].strip())


def load(path: pathlib.Path, vocabulary, allowed: int) -> dataset_lib.Dataset:
  return dataset_lib.load(
    mixture_or_task_name=preference_files.pairs(
      files={'train': str(path)}, max_bad_rows=allowed
    ),
    task_feature_lengths=LENGTHS,
    split='train',
    prompt_format=prompt_format_lib.PromptFormat(prefix=(vocabulary.bos_id,)),
    vocabulary=vocabulary,
  )


@pytest.mark.parametrize('eos_id', [0, 2])
@hypothesis.settings(
  max_examples=10, deadline=None, phases=[hypothesis.Phase.generate]
)
@hypothesis.given(rows=ROWS)
def test_byte_level(eos_id, rows):
  """The tokens decode to the texts, and the counts are those of the rows."""
  vocabulary = byte_level(eos_id)
  good = [row for row in rows if is_valid(row)]
  bad = len(rows) - len(good)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'rows.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    if bad:
      with pytest.raises(ValueError, match=r'rows.jsonl, row \d+: .*field'):
        load(path, vocabulary, bad - 1)
    if not good:
      with pytest.raises(ValueError, match='has no examples'):
        load(path, vocabulary, bad)
      return
    dataset = load(path, vocabulary, bad)
  (found,) = dataset.examples
  texts = [(row['prompt'], row['chosen'], row['rejected']) for row in good]
  ids = []
  for i, (prompt, *completions) in enumerate(texts):
    assert vocabulary.decode(found.prompts.row(i).tolist()) == prompt
    ids.append([found.targets.row(2 * i + k).tolist() for k in range(2)])
    for row, text in zip(ids[-1], completions, strict=True):
      assert row[-1] == eos_id
      assert not {0, 1, 2} & set(row[:-1])
      assert vocabulary.decode(row[:-1]) == text
  written = lambda columns: sum(
    any(token in row[column] for token in SPECIAL)
    for row in texts
    for column in columns
  )
  room = LENGTHS['inputs'] - 1
  width = LENGTHS['targets']
  assert dataset.counts == {
    'examples': len(good),
    'prompts_cut': int((found.prompts.lengths > room).sum()),
    'targets_cut': sum(len(y) > width for pair in ids for y in pair),
    'completions_missing': 0,
    'completions_identical': sum(a[:width] == b[:width] for a, b in ids),
    'tokens_unknown': 0,
    'rows_dropped': bad,
    'rows_empty': sum(not (y + z).strip() for _, y, z in texts),
    'prompts_with_special_tokens': written([0]),
    'prompts_trimmed': 0,
    'completions_with_special_tokens': written([1, 2]),
    'completions_trimmed': 0,
    'completions_empty': sum(
      not text.strip() for _, *pair in texts for text in pair
    ),
  }
  batch = dataset.rows([(0, i) for i in range(len(good))]).completions
  assert (batch.prompts.mask.sum(-1) <= LENGTHS['inputs']).all()
  assert (batch.prompts.ids[:, 0] == vocabulary.bos_id).all()
  shown = batch.completions.mask & (batch.completions.ids == eos_id)
  assert (shown.sum(-1) <= 1).all()


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(texts=strategies.lists(TEXTS, min_size=1, max_size=4))
def test_sentencepiece(texts):
  """No text has BOS, EOS or padding among its tokens."""
  texts = [t for t in texts if is_valid({'prompt': t}) and t.isprintable()]
  rows = encoding.encode(tasks.VOCABULARY, texts)
  assert not {0, 1} & {int(i) for row in rows for i in row}
  for text, row in zip(texts, rows, strict=True):
    assert list(row) == list(tasks.VOCABULARY.encode(text))


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(
  texts=strategies.lists(TEXTS, min_size=1, max_size=4),
  rows=strategies.booleans(),
)
def test_prompts_of_a_file(texts, rows):
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / ('p.jsonl' if rows else 'p.txt')
    lines = [json.dumps({'prompt': t}) if rows else t for t in texts]
    content = '\n'.join(lines).encode(errors='surrogatepass')
    path.write_bytes(content)
    try:
      prompts = list(conversations.prompts_of(str(path), 'PROMPTS_FILE'))
    except ValueError as error:
      assert type(error) is ValueError
      assert str(error).startswith(f'PROMPTS_FILE {path}')
      assert not rows or not all(is_valid({'prompt': t}) for t in texts)
      return
  found = [conversations.plain(messages) for _, messages in prompts]
  if rows:
    assert found == texts
  else:
    lines = '\n'.join(texts).removeprefix('\ufeff').removesuffix('\n')
    assert found == [line.removesuffix('\r') for line in lines.split('\n')]
  dataset = examples.of_prompts('p', prompts, byte_level(0))
  assert len(dataset) == len(found)
  assert not {0, 1, 2} & set(np.unique(dataset.prompts.ids).tolist())
