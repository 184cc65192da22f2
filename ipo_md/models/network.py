"""What the networks of both model families have in common."""

from typing import Any
from typing import Protocol

from flax import nnx
import jax

from ipo_md.core import types
from ipo_md.models import layers


class Config(Protocol):
  """The options that `Decoder` and `Network` read."""

  @property
  def vocab_size(self) -> int: ...

  @property
  def emb_dim(self) -> int: ...

  @property
  def dtype(self) -> str: ...

  @property
  def dropout_rate(self) -> float: ...

  @property
  def logits_via_embedding(self) -> bool: ...

  @property
  def reward_head(self) -> int: ...


class Interface(Protocol):
  """The methods that `models.Model` calls on a network, an `nnx.Module`.

  `models.Model` documents them.
  """

  @property
  def config(self) -> Any: ...

  def encode(
    self, prompts: types.Tokens, *, rng: jax.Array | None = None
  ) -> types.Context: ...

  def init_cache(self, context: types.Context, k: int, length: int) -> Any: ...

  def decode(
    self,
    ids: jax.Array,
    context: types.Context,
    cache: Any = None,
    index: jax.Array | int = 0,
    *,
    mask: jax.Array | None = None,
    rng: jax.Array | None = None,
  ) -> tuple[jax.Array, Any, jax.Array]: ...

  def logits(self, hidden: jax.Array) -> jax.Array: ...

  def reward(self, hidden: jax.Array, mask: jax.Array) -> jax.Array: ...


class Decoder(nnx.Module):
  """Base class of the decoders: the final norm and the heads.

  A subclass sets `config` and `layers`, calls `add_output` and defines
  `__call__`.
  """

  config: Config

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
    raise NotImplementedError

  def output(self, x: jax.Array, rng: jax.Array | None) -> jax.Array:
    """Normalises the output [..., E] of the last layer and applies dropout."""
    x = self.decoder_norm(x, self.config.dtype)
    return layers.dropout(x, self.config.dropout_rate, rng)


class Network(nnx.Module):
  """Base class of the networks behind `models.Model`.

  A subclass sets `config`, `token_embedder` and `decoder`, and defines `encode`
  and `init_cache`.
  """

  config: Config
  token_embedder: layers.Embed
  decoder: Decoder

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
        f'This {name} has no reward head: set REWARD_HEAD '
        f'({name}.reward_head) to the number of its outputs, such as 1.'
      )
    return layers.reward(self.decoder.reward_head.kernel[...], hidden, mask)
