"""Preference games that are solved exactly."""

from ipo_md.games.exact import mixture
from ipo_md.games.exact import nash_averaging
from ipo_md.games.exact import offline_ipo

__all__ = [
  'mixture',
  'nash_averaging',
  'offline_ipo',
]
