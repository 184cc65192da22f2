"""Runs stacks of L layers.

A stack is one module whose parameters have a leading axis of layers.
"""

from collections.abc import Callable
from typing import Any

from flax import nnx
import flax.struct
import jax
from jax import lax
import jax.numpy as jnp

from ipo_md.core import partitioning

REMAT_POLICIES = {
  'none': None,
  'minimal': jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
  'full': jax.checkpoint_policies.nothing_saveable,
}


class PerLayer(flax.struct.PyTreeNode):
  """A stacked parameter [L, ...] that was separated into its layers.

  This happens before the sampling loop. Inside it, every token would copy the
  part of every layer.
  """

  parts: tuple[jax.Array, ...]


def map_layers(f: Callable, stack: nnx.Module, layers: int, scan: bool) -> Any:
  """Computes f(layer) for every layer.

  Args:
    f: Function of one layer.
    stack: Module whose parameters have a leading axis of layers.
    layers: Number of layers, L.
    scan: Whether results are stacked for a scan.

  Returns:
    The results, stacked along a leading axis or in a tuple.
  """
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
  """Applies the layers of a stack in order.

  Args:
    f: Function (layer, x, input, cache, rng) -> (x, cache, output).
    stack: Module whose parameters have a leading axis of layers.
    x: Input of the first layer.
    inputs: Additional input of each layer, as `map_layers` returns it.
    cache: Caches of the layers from `init_cache`, or None.
    layers: Number of layers, L.
    scan: Whether `lax.scan` runs the layers, and so whether `inputs` are
      stacked. With a cache the layers are unrolled in any case: a TPU fetches
      the weights of the next layer while it computes one, but not across the
      iterations of a loop.
    remat_policy: Key of `REMAT_POLICIES`, what the backward pass stores.
    rng: Key, consumed, from which each layer gets its own. None passes None.

  Returns:
    The output of the last layer, the caches, and the outputs of the layers,
    stacked with a scan and in a tuple without one.

  Raises:
    ValueError: If the policy is unknown.
  """
  if remat_policy not in REMAT_POLICIES:
    raise ValueError(
      f'remat_policy {remat_policy!r} is not among {list(REMAT_POLICIES)}.'
    )
  graphdef, params = nnx.split(stack)

  def call(params, x, layer_input, cache, layer):
    key = None if rng is None else jax.random.fold_in(rng, layer)
    x = partitioning.split_batch(x)
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
  """Separates a tree with leaves [L, ...] into L trees.

  The transpose of `lax.split` is one concatenation, whereas that of L slices
  is a sum of L padded arrays.
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
  """Separates an array [L, ...] into its L layers."""
  parts = lax.split(stacked, (1,) * layers, axis=0)
  return PerLayer(tuple(p.reshape(stacked.shape[1:]) for p in parts))
