"""The layers of decoder-only networks.

Every parameter has a leading axis of layers.
"""

import math
from typing import Any

from flax import nnx
import jax

from ipo_md.models import attention
from ipo_md.models import decoder_config
from ipo_md.models import experts as experts_lib
from ipo_md.models import kv_cache
from ipo_md.models import layers
from ipo_md.models import rotary


class DecoderLayer(nnx.Module):
  """Self-attention and a feed-forward layer or a mixture of experts."""

  def __init__(self, rngs: nnx.Rngs, cfg: decoder_config.DecoderOnlyConfig):
    n = cfg.num_layers
    norm = lambda: _norm(cfg, cfg.emb_dim, 'embed')
    before = cfg.norms in ('before', 'around')
    after = cfg.norms in ('after', 'around')
    self.config = cfg
    self.pre_self_attention_layer_norm = norm() if before else None
    self.post_self_attention_layer_norm = norm() if after else None
    self.self_attention = Attention(rngs, cfg)
    self.pre_mlp_layer_norm = norm() if before else None
    self.post_mlp_layer_norm = norm() if after else None
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
    """Applies one layer to prompts.

    Args:
      x: [B, P, E] activations.
      rotation: Cosines and sines of the positions, from `rotary.rotation`.
      bias: [P, P] causal bias.
      rng: Dropout key, consumed. None disables dropout.

    Returns:
      [B, P, E] activations, and keys [B, G, D, P] and values [B, G, P, D].
    """
    keys = layers.split(rng, 2)
    y = self._normed(self.pre_self_attention_layer_norm, x)
    query, own = self.self_attention.project(y, rotation)
    cap = self.config.attention_soft_cap
    y = attention.attention(query, *own, bias[None, None], soft_cap=cap)
    x = x + self._dropout(self._combined(y), keys[0])
    return self._mlp(x, None, keys[1])[0], own

  def __call__(
    self,
    x: jax.Array,
    context: tuple[kv_cache.Keys, jax.Array],
    rotation: Any,
    bias: jax.Array,
    context_bias: jax.Array,
    cache: Any,
    index: jax.Array | int,
    mask: jax.Array | None,
    rng: jax.Array | None,
  ) -> tuple[jax.Array, Any, jax.Array | float]:
    """Applies one layer to completions.

    Args:
      x: [B, K, T, E] activations.
      context: Keys [B, G, D, P] and values [B, G, P, D] of the prompts.
      rotation: Cosines and sines of the positions, from `rotary.rotation`.
      bias: [T, S] bias between the completion's own tokens.
      context_bias: [B, T or 1, P] bias of the context.
      cache: Keys and values of earlier tokens, or None.
      index: Position of the first token in the completion.
      mask: [B, K, T] tokens that the router's loss counts. None counts all.
      rng: Dropout key, consumed. None disables dropout.

    Returns:
      [B, K, T, E] activations, the updated cache and the router's loss.
    """
    keys = layers.split(rng, 2)
    y = self._normed(self.pre_self_attention_layer_norm, x)
    query, own = self.self_attention.project(y, rotation)
    if cache is not None:
      cache = own = kv_cache.write(cache, own, index)
    y = attention.joint_attention(
      query,
      context,
      own,
      context_bias,
      bias,
      soft_cap=self.config.attention_soft_cap,
    )
    x = x + self._dropout(self._combined(y), keys[0])
    x, loss = self._mlp(x, mask, keys[1])
    return x, cache, loss

  def _normed(self, norm, x):
    return x if norm is None else norm(x, self.config.dtype)

  def _combined(self, x):
    y = self.self_attention.combine(x)
    return self._normed(self.post_self_attention_layer_norm, y)

  def _mlp(self, x, mask, rng):
    dtype, loss = self.config.dtype, 0.0
    y = self._normed(self.pre_mlp_layer_norm, x)
    if isinstance(self.mlp, experts_lib.Experts):
      y, loss = self.mlp(y, dtype, mask)
    else:
      y = self.mlp(y, dtype)
    y = self._normed(self.post_mlp_layer_norm, y)
    return x + self._dropout(y, rng), loss

  def _dropout(self, x, rng):
    return layers.dropout(x, self.config.dropout_rate, rng)


class Attention(nnx.Module):
  """The four kernels of the self-attention in every layer.

  They may have biases, and queries and keys a norm, over each head or over all
  heads at once.
  """

  def __init__(self, rngs: nnx.Rngs, cfg: decoder_config.DecoderOnlyConfig):
    n, e = cfg.num_layers, cfg.emb_dim
    joined, joined_kv = (
      cfg.num_heads * cfg.head_dim,
      cfg.num_kv_heads * cfg.head_dim,
    )
    axes = ('layers', 'embed', 'joined_kv')
    self.config = cfg
    bias = cfg.attention_bias in ('qkv', 'qkvo')
    self.query = layers.Dense(rngs, (n, e, joined), axes, bias=bias)
    self.key = layers.Dense(rngs, (n, e, joined_kv), axes, bias=bias)
    self.value = layers.Dense(rngs, (n, e, joined_kv), axes, bias=bias)
    self.out = layers.Dense(
      rngs,
      (n, joined, e),
      ('layers', 'joined_kv', 'embed'),
      bias=cfg.attention_bias == 'qkvo',
    )
    d, kind = cfg.head_dim, cfg.query_key_norm
    sizes = {'head': (d, d, 'head_dim'), 'joined': (joined, joined_kv, axes[2])}
    q, k, axis = sizes.get(kind, (0, 0, ''))
    self.query_norm = _norm(cfg, q, axis) if kind != 'none' else None
    self.key_norm = _norm(cfg, k, axis) if kind != 'none' else None

  def project(
    self, x: jax.Array, rotation: tuple[jax.Array, jax.Array]
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Computes rotated queries and keys, and values.

    Args:
      x: [..., T, E] activations.
      rotation: Cosines and sines from `rotary.rotation`.

    Returns:
      [..., T, H, D] queries, scaled by 1 / sqrt(query_scalar); keys
      [N, G, D, T] and values [N, G, T, D] of G heads, where N is the product of
      the leading sizes of `x`.
    """
    cfg = self.config
    batch = math.prod(x.shape[:-2])

    def heads(y, n, norm):
      if cfg.query_key_norm == 'joined':
        y = norm(y, cfg.dtype)
      y = y.reshape(*x.shape[:-1], n, cfg.head_dim)
      if cfg.query_key_norm == 'head':
        y = norm(y, cfg.dtype)
      return rotary.rotate(y, rotation)

    query = heads(self.query(x, cfg.dtype), cfg.num_heads, self.query_norm)
    query /= math.sqrt(cfg.query_scalar or cfg.head_dim)
    query = query.astype(cfg.dtype)
    key = heads(self.key(x, cfg.dtype), cfg.num_kv_heads, self.key_norm)
    key = key.astype(cfg.dtype).reshape(*x.shape[:-1], -1)
    value = self.value(x, cfg.dtype)
    return query, kv_cache.by_head(key, value, batch, cfg.num_kv_heads)

  def combine(self, x: jax.Array) -> jax.Array:
    """Projects the heads' outputs [..., H, D] to activations [..., E]."""
    return self.out(x.reshape(*x.shape[:-2], -1), self.config.dtype)


def _norm(
  cfg: decoder_config.DecoderOnlyConfig, size: int, axis: str
) -> layers.Norm:
  """Makes the norm of every layer over an axis of a given size."""
  return layers.Norm(
    (cfg.num_layers, size), ('layers', axis), cfg.norm_epsilon, cfg.norm_offset
  )
