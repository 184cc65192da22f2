"""States the type and the range of the numeric macros of gin/runs.

`check` is called before anything is compiled. A whole number may be written as
8, 8.0 or 1e1; the macro is bound again as the integer. A macro that is not in
the table is a user's own and is not checked.
"""

from collections.abc import Mapping
import dataclasses
import math

import gin
from gin import config as gin_config

from ipo_md.core import private_apis


@dataclasses.dataclass(frozen=True)
class Number:
  """A number that a macro takes.

  Attributes:
    whole: Whether it is an integer.
    low: Least value.
    above: Whether `low` itself is refused.
    high: Greatest value.
    none: Whether None is allowed.
  """

  whole: bool = False
  low: float = -math.inf
  above: bool = False
  high: float = math.inf
  none: bool = False

  def __str__(self) -> str:
    text = 'a whole number' if self.whole else 'a number'
    if self.low > -math.inf:
      text += f' {"above" if self.above else "of at least"} {self.low:g}'
    if self.high < math.inf:
      text += (
        f' {"and" if self.low > -math.inf else "of"} at most {self.high:g}'
      )
    return text + (', or None' if self.none else '')

  def read(self, value: object) -> int | float | None:
    """Returns the value, a whole number as an int.

    Raises:
      ValueError: The value is not such a number.
    """
    if value is None and self.none:
      return None
    if isinstance(value, bool) or not isinstance(value, int | float):
      raise ValueError(f'must be {self}')
    if not math.isfinite(value) or (self.whole and value != int(value)):
      raise ValueError(f'must be {self}')
    if not self.low <= value <= self.high or (self.above and value == self.low):
      raise ValueError(f'must be {self}')
    return int(value) if self.whole else value


_COUNT = Number(whole=True, low=1)
_NATURAL = Number(whole=True, low=0)
_POSITIVE = Number(low=0, above=True)

TABLE: Mapping[str, Number] = {
  'BATCH_SIZE': _COUNT,
  'EVAL_BATCH_SIZE': _COUNT,
  'EVAL_EXAMPLES': _COUNT,
  'JUDGE_BATCH_SIZE': _COUNT,
  'JUDGE_MAX_LENGTH': _COUNT,
  'LEARNING_RATE': Number(low=0),
  'LOG_PERIOD': _NATURAL,
  'MAX_NEW_TOKENS': _COUNT,
  'MICROBATCHES': _COUNT,
  'SEED': _NATURAL,
  'TOP_K': _NATURAL,
  'TOP_P': Number(low=0, above=True, high=1),
  'TRAIN_STEPS': _COUNT,
  'WARMUP_STEPS': _NATURAL,
}


def check() -> None:
  """Checks the bound macros of the table, and binds whole numbers as ints.

  Raises:
    ValueError: Names the macro, its value and what it must be.
  """
  for name in sorted(private_apis.bound_macros() & TABLE.keys()):
    key = f'{name}/gin.macro.value'
    value = gin.query_parameter(key)
    if isinstance(value, gin_config.ConfigurableReference):
      continue  # %OTHER or @function
    try:
      number = TABLE[name].read(value)
    except ValueError as error:
      raise ValueError(f'{name} = {value!r}: {name} {error}.') from None
    if type(number) is not type(value):
      gin.bind_parameter(key, number)
