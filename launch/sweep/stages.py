"""Orders the runs of a sweep: training, selection, comparison."""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import json
import string
import sys
from typing import Any

from etils import epath

from launch.sweep import pool as pool_lib
from launch.sweep import selection as selection_lib
from launch.sweep import spec as spec_lib


class Stages:
  """The jobs of a sweep, some of which depend on what it selects.

  Args:
    spec: Sweep that is run.
    without_failed: Whether comparisons leave out runs that failed.

  Attributes:
    chosen: Selection of each algorithm that is known so far, by name.
    missing: Names of the runs and comparisons that failed.
  """

  def __init__(self, spec: spec_lib.Spec, *, without_failed: bool = False):
    self._spec = spec
    self._without_failed = without_failed
    self.chosen: dict[str, selection_lib.Selection] = {}
    self.missing: set[str] = set()

  def training(self, seeds: Sequence[int]) -> list[spec_lib.Run]:
    """Returns the runs of [runs], then the policies with these seeds.

    Algorithms that others are selected against come first.
    """
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

  def jobs(self) -> list[pool_lib.Job]:
    """Returns the jobs that do not depend on a selection.

    Comparisons come first, because other jobs wait for them.
    """
    spec = self._spec
    runs = self.training(spec.select_seeds)
    jobs = []
    for name, other in spec.against.items():
      run = spec.selection(name, {})
      own = frozenset(r.name for r in runs if r.algorithm == name)
      baseline = f'select_{other}' if other in spec.algorithms else other
      make = functools.partial(self._selection, name)
      needs = run.needs | own | {baseline}
      jobs.append(self._comparison(run, make, needs, own))
    return jobs + [self._job(run) for run in runs]

  def follow(self, name: str) -> list[pool_lib.Job]:
    """Returns the jobs that a finished job makes possible.

    After a selection these are the runs with the other seeds, and after the
    last selection also the final comparison.
    """
    spec = self._spec
    algorithm = name.removeprefix('select_')
    if name == algorithm or algorithm not in spec.algorithms:
      return []
    self.chosen[algorithm] = chosen = selection_lib.select(
      spec, algorithm, self._baseline(algorithm)[0], self.missing
    )
    seeds = [s for s in spec.seeds if s not in spec.select_seeds]
    runs = [spec.policy(algorithm, chosen.values, seed) for seed in seeds]
    return [self._job(run) for run in runs] + self._report()

  def lose(self, name: str) -> list[pool_lib.Job]:
    """Leaves out a run or comparison that failed; returns further jobs."""
    self.missing.add(name)
    algorithm = name.removeprefix('select_')
    return self._report() if name != algorithm else []

  def _report(self) -> list[pool_lib.Job]:
    """Returns the final comparison if the last selection is known."""
    spec = self._spec
    lost = [n for n in spec.algorithms if f'select_{n}' in self.missing]
    if not self.chosen or len(self.chosen) + len(lost) < len(spec.algorithms):
      return []
    run = spec.comparison({})
    own = frozenset(
      self._policy(n, s).name for n in self.chosen for s in spec.seeds
    )
    needs = run.needs | own | frozenset(spec.baselines)
    return [self._comparison(run, self._final, needs, own)]

  def _policy(self, algorithm: str, seed: int) -> spec_lib.Run:
    """Returns the run of an algorithm with the selected setting."""
    return self._spec.policy(algorithm, self.chosen[algorithm].values, seed)

  def _baseline(self, algorithm: str) -> tuple[str, str]:
    """Returns the name and the path of what an algorithm is compared with."""
    spec, other = self._spec, self._spec.against[algorithm]
    if other in spec.runs:
      return other, spec.folder(other)
    run = self._policy(other, spec.select_seeds[0])
    best = selection_lib.Candidate(run, self.chosen[other].step)
    return best.name, best.path(spec)

  def _selection(self, algorithm: str) -> tuple[spec_lib.Run, dict[str, Any]]:
    """Returns the comparison that selects, and the content of sweep.json."""
    spec = self._spec
    name, path = self._baseline(algorithm)
    policies = {name: path}
    candidates = selection_lib.candidates(spec, algorithm, self.missing)
    if not candidates:
      raise ValueError(
        f'No setting of {algorithm} can be selected: of each, a run with one '
        f'of the seeds {list(spec.select_seeds)} failed.'
      )
    for candidate in candidates:
      policies[candidate.name] = candidate.path(spec)
    return spec.selection(algorithm, policies), {'policies': list(policies)}

  def _final(self) -> tuple[spec_lib.Run, dict[str, Any]]:
    """Returns the final comparison, and the content of sweep.json."""
    spec = self._spec
    policies = {name: spec.folder(name) for name in spec.baselines}
    for name in spec.algorithms:
      if name not in self.chosen:
        continue
      selection = self.chosen[name]
      every = [self._policy(name, seed) for seed in spec.seeds]
      every = [run for run in every if run.name not in self.missing]
      policies[name] = [
        selection_lib.Candidate(run, selection.step).path(spec) for run in every
      ]
    content = selection_lib.describe(spec, self.chosen, self.missing)
    return spec.comparison(policies), content

  def _job(self, run: spec_lib.Run) -> pool_lib.Job:
    return pool_lib.Job(
      name=run.name,
      kind=run.files[0],
      command=functools.partial(self.command, run),
      needs=run.needs,
      completed=functools.partial(self._completed, run.name),
    )

  def _comparison(
    self,
    run: spec_lib.Run,
    make: Callable[[], tuple[spec_lib.Run, dict[str, Any]]],
    needs: frozenset[str],
    policies: frozenset[str],
  ) -> pool_lib.Job:
    """Returns a comparison, whose policies are known once its needs are done.

    A file sweep.json in the folder of the comparison says what it compares. A
    finished comparison of something else makes the job fail, so that it is not
    overwritten.

    Args:
      run: The comparison, for its name and its run file.
      make: Function that returns the comparison and the content of sweep.json.
      needs: Names of the jobs that come before.
      policies: Those of them that are compared, if they do not fail.
    """
    path = epath.Path(self._spec.folder(run.name)) / 'sweep.json'

    def command():
      run, content = make()
      if self._completed(run.name):
        raise ValueError(
          f'{path.parent} compares other runs than this sweep does now. Remove '
          'it to compare again.'
        )
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(_json(content))
      return self.command(run)

    def completed():
      return self._completed(run.name) and path.read_text() == _json(make()[1])

    return pool_lib.Job(
      name=run.name,
      kind=run.files[0],
      command=command,
      needs=needs,
      completed=completed,
      optional=policies if self._without_failed else frozenset(),
    )

  def _completed(self, name: str) -> bool:
    return (epath.Path(self._spec.folder(name)) / 'COMPLETED').exists()

  def command(self, run: spec_lib.Run) -> list[str]:
    """Returns the command line of a run."""
    names = {'name': run.name, 'slug': run.slug, 'out': self._spec.out}
    launcher = [
      string.Template(word).substitute(names) for word in self._spec.launcher
    ]
    python = ['python'] if launcher else [sys.executable]
    arguments = run.arguments(self._spec.out)
    return [*launcher, *python, '-u', '-m', 'ipo_md', *arguments]


def _json(content: Any) -> str:
  return json.dumps(content, indent=1, sort_keys=True) + '\n'
