"""The exit code of worker.py says whether a run is done."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

_WORKER = pathlib.Path(__file__).parents[2] / 'launch/google_cloud/worker.py'


def _start(command: str, *words: str) -> subprocess.Popen:
  return subprocess.Popen(
    [
      sys.executable,
      _WORKER,
      '--patience=0',
      '--',
      'bash',
      '-c',
      command,
      *words,
    ]
  )


@pytest.mark.parametrize(
  ('command', 'code'),
  [
    ('touch RUN/config.gin', 42),
    ('touch RUN/config.gin RUN/COMPLETED', 0),
    ('touch RUN/config.gin RUN/COMPLETED; exit 134', 0),
    ('touch RUN/config.gin; exit 1', 1),
    ('mkdir -p RUN/checkpoints/8 RUN/checkpoints/9.partial; exit 1', 42),
    ('mkdir -p RUN/checkpoints/7; kill -KILL $$', 137),
    ('true', 0),
  ],
)
def test_exit_code(tmp_path, command, code):
  (tmp_path / 'checkpoints' / '7').mkdir(parents=True)
  command = command.replace('RUN', str(tmp_path))
  binding = f"--gin.MODEL_DIR='{tmp_path}'"
  assert _start(command, 'run', binding).wait(timeout=30) == code


def test_a_completed_run_that_fails_failed(tmp_path):
  (tmp_path / 'COMPLETED').touch()
  words = ('--gin_bindings', f"MODEL_DIR = '{tmp_path}'")
  assert _start('exit 1', 'run', *words).wait(timeout=30) == 1


def test_a_model_dir_that_cannot_be_read_is_the_commands_own_error():
  assert _start('exit 1', 'run', '--gin.MODEL_DIR=/tmp/x').wait(30) == 1


def test_a_path_needs_no_quotes(tmp_path):
  (tmp_path / 'config.gin').touch()
  assert _start('true', 'run', f'--gin.MODEL_DIR={tmp_path}').wait(30) == 42


def test_a_command_without_model_dir_has_its_own_exit_code():
  assert _start('exit 7').wait(timeout=30) == 7


def test_sigterm_reaches_the_command_which_saves_and_is_started_again(tmp_path):
  ready, saved = tmp_path / 'config.gin', tmp_path / 'saved'
  command = (
    f'trap "touch {saved}; exit 0" TERM; touch {ready};'
    ' while true; do sleep .05; done'
  )
  worker = _start(command, 'run', f"--gin.MODEL_DIR='{tmp_path}'")
  while not ready.exists():
    time.sleep(0.05)
  worker.send_signal(signal.SIGTERM)
  assert worker.wait(timeout=30) == 42
  assert saved.exists()


def test_a_model_dir_that_cannot_be_looked_at_is_no_sign_of_an_end(tmp_path):
  command = f'touch {tmp_path}/checkpoints'  # A file cannot be listed.
  binding = f"--gin.MODEL_DIR='{tmp_path}'"
  assert _start(command, 'run', binding).wait(timeout=30) == 42
