"""What a GGUF file has beside its weights, as Hugging Face's files."""

import functools
import json
import tempfile

from etils import epath

from ipo_md.checkpoints import gguf_file
from ipo_md.checkpoints import gguf_tokenizer


def unpacked(path: epath.Path) -> epath.Path:
  """Returns a folder with config.json, the tokenizer and the chat template.

  The folder lasts as long as the process. A tokenizer of a kind that is not
  read is left out; `check_tokenizer` says so.

  Args:
    path: Path of the GGUF file.

  Raises:
    ValueError: The model is of a kind that is not read.
  """
  return epath.Path(_folder(str(path)).name)


def check_tokenizer(path: epath.Path) -> None:
  """Raises a ValueError if the tokenizer of a GGUF file is not read."""
  gguf_tokenizer.check(gguf_file.metadata(path), str(path))


@functools.cache
def _folder(path: str) -> tempfile.TemporaryDirectory:
  file = epath.Path(path)
  config = gguf_file.config(file)
  try:
    files = gguf_tokenizer.files(gguf_file.metadata(file), path)
  except ValueError:  # `check_tokenizer` raises it where a tokenizer is needed
    files = {}
  folder = tempfile.TemporaryDirectory(prefix='gguf_')
  files['config.json'] = json.dumps(config, indent=2) + '\n'
  for name, text in files.items():
    (epath.Path(folder.name) / name).write_text(text)
  return folder
