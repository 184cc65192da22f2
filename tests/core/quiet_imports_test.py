"""Imports of TensorFlow say nothing about devices, and keep what matters."""

import os
import pathlib
import subprocess
import sys

import pytest

PACKAGE = """
import os, sys
os.write(2, b'WARNING: All log messages before absl::InitializeLog() is\\n')
os.write(2, b'I0000 00:00:1795880448.554563 1 cudart_stub.cc:31] no drivers\\n')
os.write(2, b'E0000 00:00:1795880448.554563 1 port.cc:153] broken\\n')
print('a warning of Python', file=sys.stderr)
"""


@pytest.mark.parametrize('fails', [False, True])
def test_only_noise_is_dropped(tmp_path, fails):
  text = PACKAGE + ("raise ImportError('no library')\n" if fails else '')
  (tmp_path / 'tensorflow.py').write_text(text)
  root = pathlib.Path(__file__).parents[2]
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      'from ipo_md.core import quiet_imports\n'
      'quiet_imports.install()\n'
      'import tensorflow\n'
      "import sys; print('after', file=sys.stderr)",
    ],
    env=os.environ | {'PYTHONPATH': f'{tmp_path}:{root}'},
    capture_output=True,
    text=True,
  )
  lines = done.stderr.splitlines()
  assert lines[:2] == [
    'E0000 00:00:1795880448.554563 1 port.cc:153] broken',
    'a warning of Python',
  ]
  assert ('after' in lines) == (not fails)
  assert (done.returncode != 0) == fails
