"""Policies that are tables of logits, with one row for each prefix.

Every sequence of a small tree can be enumerated, so sampling, losses and whole
training runs can be compared with exact sums. The tree is complete: node 0 is
the empty prefix, and token t leads from node i to node V i + 1 + t.

                   0                   V = 2 and depth 2 give three prefixes
             0 /       1 \\             and four sequences of two tokens.
             1           2
"""

import dataclasses
import itertools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from ipo_md.core import types


@dataclasses.dataclass(frozen=True)
class Config:
  """The size of a tree of tokens.

  Attributes:
    vocab_size: V, the number of actions at each prefix.
    depth: Number of tokens of the longest completion.
    prompts: Number of tables. The first token of a prompt names its table.
    stddev: Standard deviation of the initial logits; 0 is the uniform policy.
    dtype: Type of the logits.
    scan: Whether layers are scanned. A table has no layers.
  """

  vocab_size: int
  depth: int
  prompts: int
  stddev: float
  dtype: str = 'float32'
  scan: bool = False

  @property
  def nodes(self) -> int:
    """The number of prefixes: 1 + V + ... + V^(depth - 1)."""
    return sum(self.vocab_size**n for n in range(self.depth))


class Tabular(nnx.Module):
  """Tables of logits that implement the network of a `models.Model`.

  The hidden states are the logits themselves, so E = V.
  """

  def __init__(
    self,
    rngs: nnx.Rngs,
    *,
    vocab_size: int,
    depth: int,
    prompts: int = 1,
    stddev: float = 1.0,
  ):
    self.config = Config(vocab_size, depth, prompts, stddev)
    shape = (prompts, self.config.nodes, vocab_size)
    self.table = nnx.Param(
      stddev * jax.random.normal(rngs.params(), shape),
      axes=('tables', 'prefixes', 'actions'),  # Never sharded.
    )

  def encode(
    self, prompts: types.Tokens, *, rng: jax.Array | None = None
  ) -> types.Context:
    """Looks up the tables of prompts [B, P], which their first tokens name."""
    del rng
    table = jnp.clip(prompts.ids[:, 0], 0, self.config.prompts - 1)
    return types.Context(
      start=jnp.zeros_like(table),
      mask=jnp.zeros_like(prompts.mask),
      length=jnp.zeros_like(table),
      keys_values=table,
    )

  def init_cache(
    self, context: types.Context, k: int, length: int
  ) -> jax.Array:
    """Returns the nodes [B, K] that the inputs so far have reached."""
    self._check_length(length)
    return jnp.zeros((context.start.shape[0], k), jnp.int32)

  def decode(
    self,
    ids: jax.Array,
    context: types.Context,
    cache: jax.Array | None = None,
    index: jax.Array | int = 0,
    *,
    mask: jax.Array | None = None,
    rng: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """Maps inputs [B, K, T] to logits [B, K, T, V].

    See `models.Model.decode`.
    """
    del mask, rng
    self._check_length(ids.shape[-1])
    node = jnp.zeros(ids.shape[:2], jnp.int32) if cache is None else cache
    nodes = []
    for n in range(ids.shape[-1]):
      child = self.config.vocab_size * node + 1 + ids[..., n]
      node = jnp.where(index + n == 0, 0, child)  # The start is not a token.
      nodes.append(node)
    # Decoding goes on after a sequence has ended. Its nodes may then leave the
    # tree, but they are masked.
    nodes = jnp.clip(jnp.stack(nodes, axis=-1), 0, self.config.nodes - 1)
    table = context.keys_values[:, None, None]
    hidden = self.table[table, nodes]
    return hidden, None if cache is None else node, jnp.zeros(())

  def logits(self, hidden: jax.Array) -> jax.Array:
    """Returns the hidden states, which are the logits."""
    return hidden

  def reward(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """Raises ValueError, because a table has no reward head."""
    raise ValueError(
      'Tabular has no reward head. The judge of a game is its matrix'
      ' (game.matrix_judge).'
    )

  def _check_length(self, length: int) -> None:
    if length > self.config.depth:
      raise ValueError(
        f'{length} tokens do not fit into a table of depth {self.config.depth}'
        ' (Tabular.depth).'
      )


def sequences(
  vocab_size: int, depth: int, *, eos_id: int | None = None
) -> types.Tokens:
  """Enumerates the completions of a tree in lexicographic order.

  Args:
    vocab_size: V, the number of tokens.
    depth: Number of tokens of the longest completion.
    eos_id: Token at which a sequence ends, padded with zeros; None if all
      sequences have `depth` tokens, so that N = V^depth.

  Returns:
    [N, depth] tokens.
  """
  rows = {}  # The order of insertion is the order of the result.
  for ids in itertools.product(range(vocab_size), repeat=depth):
    length = ids.index(eos_id) + 1 if eos_id in ids else depth
    rows[ids[:length]] = None
  ids = np.zeros((len(rows), depth), np.int32)
  mask = np.zeros((len(rows), depth), bool)
  for i, row in enumerate(rows):
    ids[i, : len(row)] = row
    mask[i, : len(row)] = True
  return types.Tokens(types.as_leaf(ids), types.as_leaf(mask))


def sequence_log_probs(logits: np.ndarray) -> np.ndarray:
  """Computes the log-probabilities of all sequences of full length.

  Args:
    logits: [nodes, V] logits of a policy.

  Returns:
    [V^depth] log-probabilities, in the order of `sequences`.
  """
  log_probs = special.log_softmax(logits, axis=1)
  total, first = np.zeros(1), 0
  while first < len(log_probs):
    rows = log_probs[first : first + len(total)]
    first += len(total)
    total = (total[:, None] + rows).ravel()
  return total
