"""T5X's checkpoints: native (version 3: msgpack and zarr) and Orbax (OCDBT).

  checkpoint_N/checkpoint                              index, in msgpack
  checkpoint_N/target.encoder.layers_0.mlp.wo.kernel/  zarr array of a parameter

T5X's parameters have the same names as here, but every layer is an array of its
own. Optimizer states are not converted.
"""

from collections.abc import Mapping
import os
from typing import Any

from etils import epath
from flax import serialization
from flax import traverse_util
import numpy as np
import tensorstore as ts

from ipo_md.checkpoints import arrays
from ipo_md.checkpoints import foreign
from ipo_md.core import progress


def layout(abstract: Mapping[str, Any]) -> arrays.Layout:
  """Returns T5X's layout of parameters.

  A parameter x/layers/y of shape [L, ...] is stored as x/layers_0/y to
  x/layers_{L-1}/y of shape [...].

  Args:
    abstract: Shape of every parameter, by path.
  """
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
  """Says whether a directory is a native checkpoint."""
  return (directory / 'checkpoint').exists() and not foreign.is_tensorflow(
    directory
  )


def is_orbax(directory: epath.Path) -> bool:
  """Says whether a directory is an Orbax checkpoint of T5X."""
  return (directory / 'state' / 'manifest.ocdbt').exists()


def read_native(directory: epath.Path) -> dict[str, arrays.Stored]:
  """Opens the parameters of a native checkpoint.

  Raises:
    ValueError: The index or an array that it names is damaged.
  """
  path = directory / 'checkpoint'
  try:
    tree = serialization.msgpack_restore(path.read_bytes())
  except (ValueError, TypeError) as error:
    raise ValueError(f'{path} is truncated or not msgpack: {error}.') from error
  try:
    target = traverse_util.flatten_dict(
      dict(tree['optimizer']['target']),
      is_leaf=lambda path, node: 'driver' in node,
      sep='/',
    )
    return {name: _stored(directory, leaf) for name, leaf in target.items()}
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'{path} has no optimizer/target: {error!r}.') from error


def _stored(directory: epath.Path, leaf: Any) -> arrays.Stored:
  """Opens a leaf of the index: an array, or the TensorStore spec of one."""
  if isinstance(leaf, np.ndarray | np.generic):
    return arrays.Stored(leaf.shape, leaf.dtype, lambda: np.asarray(leaf))
  # The bucket in the spec may be a placeholder, so only the name is used.
  place = leaf['kvstore'].get('path') or leaf.get('path', '')
  return open_zarr({'path': f'{directory / place.rstrip("/").split("/")[-1]}/'})


def read_ocdbt(directory: epath.Path, prefix: str) -> dict[str, arrays.Stored]:
  """Opens the arrays of an Orbax checkpoint whose names start with `prefix.`.

  Args:
    directory: Directory with manifest.ocdbt.
    prefix: Top level of the saved tree, such as 'params'. It is left out of the
      names that are returned.

  Raises:
    ValueError: The checkpoint is damaged.
  """
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
  """Opens a zarr array.

  Args:
    kvstore: Key-value store of TensorStore, or {'path': path} with the path of
      a local directory or of one in Cloud Storage.
    driver: 'zarr' or 'zarr3', TensorStore's driver.

  Raises:
    ValueError: There is no such array; or, when it is read, a chunk is missing.
  """
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
  # TensorStore takes no path with `..` in it.
  end = '/' if path.endswith('/') else ''
  return {'driver': 'file', 'path': os.path.abspath(path) + end}


def write_native(
  directory: epath.Path,
  checkpoint: arrays.Checkpoint,
  abstract: Mapping[str, Any],
  *,
  step: int,
) -> None:
  """Writes checkpoint_`step` into a directory, one array at a time.

  Args:
    directory: Directory that exists.
    checkpoint: Parameters to write.
    abstract: Shape of every parameter, by path.
    step: Number of the checkpoint.
  """
  directory = directory / f'checkpoint_{step}'
  target = {}
  every = layout(abstract)
  rows = progress.progress(every.items(), len(every), 'converting')
  for path, pieces in rows:
    for piece in pieces:
      array = checkpoint.read(path, piece.index)
      target[piece.name] = _write_zarr(directory, piece.name, array)
  index = {
    'version': 3,
    'optimizer': {
      'target': traverse_util.unflatten_dict(target, sep='/'),
      'state': {'step': np.array(step, np.int32), 'param_states': {}},
    },
  }
  (directory / 'checkpoint').write_bytes(
    serialization.msgpack_serialize(index, in_place=True)
  )


def _write_zarr(
  directory: epath.Path, name: str, array: np.ndarray
) -> dict[str, Any]:
  """Writes an array and returns its TensorStore spec for the index."""
  folder = 'target.' + name.replace('/', '.')
  spec = {
    'driver': 'zarr',
    'dtype': array.dtype.name,
    'kvstore': {'driver': 'file', 'path': f'{folder}/'},
    'metadata': {
      'shape': list(array.shape),
      'chunks': list(array.shape),
      'compressor': {'id': 'zstd', 'level': 1},
    },
  }
  place = {'kvstore': _kvstore(f'{directory / folder}/')}
  store = ts.open(spec | place, create=True, open=True).result()
  store.write(array).result()
  return spec
