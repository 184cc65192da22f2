"""Preference games that are small enough to be solved exactly.

The functions named here are pure numpy and SciPy:

  from ipo_md import games
  preference = games.cyclic_game(0.95, 0.8, 0.6)
  reference = np.full(3, 1 / 3)
  policy = games.nash(preference, reference, tau=0.1)
  games.exploitability(policy, preference, reference, tau=0.1)  # 0

The module `play` trains a policy on such a game by the same online step as a
language model, and `limits` computes where that training stops.
"""

from ipo_md.games.closed_forms import ipo_gradient
from ipo_md.games.closed_forms import mixture_fixed_point
from ipo_md.games.closed_forms import nash_md
from ipo_md.games.closed_forms import nash_md_step
from ipo_md.games.closed_forms import offline_ipo
from ipo_md.games.closed_forms import policy_gradient
from ipo_md.games.enumeration import expected_loss
from ipo_md.games.enumeration import stationary_point
from ipo_md.games.exact import cyclic_game
from ipo_md.games.exact import exploitability
from ipo_md.games.exact import kl
from ipo_md.games.exact import mixture
from ipo_md.games.exact import nash
from ipo_md.games.exact import nash_averaging
from ipo_md.games.exact import random_game
from ipo_md.games.exact import tilt

__all__ = [
  'cyclic_game',
  'expected_loss',
  'exploitability',
  'ipo_gradient',
  'kl',
  'mixture',
  'mixture_fixed_point',
  'nash',
  'nash_averaging',
  'nash_md',
  'nash_md_step',
  'offline_ipo',
  'policy_gradient',
  'random_game',
  'stationary_point',
  'tilt',
]
