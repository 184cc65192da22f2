"""Llama and its relatives, equal to the published networks.

Mistral, Mixtral, SmolLM, Qwen, Gemma, OLMo and Phi differ from Llama in fields
of `DecoderOnlyConfig` alone. Papers: https://arxiv.org/abs/2407.21783,
https://arxiv.org/abs/2310.06825, https://arxiv.org/abs/2401.04088,
https://arxiv.org/abs/2505.09388, https://arxiv.org/abs/2503.19786,
https://arxiv.org/abs/2501.00656, https://arxiv.org/abs/2404.14219.

The prompt is the context: completions attend to the keys and values of all its
tokens but the last, which is the first input of `decode`.
"""

import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from ipo_md.core import types
from ipo_md.models import attention
from ipo_md.models import decoder_config
from ipo_md.models import decoder_layers
from ipo_md.models import kv_cache
from ipo_md.models import layer_kinds
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

  def embed(self, ids: jax.Array, rng: jax.Array | None) -> jax.Array:
    """Looks up the embeddings [..., E] of tokens, which may be scaled."""
    cfg = self.config
    x = self.token_embedder(ids, cfg.dtype)
    if cfg.scale_embeddings:
      x *= jnp.asarray(math.sqrt(cfg.emb_dim), x.dtype)
    return layers.dropout(x, cfg.dropout_rate, rng)

  def logits(self, hidden: jax.Array) -> jax.Array:
    """Maps hidden states [..., E] to logits [..., V], which may be limited."""
    logits, cap = super().logits(hidden), self.config.logits_soft_cap
    return logits if cap is None else layers.soft_cap(logits, cap)

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
    self.add_output(rngs, cfg.norm_epsilon, cfg.norm_offset)

  def read(self, x: jax.Array, rng: jax.Array | None) -> Any:
    """Computes the keys and values of every layer from embeddings [B, P, E]."""
    cfg = self.config
    length = x.shape[1]
    positions = jnp.arange(length)
    arrays = [
      (
        _rotation(cfg, kind, positions[None], length),
        _causal_bias(positions, length, _window(cfg, kind)),
      )
      for kind in layer_kinds.distinct(cfg)
    ]

    def call(layer, x, number, cache, key):
      rotation, bias = layer_kinds.choose(arrays, number)
      x, keys_values = layer.read(x, rotation, bias, key)
      return x, None, keys_values

    _, _, keys_values = self._apply(
      call, x, layer_kinds.numbers(cfg), None, rng
    )
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
    rotary.check_length(cfg, columns + total)
    arrays = [
      (
        _rotation(cfg, kind, positions[:, None], columns + total),
        _causal_bias(own, total, _window(cfg, kind)),
        _context_bias(cfg, kind, positions, context.mask),
      )
      for kind in layer_kinds.distinct(cfg)
    ]
    keys = layers.split(rng, 2)

    def call(layer, carry, layer_input, cache, key):
      x, loss = carry
      keys_values, number = layer_input
      rotation, bias, context_bias = layer_kinds.choose(arrays, number)
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
    inputs = context.keys_values, layer_kinds.numbers(cfg)
    if not cfg.scan:
      keys_values, numbers = inputs
      numbers = numbers or [None] * cfg.num_layers
      inputs = [*zip(keys_values, numbers, strict=True)]
    (x, loss), cache, _ = self._apply(call, carry, inputs, cache, keys[0])
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


def _window(
  cfg: decoder_config.DecoderOnlyConfig, kind: layer_kinds.Kind
) -> int | None:
  return cfg.sliding_window if kind.local else None


def _rotation(
  cfg: decoder_config.DecoderOnlyConfig,
  kind: layer_kinds.Kind,
  positions: jax.Array,
  length: int,
) -> tuple[jax.Array, jax.Array]:
  """Returns the cosines and sines at positions [..., T] below `length`."""
  own_theta = kind.local and cfg.local_rope_theta is not None
  cos, sin = rotary.rotation(
    positions,
    length,
    rotary.frequencies(cfg, local=kind.local),
    1.0 if own_theta else cfg.rope_attention_factor,
  )
  if not kind.rotates:
    return jnp.ones_like(cos), jnp.zeros_like(sin)
  return cos, sin


def _context_bias(
  cfg: decoder_config.DecoderOnlyConfig,
  kind: layer_kinds.Kind,
  positions: jax.Array,
  mask: jax.Array,
) -> jax.Array:
  """Returns the bias [B, T or 1, P] of queries at positions [B, T].

  Kinds of layers with a window and without one have the same shape.
  """
  visible = mask[:, None]
  if cfg.sliding_window is not None:
    distance = positions[..., None] - jnp.arange(mask.shape[1])
    window = cfg.sliding_window if kind.local else jnp.iinfo(jnp.int32).max
    visible &= distance < window
  return jnp.where(visible, 0.0, attention.MASKED)


def _causal_bias(
  positions: jax.Array, total: int, window: int | None
) -> jax.Array:
  """Returns the bias [T, total] of queries at positions [T]."""
  distance = positions[:, None] - jnp.arange(total)
  visible = distance >= 0
  if window is not None:
    visible &= distance < window
  return jnp.where(visible, 0.0, attention.MASKED)
