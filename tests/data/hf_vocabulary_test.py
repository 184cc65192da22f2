"""Tests of vocabularies from a small byte-level tokenizer.json."""

import copy
import json
import pathlib

import pytest
import seqio
import tensorflow as tf
import tokenizers as hf

from ipo_md.checkpoints import load
from ipo_md.data import encoding
from ipo_md.data import hf_vocabulary
from ipo_md.data import prompt_format as prompt_format_lib
from ipo_md.data import vocabularies

SPECIAL = ('<|begin_of_text|>', '<|end_of_text|>', '<|user|>', '<|eot_id|>')
TEXTS = ['the cat sat on the mat', ' two  spaces,\nline', 'naïve 日本 🙂', '']


@pytest.fixture(scope='module', name='path')
def path_fixture(tmp_path_factory) -> pathlib.Path:
  """Makes a byte-level BPE tokenizer, such as Llama 3's."""
  tokenizer = hf.Tokenizer(hf.models.BPE())
  tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = hf.decoders.ByteLevel()
  trainer = hf.trainers.BpeTrainer(
    vocab_size=300,
    initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(TEXTS * 3, trainer)
  tokenizer.add_special_tokens(list(SPECIAL))
  tokenizer.post_processor = hf.processors.TemplateProcessing(
    single=f'{SPECIAL[0]} $A',
    special_tokens=[(SPECIAL[0], tokenizer.token_to_id(SPECIAL[0]))],
  )
  path = tmp_path_factory.mktemp('tokenizer') / 'tokenizer.json'
  tokenizer.save(str(path))
  return path


def ids_of(path) -> list[int]:
  tokenizer = hf.Tokenizer.from_file(str(path))
  return [tokenizer.token_to_id(token) for token in SPECIAL]


@pytest.fixture(name='vocabulary')
def vocabulary_fixture(path) -> hf_vocabulary.TokenizerVocabulary:
  bos, eos, _, _ = ids_of(path)
  return hf_vocabulary.TokenizerVocabulary(path, eos_id=eos, bos_id=bos)


@pytest.mark.parametrize('text', TEXTS)
def test_decode_inverts_encode_without_bos(vocabulary, path, text):
  ids = vocabulary.encode(text)
  assert not set(ids) & set(ids_of(path))
  assert vocabulary.decode(ids) == text
  assert vocabulary.decode([*ids, vocabulary.eos_id, 5, 7]) == text
  assert len(ids) <= len(text.encode())


def test_tensorflow_agrees(vocabulary):
  dataset = tf.data.Dataset.from_tensor_slices(TEXTS)
  rows = list(dataset.map(vocabulary.encode_tf).as_numpy_iterator())
  assert [row.tolist() for row in rows] == [
    list(vocabulary.encode(text)) for text in TEXTS
  ]
  for text in ('', '\0', 'a\0'):  # NumPy drops a NUL at the end of bytes
    found = vocabulary.encode_tf(tf.constant(text)).numpy().tolist()
    assert found == list(vocabulary.encode(text))
  assert vocabulary.encode_tf(tf.constant([], tf.string)).to_list() == []
  batch = vocabulary.encode_tf(tf.constant(TEXTS[:2]))
  assert batch.to_list() == [row.tolist() for row in rows[:2]]
  text = vocabulary.decode_tf(tf.constant(rows[0]))
  assert text.numpy().decode() == TEXTS[0]


def test_ids_and_sizes(vocabulary, path):
  bos, eos, _, eot = ids_of(path)
  assert (vocabulary.bos_id, vocabulary.eos_id) == (bos, eos)
  assert vocabulary.pad_id == 0
  assert vocabulary.unk_id is None
  assert vocabulary.vocab_size == eot + 1


def test_equality_and_description_in_checkpoints(vocabulary, path, tmp_path):
  same = hf_vocabulary.TokenizerVocabulary(
    path, eos_id=vocabulary.eos_id, bos_id=vocabulary.bos_id
  )
  assert same == vocabulary
  other = tmp_path / 'tokenizer.json'
  other.write_text(path.read_text().replace('<|user|>', '<|tool|>'))
  other = hf_vocabulary.TokenizerVocabulary(
    other, eos_id=vocabulary.eos_id, bos_id=vocabulary.bos_id
  )
  assert other != vocabulary != seqio.ByteVocabulary()
  describe = load.describe
  assert describe(same) == describe(vocabulary) != describe(other)
  assert describe(vocabulary).startswith('TokenizerVocabulary(')


def edited(path, tmp_path, edit) -> pathlib.Path:
  """Writes a copy of a tokenizer.json that a function has edited."""
  content = json.loads(path.read_text())
  edit(content)
  other = tmp_path / 'edited.json'
  other.write_text(json.dumps(content))
  return other


TRUNCATION = {
  'direction': 'Right',
  'max_length': 4,
  'strategy': 'LongestFirst',
  'stride': 0,
}
PADDING = {
  'strategy': {'Fixed': 24},
  'direction': 'Left',
  'pad_to_multiple_of': 8,
  'pad_id': 1,
  'pad_type_id': 0,
  'pad_token': '!',
}


@pytest.mark.parametrize(
  'changes',
  [
    {'truncation': TRUNCATION},
    {'padding': PADDING},
    {'truncation': TRUNCATION, 'padding': PADDING},
    {'padding': PADDING | {'strategy': 'BatchLongest'}},
    {'model': {'dropout': 0.9}},
  ],
)
@pytest.mark.parametrize('prefix_space', [True, False])
def test_what_the_file_keeps_of_its_training_is_ignored(
  vocabulary, path, tmp_path, changes, prefix_space
):
  def edit(content):
    for name, value in changes.items():
      nested = isinstance(content[name], dict)
      content[name] = content[name] | value if nested else value

  other = hf_vocabulary.TokenizerVocabulary(
    edited(path, tmp_path, edit),
    eos_id=vocabulary.eos_id,
    prefix_space=prefix_space,
  )
  for text in TEXTS:
    for _ in range(5):
      assert other.encode(text) == vocabulary.encode(text)
      assert other.encode_template(text) == vocabulary.encode(text)


@pytest.mark.parametrize('token', SPECIAL)
def test_special_tokens_in_a_text_are_text(vocabulary, path, token):
  special = set(ids_of(path))
  for text in (token, f'the {token}{token} cat', f'{token}\n', token[:-1]):
    ids = vocabulary.encode(text)
    assert not special & set(ids)
    assert vocabulary.decode(ids) == text
    assert encoding.has_special_tokens(vocabulary, text) == (token in text)
  assert len(vocabulary.encode_template(token)) == 1


def _words(unknown='<unk>', **models) -> hf.Tokenizer:
  """A tokenizer whose vocabulary has its special tokens as pieces, too."""
  characters = [*'abcs</>|\u2581', 'unk']
  pieces = ['<unk>', '<s>', '</s>', '<|user|>', *characters]
  tokenizer = hf.Tokenizer(
    {
      'unigram': hf.models.Unigram([(p, -1.0) for p in pieces], unk_id=0),
      'words': hf.models.WordLevel(
        {p: i for i, p in enumerate(pieces)}, unk_token=unknown
      ),
      'merges': hf.models.BPE(
        {p: i for i, p in enumerate([*pieces, '</', 's>'])},
        [('<', '/'), ('s', '>'), ('</', 's>')],
        unk_token=unknown,
      ),
      'whole': hf.models.BPE(
        {p: i for i, p in enumerate(pieces)}, [], ignore_merges=True
      ),
    }[models['kind']]
  )
  tokenizer.pre_tokenizer = hf.pre_tokenizers.WhitespaceSplit()
  return tokenizer


@pytest.mark.parametrize('kind', ['unigram', 'words', 'merges', 'whole'])
@pytest.mark.parametrize('added', [True, False])
def test_pieces_of_the_model_are_no_way_to_a_special_token(
  tmp_path, kind, added
):
  tokenizer = _words(kind=kind)
  if added:
    tokenizer.add_special_tokens(['<unk>', '<s>', '</s>', '<|user|>'])
  path = tmp_path / 'tokenizer.json'
  tokenizer.save(str(path))
  vocabulary = hf_vocabulary.TokenizerVocabulary(path, eos_id=2, bos_id=1)
  special = {1, 2, 3} if added else {1, 2}
  for text in ('</s>', 'a </s> b', 'a</s>', '<s>', '<s></s>', '<|user|>'):
    assert not special & set(vocabulary.encode(text)), text
  assert list(vocabulary.encode('a b')) == list(tokenizer.encode('a b').ids)
  if added:
    assert list(vocabulary.encode_template('a</s>'))[-1] == 2


def test_a_changed_file_is_read_again(path, tmp_path):
  file = tmp_path / 'tokenizer.json'
  file.write_bytes(path.read_bytes())
  eos = ids_of(path)[1]
  before = hf_vocabulary.TokenizerVocabulary(file, eos_id=eos)
  file.write_text(path.read_text().replace('<|user|>', '<|guest|>'))
  after = hf_vocabulary.TokenizerVocabulary(file, eos_id=eos)
  assert after != before
  assert len(after.encode_template('<|guest|>')) == 1
  assert after == copy.deepcopy(after)


def test_show_has_every_token(vocabulary, path):
  bos, eos, user, eot = ids_of(path)
  ids = [bos, user, *vocabulary.encode('the cat'), eos, eot, eot]
  shown = '<|begin_of_text|><|user|>the cat<|end_of_text|><|eot_id|><|eot_id|>'
  assert encoding.show(vocabulary, ids) == shown
  assert encoding.show(seqio.ByteVocabulary(), [100, 1, 101]) == 'a<eos>b'
  assert encoding.show(vocabulary, []) == ''


def test_a_chat_template_is_a_prefix_and_a_suffix(vocabulary, path):
  """Special tokens of a template are encoded as one token each."""
  bos, _, user, eot = ids_of(path)
  prompt_format = prompt_format_lib.PromptFormat(
    prefix=('<|begin_of_text|><|user|>\n\n',),
    suffix=('<|eot_id|>',),
    vocabulary=vocabulary,
  )
  line = vocabulary.encode('\n\n')
  assert prompt_format.opening == (bos, user, *line)
  assert prompt_format.ending == (eot,)


def test_factory_of_gin_files(vocabulary, path):
  made = vocabularies.tokenizer_vocabulary(
    path=path, eos_id=vocabulary.eos_id, bos_id=vocabulary.bos_id
  )
  assert made == vocabulary


def test_unreadable_tokenizers(path, tmp_path):
  with pytest.raises(ValueError, match='no file .*nothing .TOKENIZER_PATH.'):
    hf_vocabulary.TokenizerVocabulary(str(tmp_path / 'nothing'), eos_id=1)
  (tmp_path / 'bad.json').write_text('{"model": 3}')
  with pytest.raises(ValueError, match='bad.json .TOKENIZER_PATH. is not'):
    hf_vocabulary.TokenizerVocabulary(str(tmp_path / 'bad.json'), eos_id=1)
  with pytest.raises(ValueError, match='EOS_ID = 9999 is no token'):
    hf_vocabulary.TokenizerVocabulary(path, eos_id=9999)
