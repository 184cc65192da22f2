"""Says what a folder or file is that is not a checkpoint of a known format."""

from collections.abc import Sequence
import fnmatch
import json

from etils import epath

_TENSORFLOW = b'model_checkpoint_path'
_LFS = b'version https://git-lfs'

# Patterns of file names, the first of which is found says what it is.
_KINDS = (
  (
    ('*.ggml',),
    'GGML is not read. Use the safetensors that it was made from',
  ),
  (
    ('model.ckpt*.index', 'saved_model.pb', 'tf_model.h5', '*.keras'),
    'TensorFlow and Keras checkpoints are not read. Save the model as '
    'safetensors with transformers',
  ),
  (
    ('flax_model*.msgpack', '*.msgpack'),
    'Flax msgpack of transformers is not read. Save the model as safetensors '
    'with transformers',
  ),
  (('*.onnx', '*.onnx_data'), 'ONNX is not read. Use the original weights'),
  (
    ('*.distcp', '.metadata'),
    "PyTorch's distributed checkpoints are not read. Save the model as "
    'safetensors',
  ),
  (
    ('consolidated*.safetensors', 'params.json'),
    "the original layout of the model's authors is not read. Use the "
    'checkpoint for transformers, with config.json',
  ),
  (
    ('*.bin', '*.pt', '*.pth', '*.pkl', '*.pickle', '*.ckpt'),
    'pickles are not read, because they can run code. Save the model as '
    'safetensors',
  ),
  (
    ('model.*.safetensors', '*.safetensors'),
    'weights are read from model.safetensors, or from the shards in '
    'model.safetensors.index.json, beside a config.json',
  ),
)
# These say what a folder is only if it holds no weights.
_WITHOUT_WEIGHTS = (
  (
    ('tokenizer*', 'spiece.model', 'vocab.*'),
    'this is a tokenizer without weights (TOKENIZER_PATH)',
  ),
  (
    ('config.gin', 'metrics.jsonl'),
    'this is the MODEL_DIR of a run that has not saved a checkpoint yet',
  ),
)


def cause(path: epath.Path) -> str:
  """Returns a sentence that says what a path is, '' if that is not known.

  Args:
    path: Path of a file or folder that could not be read as a checkpoint.
  """
  if not path.exists():
    return ' It does not exist.'
  if not path.is_dir():
    return _file(path)
  names = sorted(child.name for child in path.iterdir())
  if not names:
    return ' The folder is empty.'
  if 'adapter_config.json' in names:
    return _adapters(path / 'adapter_config.json')
  if is_tensorflow(path):
    return _sentence('checkpoint', _KINDS[1][1])
  weights = fnmatch.filter(names, 'model*.safetensors')
  if not weights and (found := _inner(path)):
    return f' It holds folders that are checkpoints: {", ".join(found)}.'
  return _of(names, _KINDS) or _of(names, _WITHOUT_WEIGHTS)


def is_tensorflow(directory: epath.Path) -> bool:
  """Says whether the file `checkpoint` of a folder is TensorFlow's."""
  return _starts_with(directory / 'checkpoint', _TENSORFLOW)


def is_lfs_pointer(path: epath.Path) -> bool:
  """Says whether a file is what Git LFS leaves in place of the content."""
  return _starts_with(path, _LFS)


def _starts_with(path: epath.Path, start: bytes) -> bool:
  if not path.exists() or path.is_dir():
    return False
  with path.open('rb') as file:
    return file.read(len(start)) == start


def _file(path: epath.Path) -> str:
  if path.suffix in ('.safetensors', '.json'):
    return (
      f' {path.name} is a file: give the folder that holds it, {path.parent}.'
    )
  return _of([path.name], _KINDS) or ' It is a file.'


def _adapters(path: epath.Path) -> str:
  try:
    base = json.loads(path.read_text()).get('base_model_name_or_path')
  except (ValueError, AttributeError):
    base = None
  return (
    f' {path.name}: these are adapters of PEFT, which are not read. Give the '
    f'base model{f", {base}," if base else ""} or merge them into it with '
    'merge_and_unload and save_pretrained.'
  )


def _inner(path: epath.Path) -> list[str]:
  """Returns the folders inside that have a config.json, at most three.

  They are the checkpoints of a trainer, or of a cache of the hub in
  snapshots/REVISION.
  """
  folders = [path, path / 'snapshots']
  children = [
    child
    for folder in folders
    if folder.is_dir()
    for child in sorted(folder.iterdir())
    if child.is_dir()
  ]
  found = [c for c in children if (c / 'config.json').exists()]
  return [str(child.relative_to(path)) for child in found[:3]]


def _of(
  names: Sequence[str], kinds: Sequence[tuple[Sequence[str], str]]
) -> str:
  for patterns, what in kinds:
    for pattern in patterns:
      if found := fnmatch.filter(names, pattern):
        return _sentence(found[0], what)
  return ''


def _sentence(name: str, what: str) -> str:
  return f' {name}: {what}.'
