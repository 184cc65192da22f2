"""Stacks of L layers.

A stack is one module whose parameters have a leading axis of layers.
"""

from collections.abc import Callable
from typing import Any

from flax import nnx
import flax.struct
import jax
from jax import lax
import jax.numpy as jnp

from ipo_md.core import sharding

REMAT_POLICIES = {
  'none': None,
  'minimal': jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
  'full': jax.checkpoint_policies.nothing_saveable,
}


@flax.struct.dataclass
class PerLayer:
  """A stacked parameter [L, ...], taken apart outside of the sampler's loop.

  Inside of it every layer's part would be copied out anew at each token.
  """

  parts: tuple[jax.Array, ...]


def map_layers(f: Callable, stack: nnx.Module, layers: int, scan: bool) -> Any:
  """f(layer) for every layer: stacked for a scan, else a tuple."""
  graphdef, params = nnx.split(stack)
  call = lambda p: f(nnx.merge(graphdef, p))
  if scan:
    return lax.map(call, params)
  return tuple(call(p) for p in _unstack(params, layers))


def apply_stack(
  f: Callable,
  stack: nnx.Module,
  x: Any,
  inputs: Any = None,
  cache: Any = None,
  *,
  layers: int,
  scan: bool,
  remat_policy: str,
  rng: jax.Array | None = None,
) -> tuple[Any, Any, Any]:
  """Runs x through the layers of a stack.

  Args:
    f: (layer, x, input, cache, rng) -> (x, cache, output).
    stack: module whose parameters have a leading axis of layers.
    x: what the first layer gets.
    inputs: what each layer gets besides, as `map_layers` returns it.
    cache: of each layer, from `init_cache`; None: there is none.
    layers: L.
    scan: whether `lax.scan` runs the layers, and so whether `inputs` are
      stacked. With a cache they are unrolled even so: while one layer works,
      a TPU fetches the next one's weights, but never across a loop's rounds.
    remat_policy: what the backward pass keeps; a key of `REMAT_POLICIES`.
    rng: key, consumed; each layer gets its own. None: none.

  Returns:
    x after the last layer, the cache, and the layers' outputs: stacked if
    scanned, else a tuple.
  """
  if remat_policy not in REMAT_POLICIES:
    raise ValueError(
      f'remat_policy {remat_policy!r} is not among {list(REMAT_POLICIES)}.'
    )
  graphdef, params = nnx.split(stack)

  def call(params, x, layer_input, cache, layer):
    key = None if rng is None else jax.random.fold_in(rng, layer)
    x = sharding.split_batch(x)
    return f(nnx.merge(graphdef, params), x, layer_input, cache, key)

  if remat_policy != 'none' and cache is None:
    call = jax.checkpoint(
      call, policy=REMAT_POLICIES[remat_policy], prevent_cse=not scan
    )
  if scan and cache is None:

    def step(x, layer):
      params, layer_input, i = layer
      x, _, output = call(params, x, layer_input, None, i)
      return x, output

    x, outputs = lax.scan(step, x, (params, inputs, jnp.arange(layers)))
    return x, None, outputs

  nothing = (None,) * layers
  if scan:
    inputs = _unstack(inputs, layers)
  inputs = nothing if inputs is None else inputs
  cache = nothing if cache is None else cache
  caches, outputs = [], []
  for i, layer_params in enumerate(_unstack(params, layers)):
    x, layer_cache, output = call(layer_params, x, inputs[i], cache[i], i)
    caches.append(layer_cache)
    outputs.append(output)
  cache = None if caches[0] is None else tuple(caches)
  return x, cache, tuple(outputs)


def _unstack(tree: Any, layers: int) -> list[Any]:
  """[L, ...] leaves -> L trees.

  By `lax.split`, whose transpose is one concatenation; that of L slices is a
  sum of L padded arrays.
  """
  is_apart = lambda x: isinstance(x, PerLayer)
  apart = jax.tree.map(
    lambda x: x if is_apart(x) else take_apart(x, layers),
    tree,
    is_leaf=is_apart,
  )
  return [
    jax.tree.map(lambda x: x.parts[i], apart, is_leaf=is_apart)  # noqa: B023
    for i in range(layers)
  ]


def take_apart(stacked: jax.Array, layers: int) -> PerLayer:
  parts = lax.split(stacked, (1,) * layers, axis=0)
  return PerLayer(tuple(p.reshape(stacked.shape[1:]) for p in parts))
