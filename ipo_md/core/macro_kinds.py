"""The kinds of values that a macro takes.

A kind reads a value that gin has parsed: it returns the value, with whole
numbers as ints, or raises a ValueError that says what the value must be. As a
text, a kind completes the sentence "NAME must be ...".
"""

from collections.abc import Mapping
import dataclasses
import math
import re
from typing import Any
from typing import Protocol

from ipo_md.core import private_apis

# Steps and ids are int32 on the devices.
_LARGEST = 2**31 - 1

_FIELD = re.compile(r'{(\w+)}')  # as judges.Template reads a prompt

# What a gin file can spell out. Anything else is an object of Python code.
_LITERALS = (bool, int, float, complex, str, bytes, tuple, list, dict, set)


class Kind(Protocol):
  """What a macro takes.

  Attributes:
    is_text: Whether a text that is none of Python's literals may be meant.
  """

  @property
  def is_text(self) -> bool: ...

  def read(self, value: Any) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Number:
  """A finite number.

  Attributes:
    whole: Whether it is an integer. 8.0 and 1e1 are read as 8 and 10.
    low: Least value.
    above: Whether `low` itself is refused.
    high: Greatest value.
    below: Whether `high` itself is refused.
    or_: A further value, such as -1.
  """

  whole: bool = False
  low: float = -math.inf
  above: bool = False
  high: float = math.inf
  below: bool = False
  or_: int | None = None

  is_text = False

  def __str__(self) -> str:
    parts = []
    if self.low > -math.inf:
      parts.append(f'{"above" if self.above else "of at least"} {self.low}')
    if self.high < math.inf:
      parts.append(f'{"below" if self.below else "at most"} {self.high}')
    text = 'a whole number ' if self.whole else 'a number '
    text = (text + ' and '.join(parts)).strip()
    return text if self.or_ is None else f'{text} or {self.or_}'

  def read(self, value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
      raise ValueError(f'must be {self}')
    if not math.isfinite(value) or (self.whole and value != int(value)):
      raise ValueError(f'must be {self}')
    value = int(value) if self.whole else value
    if self.or_ is not None and value == self.or_:
      return value
    if (
      not self.low <= value <= self.high
      or (self.above and value == self.low)
      or (self.below and value == self.high)
    ):
      raise ValueError(f'must be {self}')
    if self.whole and self.high == math.inf and value > _LARGEST:
      raise ValueError(f'must be {self}, and at most {_LARGEST}')
    return value


@dataclasses.dataclass(frozen=True)
class Flag:
  """True or False."""

  is_text = False

  def __str__(self) -> str:
    return 'True or False'

  def read(self, value: Any) -> bool:
    if not isinstance(value, bool):
      raise ValueError(f'must be {self}')
    return value


@dataclasses.dataclass(frozen=True)
class Text:
  """A text that is not empty.

  Attributes:
    what: What it is, such as 'a path'.
    choices: The texts that are allowed; () allows all.
    fields: The fields that it must have, in this order, as in '{text} {first}'.
  """

  what: str = 'a text'
  choices: tuple[str, ...] = ()
  fields: tuple[str, ...] = ()

  is_text = True

  def __str__(self) -> str:
    if self.choices:
      return 'one of ' + ', '.join(map(repr, self.choices))
    if self.fields:
      fields = ' and '.join(f'{{{field}}}' for field in self.fields)
      return f'{self.what} with {fields}'
    return self.what

  def read(self, value: Any) -> str:
    if not isinstance(value, str):
      raise ValueError(f'must be {self}{"" if self.choices else ", in quotes"}')
    if not value.strip():
      raise ValueError(f'must be {self}')
    if self.choices and value not in self.choices:
      raise ValueError(f'must be {self}')
    if self.fields and tuple(_FIELD.findall(value)) != self.fields:
      raise ValueError(f'must be {self}, in this order')
    return value


@dataclasses.dataclass(frozen=True)
class Reference:
  """A reference to a function or an object, which Python code may bind, too.

  Attributes:
    what: What it is, such as 'an objective'.
    example: A reference of this kind.
    made: Whether it must be an object that gin makes, with brackets after the
      name of its function.
  """

  what: str
  example: str
  made: bool = False

  is_text = False

  def __str__(self) -> str:
    return f'{self.what}, such as {self.example}'

  def read(self, value: Any) -> Any:
    if value is None or isinstance(value, _LITERALS):
      raise ValueError(f'must be {self}')
    if self.made and private_apis.is_called(value) is False:
      raise ValueError(f'needs brackets, {value!r}(): it must be {self}')
    return value


@dataclasses.dataclass(frozen=True)
class Sequence:
  """A tuple or a list.

  Attributes:
    each: Kind of its entries.
    least: Least number of entries.
    most: Greatest number of entries; None allows any.
    what: What the entries are.
  """

  each: Kind
  least: int = 1
  most: int | None = None
  what: str = ''

  is_text = False

  def __str__(self) -> str:
    if self.least == self.most:
      count = f'{self.least}'
    elif self.most is None:
      count = f'{self.least} or more'
    else:
      count = f'{self.least} to {self.most}'
    return f'a tuple of {count} {self.what}, each {self.each}'

  def read(self, value: Any) -> Any:
    if not isinstance(value, tuple | list):
      raise ValueError(f'must be {self}')
    if not self.least <= len(value) <= (self.most or len(value)):
      raise ValueError(f'must be {self}')
    try:
      return type(value)(read(self.each, entry) for entry in value)
    except ValueError:
      raise ValueError(f'must be {self}') from None


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Pairs of a path and the rate at which its rows are mixed."""

  is_text = False

  def __str__(self) -> str:
    return "a list of (path, rate), such as [('a.jsonl', 2.0)]"

  def read(self, value: Any) -> Any:
    if not isinstance(value, tuple | list) or not value:
      raise ValueError(f'must be {self}')
    path, rate = Text('a path'), Number(low=0, above=True)
    out = []
    for pair in value:
      if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(f'must be {self}')
      try:
        out.append((path.read(pair[0]), rate.read(pair[1])))
      except ValueError:
        raise ValueError(f'must be {self}') from None
    return type(value)(out)


@dataclasses.dataclass(frozen=True)
class Dictionary:
  """A dictionary.

  Attributes:
    key: What a key is, a text.
    each: Kind of its values; None allows any.
    example: A dictionary of this kind.
    empty: Whether it may be empty.
  """

  key: str
  each: Kind | None
  example: str
  empty: bool = False

  is_text = False

  def __str__(self) -> str:
    each = '' if self.each is None else f': {self.each}'
    return f'a dictionary {{{self.key}{each}}}, such as {self.example}'

  def read(self, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not (value or self.empty):
      raise ValueError(f'must be {self}')
    out = {}
    for key, item in value.items():
      if not isinstance(key, str) or not key:
        raise ValueError(f'must be {self}')
      try:
        out[key] = item if self.each is None else read(self.each, item)
      except ValueError as error:
        raise ValueError(
          f'must be {self}; {item!r} of {key!r} {error}'
        ) from None
    return out


@dataclasses.dataclass(frozen=True)
class Either:
  """A value of one of several kinds."""

  kinds: tuple[Kind, ...]

  @property
  def is_text(self) -> bool:
    return any(kind.is_text for kind in self.kinds)

  def __str__(self) -> str:
    return ', or '.join(map(str, self.kinds))

  def read(self, value: Any) -> Any:
    for kind in self.kinds:
      try:
        return kind.read(value)
      except ValueError:
        continue
    raise ValueError(f'must be {self}')


def read(kind: Kind, value: Any) -> Any:
  """Returns a value as a kind reads it.

  What @function() will return is not known and is left as it is. An uncalled
  @function is a value of `Reference` alone.

  Args:
    kind: Kind of the value.
    value: Value that gin has parsed, in which macros are replaced by what they
      refer to.

  Raises:
    ValueError: The value is of another kind. The text lacks the macro's name.
  """
  if private_apis.is_called(value) and not isinstance(kind, Reference):
    return value
  return kind.read(value)


@dataclasses.dataclass(frozen=True)
class Macro:
  """A macro of the gin files.

  Attributes:
    kind: What it takes.
    meaning: What it is, as a phrase.
    none: What None means, or '' if it is refused.
  """

  kind: Kind
  meaning: str
  none: str = ''

  def __str__(self) -> str:
    return f'{self.kind}{", or None" if self.none else ""}'

  def read(self, value: Any) -> Any:
    """Returns the value as its kind reads it, or raises a ValueError."""
    if value is None and self.none:
      return None
    try:
      return read(self.kind, value)
    except ValueError as error:
      none = ', or None' if self.none else ''
      raise ValueError(f'{error}{none}') from None
