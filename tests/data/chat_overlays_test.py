"""Tests that the overlays of gin/chat are the templates that they state."""

import json
import pathlib

import gin
import pytest
import tokenizers as hf


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
  turn = "{{ '<|im_start|>' + m.content + '<|im_end|>' }}"
  template = '{% for m in messages %}' + turn + '{% endfor %}'
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
