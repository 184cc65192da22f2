"""Names the gin files whose model has the shape of a checkpoint."""

from collections.abc import Mapping
import pathlib
import re
from typing import Any

from ipo_md.checkpoints import arrays

_GIN = pathlib.Path(__file__).parents[2] / 'gin' / 'models'
_BINDING = re.compile(r'^\w+\.(?:T5|DecoderOnly)\.(\w+) = ([^%#\n]+)', re.M)
_INCLUDE = re.compile(r"^include '.*/([^/'\n]+)'", re.M)


def fields(stored: Mapping[str, arrays.Stored]) -> dict[str, Any]:
  """Infers fields of `Model.config` from a checkpoint's shapes.

  Args:
    stored: Arrays of a T5X checkpoint or of a MODEL_DIR, by name.
  """
  found = {}
  for name, array in stored.items():
    if name.endswith('token_embedder/embedding'):
      found['vocab_size'], found['emb_dim'] = array.shape
    elif name.endswith('encoder/relpos_bias/rel_embedding'):
      found['num_heads'] = array.shape[0]
    elif name.endswith('/mlp/wo/kernel'):
      found['mlp_dim'] = array.shape[-2]
  return found


def advice(found: Mapping[str, Any]) -> str:
  """Returns a sentence that names the gin files with these fields."""
  matching = [
    file.name
    for file in sorted(_GIN.glob('*.gin'))
    if not file.name.startswith('judge_') and _agrees(_bindings(file), found)
  ]
  if not found or not matching:
    return 'No file in gin/models matches it.'
  return 'It matches ' + ', '.join(f'gin/models/{f}' for f in matching) + '.'


def _agrees(ours: Mapping[str, str], found: Mapping[str, Any]) -> bool:
  return all(
    ours[key] == repr(value) for key, value in found.items() if key in ours
  ) and all(
    key in ours for key in ('vocab_size', 'emb_dim', 'mlp_dim') if key in found
  )


def _bindings(file: pathlib.Path) -> dict[str, str]:
  text = file.read_text()
  bindings = {}
  for included in _INCLUDE.findall(text):
    bindings |= _bindings(_GIN / included)
  return bindings | {
    key: value.strip() for key, value in _BINDING.findall(text)
  }
