"""Checks the samples of policies and what identifies them."""

import functools
import math
import shutil

import comparison
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipo_md.checkpoints import load
from ipo_md.checkpoints import manager
from ipo_md.core import part_store
from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.evaluation import drawing
from ipo_md.sampling import sampler as sampler_lib
from ipo_md.sampling import sequences
from tasks.mini_tldr import tasks

pytestmark = pytest.mark.slow


def test_policies_do_not_share_noise(tmp_path, paths):
  parts = part_store.Folder(str(tmp_path))
  mesh = sharding.make_mesh((1, -1, 1))
  prompts = drawing.Prompts(
    dataset=lambda: comparison.dataset('mini_tldr_prompts', True),
    examples=comparison.EXAMPLES,
    batch_size=8,
  )
  sampler = sampler_lib.Sampler(max_new_tokens=4, eos_id=1)
  with jax.set_mesh(mesh):
    draw = drawing.drawer(
      comparison.MODEL, prompts, prompts.load(), paths['supervised'], 0, parts
    )
    one, again, other = (
      draw(name, paths['ipo'], sampler, k=2) for name in ('a', 'a', 'b')
    )
  assert one.samples.texts == again.samples.texts
  assert one.samples.texts != other.samples.texts
  # The log-probabilities are those of teacher forcing.
  tokens = one.samples.tokens
  for path, expected in (
    (paths['ipo'], one.log_prob),
    (paths['supervised'], one.log_prob - one.log_ratio),
  ):
    params = load.load_params(
      path, comparison.MODEL, sharding.make_mesh((1, -1, 1)), name=''
    )
    found, _ = jax.jit(
      functools.partial(sequences.log_probs, comparison.MODEL)
    )(params, tokens)
    np.testing.assert_allclose(found.sum(-1), expected, rtol=1e-5)


def test_parts_of_another_recipe_are_not_found(tmp_path):
  parts = part_store.Folder(str(tmp_path))
  parts.put('samples', '../a b/ü"', {'seed': 0}, [{'p': math.nan}, {'p': 0.1}])
  (row, other) = parts.get('samples', '../a b/ü"', {'seed': 0})
  assert math.isnan(row['p'])
  assert other == {'p': 0.1}
  assert parts.get('samples', '../a b/ü"', {'seed': 1}) is None
  assert [p.parent.name for p in tmp_path.rglob('*.jsonl')] == ['samples']


def test_a_new_checkpoint_at_the_same_path_has_another_identity(
  paths, tmp_path
):
  state = types.TrainState(
    step=jnp.int32(1),
    params=comparison.MODEL.init(jax.random.key(9)),
    opt_state=(),
  )
  found = []
  for _ in range(2):
    with manager.open_manager(
      str(tmp_path / 'run'), keep=manager.Keep()
    ) as saved:
      manager.save(saved, state, tasks.VOCABULARY)
      manager.wait(saved)
    found.append(load.identity(str(tmp_path / 'run'), ''))
    shutil.rmtree(tmp_path / 'run')
  assert found[0] != found[1]
  assert load.identity(paths['ipo'], '') == load.identity(paths['ipo'], '')
