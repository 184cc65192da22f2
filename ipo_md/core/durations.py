"""Formats durations. It uses the standard library only."""

import math


def clock(seconds: float) -> str:
  """Returns '2:33', or '1:02:33' from an hour on, with seconds rounded up."""
  minutes, seconds = divmod(math.ceil(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours}:{minutes:02}:{seconds:02}'
  return f'{minutes}:{seconds:02}'
