"""Trains an algorithm on a game that can be solved exactly.

A tabular policy is trained by the same online step as a language model, with a
preference matrix as its judge. It is compared with the Nash equilibrium of the
game and with the limit of the algorithm itself, found by enumeration.
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
from ipo_md import sampling
from ipo_md.core import paths
from ipo_md.core import types
from ipo_md.games import exact
from ipo_md.games import figure as figure_lib
from ipo_md.games import game as game_lib
from ipo_md.games import limits

_NO_EOS = -1  # Not a token: every completion of a game has `depth` tokens.


def train(
  games: Sequence[game_lib.Game],
  *,
  step: Callable[..., Any],
  optimizer: optax.GradientTransformation,
  train_steps: int,
  batch_size: int,
  start_stddev: float,
  players: algorithms.Players = algorithms.Players(),
  rng: jax.Array,
) -> np.ndarray:
  """Trains tabular policies by `algorithms.online_step`.

  Args:
    games: G games of one size. Each is a prompt with a table of its own.
    step: Online step whose loss and mixture coefficients are bound.
    optimizer: Optimizer of the tables.
    train_steps: Number of updates.
    batch_size: B, the prompts of an update.
    start_stddev: Standard deviation of the initial logits, which are random
      and not those of the reference.
    players: The players of the step.
    rng: Key, consumed.

  Returns:
    [train_steps + 1, G, nodes, V] logits along the run.
  """
  model = game_lib.tabular_model(
    games[0], prompts=len(games), stddev=start_stddev
  )
  init_key, step_key = jax.random.split(rng)
  params = model.init(init_key)
  state = types.TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=optimizer.init(params),
    players=players.first(params),
  )
  stack = lambda name: jnp.array(
    [getattr(game, name) for game in games], jnp.float32
  )
  frozen = types.FrozenParams(
    reference={'table': stack('reference')},
    judge={'preference': stack('preference'), 'rewards': stack('rewards')},
  )
  step = functools.partial(
    step,
    players=players,
    model=model,
    feedback=algorithms.Feedback(judge=game_lib.matrix_judge),
    optimizer=optimizer,
    sampler=sampling.Sampler(max_new_tokens=games[0].depth, eos_id=_NO_EOS),
  )
  prompts = types.Tokens(
    ids=jnp.arange(batch_size, dtype=jnp.int32)[:, None] % len(games),
    mask=jnp.ones((batch_size, 1), bool),
  )

  def update(state, n):
    state, _ = step(state, frozen, prompts, jax.random.fold_in(step_key, n))
    return state, state.params['table']

  run = jax.jit(lambda s: jax.lax.scan(update, s, jnp.arange(train_steps)))
  return np.concatenate([params['table'][None], run(state)[1]])


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
  players: algorithms.Players = algorithms.Players(),
) -> None:
  """Trains from several starts and writes game.jsonl and game.png.

  Args:
    model_dir: MODEL_DIR, the folder of both files.
    seed: SEED of the starts and of the samples.
    game: GAME, the game that is played.
    step: Online step, the same as a language model is trained with.
    loss: LOSS of that step, from which its limit is computed.
    mixture_coefs: MIXTURE_COEFS of that step.
    tau: TAU, the temperature at which the game is solved.
    optimizer: Function that makes the optimizer, as for `training.train`.
    train_steps: TRAIN_STEPS, the number of updates.
    batch_size: BATCH_SIZE, the prompts of an update.
    start_stddev: Standard deviation of the initial logits.
    starts: STARTS, the number of policies, which are trained side by side.
    players: The players of that step.
  """
  model_dir = paths.absolute(model_dir, 'MODEL_DIR')
  # At a limit, average and snapshot of the policy equal the policy.
  coefs = mixture_coefs
  if players.second != 'reference':
    coefs = (0.0,) * len(mixture_coefs)
  limit = None
  if players.reference_steps is None:
    limit = limits.limit(game, loss=loss, mixture_coefs=coefs)
  measured = functools.partial(
    game_lib.measure, game=game, tau=tau, mixture_coef=max(coefs)
  )
  runs = train(
    [game] * starts,
    step=step,
    optimizer=optimizer(None),
    train_steps=train_steps,
    batch_size=batch_size,
    start_stddev=start_stddev,
    players=players,
    rng=jax.random.key(seed),
  )
  rows = []
  for start in range(starts):
    for n in range(0, train_steps + 1, max(1, train_steps // 100)):
      row = {'start': start, 'step': n, **measured(runs[n, start])}
      if limit is not None:
        row['kl_limit'] = exact.kl(limit, game_lib.policy_of(runs[n, start]))
      rows.append(row)
    print(' '.join(f'{k} {v:.3g}' for k, v in rows[-1].items()), flush=True)
  folder = epath.Path(model_dir)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'game.jsonl').write_text(
    ''.join(json.dumps(row) + '\n' for row in rows)
  )
  figure_lib.draw(
    folder / 'game.png', game=game, tau=tau, runs=runs, rows=rows, limit=limit
  )
