"""Writes MODEL_DIR/model, which says what model a run's checkpoints are of.

`model_folder` reads the folder: a config.json, and what the folder that the
model came from has beside it: tokenizer, chat template, generation_config.json.
"""

from collections.abc import Mapping
import json
from typing import Any

from etils import epath

from ipo_md import models
from ipo_md.checkpoints import hf_config
from ipo_md.checkpoints import hf_source
from ipo_md.checkpoints import model_folder
from ipo_md.core import types


def save(
  model_dir: str,
  config: Any,
  vocabulary: types.Vocabulary,
  path: str | None,
  template: str | None = None,
) -> None:
  """Writes MODEL_DIR/model, from which the run's checkpoints are understood.

  A tokenizer or a template that the run has in place of those of the folder
  takes their place. A network that a config.json cannot describe has no such
  folder.

  Args:
    model_dir: MODEL_DIR.
    config: Configuration of the network, `Model.config`.
    vocabulary: Vocabulary of the run.
    path: MODEL_CONFIG_PATH, the checkpoint that the model came from, or None.
    template: Text of the run's chat template, or None.
  """
  if not isinstance(config, models.T5Config | models.DecoderOnlyConfig):
    return
  source = None if path is None else _source(path)
  try:
    content = (
      _own_config_json(config, vocabulary)
      if source is None
      else hf_source.Source(directory=source).config_json(config)
    )
  except ValueError:  # an activation that a config.json has no name for
    return
  folder = _write(epath.Path(model_dir), content)
  if source is not None:
    known = model_folder.tokenizer(source, path)
    if known is None or _same(known, vocabulary):
      hf_source.Source(directory=source).copy_files(folder)
      _set_template(folder, template)
    else:
      _write(folder.parent, content | _copy_tokenizer(folder, vocabulary))


def carry(directory: epath.Path, config: Any, source: hf_source.Source) -> None:
  """Writes the folder that `save` writes beside a converted checkpoint.

  Args:
    directory: Folder of the checkpoint.
    config: Configuration of the network, `Model.config`.
    source: Where the model came from; without a directory nothing is written.
  """
  if source.directory is None:
    return
  source.copy_files(_write(directory, source.config_json(config)))


def _write(directory: epath.Path, content: Mapping[str, Any]) -> epath.Path:
  """Writes config.json into the folder `model` of a directory; returns that."""
  folder = directory / hf_source.MODEL_FOLDER
  folder.mkdir(exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(content, indent=2) + '\n')
  return folder


def _same(one: types.Vocabulary, other: types.Vocabulary) -> bool:
  """Returns whether two vocabularies are of one file or of equal ones.

  The content of one that puts no space before a text is not that of its file.
  """
  return any(
    getattr(one, name, None) is not None
    and getattr(one, name) == getattr(other, name, None)
    for name in ('path', 'sp_model')
  )


def _copy_tokenizer(
  folder: epath.Path, vocabulary: types.Vocabulary
) -> dict[str, Any]:
  """Writes the run's own tokenizer and returns its special ids."""
  path = getattr(vocabulary, 'path', None)
  if path is not None:
    epath.Path(path).copy(folder / 'tokenizer.json', overwrite=True)
  return {
    'eos_token_id': vocabulary.eos_id,
    'bos_token_id': vocabulary.bos_id,
  }


def _set_template(folder: epath.Path, template: str | None) -> None:
  """Puts the run's chat template in place of the one that was copied."""
  for path in (*folder.glob('*.jinja'), *folder.glob('chat_template*')):
    if path.exists():
      path.unlink()
  stated = folder / 'tokenizer_config.json'
  found = json.loads(stated.read_text()) if stated.exists() else {}
  if 'chat_template' in found:
    left = {k: v for k, v in found.items() if k != 'chat_template'}
    stated.write_text(json.dumps(left, indent=2) + '\n')
  if template is not None:
    (folder / 'chat_template.jinja').write_text(template)


def _own_config_json(config: Any, vocabulary: types.Vocabulary) -> Any:
  found = hf_config.config_json(config)
  if isinstance(config, models.DecoderOnlyConfig):
    found |= {
      'max_position_embeddings': None,  # not known: `convert` asks for it
      'eos_token_id': vocabulary.eos_id,
      'bos_token_id': vocabulary.bos_id,
    }
  return found


def _source(path: str) -> epath.Path | None:
  """Returns the folder with a config.json of a checkpoint, if there is one."""
  try:
    folder = model_folder.find(path)
  except ValueError:  # of an older run or of T5X, without a description
    return None
  return folder if (folder / 'config.json').exists() else None
