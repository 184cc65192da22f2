"""Reading and writing of safetensors, one array in memory at a time.

https://huggingface.co/docs/safetensors: eight bytes with the length of the
header, a JSON header of name -> dtype, shape and offsets, then the arrays.
Files are read by seeking, not mapped, on any path that etils opens.
"""

from collections.abc import Callable
from collections.abc import Mapping
import json
import math

from etils import epath
import ml_dtypes
import numpy as np

from ipo_md.checkpoints import arrays
from ipo_md.core import progress

_DTYPES = {
  'F64': np.dtype(np.float64),
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'I64': np.dtype(np.int64),
  'I32': np.dtype(np.int32),
}
_PICKLES = ('.bin', '.pt', '.pth', '.pkl', '.pickle', '.ckpt')
_INDEX = 'model.safetensors.index.json'


def read(directory: epath.Path) -> dict[str, arrays.Stored]:
  """The arrays of model.safetensors, or of the files that its index names.

  Raises:
    ValueError: neither is there, a file is truncated, or the files hold other
      arrays than the index says.
  """
  index = directory / _INDEX
  if not index.exists():
    if not (directory / 'model.safetensors').exists():
      raise ValueError(
        f'{directory} has no model.safetensors and no {_INDEX}.'
        + about_pickles(directory)
      )
    return _read_file(directory / 'model.safetensors')
  try:
    weight_map = dict(json.loads(index.read_text())['weight_map'])
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f'{index} has no weight_map: {error!r}.') from error
  stored: dict[str, arrays.Stored] = {}
  for file in sorted(set(weight_map.values())):
    if not (directory / file).exists():
      raise ValueError(f'{directory / file} is not there; {index} names it.')
    stored |= _read_file(directory / file)
  if stored.keys() != weight_map.keys():
    differing = sorted(stored.keys() ^ weight_map.keys())
    raise ValueError(f'{index} and its files differ in {differing[:5]}.')
  return stored


def about_pickles(path: epath.Path) -> str:
  """Why the pickle that a path is or holds, by its name, is not read."""
  files = path.iterdir() if path.is_dir() else [path]
  pickles = sorted(p.name for p in files if p.suffix in _PICKLES)
  if not pickles:
    return ''
  return (
    f' {pickles[0]}: pickles can run code and are not read. Save the model as '
    'safetensors.'
  )


def _read_file(path: epath.Path) -> dict[str, arrays.Stored]:
  size = path.stat().length
  with path.open('rb') as file:
    length = int.from_bytes(file.read(8), 'little')
    if size < 8 or 8 + length > size:
      raise ValueError(f'{path} is truncated: {size} bytes.')
    header = file.read(length)
  try:
    entries = {
      name: (entry['dtype'], tuple(entry['shape']), *entry['data_offsets'])
      for name, entry in json.loads(header).items()
      if name != '__metadata__'
    }
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'{path} has no header in JSON: {error!r}.') from error
  return {
    name: _stored(path, name, *entry, 8 + length, size)
    for name, entry in entries.items()
  }


def _stored(path, name, code, shape, first, last, data, size) -> arrays.Stored:
  if code not in _DTYPES:
    raise ValueError(f'{path}: {name} has dtype {code}, which is not read.')
  dtype = _DTYPES[code]
  if data + last > size:
    raise ValueError(
      f'{path} is truncated: {name} ends at byte {data + last} of {size}.'
    )
  if last - first != math.prod(shape) * dtype.itemsize:
    raise ValueError(f'{path}: {name} {shape} has {last - first} bytes.')

  def read_array() -> np.ndarray:
    with path.open('rb') as file:
      file.seek(data + first)
      return np.frombuffer(file.read(last - first), dtype).reshape(shape)

  return arrays.Stored(shape, dtype, read_array)


def write(
  directory: epath.Path,
  shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]],
  array: Callable[[str], np.ndarray],
  *,
  file_name: str = 'model.safetensors',
  shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes model.safetensors, or shards of it with an index.

  Args:
    directory: exists.
    shapes: name -> shape and dtype.
    array: name -> the array, called once each.
    file_name: of a file that holds them all.
    shard_bytes: at most this much in a file.
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
  header, end = {'__metadata__': {'format': 'pt'}}, 0
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
