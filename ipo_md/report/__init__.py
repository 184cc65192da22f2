"""The report of a comparison: one HTML page with figures and tables."""

from ipo_md.report.page import write

__all__ = [
  'write',
]
