"""Checkpoints of a run."""

import jax
import numpy as np
import pytest

from ipo_md.checkpoints import checksums
from ipo_md.checkpoints import manager
from ipo_md.core import types
from tasks.mini_tldr import tasks


def test_which_checkpoints_are_kept(tmp_path):
  """The last one, every fourth, and the two with the highest win rates."""
  keep = manager.Keep(last=1, period=4, best=2)
  rates = {1: 0.9, 2: 0.1, 3: 0.8, 5: 0.2, 6: 0.3, 7: 0.7}
  for steps in (range(1, 6), range(6, 10)):
    with manager.open_manager(str(tmp_path), keep=keep) as saved:
      for step in steps:
        manager.save(
          saved,
          types.TrainState(
            step=np.int32(step), params={'w': np.ones(2)}, opt_state={}
          ),
          tasks.VOCABULARY,
          rates.get(step),
        )
  assert checksums.numbered(tmp_path / 'checkpoints') == [1, 3, 4, 8, 9]
  with pytest.raises(ValueError, match='KEEP_CHECKPOINTS is 0'):
    manager.Keep(last=0)


def test_a_state_of_another_form_is_one_line(tmp_path):
  """An earlier version had other fields, and other players."""
  params = {'w': np.zeros(2, np.float32)}
  state = types.TrainState(step=np.int32(1), params=params, opt_state=())
  with manager.open_manager(str(tmp_path), keep=manager.Keep()) as saved:
    held = state.replace(players={'average': params})
    manager.save(saved, held, tasks.VOCABULARY)
    manager.wait(saved)
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state
    )
    with pytest.raises(
      ValueError, match=r'earlier version.*\(players.*INITIAL_CHECKPOINT_PATH'
    ) as error:
      manager.restore(saved, abstract)
  assert '\n' not in str(error.value)
