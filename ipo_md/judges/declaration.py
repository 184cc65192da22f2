"""Declarations of what a judge is, written beside its definition.

  @declaration.declare(runs_on='device', gives=('preference',))
  def longest(params, completions):
    ...

Callers read the declaration with `declaration_of` and recognise no judge by
its name.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any
from typing import Literal
from typing import TypeVar

Feedback = Literal['preference', 'rewards', 'matrix']

_T = TypeVar('_T', bound=Callable[..., Any])
_ATTRIBUTE = '_judge_declaration'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declaration:
  """What the rest of the package needs to know about a judge.

  Attributes:
    runs_on: 'device' for a `DeviceJudge`, which is part of the train step, or
      'host' for a `HostJudge`.
    gives: Fields of `types.Labelled` that a device judge fills for K = 2
      completions. A host judge gives preferences.
    has_params: Whether a device judge reads parameters, which its caller
      restores from a checkpoint. A host judge loads its own.
    trained_on: 'rewards' if `algorithms.reward_step` trains the judge on the
      rewards that it gives, 'answers' if `algorithms.comparator_step` trains it
      on its answer tokens, and None if no step trains it.

  Raises:
    ValueError: The attributes contradict each other.
  """

  runs_on: Literal['device', 'host']
  gives: tuple[Feedback, ...] = ('preference',)
  has_params: bool = False
  trained_on: Literal['rewards', 'answers'] | None = None

  def __post_init__(self):
    if self.runs_on not in ('device', 'host'):
      raise ValueError(f"runs_on = {self.runs_on!r} is not 'device' or 'host'.")
    known = ('preference', 'rewards', 'matrix')
    if not self.gives or not set(self.gives) <= set(known):
      raise ValueError(
        f'gives = {self.gives!r} must be a non-empty subset of {known}.'
      )
    if self.trained_on not in ('rewards', 'answers', None):
      raise ValueError(
        f"trained_on = {self.trained_on!r} is not 'rewards', 'answers' or None."
      )
    if self.runs_on == 'host' and (
      self.has_params or self.gives != ('preference',)
    ):
      raise ValueError(
        'A judge on the host loads its own parameters and gives preferences: '
        'has_params and gives are declared for judges on the device.'
      )
    if self.trained_on is not None and not self.has_params:
      raise ValueError(
        f'trained_on = {self.trained_on!r} needs a judge with has_params=True.'
      )
    if self.trained_on == 'rewards' and 'rewards' not in self.gives:
      raise ValueError(
        f"trained_on = 'rewards' needs a judge that gives rewards, not only "
        f'{self.gives!r}.'
      )


def declare(
  *,
  runs_on: Literal['device', 'host'],
  gives: tuple[Feedback, ...] = ('preference',),
  has_params: bool = False,
  trained_on: Literal['rewards', 'answers'] | None = None,
) -> Callable[[_T], _T]:
  """Returns a decorator that declares what a judge is.

    @judges.declare(runs_on='host')
    class Coin: ...

  Args:
    runs_on: See `Declaration`, as for the other arguments.
    gives: Feedback of a judge on the device.
    has_params: Whether a judge on the device reads parameters.
    trained_on: What a step trains the judge on.

  Returns:
    A decorator of a judge, which is a function or a class with `__call__`.
  """
  found = Declaration(
    runs_on=runs_on, gives=gives, has_params=has_params, trained_on=trained_on
  )

  def decorator(judge: _T) -> _T:
    setattr(judge, _ATTRIBUTE, found)
    return judge

  return decorator


def declaration_of(judge: Callable[..., Any]) -> Declaration:
  """Returns the declaration of a judge.

    declaration_of(functools.partial(judges.likelihood, model=model)).trained_on
    == 'rewards'

  Finds it through `functools.partial`, and through wrappers that
  `functools.wraps` made, such as those of gin and `jax.jit`.

  Args:
    judge: A judge, a class of judges, or a wrapper of either.

  Raises:
    ValueError: The judge declares nothing.
  """
  found = _find(judge)
  if found is not None:
    return found
  raise ValueError(
    f'{judge!r} does not declare what it is. Decorate the function or the '
    "class with @judges.declare(runs_on='device', gives=('preference',)), or "
    "with @judges.declare(runs_on='host') if it judges texts on the host."
  )


def check_params(judge: Callable[..., Any], params: Any) -> None:
  """Raises a ValueError if a judge reads parameters and there are none.

  Args:
    judge: A judge on the device.
    params: Its parameters, or None.
  """
  found = _find(judge)
  if params is None and found is not None and found.has_params:
    raise ValueError(
      'JUDGE_CHECKPOINT_PATH = None, but JUDGE reads parameters: set the path '
      'of its checkpoint.'
    )


def _find(judge: Any) -> Declaration | None:
  while judge is not None:
    found = getattr(judge, _ATTRIBUTE, None)
    if found is not None:
      return found
    if isinstance(judge, functools.partial):
      judge = judge.func
    else:
      judge = getattr(judge, '__wrapped__', None)
  return None
