"""Short forms of tests/endurance/faults.py and tests/endurance/processes.py."""

import pathlib
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

_ROOT = pathlib.Path(__file__).parents[2]


def _said(command: str, *args) -> str:
  """Returns what a command of tests/endurance prints; it must succeed."""
  done = subprocess.run(
    [sys.executable, '-m', f'tests.endurance.{command}', *args],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stdout + done.stderr[-4000:]
  return done.stdout


def test_runs_that_are_killed_lose_nothing(tmp_path):
  """The runs then continue in other numbers of processes, and one hangs."""
  said = _said('faults', tmp_path / 'runs', '--kills=2', '--processes=1,2')
  kills, stops = re.search(r'(\d) SIGKILLs and (\d) SIGTERMs in', said).groups()
  assert int(kills) + int(stops) == 2
  for source, count in ((1, 2), (2, 1)):
    assert re.search(f'{source} -> {count} processes: .* apart', said)
  assert 'a suspended process was reported' in said


@pytest.mark.proof
def test_two_processes_of_four_devices_are_one_of_eight(tmp_path):
  said = _said(
    'processes', tmp_path / 'runs', '--processes=1,2', '--last=supervised'
  )
  assert re.search('2 processes, supervised: .* apart', said)
