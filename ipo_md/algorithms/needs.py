"""Declares what an objective needs, beside its function.

  @needs.declare(feedback='preference', completions=2)
  def ipo(log_ratios, preference, *, tau):
    ...

Steps, gin checks and tests read the declaration. Nothing is inferred from the
name of a function or of its parameters.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any
from typing import Literal
from typing import TypeVar

_Loss = TypeVar('_Loss', bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
  """What an objective needs.

  Attributes:
    feedback: `preference` [B], P(y_1 > y_2 | x), `rewards` [B, K], or `matrix`
      [B, K, K], P(y_i > y_k | x).
    completions: Number of completions of a prompt: exactly 2 for a
      `preference`, at least this many for the others.
    anchors: Policies whose log-probability is subtracted from log pi, of
      `players.Players`. The first argument is the log-ratio with the first of
      them; that with any other one, such as `snapshot`, is passed as
      `snapshot_log_ratios`. Without any, the objective is reference-free: its
      first argument is log pi itself, and no reference has to be loaded.
    on_policy: Completions that must be samples of the policy itself for the
      gradient to be unbiased: none of them, the first one, or all. Such an
      objective cannot be trained on the completions of a data set.
    mean_over_tokens: Whether log-ratios may be means over tokens (PER_TOKEN).
    reads_mask: Whether the function takes `completion_mask` [B, K], so that a
      prompt may have fewer than K completions.
  """

  feedback: Literal['preference', 'rewards', 'matrix']
  completions: int
  anchors: tuple[str, ...] = ('reference',)
  on_policy: Literal['none', 'first', 'all'] = 'none'
  mean_over_tokens: bool = True
  reads_mask: bool = False


def declare(**fields: Any) -> Callable[[_Loss], _Loss]:
  """Attaches `Needs` to an objective; its keywords are those of `Needs`."""

  def attach(loss: _Loss) -> _Loss:
    loss.needs = Needs(**fields)  # pyright: ignore[reportFunctionMemberAccess]  # typeshed's functions lack it
    return loss

  return attach


def of(loss: Callable[..., Any]) -> Needs:
  """Returns the declaration of an objective, also of one with bound arguments.

  Raises:
    ValueError: The function declares nothing.
  """
  found = getattr(_unbound(loss), 'needs', None)
  if not isinstance(found, Needs):
    raise ValueError(
      f'{name(loss)} does not declare what it needs: decorate it with '
      "@needs.declare(feedback='preference', completions=2), see "
      'ipo_md/algorithms/needs.py.'
    )
  return found


def name(loss: Callable[..., Any]) -> str:
  """Returns the name of an objective, for messages."""
  loss = _unbound(loss)
  return getattr(loss, '__name__', repr(loss))


def check_completions(loss: Callable[..., Any], count: int, macro: str) -> None:
  """Raises a ValueError if an objective cannot take this many completions.

  Args:
    loss: The objective.
    count: K, completions of a prompt.
    macro: The setting to change, for the message.
  """
  needed = of(loss)
  exact = needed.feedback == 'preference'
  if count == needed.completions or count > needed.completions and not exact:
    return
  raise ValueError(
    f'LOSS = {name(loss)} needs {"" if exact else "at least "}'
    f'{needed.completions} completions of a prompt, not {count} ({macro}).'
  )


def check_samples(loss: Callable[..., Any], mixture_coefs: Any) -> None:
  """Raises a ValueError if samples are not the policy's own where they must be.

  Args:
    loss: The objective.
    mixture_coefs: K weights of the second player; 0 is the policy itself.
  """
  check_completions(loss, len(mixture_coefs), 'one entry of MIXTURE_COEFS each')
  own = {'none': 0, 'first': 1, 'all': len(mixture_coefs)}[of(loss).on_policy]
  if any(mixture_coefs[:own]):
    which = 'y_1' if own == 1 else 'every completion'
    raise ValueError(
      f'LOSS = {name(loss)} has an unbiased gradient only if {which} is '
      f'sampled from the policy itself, but MIXTURE_COEFS is '
      f'{tuple(mixture_coefs)}: set its weight of the reference to 0.'
    )


def check_reference(loss: Callable[..., Any], reference: Any) -> bool:
  """Returns whether an objective reads a reference, which stays as it is.

  Args:
    loss: The objective.
    reference: Parameters of the reference, None if it is not loaded.

  Raises:
    ValueError: The reference is needed and not loaded, or the objective needs
      another player.
  """
  anchors = of(loss).anchors
  for anchor in anchors:
    if anchor != 'reference':
      raise ValueError(
        f'LOSS = {name(loss)} needs a {anchor} of the policy, which only an '
        'online run with a judge on the device has: take gin/runs/online.gin '
        'or another LOSS.'
      )
  if anchors and reference is None:
    raise no_reference(f'LOSS = {name(loss)}')
  return bool(anchors)


def no_reference(who: str) -> ValueError:
  """Returns the error of a setting that needs a reference."""
  return ValueError(
    f'{who} needs a reference policy: set REFERENCE_CHECKPOINT_PATH, or '
    'INITIAL_CHECKPOINT_PATH, which is its default.'
  )


def _unbound(loss: Any) -> Any:
  while isinstance(loss, functools.partial):
    loss = loss.func
  return loss
