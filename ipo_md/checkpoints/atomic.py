"""Directories that exist whole or not at all."""

from collections.abc import Iterator
import contextlib
import signal
import time
from typing import Any

from etils import epath

from ipo_md.core import ownership
from ipo_md.core import paths


@contextlib.contextmanager
def new_directory(output_dir: str) -> Iterator[epath.Path]:
  """Yields a directory that becomes `output_dir` when the block succeeds.

    with atomic.new_directory('/checkpoints/t5') as directory:
      (directory / 'config.json').write_text(text)

  It is removed if the block raises an error or the process gets SIGTERM. One
  process at a time writes it; what a dead one has left is removed. In
  Cloud Storage, a directory is renamed one object at a time, not at once.

  Raises:
    ValueError: `output_dir` exists, or a process that lives is writing it.
    SystemExit: The process got SIGTERM.
  """
  output_dir = paths.absolute(output_dir, 'OUTPUT_DIR')
  output = epath.Path(output_dir)
  if output.exists():
    raise ValueError(f'OUTPUT_DIR {output_dir} already exists.')
  partial = output.parent / f'{output.name}.partial'
  partial.mkdir(parents=True, exist_ok=True)
  # JAX's own handler would swallow the signal.
  before = signal.signal(signal.SIGTERM, _stop)
  owner = contextlib.ExitStack()
  try:
    owner.enter_context(ownership.owned(str(partial), 'OUTPUT_DIR'))
  except BaseException:
    signal.signal(signal.SIGTERM, before)
    raise
  try:
    with owner:
      _empty(partial)
      yield partial
    partial.rename(output)
  except BaseException:
    _remove(partial)
    raise
  finally:
    signal.signal(signal.SIGTERM, before)


def _empty(directory: epath.Path) -> None:
  """Removes what a process that was killed has left."""
  for path in directory.iterdir():
    if path.is_dir():
      path.rmtree()
    elif path.name != ownership.FILE:
      path.unlink()


def _remove(directory: epath.Path) -> None:
  """Removes a directory that threads of a stopped save may still write to."""
  end = time.monotonic() + 10
  while directory.exists():
    try:
      directory.rmtree()
    except OSError:
      if time.monotonic() > end:
        raise
      time.sleep(0.1)


def _stop(number: int, frame: Any) -> None:
  del frame
  raise SystemExit(128 + number)
