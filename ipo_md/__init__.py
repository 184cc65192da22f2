"""ipo_md: online preference optimisation of language models in JAX.

  from ipo_md import games, losses, sampling

  loss = losses.ipo(log_ratios, preference, tau=0.1)
  sampled = sampling.complete(model, policy, prompts, rng, sampler=sampler)
  equilibrium = games.nash(preference, reference, tau=0.1)

Every name is imported when it is first used, so that tools which need no JAX
can import `ipo_md.core`.
"""

import importlib
from typing import TYPE_CHECKING
from typing import Any

if TYPE_CHECKING:
  from ipo_md import algorithms
  from ipo_md import checkpoints
  from ipo_md import data
  from ipo_md import games
  from ipo_md import judges
  from ipo_md import models
  from ipo_md import optim
  from ipo_md import sampling
  from ipo_md import training
  from ipo_md.algorithms import losses
  from ipo_md.core import types
  from ipo_md.models import Model
  from ipo_md.sampling import Sampler
  from ipo_md.sampling import complete
  from ipo_md.sampling import sample

__all__ = [
  'Model',
  'Sampler',
  'algorithms',
  'checkpoints',
  'complete',
  'data',
  'games',
  'judges',
  'losses',
  'models',
  'optim',
  'sample',
  'sampling',
  'training',
  'types',
]

# Where names that are not wings of the package are found.
_ELSEWHERE = {
  'losses': 'ipo_md.algorithms.losses',
  'types': 'ipo_md.core.types',
  'Model': 'ipo_md.models',
  'Sampler': 'ipo_md.sampling',
  'complete': 'ipo_md.sampling',
  'sample': 'ipo_md.sampling',
}


def __getattr__(name: str) -> Any:
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module = importlib.import_module(_ELSEWHERE.get(name, f'ipo_md.{name}'))
  return getattr(module, name, module)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
