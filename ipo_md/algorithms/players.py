"""The policies beside the one that is trained.

  reference  REFERENCE_CHECKPOINT_PATH, or with REFERENCE_STEPS the policy at
             the last multiple of that many updates
  average    a moving average of the policy (EMA_DECAY)
  snapshot   the policy at the last multiple of SNAPSHOT_STEPS

A completion is drawn from the mixture of the policy and one player, and a
log-ratio is taken against any of them (`needs.Needs.anchors`). Players that
change are part of the training state, so a resumed run is the uninterrupted
one. With LoRA such a player is a copy of the adapters alone.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from ipo_md import models
from ipo_md.algorithms import needs
from ipo_md.core import types

Name = Literal['reference', 'average', 'snapshot']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Players:
  """Which policies there are, and which of them the mixture is with.

  Attributes:
    second: PLAYER, the player of the mixture: 'reference', 'average' or
      'snapshot'.
    ema_decay: EMA_DECAY, decay of the moving average of the parameters; None
      for no average.
    snapshot_steps: SNAPSHOT_STEPS, updates between two snapshots of the policy;
      None for no snapshot.
    reference_steps: REFERENCE_STEPS, updates after which the policy becomes the
      reference of the next ones; None for a reference that stays. The first
      reference is then the initial policy. The win rate and the KL divergence
      of an evaluation stay those of REFERENCE_CHECKPOINT_PATH.

  Raises:
    ValueError: A setting is out of range, or the second player is missing.
  """

  second: Name = 'reference'
  ema_decay: float | None = None
  snapshot_steps: int | None = None
  reference_steps: int | None = None

  def __post_init__(self):
    for macro, steps in (
      ('SNAPSHOT_STEPS', self.snapshot_steps),
      ('REFERENCE_STEPS', self.reference_steps),
    ):
      if steps is not None and steps < 1:
        raise ValueError(f'{macro} = {steps} must be at least 1, or None.')
    if self.ema_decay is not None and not 0 <= self.ema_decay <= 1:
      raise ValueError(f'EMA_DECAY = {self.ema_decay} is not in [0, 1].')
    self._check(self.second, f'PLAYER = {self.second!r}')

  def _check(self, name: str, who: str) -> None:
    """Raises a ValueError if there is no such player."""
    macros = {'average': 'EMA_DECAY', 'snapshot': 'SNAPSHOT_STEPS'}
    if name not in ('reference', *macros):
      raise ValueError(
        f"{who}: the players are 'reference', 'average' and 'snapshot'."
      )
    if name != 'reference' and name not in self.changing:
      raise ValueError(
        f'{who} needs a player that is not there: set {macros[name]}.'
      )

  @property
  def changing(self) -> tuple[str, ...]:
    """Names of the players that the training state holds."""
    found = {
      'reference': self.reference_steps,
      'average': self.ema_decay,
      'snapshot': self.snapshot_steps,
    }
    return tuple(name for name, value in found.items() if value is not None)

  def first(self, params: types.Params) -> dict[str, types.Params]:
    """Returns the players of the initial state, copies of the policy."""
    return {name: jax.tree.map(jnp.copy, params) for name in self.changing}

  def check(
    self,
    loss: Callable[..., Any],
    state: types.TrainState,
    frozen: types.FrozenParams,
    mixture_coefs: Sequence[float],
  ) -> None:
    """Checks that whatever an objective and its samples need is there.

    Args:
      loss: The objective.
      state: Training state.
      frozen: The reference that stays.
      mixture_coefs: K weights of the second player.

    Raises:
      ValueError: A player is missing. The message names what to set.
    """
    if set(state.players) != set(self.changing):
      raise ValueError(
        f'The training state holds the players {sorted(state.players)}, but '
        f'the step needs {sorted(self.changing)}: bind algorithms.Players to '
        'training.Start.players as to the step.'
      )
    anchors = needs.of(loss).anchors
    for name in anchors:
      self._check(name, f'LOSS = {needs.name(loss)}')
    mixed = self.second == 'reference' and any(mixture_coefs)
    if frozen.reference is not None or 'reference' in self.changing:
      return
    if mixed or 'reference' in anchors:
      raise needs.no_reference(
        'MIXTURE_COEFS' if mixed else f'LOSS = {needs.name(loss)}'
      )

  def refreshed(self, state: types.TrainState) -> types.TrainState:
    """Returns the state with the players that this update takes anew."""
    held = dict(state.players)
    for name, steps in (
      ('snapshot', self.snapshot_steps),
      ('reference', self.reference_steps),
    ):
      if steps is not None:
        held[name] = jax.lax.cond(
          state.step % steps == 0,
          lambda old: state.params,
          lambda old: old,
          held[name],
        )
    return state.replace(players=held)

  def averaged(self, state: types.TrainState) -> types.TrainState:
    """Returns the state after an update with the average moved towards it."""
    if self.ema_decay is None:
      return state
    average = optax.incremental_update(
      state.params, state.players['average'], 1 - self.ema_decay
    )
    return state.replace(players={**state.players, 'average': average})

  def policies(
    self,
    model: models.Model,
    state: types.TrainState,
    frozen: types.FrozenParams,
  ) -> dict[str, types.Params]:
    """Returns the parameters of each player, as the network reads them."""
    found = {'reference': frozen.reference}
    for name, params in state.players.items():
      found[name] = model.policy(params, frozen)
    return found
