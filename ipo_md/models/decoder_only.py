"""Llama, Mistral and Mixtral, equal to the published networks.

Papers: https://arxiv.org/abs/2407.21783, https://arxiv.org/abs/2310.06825,
https://arxiv.org/abs/2401.04088. The prompt is the context: completions attend
to the keys and values of all its tokens but the last, which is the first input
of `decode`.
"""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from ipo_md.core import types
from ipo_md.models import attention
from ipo_md.models import decoder_config
from ipo_md.models import decoder_layers
from ipo_md.models import kv_cache
from ipo_md.models import layer_stack
from ipo_md.models import layers
from ipo_md.models import network
from ipo_md.models import rotary


class DecoderOnly(network.Network):
  """The decoder-only network behind `models.Model`.

  Args:
    rngs: Random keys of the parameters.
    **config: The fields of `DecoderOnlyConfig`. In gin they are
      DecoderOnly.emb_dim and so on.
  """

  config: decoder_config.DecoderOnlyConfig
  decoder: '_Decoder'

  def __init__(self, rngs: nnx.Rngs, **config: Any):
    self.config = cfg = decoder_config.DecoderOnlyConfig(**config)
    self.token_embedder = layers.Embed(rngs, cfg.vocab_size, cfg.emb_dim, 0.02)
    self.decoder = _Decoder(rngs, cfg)

  def encode(
    self, prompts: types.Tokens, rng: jax.Array | None = None
  ) -> types.Context:
    """Computes the keys and values of every layer over the prompts.

    The context keeps all P columns and masks the last real token, because
    `decode` reads that token again. A prompt needs at least one token.
    """
    length = jnp.sum(prompts.mask, axis=1, dtype=jnp.int32) - 1
    column = jnp.arange(prompts.ids.shape[1])
    last = jnp.maximum(length, 0)[:, None]
    keys = layers.split(rng, 2)
    x = self.embed(prompts.ids, keys[0])
    return types.Context(
      start=jnp.take_along_axis(prompts.ids, last, axis=1)[:, 0],
      mask=column < length[:, None],
      length=length,
      keys_values=self.decoder.read(x, keys[1]),
    )

  def init_cache(self, context: types.Context, k: int, length: int) -> Any:
    """Makes an empty cache; see `models.Model.init_cache`."""
    cfg = self.config
    batch = context.start.shape[0]
    shape = (batch * k, cfg.num_kv_heads, cfg.head_dim, length)
    return kv_cache.empty(cfg.num_layers, shape, cfg.dtype)


class _Decoder(network.Decoder):
  """The layers, the final norm and the heads."""

  config: decoder_config.DecoderOnlyConfig

  def __init__(self, rngs: nnx.Rngs, cfg: decoder_config.DecoderOnlyConfig):
    self.config = cfg
    self.layers = decoder_layers.DecoderLayer(rngs, cfg)
    self.add_output(rngs, cfg.norm_epsilon)

  def read(self, x: jax.Array, rng: jax.Array | None) -> Any:
    """Computes the keys and values of every layer from embeddings [B, P, E]."""
    cfg = self.config
    positions = jnp.arange(x.shape[1])
    rotation = rotary.rotation(
      positions[None], x.shape[1], rotary.frequencies(cfg)
    )
    bias = _causal_bias(positions, x.shape[1], cfg.sliding_window)

    def call(layer, x, _, cache, key):
      x, keys_values = layer.read(x, rotation, bias, key)
      return x, None, keys_values

    _, _, keys_values = self._apply(call, x, None, None, rng)
    return keys_values

  def __call__(
    self,
    x: jax.Array,
    context: types.Context,
    cache: Any,
    index: jax.Array | int,
    mask: jax.Array | None,
    rng: jax.Array | None,
  ) -> tuple[jax.Array, Any, jax.Array]:
    """Decodes embeddings [B, K, T, E]: hidden states, cache, router's loss."""
    cfg = self.config
    new = x.shape[2]
    total = new if cache is None else cache[0][1].shape[-2]
    own = index + jnp.arange(new)
    positions = context.length[:, None] + own  # [B, T]
    columns = context.mask.shape[1]
    rotation = rotary.rotation(
      positions[:, None], columns + total, rotary.frequencies(cfg)
    )
    bias = _causal_bias(own, total, cfg.sliding_window)
    visible = context.mask[:, None]  # [B, T or 1, P]
    if cfg.sliding_window is not None:
      distance = positions[..., None] - jnp.arange(columns)
      visible &= distance < cfg.sliding_window
    context_bias = jnp.where(visible, 0.0, attention.MASKED)
    keys = layers.split(rng, 2)

    def call(layer, carry, keys_values, cache, key):
      x, loss = carry
      x, cache, layer_loss = layer(
        x,
        keys_values,
        rotation,
        bias,
        context_bias,
        cache,
        index,
        mask,
        key,
      )
      return (x, loss + layer_loss), cache, None

    carry = (x, jnp.zeros((), jnp.float32))
    (x, loss), cache, _ = self._apply(
      call, carry, context.keys_values, cache, keys[0]
    )
    loss = loss * cfg.router_loss_weight / cfg.num_layers
    return self.output(x, keys[1]), cache, loss

  def _apply(self, call, x, inputs, cache, rng):
    cfg = self.config
    return layer_stack.apply_stack(
      call,
      self.layers,
      x,
      inputs,
      cache,
      layers=cfg.num_layers,
      scan=cfg.scan,
      remat_policy=cfg.remat_policy,
      rng=rng,
    )


def _causal_bias(
  positions: jax.Array, total: int, window: int | None
) -> jax.Array:
  """Returns the bias [T, total] of queries at positions [T]."""
  distance = positions[:, None] - jnp.arange(total)
  visible = distance >= 0
  if window is not None:
    visible &= distance < window
  return jnp.where(visible, 0.0, attention.MASKED)
