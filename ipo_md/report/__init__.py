"""The report of a comparison: one HTML page with figures and tables.

  report.write('/tmp/comparison')  # reads results.json, writes index.html

`page` embeds the data in the page, `figures` computes the figures, and
`figure_files` writes them as PNG and CSV. The page's own program is page.js,
page_figures.js and page_tables.js.
"""

from ipo_md.report.page import write

__all__ = [
  'write',
]
