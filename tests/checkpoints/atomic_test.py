"""Directories that exist whole or not at all."""

import signal

import pytest

from ipo_md.checkpoints import atomic


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
