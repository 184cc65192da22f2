"""Trains every point of a sweep, selects, and compares what was selected.

  python launch/sweep.py launch/sweeps/smoke.toml [OUT]

SPEC is described in launch/sweep/spec.py. Each algorithm's setting is selected
by its win rate against a baseline on validation prompts; the baseline may be
what another algorithm was selected with, as in the paper (2403.08635): the best
RL against the supervised policy, all others against that RL, and the best of
each with every seed in one table on test prompts.

  OUT/NAME             a run; OUT/logs/NAME.log is what it says
  OUT/select_NAME      the comparison that selects an algorithm's setting
  OUT/report           the last comparison, with report and sweep.json
  OUT/table.txt        the table that is printed

The same command again goes on: runs that are done are skipped, broken ones
continued. Exit code 1 if any run failed, 2 for a wrong spec, 130 if stopped.
"""

import argparse
from collections.abc import Callable
from collections.abc import Sequence
import fcntl
import functools
import json
import os
import pathlib
import shlex
import string
import subprocess
import sys
from typing import Any

from etils import epath

from launch.sweep import pool as pool_lib
from launch.sweep import read
from launch.sweep import selection as selection_lib
from launch.sweep import spec as spec_lib

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('spec', help='a TOML file, as of launch/sweeps')
  parser.add_argument('out', nargs='?', help='folder or bucket; out_SPEC')
  parser.add_argument('--dry_run', action='store_true', help='print commands')
  parser.add_argument('--at_once', type=int, help="instead of the spec's")
  parser.add_argument('--logs', help='local folder; OUT/logs')
  args = parser.parse_args()
  out = args.out or f'out_{pathlib.Path(args.spec).stem}'
  if '://' not in out:
    out = os.path.abspath(out)
  elif not args.logs:
    parser.error(f'{out} is a bucket: --logs=FOLDER, a local one, is needed.')
  try:
    spec = read.read(args.spec, out)
    sweep = Sweep(spec, pathlib.Path(args.logs or f'{out}/logs'))
    sweep.check(begun=not args.dry_run)
    if args.dry_run:
      sweep.print_commands()
      return 0
    return sweep.run(args.at_once or spec.at_once)
  except (ValueError, OSError) as error:
    print(f'sweep: {error}', file=sys.stderr)
    return 2


class Sweep:
  """The runs of a spec, in the order in which they need each other.

  Args:
    spec: what to run.
    logs: local folder of logs and locks.
  """

  def __init__(self, spec: spec_lib.Spec, logs: pathlib.Path):
    self._spec = spec
    self._logs = logs
    self._chosen: dict[str, selection_lib.Selection] = {}

  def check(self, *, begun: bool = True) -> None:
    """Reads every configuration.

    Args:
      begun: whether to compare with what is in the folders.

    Raises:
      ValueError: what is wrong with the first run that is.
    """
    spec = self._spec
    runs = self._training(spec.seeds)
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
        # A comparison's policies are not known yet.
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
    """Every command, in order; what is selected only the runs will tell."""
    spec = self._spec
    for name, value in spec.env.items():
      print(f'export {name}={shlex.quote(value)}')
    for run in self._training(spec.select_seeds):
      print(shlex.join(self._command(run)))
    for name, other in spec.against.items():
      policies = {other: f'<{other}>'}
      for run in self._training(spec.select_seeds):
        if run.algorithm == name:
          policies[run.name] = spec.folder(run.name)
      if spec.checkpoints == 'all':
        print('# with all checkpoints of each run:')
      print(shlex.join(self._command(spec.selection(name, policies))))
    others = [s for s in spec.seeds if s not in spec.select_seeds]
    for name in spec.algorithms if others else []:
      print(f'# {name} as selected, with seeds {others}')
    final = {name: spec.folder(name) for name in spec.baselines}
    for name in spec.algorithms:
      final[name] = [
        f'<{name} as selected, seed {seed}>' for seed in spec.seeds
      ]
    print(shlex.join(self._command(spec.comparison(final))))

  def run(self, at_once: int) -> int:
    """Runs all of it. Returns the exit code."""
    self._logs.mkdir(parents=True, exist_ok=True)
    with (self._logs / 'sweep.lock').open('w') as lock:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        raise ValueError(f'Another sweep runs in {self._spec.out}.') from error
      pool = pool_lib.Pool(
        at_once=at_once,
        logs=self._logs,
        root=_ROOT,
        env={**self._spec.env, 'PYTHONPATH': _python_path()},
        follow=self._follow,
      )
      done = pool.run(self._jobs())
    if done:
      table = selection_lib.table(self._spec, self._chosen)
      (epath.Path(self._spec.out) / 'table.txt').write_text(table)
      print(f'\n{table}\nOpen {self._spec.folder("report")}/index.html')
      return 0
    for name, lines in pool.failed.items():
      print(f'\n{name} failed; the end of {self._logs}/{name}.log:\n{lines}')
    for name, missing in pool.not_started.items():
      print(f'{name} was not done; it needs {", ".join(missing) or "time"}.')
    print('\nThe same command goes on from here.')
    return 130 if pool.stopped else 1

  def _training(self, seeds: Sequence[int]) -> list[spec_lib.Run]:
    """Runs of [runs], then policies; what others are selected against first."""
    spec = self._spec
    order = sorted(
      spec.algorithms, key=lambda name: name not in spec.against.values()
    )
    return list(spec.runs.values()) + [
      spec.policy(name, values, seed)
      for name in order
      for values in spec.algorithms[name]
      for seed in seeds
    ]

  def _jobs(self) -> list[pool_lib.Job]:
    """All but what depends on a selection; what others wait for goes first."""
    spec = self._spec
    runs = self._training(spec.select_seeds)
    jobs = []
    for name, other in spec.against.items():
      run = spec.selection(name, {})
      needs = {r.name for r in runs if r.algorithm == name}
      needs.add(f'select_{other}' if other in spec.algorithms else other)
      make = functools.partial(self._selection, name)
      jobs.append(self._comparison(run, make, run.needs | needs))
    return jobs + [self._job(run) for run in runs]

  def _follow(self, name: str) -> list[pool_lib.Job]:
    """What a finished job makes possible: the other seeds, the last table."""
    spec = self._spec
    algorithm = name.removeprefix('select_')
    if name == algorithm or algorithm not in spec.algorithms:
      return []
    self._chosen[algorithm] = chosen = selection_lib.select(
      spec, algorithm, self._baseline(algorithm)[0]
    )
    seeds = [s for s in spec.seeds if s not in spec.select_seeds]
    runs = [spec.policy(algorithm, chosen.values, seed) for seed in seeds]
    jobs = [self._job(run) for run in runs]
    if len(self._chosen) == len(spec.algorithms):
      run = spec.comparison({})
      needs = {
        self._policy(n, s).name for n in self._chosen for s in spec.seeds
      }
      needs |= {*run.needs, *spec.baselines}
      jobs.append(self._comparison(run, self._final, frozenset(needs)))
    return jobs

  def _policy(self, algorithm: str, seed: int) -> spec_lib.Run:
    """The run of an algorithm as selected."""
    return self._spec.policy(algorithm, self._chosen[algorithm].values, seed)

  def _baseline(self, algorithm: str) -> tuple[str, str]:
    """Name and path of what an algorithm is selected against."""
    spec, other = self._spec, self._spec.against[algorithm]
    if other in spec.runs:
      return other, spec.folder(other)
    run = self._policy(other, spec.select_seeds[0])
    best = selection_lib.Candidate(run, self._chosen[other].step)
    return best.name, best.path(spec)

  def _selection(self, algorithm: str) -> tuple[spec_lib.Run, dict[str, Any]]:
    """The comparison that selects, and what it is made of."""
    spec = self._spec
    name, path = self._baseline(algorithm)
    policies = {name: path}
    for candidate in selection_lib.candidates(spec, algorithm):
      policies[candidate.name] = candidate.path(spec)
    return spec.selection(algorithm, policies), {'policies': list(policies)}

  def _final(self) -> tuple[spec_lib.Run, dict[str, Any]]:
    """The last comparison, and sweep.json for its report."""
    spec = self._spec
    policies = {name: spec.folder(name) for name in spec.baselines}
    for name in spec.algorithms:
      selection = self._chosen[name]
      every = [self._policy(name, seed) for seed in spec.seeds]
      policies[name] = [
        selection_lib.Candidate(run, selection.step).path(spec) for run in every
      ]
    content = selection_lib.describe(spec, self._chosen)
    return spec.comparison(policies), content

  def _job(self, run: spec_lib.Run) -> pool_lib.Job:
    return pool_lib.Job(
      name=run.name,
      kind=run.files[0],
      command=functools.partial(self._command, run),
      needs=run.needs,
      completed=functools.partial(self._completed, run.name),
    )

  def _comparison(
    self,
    run: spec_lib.Run,
    make: Callable[[], tuple[spec_lib.Run, dict[str, Any]]],
    needs: frozenset[str],
  ) -> pool_lib.Job:
    """A job whose policies are known when what it needs is done.

    sweep.json in its folder says what it is made of: made of something else, it
    fails rather than be overwritten.
    """
    path = epath.Path(self._spec.folder(run.name)) / 'sweep.json'

    def command():
      run, content = make()
      if self._completed(run.name):
        raise ValueError(
          f'{path.parent} compares other runs than this sweep has now; remove '
          'it to compare again.'
        )
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(_json(content))
      return self._command(run)

    def completed():
      return self._completed(run.name) and path.read_text() == _json(make()[1])

    return pool_lib.Job(
      name=run.name,
      kind=run.files[0],
      command=command,
      needs=needs,
      completed=completed,
    )

  def _completed(self, name: str) -> bool:
    return (epath.Path(self._spec.folder(name)) / 'COMPLETED').exists()

  def _command(self, run: spec_lib.Run) -> list[str]:
    """The command line of a run."""
    names = {'name': run.name, 'slug': run.slug, 'out': self._spec.out}
    launcher = [
      string.Template(word).substitute(names) for word in self._spec.launcher
    ]
    python = ['python'] if launcher else [sys.executable]
    arguments = run.arguments(self._spec.out)
    return [*launcher, *python, '-u', '-m', 'ipo_md', *arguments]


def _json(content: Any) -> str:
  return json.dumps(content, indent=1, sort_keys=True) + '\n'


def _python_path() -> str:
  """This checkout before any other that may be installed."""
  return os.pathsep.join(
    filter(None, [str(_ROOT), os.environ.get('PYTHONPATH')])
  )


if __name__ == '__main__':
  sys.exit(main())
