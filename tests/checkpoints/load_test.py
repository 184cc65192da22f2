"""Parameters of a model from a checkpoint."""

import subprocess
import sys


def test_checkpoints_are_imported_without_seqio_and_tensorflow():
  code = (
    'import sys, ipo_md.checkpoints; '
    "print(sorted({'seqio', 'tensorflow'} & sys.modules.keys()))"
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout == '[]\n'
