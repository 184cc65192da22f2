"""Checks the sizes of a network."""

from collections.abc import Sequence
from typing import Any


def check(config: Any, names: Sequence[str]) -> None:
  """Raises a ValueError that names a size which is not a positive integer.

  Args:
    config: Configuration of a network.
    names: Names of its sizes.
  """
  for name in names:
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
      owner = type(config).__name__.removesuffix('Config')
      raise ValueError(
        f'{owner}.{name} = {value!r}: it must be a whole number of at least 1.'
      )
