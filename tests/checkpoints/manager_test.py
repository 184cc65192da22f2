"""Checkpoints of a run."""

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
