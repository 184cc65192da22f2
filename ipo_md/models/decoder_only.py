"""Llama, Mistral and Mixtral, equal to their published weights' networks.

https://arxiv.org/abs/2407.21783, https://arxiv.org/abs/2310.06825,
https://arxiv.org/abs/2401.04088. The prompt is the context: its last real
token is the first input of `decode`, the keys and values of those before it
are what completions attend to besides themselves.
"""

import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from ipo_md.core import types
from ipo_md.models import attention
from ipo_md.models import decoder_config
from ipo_md.models import experts as experts_lib
from ipo_md.models import kv_cache
from ipo_md.models import layer_stack
from ipo_md.models import layers


class DecoderOnly(nnx.Module):
  """The network behind `models.Model`.

  Args:
    rngs: random keys of the parameters.
    **config: the fields of `DecoderOnlyConfig`; in gin, DecoderOnly.emb_dim
      and so on.
  """

  def __init__(self, rngs: nnx.Rngs, **config: Any):
    self.config = cfg = decoder_config.DecoderOnlyConfig(**config)
    self.token_embedder = layers.Embed(rngs, cfg.vocab_size, cfg.emb_dim, 0.02)
    self.decoder = _Decoder(rngs, cfg)

  def encode(
    self, prompts: types.Tokens, rng: jax.Array | None = None
  ) -> types.Context:
    """Prompts [B, P] -> the layers' keys and values of all but the last token.

    All P columns are kept and the last real token's is masked, since `decode`
    reads that token again. A prompt has at least one token.
    """
    cfg = self.config
    length = jnp.sum(prompts.mask, axis=1, dtype=jnp.int32) - 1
    column = jnp.arange(prompts.ids.shape[1])
    last = jnp.maximum(length, 0)[:, None]
    keys = layers.split(rng, 2)
    x = self.token_embedder(prompts.ids, cfg.dtype)
    x = layers.dropout(x, cfg.dropout_rate, keys[0])
    return types.Context(
      start=jnp.take_along_axis(prompts.ids, last, axis=1)[:, 0],
      mask=column < length[:, None],
      length=length,
      keys_values=self.decoder.read(x, keys[1]),
    )

  def init_cache(self, context: types.Context, k: int, length: int) -> Any:
    cfg = self.config
    batch = context.start.shape[0]
    shape = (batch * k, cfg.num_kv_heads, cfg.head_dim, length)
    return kv_cache.empty(cfg.num_layers, shape, cfg.dtype)

  def decode(
    self,
    ids: jax.Array,
    context: types.Context,
    cache: Any = None,
    index: jax.Array | int = 0,
    mask: jax.Array | None = None,
    rng: jax.Array | None = None,
  ) -> tuple[jax.Array, Any, jax.Array]:
    """[B, K, T] inputs -> [B, K, T, E], cache, router's loss.

    See `models.Model.decode`. The loss is over inputs of completions alone.
    """
    cfg = self.config
    keys = layers.split(rng, 2)
    x = self.token_embedder(ids, cfg.dtype)
    x = layers.dropout(x, cfg.dropout_rate, keys[0])
    return self.decoder(x, context, cache, index, mask, keys[1])

  def logits(self, hidden: jax.Array) -> jax.Array:
    """[..., E] -> [..., V] float32."""
    if self.config.logits_via_embedding:
      return layers.project(hidden, self.token_embedder.embedding[...], 1)
    return layers.project(hidden, self.decoder.logits_dense.kernel[...], 0)

  def reward(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, K, T, E], [B, K, T] -> [B, K, D]."""
    if not self.config.reward_head:
      raise ValueError(
        'This decoder has no reward head: set DecoderOnly.reward_head = 1 '
        'in the gin file of the judge.'
      )
    return layers.reward(self.decoder.reward_head.kernel[...], hidden, mask)


class _Decoder(nnx.Module):
  """The layers, the final norm and the heads."""

  def __init__(self, rngs: nnx.Rngs, cfg: decoder_config.DecoderOnlyConfig):
    self.config = cfg
    self.layers = _Layer(rngs, cfg)
    self.decoder_norm = layers.Norm(
      (cfg.emb_dim,), ('embed',), cfg.norm_epsilon
    )
    if not cfg.logits_via_embedding:
      self.logits_dense = layers.Dense(
        rngs, (cfg.emb_dim, cfg.vocab_size), ('embed', 'vocab')
      )
    if cfg.reward_head:
      self.reward_head = layers.Dense(
        rngs, (cfg.emb_dim, cfg.reward_head), ('embed', 'reward')
      )

  def read(self, x: jax.Array, rng: jax.Array | None) -> Any:
    """[B, P, E] embeddings -> keys and values by head of every layer."""
    cfg = self.config
    positions = jnp.arange(x.shape[1])
    rotation = attention.rotation(
      positions[None], x.shape[1], decoder_config.rotary_frequencies(cfg)
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
    """[B, K, T, E] embeddings -> [B, K, T, E] hidden states, cache, loss."""
    cfg = self.config
    new = x.shape[2]
    total = new if cache is None else cache[0][1].shape[-2]
    own = index + jnp.arange(new)
    positions = context.length[:, None] + own  # [B, T]
    columns = context.mask.shape[1]
    rotation = attention.rotation(
      positions[:, None],
      columns + total,
      decoder_config.rotary_frequencies(cfg),
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
    x = self.decoder_norm(x, cfg.dtype)
    x = layers.dropout(x, cfg.dropout_rate, keys[1])
    return x, cache, loss * cfg.router_loss_weight / cfg.num_layers

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


class _Layer(nnx.Module):
  def __init__(self, rngs: nnx.Rngs, cfg: decoder_config.DecoderOnlyConfig):
    n = cfg.num_layers
    norm = lambda: layers.Norm(
      (n, cfg.emb_dim), ('layers', 'embed'), cfg.norm_epsilon
    )
    self.config = cfg
    self.pre_self_attention_layer_norm = norm()
    self.self_attention = _Attention(rngs, cfg)
    self.pre_mlp_layer_norm = norm()
    if cfg.num_experts > 1:
      self.mlp = experts_lib.Experts(rngs, cfg)
    else:
      self.mlp = layers.Mlp(
        rngs,
        (n,),
        ('layers',),
        emb_dim=cfg.emb_dim,
        mlp_dim=cfg.mlp_dim,
        activations=cfg.mlp_activations,
      )

  def read(
    self, x: jax.Array, rotation: Any, bias: jax.Array, rng: jax.Array | None
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """[B, P, E] -> [B, P, E], keys [B, G, D, P] and values [B, G, P, D]."""
    keys = layers.split(rng, 2)
    y = self.pre_self_attention_layer_norm(x, self.config.dtype)
    query, own = self.self_attention.project(y, rotation)
    y = attention.attention(query, *own, bias[None, None])
    x = x + self._dropout(self.self_attention.combine(y), keys[0])
    return self._mlp(x, None, keys[1])[0], own

  def __call__(
    self,
    x: jax.Array,
    context: tuple[jax.Array, jax.Array],
    rotation: Any,
    bias: jax.Array,
    context_bias: jax.Array,
    cache: Any,
    index: jax.Array | int,
    mask: jax.Array | None,
    rng: jax.Array | None,
  ) -> tuple[jax.Array, Any, jax.Array]:
    """One layer over [B, K, T, E]: x, cache, router's loss."""
    b, k, t, e = x.shape
    keys = layers.split(rng, 2)
    y = self.pre_self_attention_layer_norm(x, self.config.dtype)
    query, own = self.self_attention.project(y, rotation)
    if cache is not None:
      cache = own = kv_cache.write(cache, own, index)
    y = attention.joint_attention(query, context, own, context_bias, bias)
    x = x + self._dropout(self.self_attention.combine(y), keys[0])
    x, loss = self._mlp(x, mask, keys[1])
    return x, cache, loss

  def _mlp(self, x, mask, rng):
    dtype, loss = self.config.dtype, 0.0
    y = self.pre_mlp_layer_norm(x, dtype)
    if self.config.num_experts > 1:
      y, loss = self.mlp(y, dtype, mask)
    else:
      y = self.mlp(y, dtype)
    return x + self._dropout(y, rng), loss

  def _dropout(self, x, rng):
    return layers.dropout(x, self.config.dropout_rate, rng)


class _Attention(nnx.Module):
  """The kernels of the layers' attention."""

  def __init__(self, rngs: nnx.Rngs, cfg: decoder_config.DecoderOnlyConfig):
    n, e = cfg.num_layers, cfg.emb_dim
    joined, joined_kv = (
      cfg.num_heads * cfg.head_dim,
      cfg.num_kv_heads * cfg.head_dim,
    )
    axes = ('layers', 'embed', 'joined_kv')
    self.config = cfg
    self.query = layers.Dense(rngs, (n, e, joined), axes)
    self.key = layers.Dense(rngs, (n, e, joined_kv), axes)
    self.value = layers.Dense(rngs, (n, e, joined_kv), axes)
    self.out = layers.Dense(
      rngs, (n, joined, e), ('layers', 'joined_kv', 'embed')
    )

  def project(
    self, x: jax.Array, rotation: tuple[jax.Array, jax.Array]
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """[..., T, E] -> queries [..., T, H, D], keys and values by head."""
    cfg = self.config
    batch = math.prod(x.shape[:-2])
    heads = lambda y, n: y.reshape(*x.shape[:-1], n, cfg.head_dim)
    query = attention.rotate(
      heads(self.query(x, cfg.dtype), cfg.num_heads), rotation
    )
    query = (query / math.sqrt(cfg.head_dim)).astype(cfg.dtype)
    key = attention.rotate(
      heads(self.key(x, cfg.dtype), cfg.num_kv_heads), rotation
    )
    key = key.astype(cfg.dtype).reshape(*x.shape[:-1], -1)
    value = self.value(x, cfg.dtype)
    return query, kv_cache.by_head(key, value, batch, cfg.num_kv_heads)

  def combine(self, x: jax.Array) -> jax.Array:
    """[..., H, D] -> [..., E]."""
    return self.out(x.reshape(*x.shape[:-2], -1), self.config.dtype)


def _causal_bias(
  positions: jax.Array, total: int, window: int | None
) -> jax.Array:
  """[T] positions of queries among `total` columns -> [T, total]."""
  distance = positions[:, None] - jnp.arange(total)
  visible = distance >= 0
  if window is not None:
    visible &= distance < window
  return jnp.where(visible, 0.0, attention.MASKED)
