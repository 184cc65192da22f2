"""Presents a network as pure functions of its parameters."""

from collections.abc import Callable
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from ipo_md.core import types
from ipo_md.models import kv_cache
from ipo_md.models import layer_stack
from ipo_md.models import network as network_lib
from ipo_md.models import sampling_weights


class Model:
  """The interface between networks and all other code.

  A prompt is encoded once. Any number of completions is decoded against the
  resulting context:

    context = model.encode(params, prompts)
    hidden, _, aux = model.decode(params, inputs, context)       # training
    hidden, cache, _ = model.decode(                             # sampling
        params, token, context, cache=cache, index=n)

  `decode` takes *inputs*: column 0 is `context.start`, and column n is the
  token that was sampled at n - 1 (`sampling.decoder_inputs`). Without `rng`
  there is no dropout.

  Args:
    network: Function that makes the module, an `nnx.Module`, from its random
      keys. The module has the methods `encode`, `decode`, `init_cache`,
      `logits` and `reward` of this class, without the argument `params`.
    log_ratio_dtype: Type in which a step compares policy and reference if the
      activations are narrower than float32 (`sampling.log_prob`).
  """

  def __init__(
    self,
    network: Callable[..., network_lib.Interface],
    *,
    log_ratio_dtype: str = 'float32',
  ):
    self._network = network
    self.log_ratio_dtype = log_ratio_dtype
    self._graphdef, self._abstract = nnx.split(
      nnx.eval_shape(lambda: network(nnx.Rngs(0))), nnx.Param
    )

  @property
  def abstract_params(self) -> types.Params:
    """The parameters as `jax.ShapeDtypeStruct`s."""
    return nnx.to_pure_dict(self._abstract)

  @property
  def logical_axes(self) -> Any:
    """The names of each parameter's axes, for `sharding`."""
    axes = {
      path: variable.axes
      for path, variable in nnx.to_flat_state(self._abstract)
    }
    return nnx.traversals.unflatten_mapping(axes)

  @property
  def config(self) -> Any:
    """The network's configuration, a frozen dataclass."""
    return self.bind(self.abstract_params).config

  def in_dtype(self, dtype: str) -> 'Model':
    """Returns the model with activations in another type.

    The parameters are the same. The network takes the keyword `dtype`.

    Args:
      dtype: Type of the activations, such as 'float32'.
    """
    if jnp.dtype(self.config.dtype) == jnp.dtype(dtype):
      return self
    return Model(
      functools.partial(self._network, dtype=dtype),
      log_ratio_dtype=self.log_ratio_dtype,
    )

  def without_reward_head(self) -> 'Model':
    """Returns the model without its additional head."""
    if not self.config.reward_head:
      return self
    return Model(
      functools.partial(self._network, reward_head=0),
      log_ratio_dtype=self.log_ratio_dtype,
    )

  @property
  def base(self) -> 'Model':
    """The model of the reference, whose parameters are complete."""
    return self

  def policy(
    self, params: types.Params, frozen: types.FrozenParams
  ) -> types.Params:
    """Returns the parameters of the policy that the other methods take.

    For this class they are the trained parameters. `models.Lora` trains
    adapters and adds them to `frozen.reference`.

    Args:
      params: Parameters that a step trains.
      frozen: Frozen parameters. Only LoRA reads them.
    """
    del frozen
    return params

  def decode_form(
    self, params: types.Params, *, int8: bool = False
  ) -> types.Params:
    """Converts parameters once, before the sampling loop.

    The result holds the same numbers, and `encode`, `decode` and `logits`
    accept it. Parameters are cast to the type of the activations, gathered off
    the mesh axis `fsdp`, so that no token waits for a weight, and separated by
    layer. Kernels are in the memory order that the machine reads fastest.

    Args:
      params: Parameters of a policy or of a reference.
      int8: Whether kernels are rounded to int8 (`sampling_weights`). This
        changes the numbers and halves the bytes of bfloat16.
    """
    return jax.tree.map(
      functools.partial(self._decode_leaf, int8=int8),
      self.base.logical_axes,
      params,
      is_leaf=lambda x: isinstance(x, tuple),
    )

  def _decode_leaf(self, axes: tuple[str, ...], leaf: Any, int8: bool) -> Any:
    return sampling_weights.for_sampling(leaf, axes, self.config, int8=int8)

  def context_form(self, context: types.Context) -> types.Context:
    """Converts a context once, before the sampling loop.

    Layers are separated, and keys are arranged by `kv_cache.for_sampling`.
    Only `decode` accepts the result.
    """
    keys_values = context.keys_values
    if isinstance(keys_values, jax.Array):  # a tabular model has no layers
      return context
    if self.config.scan:
      keys, values = (layer_stack.take_apart(x, len(x)) for x in keys_values)
      keys = keys.replace(parts=tuple(map(kv_cache.for_sampling, keys.parts)))
      keys_values = keys, values
    else:
      keys_values = tuple((kv_cache.for_sampling(k), v) for k, v in keys_values)
    return context.replace(keys_values=keys_values)

  def init(self, rng: jax.Array) -> types.Params:
    """Makes fresh parameters.

    Args:
      rng: Key, consumed.
    """
    return nnx.to_pure_dict(nnx.state(self._network(nnx.Rngs(rng)), nnx.Param))

  def bind(self, params: types.Params) -> network_lib.Interface:
    """Returns the module with these parameters."""
    return nnx.merge(self._graphdef, params)

  def encode(
    self,
    params: types.Params,
    prompts: types.Tokens,
    *,
    rng: jax.Array | None = None,
  ) -> types.Context:
    """Encodes prompts.

    Args:
      params: Parameters of the model.
      prompts: [B, P] tokens of the prompts.
      rng: Dropout key, consumed. None disables dropout.

    Returns:
      The context that `decode` takes.
    """
    return self.bind(params).encode(prompts, rng=rng)

  def init_cache(self, context: types.Context, k: int, length: int) -> Any:
    """Makes an empty cache for K completions per prompt of `length` tokens."""
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
    """Computes hidden states of completions.

    Args:
      params: Parameters of the model.
      ids: [B, K, T] inputs at positions index to index + T - 1.
      context: Context of the B prompts.
      cache: Keys and values of the inputs before `index`. None means that
        there are none.
      index: Position of the first column of `ids` in all completions.
      mask: [B, K, T] bool, the inputs that the auxiliary loss counts. None
        counts all.
      rng: Dropout key, consumed. None disables dropout.

    Returns:
      [B, K, T, E] hidden states, the cache updated with `ids` (None without a
      cache), and the auxiliary loss of the routers, 0 for a dense network.
    """
    return self.bind(params).decode(
      ids, context, cache, index, mask=mask, rng=rng
    )

  def logits(self, params: types.Params, hidden: jax.Array) -> jax.Array:
    """Maps hidden states [..., E] to logits [..., V] in float32."""
    return self.bind(params).logits(hidden)

  def reward(
    self, params: types.Params, hidden: jax.Array, mask: jax.Array
  ) -> jax.Array:
    """Applies the reward head to the last real token of each completion.

    Args:
      params: Parameters of the model.
      hidden: [B, K, T, E] hidden states.
      mask: [B, K, T] bool, True on real tokens.

    Returns:
      [B, K, D] float32 outputs.
    """
    return self.bind(params).reward(hidden, mask)
