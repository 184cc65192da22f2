"""Draws a metric along training, as a mean over the seeds of each algorithm.

  python -m ipo_md.report.curves --metric=chosen_log_prob --out=/tmp/curves \
    'NCA=out/nca_*' 'DPO=out/offline_dpo_*'

writes /tmp/curves.png and /tmp/curves.csv, and prints a table of the first
value, the last one and their difference, with 95 % t intervals over seeds.
"""

import argparse
from collections.abc import Mapping
from collections.abc import Sequence
import glob

from etils import epath
import numpy as np
from scipy import stats

from ipo_md.core import intervals
from ipo_md.core import metrics
from ipo_md.report import figure_files
from ipo_md.report import figures

Curve = Sequence[tuple[int, float]]


def read(folder: str, metric: str) -> list[tuple[int, float]]:
  """Returns (step, value) of a metric in the metrics.jsonl of a run.

  Raises:
    ValueError: The run has no such metric.
  """
  path = epath.Path(folder) / metrics.METRICS_FILE
  if not path.exists():
    raise ValueError(
      f'{folder} is no MODEL_DIR of a run: it has no {path.name}.'
    )
  steps = metrics.read_metrics(folder)
  found = [(step, row[metric]) for step, row in steps.items() if metric in row]
  if not found:
    names = sorted({name for row in steps.values() for name in row})
    raise ValueError(f'{path} has no {metric}, only {", ".join(names)}.')
  return found


def over_seeds(curves: Sequence[Curve]) -> np.ndarray:
  """Returns [steps, 4] step, mean, and lower and upper end of its interval.

  Args:
    curves: The same metric of runs that differ in their seed.

  Raises:
    ValueError: The runs have values at different steps.
  """
  steps, *others = [[step for step, _ in curve] for curve in curves]
  if any(other != steps for other in others):
    raise ValueError(
      'Runs of one algorithm have values at different steps: they differ in '
      'more than their seed, or one is not finished.'
    )
  values = np.array([[value for _, value in curve] for curve in curves])
  return np.column_stack([steps, *interval(values)])


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the means over the first axis and the ends of their t intervals.

  Args:
    values: [seeds, ...]. One seed gives an interval of no width.
  """
  mean, half = values.mean(axis=0), np.zeros_like(values[0])
  if len(values) > 1:
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    half = stats.t.ppf((1 + intervals.CONFIDENCE) / 2, len(values) - 1) * error
  return mean, mean - half, mean + half


def draw(groups: Mapping[str, Sequence[Curve]], metric: str) -> figures.Figure:
  """Makes the figure of a metric, with a line for each group of seeds."""
  return figures.Figure(
    name=metric,
    place='',
    title='',
    x='step',
    y=metric,
    series=[
      figures.Series(name, style, over_seeds(curves).tolist())
      for style, (name, curves) in enumerate(groups.items())
    ],
  )


def table(groups: Mapping[str, Sequence[Curve]], metric: str) -> str:
  """Returns the first and last values and their differences as Markdown."""
  lines = [f'| {metric} | seeds | first | last | difference |']
  lines.append('|' + '---|' * 5)
  for name, curves in groups.items():
    ends = np.array([[curve[0][1], curve[-1][1]] for curve in curves])
    columns = np.column_stack([ends, ends[:, 1] - ends[:, 0]])
    cells = [
      f'{mean:.2f} ({low:.2f}, {high:.2f})'
      for mean, low, high in zip(*interval(columns), strict=True)
    ]
    lines.append(f'| {name} | {len(curves)} | {" | ".join(cells)} |')
  return '\n'.join(lines)


def main() -> None:
  """Draws what the command line names."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--metric', required=True, help='a name in metrics.jsonl')
  parser.add_argument('--out', required=True, help='path without .png and .csv')
  parser.add_argument('groups', nargs='+', metavar='NAME=PATTERN')
  flags = parser.parse_args()
  groups = {}
  for group in flags.groups:
    name, _, pattern = group.partition('=')
    folders = sorted(glob.glob(pattern))
    if not folders:
      parser.error(f'no folder matches {pattern!r} of {name}.')
    try:
      groups[name] = [read(folder, flags.metric) for folder in folders]
      over_seeds(groups[name])
    except ValueError as error:
      parser.error(f'{name}: {error}')
  figure_files.save(epath.Path(flags.out), draw(groups, flags.metric))
  print(table(groups, flags.metric))


if __name__ == '__main__':
  main()
