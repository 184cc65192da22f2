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
    norm = lambda: layers.Norm(
      (n, cfg.emb_dim), ('layers', 'embed'), cfg.norm_epsilon
    )
    self.config = cfg
    self.pre_self_attention_layer_norm = norm()
    self.self_attention = Attention(rngs, cfg)
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
    y = self.pre_self_attention_layer_norm(x, self.config.dtype)
    query, own = self.self_attention.project(y, rotation)
    y = attention.attention(query, *own, bias[None, None])
    x = x + self._dropout(self.self_attention.combine(y), keys[0])
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
    if isinstance(self.mlp, experts_lib.Experts):
      y, loss = self.mlp(y, dtype, mask)
    else:
      y = self.mlp(y, dtype)
    return x + self._dropout(y, rng), loss

  def _dropout(self, x, rng):
    return layers.dropout(x, self.config.dropout_rate, rng)


class Attention(nnx.Module):
  """The four kernels of the self-attention in every layer."""

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
    """Computes rotated queries and keys, and values.

    Args:
      x: [..., T, E] activations; N is the product of the leading sizes.
      rotation: Cosines and sines from `rotary.rotation`.

    Returns:
      [..., T, H, D] queries, scaled by 1 / sqrt(D); keys [N, G, D, T] and
      values [N, G, T, D].
    """
    cfg = self.config
    batch = math.prod(x.shape[:-2])
    heads = lambda y, n: y.reshape(*x.shape[:-1], n, cfg.head_dim)
    query = rotary.rotate(
      heads(self.query(x, cfg.dtype), cfg.num_heads), rotation
    )
    query = (query / math.sqrt(cfg.head_dim)).astype(cfg.dtype)
    key = rotary.rotate(
      heads(self.key(x, cfg.dtype), cfg.num_kv_heads), rotation
    )
    key = key.astype(cfg.dtype).reshape(*x.shape[:-1], -1)
    value = self.value(x, cfg.dtype)
    return query, kv_cache.by_head(key, value, batch, cfg.num_kv_heads)

  def combine(self, x: jax.Array) -> jax.Array:
    """Projects the heads' outputs [..., H, D] to activations [..., E]."""
    return self.out(x.reshape(*x.shape[:-2], -1), self.config.dtype)
