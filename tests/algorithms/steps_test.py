"""Steps as a whole: meshes agree, samples are constants, errors are early."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ipo_md.algorithms import losses
from ipo_md.algorithms import objective
from ipo_md.algorithms import players as players_lib
from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.games import tabular
from ipo_md.judges import learned
from ipo_md.models import model as model_lib
from ipo_md.sampling import mixture
from ipo_md.sampling import sequences
from tests.algorithms import small_steps

pytestmark = pytest.mark.slow

B, P, T, EOS = small_steps.B, small_steps.P, small_steps.T, small_steps.EOS
MODEL = small_steps.MODEL
OPTIMIZER = small_steps.OPTIMIZER
prompts = small_steps.prompts
labelled = small_steps.labelled
state_and_frozen = small_steps.state_and_frozen
JUDGE = small_steps.JUDGE
online = small_steps.online
offline = small_steps.offline


def test_int8_changes_samples_and_nothing_else_of_a_step():
  """The policy being the reference, each log-ratio is 0 whatever is drawn."""
  state, frozen = state_and_frozen()
  state = state.replace(params=frozen.reference)
  errors = {}
  for int8 in (False, True):
    step = online(sampler={'int8': int8})
    _, metrics = step(state, frozen, prompts(), jax.random.key(3))
    assert abs(float(metrics['log_ratio'])) < 1e-5
    errors[int8] = float(metrics['sampling_error'])
  assert errors[False] < 1e-5
  assert 1e-4 < errors[True] < 0.1


MESHES = [(2, 2, 2), (8, 1, 1), (1, 8, 1), (1, 1, 8)]


@pytest.mark.parametrize('mesh_shape', MESHES)
def test_meshes_sample_the_same_from_a_table(mesh_shape):
  """Each row's logits are looked up, not summed: the samples are equal."""
  model = model_lib.Model(
    functools.partial(tabular.Tabular, vocab_size=5, depth=4, prompts=3)
  )
  params, reference = (model.init(jax.random.key(seed)) for seed in range(2))
  batch = types.Tokens(
    ids=jnp.arange(B, dtype=jnp.int32)[:, None] % 3, mask=jnp.ones((B, 1), bool)
  )

  def draw(params, reference, batch):
    contexts = tuple(model.encode(p, batch) for p in (params, reference))
    return mixture.sample(
      model,
      params,
      reference,
      contexts,
      jax.random.key(3),
      mixture_coefs=(0.125, 0.5),
      max_new_tokens=4,
      eos_id=0,
      temperature=1.0,
      top_k=0,
      top_p=1.0,
    ).tokens

  expected = jax.device_get(jax.jit(draw)(params, reference, batch))
  mesh = sharding.make_mesh(mesh_shape)
  with jax.set_mesh(mesh):
    placed = sharding.params(mesh, params, model.logical_axes)
    found = jax.jit(draw)(
      jax.device_put(params, placed),
      jax.device_put(reference, placed),
      jax.device_put(batch, sharding.batch(mesh)),
    )
  assert len(np.unique(expected.ids)) == 5
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), expected)


@pytest.mark.parametrize(
  'mesh_shape',
  [
    (2, 2, 2),
    *(pytest.param(m, marks=pytest.mark.proof) for m in MESHES[1:]),
  ],
)
def test_meshes_agree_with_one_device(mesh_shape, monkeypatch):
  """Same samples, same metrics, same gradient of one online update."""
  if mesh_shape == (2, 2, 2):  # branches for shorter completions, too
    monkeypatch.setattr(sequences, 'LEAST_WIDTH', 2)
  state, frozen = state_and_frozen()
  gradient = optax.sgd(1.0)  # params - next params
  state = state.replace(opt_state=gradient.init(state.params))
  step = online(optimizer=gradient)
  rng = jax.random.key(7)
  expected, metrics = step(state, frozen, prompts(), rng)
  mesh = sharding.make_mesh(mesh_shape)
  placed = sharding.params(mesh, state.params, MODEL.logical_axes)
  with jax.set_mesh(mesh):
    put = lambda tree: jax.device_put(
      tree, sharding.like_params(mesh, tree, placed)
    )
    batch = jax.device_put(prompts(), sharding.batch(mesh))
    sharded = types.FrozenParams(
      reference=put(frozen.reference), judge=put(frozen.judge)
    )
    found, other = step(put(state), sharded, batch, rng)
  assert float(other['length']) == float(metrics['length'])
  assert float(other.pop('sampling_error')) < 1e-5
  assert float(metrics.pop('sampling_error')) < 1e-5
  for name in metrics:
    np.testing.assert_allclose(
      float(other[name]), float(metrics[name]), rtol=1e-5
    )
  small_steps.assert_same_update(found, expected, state)


def test_online_is_offline_on_what_was_sampled(monkeypatch):
  """One loss, one update: sampling adds nothing to the gradient."""
  seen = {}
  inner = objective.policy_loss

  def record(policy, labelled, **kwargs):
    seen['labelled'] = labelled
    return inner(policy, labelled, **kwargs)

  monkeypatch.setattr(objective, 'policy_loss', record)
  state, frozen = state_and_frozen()
  step = online().__wrapped__  # what a compiled step sees are tracers
  one, _ = step(state, frozen, prompts(), jax.random.key(3))
  batch = seen['labelled'].replace(reference_log_prob=None)
  monkeypatch.undo()
  other, _ = offline(functools.partial(losses.ipo, tau=0.1))(
    state, frozen, batch, None
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    one.params,
    other.params,
  )
  assert one.step == 1


@pytest.mark.parametrize('kind', ['preference', 'rewards'])
def test_likelihood_of_chosen_and_rejected(kind):
  state, frozen = state_and_frozen()
  batch = labelled(2 if kind == 'preference' else 3)
  log_probs, _ = sequences.log_probs(MODEL, state.params, batch.completions)
  log_prob = np.asarray(log_probs.sum(-1))
  if kind == 'preference':
    loss = functools.partial(losses.ipo, tau=0.1)
    batch = batch.replace(preference=batch.preference.at[0].set(0.5))
    best = np.where(batch.preference > 0.5, 0, 1)
    worst = 1 - best
  else:  # the best one of the first prompt is not there
    loss = functools.partial(losses.nca, beta=1.0, alpha=1.0)
    rewards = batch.rewards.at[0].set(jnp.array([3.0, 1.0, 2.0]))
    mask = batch.completion_mask.at[0, 0].set(False)
    batch = batch.replace(rewards=rewards, completion_mask=mask)
    best = np.argmax(np.asarray(rewards), -1)
    worst = np.argmin(np.asarray(rewards), -1)
    best[0], worst[0] = 2, 1
  rows = np.arange(B)
  chosen, rejected = log_prob[rows, best], log_prob[rows, worst]
  if kind == 'preference':  # a tie
    chosen[0] = rejected[0] = log_prob[0].mean()
  _, metrics = offline(loss)(state, frozen, batch, None)
  np.testing.assert_allclose(
    float(metrics['chosen_log_prob']), chosen.mean(), 1e-5
  )
  np.testing.assert_allclose(
    float(metrics['rejected_log_prob']), rejected.mean(), 1e-5
  )
  ranked = (np.sign(chosen - rejected) + 1) / 2
  assert 0 < ranked.mean() < 1
  np.testing.assert_allclose(float(metrics['ranking_accuracy']), ranked.mean())


def test_precomputed_reference_log_probs_replace_the_reference():
  state, frozen = state_and_frozen()
  batch = labelled()
  # One by one, the operations are the same in both.
  step = offline(functools.partial(losses.ipo, tau=0.1)).__wrapped__
  expected, _ = step(state, frozen, batch, None)
  log_probs, _ = sequences.log_probs(MODEL, frozen.reference, batch.completions)
  given = batch.replace(reference_log_prob=log_probs.sum(-1))
  found, _ = step(state, types.FrozenParams(), given, None)
  jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


def test_ema_follows_the_policy():
  state, frozen = state_and_frozen()
  state = state.replace(players={'average': frozen.reference})
  step = online(
    (0.0, 1.0),
    loss=functools.partial(losses.policy_gradient, tau=0.1),
    players=players_lib.Players(second='average', ema_decay=0.75),
  )
  after, _ = step(state, frozen, prompts(), jax.random.key(3))
  jax.tree.map(
    lambda new, old, params: np.testing.assert_allclose(
      new, 0.75 * old + 0.25 * params, atol=1e-6
    ),
    after.players['average'],
    state.players['average'],
    after.params,
  )


def test_an_indifferent_judge_and_equal_policies_give_no_gradient():
  """The control: at pi = pi_ref every step of IPO against 1/2 is zero."""
  state, frozen = state_and_frozen()
  frozen = frozen.replace(reference=jax.tree.map(jnp.copy, state.params))
  for coefs in ((0.0, 0.0), (0.125, 0.125)):
    _, metrics = online(coefs, judge=learned.indifferent)(
      state, frozen, prompts(), jax.random.key(3)
    )
    assert metrics['grad_norm'] < 1e-4
    assert abs(float(metrics['log_ratio'])) < 1e-5


def test_truncation_reward_replaces_rewards_of_cut_completions():
  state, frozen = state_and_frozen()
  step = online(
    (0.0,),
    loss=functools.partial(losses.reinforce, tau=0.1),
    sampler={'eos_id': 99},
    feedback={'truncation_reward': -3.0},
  )
  _, metrics = step(state, frozen, prompts(), jax.random.key(3))
  assert float(metrics['rewards']) == -3.0
  assert float(metrics['eos_rate']) == 0
  assert float(metrics['length']) == T


@pytest.mark.parametrize(
  ('sampler', 'share'),
  [({'temperature': 0.0}, 1.0), ({'top_p': 1e-6}, 1.0), ({'top_k': 1}, 1.0)],
)
def test_identical_pairs_are_counted(sampler, share):
  state, frozen = state_and_frozen()
  step = online((0.0, 0.0), sampler=sampler)
  _, metrics = step(state, frozen, prompts(), jax.random.key(3))
  assert float(metrics['identical_pairs']) == share


def test_pairs_that_differ_are_not_identical():
  tokens = labelled().completions.completions
  first = jax.tree.map(lambda x: x[:, :1], tokens)
  twice = jax.tree.map(lambda x: jnp.concatenate([x, x], axis=1), first)
  longer = twice.replace(mask=twice.mask.at[0, 1].set(True))
  measure = lambda x: float(objective.sample_metrics(x, EOS)['identical_pairs'])
  assert 'identical_pairs' not in objective.sample_metrics(first, EOS)
  assert measure(twice) == 1
  cut = int(not twice.mask[0, 0].all())
  assert measure(longer) == 1 - cut / B
  assert measure(tokens) < 1


def test_labels_are_made_of_the_preference():
  """The mean preference that the loss saw, for p = .2, .5 and .9."""
  p = jnp.array([0.2] * 3 + [0.5] * 2 + [0.9] * 3)

  def judge(params, completions):
    return learned.indifferent(params, completions).replace(preference=p)

  def mean_label(label):
    state, frozen = state_and_frozen()
    _, metrics = online(judge=judge, feedback={'label': label})(
      state, frozen, prompts(), jax.random.key(3)
    )
    return float(metrics['preference'])

  assert mean_label(None) == pytest.approx(float(p.mean()))
  assert mean_label(losses.hard_label) == (2 * 0.5 + 3) / 8
  assert mean_label(losses.sampled_label) * 8 in range(9)


@pytest.mark.parametrize(
  ('step', 'batch', 'message'),
  [
    (
      offline(functools.partial(losses.ipo, tau=0.1)),
      labelled().replace(preference=None),
      'ipo needs preference',
    ),
    (
      offline(functools.partial(losses.nca, beta=0.1, alpha=0.0)),
      labelled().replace(rewards=None),
      'nca needs rewards',
    ),
    (offline(functools.partial(losses.ipo, tau=-1.0)), labelled(), 'ipo.tau'),
    (
      offline(functools.partial(losses.dpo, beta=0.1)),
      labelled(3),
      'dpo needs 2 completions',
    ),
    (
      online(
        (0.0,),
        loss=functools.partial(losses.reinforce, tau=0.1),
        per_token=True,
      ),
      prompts(),
      'PER_TOKEN = True with LOSS = reinforce',
    ),
    (online((0.5, 1.5)), prompts(), 'MIXTURE_COEFS'),
    (online(0.5), prompts(), 'MIXTURE_COEFS'),
    (online((0.0,)), prompts(), 'ipo needs 2 completions.* MIXTURE_COEFS'),
    (
      online(
        (0.125, 0.125),
        loss=functools.partial(losses.policy_gradient, tau=0.1),
      ),
      prompts(),
      'only if y_1 is sampled from the policy itself.*MIXTURE_COEFS',
    ),
    (
      online((0.0, 0.5), loss=functools.partial(losses.reinforce, tau=0.1)),
      prompts(),
      'only if every completion is sampled .*MIXTURE_COEFS',
    ),
    (
      online(feedback={'truncation_reward': 0.0}),
      prompts(),
      'TRUNCATION_REWARD',
    ),
    (
      online(
        (0.0,),
        loss=functools.partial(losses.reinforce, tau=0.1),
        feedback={'label': losses.hard_label},
      ),
      prompts(),
      'LABEL',
    ),
  ],
)
def test_errors_come_when_the_step_is_traced(step, batch, message):
  state, frozen = state_and_frozen()
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(step, state, frozen, batch, jax.random.key(0))


def test_a_temperature_out_of_range_is_refused_with_the_sampler():
  with pytest.raises(ValueError, match='TEMPERATURE'):
    online(sampler={'temperature': -1.0})
