"""Safetensors files, read and written with one array in memory at a time.

The safetensors library reads them. It can write only arrays that are in memory
together, a whole shard of 5 GB, so that the header is written here
(https://huggingface.co/docs/safetensors): eight bytes with its length, then a
JSON object of name -> dtype, shape and offsets. The arrays follow it.
"""

from collections.abc import Callable
from collections.abc import Mapping
import json
import math
import tempfile
from typing import Any

from etils import epath
import ml_dtypes
import numpy as np
import safetensors

from ipo_md.checkpoints import arrays
from ipo_md.checkpoints import foreign
from ipo_md.core import progress

_DTYPES = {
  'F64': np.dtype(np.float64),
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'I64': np.dtype(np.int64),
  'I32': np.dtype(np.int32),
}
_SINGLE = 'model.safetensors'
_INDEX = 'model.safetensors.index.json'


def read(directory: epath.Path) -> dict[str, arrays.Stored]:
  """Opens the arrays of model.safetensors, or of the shards in its index.

  If there is both, model.safetensors is read, as transformers does. A file in a
  bucket is first copied to the directory for temporary files (TMPDIR), since
  the library reads local files alone.

  Raises:
    ValueError: There is no such file, a file is damaged, or the shards hold
      other arrays than the index says.
  """
  index, single = directory / _INDEX, directory / _SINGLE
  if single.exists():
    if index.exists() and '-of-' in index.read_text():  # it names shards
      progress.say(
        f'{directory} has both {_SINGLE} and {_INDEX}. {_SINGLE} is read, as '
        'transformers does, and the shards of the index are not.'
      )
    return _read_file(single)
  if not index.exists():
    raise ValueError(
      f'{directory} has no {_SINGLE} and no {_INDEX}.'
      + foreign.cause(directory)
    )
  weight_map = _weight_map(index)
  stored: dict[str, arrays.Stored] = {}
  for file in sorted(set(weight_map.values())):
    if not (directory / file).exists():
      raise ValueError(f'{index} names {directory / file}, which is missing.')
    stored |= _read_file(directory / file)
  if stored.keys() != weight_map.keys():
    differing = sorted(stored.keys() ^ weight_map.keys())
    raise ValueError(f'{index} and its files differ in {differing[:5]}.')
  return stored


def _weight_map(index: epath.Path) -> dict[str, str]:
  try:
    return dict(json.loads(index.read_text())['weight_map'])
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f'{index} has no weight_map: {error!r}.') from error


def _read_file(path: epath.Path) -> dict[str, arrays.Stored]:
  try:
    file = _open(path)
  except safetensors.SafetensorError as error:
    if foreign.is_lfs_pointer(path):
      raise ValueError(
        f'{path} is a pointer of Git LFS, not the weights. Run git lfs pull in '
        'its folder.'
      ) from error
    raise ValueError(
      f'{path} is truncated or not a safetensors file: {error}.'
    ) from error
  return {name: _stored(path, file, name) for name in file.offset_keys()}


def _open(path: epath.Path) -> safetensors.safe_open:
  # With `pread`, memory holds the array that is read. A mapping of the file
  # would add up to all of it to the size of the process.
  if '://' not in str(path):
    return safetensors.safe_open(path, 'numpy', backend='pread')
  # The file has no name any more once it is open, so that nothing is left
  # behind, even if the process is killed.
  with tempfile.NamedTemporaryFile() as local:
    path.copy(local.name, overwrite=True)
    return safetensors.safe_open(local.name, 'numpy', backend='pread')


def _stored(path, file, name) -> arrays.Stored:
  header = file.get_slice(name)
  if header.get_dtype() not in _DTYPES:
    raise ValueError(
      f'{path}: {name} has dtype {header.get_dtype()}, which is not read.'
    )
  return arrays.Stored(
    tuple(header.get_shape()),
    _DTYPES[header.get_dtype()],
    lambda: file.get_tensor(name),
  )


def write(
  directory: epath.Path,
  shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]],
  array: Callable[[str], np.ndarray],
  *,
  file_name: str = _SINGLE,
  shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes model.safetensors, or shards of it with an index.

  Args:
    directory: Directory that exists.
    shapes: Shape and dtype of every array, by name.
    array: Function from a name to its array, called once for each.
    file_name: Name of the file if it holds all arrays.
    shard_bytes: Largest size of the arrays of a file, unless one array is
      larger.
  """
  files, sizes = [[]], [0]
  for name, (shape, dtype) in shapes.items():
    size = math.prod(shape) * dtype.itemsize
    if sizes[-1] and sizes[-1] + size > shard_bytes:
      files.append([])
      sizes.append(0)
    files[-1].append(name)
    sizes[-1] += size
  n = len(files)
  paths = [file_name]
  if n > 1:
    paths = [f'model-{i + 1:05}-of-{n:05}.safetensors' for i in range(n)]
    weight_map = {
      name: path
      for path, names in zip(paths, files, strict=True)
      for name in names
    }
    index = {'metadata': {'total_size': sum(sizes)}, 'weight_map': weight_map}
    (directory / _INDEX).write_text(json.dumps(index, indent=2))
  for path, names in zip(paths, files, strict=True):
    _write_file(directory / path, {k: shapes[k] for k in names}, array)


def _write_file(path, shapes, array) -> None:
  codes = {dtype: code for code, dtype in _DTYPES.items()}
  header: dict[str, dict[str, Any]] = {'__metadata__': {'format': 'pt'}}
  end = 0
  for name, (shape, dtype) in shapes.items():
    start, end = end, end + math.prod(shape) * dtype.itemsize
    header[name] = {
      'dtype': codes[dtype],
      'shape': list(shape),
      'data_offsets': [start, end],
    }
  encoded = json.dumps(header).encode()
  encoded += b' ' * (-len(encoded) % 8)  # arrays start at a multiple of 8
  with path.open('wb') as file:
    file.write(len(encoded).to_bytes(8, 'little'))
    file.write(encoded)
    for name in progress.progress(shapes, len(shapes), f'writing {path.name}'):
      file.write(np.ascontiguousarray(array(name)).tobytes())
