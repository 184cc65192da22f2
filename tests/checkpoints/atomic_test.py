"""Directories that exist whole or not at all."""

import pathlib
import signal
import subprocess
import sys

import pytest

from ipo_md.checkpoints import atomic

_HOLD = """
import sys, time
from ipo_md.checkpoints import atomic
with atomic.new_directory(sys.argv[1]) as directory:
  (directory / 'half').write_text('theirs')
  print(1, flush=True)
  time.sleep(600)
"""


def test_sigterm_leaves_no_partial_directory(tmp_path):
  before = signal.getsignal(signal.SIGTERM)
  with (
    pytest.raises(SystemExit) as stopped,
    atomic.new_directory(str(tmp_path / 'output')) as directory,
  ):
    (directory / 'half').write_text('')
    signal.raise_signal(signal.SIGTERM)
  assert stopped.value.code == 143
  assert not list(tmp_path.iterdir())
  assert signal.getsignal(signal.SIGTERM) == before


def test_two_processes_do_not_write_one_directory(tmp_path):
  """The second one says so, and takes over what a dead one has left."""
  process = subprocess.Popen(
    [sys.executable, '-c', _HOLD, tmp_path / 'output'],
    cwd=pathlib.Path(__file__).parents[2],
    stdout=subprocess.PIPE,
  )
  half = tmp_path / 'output.partial' / 'half'
  before = signal.getsignal(signal.SIGTERM)
  try:
    process.stdout.readline()
    with (
      pytest.raises(ValueError, match=f'OUTPUT_DIR .* {process.pid} on .*OUTP'),
      atomic.new_directory(str(tmp_path / 'output')),
    ):
      pass
    assert half.read_text() == 'theirs'
    assert signal.getsignal(signal.SIGTERM) == before
  finally:
    process.kill()
    process.wait()
  with atomic.new_directory(str(tmp_path / 'output')) as directory:
    assert not half.exists()
    (directory / 'whole').write_text('')
  (whole,) = (tmp_path / 'output').iterdir()
  assert whole.name == 'whole'
