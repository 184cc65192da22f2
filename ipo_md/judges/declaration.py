"""Declarations of what a judge is, written beside its definition.

  @declaration.declare(runs_on='device', gives=('preference',))
  def longest(params, completions):
    ...

Callers read the declaration with `declaration_of` and recognise no judge by
its name.
"""

from collections.abc import Callable
from collections.abc import Iterable
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
      completions. Every host judge gives preferences; one that also gives
      rewards has a method `rewards` (see `judges.host`).
    has_params: Whether a device judge reads parameters, which its caller
      restores from a checkpoint. A host judge loads its own.
    reads_head: Whether a device judge with parameters reads the additional head
      of its network, which REWARD_HEAD sizes.
    trained_on: 'rewards' if `algorithms.reward_step` trains the judge on the
      rewards that it gives, 'answers' if `algorithms.comparator_step` trains it
      on its answer tokens, and None if no step trains it.
    reads: 'tokens' if a host judge reads the tokens of the policy, and so
      shares its vocabulary, or 'texts'.
    checkpoint: Function from a host judge to the path of its checkpoint, or
      None if it has none.
    parts: Function from a host judge to the judges that it asks, or None if it
      asks no others.

  Raises:
    ValueError: The attributes contradict each other.
  """

  runs_on: Literal['device', 'host']
  gives: tuple[Feedback, ...] = ('preference',)
  has_params: bool = False
  reads_head: bool = True
  trained_on: Literal['rewards', 'answers'] | None = None
  reads: Literal['tokens', 'texts'] = 'texts'
  checkpoint: Callable[[Any], str] | None = None
  parts: Callable[[Any], Iterable[Any]] | None = None

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
    host = self.runs_on == 'host'
    if host and (
      self.has_params
      or 'preference' not in self.gives
      or 'matrix' in self.gives
    ):
      raise ValueError(
        'A judge on the host loads its own parameters and gives preferences, '
        'with rewards or without: has_params = True and a matrix are declared '
        'for judges on the device.'
      )
    if not host and (self.reads != 'texts' or self.checkpoint or self.parts):
      raise ValueError(
        'reads, checkpoint and parts are declared for judges on the host.'
      )
    if self.reads not in ('tokens', 'texts'):
      raise ValueError(f"reads = {self.reads!r} is not 'tokens' or 'texts'.")
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
  reads_head: bool = True,
  trained_on: Literal['rewards', 'answers'] | None = None,
  reads: Literal['tokens', 'texts'] = 'texts',
  checkpoint: Callable[[Any], str] | None = None,
  parts: Callable[[Any], Iterable[Any]] | None = None,
) -> Callable[[_T], _T]:
  """Returns a decorator that declares what a judge is.

    @judges.declare(runs_on='host')
    class Coin: ...

  Args:
    runs_on: See `Declaration`, as for the other arguments.
    gives: Feedback of the judge.
    has_params: Whether a judge on the device reads parameters.
    reads_head: Whether such a judge reads the additional head of its network.
    trained_on: What a step trains the judge on.
    reads: What a judge on the host reads.
    checkpoint: Checkpoint of a judge on the host.
    parts: Judges that a judge on the host asks.

  Returns:
    A decorator of a judge, which is a function or a class with `__call__`.
  """
  declared = Declaration(
    runs_on=runs_on,
    gives=gives,
    has_params=has_params,
    reads_head=reads_head,
    trained_on=trained_on,
    reads=reads,
    checkpoint=checkpoint,
    parts=parts,
  )

  def decorator(judge: _T) -> _T:
    setattr(judge, _ATTRIBUTE, declared)
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
  declared = found(judge)
  if declared is not None:
    return declared
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
  declared = found(judge)
  if params is None and declared is not None and declared.has_params:
    raise ValueError(
      'JUDGE_CHECKPOINT_PATH = None, but JUDGE reads parameters: set the path '
      'of its checkpoint.'
    )


def found(judge: Any) -> Declaration | None:
  """Returns the declaration of a judge, or None if it declares nothing."""
  while judge is not None:
    declared = getattr(judge, _ATTRIBUTE, None)
    if declared is not None:
      return declared
    if isinstance(judge, functools.partial):
      judge = judge.func
    else:
      judge = getattr(judge, '__wrapped__', None)
  return None


def gives(judge: Any) -> tuple[Feedback, ...]:
  """Returns what a host judge gives; one that declares nothing, preferences."""
  declared = found(judge)
  return ('preference',) if declared is None else declared.gives


def reads_tokens(judge: Any) -> bool:
  """Returns whether a host judge, or one that it asks, reads token ids.

  Other judges read texts.
  """
  return any(
    declared is not None and declared.reads == 'tokens'
    for declared in map(found, _leaves(judge))
  )


def checkpoint_paths(judge: Any) -> tuple[str, ...]:
  """Returns the checkpoints of a host judge and of those that it asks."""
  return tuple(
    declared.checkpoint(leaf)
    for leaf in _leaves(judge)
    if (declared := found(leaf)) is not None and declared.checkpoint is not None
  )


def _leaves(judge: Any) -> list[Any]:
  declared = found(judge)
  if declared is None or declared.parts is None:
    return [judge]
  return [leaf for part in declared.parts(judge) for leaf in _leaves(part)]
