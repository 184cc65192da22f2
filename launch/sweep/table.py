"""Shows the state of a sweep while it runs."""

from collections.abc import Sequence
import time

import rich.console
import rich.live
import rich.markup
import rich.table
import rich.text

_LOG_SECONDS = 30  # between two reports of progress in a log file


class Table:
  """Shows a table that is redrawn on a terminal, and lines elsewhere.

  with table.Table() as shown:
    shown.say('ipo started')
    shown.state([('ipo', '0:12', 'step 5/50')], 'sweep  0/2 runs')
  """

  def __init__(self):
    self._console = rich.console.Console(highlight=False)
    self._live = None
    if self._console.is_terminal:
      self._live = rich.live.Live(
        console=self._console, auto_refresh=False, transient=True
      )
    self._shown = time.monotonic()

  def __enter__(self):
    if self._live:
      self._live.start()
    return self

  def __exit__(self, *_):
    if self._live:
      self._live.stop()

  def say(self, text: str) -> None:
    """Prints a line that stays."""
    if self._live:
      self._console.print(text, markup=False)
    else:
      print(text, flush=True)

  def state(self, rows: Sequence[tuple[str, str, str]], summary: str) -> None:
    """Shows the current state; not on a terminal, only every 30 seconds.

    Args:
      rows: Name, time and last line of progress of each active run.
      summary: Line below the table.
    """
    if self._live:
      table = rich.table.Table(box=None, show_header=False)
      for row in rows:
        table.add_row(*map(rich.markup.escape, row))
      shown = rich.console.Group(table, rich.text.Text(summary))
      self._live.update(shown, refresh=True)
    elif time.monotonic() - self._shown >= _LOG_SECONDS:
      self._shown = time.monotonic()
      for name, took, said in rows:
        print(f'  {name}  {took}  {said}', flush=True)
      print(summary, flush=True)
