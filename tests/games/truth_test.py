"""Checks that the online step converges to where the theory says."""

import functools
import json
import pathlib

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ipo_md.algorithms import iterative_losses
from ipo_md.algorithms import losses
from ipo_md.algorithms import objective
from ipo_md.algorithms import online
from ipo_md.algorithms import players as players_lib
from ipo_md.algorithms import related_losses
from ipo_md.core import types
from ipo_md.games import closed_forms
from ipo_md.games import exact as exact_lib
from ipo_md.games import game as game_lib
from ipo_md.games import limits
from ipo_md.games import play
from ipo_md.games import tabular
from ipo_md.models import model as model_lib
from ipo_md.models import t5
from ipo_md.optim import optimizers
from ipo_md.optim import schedules
from ipo_md.sampling import mixture
from ipo_md.sampling import sampler
from ipo_md.sampling import sequences

pytestmark = pytest.mark.slow

CYCLE = game_lib.cyclic(p_12=0.95, p_23=0.8, p_31=0.6)
FIVE = [game_lib.random(seed=seed, actions=5) for seed in range(5)]
EXPLOITABILITY = 1e-3


def bound(loss, **hyper):
  return functools.update_wrapper(functools.partial(loss, **hyper), loss)


def trained(
  played,
  loss,
  mixture_coefs,
  *,
  train_steps=250,
  batch_size=4096,
  players=players_lib.Players(),
):
  """Returns logits [G, nodes, V] before and after training."""
  rate = schedules.linear(
    learning_rate=0.1, warmup_steps=0, decay_steps=train_steps
  )
  run = play.train(
    played,
    step=functools.partial(
      online.online_step,
      loss=loss,
      mixture_coefs=mixture_coefs,
    ),
    players=players,
    optimizer=optimizers.adam(None, learning_rate=rate, b1=0.0),
    train_steps=train_steps,
    batch_size=batch_size,
    start_stddev=1.0,
    rng=jax.random.key(0),
  )
  return run[0], run[-1]


def assert_nash(played, loss, mixture_coefs, tau, **kwargs):
  """Checks that the sampler's mixture reaches the Nash equilibrium.

  The equilibrium is that at temperature tau / (1 - b).
  """
  before, after = trained(played, loss, mixture_coefs, **kwargs)
  b = 0.0 if 'players' in kwargs else max(mixture_coefs)
  for game, first, last in zip(played, before, after, strict=True):
    reference = game_lib.policy_of(game.reference)
    gain = [
      exact_lib.exploitability(
        game_lib.token_mixture(logits, game.reference, b),
        game.preference,
        reference,
        tau=tau / (1 - b),
      )
      for logits in (first, last)
    ]
    assert gain[0] > 10 * EXPLOITABILITY  # The start is far away.
    assert gain[1] < EXPLOITABILITY
    wanted = closed_forms.mixture_fixed_point(
      game.preference, reference, tau=tau, mixture_coef=b
    )
    assert exact_lib.kl(wanted, game_lib.policy_of(last)) < 2e-3


NASH = {
  'online IPO': (losses.ipo, (0.0, 0.0), {}),
  'IPO-MD(.125)': (losses.ipo, (0.125, 0.125), {}),
  'IPO-MD(.5)': (losses.ipo, (0.5, 0.5), {}),
  'Nash-MD-PG(0)': (losses.policy_gradient, (0.0, 0.0), {}),
  'Nash-MD-PG(.125)': (losses.policy_gradient, (0.0, 0.125), {}),
  'Nash-EMA': (
    losses.policy_gradient,
    (0.0, 1.0),
    {'players': players_lib.Players(second='average', ema_decay=0.9)},
  ),
}


@pytest.mark.parametrize(
  'name, tau', [(n, 0.1) for n in NASH] + [(n, 0.5) for n in list(NASH)[:4]]
)
def test_the_equilibrium_of_the_cyclic_game_is_reached(name, tau):
  loss, mixture_coefs, kwargs = NASH[name]
  assert_nash([CYCLE] * 2, bound(loss, tau=tau), mixture_coefs, tau, **kwargs)


@pytest.mark.parametrize('name', list(NASH)[:4])
def test_the_equilibria_of_random_games_are_reached(name):
  loss, mixture_coefs, kwargs = NASH[name]
  assert_nash(FIVE, bound(loss, tau=0.5), mixture_coefs, 0.5, **kwargs)


def test_two_tokens_reach_the_equilibrium_of_sequences():
  tree = game_lib.tree(seed=0, vocab_size=3)
  assert_nash([tree], bound(losses.ipo, tau=0.5), (0.0, 0.0), 0.5)


def test_online_dpo_stops_elsewhere():
  beta = 0.5
  loss = bound(losses.dpo, beta=beta)
  end = limits.limit(CYCLE, loss=loss, mixture_coefs=(0.0, 0.0))
  _, after = trained([CYCLE], loss, (0.0, 0.0))
  policy = game_lib.policy_of(after[0])
  assert exact_lib.kl(end, policy) < 2e-3
  uniform = np.full(3, 1 / 3)
  gain = exact_lib.exploitability(policy, CYCLE.preference, uniform, tau=beta)
  start = exact_lib.exploitability(uniform, CYCLE.preference, uniform, tau=beta)
  assert gain > 2 * start  # It is further from Nash than the reference.


REWARDED = {
  'RL': (bound(losses.reinforce, tau=0.2), 1, 0.2),
  'RL, K = 4': (bound(losses.reinforce, tau=0.2), 4, 0.2),
  'InfoNCA, K = 4': (bound(losses.info_nca, beta=0.5, alpha=0.4), 4, 0.2),
  'NCA, K = 3': (bound(losses.nca, beta=0.5, alpha=0.4), 3, None),
}


@pytest.mark.parametrize('name', REWARDED)
def test_the_optimum_of_a_reward_is_reached(name):
  loss, k, temperature = REWARDED[name]
  game = FIVE[0]
  end = limits.limit(game, loss=loss, mixture_coefs=(0.0,) * k)
  if temperature is not None:
    wanted = exact_lib.tilt(
      game_lib.policy_of(game.reference), game.rewards / temperature
    )
    np.testing.assert_allclose(end, wanted, atol=1e-6)
  before, after = trained([game], loss, (0.0,) * k)
  assert exact_lib.kl(end, game_lib.policy_of(before[0])) > 0.05
  assert exact_lib.kl(end, game_lib.policy_of(after[0])) < 1e-3


# Each entry has a loss, mixture coefficients and further arguments of the step.
GRADIENT = {
  'IPO-MD(.3)': (bound(losses.ipo, tau=0.5), (0.3, 0.3), {}),
  # A label sampled from the preference has the same mean gradient.
  'IPO, sampled label': (
    bound(losses.ipo, tau=0.5),
    (0.0, 0.0),
    {'label': losses.sampled_label},
  ),
  'DPO': (bound(losses.dpo, beta=0.5), (0.0, 0.0), {}),
  'SLiC': (bound(losses.slic, beta=0.5), (0.0, 0.0), {}),
  'Nash-MD-PG(.3)': (bound(losses.policy_gradient, tau=0.5), (0.0, 0.3), {}),
  'RL': (bound(losses.reinforce, tau=0.5), (0.0,), {}),
  'NCA': (bound(losses.nca, beta=0.5, alpha=0.1), (0.0,) * 3, {}),
  'XPO': (bound(related_losses.xpo, beta=0.5, alpha=0.2), (0.0, 1.0), {}),
  'SimPO': (bound(related_losses.simpo, beta=2.0, gamma=0.5), (0.0, 0.0), {}),
  'APO-zero': (bound(related_losses.apo_zero, beta=1.0), (0.0, 0.0), {}),
  'APO-down': (bound(related_losses.apo_down, beta=1.0), (0.0, 0.0), {}),
  'EGPO': (bound(iterative_losses.egpo, tau=0.5), (0.3, 0.3, 0.0), {}),
  'OPO': (
    bound(related_losses.neural_ndcg, beta=1.0, temperature=1.0),
    (0.0,) * 3,
    {},
  ),
}


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.proof)
    if name.startswith('APO')  # by hand in related_losses_test
    else name
    for name in GRADIENT
  ],
)
def test_the_mean_gradient_of_the_step_is_the_enumerated_one(name):
  loss, mixture_coefs, feedback = GRADIENT[name]
  shape = game_lib.tree(seed=1, vocab_size=3).reference.shape
  table = 1.5 * np.random.default_rng(0).normal(size=shape)
  assert_mean_gradient(loss, mixture_coefs, table, feedback=feedback)


def assert_mean_gradient(
  loss, mixture_coefs, table, *, feedback=(), snapshot=None
):
  """Compares the step with the enumeration, on a tree of two tokens.

  Args:
    loss: Objective.
    mixture_coefs: Weights of the second player.
    table: Logits of the policy.
    feedback: Further arguments of `objective.Feedback`.
    snapshot: Logits of the snapshot that is the second player, or None.
  """
  tree = game_lib.tree(seed=1, vocab_size=3)
  copies, batch_size = 64, 2**15
  optimizer = optax.sgd(1.0)
  same = lambda x: jnp.array(np.stack([x] * copies), jnp.float32)
  params = {'table': same(table)}
  players, held = players_lib.Players(), {}
  if snapshot is not None:
    players = players_lib.Players(second='snapshot', snapshot_steps=10)
    held = {'snapshot': {'table': same(snapshot)}}
  step = functools.partial(
    online.online_step,
    model=tree_model(prompts=copies),
    players=players,
    feedback=objective.Feedback(judge=game_lib.matrix_judge, **dict(feedback)),
    loss=loss,
    optimizer=optimizer,
    mixture_coefs=mixture_coefs,
    sampler=sampler.Sampler(max_new_tokens=2, eos_id=-1),
  )
  state, _ = jax.jit(step)(
    types.TrainState(
      jnp.int32(3), params, optimizer.init(params), players=held
    ),
    types.FrozenParams(
      reference={'table': same(tree.reference)},
      judge={
        'preference': same(tree.preference),
        'rewards': same(tree.rewards),
      },
    ),
    types.Tokens(
      jnp.arange(batch_size)[:, None] % copies,
      jnp.ones((batch_size, 1), bool),
    ),
    jax.random.key(0),
  )
  # Each table is an independent estimate from batch_size / copies prompts.
  found = copies * np.array(params['table'] - state.params['table'])
  exact = limits.expected_gradient(
    tree, loss=loss, mixture_coefs=mixture_coefs, snapshot=snapshot
  )(table)
  error = found.std(axis=0, ddof=1) / np.sqrt(copies)
  assert (np.abs(found.mean(axis=0) - exact) < 4 * error + 1e-5).all()
  assert (np.abs(exact) > 8 * error).any()  # The test can tell them apart.


def tree_model(prompts=1):
  return model_lib.Model(
    functools.partial(tabular.Tabular, vocab_size=3, depth=2, prompts=prompts)
  )


def test_policy_and_reference_keep_their_own_cache():
  # A table could not show this: its cache is the place in the tree, which is
  # the same for both.
  model = model_lib.Model(
    functools.partial(
      t5.T5,
      vocab_size=16,
      emb_dim=8,
      num_heads=2,
      head_dim=4,
      num_encoder_layers=1,
      num_decoder_layers=1,
      mlp_dim=8,
      mlp_activations=('gelu',),
      logits_via_embedding=False,
      dropout_rate=0.0,
      scan=False,
    )
  )
  params = [
    jax.tree.map(lambda x: 4 * x, jax.jit(model.init)(jax.random.key(i)))
    for i in range(2)
  ]
  prompts = types.Tokens(
    jnp.arange(12).reshape(4, 3) % 16, jnp.ones((4, 3), bool)
  )

  @jax.jit
  def sampled_and_read(rng):
    sampled = mixture.sample(
      model,
      *params,
      tuple(model.encode(p, prompts) for p in params),
      rng,
      mixture_coefs=(0.5, 0.5),
      max_new_tokens=5,
      eos_id=-1,
    )
    completions = types.Completions(prompts, sampled.tokens)
    read = [sequences.log_probs(model, p, completions)[0] for p in params]
    return (sampled.policy_log_probs, sampled.reference_log_probs), tuple(read)

  sampled, read = sampled_and_read(jax.random.key(2))
  assert np.abs(read[0] - read[1]).max() > 0.5
  for one, other in zip(sampled, read, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize('algorithm', ['ipo_md', 'nash_ema', 'rl'])
def test_the_run_file_plays(algorithm, tmp_path, capsys):
  root = pathlib.Path(__file__).parents[2] / 'gin'
  gin.clear_config()
  gin.parse_config_files_and_bindings(
    [root / 'runs/game.gin', root / f'algorithms/{algorithm}.gin'],
    [
      f"MODEL_DIR = '{tmp_path}'",
      'TRAIN_STEPS = 4',
      'BATCH_SIZE = 64',
      'STARTS = 2',
    ],
  )
  gin.query_parameter('RUN/gin.macro.value').scoped_configurable_fn()
  gin.clear_config()
  rows = [json.loads(r) for r in (tmp_path / 'game.jsonl').open()]
  assert [(r['start'], r['step']) for r in rows] == [
    (start, n) for start in range(2) for n in range(5)
  ]
  for row in rows:
    assert row['exploitability'] > 0 and row['kl_limit'] > -1e-12
    assert ('mixture_kl' in row) == (algorithm == 'ipo_md')
  assert (tmp_path / 'game.png').stat().st_size > 10_000
  assert 'start 1 step 4 exploitability' in capsys.readouterr().out


@pytest.mark.parametrize(
  'alpha', [pytest.param(0.0, marks=pytest.mark.proof), 0.01]
)
def test_xpo_stops_where_its_gradient_does(alpha):
  """Exploration takes probability from what the reference samples most."""
  loss = bound(related_losses.xpo, beta=0.5, alpha=alpha)
  game = FIVE[0]
  end = limits.limit(game, loss=loss, mixture_coefs=(0.0, 1.0))
  before, after = trained([game], loss, (0.0, 1.0))
  assert exact_lib.kl(end, game_lib.policy_of(before[0])) > 0.05
  assert exact_lib.kl(end, game_lib.policy_of(after[0])) < 2e-3
  if alpha:
    plain = limits.limit(
      game,
      loss=bound(related_losses.xpo, beta=0.5, alpha=0.0),
      mixture_coefs=(0.0, 1.0),
    )
    most = np.argmax(game_lib.policy_of(game.reference))
    assert end[most] < plain[most]


def test_a_trained_best_response_finds_the_exploitability():
  """gin/algorithms/best_response.gin, against the reference of each game."""
  _, after = trained(FIVE, bound(losses.policy_gradient, tau=0.001), (0.0, 1.0))
  for game, logits in zip(FIVE, after, strict=True):
    fixed = game_lib.policy_of(game.reference)
    found = game_lib.policy_of(logits) @ game.preference @ fixed - 0.5
    exact = exact_lib.exploitability(fixed, game.preference, fixed, tau=1e-6)
    assert exact > 0.05
    assert 0.9 * exact < found < exact + 1e-6
