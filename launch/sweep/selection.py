"""Selects settings by the results of a sweep's comparisons."""

from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
from typing import Any

from etils import epath

from launch.sweep import spec as spec_lib


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One checkpoint of a run.

  Attributes:
    run: Run that saved it.
    step: Step of the checkpoint, or None for the last one.
  """

  run: spec_lib.Run
  step: int | None

  @property
  def name(self) -> str:
    """Name of the policy in the comparison."""
    at = '' if self.step is None else f'_step={self.step}'
    return self.run.name + at

  def path(self, spec: spec_lib.Spec) -> str:
    """Returns the path from which the comparison loads the policy."""
    folder = spec.folder(self.run.name)
    return folder if self.step is None else f'{folder}/checkpoints/{self.step}'


@dataclasses.dataclass(frozen=True)
class Selection:
  """The setting of an algorithm with the highest mean win rate over seeds.

  Attributes:
    values: Value of each axis.
    step: Step of the checkpoint, or None for the last one.
    win_rate: Mean win rate over the seeds that select.
    baseline: Name of the policy that it was compared with.
    measured: Name of each candidate -> win rate and its interval, low and high.
  """

  values: Mapping[str, str]
  step: int | None
  win_rate: float
  baseline: str
  measured: Mapping[str, Sequence[float]]


def candidates(
  spec: spec_lib.Spec, algorithm: str, missing: Collection[str] = ()
) -> list[Candidate]:
  """Returns the checkpoints among which a setting is selected.

  Args:
    spec: Sweep whose runs are finished.
    algorithm: Name of the algorithm.
    missing: Names of runs that failed. A setting with one of them is left out,
      because means over different seeds do not compare.
  """
  found = []
  for values in spec.algorithms[algorithm]:
    runs = [spec.policy(algorithm, values, seed) for seed in spec.select_seeds]
    if any(run.name in missing for run in runs):
      continue
    for run in runs:
      steps: list[int | None] = [None]
      if spec.checkpoints == 'all':
        folder = epath.Path(spec.folder(run.name)) / 'checkpoints'
        names = [d.name for d in folder.iterdir()] if folder.exists() else []
        steps = sorted(int(n) for n in names if n.isdigit()) or [None]
      found += [Candidate(run, step) for step in steps]
  return found


def select(
  spec: spec_lib.Spec,
  algorithm: str,
  baseline: str,
  missing: Collection[str] = (),
) -> Selection:
  """Selects a setting by the comparison select_ALGORITHM.

  Of several settings with the same win rate, the first one is selected.

  Args:
    spec: Sweep that made the comparison.
    algorithm: Name of the algorithm.
    baseline: Name of the policy that all candidates were compared with.
    missing: Names of runs that failed, which were not compared.
  """
  results = read(spec, f'select_{algorithm}')
  column = results['policies'].index(baseline)
  settings: dict[Any, list[float]] = {}
  measured = {}
  for candidate in candidates(spec, algorithm, missing):
    row = results['policies'].index(candidate.name)
    rate = results['win_rate'][spec.judge][row][column]
    interval = results['interval'][spec.judge][row][column]
    measured[candidate.name] = [rate, *interval]
    key = (*candidate.run.values.items(), candidate.step)
    settings.setdefault(key, []).append(rate)
  means = {
    key: sum(rates) / len(rates)
    for key, rates in settings.items()
    if len(rates) == len(spec.select_seeds)  # every seed has this checkpoint
  }
  best = max(means, key=means.get)
  *values, step = best
  return Selection(dict(values), step, means[best], baseline, measured)


def read(spec: spec_lib.Spec, name: str) -> dict[str, Any]:
  """Returns the results of a comparison."""
  path = epath.Path(spec.folder(name)) / 'results.json'
  return json.loads(path.read_text())


def describe(
  spec: spec_lib.Spec,
  chosen: Mapping[str, Selection],
  missing: Collection[str] = (),
) -> dict[str, Any]:
  """Returns sweep.json, which tells the report what each run is."""
  runs = []
  for algorithm, points in spec.algorithms.items():
    if algorithm not in chosen:
      continue
    selection = chosen[algorithm]
    for values in points:
      for seed in spec.seeds:
        run = spec.policy(algorithm, values, seed)
        at = {
          name: rate
          for name, rate in selection.measured.items()
          if name.partition('_step=')[0] == run.name
        }
        if run.name in missing or values != selection.values and not at:
          continue
        runs.append(
          {
            'name': run.name,
            'algorithm': algorithm,
            'values': dict(values),
            'seed': seed,
            'selected': values == selection.values,
            'step': selection.step,
            'against': selection.baseline,
            'measured': at,
          }
        )
  return {
    'judge': spec.judge,
    'seeds': list(spec.select_seeds),
    'splits': list(spec.splits),
    'runs': runs,
    **({'missing': sorted(missing)} if missing else {}),
  }


def table(
  spec: spec_lib.Spec,
  chosen: Mapping[str, Selection],
  missing: Collection[str] = (),
) -> str:
  """Returns what was selected, and how it compares, as text."""
  seeds = ', '.join(map(str, spec.select_seeds))
  lines = [
    f'Selected by the win rate of {spec.judge} on {spec.splits[0]} prompts, '
    f'mean over seeds {seeds}:',
    '',
  ]
  rows = [['algorithm', 'setting', 'win rate', 'against']]
  for algorithm in spec.algorithms:
    if algorithm not in chosen:
      rows.append([algorithm, 'missing', '-', '-'])
      continue
    selection = chosen[algorithm]
    setting = [f'{k} {v}' for k, v in selection.values.items()]
    if selection.step is not None:
      setting.append(f'step {selection.step:,}')
    rows.append(
      [
        algorithm,
        ', '.join(setting) or '-',
        f'{selection.win_rate:.3f}',
        selection.baseline,
      ]
    )
  lines += _aligned(rows)
  results = read(spec, 'report')
  policies, judges = results['policies'], results['judges']
  lines += [
    '',
    f'Win rate over {policies[0]} on {results["prompts"]:,} {spec.splits[1]} '
    'prompts, with 95 % intervals over prompts:',
    '',
  ]
  rows = [['policy', *judges, 'kl']]
  for i, policy in enumerate(policies[1:], 1):
    row = [policy]
    for judge in judges:
      rate = results['win_rate'][judge][i][0]
      low, high = results['interval'][judge][i][0]
      row.append(f'{rate:.3f} [{low:.3f}, {high:.3f}]')
    kl = results.get('kl', {}).get(policy)
    rows.append([*row, '-' if kl is None else f'{kl:.2f}'])
  lines += _aligned(rows)
  if missing:
    lines += ['', f'Missing, because it failed: {", ".join(sorted(missing))}']
  return '\n'.join(lines) + '\n'


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
  """Returns lines in which the cells of each column begin together."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    '  '.join(
      cell.ljust(width) for cell, width in zip(row, widths, strict=True)
    ).rstrip()
    for row in rows
  ]
