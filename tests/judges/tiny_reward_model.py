"""Writes tiny reward models as Hugging Face folders, with NumPy alone.

The weights are pseudo-random and the same on every machine, so that the golden
values of tests/testdata/reward_models are about them.
"""

import json
import pathlib
import shutil

import numpy as np
from safetensors import numpy as safetensors_numpy

TESTDATA = pathlib.Path(__file__).parents[1] / 'testdata' / 'reward_models'
GOLDEN = TESTDATA / 'golden.json'
SPECIAL = {'bos_token': '<s>', 'eos_token': '</s>', 'pad_token': '<pad>'}
VOCAB_SIZE = 320
_SIZES = {
  'vocab_size': VOCAB_SIZE,
  'hidden_size': 32,
  'intermediate_size': 48,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 8,
  'hidden_act': 'silu',
  'rms_norm_eps': 1e-5,
  'rope_theta': 1000.0,
  'max_position_embeddings': 512,
  'bos_token_id': 0,
  'eos_token_id': 1,
  'pad_token_id': 2,
  'id2label': {'0': 'LABEL_0'},
  'label2id': {'LABEL_0': 0},
  'dtype': 'float32',
}
# Name -> tokenizer, JUDGE_TEXT and config.json. The second pads with EOS, which
# ends its texts, the third has no BOS and a text with special tokens, and the
# last one has a chat template.
CASES = {
  'bos': (
    'byte_level',
    '{text}\n{first}',
    {
      'architectures': ['LlamaForSequenceClassification'],
      'model_type': 'llama',
      'tie_word_embeddings': False,
    },
  ),
  'pad_is_eos': (
    'metaspace',
    '{text} Summary: {first}</s>',
    {
      'architectures': ['MistralForSequenceClassification'],
      'model_type': 'mistral',
      'sliding_window': 8,
      'tie_word_embeddings': False,
      'pad_token_id': 1,
    },
  ),
  'turns': (
    'no_bos',
    '<|user|>\n{text}<|end|>\n<|assistant|>\n{first}<|end|>\n',
    {
      'architectures': ['LlamaForSequenceClassification'],
      'model_type': 'llama',
      'tie_word_embeddings': True,
    },
  ),
  'chat': (
    'byte_level',
    None,
    {
      'architectures': ['LlamaForSequenceClassification'],
      'model_type': 'llama',
      'tie_word_embeddings': False,
    },
  ),
}
CHAT_TEMPLATE = (
  '{{ bos_token }}{% for message in messages %}'
  "{{ '<|' + message['role'] + '|>\\n' + message['content'] | trim }}"
  '<|end|>\n{% endfor %}'
)


def shapes(config):
  """Returns the shape of each array of a classifier."""
  e, mlp = config['hidden_size'], config['intermediate_size']
  heads = config['num_attention_heads'] * config['head_dim']
  groups = config['num_key_value_heads'] * config['head_dim']
  found = {
    'model.embed_tokens.weight': (config['vocab_size'], e),
    'model.norm.weight': (e,),
    'score.weight': (1, e),
  }
  for i in range(config['num_hidden_layers']):
    layer = f'model.layers.{i}'
    found |= {
      f'{layer}.input_layernorm.weight': (e,),
      f'{layer}.post_attention_layernorm.weight': (e,),
      f'{layer}.self_attn.q_proj.weight': (heads, e),
      f'{layer}.self_attn.k_proj.weight': (groups, e),
      f'{layer}.self_attn.v_proj.weight': (groups, e),
      f'{layer}.self_attn.o_proj.weight': (e, heads),
      f'{layer}.mlp.gate_proj.weight': (mlp, e),
      f'{layer}.mlp.up_proj.weight': (mlp, e),
      f'{layer}.mlp.down_proj.weight': (e, mlp),
    }
  return found


def write(folder, case, seed=0, **changes):
  """Writes a reward model and returns its folder.

  Args:
    folder: A folder, which is made.
    case: A name of `CASES`.
    seed: Seed of the weights.
    **changes: Fields of config.json that differ; None removes one.
  """
  tokenizer, text, config = CASES[case]
  config = {
    k: v for k, v in (_SIZES | config | changes).items() if v is not None
  }
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True)
  random = np.random.RandomState(seed)
  arrays = {}
  for name, shape in sorted(shapes(_SIZES | config).items()):
    values = random.standard_normal(shape).astype(np.float32)
    if 'norm' in name:
      values = 1 + 0.1 * values
    elif name != 'model.embed_tokens.weight':
      values *= 1.5 / np.float32(np.sqrt(shape[-1]))
    arrays[name] = values.astype(np.float32)
  safetensors_numpy.save_file(arrays, folder / 'model.safetensors')
  (folder / 'config.json').write_text(json.dumps(config))
  (folder / 'tokenizer_config.json').write_text(
    json.dumps({'tokenizer_class': 'PreTrainedTokenizerFast', **SPECIAL})
  )
  shutil.copy(TESTDATA / f'{tokenizer}.json', folder / 'tokenizer.json')
  if text is None:
    (folder / 'chat_template.jinja').write_text(CHAT_TEMPLATE)
  return folder


def write_language_model(folder, case):
  """Writes the language model of a case, whose head is its embedding."""
  folder = write(
    folder, case, architectures=['LlamaForCausalLM'], tie_word_embeddings=True
  )
  path = folder / 'model.safetensors'
  arrays = safetensors_numpy.load_file(path)
  del arrays['score.weight']
  safetensors_numpy.save_file(arrays, path)
  return folder
