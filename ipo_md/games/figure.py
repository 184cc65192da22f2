"""Draws the trajectories of a game."""

from collections.abc import Sequence
import math

from etils import epath
import matplotlib.figure
import numpy as np

from ipo_md.games import exact
from ipo_md.games import game as game_lib


def draw(
  path: epath.Path,
  *,
  game: game_lib.Game,
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
      axes[0].plot(
        *(np.stack([game_lib.policy_of(p) for p in run]) @ corners).T
      )
    reference = game_lib.policy_of(game.reference)
    marks = {
      'reference': (reference, 'ks'),
      'Nash equilibrium': (
        exact.nash(game.preference, reference, tau=tau),
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
