"""What a folder says about its model: network, special tokens and tokenizer.

gin/models/from_checkpoint.gin makes a model of these functions. They read

  config.json, tokenizer.json, ...     of a Hugging Face folder
  model/ with the same files           of a MODEL_DIR (`saved_folder`)
  the metadata                         of a GGUF file
  config.gin or operative_config.gin   of T5X, beside checkpoint_N or in it
"""

from collections.abc import Mapping
import functools
import json
from typing import Any

from etils import epath
from flax import nnx

from ipo_md import data
from ipo_md import models
from ipo_md.checkpoints import gguf_folder
from ipo_md.checkpoints import gin_advice
from ipo_md.checkpoints import hf_classifier
from ipo_md.checkpoints import hf_config
from ipo_md.checkpoints import hf_source
from ipo_md.checkpoints import locate
from ipo_md.core import identity
from ipo_md.core import types

_NAME = 'MODEL_CONFIG_PATH'
_GIN = ('operative_config.gin', 'config.gin', 'model.gin')
_READ = (
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'chat_template.jinja',
  'tokenizer.model',
  'spiece.model',
  *_GIN,
)


def find(path: str | None, name: str = _NAME) -> epath.Path:
  """Returns the folder that describes the model of a checkpoint.

  Args:
    path: Path of a checkpoint in any format, or of a folder with a config.json
      and no weights.
    name: Name of the gin macro with the path, for error messages.

  Returns:
    A folder with a config.json, or with a gin file that states the network.

  Raises:
    ValueError: There is none.
  """
  if path is None:
    raise ValueError(
      f'{name} is None, so there is no config.json from which the network can '
      'be built. Set INITIAL_CHECKPOINT_PATH, or MODEL_CONFIG_PATH for a run '
      'from random parameters; or use a file of gin/models that states the '
      'sizes.'
    )
  kind, directory = locate.detect(path, name)
  if kind == 'hf':
    return directory
  if kind == 'gguf':
    return gguf_folder.unpacked(directory)
  checkpoint = directory if kind == 't5x' else directory.parent
  for folder in (
    checkpoint.parent.parent / hf_source.MODEL_FOLDER,
    checkpoint.parent / hf_source.MODEL_FOLDER,
    checkpoint / hf_source.MODEL_FOLDER,
  ):
    if (folder / 'config.json').exists():
      return folder
  for folder in (checkpoint, checkpoint.parent, checkpoint.parent.parent):
    if any((folder / file).exists() for file in _GIN):
      return folder
  raise ValueError(
    f'{name} {path} does not say which network it is of: it has no config.json '
    f'and none of {", ".join(_GIN)}. Use a file of gin/models that states the '
    'sizes, or set MODEL_CONFIG_PATH to a folder with the config.json.'
  )


def identify(path: str, name: str) -> identity.Identity | None:
  """Identifies what the functions of this module read, weights left out.

  Args:
    path: Path of a checkpoint; see `find`.
    name: Name of the gin macro with the path.

  Returns:
    The identity, or None if there is no description.
  """
  try:
    folder = find(path, name)
  except ValueError:  # whatever reads it will say why
    return None
  digest = identity.of_files(folder, _READ.__contains__)
  return identity.Identity(path=str(folder), digest=digest)


@identity.reads(path=identify)
def network(
  rngs: nnx.Rngs,
  *,
  path: str | None,
  default_path: str | None = None,
  **options: Any,
) -> models.DecoderOnly | models.T5:
  """Makes the network that a checkpoint's own description states.

    models.Model.network = @model_folder.network
    model_folder.network.path = %MODEL_CONFIG_PATH

  Args:
    rngs: Random keys of the parameters.
    path: MODEL_CONFIG_PATH or JUDGE_CONFIG_PATH; see `find`.
    default_path: Path that counts if `path` is None.
    **options: Fields that the description leaves open: dropout_rate, dtype,
      scan, remat_policy, reward_head.

  Raises:
    ValueError: There is no description, or its model is not supported.
  """
  folder = find(default_path if path is None else path)
  fields = _fields(str(folder))
  if 'reward_head' not in options:
    hf_classifier.check_policy(_json(folder / 'config.json'), str(folder))
  kind = models.DecoderOnly if 'num_layers' in fields else models.T5
  return kind(rngs, **{**fields, **options})


@functools.cache
def _fields(folder: str) -> Mapping[str, Any]:
  directory = epath.Path(folder)
  if (directory / 'config.json').exists():
    return hf_config.read(directory / 'config.json')[1]
  for name in _GIN:
    if (directory / name).exists():
      return gin_advice.network_of(directory / name)
  raise ValueError(f'{folder} has no config.json any more.')


@identity.reads(path=identify)
def eos_id(*, path: str | None) -> types.EosId:
  """Returns EOS_ID: the token that ends a text, and others that end one too.

  The tokenizer's own comes first, which ends the completions of a data set. A
  completion that is sampled ends with any id of config.json and
  generation_config.json, such as the two ends of Llama 3.

  Args:
    path: MODEL_CONFIG_PATH; see `find`.

  Raises:
    ValueError: The folder states none.
  """
  folder = find(path)
  if not (folder / 'config.json').exists():
    return 1  # T5X's models are T5
  found = [_token_id(folder, 'eos_token')]
  for file in ('config.json', 'generation_config.json'):
    stated = _json(folder / file).get('eos_token_id')
    found += stated if isinstance(stated, list) else [stated]
  found = [i for i in found if i is not None]
  if not found:
    raise ValueError(
      f'{folder} states no EOS token (eos_token_id in config.json). Set EOS_ID.'
    )
  ids = types.eos_ids(found)
  return ids[0] if len(ids) == 1 else ids


@identity.reads(path=identify)
def bos_id(*, path: str | None) -> int | None:
  """Returns BOS_ID, or None if the model has no BOS token.

  Args:
    path: MODEL_CONFIG_PATH; see `find`.
  """
  folder = find(path)
  found = _token_id(folder, 'bos_token')
  if found is None:
    found = _json(folder / 'config.json').get('bos_token_id')
  return found


@identity.reads(path=identify)
def vocabulary(
  *, path: str | None, name: str = _NAME
) -> types.Vocabulary | None:
  """Returns the vocabulary of the folder's tokenizer.

  Args:
    path: MODEL_CONFIG_PATH; see `find`.
    name: Name of the gin macro with the path, for error messages.

  Returns:
    That of tokenizer.json, else of a SentencePiece model, else ByT5's; None if
    a T5 or a MODEL_DIR has neither, so that the task's own counts.

  Raises:
    ValueError: The folder of a decoder-only model has no tokenizer.
  """
  folder = find(path)
  kind, directory = locate.detect(path or '', _NAME)
  if kind == 'gguf':
    gguf_folder.check_tokenizer(directory)
  found = tokenizer(folder, path)
  if found is None and kind == 'hf' and 'num_layers' in _fields(str(folder)):
    raise ValueError(
      f'{name} {folder} has no tokenizer.json and no tokenizer.model. Copy the '
      'one of the model there, or set VOCABULARY.'
    )
  return found


def tokenizer(folder: epath.Path, path: str | None) -> types.Vocabulary | None:
  """Returns the vocabulary of a folder, or None if it has no tokenizer."""
  if (folder / 'tokenizer.json').exists():
    return data.tokenizer_vocabulary(
      path=str(folder / 'tokenizer.json'),
      eos_id=eos_id(path=path),
      bos_id=bos_id(path=path),
    )
  for file in ('spiece.model', 'tokenizer.model'):
    if (folder / file).exists():
      extra = _json(folder / 'tokenizer_config.json').get('extra_ids')
      default = 100 if file == 'spiece.model' else 0
      return data.sentencepiece_vocabulary(
        path=str(folder / file), extra_ids=default if extra is None else extra
      )
  for file in ('tokenizer_config.json', 'config.json'):
    if _json(folder / file).get('tokenizer_class') == 'ByT5Tokenizer':
      return data.byte_vocabulary()
  return None


@identity.reads(path=identify)
def pad_id(*, path: str | None) -> int | None:
  """Returns the id of padding in config.json, or None if it states none.

  Args:
    path: JUDGE_CONFIG_PATH; see `find`.
  """
  return _json(find(path) / 'config.json').get('pad_token_id')


@identity.reads(path=identify)
def prompt_prefix(*, path: str | None) -> tuple[int, ...]:
  """Returns the ids that the model's tokenizer puts before a text, as BOS.

  Args:
    path: MODEL_CONFIG_PATH; see `find`.
  """
  return _around(path)[0]


@identity.reads(path=identify)
def prompt_suffix(*, path: str | None) -> tuple[int, ...]:
  """Returns the ids that the model's tokenizer puts after a text, as T5's EOS.

  Args:
    path: MODEL_CONFIG_PATH; see `find`.
  """
  return _around(path)[1]


@identity.reads(path=identify)
def chat_template(*, path: str | None) -> str | None:
  """Returns the folder if its tokenizer has a chat template, else None.

    CHAT_TEMPLATE = @model_folder.chat_template()

  Args:
    path: MODEL_CONFIG_PATH; see `find`.
  """
  if path is None:
    return None
  folder = find(path)
  if not (folder / 'tokenizer.json').exists():
    return None
  has = (folder / 'chat_template.jinja').exists() or (
    _json(folder / 'tokenizer_config.json').get('chat_template') is not None
  )
  return str(folder) if has else None


def _around(path: str | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
  folder = find(path)
  found = tokenizer(folder, path)
  if found is not None and (folder / 'tokenizer.json').exists():
    return data.around(found)
  if 'num_layers' not in _fields(str(folder)):  # T5
    return (), types.eos_ids(eos_id(path=path))[:1]
  bos = bos_id(path=path)
  return () if bos is None else (bos,), ()


def _token_id(folder: epath.Path, key: str) -> int | None:
  """Returns the id of a token that tokenizer_config.json names."""
  token = _json(folder / 'tokenizer_config.json').get(key)
  if isinstance(token, Mapping):
    token = token.get('content')
  if token is None or not (folder / 'tokenizer.json').exists():
    return None
  tokenizer = _json(folder / 'tokenizer.json')
  for added in tokenizer.get('added_tokens') or ():
    if added['content'] == token:
      return added['id']
  words = tokenizer.get('model', {}).get('vocab', {})
  if isinstance(words, Mapping):
    return words.get(token)
  return next((i for i, (word, *_) in enumerate(words) if word == token), None)


def _json(path: epath.Path) -> Mapping[str, Any]:
  return _read_json(str(path)) if path.exists() else {}


@functools.lru_cache(maxsize=16)
def _read_json(path: str) -> Mapping[str, Any]:
  try:
    found = json.loads(epath.Path(path).read_text())
  except ValueError as error:
    raise ValueError(f'{path} is damaged: {error}') from error
  if not isinstance(found, Mapping):
    raise ValueError(f'{path} holds no JSON object.')
  return found
