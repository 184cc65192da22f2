"""A GGUF file is a model with its tokenizer and chat template."""

import json

from etils import epath
import numpy as np
import pytest
import tokenizers as hf_tokenizers

from ipo_md.checkpoints import gguf_folder
from ipo_md.checkpoints import gguf_tokenizer
from ipo_md.checkpoints import model_folder

gguf = pytest.importorskip('gguf')

SPECIAL = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
TEXTS = [
  "Hello world's  best\n\n thing",
  'naïve café 你好 🎉',
  '  lead',
  'tabs\t\tx',
  'The sum 3+4=7 and 12345',
]
TEMPLATE = (
  '{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}'
)


@pytest.fixture(scope='module', name='trained')
def trained_fixture():
  """A byte-level BPE whose digits are apart, as SmolLM2's."""
  made = hf_tokenizers.Tokenizer(hf_tokenizers.models.BPE())
  made.pre_tokenizer = hf_tokenizers.pre_tokenizers.Sequence(
    [
      hf_tokenizers.pre_tokenizers.Digits(individual_digits=True),
      hf_tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  made.decoder = hf_tokenizers.decoders.ByteLevel()
  trainer = hf_tokenizers.trainers.BpeTrainer(
    vocab_size=320,
    initial_alphabet=hf_tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    special_tokens=list(SPECIAL),
    show_progress=False,
  )
  made.train_from_iterator(TEXTS * 3, trainer)
  return made


def write(path, trained, *, rule='smollm', kind='gpt2', add_bos=False):
  """Writes a GGUF file of a Llama of one layer with this tokenizer."""
  content = json.loads(trained.to_str())
  tokens = sorted(content['model']['vocab'], key=content['model']['vocab'].get)
  merges = [' '.join(pair) for pair in content['model']['merges']]
  writer = gguf.GGUFWriter(str(path), 'llama')
  writer.add_block_count(1)
  writer.add_context_length(64)
  writer.add_embedding_length(8)
  writer.add_feed_forward_length(16)
  writer.add_head_count(2)
  writer.add_head_count_kv(1)
  writer.add_layer_norm_rms_eps(1e-5)
  writer.add_tokenizer_model(kind)
  writer.add_tokenizer_pre(rule)
  writer.add_token_list(tokens)
  writer.add_token_types([3 if t in SPECIAL else 1 for t in tokens])
  writer.add_token_merges(merges)
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(2)
  writer.add_add_bos_token(add_bos)
  writer.add_chat_template(TEMPLATE)
  zeros = lambda *shape: np.zeros(shape, np.float32)
  writer.add_tensor('token_embd.weight', zeros(len(tokens), 8))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return str(path)


def test_the_tokenizer_is_the_one_that_was_stored(trained, tmp_path):
  path = write(tmp_path / 'model.gguf', trained)
  vocabulary = model_folder.vocabulary(path=path)
  for text in TEXTS:
    expected = trained.encode(text, add_special_tokens=False).ids
    assert list(vocabulary.encode(text)) == expected
    assert vocabulary.decode(expected) == text
  assert (vocabulary.bos_id, vocabulary.eos_id) == (1, 2)
  assert vocabulary.encode_template('<|im_start|>') == [1]


def test_template_and_special_ids_come_along(trained, tmp_path):
  path = write(tmp_path / 'model.gguf', trained)
  folder = model_folder.find(path)
  assert (folder / 'chat_template.jinja').read_text() == TEMPLATE
  assert model_folder.eos_id(path=path) == 2
  assert model_folder.prompt_prefix(path=path) == ()
  config = json.loads((folder / 'config.json').read_text())
  assert (config['hidden_size'], config['max_position_embeddings']) == (8, 64)


def test_bos_stands_before_a_prompt_if_the_file_says_so(trained, tmp_path):
  path = write(tmp_path / 'model.gguf', trained, add_bos=True)
  assert model_folder.prompt_prefix(path=path) == (1,)


@pytest.mark.parametrize(
  ('changes', 'named'),
  [({'rule': 'tekken'}, "rule 'tekken'"), ({'kind': 'llama'}, "kind 'llama'")],
)
def test_other_tokenizers_are_refused(trained, tmp_path, changes, named):
  path = write(tmp_path / 'model.gguf', trained, **changes)
  with pytest.raises(ValueError, match=f'{named}.*MODEL_CONFIG_PATH'):
    model_folder.vocabulary(path=path)
  folder = gguf_folder.unpacked(epath.Path(path))
  assert [p.name for p in folder.iterdir()] == ['config.json']


@pytest.mark.parametrize('rule', ['gpt-2', 'llama-bpe', 'qwen2', 'smollm'])
def test_every_rule_gives_back_the_text(trained, rule):
  content = json.loads(trained.to_str())['model']
  tokens = sorted(content['vocab'], key=content['vocab'].get)
  files = gguf_tokenizer.files(
    {
      'tokenizer.ggml.model': 'gpt2',
      'tokenizer.ggml.pre': rule,
      'tokenizer.ggml.tokens': tokens,
      'tokenizer.ggml.token_type': [1] * len(tokens),
      'tokenizer.ggml.merges': [' '.join(pair) for pair in content['merges']],
    },
    'a.gguf',
  )
  made = hf_tokenizers.Tokenizer.from_str(files['tokenizer.json'])
  for text in TEXTS:
    assert made.decode(made.encode(text).ids) == text
  assert set(files) == {'tokenizer.json', 'tokenizer_config.json'}
