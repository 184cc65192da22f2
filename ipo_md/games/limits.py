"""The policies at which training stops, found without sampling.

The loss, the log-probabilities and the tables are those of training; only the
samples are replaced by a sum over all sequences.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ipo_md import sampling
from ipo_md.algorithms import needs
from ipo_md.core import types
from ipo_md.games import enumeration
from ipo_md.games import game as game_lib
from ipo_md.games import tabular


def expected_gradient(
  game: game_lib.Game,
  *,
  loss: Callable[..., Any],
  mixture_coefs: Sequence[float],
  snapshot: np.ndarray | None = None,
) -> Callable[[np.ndarray], np.ndarray]:
  """Makes the expected gradient of an online step, computed in float64.

  Args:
    game: Game that is played.
    loss: Objective of `losses`.
    mixture_coefs: K weights of the second player in the samplers. It is the
      reference, unless the loss has the snapshot for an anchor.
    snapshot: [nodes, V] logits of the snapshot. None stands for the policy
      itself, which it is at a limit.

  Returns:
    Function from logits [nodes, V] of the policy to the gradient in them.
  """
  everything = _all_sequences(game)
  needed = needs.of(loss)
  matrix = needed.feedback == 'matrix'
  feedback = game.preference if matrix else getattr(game, needed.feedback)

  def objective(table, samplers, known):
    log_probs, _ = sampling.log_probs(
      game_lib.tabular_model(game), {'table': table[None]}, everything
    )
    log_pi = jnp.sum(log_probs[0], axis=-1)
    first, *ratios = [log_pi - known[name] for name in needed.anchors] or [
      log_pi
    ]
    names = [f'{name}_log_ratios' for name in needed.anchors[1:]]
    return enumeration.expected_loss(
      loss,
      first,
      jnp.array(feedback),
      samplers,
      matrix=matrix,
      others=dict(zip(names, ratios, strict=True)),
    )

  enumerate_all = jax.jit(jax.grad(objective))

  def gradient(logits):
    players = {
      'reference': game.reference,
      'snapshot': logits if snapshot is None else snapshot,
    }
    second = 'snapshot' if 'snapshot' in needed.anchors else 'reference'
    samplers = [
      game_lib.token_mixture(logits, players[second], b) for b in mixture_coefs
    ]
    known = {
      name: np.log(game_lib.policy_of(table)) for name, table in players.items()
    }
    with jax.enable_x64(True):
      return np.array(enumerate_all(logits, samplers, known))

  return gradient


def limit(
  game: game_lib.Game,
  *,
  loss: Callable[..., Any],
  mixture_coefs: Sequence[float],
) -> np.ndarray | None:
  """Finds the policy at which the expected gradient of an online step is 0.

  Args:
    game: Game that is played.
    loss: Objective of `losses`.
    mixture_coefs: K weights of the reference in the samplers.

  Returns:
    [N] probabilities of all sequences, or None if no such policy was found: a
    hinge loss (slic) may have a kink instead.
  """
  gradient = expected_gradient(game, loss=loss, mixture_coefs=mixture_coefs)
  try:
    logits = enumeration.stationary_point(gradient, game.reference)
  except RuntimeError:
    return None
  return game_lib.policy_of(logits)


def _all_sequences(game: game_lib.Game) -> types.Completions:
  """Returns all N sequences as completions [1, N, depth] of one prompt."""
  tokens = tabular.sequences(game.vocab_size, game.depth)
  return types.Completions(
    prompts=types.Tokens(
      types.as_leaf(np.zeros((1, 1), np.int32)),
      types.as_leaf(np.ones((1, 1), bool)),
    ),
    completions=types.Tokens(tokens.ids[None], tokens.mask[None]),
  )
