"""A policy that is a table of logits, one row for each prefix.

Every sequence of a small tree can be enumerated, so sampling, losses and whole
training runs can be compared with exact sums. The tree is complete: node 0 is
the empty prefix, and token t leads from node i to node V i + 1 + t.

                   0                   V = 2, depth 2: three prefixes,
             0 /       1 \\             four sequences of two tokens
             1           2
"""

import dataclasses
import itertools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from ipo_md.core import types


@dataclasses.dataclass(frozen=True)
class Config:
  """Size of the tree.

  Attributes:
    vocab_size: V, the actions at each prefix.
    depth: tokens of the longest completion; 1 makes a one-token game.
    prompts: number of tables; a prompt's first token names its table.
    stddev: standard deviation of the initial logits; 0 is the uniform policy.
  """

  vocab_size: int
  depth: int
  prompts: int
  stddev: float
  dtype: str = 'float32'
  scan: bool = False  # it has no layers

  @property
  def nodes(self) -> int:
    """Prefixes shorter than `depth`: 1 + V + ... + V^(depth - 1)."""
    return sum(self.vocab_size**n for n in range(self.depth))


class Tabular(nnx.Module):
  """Tables of logits behind `encode` and `decode` of `models.Model`.

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
      axes=('tables', 'prefixes', 'actions'),  # never split
    )

  def encode(
    self, prompts: types.Tokens, *, rng: jax.Array | None = None
  ) -> types.Context:
    """Prompts [B, P] whose first token is the number of a table."""
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
    """The node [B, K] of the inputs so far."""
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
    """[B, K, T] inputs -> [B, K, T, V] logits; see `models.Model.decode`."""
    del mask, rng
    self._check_length(ids.shape[-1])
    node = jnp.zeros(ids.shape[:2], jnp.int32) if cache is None else cache
    nodes = []
    for n in range(ids.shape[-1]):
      child = self.config.vocab_size * node + 1 + ids[..., n]
      node = jnp.where(index + n == 0, 0, child)  # the start is no token
      nodes.append(node)
    # A finished sequence is decoded on; its nodes may leave the tree, masked.
    nodes = jnp.clip(jnp.stack(nodes, axis=-1), 0, self.config.nodes - 1)
    table = context.keys_values[:, None, None]
    hidden = self.table[table, nodes]
    return hidden, None if cache is None else node, jnp.zeros(())

  def logits(self, hidden: jax.Array) -> jax.Array:
    return hidden

  def reward(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
    raise ValueError(
      'Tabular has no reward head: a game is judged by its matrix'
      ' (game.matrix_judge).'
    )

  def _check_length(self, length: int):
    if length > self.config.depth:
      raise ValueError(
        f'{length} tokens do not fit a table of depth {self.config.depth}'
        ' (Tabular.depth).'
      )


def sequences(
  vocab_size: int, depth: int, *, eos_id: int | None = None
) -> types.Tokens:
  """Every completion of the tree, [N, depth], in lexicographic order.

  With `eos_id` a sequence ends there and is padded with zeros; without, all
  have `depth` tokens and N = V^depth.
  """
  rows = {}  # insertion order is the order of the result
  for ids in itertools.product(range(vocab_size), repeat=depth):
    length = ids.index(eos_id) + 1 if eos_id in ids else depth
    rows[ids[:length]] = None
  ids = np.zeros((len(rows), depth), np.int32)
  mask = np.zeros((len(rows), depth), bool)
  for i, row in enumerate(rows):
    ids[i, : len(row)] = row
    mask[i, : len(row)] = True
  return types.Tokens(ids, mask)
