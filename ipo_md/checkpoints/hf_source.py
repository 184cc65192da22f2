"""What a Hugging Face checkpoint has beside its weights, carried to a new one.

The network determines most of config.json, but not the length of its context,
its special tokens and its name. These, generation_config.json and the files of
the tokenizer and of the chat template come from a directory of the same model,
the source. Without a source they are stated.
"""

from collections.abc import Mapping
import dataclasses
import fnmatch
from typing import Any

from etils import epath
import numpy as np

from ipo_md import models
from ipo_md.checkpoints import formats
from ipo_md.checkpoints import gguf_folder
from ipo_md.checkpoints import gin_advice
from ipo_md.checkpoints import hf_config
from ipo_md.checkpoints import locate
from ipo_md.core import types

MODEL_FOLDER = 'model'  # of a MODEL_DIR, written by `saved_folder.save`
_FILES = (
  'generation_config.json',
  'tokenizer*',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.*',
  'merges.txt',
  '*.tiktoken',
  'spiece.model',
  'sentencepiece.bpe.model',
  'chat_template*',
  '*.jinja',
  'LICENSE*',
  'NOTICE*',
)
_FOLDERS = ('additional_chat_templates',)
# Fields of config.json that describe how weights are stored, not the model.
_STORAGE = ('tie_word_embeddings', 'scale_decoder_outputs')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """What to write beside the weights of a Hugging Face checkpoint.

  Attributes:
    directory: Hugging Face directory of the same model, if there is one.
    context_length: Longest sequence in tokens, max_position_embeddings. None
      takes that of `directory`.
    bos_id: Id of the BOS token, for a model without `directory`.
    eos_id: Id of the EOS token, or several, for a model without `directory`.
  """

  directory: epath.Path | None = None
  context_length: int | None = None
  bos_id: int | None = None
  eos_id: types.EosId | None = None

  def config_json(self, config: Any) -> dict[str, Any]:
    """Returns the contents of config.json.

    Args:
      config: Configuration of the network, `Model.config`.

    Raises:
      ValueError: The source is of another model, or a value is not stated.
    """
    ours = hf_config.config_json(config)
    if self.directory is not None:
      theirs = _fitting(self.directory, ours, config)
    elif isinstance(config, models.T5Config):
      theirs = ours
    else:
      theirs = ours | {
        'max_position_embeddings': self.context_length,
        'bos_token_id': self.bos_id,
        'eos_token_id': _plain(self.eos_id),
        # That of some families' defaults is beyond a smaller vocabulary.
        'pad_token_id': None,
      }
    if self.context_length is not None:
      name = (
        'n_positions'
        if isinstance(config, models.T5Config)
        else 'max_position_embeddings'
      )
      theirs = theirs | {name: self.context_length}
    elif theirs.get('max_position_embeddings', 0) is None:
      raise ValueError(
        'CONTEXT_LENGTH is not set. It is the longest sequence of the model in '
        'tokens, which config.json states (max_position_embeddings). '
        'HF_SOURCE_PATH, a Hugging Face directory of the same model, gives it '
        'and the files of the tokenizer.'
      )
    if theirs.get('eos_token_id', 0) is None and self.directory is None:
      raise ValueError(
        'EOS_ID is not set. config.json states it. HF_SOURCE_PATH, a Hugging '
        'Face directory of the same model, gives it too.'
      )
    for key, value in hf_config.model_fields(theirs).items():
      mine = getattr(config, key, None)
      if not gin_advice.same(value, mine):
        raise ValueError(
          f'{key} is {mine} in the model, but CONTEXT_LENGTH '
          f'{self.context_length} would make it {value} in config.json. Leave '
          'CONTEXT_LENGTH as the model has it.'
        )
    return theirs

  def copy_files(self, directory: epath.Path) -> None:
    """Copies the files of the tokenizer, the template and the generation.

    Files that an earlier, perhaps interrupted, copy left are replaced.
    """
    if self.directory is None:
      return
    for path in self.directory.iterdir():
      if path.is_dir():
        if path.name in _FOLDERS:
          (directory / path.name).mkdir(exist_ok=True)
          for file in path.iterdir():
            file.copy(directory / path.name / file.name, overwrite=True)
      elif any(fnmatch.fnmatch(path.name, pattern) for pattern in _FILES):
        path.copy(directory / path.name, overwrite=True)


def _plain(eos_id: types.EosId | None) -> int | list[int] | None:
  if eos_id is None:
    return None
  ids = types.eos_ids(eos_id)
  return ids[0] if len(ids) == 1 else list(ids)


def find(path: str, name: str) -> epath.Path | None:
  """Returns the Hugging Face directory that a checkpoint is or adapts.

  Args:
    path: Path of a checkpoint in any format.
    name: Name of the gin parameter with the path, for error messages.

  Returns:
    The directory; None for a checkpoint of another format.

  Raises:
    ValueError: There is no checkpoint.
  """
  kind, directory = locate.detect(path, name)
  if kind == 'hf':
    return directory
  if kind == 'gguf':
    return gguf_folder.unpacked(directory)
  if kind == 'orbax':
    described = directory.parent.parent.parent / MODEL_FOLDER
    if (described / 'config.json').exists():
      return described
  lora = formats.metadata(directory).get('lora') if kind == 'orbax' else None
  return find(lora['reference'], name) if lora else None


def model_type(directory: epath.Path | None, config: Any) -> str:
  """Returns the model_type of a directory, or of the network without one.

  Args:
    directory: Hugging Face directory of the model, if there is one.
    config: Configuration of the network, `Model.config`.

  Raises:
    ValueError: No config.json can describe the network.
  """
  if directory is None:
    return hf_config.config_json(config)['model_type']
  theirs, _ = hf_config.read(directory / 'config.json')
  return theirs['model_type']


def _fitting(
  directory: epath.Path, ours: Mapping[str, Any], config: Any
) -> dict[str, Any]:
  """Returns the source's config.json with our form of storing the weights."""
  theirs, fields = hf_config.read(directory / 'config.json')
  differing = [
    f'{key}: {value} there, {getattr(config, key, None)} in the model'
    for key, value in fields.items()
    if key != 'logits_via_embedding'
    and not gin_advice.same(value, getattr(config, key, None))
  ]
  if differing:
    raise ValueError(
      f'HF_SOURCE_PATH {directory} is of another model: {differing[0]}.'
    )
  storage = {key: ours[key] for key in _STORAGE if key in ours}
  # Parameters are written as float32.
  storage |= {
    key: np.dtype(np.float32).name
    for key in ('dtype', 'torch_dtype')
    if key in theirs
  }
  return theirs | storage
