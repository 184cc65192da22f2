"""A weighted sum of the rewards of several judges on the host."""

from collections.abc import Iterator
from collections.abc import Mapping
import math

import numpy as np

from ipo_md.judges import declaration
from ipo_md.judges import host
from ipo_md.judges import samples as samples_lib


@declaration.declare(
  runs_on='host',
  gives=('preference', 'rewards'),
  parts=lambda judge: judge.judges.values(),
)
class WeightedRewards:
  """Adds the rewards of several judges.

    r(x, y) = sum_i w_i (r_i(x, y) - m_i) / s_i

    WeightedRewards(
      judges={'helpful': helpful, 'short': short},
      weights={'helpful': 1.0, 'short': 0.1},
    )

  P(y_1 > y_2 | x) = sigmoid(r(x, y_1) - r(x, y_2)), so the means m_i do not
  change a preference.

  Args:
    judges: REWARD_JUDGES, name -> judge that gives rewards.
    weights: REWARD_WEIGHTS, name -> w_i, for the same names. A negative weight
      is a penalty.
    scales: REWARD_SCALES, name -> (m_i, s_i), the mean and the standard
      deviation that a judge's rewards are brought to 0 and 1 from. Judges that
      are not named, or None, keep their rewards: m_i = 0 and s_i = 1.

  Raises:
    ValueError: The names differ, a judge gives no rewards, a number is not
      finite or no deviation.
  """

  def __init__(
    self,
    *,
    judges: Mapping[str, samples_lib.HostJudge],
    weights: Mapping[str, float],
    scales: Mapping[str, tuple[float, float]] | None = None,
  ):
    scales = scales or {}
    if not judges or judges.keys() != weights.keys():
      raise ValueError(
        f'REWARD_JUDGES has the names {sorted(judges)} and REWARD_WEIGHTS '
        f'{sorted(weights)}. They must have the same names, at least one.'
      )
    if unknown := sorted(scales.keys() - judges.keys()):
      raise ValueError(
        f'REWARD_SCALES names {unknown}, but REWARD_JUDGES has '
        f'{sorted(judges)}.'
      )
    for name, judge in judges.items():
      if 'rewards' not in declaration.gives(judge):
        raise ValueError(
          f'REWARD_JUDGES[{name!r}] gives no rewards, which are added, but '
          'only preferences.'
        )
      if not _is_number(weights[name]):
        raise ValueError(
          f'REWARD_WEIGHTS[{name!r}] = {weights[name]!r} must be a finite '
          'number.'
        )
      if name in scales and not _is_scale(scales[name]):
        raise ValueError(
          f'REWARD_SCALES[{name!r}] = {scales[name]!r} must be a mean and a '
          'standard deviation above 0.'
        )
    self.judges = dict(judges)
    self._weights, self._scales = dict(weights), dict(scales)

  def __call__(
    self, samples: samples_lib.Samples, pairs: samples_lib.Pairs
  ) -> Iterator[np.ndarray]:
    yield from host.of_rewards(self.rewards(samples), pairs)

  def rewards(self, samples: samples_lib.Samples) -> np.ndarray:
    """Returns rewards [N, K].

    Raises:
      ValueError: A judge gives no rewards after all.
    """
    total = np.zeros((len(samples.texts), len(samples.texts[0])))
    for name, judge in self.judges.items():
      rewards = judge.rewards(samples)  # pyright: ignore[reportFunctionMemberAccess]  # as it declares
      if rewards is None:
        raise ValueError(
          f'REWARD_JUDGES[{name!r}] gives no rewards, which are added, but '
          'only preferences.'
        )
      mean, deviation = self._scales.get(name, (0.0, 1.0))
      total += self._weights[name] * (rewards - mean) / deviation
    return total


def _is_number(value: object) -> bool:
  if isinstance(value, bool) or not isinstance(value, int | float):
    return False
  return math.isfinite(value)


def _is_scale(value: object) -> bool:
  return (
    isinstance(value, tuple | list)
    and len(value) == 2
    and all(map(_is_number, value))
    and value[1] > 0
  )
