"""Writes the tokenizer inside a GGUF file as Hugging Face's files.

GGUF keeps the tokens, their kinds and the merges of a byte-level BPE, the name
of the rule that cuts a text before it, and the chat template.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import json
from typing import Any

# The rules that cut a text before byte-level BPE, by GGUF's names for them, as
# pre-tokenizers of a tokenizer.json that precede the bytes.
_GPT_2 = (
  r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
_LLAMA_3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
  r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_QWEN_2 = _LLAMA_3.replace(r'\p{N}{1,3}', r'\p{N}')
_DIGITS = {'type': 'Digits', 'individual_digits': True}


def _split(pattern: str) -> dict[str, Any]:
  return {
    'type': 'Split',
    'pattern': {'Regex': pattern},
    'behavior': 'Isolated',
    'invert': False,
  }


_RULES: Mapping[str, Sequence[Mapping[str, Any]]] = {
  'default': (_split(_GPT_2),),
  'gpt-2': (_split(_GPT_2),),
  'smollm': (_DIGITS, _split(_GPT_2)),
  'llama-bpe': (_split(_LLAMA_3),),
  'qwen2': (_split(_QWEN_2),),
}
_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens


def check(metadata: Mapping[str, Any], path: str) -> None:
  """Raises a ValueError if the tokenizer is of a kind that is not read.

  Args:
    metadata: Fields of the GGUF file.
    path: Path of the file, for the error message.
  """
  kind = metadata.get('tokenizer.ggml.model')
  rule = metadata.get('tokenizer.ggml.pre', 'default')
  if kind != 'gpt2' or rule not in _RULES:
    raise ValueError(
      f'{path}: its tokenizer is of the kind {kind!r} with the rule {rule!r}. '
      f"Only 'gpt2' (byte-level BPE) with {', '.join(_RULES)} is read. Set "
      'MODEL_CONFIG_PATH to the Hugging Face folder of the same model.'
    )


def files(metadata: Mapping[str, Any], path: str) -> dict[str, str]:
  """Returns the contents of the tokenizer's files, by name.

  Args:
    metadata: Fields of the GGUF file, such as tokenizer.ggml.tokens.
    path: Path of the file, for error messages.

  Returns:
    tokenizer.json, tokenizer_config.json and, if there is a template,
    chat_template.jinja.

  Raises:
    ValueError: The tokenizer is of a kind that is not read.
  """
  check(metadata, path)
  rule = metadata.get('tokenizer.ggml.pre', 'default')
  tokens = metadata['tokenizer.ggml.tokens']
  kinds = metadata['tokenizer.ggml.token_type']
  named = {
    name: tokens[metadata[f'tokenizer.ggml.{name}_id']]
    for name in ('bos_token', 'eos_token')
    if metadata.get(f'tokenizer.ggml.{name}_id') is not None
  }
  added = [
    {
      'id': i,
      'content': token,
      'single_word': False,
      'lstrip': False,
      'rstrip': False,
      'normalized': False,
      'special': kinds[i] == _CONTROL,
    }
    for i, token in enumerate(tokens)
    if kinds[i] in (_CONTROL, _USER_DEFINED)
  ]
  byte_level = {
    'type': 'ByteLevel',
    'add_prefix_space': False,
    'trim_offsets': True,
    'use_regex': False,
  }
  tokenizer = {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': added,
    'normalizer': None,
    'pre_tokenizer': {
      'type': 'Sequence',
      'pretokenizers': [*_RULES[rule], byte_level],
    },
    'post_processor': _post_processor(metadata, named),
    'decoder': byte_level | {'add_prefix_space': True, 'use_regex': True},
    'model': {
      'type': 'BPE',
      'dropout': None,
      'unk_token': None,
      'continuing_subword_prefix': None,
      'end_of_word_suffix': None,
      'fuse_unk': False,
      'byte_fallback': False,
      'ignore_merges': rule == 'llama-bpe',
      'vocab': {token: i for i, token in enumerate(tokens)},
      'merges': metadata['tokenizer.ggml.merges'],
    },
  }
  found = {
    'tokenizer.json': json.dumps(tokenizer, ensure_ascii=False) + '\n',
    'tokenizer_config.json': json.dumps(named, indent=2) + '\n',
  }
  if template := metadata.get('tokenizer.chat_template'):
    found['chat_template.jinja'] = template
  return found


def _post_processor(
  metadata: Mapping[str, Any], named: Mapping[str, str]
) -> dict[str, Any]:
  """Returns what puts BOS or EOS around a text, where the file asks for it."""
  text = {'Sequence': {'id': 'A', 'type_id': 0}}
  parts, special = [text], {}
  for name, first in (('bos_token', True), ('eos_token', False)):
    flag = f'tokenizer.ggml.add_{name}'
    if not metadata.get(flag) or name not in named:
      continue
    token, id_ = named[name], metadata[f'tokenizer.ggml.{name}_id']
    part = {'SpecialToken': {'id': token, 'type_id': 0}}
    parts = [part, *parts] if first else [*parts, part]
    special[token] = {'id': token, 'ids': [id_], 'tokens': [token]}
  second = {'Sequence': {'id': 'B', 'type_id': 1}}
  return {
    'type': 'TemplateProcessing',
    'single': parts,
    'pair': [text, second],
    'special_tokens': special,
  }
