"""Arrays of a checkpoint, read one at a time, and their layout.

Other formats store every layer (and every expert) as an array of its own, and
some store kernels transposed:

  here   decoder/layers/mlp/wo/kernel            [L, mlp, embed]
  there  model.layers.0.mlp.down_proj.weight     [embed, mlp]
         model.layers.1.mlp.down_proj.weight     ...

A `Layout` says which stored array is which part of which parameter. Memory
holds one stored array at a time, beside this host's shards of the parameters.
Weights that are not finite are refused while they are read.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import hashlib
from typing import Any

import jax
import numpy as np

Bounds = tuple[tuple[int, int], ...]  # (start, stop) of every axis

_BLOCK = 2**20  # elements that are checked at a time


@dataclasses.dataclass(frozen=True)
class Stored:
  """An array of a checkpoint that has not been read yet."""

  shape: tuple[int, ...]
  dtype: Any
  read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Piece:
  """The stored array that holds parameter[index], perhaps transposed."""

  name: str
  index: tuple[int, ...] = ()
  transposed: bool = False

  def oriented(self, array: np.ndarray) -> np.ndarray:
    """Turns the stored array into the parameter's axis order, or back."""
    return array.T if self.transposed else array

  def stored_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the shape of the stored array, given the parameter's shape."""
    rest = tuple(shape[len(self.index) :])
    return rest[::-1] if self.transposed else rest


Layout = Mapping[str, Sequence[Piece]]  # path of a parameter -> its pieces


def check(
  what: str,
  stored: Mapping[str, Stored],
  layout: Layout,
  abstract: Mapping[str, Any],
  *,
  ignored: Callable[[str], bool] = lambda name: False,
  advice: str = '',
) -> None:
  """Checks that the stored arrays are those of the parameters.

  Args:
    what: Name of the checkpoint in the error message.
    stored: Arrays of the checkpoint.
    layout: Layout of the parameters.
    abstract: Shape of every parameter, by path.
    ignored: Predicate on the names of arrays that may be stored in addition.
    advice: Last line of the error message.

  Raises:
    ValueError: An array is missing, superfluous or of another shape.
  """
  problems, known = [], set()
  for path, pieces in layout.items():
    for piece in pieces:
      known.add(piece.name)
      shape = piece.stored_shape(abstract[path].shape)
      if piece.name not in stored:
        problems.append(
          f'{piece.name}: missing from the checkpoint, {shape} in the model'
        )
      elif stored[piece.name].shape != shape:
        problems.append(
          f'{piece.name}: {stored[piece.name].shape} in the checkpoint, '
          f'{shape} in the model'
        )
  problems += [
    f'{name}: {array.shape} in the checkpoint, missing from the model'
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
  """The parameters of a checkpoint, by path, whatever its format.

  Attributes:
    stored: Arrays of the checkpoint, by their name there.
    layout: Layout of the parameters.
    what: Name of the checkpoint in error messages.
  """

  stored: Mapping[str, Stored]
  layout: Layout
  what: str = 'The checkpoint'
  # The array that was read last. A MODEL_DIR stores all layers of a parameter
  # as one array, while they are read one after the other.
  _last: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

  def read(self, path: str, index: tuple[int, ...]) -> np.ndarray:
    """Reads parameter[index], which may be a part of a stored array or several.

    Raises:
      KeyError: The checkpoint does not hold parameter[index].
      ValueError: A weight is not finite.
    """
    parts = []
    for piece in self.layout[path]:
      n = len(piece.index)
      if piece.index == index[:n]:
        if n == len(index):
          array = self._read(piece.name)
        else:
          array = self._whole(piece.name)
        return piece.oriented(array)[index[n:]]
      if piece.index[: len(index)] == index:
        parts.append((piece.index[len(index) :], piece))
    if not parts:
      raise KeyError(f'{path}{index} is not in the checkpoint.')
    return self._joined(parts)

  def _joined(
    self, parts: Sequence[tuple[tuple[int, ...], Piece]]
  ) -> np.ndarray:
    """Reads the pieces of an array that the checkpoint stores in parts."""
    lead = tuple(max(axis) + 1 for axis in zip(*dict(parts), strict=True))
    first = parts[0][1].oriented(self._read(parts[0][1].name))
    joined = np.empty(lead + first.shape, first.dtype)
    joined[parts[0][0]] = first
    for index, piece in parts[1:]:
      joined[index] = piece.oriented(self._read(piece.name))
    return joined

  def _whole(self, name: str) -> np.ndarray:
    if name not in self._last:
      self._last.clear()
      self._last[name] = self._read(name)
    return self._last[name]

  def _read(self, name: str) -> np.ndarray:
    array = self.stored[name].read()
    _check_finite(f'{self.what}: {name}', array)
    return array

  def load(
    self, abstract: Mapping[str, jax.ShapeDtypeStruct]
  ) -> dict[str, jax.Array]:
    """Reads parameters onto the devices of their shardings.

    Args:
      abstract: Shape, dtype and sharding of every parameter to load, by path. A
        parameter without a sharding is placed on the first device.
    """
    return {path: self._load(path, leaf) for path, leaf in abstract.items()}

  def _load(self, path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(
      jax.devices()[0]
    )
    indices = sharding.addressable_devices_indices_map(leaf.shape)
    places = {
      d: _bounds(index, leaf.shape)
      for d, index in indices.items()
      if index is not None
    }
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

  def _fill(self, path: str, shards: Mapping[Bounds, np.ndarray]) -> None:
    """Reads every piece that some shard needs, once, into these shards."""
    for piece in self.layout[path]:
      n = len(piece.index)
      needed = {
        bounds: shard
        for bounds, shard in shards.items()
        if all(
          start <= i < stop
          for i, (start, stop) in zip(piece.index, bounds[:n], strict=True)
        )
      }
      if not needed:
        continue
      array = piece.oriented(self._read(piece.name))
      for bounds, shard in needed.items():
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
  """Returns the checkpoint of a reference with its LoRA adapters merged.

  Layer i of an adapted kernel is W_i + scale A_i B_i, computed when it is read.

  Args:
    reference: Checkpoint of the kernels W.
    adapters: Checkpoint of the adapters, at path/a and path/b.
    abstract: Shape of every parameter of the reference, by path.
    scale: Scale of the adapters, `models.Lora.scale`.
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
  return Checkpoint(stored, layout, f'{reference.what} with {adapters.what}')


def equal(one: Stored, other: Stored) -> bool:
  """Says whether two stored arrays have equal values, whatever their types.

  One of them is in memory at a time.
  """
  return one.shape == other.shape and _digest(one) == _digest(other)


def _digest(stored: Stored) -> bytes:
  digest = hashlib.sha256()
  flat = stored.read().reshape(-1)
  for start in range(0, flat.size, _BLOCK):
    digest.update(flat[start : start + _BLOCK].astype(np.float32).tobytes())
  return digest.digest()


def _check_finite(what: str, array: np.ndarray) -> None:
  """Raises a ValueError if a weight is not finite in float32."""
  flat = array.ravel(order='K')  # a view of an array without gaps
  for start in range(0, flat.size, _BLOCK):
    block = flat[start : start + _BLOCK]
    if block.dtype == np.float64:
      with np.errstate(over='ignore'):
        block = block.astype(np.float32)
    finite = np.isfinite(block)
    if not finite.all():
      raise ValueError(
        f'{what} is not finite: it has the value {block[finite.argmin()]} in '
        f'an array of {array.dtype}, {array.shape}. The file is damaged, or '
        'its values were too large for the type it was saved in. Use another '
        'copy.'
      )


def _bounds(index: tuple[slice, ...], shape: Sequence[int]) -> Bounds:
  return tuple(
    s.indices(size)[:2] for s, size in zip(index, shape, strict=True)
  )
