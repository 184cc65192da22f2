"""Games between the sequences of a small tree, their judge and their policies.

Every game here is small enough to be solved by `exact`.
"""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np
from scipy import special

from ipo_md import judges
from ipo_md import models
from ipo_md.core import types
from ipo_md.games import exact
from ipo_md.games import tabular


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
    """V, the number of tokens."""
    return self.reference.shape[1]

  @property
  def depth(self) -> int:
    """The number of tokens of a sequence."""
    return round(math.log(len(self.preference), self.vocab_size))

  @property
  def rewards(self) -> np.ndarray:
    """[N] p(y > pi_ref), for algorithms that learn from rewards."""
    return self.preference @ policy_of(self.reference)


def cyclic(*, p_12: float, p_23: float, p_31: float) -> Game:
  """Makes a game of three actions that beat each other in turn.

  Its reference is uniform.

  Args:
    p_12: Probability that action 1 beats action 2.
    p_23: Probability that action 2 beats action 3.
    p_31: Probability that action 3 beats action 1.
  """
  return Game(exact.cyclic_game(p_12, p_23, p_31), np.zeros((1, 3)))


def random(*, seed: int, actions: int) -> Game:
  """Makes a random one-token game with a cycle and a random reference.

  Args:
    seed: Seed of the game and of the reference.
    actions: Number of actions.
  """
  rng = np.random.default_rng(seed)
  return Game(
    exact.random_game(rng, actions), 0.5 * rng.normal(size=(1, actions))
  )


def tree(*, seed: int, vocab_size: int) -> Game:
  """Makes a random game between all sequences of two tokens.

  Args:
    seed: Seed of the game and of its random reference.
    vocab_size: V, the number of tokens.
  """
  rng = np.random.default_rng(seed)
  return Game(
    exact.random_game(rng, vocab_size**2),
    0.5 * rng.normal(size=(1 + vocab_size, vocab_size)),
  )


@judges.declare(
  runs_on='device', gives=('preference', 'rewards', 'matrix'), has_params=True
)
def matrix_judge(
  params: types.Params, completions: types.Completions
) -> types.Labelled:
  """Looks up the preference and the rewards of completions.

  Args:
    params: `preference` [G, N, N] and `rewards` [G, N] of all sequences in G
      games. The first token of a prompt is the number of its game.
    completions: K completions of each prompt, all of full length.

  Returns:
    The completions with rewards [B, K], the matrix [B, K, K] and, if K = 2, the
    preference [B].
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
    matrix=params['preference'][game[:, None, None], y[:, :, None], y[:, None]],
  )


def tabular_model(
  game: Game, *, prompts: int = 1, stddev: float = 0.0
) -> models.Model:
  """Makes the model whose policies play a game.

  Args:
    game: Game, for the size of its tree.
    prompts: Number of tables, one for each prompt.
    stddev: Standard deviation of the initial logits.
  """
  return models.Model(
    functools.partial(
      tabular.Tabular,
      vocab_size=game.vocab_size,
      depth=game.depth,
      prompts=prompts,
      stddev=stddev,
    )
  )


def policy_of(logits: np.ndarray) -> np.ndarray:
  """Returns the probabilities [N] of all sequences from logits [nodes, V]."""
  return np.exp(tabular.sequence_log_probs(np.asarray(logits, np.float64)))


def token_mixture(
  policy: np.ndarray, reference: np.ndarray, mixture_coef: float
) -> np.ndarray:
  """Returns the distribution that the sampler draws from.

  The sampler mixes and normalises at each token. The mixture of whole
  sequences, `exact.mixture`, is another policy unless sequences have one token.

  Args:
    policy: [nodes, V] logits of the policy.
    reference: [nodes, V] logits of the reference.
    mixture_coef: b, the weight of the reference.

  Returns:
    [N] probabilities of all sequences.
  """
  log_softmax = lambda x: special.log_softmax(np.asarray(x, np.float64), axis=1)
  return policy_of(
    (1 - mixture_coef) * log_softmax(policy)
    + mixture_coef * log_softmax(reference)
  )


def measure(
  logits: np.ndarray, *, game: Game, tau: float, mixture_coef: float
) -> dict[str, float]:
  """Measures how far a policy is from the equilibrium.

  Args:
    logits: [nodes, V] logits of the policy.
    game: Game that is played.
    tau: Temperature at which the game is solved.
    mixture_coef: b, the weight of the reference in the sampler.

  Returns:
    `exploitability` and `kl` = KL(nash, pi) at tau. For 0 < b < 1 also
    `mixture_exploitability` and `mixture_kl` of the sampler's mixture at tau /
    (1 - b), and `total_variation` between that mixture and the mixture of whole
    sequences.
  """
  reference = policy_of(game.reference)
  policy = policy_of(logits)

  def against(policy, tau):
    nash = exact.nash(game.preference, reference, tau=tau)
    gain = exact.exploitability(policy, game.preference, reference, tau=tau)
    return gain, exact.kl(nash, policy)

  gain, kl = against(policy, tau)
  found = {'exploitability': gain, 'kl': kl}
  if 0 < mixture_coef < 1:
    mixed = token_mixture(logits, game.reference, mixture_coef)
    gain, kl = against(mixed, tau / (1 - mixture_coef))
    whole = exact.mixture(policy, reference, mixture_coef)
    found |= {
      'mixture_exploitability': gain,
      'mixture_kl': kl,
      'total_variation': float(np.abs(mixed - whole).sum() / 2),
    }
  return found
