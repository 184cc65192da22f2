"""A network as pure functions of its parameters."""

from collections.abc import Callable
import functools
from typing import Any

from flax import nnx
import jax

from ipo_md.core import types
from ipo_md.models import kv_cache
from ipo_md.models import layer_stack
from ipo_md.models import sampling_weights


class Model:
  """The seam between networks and everything above them.

  A prompt is encoded once; any number of completions is decoded against the
  context that results:

    context = model.encode(params, prompts)
    hidden, _, aux = model.decode(params, inputs, context)       # training
    hidden, cache, _ = model.decode(                             # sampling
        params, token, context, cache=cache, index=n)

  `decode` takes *inputs*: column 0 is `context.start`, column n the token that
  was sampled at n - 1 (`sampling.decoder_inputs`). Without `rng` there is no
  dropout.

  Args:
    network: makes the module from its random keys. The module has the methods
      `encode`, `decode`, `init_cache`, `logits` and `reward` below, without
      `params`.
  """

  def __init__(self, network: Callable[[nnx.Rngs], nnx.Module]):
    self._network = network
    self._graphdef, self._abstract = nnx.split(
      nnx.eval_shape(lambda: network(nnx.Rngs(0))), nnx.Param
    )

  @property
  def abstract_params(self) -> types.Params:
    """The parameters as `jax.ShapeDtypeStruct`s."""
    return nnx.to_pure_dict(self._abstract)

  @property
  def logical_axes(self) -> Any:
    """For each parameter the tuple of its axes' names, for `sharding`."""
    axes = {
      path: variable.axes
      for path, variable in nnx.to_flat_state(self._abstract)
    }
    return nnx.traversals.unflatten_mapping(axes)

  @property
  def config(self) -> Any:
    """The network's configuration, a frozen dataclass."""
    return self.bind(self.abstract_params).config

  @property
  def base(self) -> 'Model':
    """The model of the reference, whose parameters are whole."""
    return self

  def policy(
    self, params: types.Params, frozen: types.FrozenParams
  ) -> types.Params:
    """What the methods below take, of what a step trains.

    Here it is that; `models.Lora` trains adapters and finds the rest in
    `frozen.reference`.
    """
    del frozen
    return params

  def decode_form(
    self, params: types.Params, *, int8: bool = False
  ) -> types.Params:
    """`params` for decoding a token at a time; made once, before the loop.

    The same numbers, as `encode`, `decode` and `logits` take them too: cast to
    the activations' type, gathered off the mesh axis `fsdp`, so that no token
    waits for a weight, each layer apart, kernels in the order that suits the
    machine (`kernels`).

    Args:
      params: of a policy or a reference.
      int8: whether kernels are rounded (`models.of_array`): not quite the
        same numbers then, of half the bytes.
    """
    return jax.tree.map(
      functools.partial(self._decode_leaf, int8=int8),
      self.base.logical_axes,
      params,
      is_leaf=lambda x: isinstance(x, tuple),
    )

  def _decode_leaf(self, axes: tuple[str, ...], leaf: Any, int8: bool) -> Any:
    return sampling_weights.of_array(leaf, axes, self.config, int8=int8)

  def context_form(self, context: types.Context) -> types.Context:
    """The context likewise: each layer apart, keys `models.in_strips`.

    Only `decode` takes it.
    """
    keys_values = context.keys_values
    if isinstance(keys_values, jax.Array):  # of no layers: `tabular`
      return context
    if self.config.scan:
      keys, values = (layer_stack.take_apart(x, len(x)) for x in keys_values)
      keys = keys.replace(parts=tuple(map(kv_cache.in_strips, keys.parts)))
      keys_values = keys, values
    else:
      keys_values = tuple((kv_cache.in_strips(k), v) for k, v in keys_values)
    return context.replace(keys_values=keys_values)

  def init(self, rng: jax.Array) -> types.Params:
    """Fresh parameters. rng: key, consumed."""
    return nnx.to_pure_dict(nnx.state(self._network(nnx.Rngs(rng)), nnx.Param))

  def bind(self, params: types.Params) -> nnx.Module:
    return nnx.merge(self._graphdef, params)

  def encode(
    self,
    params: types.Params,
    prompts: types.Tokens,
    *,
    rng: jax.Array | None = None,
  ) -> types.Context:
    """Reads the prompts [B, P] once."""
    return self.bind(params).encode(prompts, rng=rng)

  def init_cache(self, context: types.Context, k: int, length: int) -> Any:
    """An empty cache of `length` tokens for K completions a prompt."""
    return self.bind(self.abstract_params).init_cache(context, k, length)

  def decode(
    self,
    params: types.Params,
    ids: jax.Array,
    context: types.Context,
    cache: Any = None,
    index: jax.Array | int = 0,
    *,
    mask: jax.Array | None = None,
    rng: jax.Array | None = None,
  ) -> tuple[jax.Array, Any, jax.Array]:
    """Hidden states of completions.

    Args:
      params: the model's parameters.
      ids: [B, K, T] inputs at positions index .. index + T - 1.
      context: of the B prompts.
      cache: keys and values of the inputs before index; None: there are none.
      index: position of the first column of ids, the same for all.
      mask: [B, K, T] bool, the inputs that the auxiliary loss counts; None:
        all of them.
      rng: key for dropout, consumed; None: no dropout.

    Returns:
      [B, K, T, E] hidden states, the cache with ids in it (None without one),
      and the auxiliary loss (a router's; 0 for a dense network).
    """
    return self.bind(params).decode(
      ids, context, cache, index, mask=mask, rng=rng
    )

  def logits(self, params: types.Params, hidden: jax.Array) -> jax.Array:
    """[..., E] hidden states -> [..., V] float32 logits."""
    return self.bind(params).logits(hidden)

  def reward(
    self, params: types.Params, hidden: jax.Array, mask: jax.Array
  ) -> jax.Array:
    """[B, K, T, E] hidden states, [B, K, T] mask -> [B, K, D] outputs."""
    return self.bind(params).reward(hidden, mask)
