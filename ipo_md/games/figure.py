"""Draws the trajectories of policies in a game."""

from collections.abc import Sequence
import math
from typing import Any

from etils import epath
import matplotlib.axes
import matplotlib.figure
import numpy as np

from ipo_md.games import exact
from ipo_md.games import game as game_lib

# The corners y_1, y_2, y_3 of the simplex, as points of the plane.
_CORNERS = np.array([[0, 0], [1, 0], [0.5, math.sqrt(0.75)]])
# The palette of Okabe and Ito without black and yellow.
_COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')


def draw(
  path: epath.Path,
  *,
  game: game_lib.Game,
  tau: float,
  runs: np.ndarray,
  rows: Sequence[dict[str, float]],
  limit: np.ndarray | None,
) -> None:
  """Draws exploitability along the runs and, for three actions, the simplex.

  Args:
    path: File of the PNG.
    game: Game that is played.
    tau: Temperature at which the game is solved.
    runs: [steps, starts, nodes, V] logits along the runs.
    rows: Rows of game.jsonl, with `start`, `step` and `exploitability`.
    limit: [N] policy at which the algorithm stops, or None if it is unknown.
  """
  simplex = len(game.preference) == 3
  figure = matplotlib.figure.Figure(
    figsize=(10 if simplex else 5.5, 4.8), layout='constrained'
  )
  axes = figure.subplots(1, 1 + simplex, squeeze=False)[0]
  if simplex:
    _draw_simplex(axes[0], game, tau, runs, limit)
    figure.legend(
      *axes[0].get_legend_handles_labels(),
      loc='outside lower center',
      ncols=5,
      frameon=False,
    )
  for start in range(runs.shape[1]):
    own = [row for row in rows if row['start'] == start]
    axes[-1].semilogy(
      [row['step'] for row in own],
      [row['exploitability'] for row in own],
      color=_color(start),
      linewidth=1.2,
    )
  axes[-1].set(
    title=rf'Exploitability at $\tau$ = {tau:g}',
    xlabel='update',
    ylabel='gain of the best response',
  )
  axes[-1].grid(alpha=0.3)
  axes[-1].spines[['top', 'right']].set_visible(False)
  with path.open('wb') as file:
    figure.savefig(file, format='png', dpi=150)


def _draw_simplex(
  axes: matplotlib.axes.Axes,
  game: game_lib.Game,
  tau: float,
  runs: np.ndarray,
  limit: np.ndarray | None,
) -> None:
  """Draws the trajectories of the policies in the simplex of three actions."""
  axes.set_title('Policies during training')
  axes.fill(*_CORNERS.T, facecolor='0.97', edgecolor='0.6', linewidth=1)
  for y in range(3):
    _place_label(axes, _CORNERS[y], rf'$y_{y + 1}$', away=0.07, fontsize=14)
    winner, loser = y, (y + 1) % 3
    probability = game.preference[winner, loser]
    if probability < 0.5:
      winner, loser, probability = loser, winner, 1 - probability
    middle = (_CORNERS[winner] + _CORNERS[loser]) / 2
    text = rf'$p(y_{winner + 1} \succ y_{loser + 1})$ = {probability:.3g}'
    direction = _CORNERS[(y + 1) % 3] - _CORNERS[y]
    angle = math.degrees(math.atan2(direction[1], direction[0]))
    angle = (angle + 90) % 180 - 90  # Upright.
    _place_label(axes, middle, text, away=0.05, rotation=angle, color='0.35')
  for start, run in enumerate(runs.swapaxes(0, 1)):
    points = np.stack([game_lib.policy_of(logits) for logits in run]) @ _CORNERS
    axes.plot(*points.T, color=_color(start), linewidth=1.4)
    axes.plot(
      *points[0],
      'o',
      color=_color(start),
      markerfacecolor='white',
      markersize=8,
      markeredgewidth=1.8,
      label='start' if start == 0 else None,
    )
  reference = game_lib.policy_of(game.reference)
  nash = exact.nash(game.preference, reference, tau=tau)
  mark = lambda policy, style, label, **more: axes.plot(
    *(policy @ _CORNERS), style, label=label, zorder=5, **more
  )
  mark(reference, 'ks', 'reference', markersize=7)
  mark(
    nash,
    '*',
    'Nash equilibrium',
    color='#ffd400',
    markeredgecolor='black',
    markersize=17,
  )
  if limit is not None:
    mark(
      limit,
      'x',
      'limit of the algorithm',
      color='black',
      markersize=8,
      markeredgewidth=1.8,
    )
  axes.set_aspect('equal')
  axes.margins(0.1)
  axes.axis('off')


def _place_label(
  axes: matplotlib.axes.Axes,
  point: np.ndarray,
  text: str,
  *,
  away: float,
  **style: Any,
) -> None:
  """Places a text outside the simplex, at a distance from a point of it."""
  outwards = point - _CORNERS.mean(axis=0)
  place = point + away * outwards / np.linalg.norm(outwards)
  style = {'ha': 'center', 'va': 'center', 'rotation_mode': 'anchor'} | style
  axes.text(place[0], place[1], text, **style)


def _color(start: int) -> str:
  return _COLORS[start % len(_COLORS)]
