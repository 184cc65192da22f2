"""The layers of T5.

Every parameter has a leading axis of layers.
"""

from collections.abc import Sequence
import functools
import math
from typing import Any

from flax import nnx
import jax

from ipo_md.models import attention
from ipo_md.models import kv_cache
from ipo_md.models import layers
from ipo_md.models import t5_config

NORM_EPSILON = 1e-6


class EncoderLayer(nnx.Module):
  """Self-attention and feed-forward of the encoder."""

  def __init__(self, rngs: nnx.Rngs, cfg: t5_config.T5Config):
    n = cfg.num_encoder_layers
    self.config = cfg
    self.pre_attention_layer_norm = _norm(cfg, n)
    self.attention = Attention(rngs, cfg, n)
    self.pre_mlp_layer_norm = _norm(cfg, n)
    self.mlp = _mlp(rngs, cfg, n)

  def __call__(
    self, x: jax.Array, biases: Sequence[jax.Array], rng: jax.Array | None
  ) -> jax.Array:
    """Applies one layer to activations [B, P, E]."""
    dtype, rate = self.config.dtype, self.config.dropout_rate
    keys = layers.split(rng, 4)
    y = self.pre_attention_layer_norm(x, dtype)
    keys_values = self.attention.keys_values(y, batch=y.shape[0])
    y = self.attention(y, keys_values, biases, keys[0])
    x = x + layers.dropout(y, rate, keys[1])
    y = self.pre_mlp_layer_norm(x, dtype)
    y = self.mlp(y, dtype, dropout=lambda h: layers.dropout(h, rate, keys[2]))
    return x + layers.dropout(y, rate, keys[3])


class DecoderLayer(nnx.Module):
  """Self-attention, cross-attention and feed-forward of the decoder."""

  def __init__(self, rngs: nnx.Rngs, cfg: t5_config.T5Config):
    n = cfg.num_decoder_layers
    self.config = cfg
    self.pre_self_attention_layer_norm = _norm(cfg, n)
    self.self_attention = Attention(rngs, cfg, n)
    self.pre_cross_attention_layer_norm = _norm(cfg, n)
    self.encoder_decoder_attention = Attention(rngs, cfg, n)
    self.pre_mlp_layer_norm = _norm(cfg, n)
    self.mlp = _mlp(rngs, cfg, n)

  def __call__(
    self,
    x: jax.Array,
    context: tuple[kv_cache.Keys, jax.Array],
    bias: jax.Array,
    context_bias: jax.Array,
    cache: Any,
    index: jax.Array | int,
    rng: jax.Array | None,
  ) -> tuple[jax.Array, Any]:
    """Applies one layer to activations [B, K, T, E].

    Self-attention sees B K sequences of T queries. Cross-attention sees B
    sequences of K T queries, so the context is not repeated.

    Args:
      x: [B, K, T, E] activations.
      context: Cross-attention keys [B, H, D, P] and values [B, H, P, D].
      bias: Bias of the self-attention.
      context_bias: Bias of the cross-attention.
      cache: Keys and values of earlier tokens, or None.
      index: Position of the first token.
      rng: Dropout key, consumed. None disables dropout.

    Returns:
      [B, K, T, E] activations and the updated cache.
    """
    dtype, rate = self.config.dtype, self.config.dropout_rate
    b, k, t, e = x.shape
    keys = layers.split(rng, 6)
    y = self.pre_self_attention_layer_norm(x, dtype).reshape(b * k, t, e)
    own = self.self_attention.keys_values(y, batch=b * k)
    if cache is not None:
      cache = own = kv_cache.write(cache, own, index)
    y = self.self_attention(y, own, (bias,), keys[0])
    x = x + layers.dropout(y.reshape(x.shape), rate, keys[1])

    y = self.pre_cross_attention_layer_norm(x, dtype).reshape(b, k * t, e)
    y = self.encoder_decoder_attention(y, context, (context_bias,), keys[2])
    x = x + layers.dropout(y.reshape(x.shape), rate, keys[3])

    y = self.pre_mlp_layer_norm(x, dtype)
    y = self.mlp(y, dtype, dropout=lambda h: layers.dropout(h, rate, keys[4]))
    return x + layers.dropout(y, rate, keys[5]), cache


class Attention(nnx.Module):
  """The four kernels of one attention in each of `n` layers.

  T5 has no factor of 1 / sqrt(D) in its attention: the initialiser of the
  query kernel contains it.
  """

  def __init__(self, rngs: nnx.Rngs, cfg: t5_config.T5Config, n: int):
    joined = cfg.num_heads * cfg.head_dim
    dense = functools.partial(
      layers.Dense,
      rngs,
      (n, cfg.emb_dim, joined),
      ('layers', 'embed', 'joined_kv'),
    )
    normal = layers.kernel_init('normal')
    self.config = cfg
    self.query = dense(layers.kernel_init('normal', math.sqrt(cfg.head_dim)))
    self.key = dense(normal)
    self.value = dense(normal)
    self.out = layers.Dense(
      rngs, (n, joined, cfg.emb_dim), ('layers', 'joined_kv', 'embed'), normal
    )

  def keys_values(
    self, x: jax.Array, batch: int
  ) -> tuple[jax.Array, jax.Array]:
    """Projects activations [..., E] to keys [N, H, D, S], values [N, H, S, D].

    Args:
      x: [..., E] activations.
      batch: Number of sequences, N.
    """
    heads, dtype = self.config.num_heads, self.config.dtype
    return kv_cache.by_head(
      self.key(x, dtype), self.value(x, dtype), batch, heads
    )

  def __call__(
    self,
    x: jax.Array,
    keys_values: tuple[kv_cache.Keys, jax.Array],
    biases: Sequence[jax.Array],
    rng: jax.Array | None,
  ) -> jax.Array:
    """Attends from activations [N, Q, E] to the given keys and values."""
    cfg = self.config
    query = self.query(x, cfg.dtype)
    query = query.reshape(*x.shape[:2], cfg.num_heads, cfg.head_dim)
    y = attention.attention(
      query, *keys_values, *biases, dropout_rate=cfg.dropout_rate, rng=rng
    )
    return self.out(y.reshape(*x.shape[:2], -1), cfg.dtype)


def _norm(cfg: t5_config.T5Config, n: int) -> layers.Norm:
  return layers.Norm((n, cfg.emb_dim), ('layers', 'embed'), NORM_EPSILON)


def _mlp(rngs: nnx.Rngs, cfg: t5_config.T5Config, n: int) -> layers.Mlp:
  return layers.Mlp(
    rngs,
    (n,),
    ('layers',),
    emb_dim=cfg.emb_dim,
    mlp_dim=cfg.mlp_dim,
    activations=cfg.mlp_activations,
  )
