"""T5 1.0 and 1.1, and so Flan-T5, mT5 and byT5, equal to T5X's network.

https://arxiv.org/abs/1910.10683; the network followed is t5x/examples/t5.
There is no 1/sqrt(D) in the attention: it is folded into the initialiser of
the query kernel.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from ipo_md.core import types
from ipo_md.models import attention
from ipo_md.models import kv_cache
from ipo_md.models import layer_stack
from ipo_md.models import layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
  """A T5's shape, under T5X's names."""

  vocab_size: int
  emb_dim: int  # E
  num_heads: int  # H
  head_dim: int  # D
  num_encoder_layers: int
  num_decoder_layers: int  # L
  mlp_dim: int
  mlp_activations: tuple[str, ...]  # ('relu',) or ('gelu', 'linear')
  logits_via_embedding: bool  # whether the head is the embedding
  dropout_rate: float
  dtype: str = 'float32'  # of activations
  relpos_num_buckets: int = 32
  relpos_max_distance: int = 128
  scan: bool = True  # lax.scan over the layers, or a Python loop
  remat_policy: str = 'none'  # 'none', 'minimal', 'full'
  reward_head: int = 0  # outputs of a head besides the vocabulary's

  def __post_init__(self):
    object.__setattr__(self, 'mlp_activations', tuple(self.mlp_activations))


class T5(nnx.Module):
  """The network behind `models.Model`.

  Args:
    rngs: random keys of the parameters.
    **config: the fields of `T5Config`; in gin, T5.emb_dim and so on.
  """

  def __init__(self, rngs: nnx.Rngs, **config: Any):
    self.config = cfg = T5Config(**config)
    self.token_embedder = layers.Embed(rngs, cfg.vocab_size, cfg.emb_dim, 1.0)
    self.encoder = _Encoder(rngs, cfg)
    self.decoder = _Decoder(rngs, cfg)

  def encode(
    self, prompts: types.Tokens, rng: jax.Array | None = None
  ) -> types.Context:
    """Prompts [B, P] -> cross-attention keys and values of every layer."""
    cfg = self.config
    keys = layers.split(rng, 2)
    x = self.token_embedder(prompts.ids, cfg.dtype)
    x = layers.dropout(x, cfg.dropout_rate, keys[0])
    encoded = self.encoder(x, prompts.mask, keys[1])
    zero = jnp.zeros(prompts.ids.shape[:1], jnp.int32)
    return types.Context(
      start=zero,  # T5 starts with the padding token
      mask=prompts.mask,
      length=zero,
      keys_values=self.decoder.keys_values(encoded),
    )

  def init_cache(self, context: types.Context, k: int, length: int) -> Any:
    cfg = self.config
    shape = (context.start.shape[0] * k, cfg.num_heads, cfg.head_dim, length)
    return kv_cache.empty(cfg.num_decoder_layers, shape, cfg.dtype)

  def decode(
    self,
    ids: jax.Array,
    context: types.Context,
    cache: Any = None,
    index: jax.Array | int = 0,
    mask: jax.Array | None = None,
    rng: jax.Array | None = None,
  ) -> tuple[jax.Array, Any, jax.Array]:
    """[B, K, T] inputs -> [B, K, T, E], cache, 0; see `models.Model.decode`."""
    del mask
    cfg = self.config
    keys = layers.split(rng, 2)
    x = self.token_embedder(ids, cfg.dtype)
    x = layers.dropout(x, cfg.dropout_rate, keys[0])
    x, cache = self.decoder(x, context, cache, index, keys[1])
    return x, cache, jnp.zeros((), jnp.float32)

  def logits(self, hidden: jax.Array) -> jax.Array:
    """[..., E] -> [..., V] float32."""
    if self.config.logits_via_embedding:
      hidden = hidden.astype(jnp.float32) / math.sqrt(self.config.emb_dim)
      return layers.project(hidden, self.token_embedder.embedding[...], 1)
    return layers.project(hidden, self.decoder.logits_dense.kernel[...], 0)

  def reward(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, K, T, E], [B, K, T] -> [B, K, D]."""
    if not self.config.reward_head:
      raise ValueError(
        'This T5 has no reward head: set T5.reward_head = 1 in the gin '
        'file of the judge.'
      )
    return layers.reward(self.decoder.reward_head.kernel[...], hidden, mask)


class _Encoder(nnx.Module):
  """Encoder layers, one bias for all of them, and the final norm."""

  def __init__(self, rngs: nnx.Rngs, cfg: T5Config):
    self.config = cfg
    self.relpos_bias = attention.RelativePositions(
      rngs,
      cfg.num_heads,
      cfg.relpos_num_buckets,
      cfg.relpos_max_distance,
      bidirectional=True,
    )
    self.layers = _EncoderLayer(rngs, cfg)
    self.encoder_norm = layers.Norm((cfg.emb_dim,), ('embed',), 1e-6)

  def __call__(
    self, x: jax.Array, mask: jax.Array, rng: jax.Array | None
  ) -> jax.Array:
    """[B, P, E] embeddings, [B, P] mask -> [B, P, E]."""
    cfg = self.config
    keys = layers.split(rng, 2)
    length = x.shape[1]
    # [1, H, P, P], common to the batch, and [B, 1, 1, P].
    biases = (
      self.relpos_bias(0, length, length)[None],
      jnp.where(mask, 0.0, attention.MASKED)[:, None, None, :],
    )

    def call(layer, x, _, cache, key):
      return layer(x, biases, key), None, None

    x, _, _ = layer_stack.apply_stack(
      call,
      self.layers,
      x,
      layers=cfg.num_encoder_layers,
      scan=cfg.scan,
      remat_policy=cfg.remat_policy,
      rng=keys[0],
    )
    x = self.encoder_norm(x, cfg.dtype)
    return layers.dropout(x, cfg.dropout_rate, keys[1])


class _EncoderLayer(nnx.Module):
  def __init__(self, rngs: nnx.Rngs, cfg: T5Config):
    n = cfg.num_encoder_layers
    self.config = cfg
    self.pre_attention_layer_norm = _norm(cfg, n)
    self.attention = _Attention(rngs, cfg, n)
    self.pre_mlp_layer_norm = _norm(cfg, n)
    self.mlp = _mlp(rngs, cfg, n)

  def __call__(
    self, x: jax.Array, biases: Sequence[jax.Array], rng: jax.Array | None
  ) -> jax.Array:
    dtype, rate = self.config.dtype, self.config.dropout_rate
    keys = layers.split(rng, 4)
    y = self.pre_attention_layer_norm(x, dtype)
    keys_values = self.attention.keys_values(y, batch=y.shape[0])
    y = self.attention(y, keys_values, biases, keys[0])
    x = x + layers.dropout(y, rate, keys[1])
    y = self.pre_mlp_layer_norm(x, dtype)
    y = self.mlp(y, dtype, dropout=lambda h: layers.dropout(h, rate, keys[2]))
    return x + layers.dropout(y, rate, keys[3])


class _Decoder(nnx.Module):
  """Decoder layers, one bias for all of them, the final norm and the heads."""

  def __init__(self, rngs: nnx.Rngs, cfg: T5Config):
    self.config = cfg
    self.relpos_bias = attention.RelativePositions(
      rngs,
      cfg.num_heads,
      cfg.relpos_num_buckets,
      cfg.relpos_max_distance,
      bidirectional=False,
    )
    self.layers = _DecoderLayer(rngs, cfg)
    self.decoder_norm = layers.Norm((cfg.emb_dim,), ('embed',), 1e-6)
    if not cfg.logits_via_embedding:
      self.logits_dense = layers.Dense(
        rngs, (cfg.emb_dim, cfg.vocab_size), ('embed', 'vocab')
      )
    if cfg.reward_head:
      self.reward_head = layers.Dense(
        rngs, (cfg.emb_dim, cfg.reward_head), ('embed', 'reward')
      )

  def keys_values(self, encoded: jax.Array) -> Any:
    """Cross-attention keys [B, H, D, P], values [B, H, P, D] by layer."""
    cfg = self.config
    batch = encoded.shape[0]
    return layer_stack.map_layers(
      lambda layer: layer.encoder_decoder_attention.keys_values(encoded, batch),
      self.layers,
      cfg.num_decoder_layers,
      cfg.scan,
    )

  def __call__(
    self,
    x: jax.Array,
    context: types.Context,
    cache: Any,
    index: jax.Array | int,
    rng: jax.Array | None,
  ) -> tuple[jax.Array, Any]:
    """[B, K, T, E] embeddings -> [B, K, T, E] hidden states, cache."""
    cfg = self.config
    keys = layers.split(rng, 2)
    new = x.shape[2]
    total = new if cache is None else cache[0][1].shape[-2]
    positions = index + jnp.arange(new)
    future = jnp.arange(total) > positions[:, None]
    bias = self.relpos_bias(index, new, total)
    bias = (bias + jnp.where(future, attention.MASKED, 0.0))[None]
    context_bias = jnp.where(context.mask, 0.0, attention.MASKED)[:, None, None]

    def call(layer, x, keys_values, cache, key):
      x, cache = layer(x, keys_values, bias, context_bias, cache, index, key)
      return x, cache, None

    x, cache, _ = layer_stack.apply_stack(
      call,
      self.layers,
      x,
      context.keys_values,
      cache,
      layers=cfg.num_decoder_layers,
      scan=cfg.scan,
      remat_policy=cfg.remat_policy,
      rng=keys[0],
    )
    x = self.decoder_norm(x, cfg.dtype)
    return layers.dropout(x, cfg.dropout_rate, keys[1]), cache


class _DecoderLayer(nnx.Module):
  def __init__(self, rngs: nnx.Rngs, cfg: T5Config):
    n = cfg.num_decoder_layers
    self.config = cfg
    self.pre_self_attention_layer_norm = _norm(cfg, n)
    self.self_attention = _Attention(rngs, cfg, n)
    self.pre_cross_attention_layer_norm = _norm(cfg, n)
    self.encoder_decoder_attention = _Attention(rngs, cfg, n)
    self.pre_mlp_layer_norm = _norm(cfg, n)
    self.mlp = _mlp(rngs, cfg, n)

  def __call__(
    self,
    x: jax.Array,
    context: tuple[jax.Array, jax.Array],
    bias: jax.Array,
    context_bias: jax.Array,
    cache: Any,
    index: jax.Array | int,
    rng: jax.Array | None,
  ) -> tuple[jax.Array, Any]:
    """One layer over [B, K, T, E].

    Self-attention has B K sequences of T queries, cross-attention B sequences
    of K T queries: the context is not repeated.
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


class _Attention(nnx.Module):
  """The kernels of one attention in each of `n` layers."""

  def __init__(self, rngs: nnx.Rngs, cfg: T5Config, n: int):
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
    """[..., E] -> keys [batch, H, D, S], values [batch, H, S, D]."""
    heads, dtype = self.config.num_heads, self.config.dtype
    return kv_cache.by_head(
      self.key(x, dtype), self.value(x, dtype), batch, heads
    )

  def __call__(
    self,
    x: jax.Array,
    keys_values: tuple[jax.Array, jax.Array],
    biases: Sequence[jax.Array],
    rng: jax.Array | None,
  ) -> jax.Array:
    """[N, Q, E] -> [N, Q, E]."""
    cfg = self.config
    query = self.query(x, cfg.dtype)
    query = query.reshape(*x.shape[:2], cfg.num_heads, cfg.head_dim)
    y = attention.attention(
      query, *keys_values, *biases, dropout_rate=cfg.dropout_rate, rng=rng
    )
    return self.out(y.reshape(*x.shape[:2], -1), cfg.dtype)


def _norm(cfg: T5Config, n: int) -> layers.Norm:
  return layers.Norm((n, cfg.emb_dim), ('layers', 'embed'), 1e-6)


def _mlp(rngs: nnx.Rngs, cfg: T5Config, n: int) -> layers.Mlp:
  return layers.Mlp(
    rngs,
    (n,),
    ('layers',),
    emb_dim=cfg.emb_dim,
    mlp_dim=cfg.mlp_dim,
    activations=cfg.mlp_activations,
  )
