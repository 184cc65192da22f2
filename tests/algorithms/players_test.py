"""Tests of the players beside the policy: refresh, meshes, LoRA, errors."""

import functools
import re

import jax
import numpy as np
import optax
import pytest

from ipo_md.algorithms import iterative_losses
from ipo_md.algorithms import losses
from ipo_md.algorithms import objective
from ipo_md.algorithms import online as online_lib
from ipo_md.algorithms import players as players_lib
from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.judges import learned
from ipo_md.sampling import sampler
from tests.algorithms import small_steps
from tests.models import lora_networks

Players = players_lib.Players
INPO = functools.partial(iterative_losses.inpo, tau=0.1, eta=0.3)
ROUNDS = Players(second='snapshot', snapshot_steps=2, reference_steps=3)


def start(players, optimizer=small_steps.OPTIMIZER):
  state, frozen = small_steps.state_and_frozen()
  state = state.replace(
    opt_state=optimizer.init(state.params), players=players.first(state.params)
  )
  return state, frozen


@pytest.mark.slow
def test_snapshot_and_reference_are_refreshed_in_time():
  state, frozen = start(ROUNDS)
  step = small_steps.online((1.0, 1.0), loss=INPO, players=ROUNDS)
  before = []
  for n in range(7):
    before.append(state.params)
    state, metrics = step(
      state, frozen, small_steps.prompts(), jax.random.key(n)
    )
    taken = before[n - n % 2], before[n - n % 3]
    for name, wanted in zip(('snapshot', 'reference'), taken, strict=True):
      jax.tree.map(np.testing.assert_array_equal, state.players[name], wanted)
    # Where the policy is the snapshot, it is what is sampled from.
    assert float(metrics['sampling_error']) < 1e-5
    assert (abs(float(metrics['log_ratio'])) < 1e-5) == (n % 3 == 0)


@pytest.mark.proof
def test_a_mesh_gives_the_step_of_one_device():
  gradient = optax.sgd(1.0)  # params - next params
  state, frozen = start(ROUNDS, gradient)
  state = state.replace(
    step=state.step + 1,
    players=state.players | {'snapshot': frozen.reference},
  )
  step = small_steps.online(
    (1.0, 1.0), loss=INPO, players=ROUNDS, optimizer=gradient
  )
  expected, _ = step(state, frozen, small_steps.prompts(), jax.random.key(7))
  mesh = sharding.make_mesh((2, 2, 2))
  placed = sharding.params(mesh, state.params, small_steps.MODEL.logical_axes)
  with jax.set_mesh(mesh):
    put = lambda tree: jax.device_put(
      tree, sharding.like_params(mesh, tree, placed)
    )
    found, _ = step(
      put(state),
      types.FrozenParams(
        reference=put(frozen.reference), judge=put(frozen.judge)
      ),
      jax.device_put(small_steps.prompts(), sharding.batch(mesh)),
      jax.random.key(7),
    )
  small_steps.assert_same_update(found, expected, state)


def test_players_of_lora_are_copies_of_the_adapters():
  model = lora_networks.network('decoder')
  params, frozen = lora_networks.trained(model)
  optimizer = optax.sgd(0.1)
  state = types.TrainState(
    step=np.int32(0),
    params=params,
    opt_state=optimizer.init(params),
    players=ROUNDS.first(params),
  )
  step = functools.partial(
    online_lib.online_step,
    model=model,
    feedback=objective.Feedback(judge=learned.indifferent),
    loss=INPO,
    optimizer=optimizer,
    mixture_coefs=(1.0, 1.0),
    players=ROUNDS,
    sampler=sampler.Sampler(max_new_tokens=5, eos_id=1),
  )
  after, _ = jax.eval_shape(
    step, state, frozen, lora_networks.PROMPTS, jax.random.key(0)
  )
  shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)
  assert set(after.players) == {'reference', 'snapshot'}
  for held in after.players.values():
    assert shapes(held) == shapes(params) != shapes(frozen.reference)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'second': 'nobody'}, "PLAYER = 'nobody': the players are 'reference'"),
    ({'second': 'snapshot'}, "PLAYER = 'snapshot' needs .*SNAPSHOT_STEPS"),
    ({'second': 'average'}, "PLAYER = 'average' needs .*EMA_DECAY"),
    ({'snapshot_steps': 0}, 'SNAPSHOT_STEPS = 0 must be at least 1'),
    ({'reference_steps': -2}, 'REFERENCE_STEPS = -2 must be at least 1'),
    ({'ema_decay': 1.5}, r'EMA_DECAY = 1.5 is not in \[0, 1\]'),
  ],
)
def test_players_that_cannot_be_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    Players(**settings)


def test_a_player_that_is_missing_is_named_before_compilation():
  state, frozen = small_steps.state_and_frozen()
  given = small_steps.prompts(), jax.random.key(3)

  def message(state=state, frozen=frozen, **kwargs):
    step = small_steps.online((0.0, 0.0), **kwargs)
    with pytest.raises(ValueError) as caught:
      jax.eval_shape(step, state, frozen, *given)
    return str(caught.value)

  assert re.match(
    'LOSS = inpo needs .*: set SNAPSHOT_STEPS', message(loss=INPO)
  )
  assert 'training.Start.players' in message(loss=INPO, players=ROUNDS)
  held = state.replace(players=ROUNDS.first(state.params))
  assert 'training.Start.players' in message(held)
  alone = types.FrozenParams(judge=frozen.judge)
  only = Players(snapshot_steps=2)
  taken = state.replace(players=only.first(state.params))
  assert 'REFERENCE_CHECKPOINT_PATH' in message(
    taken, alone, loss=INPO, players=only
  )
  with pytest.raises(ValueError, match='LOSS = inpo needs a snapshot .*online'):
    small_steps.offline(INPO)(state, frozen, small_steps.labelled(), None)


def test_a_reference_that_moves_needs_no_checkpoint():
  state, frozen = start(ROUNDS)
  step = small_steps.online((1.0, 1.0), loss=INPO, players=ROUNDS)
  alone = types.FrozenParams(judge=frozen.judge)
  jax.eval_shape(step, state, alone, small_steps.prompts(), jax.random.key(0))


@pytest.mark.parametrize('given', ['matrix', 'rewards', 'preference'])
def test_every_judge_gives_a_matrix(given):
  batch = small_steps.labelled()
  p, r = np.array(batch.preference), np.array(batch.rewards)
  wanted = p
  if given == 'rewards':
    wanted = 1 / (1 + np.exp(r[:, 1] - r[:, 0]))
  if given == 'matrix':  # y_i is shown first
    shown = np.full((len(p), 2, 2), 0.5, np.float32)
    shown[:, 0, 1], shown[:, 1, 0] = p, 0.2
    batch, wanted = batch.replace(matrix=shown), (p + 0.8) / 2
  if given == 'preference':
    batch = batch.replace(rewards=None)
  matrix = np.array(objective.matrix_of(batch))
  np.testing.assert_allclose(matrix[:, 0, 1], wanted, atol=1e-6)
  np.testing.assert_allclose(matrix + matrix.swapaxes(1, 2), 1, atol=1e-6)


def test_the_losses_by_hand():
  rho = np.array([[0.3, -0.2]], np.float32)
  other = np.array([[0.1, 0.5]], np.float32)
  found = INPO(rho, np.array([0.7]), snapshot_log_ratios=other)
  d = 0.5 / 3 - 0.4 * 2 / 3
  wanted = 0.7 * (d - 1 / 0.6) ** 2 + 0.3 * (-d - 1 / 0.6) ** 2
  np.testing.assert_allclose(found, [wanted], rtol=1e-5)
  same = functools.partial(iterative_losses.inpo, tau=0.3, eta=0.3)
  np.testing.assert_allclose(
    same(rho, np.array([0.7]), snapshot_log_ratios=other),
    losses.ipo(rho, np.array([0.7]), tau=0.3),
    rtol=1e-5,
  )
  matrix = np.array([[[0.5, 0.9], [0.1, 0.5]]])
  found = iterative_losses.sppo(rho, matrix, eta=2.0)
  wanted = ((0.3 - 0.4) ** 2 + (-0.2 + 0.4) ** 2) / 2
  np.testing.assert_allclose(found, [wanted], rtol=1e-5)
  found = iterative_losses.rebel(
    rho,
    np.array([[1.0, 0.4]]),
    reference_log_ratios=other,
    tau=0.5,
    eta=2.0,
  )
  three = np.array([[0.3, -0.2, 0.9]], np.float32)
  matrix = np.array([[[0.5, 0.9, 0.7], [0.1, 0.5, 0.4], [0.3, 0.6, 0.5]]])
  np.testing.assert_allclose(
    iterative_losses.egpo(three, matrix, tau=0.5),
    [(0.5 - 0.3 / 0.5) ** 2],
    rtol=1e-4,
  )
  target = 0.6 - 0.5 * ((0.1 - 0.3) - (0.5 + 0.2))
  np.testing.assert_allclose(found, [(0.5 - 2 * target) ** 2], rtol=1e-5)


@pytest.mark.parametrize(
  ('loss', 'message'),
  [
    (
      functools.partial(iterative_losses.inpo, tau=0.3, eta=0.1),
      'at least tau',
    ),
    (functools.partial(iterative_losses.inpo, tau=0.0, eta=0.1), 'tau = 0'),
    (functools.partial(iterative_losses.rebel, tau=0.1, eta=0.0), 'eta = 0'),
    (functools.partial(iterative_losses.sppo, eta=-1.0), 'eta = -1'),
  ],
)
def test_settings_out_of_range_are_refused(loss, message):
  rho = np.zeros((1, 2), np.float32)
  keywords = {
    'inpo': {'snapshot_log_ratios': rho},
    'rebel': {'reference_log_ratios': rho},
  }.get(loss.func.__name__, {})
  feedback = {'inpo': np.zeros(1), 'rebel': rho, 'sppo': np.zeros((1, 2, 2))}
  with pytest.raises(ValueError, match=message):
    loss(rho, feedback[loss.func.__name__], **keywords)
