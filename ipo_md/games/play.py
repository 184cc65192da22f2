"""Trains an algorithm on a game that can be solved exactly.

A tabular policy is trained by the same online step as a language model, with a
preference matrix as judge, and compared with the game's Nash equilibrium and
with the algorithm's own limit, found by enumeration.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import json
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ipo_md import algorithms
from ipo_md import models
from ipo_md import sampling
from ipo_md.algorithms import needs
from ipo_md.core import types
from ipo_md.games import exact
from ipo_md.games import figure as figure_lib
from ipo_md.games import game as game_lib
from ipo_md.games import tabular

_NO_EOS = -1  # no token: every completion of a game has `depth` tokens


def expected_gradient(
  game: game_lib.Game,
  *,
  loss: Callable[..., Any],
  mixture_coefs: Sequence[float],
) -> Callable[[np.ndarray], np.ndarray]:
  """The mean of the step's gradient, by enumeration in float64.

  Args:
    game: what is played.
    loss: an objective of `losses`.
    mixture_coefs: K weights of the reference.

  Returns:
    Logits [nodes, V] of the policy -> gradient [nodes, V].
  """
  everything = _all_sequences(game)
  feedback = getattr(game, needs.of(loss).feedback)
  log_reference = np.log(game_lib.policy_of(game.reference))

  def objective(table, samplers):
    log_probs, _ = sampling.log_probs(
      _model(game), {'table': table[None]}, everything
    )
    log_ratio = jnp.sum(log_probs[0], axis=-1) - log_reference
    return exact.expected_loss(loss, log_ratio, jnp.array(feedback), samplers)

  enumerate_all = jax.jit(jax.grad(objective))

  def gradient(logits):
    samplers = [
      game_lib.token_mixture(logits, game.reference, b) for b in mixture_coefs
    ]
    with jax.enable_x64(True):
      return np.array(enumerate_all(logits, samplers))

  return gradient


def train(
  played: Sequence[game_lib.Game],
  *,
  step: Callable[..., Any],
  optimizer: optax.GradientTransformation,
  train_steps: int,
  batch_size: int,
  start_stddev: float,
  ema: bool = False,
  rng: jax.Array,
) -> np.ndarray:
  """Trains a tabular policy by `algorithms.online_step`.

  Args:
    played: G games of one size; each is a prompt with a table of its own.
    step: the online step with loss and mixture coefficients bound.
    optimizer: of the tables.
    train_steps: updates.
    batch_size: B, prompts of an update.
    start_stddev: the policy starts from random logits, not at the reference.
    ema: whether the state holds a moving average.
    rng: key, consumed.

  Returns:
    [train_steps + 1, G, nodes, V] logits along the run.
  """
  model = _model(played[0], prompts=len(played), stddev=start_stddev)
  init_key, step_key = jax.random.split(rng)
  params = model.init(init_key)
  state = types.TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=optimizer.init(params),
    ema=params if ema else None,
  )
  stack = lambda name: jnp.array(
    [getattr(g, name) for g in played], jnp.float32
  )
  frozen = types.FrozenParams(
    reference={'table': stack('reference')},
    judge={'preference': stack('preference'), 'rewards': stack('rewards')},
  )
  step = functools.partial(
    step,
    model=model,
    feedback=algorithms.Feedback(judge=game_lib.matrix_judge),
    optimizer=optimizer,
    sampler=sampling.Sampler(max_new_tokens=played[0].depth, eos_id=_NO_EOS),
  )
  prompts = types.Tokens(
    ids=jnp.arange(batch_size, dtype=jnp.int32)[:, None] % len(played),
    mask=jnp.ones((batch_size, 1), bool),
  )

  def update(state, n):
    state, _ = step(state, frozen, prompts, jax.random.fold_in(step_key, n))
    return state, state.params['table']

  run = jax.jit(lambda s: jax.lax.scan(update, s, jnp.arange(train_steps)))
  return np.concatenate([params['table'][None], run(state)[1]])


def measure(
  logits: np.ndarray, *, game: game_lib.Game, tau: float, mixture_coef: float
) -> dict[str, float]:
  """How far a policy is from the equilibrium.

  Args:
    logits: [nodes, V] of the policy.
    game: what is played.
    tau: temperature at which the game is solved.
    mixture_coef: b, the weight of the reference in the sampler.

  Returns:
    exploitability and kl = KL(nash, pi) at tau, and for 0 < b < 1 those of the
    sampler's mixture at tau / (1 - b), and the total variation of that from
    the mixture of whole sequences.
  """
  reference = game_lib.policy_of(game.reference)
  policy = game_lib.policy_of(logits)

  def against(policy, tau):
    nash = exact.nash(game.preference, reference, tau=tau)
    gain = exact.exploitability(policy, game.preference, reference, tau=tau)
    return gain, exact.kl(nash, policy)

  found = dict(zip(('exploitability', 'kl'), against(policy, tau), strict=True))
  if 0 < mixture_coef < 1:
    mixed = game_lib.token_mixture(logits, game.reference, mixture_coef)
    gain, kl = against(mixed, tau / (1 - mixture_coef))
    whole = exact.mixture(policy, reference, mixture_coef)
    found |= {
      'mixture_exploitability': gain,
      'mixture_kl': kl,
      'total_variation': float(np.abs(mixed - whole).sum() / 2),
    }
  return found


def limit(
  game: game_lib.Game,
  *,
  loss: Callable[..., Any],
  mixture_coefs: Sequence[float],
) -> np.ndarray | None:
  """[N] the policy at which the expected gradient is 0; None: none was found.

  A hinge (slic) may have a kink instead.
  """
  gradient = expected_gradient(game, loss=loss, mixture_coefs=mixture_coefs)
  try:
    return game_lib.policy_of(exact.stationary_point(gradient, game.reference))
  except RuntimeError:
    return None


def play(
  *,
  model_dir: str,
  seed: int,
  game: game_lib.Game,
  step: Callable[..., Any],
  loss: Callable[..., Any],
  mixture_coefs: Sequence[float],
  tau: float,
  optimizer: Callable[[Any], optax.GradientTransformation],
  train_steps: int,
  batch_size: int,
  start_stddev: float,
  starts: int,
  ema_decay: float | None = None,
) -> None:
  """Plays from several starts; writes game.jsonl and game.png to model_dir.

  Args:
    model_dir: MODEL_DIR.
    seed: SEED of starts and samples.
    game: GAME.
    step: the online step, as a language model is trained with.
    loss: LOSS of that step, for its limit.
    mixture_coefs: MIXTURE_COEFS of that step, for its limit.
    tau: TAU, temperature at which the game is solved.
    optimizer: as for `training.train`.
    train_steps: TRAIN_STEPS.
    batch_size: BATCH_SIZE.
    start_stddev: standard deviation of the first logits.
    starts: number of policies, trained side by side.
    ema_decay: EMA_DECAY of that step.
  """
  # At rest a moving average of the policy is the policy.
  ema = ema_decay is not None
  players = (0.0,) * len(mixture_coefs) if ema else mixture_coefs
  end = limit(game, loss=loss, mixture_coefs=players)
  measured = functools.partial(
    measure, game=game, tau=tau, mixture_coef=max(players)
  )
  runs = train(
    [game] * starts,
    step=step,
    optimizer=optimizer(None),
    train_steps=train_steps,
    batch_size=batch_size,
    start_stddev=start_stddev,
    ema=ema,
    rng=jax.random.key(seed),
  )
  rows = []
  for start in range(starts):
    for n in range(0, train_steps + 1, max(1, train_steps // 100)):
      row = {'start': start, 'step': n, **measured(runs[n, start])}
      if end is not None:
        row['kl_limit'] = exact.kl(end, game_lib.policy_of(runs[n, start]))
      rows.append(row)
    print(' '.join(f'{k} {v:.3g}' for k, v in rows[-1].items()), flush=True)
  folder = epath.Path(model_dir)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'game.jsonl').write_text(
    ''.join(json.dumps(row) + '\n' for row in rows)
  )
  figure_lib.draw(
    folder / 'game.png', game=game, tau=tau, runs=runs, rows=rows, end=end
  )


def _model(
  game: game_lib.Game, *, prompts: int = 1, stddev: float = 0.0
) -> models.Model:
  return models.Model(
    functools.partial(
      tabular.Tabular,
      vocab_size=game.vocab_size,
      depth=game.depth,
      prompts=prompts,
      stddev=stddev,
    )
  )


def _all_sequences(game: game_lib.Game) -> types.Completions:
  """All of them as completions [1, N, depth] of one prompt."""
  tokens = tabular.sequences(game.vocab_size, game.depth)
  return types.Completions(
    prompts=types.Tokens(np.zeros((1, 1), np.int32), np.ones((1, 1), bool)),
    completions=types.Tokens(tokens.ids[None], tokens.mask[None]),
  )
