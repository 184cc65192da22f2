"""Progress lines of long phases and of training runs."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import time
from typing import Any
from typing import TypeVar

import jax
import rich.console
import rich.live
import rich.text

from ipo_md.core import durations

_LOG_SECONDS = 30  # between two lines of `progress` in a log file
_TERMINAL_SECONDS = 0.2
_CONSOLE = rich.console.Console(highlight=False)  # prints to sys.stdout

_Item = TypeVar('_Item')


class ProgressLine:
  """One line that says how a training run goes.

    step 1,200/30,000  loss 0.1234  win rate 0.612  18,340 tokens/s  left 1:02

  On a terminal the line is rewritten in place; elsewhere every call of `update`
  prints one line. The win rate is the last one known. As soon as there is a
  second interval, the time left skips the first one, which includes
  compilation.

  Args:
    total_steps: TRAIN_STEPS, number of updates.
    step: Step that the run starts from.
  """

  def __init__(self, total_steps: int, step: int = 0):
    self._total = total_steps
    self._step, self._time = step, time.monotonic()
    self._timed_from = None
    self._win_rate = None
    self._line = _Line()

  def update(
    self, step: int, metrics: Mapping[str, Any], *, tokens: float
  ) -> None:
    """Shows the state after `step` updates.

    Args:
      step: Number of updates made.
      metrics: Metrics, of which `loss` and `win_rate` are shown.
      tokens: Number of tokens processed since the last call.
    """
    now = time.monotonic()
    fields = [f'step {step:,}/{self._total:,}']
    if 'loss' in metrics:
      fields.append(f'loss {float(metrics["loss"]):.4f}')
    self._win_rate = metrics.get('win_rate', self._win_rate)
    if self._win_rate is not None:
      fields.append(f'win rate {float(self._win_rate):.3f}')
    fields.append(f'{tokens / max(now - self._time, 1e-9):,.0f} tokens/s')
    first_step, first_time = self._timed_from or (self._step, self._time)
    if step > first_step:
      rate = (now - first_time) / (step - first_step)
      fields.append(f'left {durations.clock(rate * (self._total - step))}')
    if self._timed_from is None:
      self._timed_from = step, now
    self._step, self._time = step, now
    self._line.show('  '.join(fields))

  def close(self) -> None:
    """Ends the line on a terminal, so that the next output starts a new one."""
    self._line.end()


def say(text: str) -> None:
  """Prints a line, on process 0 alone."""
  if jax.process_index() == 0:
    print(text, flush=True)


def counted(counts: Mapping[str, int]) -> str:
  """Returns the counts of a data set as text.

  progress.counted({'examples': 4096, 'prompts_cut': 3})
  # 'examples 4,096, prompts_cut 3'
  """
  return ', '.join(f'{name} {count:,}' for name, count in counts.items())


def progress(
  items: Iterable[_Item],
  total: int,
  label: str | Callable[[], str],
  size: Callable[[_Item], int] = lambda item: 1,
) -> Iterator[_Item]:
  """Yields items and shows the progress of a long phase.

    sampling ipo_md  34/128  27 %  left 0:12

  Args:
    items: Items to work on. One counts as done when the next is asked for.
    total: Number of items, or the sum of their sizes; 0 if it is unknown.
    label: Name of the phase, or a function that returns it.
    size: Function that returns the size of an item.
  """
  line = _Line()
  said = label if callable(label) else lambda: label
  start = shown = time.monotonic()
  period = _TERMINAL_SECONDS if line.terminal else _LOG_SECONDS
  done = 0
  try:
    for item in items:
      yield item
      done += size(item)
      now = time.monotonic()
      if now - shown >= period and done < total:
        left = durations.clock((now - start) / done * (total - done))
        share = 100 * done // total
        line.show(f'{said()}  {done:,}/{total:,}  {share} %  left {left}')
        shown = now
    took = durations.clock(time.monotonic() - start)
    of = f'/{total:,}' if total else ''
    line.show(f'{said()}  {done:,}{of}  took {took}')
  finally:
    line.end()


class _Line:
  """A line of text that replaces the one before it on a terminal.

  What is printed in between appears above it.
  """

  def __init__(self):
    self.terminal = _CONSOLE.is_terminal
    self._silent = jax.process_index() != 0
    self._live = None

  def show(self, text: str) -> None:
    if self._silent:
      return
    if not self.terminal:
      print(text, flush=True)
      return
    if self._live is None:
      self._live = rich.live.Live(console=_CONSOLE, auto_refresh=False)
      self._live.start()
      _CONSOLE.show_cursor(True)  # for a run that is killed
    shown = rich.text.Text(text, no_wrap=True, overflow='ellipsis')
    self._live.update(shown, refresh=True)

  def end(self) -> None:
    if self._live is not None:
      self._live.stop()
    self._live = None
