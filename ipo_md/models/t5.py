"""T5 1.0 and 1.1, including Flan-T5, mT5 and ByT5.

The network equals the one in t5x/examples/t5. Paper:
https://arxiv.org/abs/1910.10683.
"""

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
from ipo_md.models import network
from ipo_md.models import relative_positions
from ipo_md.models import t5_config
from ipo_md.models import t5_layers


class T5(network.Network):
  """The encoder-decoder network behind `models.Model`.

  Args:
    rngs: Random keys of the parameters.
    **config: The fields of `T5Config`. In gin they are T5.emb_dim and so on.
  """

  config: t5_config.T5Config
  decoder: '_Decoder'

  def __init__(self, rngs: nnx.Rngs, **config: Any):
    self.config = cfg = t5_config.T5Config(**config)
    self.token_embedder = layers.Embed(rngs, cfg.vocab_size, cfg.emb_dim, 1.0)
    self.encoder = _Encoder(rngs, cfg)
    self.decoder = _Decoder(rngs, cfg)

  def encode(
    self, prompts: types.Tokens, rng: jax.Array | None = None
  ) -> types.Context:
    """Computes the cross-attention keys and values of every decoder layer."""
    keys = layers.split(rng, 2)
    x = self.embed(prompts.ids, keys[0])
    encoded = self.encoder(x, prompts.mask, keys[1])
    zero = jnp.zeros(prompts.ids.shape[:1], jnp.int32)
    return types.Context(
      start=zero,  # T5 starts with the padding token
      mask=prompts.mask,
      length=zero,
      keys_values=self.decoder.keys_values(encoded),
    )

  def init_cache(self, context: types.Context, k: int, length: int) -> Any:
    """Makes an empty cache; see `models.Model.init_cache`."""
    cfg = self.config
    shape = (context.start.shape[0] * k, cfg.num_heads, cfg.head_dim, length)
    return kv_cache.empty(cfg.num_decoder_layers, shape, cfg.dtype)

  def logits(self, hidden: jax.Array) -> jax.Array:
    """Maps hidden states [..., E] to logits [..., V] in float32.

    As in T5X, a tied head divides the hidden states by sqrt(E).
    """
    if self.config.logits_via_embedding:
      hidden = hidden.astype(jnp.float32) / math.sqrt(self.config.emb_dim)
    return super().logits(hidden)


class _Encoder(nnx.Module):
  """The encoder layers, their common position bias and the final norm."""

  def __init__(self, rngs: nnx.Rngs, cfg: t5_config.T5Config):
    self.config = cfg
    self.relpos_bias = _position_bias(rngs, cfg, bidirectional=True)
    self.layers = t5_layers.EncoderLayer(rngs, cfg)
    self.encoder_norm = layers.Norm(
      (cfg.emb_dim,), ('embed',), t5_layers.NORM_EPSILON
    )

  def __call__(
    self, x: jax.Array, mask: jax.Array, rng: jax.Array | None
  ) -> jax.Array:
    """Encodes embeddings [B, P, E] with mask [B, P]."""
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


class _Decoder(network.Decoder):
  """The decoder layers, their common position bias, norm and heads."""

  config: t5_config.T5Config

  def __init__(self, rngs: nnx.Rngs, cfg: t5_config.T5Config):
    self.config = cfg
    self.relpos_bias = _position_bias(rngs, cfg, bidirectional=False)
    self.layers = t5_layers.DecoderLayer(rngs, cfg)
    self.add_output(rngs, t5_layers.NORM_EPSILON)

  def keys_values(self, encoded: jax.Array) -> Any:
    """Projects the encoded prompts [B, P, E] for the cross-attention.

    Returns:
      Keys [B, H, D, P] and values [B, H, P, D] of every layer.
    """
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
    mask: jax.Array | None,
    rng: jax.Array | None,
  ) -> tuple[jax.Array, Any, jax.Array]:
    """Decodes embeddings [B, K, T, E]: hidden states, cache, loss of 0."""
    del mask
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
    return self.output(x, keys[1]), cache, jnp.zeros((), jnp.float32)


def _position_bias(
  rngs: nnx.Rngs, cfg: t5_config.T5Config, *, bidirectional: bool
) -> relative_positions.RelativePositions:
  return relative_positions.RelativePositions(
    rngs,
    cfg.num_heads,
    cfg.relpos_num_buckets,
    cfg.relpos_max_distance,
    bidirectional,
  )
