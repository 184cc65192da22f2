"""Games with an exact solution, and their judge."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from ipo_md.core import types
from ipo_md.games import exact


@dataclasses.dataclass(frozen=True)
class Game:
  """Preferences between all sequences of a tree.

  Attributes:
    preference: [N, N] p(y > y'), sequences in the order of `tabular.sequences`.
    reference: [nodes, V] logits of the reference policy.
  """

  preference: np.ndarray
  reference: np.ndarray

  @property
  def vocab_size(self) -> int:
    return self.reference.shape[1]

  @property
  def depth(self) -> int:
    return round(math.log(len(self.preference), self.vocab_size))

  @property
  def rewards(self) -> np.ndarray:
    """[N] p(y > pi_ref), for algorithms that learn from rewards."""
    return self.preference @ policy_of(self.reference)


def cyclic(*, p_12: float, p_23: float, p_31: float) -> Game:
  """Three actions that beat each other in turn; uniform reference."""
  return Game(exact.cyclic_game(p_12, p_23, p_31), np.zeros((1, 3)))


def random(*, seed: int, actions: int) -> Game:
  """A random game with a cycle and a random reference; one token each."""
  rng = np.random.default_rng(seed)
  return Game(
    exact.random_game(rng, actions), 0.5 * rng.normal(size=(1, actions))
  )


def tree(*, seed: int, vocab_size: int) -> Game:
  """A random game between all sequences of two tokens; random reference."""
  rng = np.random.default_rng(seed)
  return Game(
    exact.random_game(rng, vocab_size**2),
    0.5 * rng.normal(size=(1 + vocab_size, vocab_size)),
  )


def matrix_judge(
  params: types.Params, completions: types.Completions
) -> types.Labelled:
  """Looks preference and rewards up.

  Args:
    params: `preference` [G, N, N] and `rewards` [G, N] of all sequences in G
      games; a prompt's token is the number of a game.
    completions: K completions of each prompt, all of full length.

  Returns:
    rewards [B, K], and the preference [B] if K = 2.
  """
  game = completions.prompts.ids[:, 0]
  ids = completions.completions.ids
  depth = ids.shape[-1]
  vocab_size = round(params['rewards'].shape[1] ** (1 / depth))
  y = jnp.sum(ids * vocab_size ** np.arange(depth)[::-1], axis=-1)
  preference = None
  if y.shape[1] == 2:
    preference = params['preference'][game, y[:, 0], y[:, 1]]
  return types.Labelled(
    completions=completions,
    completion_mask=jnp.ones(y.shape, bool),
    preference=preference,
    rewards=params['rewards'][game[:, None], y],
  )


def policy_of(logits: np.ndarray) -> np.ndarray:
  """[nodes, V] logits -> [N] probabilities of all sequences."""
  return np.exp(exact.sequence_log_probs(np.asarray(logits, np.float64)))


def token_mixture(
  policy: np.ndarray, reference: np.ndarray, mixture_coef: float
) -> np.ndarray:
  """[N] what the sampler draws from: mixed and normalised at each token.

  The mixture of whole sequences, `games.mixture`, is another policy unless
  sequences have one token.
  """
  log_softmax = lambda x: x - np.log(np.exp(x).sum(axis=1, keepdims=True))
  return policy_of(
    (1 - mixture_coef) * log_softmax(np.asarray(policy, np.float64))
    + mixture_coef * log_softmax(reference)
  )
