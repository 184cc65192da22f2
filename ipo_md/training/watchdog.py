"""Ends a process in which nothing has happened for too long."""

import faulthandler
import os
import sys
import threading
import time

import jax


class Watchdog:
  """Ends a process in which nothing has happened for too long.

  On a hang all processes wait for the one that hangs. Each of them prints what
  its threads are doing and exits with code 1, so that a cluster restarts them.

  Args:
    seconds: HANG_SECONDS; 0 waits for ever.
  """

  def __init__(self, seconds: float):
    self._seconds = seconds
    self._last = time.monotonic(), 'the start'
    self._over = threading.Event()

  def __enter__(self) -> 'Watchdog':
    if self._seconds:
      threading.Thread(target=self._watch, daemon=True).start()
    return self

  def __exit__(self, *_) -> None:
    self._over.set()

  def alive(self, what: str) -> None:
    """Records that something has happened."""
    self._last = time.monotonic(), what

  def _watch(self) -> None:
    while not self._over.wait(min(self._seconds / 4, 10)):
      last, what = self._last
      if time.monotonic() - last > self._seconds:
        try:
          print(
            f'ipo_md: process {jax.process_index()} of {jax.process_count()}: '
            f'nothing has happened for {self._seconds:,.0f} s (HANG_SECONDS) '
            f'after {what}. What its threads do:',
            file=sys.stderr,
            flush=True,
          )
          faulthandler.dump_traceback(file=sys.__stderr__ or 2)
        finally:  # even if the disk that this goes to is full
          os._exit(1)
