"""Profiles a range of updates."""

from typing import Any

from etils import epath
import jax


class Profiler:
  """Profiles PROFILE_STEPS updates from PROFILE_START, and on demand.

  Whenever the file MODEL_DIR/PROFILE is created or touched, the next
  PROFILE_STEPS updates are profiled as well.

  Each process profiles its own devices and looks for the file by itself.

  Args:
    model_dir: MODEL_DIR, the folder of the run.
    first: PROFILE_START, first update of the profile; None profiles on demand
      only.
    count: PROFILE_STEPS, updates in a profile.
  """

  def __init__(self, model_dir: str, *, first: int | None, count: int):
    self._directory = epath.Path(model_dir)
    self._first, self._count = first, count
    self._last = None  # update that the running profile ends with
    self._touched = self._time()

  def __enter__(self) -> 'Profiler':
    return self

  def __exit__(self, *_) -> None:
    if self._last is not None:
      self._stop()

  def _time(self) -> float | None:
    path = self._directory / 'PROFILE'
    return path.stat().mtime if path.exists() else None

  def look(self, step: int) -> None:
    """Profiles from the next update on if the file was touched."""
    touched = self._time()
    if touched is not None and touched != self._touched:
      self._first = step + 1
    self._touched = touched

  def before(self, step: int) -> None:
    """Starts a profile if it is due; called before each update."""
    if step == self._first and self._last is None:
      path = self._directory / 'profile' / str(step)
      jax.profiler.start_trace(str(path))
      self._last = step + self._count - 1

  def after(self, step: int, arrays: Any) -> None:
    """Ends a profile if it is due; called after each update."""
    if step == self._last:
      jax.block_until_ready(arrays)
      self._stop()

  def _stop(self) -> None:
    jax.profiler.stop_trace()
    self._last = None
