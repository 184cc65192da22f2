"""T5X's checkpoints: native (version 3: msgpack and zarr) and Orbax (OCDBT).

  checkpoint_N/checkpoint                              msgpack index
  checkpoint_N/target.encoder.layers_0.mlp.wo.kernel/  zarr, one a parameter

Ours and T5X's parameters have the same names, but T5X has an array for each
layer. Optimizer states are not converted.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath
import ml_dtypes
import msgpack
import numpy as np
import tensorstore as ts

from ipo_md.checkpoints import arrays
from ipo_md.core import progress

_NDARRAY, _SCALAR = 1, 3  # msgpack extension types of flax


def layout(abstract: Mapping[str, Any]) -> arrays.Layout:
  """.../layers/... of shape [L, ...] is .../layers_0/... and so on."""
  pieces = {}
  for path, leaf in abstract.items():
    if '/layers/' not in path:
      pieces[path] = [arrays.Piece(path)]
      continue
    pieces[path] = [
      arrays.Piece(path.replace('/layers/', f'/layers_{i}/'), (i,))
      for i in range(leaf.shape[0])
    ]
  return pieces


def is_native(directory: epath.Path) -> bool:
  return (directory / 'checkpoint').exists()


def is_orbax(directory: epath.Path) -> bool:
  return (directory / 'state' / 'manifest.ocdbt').exists()


def read_native(directory: epath.Path) -> dict[str, arrays.Stored]:
  """The arrays of `target`."""
  path = directory / 'checkpoint'
  try:
    tree = msgpack.unpackb(
      path.read_bytes(), ext_hook=_decode, strict_map_key=False
    )
  except (ValueError, msgpack.UnpackException) as error:
    raise ValueError(f'{path} is truncated or not msgpack: {error}.') from error
  stored: dict[str, arrays.Stored] = {}
  try:
    _collect(tree['optimizer']['target'], '', directory, stored)
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'{path} has no optimizer/target: {error!r}.') from error
  return stored


def _collect(node, path, directory, stored) -> None:
  if isinstance(node, np.ndarray):
    stored[path] = arrays.Stored(node.shape, node.dtype, lambda: node)
  elif '__msgpack_chunked_array__' in node:
    parts = [node['chunks'][str(i)] for i in range(len(node['chunks']))]
    shape = tuple(node['shape'][str(i)] for i in range(len(node['shape'])))
    _collect(np.concatenate(parts).reshape(shape), path, directory, stored)
  elif 'driver' in node:
    # The bucket of the spec may be a placeholder: the name alone counts.
    place = node['kvstore'].get('path') or node.get('path', '')
    folder = place.rstrip('/').split('/')[-1]
    stored[path] = open_zarr({'path': f'{directory / folder}/'})
  else:
    for name, child in node.items():
      _collect(child, f'{path}/{name}' if path else name, directory, stored)


def _decode(code: int, data: bytes) -> Any:
  if code not in (_NDARRAY, _SCALAR):
    raise ValueError(f'extension type {code} of msgpack is not of flax')
  shape, dtype, content = msgpack.unpackb(data, raw=True)
  dtype = dtype.decode()
  dtype = np.dtype(ml_dtypes.bfloat16 if dtype == 'bfloat16' else dtype)
  return np.frombuffer(content, dtype).reshape(shape)


def read_ocdbt(directory: epath.Path, prefix: str) -> dict[str, arrays.Stored]:
  """The arrays prefix.* of an Orbax checkpoint's folder."""
  base = {'driver': 'ocdbt', 'base': _kvstore(f'{directory}/')}
  try:
    names = ts.KvStore.open(base).result().list().result()
  except ValueError as error:
    raise ValueError(f'{directory} is damaged: {error}') from error
  stored = {}
  for key in sorted(name.decode() for name in names):
    folder, _, file = key.rpartition('/')
    if file in ('.zarray', 'zarr.json') and folder.startswith(f'{prefix}.'):
      name = folder.removeprefix(f'{prefix}.').replace('.', '/')
      driver = 'zarr' if file == '.zarray' else 'zarr3'
      stored[name] = open_zarr(base | {'path': f'{folder}/'}, driver)
  return stored


def open_zarr(
  kvstore: Mapping[str, Any], driver: str = 'zarr'
) -> arrays.Stored:
  """kvstore: tensorstore's, or {'path': a path}."""
  if 'driver' not in kvstore:
    kvstore = _kvstore(kvstore['path'])
  spec = {
    'driver': driver,
    'kvstore': dict(kvstore),
    'fill_missing_data_reads': False,  # a missing chunk is an error, not zeros
  }
  try:
    store = ts.open(spec, open=True, read=True).result()
  except ValueError as error:
    raise ValueError(f'{kvstore} is not a zarr array: {error}') from error

  def read() -> np.ndarray:
    try:
      return np.asarray(store.read().result())
    except ValueError as error:
      raise ValueError(f'{kvstore} is damaged: {error}') from error

  return arrays.Stored(tuple(store.shape), store.dtype.numpy_dtype, read)


def _kvstore(path: str) -> dict[str, str]:
  if path.startswith('gs://'):
    bucket, _, rest = path.removeprefix('gs://').partition('/')
    return {'driver': 'gcs', 'bucket': bucket, 'path': rest}
  return {'driver': 'file', 'path': path}


def write_native(
  directory: epath.Path,
  checkpoint: arrays.Checkpoint,
  abstract: Mapping[str, Any],
  *,
  step: int,
) -> None:
  """Writes checkpoint_`step` into a directory, one array at a time."""
  directory = directory / f'checkpoint_{step}'
  target = {}
  every = layout(abstract)
  rows = progress.progress(every.items(), len(every), 'converting')
  for path, pieces in rows:
    for piece in pieces:
      folder = 'target.' + piece.name.replace('/', '.')
      array = checkpoint.read(path, piece.index)
      metadata = {
        'shape': list(array.shape),
        'chunks': list(array.shape),
        'compressor': {'id': 'zstd', 'level': 1},
      }
      spec = {
        'driver': 'zarr',
        'kvstore': _kvstore(f'{directory / folder}/'),
        'metadata': metadata,
        'dtype': array.dtype.name,
      }
      store = ts.open(spec, create=True, open=True).result()
      store.write(array).result()
      target[piece.name] = {
        'driver': 'zarr',
        'dtype': array.dtype.name,
        'kvstore': {'driver': 'file', 'path': f'{folder}/'},
        'metadata': metadata,
      }
  state = {'step': _encode(np.int32(step)), 'param_states': {}}
  index = {
    'version': 3,
    'optimizer': {'target': arrays.unflatten(target), 'state': state},
  }
  (directory / 'checkpoint').write_bytes(msgpack.packb(index))


def _encode(array: np.ndarray) -> msgpack.ExtType:
  content = (array.shape, array.dtype.name, array.tobytes())
  return msgpack.ExtType(_NDARRAY, msgpack.packb(content))
