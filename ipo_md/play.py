"""Trains an algorithm on a game that can be solved exactly.

A tabular policy is trained by the same online step as a language model, with a
preference matrix as judge, and compared with the game's Nash equilibrium and
with the algorithm's own limit, found by enumeration.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
import json
import math
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import optax

from ipo_md import games
from ipo_md import sequences
from ipo_md import steps
from ipo_md import types
from ipo_md.models import model as model_lib
from ipo_md.models import tabular

_NO_EOS = -1  # no token: every completion of a game has `depth` tokens


@dataclasses.dataclass(frozen=True)
class Game:
  """Preferences between all sequences of a tree.

  Attributes:
    preference: [N, N] p(y > y'), sequences in the order of `tabular.sequences`.
    reference: [nodes, V] logits of the reference policy.
  """

  preference: np.ndarray
  reference: np.ndarray

  @property
  def vocab_size(self) -> int:
    return self.reference.shape[1]

  @property
  def depth(self) -> int:
    return round(math.log(len(self.preference), self.vocab_size))

  @property
  def rewards(self) -> np.ndarray:
    """[N] p(y > pi_ref), for algorithms that learn from rewards."""
    return self.preference @ policy_of(self.reference)


def cyclic(*, p_12: float, p_23: float, p_31: float) -> Game:
  """Three actions that beat each other in turn; uniform reference."""
  return Game(games.cyclic_game(p_12, p_23, p_31), np.zeros((1, 3)))


def random(*, seed: int, actions: int) -> Game:
  """A random game with a cycle and a random reference; one token each."""
  rng = np.random.default_rng(seed)
  return Game(
    games.random_game(rng, actions), 0.5 * rng.normal(size=(1, actions))
  )


def tree(*, seed: int, vocab_size: int) -> Game:
  """A random game between all sequences of two tokens; random reference."""
  rng = np.random.default_rng(seed)
  return Game(
    games.random_game(rng, vocab_size**2),
    0.5 * rng.normal(size=(1 + vocab_size, vocab_size)),
  )


def matrix_judge(
  params: types.Params, completions: types.Completions
) -> types.Labelled:
  """Looks preference and rewards up.

  Args:
    params: `preference` [G, N, N] and `rewards` [G, N] of all sequences in G
      games; a prompt's token is the number of a game.
    completions: K completions of each prompt, all of full length.

  Returns:
    rewards [B, K], and the preference [B] if K = 2.
  """
  game = completions.prompts.ids[:, 0]
  ids = completions.completions.ids
  depth = ids.shape[-1]
  vocab_size = round(params['rewards'].shape[1] ** (1 / depth))
  y = jnp.sum(ids * vocab_size ** np.arange(depth)[::-1], axis=-1)
  preference = None
  if y.shape[1] == 2:
    preference = params['preference'][game, y[:, 0], y[:, 1]]
  return types.Labelled(
    completions=completions,
    completion_mask=jnp.ones(y.shape, bool),
    preference=preference,
    rewards=params['rewards'][game[:, None], y],
  )


def policy_of(logits: np.ndarray) -> np.ndarray:
  """[nodes, V] logits -> [N] probabilities of all sequences."""
  return np.exp(games.sequence_log_probs(np.asarray(logits, np.float64)))


def token_mixture(
  policy: np.ndarray, reference: np.ndarray, mixture_coef: float
) -> np.ndarray:
  """[N] what the sampler draws from: mixed and normalised at each token.

  The mixture of whole sequences, `games.mixture`, is another policy unless
  sequences have one token.
  """
  log_softmax = lambda x: x - np.log(np.exp(x).sum(axis=1, keepdims=True))
  return policy_of(
    (1 - mixture_coef) * log_softmax(np.asarray(policy, np.float64))
    + mixture_coef * log_softmax(reference)
  )


def expected_gradient(
  game: Game, *, loss: Callable[..., Any], mixture_coefs: Sequence[float]
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
  feedback = getattr(game, steps.feedback_of(loss))
  log_reference = np.log(policy_of(game.reference))

  def objective(table, samplers):
    log_probs, _ = sequences.log_probs(
      _model(game), {'table': table[None]}, everything
    )
    log_ratio = jnp.sum(log_probs[0], axis=-1) - log_reference
    return games.expected_loss(loss, log_ratio, jnp.array(feedback), samplers)

  enumerate_all = jax.jit(jax.grad(objective))

  def gradient(logits):
    samplers = [token_mixture(logits, game.reference, b) for b in mixture_coefs]
    with jax.enable_x64(True):
      return np.array(enumerate_all(logits, samplers))

  return gradient


def train(
  played: Sequence[Game],
  *,
  step: Callable[..., Any],
  optimizer: optax.GradientTransformation,
  train_steps: int,
  batch_size: int,
  start_stddev: float,
  ema: bool = False,
  rng: jax.Array,
) -> np.ndarray:
  """Trains a tabular policy by `steps.online_step`.

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
    judge=matrix_judge,
    optimizer=optimizer,
    max_new_tokens=played[0].depth,
    eos_id=_NO_EOS,
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
  logits: np.ndarray, *, game: Game, tau: float, mixture_coef: float
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
  reference = policy_of(game.reference)
  policy = policy_of(logits)

  def against(policy, tau):
    nash = games.nash(game.preference, reference, tau=tau)
    gain = games.exploitability(policy, game.preference, reference, tau=tau)
    return gain, games.kl(nash, policy)

  found = dict(zip(('exploitability', 'kl'), against(policy, tau), strict=True))
  if 0 < mixture_coef < 1:
    mixed = token_mixture(logits, game.reference, mixture_coef)
    gain, kl = against(mixed, tau / (1 - mixture_coef))
    whole = games.mixture(policy, reference, mixture_coef)
    found |= {
      'mixture_exploitability': gain,
      'mixture_kl': kl,
      'total_variation': float(np.abs(mixed - whole).sum() / 2),
    }
  return found


def limit(
  game: Game, *, loss: Callable[..., Any], mixture_coefs: Sequence[float]
) -> np.ndarray | None:
  """[N] the policy at which the expected gradient is 0; None: none was found.

  A hinge (slic) may have a kink instead.
  """
  gradient = expected_gradient(game, loss=loss, mixture_coefs=mixture_coefs)
  try:
    return policy_of(games.stationary_point(gradient, game.reference))
  except RuntimeError:
    return None


def play(
  *,
  model_dir: str,
  seed: int,
  game: Game,
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
    optimizer: as for `train.train`.
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
        row['kl_limit'] = games.kl(end, policy_of(runs[n, start]))
      rows.append(row)
    print(' '.join(f'{k} {v:.3g}' for k, v in rows[-1].items()), flush=True)
  folder = epath.Path(model_dir)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'game.jsonl').write_text(
    ''.join(json.dumps(row) + '\n' for row in rows)
  )
  draw(folder / 'game.png', game=game, tau=tau, runs=runs, rows=rows, end=end)


def draw(
  path: epath.Path,
  *,
  game: Game,
  tau: float,
  runs: np.ndarray,
  rows: Sequence[dict[str, float]],
  end: np.ndarray | None,
) -> None:
  """Exploitability along the runs and, for three actions, the simplex."""
  simplex = len(game.preference) == 3
  figure = matplotlib.figure.Figure(
    figsize=(10 if simplex else 5, 4.4), layout='constrained'
  )
  axes = figure.subplots(1, 1 + simplex, squeeze=False)[0]
  for start in range(runs.shape[1]):
    own = [r for r in rows if r['start'] == start]
    axes[-1].semilogy(
      [r['step'] for r in own], [r['exploitability'] for r in own]
    )
  axes[-1].axhline(1e-3, color='gray', linestyle=':')
  axes[-1].set(xlabel='update', ylabel=f'exploitability at tau = {tau}')
  if simplex:
    corners = np.array([[0, 0], [1, 0], [0.5, math.sqrt(0.75)]])
    axes[0].fill(*corners.T, fill=False, color='gray')
    for y, corner in enumerate(corners):
      outwards = 1.08 * (corner - corners.mean(axis=0))
      axes[0].text(
        *(corners.mean(axis=0) + outwards), f'$y_{y + 1}$', ha='center'
      )
    for run in runs.swapaxes(0, 1):
      axes[0].plot(*(np.stack([policy_of(p) for p in run]) @ corners).T)
    reference = policy_of(game.reference)
    marks = {
      'reference': (reference, 'ks'),
      'Nash equilibrium': (
        games.nash(game.preference, reference, tau=tau),
        'k*',
      ),
      'limit by enumeration': (end, 'rx'),
    }
    for name, (policy, style) in marks.items():
      if policy is not None:
        axes[0].plot(*(policy @ corners), style, label=name)
    axes[0].legend(frameon=False, loc='upper left', bbox_to_anchor=(-0.25, 1))
    axes[0].set_aspect('equal')
    axes[0].axis('off')
  with path.open('wb') as file:
    figure.savefig(file, format='png', dpi=120)


def _model(
  game: Game, *, prompts: int = 1, stddev: float = 0.0
) -> model_lib.Model:
  return model_lib.Model(
    functools.partial(
      tabular.Tabular,
      vocab_size=game.vocab_size,
      depth=game.depth,
      prompts=prompts,
      stddev=stddev,
    )
  )


def _all_sequences(game: Game) -> types.Completions:
  """All of them as completions [1, N, depth] of one prompt."""
  tokens = tabular.sequences(game.vocab_size, game.depth)
  return types.Completions(
    prompts=types.Tokens(np.zeros((1, 1), np.int32), np.ones((1, 1), bool)),
    completions=types.Tokens(tokens.ids[None], tokens.mask[None]),
  )
