"""Tests that a step in parts equals the step on the whole batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ipo_md.algorithms import judge_training
from ipo_md.algorithms import losses
from ipo_md.algorithms import objective
from ipo_md.algorithms import offline
from ipo_md.algorithms import online
from ipo_md.algorithms import supervised
from ipo_md.core import averages
from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.judges import learned
from ipo_md.models import model as model_lib
from ipo_md.models import t5
from ipo_md.optim import accumulation
from ipo_md.sampling import sampler

pytestmark = pytest.mark.slow

MODEL = model_lib.Model(
  functools.partial(
    t5.T5,
    vocab_size=32,
    emb_dim=8,
    num_heads=2,
    head_dim=4,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_dim=8,
    mlp_activations=('relu',),
    logits_via_embedding=True,
    dropout_rate=0.0,
  )
)
OPTIMIZER = optax.adam(0.1)


def tokens(seed: int, *shape: int) -> types.Tokens:
  """Makes tokens of all lengths, so that parts differ in their token count."""
  ids = jax.random.randint(jax.random.key(seed), shape, 2, 32)
  length = 1 + jnp.arange(np.prod(shape[:-1])).reshape(shape[:-1]) % shape[-1]
  mask = jnp.arange(shape[-1]) < length[..., None]
  return types.Tokens(ids=jnp.where(mask, ids, 0), mask=mask)


BATCH = types.Labelled(
  completions=types.Completions(
    prompts=tokens(1, 8, 5), completions=tokens(2, 8, 2, 4)
  ),
  completion_mask=jnp.ones((8, 2), bool),
  preference=jnp.linspace(0, 1, 8),
)
# Some completions are missing, in one part more than in another.
MASKED = types.Labelled(
  completions=BATCH.completions,
  completion_mask=jnp.ones((8, 2), bool).at[::4, 1].set(False),
  rewards=jax.random.normal(jax.random.key(3), (8, 2)),
)
STEPS = {
  'supervised': (
    functools.partial(supervised.supervised_step, z_loss=1e-4),
    BATCH,
    supervised.target_tokens,
  ),
  'offline': (
    functools.partial(
      offline.offline_step, loss=functools.partial(losses.ipo, tau=0.1)
    ),
    BATCH,
    None,
  ),
  'masked': (
    functools.partial(
      offline.offline_step, loss=functools.partial(losses.nca, beta=1, alpha=1)
    ),
    MASKED,
    None,
  ),
  'judge': (
    functools.partial(
      judge_training.reward_step,
      judge=lambda params, completions, *, model, rng: learned.likelihood(
        params, completions, model=model
      ),
    ),
    BATCH,
    None,
  ),
  # Greedy sampling does not depend on the key.
  'online': (
    functools.partial(
      online.online_step,
      loss=functools.partial(losses.ipo, tau=0.1),
      feedback=objective.Feedback(
        judge=functools.partial(learned.likelihood, model=MODEL)
      ),
      mixture_coefs=(0.0, 0.5),
      sampler=sampler.Sampler(max_new_tokens=4, eos_id=1, temperature=0.0),
    ),
    BATCH.completions.prompts,
    None,
  ),
}


@pytest.mark.parametrize('name', STEPS)
def test_the_update_of_parts_is_that_of_the_batch(name):
  step, batch, weight = STEPS[name]
  params = MODEL.init(jax.random.key(0))
  state = types.TrainState(
    step=jnp.int32(3), params=params, opt_state=OPTIMIZER.init(params)
  )
  frozen = types.FrozenParams(
    reference=MODEL.init(jax.random.key(1)),
    judge=MODEL.init(jax.random.key(2)),
  )

  def after(parts):
    whole = accumulation.accumulate(step, parts=parts, weight=weight)
    whole = functools.partial(whole, model=MODEL, optimizer=OPTIMIZER)
    return jax.jit(whole)(state, frozen, batch, jax.random.key(4))

  (expected, metrics), (actual, means) = after(1), after(4)
  assert actual.step == expected.step == 4
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
    (actual.params, actual.opt_state),
    (expected.params, expected.opt_state),
  )
  found, whole = averages.values(means), averages.values(metrics)
  assert found.pop('sampling_error', 0) < 1e-6
  assert whole.pop('sampling_error', 0) < 1e-6
  assert found == pytest.approx(whole, rel=1e-4)


def test_a_player_that_changes_is_refused():
  step, batch, _ = STEPS['online']
  params = MODEL.abstract_params
  state = types.TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=None,
    players={'average': params},
  )
  whole = accumulation.accumulate(step, parts=2)
  with pytest.raises(
    ValueError, match='MICROBATCHES = 2 with a player.*average'
  ):
    whole(state, None, batch, None, model=MODEL, optimizer=OPTIMIZER)


@pytest.mark.parametrize('parts', [0, 3, 4])
def test_parts_that_do_not_divide_name_all_sizes(parts):
  mesh = sharding.make_mesh((1, 8, 1))
  accumulation.check(16, 2, mesh)
  with pytest.raises(
    ValueError, match=f'BATCH_SIZE 16 .* 8 x MICROBATCHES {parts}:'
  ):
    accumulation.check(16, parts, mesh)
