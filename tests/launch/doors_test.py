"""The commands launch/tpu.py, launch/gke.py and launch/sweep.py."""

import subprocess
import sys

import pytest

from ipo_md.training import logbook
from tests.launch import checkout


@pytest.mark.parametrize('door', ['tpu', 'gke', 'sweep'])
def test_usage_names_the_command_from_any_folder(tmp_path, door):
  done = subprocess.run(
    [sys.executable, checkout.ROOT / 'launch' / f'{door}.py', '--help'],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith(f'usage: python launch/{door}.py [-h]')


def test_google_cloud_needs_the_standard_library_alone(tmp_path):
  """A laptop without the environment can start and follow runs."""
  checkout.make(tmp_path, {})
  for door in ('tpu', 'gke'):
    command = [sys.executable, '-S', tmp_path / 'launch' / f'{door}.py']
    done = subprocess.run(
      [*command, '--help'], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_the_commit_is_that_of_the_checkout_or_of_the_file(tmp_path):
  assert logbook._commit(tmp_path) is None
  (tmp_path / 'file').touch()
  expected = checkout.commit(tmp_path)
  assert logbook._commit(tmp_path) == expected
  (tmp_path / 'COMMIT').write_text('c0ffee\n')
  assert logbook._commit(tmp_path) == 'c0ffee'


def test_a_broken_checkout_has_no_commit(tmp_path):
  (tmp_path / '.git').touch()
  assert logbook._commit(tmp_path) is None
