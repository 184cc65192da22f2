"""Sweeps of runs that fake_run.py stands in for."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from launch.sweep import main
from launch.sweep import read

pytestmark = pytest.mark.slow

_ROOT = pathlib.Path(__file__).parents[2]


def run(spec, out, **options) -> int:
  """Runs a sweep into `out` and returns its exit code."""
  out.mkdir(exist_ok=True)
  contents = read.read(str(spec), str(out))
  sweep = main.Sweep(contents, out / 'logs', **options)
  return sweep.run(contents.at_once)


def results_of(out: pathlib.Path) -> dict[str, bytes]:
  """Returns the files that must not depend on interruptions."""
  names = ('table.txt', 'report/sweep.json', 'report/results.json')
  return {name: (out / name).read_bytes() for name in names}


def starts(out: pathlib.Path) -> dict[str, int]:
  """Returns how often each run was started."""
  return {p.parent.name: p.stat().st_size for p in out.glob('*/starts')}


def test_the_three_stages(spec, tmp_path, capsys):
  out = tmp_path / 'out'
  assert run(spec, out) == 0
  table = (out / 'table.txt').read_text()
  assert 'rl         TAU 0.2  0.700     supervised' in table
  assert 'ipo        TAU 0.3  0.600     rl_TAU=0.2_SEED=0' in table
  assert 'on 9 test prompts' in table
  assert 'of truth on validation prompts' in table
  results = json.loads((out / 'report' / 'results.json').read_text())
  assert results['policies'] == [
    'supervised',
    'rl[0]',
    'rl[1]',
    'ipo[0]',
    'ipo[1]',
  ]
  runs = json.loads((out / 'report' / 'sweep.json').read_text())['runs']
  assert [r['name'] for r in runs if r['selected']] == [
    'rl_TAU=0.2_SEED=0',
    'rl_TAU=0.2_SEED=1',
    'ipo_TAU=0.3_SEED=0',
    'ipo_TAU=0.3_SEED=1',
  ]
  # The other seed of what was not selected is not trained.
  assert not (out / 'ipo_TAU=0.05_SEED=1').exists()
  assert table in capsys.readouterr().out

  before = starts(out)
  assert run(spec, out) == 0
  assert starts(out) == before
  assert 'report was done already' in capsys.readouterr().out


def test_a_failure_is_listed_and_the_rest_goes_on(spec, tmp_path, capsys):
  out = tmp_path / 'out'
  out.mkdir()
  broken = out / 'break_ipo_TAU=0.05_SEED=0'
  broken.touch()
  (out / 'preempt_rl_TAU=0.1_SEED=0').touch()
  assert run(spec, out) == 1
  said = capsys.readouterr().out
  assert 'ipo_TAU=0.05_SEED=0 failed: exit code 3' in said
  assert 'rl_TAU=0.1_SEED=0 failed: it ended without COMPLETED' in said
  assert said.count('It is broken.') == 1
  assert 'select_ipo was not run; it needs ipo_TAU=0.05_SEED=0' in said
  assert (out / 'ipo_TAU=0.3_SEED=0' / 'COMPLETED').exists()
  broken.unlink()
  assert run(spec, out) == 0
  assert run(spec, straight := tmp_path / 'straight') == 0
  assert results_of(out) == results_of(straight)
  assert starts(out)['ipo_TAU=0.3_SEED=0'] == 1


def broken(out: pathlib.Path, *names: str) -> pathlib.Path:
  """Makes the folder of a sweep in which these runs fail."""
  out.mkdir()
  for name in names:
    (out / f'break_{name}').touch()
  return out


@pytest.mark.parametrize(
  ('names', 'selected', 'missing'),
  [
    # The better of two settings is lost; so the other one is selected.
    (['ipo_TAU=0.3_SEED=0'], ['TAU 0.2', 'TAU 0.05'], 'ipo_TAU=0.3_SEED=0'),
    # A further seed of the selected setting.
    (['ipo_TAU=0.3_SEED=1'], ['TAU 0.2', 'TAU 0.3'], 'ipo_TAU=0.3_SEED=1'),
    # All settings of an algorithm that nothing is selected against.
    (
      ['ipo_TAU=0.3_SEED=0', 'ipo_TAU=0.05_SEED=0'],
      ['TAU 0.2', 'missing'],
      'ipo_TAU=0.05_SEED=0, ipo_TAU=0.3_SEED=0, select_ipo',
    ),
    (['select_ipo'], ['TAU 0.2', 'missing'], 'select_ipo'),
    # The baseline of another selection is selected among the rest.
    (['rl_TAU=0.2_SEED=0'], ['TAU 0.1', 'TAU 0.3'], 'rl_TAU=0.2_SEED=0'),
  ],
)
def test_the_rest_is_selected_and_compared_if_asked(
  spec, tmp_path, capsys, names, selected, missing
):
  out = broken(tmp_path / 'out', *names)
  assert run(spec, out) == 1
  assert 'With --without_failed, what fails' in capsys.readouterr().out
  assert not (out / 'report' / 'COMPLETED').exists()
  before = starts(out)
  assert run(spec, out, without_failed=True) == 0
  table = (out / 'table.txt').read_text()
  assert f'Missing, because it failed: {missing}\n' in table
  for name, setting in zip(('rl', 'ipo'), selected, strict=True):
    assert f'{name:9}  {setting}' in table
  content = json.loads((out / 'report' / 'sweep.json').read_text())
  assert ', '.join(content['missing']) == missing
  assert not set(content['missing']) & {r['name'] for r in content['runs']}
  # Runs that were finished are not started again.
  for name in before:
    done = (out / name / 'COMPLETED').exists()
    assert starts(out)[name] == before[name] + (not done)
  # Repeated, it ends the same, and nothing is compared again.
  before = results_of(out)
  assert run(spec, out, without_failed=True) == 0
  assert results_of(out) == before
  assert starts(out)['report'] == 1


@pytest.mark.parametrize(
  ('names', 'why'),
  [
    (['supervised'], 'report'),
    (['report'], 'report'),
    (['select_rl'], 'select_ipo failed: it needs select_rl, which failed'),
  ],
)
def test_a_sweep_with_nothing_to_compare_fails(
  spec, tmp_path, capsys, names, why
):
  out = broken(tmp_path / 'out', *names)
  assert run(spec, out, without_failed=True) == 1
  said = capsys.readouterr().out
  assert f'{names[0]} failed: exit code 3' in said
  assert why in said or why == 'report'
  assert not (out / 'table.txt').exists()


def test_without_a_failure_the_option_changes_nothing(spec, tmp_path):
  assert run(spec, tmp_path / 'a') == 0
  assert run(spec, tmp_path / 'b', without_failed=True) == 0
  assert results_of(tmp_path / 'a') == results_of(tmp_path / 'b')


def test_a_run_that_is_there_after_all_is_not_left_out(spec, tmp_path, capsys):
  """Its comparison was of other runs, which is said."""
  out = broken(tmp_path / 'out', 'ipo_TAU=0.3_SEED=0')
  assert run(spec, out, without_failed=True) == 0
  (out / 'break_ipo_TAU=0.3_SEED=0').unlink()
  assert run(spec, out) == 1
  assert 'select_ipo compares other runs' in capsys.readouterr().out


@pytest.mark.parametrize('orphans', [True, False])
def test_killed_and_started_again_it_is_the_same(spec, tmp_path, orphans):
  """SIGKILL strikes the sweep alone, or its runs too, at any point."""
  assert run(spec, straight := tmp_path / 'straight') == 0
  out = tmp_path / 'out'
  out.mkdir()
  (out / 'slow').write_text('.3')
  code = (
    f'import pathlib, sys; sys.path.insert(0, {str(_ROOT)!r})\n'
    'from launch.sweep import main, read\n'
    f'spec = read.read({str(spec)!r}, {str(out)!r})\n'
    f'sys.exit(main.Sweep(spec, pathlib.Path({str(out)!r}, "logs")).run(2))'
  )
  for seconds in (0.9, 1.4):
    process = subprocess.Popen([sys.executable, '-c', code])
    time.sleep(seconds)
    children = pathlib.Path(
      f'/proc/{process.pid}/task/{process.pid}/children'
    ).read_text()
    process.kill()
    process.wait()
    if not orphans:
      for child in map(int, children.split()):
        os.kill(child, signal.SIGKILL)
  assert (
    subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
  )
  assert results_of(out) == results_of(straight)
  if orphans:  # No run was started while it was still running.
    assert set(starts(out).values()) == {1}


def test_a_comparison_of_other_runs_is_not_overwritten(spec, tmp_path, capsys):
  out = tmp_path / 'out'
  assert run(spec, out) == 0
  before = (out / 'select_ipo' / 'results.json').read_bytes()
  spec.write_text(spec.read_text().replace('[0.3, 0.05]', '[0.3, 0.5]'))
  assert run(spec, out) == 1
  assert 'select_ipo compares other runs' in capsys.readouterr().out
  assert (out / 'select_ipo' / 'results.json').read_bytes() == before
  shutil.rmtree(out / 'select_ipo')
  shutil.rmtree(out / 'report')
  assert run(spec, out) == 0
  assert 'TAU 0.5' in (out / 'table.txt').read_text()


def test_one_sweep_at_a_time(spec, tmp_path):
  out = tmp_path / 'out'
  (out / 'logs').mkdir(parents=True)
  with (out / 'logs' / 'sweep.lock').open('w') as lock:
    main.fcntl.flock(lock, main.fcntl.LOCK_EX)
    with pytest.raises(ValueError, match='Another sweep is running in'):
      run(spec, out)
