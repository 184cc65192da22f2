"""Trains every point of a sweep, selects settings, and compares them.

  python launch/sweep.py launch/sweeps/smoke.toml [OUT]

launch/sweep/spec.py describes SPEC, the TOML file. Each algorithm's setting is
selected by its win rate against a baseline on validation prompts. The baseline
may be the selected setting of another algorithm, as in the paper
(https://arxiv.org/abs/2403.08635), where the best RL is selected against the
supervised policy and all others against that RL. Finally, the best of each
algorithm is trained with every seed and compared on test prompts.

  OUT/NAME             a run; OUT/logs/NAME.log is its output
  OUT/select_NAME      the comparison that selects the setting of an algorithm
  OUT/report           the final comparison, with its report and sweep.json
  OUT/table.txt        the table that is printed at the end

Repeat the command to resume: finished runs are skipped, and unfinished ones are
continued. The exit code is 1 if any run failed, 2 if the spec is wrong, and 130
if the sweep was stopped.

With --without_failed, what fails again is left out: a setting of which a seed
that selects is missing cannot be selected, and an algorithm without any setting
is not compared. The table says what is missing, and the exit code is 0.
"""

import argparse
import fcntl
import json
import os
import pathlib
import shlex
import subprocess
import sys

from etils import epath

from launch.sweep import pool as pool_lib
from launch.sweep import read
from launch.sweep import selection as selection_lib
from launch.sweep import spec as spec_lib
from launch.sweep import stages as stages_lib

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def main() -> int:
  parser = argparse.ArgumentParser(
    prog='python launch/sweep.py',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('spec', help='TOML file, such as those of launch/sweeps')
  parser.add_argument(
    'out', nargs='?', help='folder or bucket of the sweep (default: out_SPEC)'
  )
  parser.add_argument(
    '--dry_run',
    action='store_true',
    help='print the commands without running them',
  )
  parser.add_argument(
    '--at_once', type=int, help="number of runs at a time (default: the spec's)"
  )
  parser.add_argument(
    '--without_failed',
    action='store_true',
    help='select among the rest if a run fails, and say what is missing',
  )
  parser.add_argument('--logs', help='local folder (default: OUT/logs)')
  args = parser.parse_args()
  out = args.out or f'out_{pathlib.Path(args.spec).stem}'
  if '://' not in out:
    out = os.path.abspath(out)
  elif not args.logs:
    parser.error(f'{out} is a bucket: give --logs=FOLDER, a local folder.')
  try:
    spec = read.read(args.spec, out)
    sweep = Sweep(
      spec,
      pathlib.Path(args.logs or f'{out}/logs'),
      without_failed=args.without_failed,
    )
    sweep.check(begun=not args.dry_run)
    if args.dry_run:
      sweep.print_commands()
      return 0
    return sweep.run(args.at_once or spec.at_once)
  except (ValueError, OSError) as error:
    print(f'sweep: {error}', file=sys.stderr)
    return 2


class Sweep:
  """Checks, prints or runs a sweep.

  Args:
    spec: Sweep to run.
    logs: Local folder of the logs and locks.
    without_failed: Whether failed runs are left out.
  """

  def __init__(
    self,
    spec: spec_lib.Spec,
    logs: pathlib.Path,
    *,
    without_failed: bool = False,
  ):
    self._spec = spec
    self._logs = logs
    self._without_failed = without_failed
    self._stages = stages_lib.Stages(spec, without_failed=without_failed)

  def check(self, *, begun: bool = True) -> None:
    """Reads the configuration of every run.

    Args:
      begun: Whether to compare them with those of runs that have begun.

    Raises:
      ValueError: A run is wrong. The message names the first such run.
    """
    spec = self._spec
    runs = self._stages.training(spec.seeds)
    runs += [spec.selection(next(iter(spec.algorithms)), {'example': '/x'})]
    runs += [spec.comparison({'example': '/x', 'other': '/y'})]
    for names in ([r.name for r in runs], [r.slug for r in runs]):
      if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'Two runs would be called {twice}.')
    content = {
      run.name: {
        'arguments': run.arguments(spec.out),
        'axes': list(run.values),
        # The policies of a comparison are not known yet.
        'folder': spec.folder(run.name)
        if begun and 'POLICIES' not in run.bindings
        else None,
        'judge': spec.judge if run.name.startswith('select_') else None,
      }
      for run in runs
    }
    print(f'Reading the configurations of {len(runs)} runs ...', flush=True)
    checked = subprocess.run(
      [sys.executable, '-m', 'launch.sweep.check'],
      cwd=_ROOT,
      input=json.dumps(content),
      env={**os.environ, 'PYTHONPATH': _python_path()},
      capture_output=True,
      text=True,
      check=False,
    )
    if checked.returncode:
      raise ValueError(checked.stdout.strip() or checked.stderr[-2000:])

  def print_commands(self) -> None:
    """Prints every command in order, with placeholders for selections."""
    spec = self._spec
    for name, value in spec.env.items():
      print(f'export {name}={shlex.quote(value)}')
    for run in self._stages.training(spec.select_seeds):
      print(shlex.join(self._stages.command(run)))
    for name, other in spec.against.items():
      policies = {other: f'<{other}>'}
      for run in self._stages.training(spec.select_seeds):
        if run.algorithm == name:
          policies[run.name] = spec.folder(run.name)
      if spec.checkpoints == 'all':
        print('# With all checkpoints of each run:')
      print(shlex.join(self._stages.command(spec.selection(name, policies))))
    others = [s for s in spec.seeds if s not in spec.select_seeds]
    for name in spec.algorithms if others else []:
      print(f'# The selected {name}, with seeds {others}')
    final = {name: spec.folder(name) for name in spec.baselines}
    for name in spec.algorithms:
      final[name] = [f'<selected {name}, seed {seed}>' for seed in spec.seeds]
    print(shlex.join(self._stages.command(spec.comparison(final))))

  def run(self, at_once: int) -> int:
    """Runs the sweep and returns the exit code of the command."""
    self._logs.mkdir(parents=True, exist_ok=True)
    with (self._logs / 'sweep.lock').open('w') as lock:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        raise ValueError(
          f'Another sweep is running in {self._spec.out}.'
        ) from error
      pool = pool_lib.Pool(
        at_once=at_once,
        logs=self._logs,
        root=_ROOT,
        env={**self._spec.env, 'PYTHONPATH': _python_path()},
        follow=self._stages.follow,
        lose=self._stages.lose if self._without_failed else None,
      )
      done = pool.run(self._stages.jobs())
    if done:
      self._write_table()
      return 0
    for name, lines in pool.failed.items():
      print(f'\n{name} failed; the end of {self._logs}/{name}.log:\n{lines}')
    for name, missing in pool.not_started.items():
      print(f'{name} was not run; it needs {", ".join(missing) or "time"}.')
    if self._without_failed and pool.is_done('report') and not pool.stopped:
      self._write_table()
      return 0
    print('\nRepeat the command to resume.')
    if pool.failed and not self._without_failed:
      print('With --without_failed, what fails again is left out.')
    return 130 if pool.stopped else 1

  def _write_table(self) -> None:
    """Writes and prints what was selected and how it compares."""
    table = selection_lib.table(
      self._spec, self._stages.chosen, self._stages.missing
    )
    (epath.Path(self._spec.out) / 'table.txt').write_text(table)
    print(f'\n{table}\nOpen {self._spec.folder("report")}/index.html')


def _python_path() -> str:
  """Returns PYTHONPATH with this checkout before any installed one."""
  return os.pathsep.join(
    filter(None, [str(_ROOT), os.environ.get('PYTHONPATH')])
  )


if __name__ == '__main__':
  sys.exit(main())
