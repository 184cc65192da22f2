"""What the networks of both model families have in common."""

from typing import Any

from flax import nnx
import jax

from ipo_md.core import types
from ipo_md.models import layers


class Decoder(nnx.Module):
  """Base class of the decoders: the final norm and the heads.

  A subclass sets `config` and `layers`, calls `add_output` and defines
  `__call__` with the arguments that `Network.decode` passes.
  """

  def add_output(
    self, rngs: nnx.Rngs, epsilon: float, norm_offset: float = 0.0
  ) -> None:
    """Makes the final norm, the vocabulary's head and the reward head.

    Args:
      rngs: Random keys of the parameters.
      epsilon: Epsilon of the norm.
      norm_offset: Offset of the norm's scales.
    """
    cfg = self.config
    self.decoder_norm = layers.Norm(
      (cfg.emb_dim,), ('embed',), epsilon, norm_offset
    )
    if not cfg.logits_via_embedding:
      self.logits_dense = layers.Dense(
        rngs, (cfg.emb_dim, cfg.vocab_size), ('embed', 'vocab')
      )
    if cfg.reward_head:
      self.reward_head = layers.Dense(
        rngs, (cfg.emb_dim, cfg.reward_head), ('embed', 'reward')
      )

  def output(self, x: jax.Array, rng: jax.Array | None) -> jax.Array:
    """Normalises the output [..., E] of the last layer and applies dropout."""
    x = self.decoder_norm(x, self.config.dtype)
    return layers.dropout(x, self.config.dropout_rate, rng)


class Network(nnx.Module):
  """Base class of the networks behind `models.Model`.

  A subclass sets `config`, `token_embedder` and `decoder`, and defines `encode`
  and `init_cache`.
  """

  def embed(self, ids: jax.Array, rng: jax.Array | None) -> jax.Array:
    """Looks up the embeddings [..., E] of tokens and applies dropout."""
    x = self.token_embedder(ids, self.config.dtype)
    return layers.dropout(x, self.config.dropout_rate, rng)

  def decode(
    self,
    ids: jax.Array,
    context: types.Context,
    cache: Any = None,
    index: jax.Array | int = 0,
    mask: jax.Array | None = None,
    rng: jax.Array | None = None,
  ) -> tuple[jax.Array, Any, jax.Array]:
    """Computes hidden states of completions; see `models.Model.decode`."""
    keys = layers.split(rng, 2)
    x = self.embed(ids, keys[0])
    return self.decoder(x, context, cache, index, mask, keys[1])

  def logits(self, hidden: jax.Array) -> jax.Array:
    """Maps hidden states [..., E] to logits [..., V] in float32."""
    if self.config.logits_via_embedding:
      return layers.project(hidden, self.token_embedder.embedding[...], 1)
    return layers.project(hidden, self.decoder.logits_dense.kernel[...], 0)

  def reward(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """Applies the reward head; see `models.Model.reward`.

    Raises:
      ValueError: If the network has no reward head.
    """
    if not self.config.reward_head:
      name = type(self).__name__
      raise ValueError(
        f'This {name} has no reward head: set {name}.reward_head = 1 in the '
        'gin file of the judge.'
      )
    return layers.reward(self.decoder.reward_head.kernel[...], hidden, mask)
