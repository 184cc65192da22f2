"""Tests of vocabularies from a small byte-level tokenizer.json."""

import copy
import json
import pathlib

import gin
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


@pytest.fixture(name='parse')
def parse_fixture():
  """A function that parses gin files and returns their prompt format."""

  def parse(*files, **macros):
    root = pathlib.Path(__file__).parents[2]
    gin.add_config_file_search_path(str(root))
    bindings = [f'{name} = {value!r}' for name, value in macros.items()]
    gin.parse_config_files_and_bindings(
      [f'gin/{file}.gin' for file in files], bindings, finalize_config=False
    )
    return gin.get_configurable('data.PromptFormat')()

  before = list(gin.config._LOCATION_PREFIXES)
  yield parse
  gin.config._LOCATION_PREFIXES[:] = before
  gin.clear_config()


def _chat_tokenizer(special, **parts) -> hf.Tokenizer:
  """Makes a character tokenizer. `parts` are its other components."""
  characters = ''.join(chr(i) for i in range(32, 127)) + '\n\u2581\u00e9'
  vocab = {c: i for i, c in enumerate(dict.fromkeys(characters))}
  vocab |= {f'<0x{i:02X}>': len(vocab) + i for i in range(256)}
  tokenizer = hf.Tokenizer(hf.models.BPE(vocab, [], byte_fallback=True))
  for name, part in parts.items():
    setattr(tokenizer, name, part)
  tokenizer.add_special_tokens(special)
  return tokenizer


def _check_chat(tokenizer, prompt_format, bos, template, trim=False):
  """Checks that the joined parts are the tokens of the whole template."""
  encode = prompt_format.vocabulary.encode
  for prompt, reply in (
    ('Hi there', 'Yes.'),
    ('caf\u00e9 \U0001f642', ' 1\n2'),
    (' \n\tHi\n\n', '\nYes. \u3000'),
  ):
    parts = [*prompt_format.opening, *encode(prompt), *prompt_format.ending]
    parts += encode(reply)
    if trim:
      prompt, reply = prompt.strip(), reply.strip()
    text = template.format(prompt=prompt, reply=reply)
    whole = tokenizer.encode(text, add_special_tokens=False).ids
    assert parts == [bos, *whole]
    assert prompt_format.vocabulary.decode(encode(reply)) == reply


@pytest.mark.parametrize('metaspace', [False, True])
def test_zephyr_overlay_is_its_template(parse, tmp_path, metaspace):
  """Covers tokenizer.json as Mistral writes it and as newer files do."""
  replace = hf.decoders.Replace('\u2581', ' ')
  strip = hf.decoders.Strip(' ', 1, 0)
  fall_back = hf.decoders.ByteFallback()
  parts = {
    'normalizer': hf.normalizers.Sequence(
      [hf.normalizers.Prepend('\u2581'), hf.normalizers.Replace(' ', '\u2581')]
    ),
    'decoder': hf.decoders.Sequence(
      [replace, fall_back, hf.decoders.Fuse(), strip]
    ),
  }
  if metaspace:
    parts = {
      'pre_tokenizer': hf.pre_tokenizers.Metaspace(
        prepend_scheme='always', split=False
      ),
      'decoder': parts['decoder'],
    }
  tokenizer = _chat_tokenizer(['<s>', '</s>'], **parts)
  bos, eos = map(tokenizer.token_to_id, ('<s>', '</s>'))
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  prompt_format = parse(
    'models/mistral_7b',
    'chat/zephyr',
    TOKENIZER_PATH=str(tmp_path / 'tokenizer.json'),
    BOS_ID=bos,
    EOS_ID=eos,
  )
  template = '<|user|>\n{prompt}</s>\n<|assistant|>\n{reply}'
  _check_chat(tokenizer, prompt_format, bos, template)
  ids = prompt_format.vocabulary.encode('\U0001f642')
  assert len(ids) == 4  # bytes


def test_llama_3_overlay_is_its_template(parse, tmp_path):
  header = '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'
  decoder = hf.decoders.Sequence(
    [hf.decoders.ByteFallback(), hf.decoders.Fuse()]
  )
  special = ['<|begin_of_text|>', *header]
  tokenizer = _chat_tokenizer(special, decoder=decoder)
  bos, eot = map(tokenizer.token_to_id, ('<|begin_of_text|>', '<|eot_id|>'))
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  prompt_format = parse(
    'models/llama_3_1_8b',
    'chat/llama_3',
    TOKENIZER_PATH=str(tmp_path / 'tokenizer.json'),
    BOS_ID=bos,
    EOS_ID=eot,
  )
  role = '<|start_header_id|>{}<|end_header_id|>\n\n'
  template = role.format('user') + '{prompt}<|eot_id|>'
  template += role.format('assistant') + '{reply}'
  _check_chat(tokenizer, prompt_format, bos, template, trim=True)
  assert tokenizer.id_to_token(prompt_format.vocabulary.eos_id) == '<|eot_id|>'


def test_chatml_overlay_is_its_template(parse, tmp_path):
  special = ['<|im_start|>', '<|im_end|>']
  decoder = hf.decoders.Sequence(
    [hf.decoders.ByteFallback(), hf.decoders.Fuse()]
  )
  tokenizer = _chat_tokenizer(special, decoder=decoder)
  start, end = map(tokenizer.token_to_id, special)
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  prompt_format = parse(
    'models/mistral_7b',
    'chat/chatml',
    TOKENIZER_PATH=str(tmp_path / 'tokenizer.json'),
    BOS_ID=start,
    EOS_ID=end,
  )
  assert prompt_format.opening[0] == start
  template = 'user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{reply}'
  _check_chat(tokenizer, prompt_format, start, template)


def test_overlay_of_the_template_of_a_tokenizer(parse, tmp_path):
  special = ['<|im_start|>', '<|im_end|>']
  tokenizer = _chat_tokenizer(special)
  start, end = map(tokenizer.token_to_id, special)
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  template = "{{ '<|im_start|>' + messages[0].content + '<|im_end|>' }}"
  config = json.dumps({'chat_template': template})
  (tmp_path / 'tokenizer_config.json').write_text(config)
  prompt_format = parse(
    'runs/data',
    'models/mistral_7b',
    'chat/from_tokenizer',
    TOKENIZER_PATH=str(tmp_path / 'tokenizer.json'),
    BOS_ID=start,
    EOS_ID=end,
  )
  assert prompt_format.opening == prompt_format.ending == ()
  vocabulary = gin.query_parameter('VOCABULARY/gin.macro.value')
  chat = prompt_format.chat(vocabulary.scoped_configurable_fn(), 64)
  [row] = chat.rows([[{'role': 'user', 'content': ' a'}]], [()])
  text = '<|im_start|> a<|im_end|>'
  assert row.prompt == tokenizer.encode(text, add_special_tokens=False).ids


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
