"""Judges that are a Python function of texts, called on the host.

  def shorter(prompts: list[str], completions: list[list[str]]):
    return [[-len(text) for text in row] for row in completions]

`RewardFunction` takes such a function of N prompts with K completions each to
rewards [N, K], and `PreferenceFunction` one of pairs to preferences [N].
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import traceback
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from ipo_md.judges import declaration
from ipo_md.judges import host
from ipo_md.judges import samples as samples_lib

Function = Callable[[list[str], list[list[str]]], Any]
_SHOWN = 80  # characters of a prompt in an error


@declaration.declare(runs_on='host', gives=('preference', 'rewards'))
@dataclasses.dataclass(frozen=True)
class RewardFunction:
  """Judges by a function that scores completions.

    RewardFunction(lambda prompts, completions: [[1.0, 0.0]] * len(prompts))

  P(y_1 > y_2 | x) = sigmoid(r(x, y_1) - r(x, y_2))            (Bradley-Terry)

  If there are several processes, the first one calls the function and
  broadcasts the rewards.

  Attributes:
    function: FUNCTION, (N prompts, N lists of K completions) -> [N, K] rewards
      in nats. Lists and arrays are accepted.
  """

  function: Function

  def __call__(
    self, samples: samples_lib.Samples, pairs: samples_lib.Pairs
  ) -> Iterator[np.ndarray]:
    yield from host.of_rewards(self.rewards(samples), pairs)

  def rewards(self, samples: samples_lib.Samples) -> np.ndarray:
    """Returns rewards [N, K].

    Raises:
      ValueError: The function raised an error, or returned something else.
    """
    texts = [list(row) for row in samples.texts]
    shape = len(texts), len(texts[0])
    return _called(self.function, list(samples.prompts), texts, shape)


@declaration.declare(runs_on='host')
@dataclasses.dataclass(frozen=True)
class PreferenceFunction:
  """Judges by a function that compares two completions.

  Each pair is shown in both orders, and the results are averaged.

  Attributes:
    function: FUNCTION, (N prompts, N lists of 2 completions) -> [N] P(y_1 > y_2
      | x), between 0 and 1, and 1/2 for a tie.
  """

  function: Function

  def __call__(
    self, samples: samples_lib.Samples, pairs: samples_lib.Pairs
  ) -> Iterator[np.ndarray]:
    """Yields [N, 2] P(y_i > y_k | x) per pair, y_i shown first and second.

    Raises:
      ValueError: The function raised an error, or returned something else.
    """
    prompts = list(samples.prompts)
    for i, k in pairs:
      first, second = (
        _called(
          self.function,
          prompts,
          [[row[a], row[b]] for row in samples.texts],
          (len(prompts),),
        )
        for a, b in ((i, k), (k, i))
      )
      yield np.stack([first, 1 - second], axis=-1)


def _called(
  function: Function,
  prompts: list[str],
  texts: list[list[str]],
  shape: tuple[int, ...],
) -> np.ndarray:
  """Returns the values of a function, the same in every process."""
  found, error = np.zeros(shape), ''
  if jax.process_index() == 0:
    try:
      found = _values(function, prompts, texts, shape)
    except ValueError as raised:
      if jax.process_count() == 1:
        raise
      error = str(raised)
  if jax.process_count() > 1:
    failed = multihost_utils.broadcast_one_to_all(np.array(bool(error)))
    if failed:
      raise ValueError(error or 'FUNCTION failed in the first process.')
    found = multihost_utils.broadcast_one_to_all(found)
  return np.asarray(found)


def _values(
  function: Function,
  prompts: list[str],
  texts: list[list[str]],
  shape: tuple[int, ...],
) -> np.ndarray:
  """Calls a function and checks what it returns."""
  name = f'FUNCTION {getattr(function, "__qualname__", function)}'
  try:
    returned = function(prompts, [list(row) for row in texts])
  except Exception as error:  # of a user's code, which may raise anything
    raise ValueError(
      f'{name} raised {_described(error)}{_culprit(function, prompts, texts)}.'
    ) from error
  meaning = '[N, K] rewards' if len(shape) == 2 else '[N] preferences'
  try:
    found = np.asarray(returned, np.float64)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f'{name} must return {meaning} of shape {shape}, but returned '
      f'{_short(returned)}: {error}.'
    ) from error
  if found.shape != shape:
    raise ValueError(
      f'{name} must return {meaning} of shape {shape}, one value for '
      f'{"each completion" if len(shape) == 2 else "each pair"}, but returned '
      f'shape {found.shape}.'
    )
  good = np.isfinite(found) if len(shape) == 2 else (found >= 0) & (found <= 1)
  if not good.all():
    place = tuple(int(i) for i in np.argwhere(~good)[0])
    must = 'be finite' if len(shape) == 2 else 'be between 0 and 1'
    raise ValueError(
      f'{name} returned {found[place]} at {list(place)}, but every value must '
      f'{must}. The prompt is {_short(prompts[place[0]])}, and its completions '
      f'are {", ".join(map(_short, texts[place[0]]))}.'
    )
  return found


def _culprit(
  function: Function, prompts: Sequence[str], texts: Sequence[list[str]]
) -> str:
  """Says which prompt an error comes from, by calling with each of them."""
  for n, (prompt, row) in enumerate(zip(prompts, texts, strict=True)):
    try:
      function([prompt], [list(row)])
    except Exception:  # as above
      return (
        f' at prompt {n} of {len(prompts)}, {_short(prompt)}, with the '
        f'completions {", ".join(map(_short, row))}'
      )
  return (
    f' for {len(prompts)} prompts together, of which the first is '
    f'{_short(prompts[0])}, though for none of them alone'
  )


def _described(error: Exception) -> str:
  """Returns the type, the message and the line of an error."""
  last = traceback.extract_tb(error.__traceback__)[-1]
  own = str(error).partition('In call to configurable')[0]  # gin adds the rest
  text = ' '.join(own.split())
  return f'{type(error).__name__} ({text}; {last.filename}:{last.lineno})'


def _short(value: Any) -> str:
  shown = repr(value)
  return shown if len(shown) <= _SHOWN else f'{shown[:_SHOWN]}...'
