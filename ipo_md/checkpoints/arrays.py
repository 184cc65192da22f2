"""Arrays of a checkpoint, read one at a time, and how they make up parameters.

Other formats keep each layer (and each expert) in an array of its own, and some
keep kernels transposed:

  ours    decoder/layers/mlp/wo/kernel            [L, mlp, embed]
  theirs  model.layers.0.mlp.down_proj.weight     [embed, mlp]
          model.layers.1.mlp.down_proj.weight     ...

A `Layout` says which of their arrays is which part of which parameter. Memory
holds one of their arrays and the shards of ours that this host keeps.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from ipo_md.core import types


@dataclasses.dataclass(frozen=True)
class Stored:
  """An array of a checkpoint, not read yet."""

  shape: tuple[int, ...]
  dtype: Any
  read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Piece:
  """One of their arrays: ours[index], transposed or not."""

  name: str
  index: tuple[int, ...] = ()
  transposed: bool = False


Layout = Mapping[str, Sequence[Piece]]  # of each parameter's path


def flatten(params: types.Params) -> dict[str, Any]:
  """Nested parameters -> path with slashes: leaf."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def unflatten(flat: Mapping[str, Any]) -> types.Params:
  params: dict[str, Any] = {}
  for path, leaf in flat.items():
    *parents, name = path.split('/')
    node = params
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return params


def check(
  what: str,
  stored: Mapping[str, Stored],
  layout: Layout,
  abstract: Mapping[str, Any],
  *,
  ignored: Callable[[str], bool] = lambda name: False,
  advice: str = '',
) -> None:
  """Raises ValueError unless stored arrays and parameters fit one another.

  Args:
    what: the checkpoint, for the message.
    stored: the arrays there are.
    layout: of the parameters.
    abstract: path -> shaped parameter.
    ignored: names of arrays that a checkpoint may hold besides.
    advice: what to do about it.
  """
  problems, known = [], set()
  for path, pieces in layout.items():
    for piece in pieces:
      known.add(piece.name)
      shape = abstract[path].shape[len(piece.index) :]
      shape = shape[::-1] if piece.transposed else shape
      if piece.name not in stored:
        problems.append(f'{piece.name}: missing there, {shape} in the model')
      elif stored[piece.name].shape != shape:
        problems.append(
          f'{piece.name}: {stored[piece.name].shape} there, {shape} in the '
          'model'
        )
  problems += [
    f'{name}: {array.shape} there, not in the model'
    for name, array in stored.items()
    if name not in known and not ignored(name)
  ]
  if problems:
    raise ValueError(
      f'{what} is not a checkpoint of this model ({len(problems)} arrays '
      'differ):\n  ' + '\n  '.join([*problems[:5], advice]).rstrip()
    )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """Parameters under our names, in whatever form they are stored."""

  stored: Mapping[str, Stored]
  layout: Layout
  # The last array of which a part was read: ours are one chunk for all layers.
  _last: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

  def read(self, path: str, index: tuple[int, ...]) -> np.ndarray:
    """Parameter[index], where the layout has a piece that covers it."""
    for piece in self.layout[path]:
      n = len(piece.index)
      if piece.index == index[:n]:
        if n == len(index):
          array = self.stored[piece.name].read()
        else:
          array = self._whole(piece.name)
        return (array.T if piece.transposed else array)[index[n:]]
    raise KeyError(f'{path}{index} is not one array of the checkpoint.')

  def _whole(self, name: str) -> np.ndarray:
    if name not in self._last:
      self._last.clear()
      self._last[name] = self.stored[name].read()
    return self._last[name]

  def load(self, abstract: Mapping[str, Any]) -> dict[str, jax.Array]:
    """path -> `jax.ShapeDtypeStruct` to path -> array with its sharding."""
    return {path: self._load(path, leaf) for path, leaf in abstract.items()}

  def _load(self, path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(
      jax.devices()[0]
    )
    places = sharding.addressable_devices_indices_map(leaf.shape)
    places = {d: _bounds(i, leaf.shape) for d, i in places.items()}
    shards = {
      bounds: np.empty([stop - start for start, stop in bounds], leaf.dtype)
      for bounds in set(places.values())
    }
    self._fill(path, shards)
    return jax.make_array_from_single_device_arrays(
      leaf.shape,
      sharding,
      [jax.device_put(shards[bounds], d) for d, bounds in places.items()],
    )

  def _fill(
    self, path: str, shards: Mapping[tuple[tuple[int, int], ...], np.ndarray]
  ) -> None:
    """Reads each piece that a shard needs, once. shards: bounds to array."""
    for piece in self.layout[path]:
      n = len(piece.index)
      here = {
        bounds: shard
        for bounds, shard in shards.items()
        if all(
          start <= i < stop
          for i, (start, stop) in zip(piece.index, bounds[:n], strict=True)
        )
      }
      if not here:
        continue
      array = self.stored[piece.name].read()
      array = array.T if piece.transposed else array
      for bounds, shard in here.items():
        at = tuple(
          i - start
          for i, (start, _) in zip(piece.index, bounds[:n], strict=True)
        )
        shard[at] = array[tuple(slice(*b) for b in bounds[n:])]


def merged(
  reference: Checkpoint,
  adapters: Checkpoint,
  abstract: Mapping[str, Any],
  scale: float,
) -> Checkpoint:
  """A checkpoint whose layer i of an adapted kernel is W_i + scale A_i B_i.

  Args:
    reference: of W.
    adapters: of LoRA's path/a and path/b.
    abstract: path -> shaped parameter of the reference.
    scale: `models.Lora.scale`.
  """
  stored, layout = dict(reference.stored), dict(reference.layout)

  def layer(path: str, i: int) -> Stored:
    def read() -> np.ndarray:
      kernel = reference.read(path, (i,)).astype(np.float32)
      a, b = (adapters.read(f'{path}/{name}', (i,)) for name in 'ab')
      return kernel + scale * (a @ b)

    return Stored(abstract[path].shape[1:], np.float32, read)

  for path, leaf in abstract.items():
    if f'{path}/a' in adapters.layout:
      names = [f'{path}[{i}]' for i in range(leaf.shape[0])]
      stored |= {name: layer(path, i) for i, name in enumerate(names)}
      layout[path] = [Piece(name, (i,)) for i, name in enumerate(names)]
  return Checkpoint(stored, layout)


def _bounds(index, shape) -> tuple[tuple[int, int], ...]:
  return tuple(
    s.indices(size)[:2] for s, size in zip(index, shape, strict=True)
  )
