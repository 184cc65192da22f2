"""Finds the embedding of a Hugging Face checkpoint under its tied names.

Libraries store an array with several names once, under any of them, or once for
each. config.json says which names are meant to be one array
(tie_word_embeddings), but if lm_head.weight has other values, transformers uses
both arrays, and so does this project.
"""

from collections.abc import Mapping
from typing import Any

from ipo_md.checkpoints import arrays
from ipo_md.checkpoints import hf_config
from ipo_md.checkpoints import hf_families
from ipo_md.core import progress

HEAD = 'lm_head.weight'
_T5 = (
  'shared.weight',
  'encoder.embed_tokens.weight',
  'decoder.embed_tokens.weight',
)
_DECODER = ('model.embed_tokens.weight',)


def resolve(
  what: str, config: Mapping[str, Any], stored: Mapping[str, arrays.Stored]
) -> tuple[dict[str, arrays.Stored], bool]:
  """Returns the arrays with the embedding under its own name.

  Rows beyond vocab_size, which pad the embedding or the head, are cut.

  Args:
    what: Name of the checkpoint in error messages.
    config: Contents of config.json.
    stored: Arrays of the checkpoint, by name.

  Returns:
    The arrays, and whether the head of a tied model is an array of its own.

  Raises:
    ValueError: Copies of the embedding differ.
  """
  kind = config['model_type']
  t5 = kind in hf_config.T5_KINDS
  names = _T5 if t5 else _DECODER
  stored = dict(stored)
  for name in (*names, HEAD):
    if name in stored:
      stored[name] = _cut(what, name, stored[name], config['vocab_size'])
  tied = config.get('tie_word_embeddings', t5)
  if not t5:
    tied = hf_families.FAMILIES[kind].get(config, 'tie_word_embeddings')
  found = [n for n in (*names, *([HEAD] if tied else [])) if n in stored]
  if not found:
    return stored, False
  embedding = stored[found[0]]
  differing = [n for n in found[1:] if not arrays.equal(embedding, stored[n])]
  if copies := [n for n in differing if n != HEAD]:
    raise ValueError(
      f'{what}: {found[0]} and {copies[0]} must be one array, but their values '
      'differ.'
    )
  return {names[0]: embedding} | stored, HEAD in differing


def with_own_head(
  what: str, theirs: Mapping[str, Any], fields: Mapping[str, Any], config: Any
) -> dict[str, Any]:
  """Returns the fields of a model whose config.json ties another head.

  Args:
    what: Name of the checkpoint in error messages.
    theirs: Contents of config.json.
    fields: Fields of `Model.config` that config.json determines.
    config: Configuration of the run's model.

  Raises:
    ValueError: The model's head is the embedding.
  """
  t5 = theirs['model_type'] in hf_config.T5_KINDS
  if t5 and fields['logits_via_embedding']:
    raise ValueError(
      f'{what}: config.json ties {HEAD} to {_T5[0]}, but their values differ. '
      'A T5 with scaled states and a head of its own is not supported.'
    )
  if config.logits_via_embedding:
    name = 'T5' if t5 else 'DecoderOnly'
    raise ValueError(
      f'{what}: config.json ties {HEAD} to {(_T5 if t5 else _DECODER)[0]}, but '
      f'their values differ. Bind models.{name}.logits_via_embedding = False '
      '(model_folder.network.logits_via_embedding = False with gin/models/'
      'from_checkpoint.gin) to read both, as transformers does, or remove the '
      'array that is wrong.'
    )
  return dict(fields) | {'logits_via_embedding': False}


def _cut(
  what: str, name: str, array: arrays.Stored, rows: int
) -> arrays.Stored:
  if not array.shape or array.shape[0] <= rows:
    return array
  progress.say(
    f'{what}: {name} has {array.shape[0]:,} rows, of which the first {rows:,} '
    'are read (vocab_size in config.json).'
  )
  return arrays.Stored(
    (rows, *array.shape[1:]), array.dtype, lambda: array.read()[:rows]
  )
