"""Tests of what objectives declare: references, own samples, completions."""

import functools

import jax
import numpy as np
import pytest

from ipo_md.algorithms import losses
from ipo_md.algorithms import needs
from ipo_md.core import types
from tests.algorithms import small_steps

state_and_frozen = small_steps.state_and_frozen
online, offline = small_steps.online, small_steps.offline
prompts, labelled = small_steps.prompts, small_steps.labelled


@needs.declare(feedback='preference', completions=2, anchors=())
def reference_free(log_prob, preference):
  """A pairwise loss on log pi alone."""
  return losses.dpo(log_prob, preference, beta=0.5)


@pytest.mark.slow
def test_a_reference_free_objective_needs_no_reference():
  """The step runs without one, and equals one whose reference is uniform."""
  state, frozen = state_and_frozen()
  alone = types.FrozenParams(judge=frozen.judge)
  step = online((0.0, 0.0), loss=reference_free)
  after, metrics = step(state, alone, prompts(), jax.random.key(3))
  assert float(metrics['log_prob']) < 0
  assert 'log_ratio' not in metrics
  with_one, _ = step(state, frozen, prompts(), jax.random.key(3))
  jax.tree.map(np.testing.assert_array_equal, after.params, with_one.params)
  batch = labelled()
  offline(reference_free)(state, alone, batch, None)
  for wrong in (online((0.0, 0.0)), online((0.5, 0.5), loss=reference_free)):
    with pytest.raises(ValueError, match='REFERENCE_CHECKPOINT_PATH'):
      wrong(state, alone, prompts(), jax.random.key(3))
  with pytest.raises(ValueError, match='REFERENCE_CHECKPOINT_PATH'):
    offline(functools.partial(losses.ipo, tau=0.1))(state, alone, batch, None)


def test_an_objective_that_declares_nothing_says_how():
  state, frozen = state_and_frozen()
  step = online(loss=lambda log_ratios, preference: log_ratios[:, 0])
  with pytest.raises(ValueError, match='does not declare .* @needs.declare'):
    step(state, frozen, prompts(), jax.random.key(3))
