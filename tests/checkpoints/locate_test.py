"""The checkpoint that a path means."""

import functools
import json

from etils import epath
from flax import traverse_util
import jax
import numpy as np
import pytest

from ipo_md.checkpoints import arrays
from ipo_md.checkpoints import orbax
from tests.checkpoints import networks


def test_the_best_checkpoint_of_a_model_dir_is_converted(tmp_path):
  network = networks.network('t5_v1_1')
  abstract = traverse_util.flatten_dict(network.abstract_params, sep='/')
  for step in (1, 2):
    stored = {
      path: arrays.Stored(
        leaf.shape,
        leaf.dtype,
        functools.partial(np.full, leaf.shape, step, leaf.dtype),
      )
      for path, leaf in abstract.items()
    }
    layout = {path: [arrays.Piece(path)] for path in abstract}
    orbax.write(
      epath.Path(tmp_path / 'run'),
      arrays.Checkpoint(stored, layout),
      abstract,
      step=step,
    )
  rows = ({'step': 1, 'win_rate': 0.7}, {'step': 2, 'win_rate': 0.6})
  (tmp_path / 'run' / 'metrics.jsonl').write_text(
    ''.join(json.dumps(row) + '\n' for row in rows)
  )
  for name, value in (('run:best', 1), ('run', 2)):
    networks.convert(network, tmp_path / name, tmp_path / f'to_{value}', 'hf')
    for leaf in jax.tree.leaves(
      networks.load(network, tmp_path / f'to_{value}')
    ):
      np.testing.assert_array_equal(leaf, value)


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('nothing', 'not a directory'),
    ('x.pkl', 'x.pkl: pickle'),
    ('', 'no checkpoint'),
  ],
)
def test_path_without_a_checkpoint_is_an_error(tmp_path, name, message):
  (tmp_path / 'x.pkl').write_bytes(b'')
  with pytest.raises(ValueError, match=f'PATH.*{message}'):
    networks.load(networks.network('llama'), tmp_path / name)
