"""Declares what a train step does, for tools that look at a run from outside.

`precompile` bounds the work of each phase of a step, and so has to know
whether it samples and which judge it runs or trains.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any
from typing import TypeVar

_Step = TypeVar('_Step', bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepKind:
  """What a train step does.

  Attributes:
    samples: Whether it samples completions of prompts itself.
    trains_judge: Whether the network that it trains is a judge.
    judge: Function from the arguments that gin binds to the judge that the step
      runs or trains; None if there is no judge in it.
  """

  samples: bool = False
  trains_judge: bool = False
  judge: Callable[[Mapping[str, Any]], Any] | None = None


def declare(**fields: Any) -> Callable[[_Step], _Step]:
  """Attaches a `StepKind` to a step; its keywords are those of `StepKind`."""

  def attach(step: _Step) -> _Step:
    step.kind = StepKind(**fields)  # pyright: ignore[reportFunctionMemberAccess]  # typeshed's functions lack it
    return step

  return attach


def of(step: Callable[..., Any]) -> StepKind:
  """Returns the declaration of a step; one that declares nothing has none."""
  while isinstance(step, functools.partial):
    step = step.func
  return getattr(step, 'kind', StepKind())
