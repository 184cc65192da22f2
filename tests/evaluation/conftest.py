"""Fixtures that several tests of the evaluation share."""

import comparison
import jax
import jax.numpy as jnp
import pytest

from ipo_md.checkpoints import manager
from ipo_md.core import types
from tasks.mini_tldr import tasks


@pytest.fixture(scope='session', name='paths')
def paths_fixture(tmp_path_factory):
  """Saves two random policies and a random judge."""
  found = {}
  for seed, name in enumerate(['supervised', 'ipo', 'judge']):
    found[name] = str(tmp_path_factory.mktemp(name))
    params = comparison.MODEL.init(jax.random.key(seed))
    state = types.TrainState(step=jnp.int32(1), params=params, opt_state=())
    with manager.open_manager(found[name], keep=manager.Keep()) as saved:
      manager.save(saved, state, tasks.VOCABULARY)
      manager.wait(saved)
  return found
