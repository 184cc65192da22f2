"""Computes the figures of the report.

Each figure is computed once, here. The page draws it with page_figures.js, and
`figure_files` writes it to FOLDER/figures/NAME.png and NAME.csv.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import re
from typing import Any

from ipo_md.core import intervals

# The palette of Okabe and Ito, as in page_figures.js. Dashes and markers tell
# the series apart without colour, too.
COLORS = ('#0072b2', '#e69f00', '#009e73', '#cc79a7', '#56b4e9', '#d55e00')
_MAIN_CURVES = (
  'loss',
  'win_rate',
  'eval_kl',
  'eval_length',
  'chosen_log_prob',
  'rejected_log_prob',
)


@dataclasses.dataclass(frozen=True)
class Series:
  """A line or a set of marks in a figure.

  Attributes:
    name: Name in the legend.
    style: Index of the colour, the dashes and the marker.
    points: Points (x, y) or (x, y, low, high).
    run: Run that the page can hide, or '' for a series that is always shown.
  """

  name: str
  style: int
  points: Sequence[Sequence[float]]
  run: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
  """A plot.

  Attributes:
    name: Name of its files.
    place: Id of the element of the page that contains it.
    title: Title above the plot.
    x: Label of the x axis.
    y: Label of the y axis.
    series: Lines or marks.
    lines: Whether the points of a series are joined.
    log: Whether the x axis is logarithmic.
    diagonal: Whether y = x is drawn.
    level: Height of a horizontal line, such as a win rate of 1/2, or None.
  """

  name: str
  place: str
  title: str
  x: str
  y: str
  series: Sequence[Series]
  lines: bool = True
  log: bool = False
  diagonal: bool = False
  level: float | None = None


def every(
  results: Mapping[str, Any],
  runs: Mapping[str, Mapping[str, Any]],
  sweep: Mapping[str, Any],
) -> list[Figure]:
  """Makes all figures for which there is data.

  Args:
    results: Contents of results.json.
    runs: Name -> {'metrics': {name: [[step, value], ...]}, ...}.
    sweep: Contents of sweep.json, or empty.
  """
  found = [
    *frontiers(results),
    along_runs(runs),
    *sweeps(sweep),
    *curves(runs),
    *calibrations(results),
    *by_length(results),
  ]
  return [figure for figure in found if any(s.points for s in figure.series)]


def frontiers(results: Mapping[str, Any]) -> list[Figure]:
  """Plots win rate over the first policy against KL, a figure per judge."""
  policies, kl = results['policies'], results.get('kl', {})
  found = []
  for judge in results['judges']:
    series = []
    for i, name in enumerate(policies):
      rate = results['win_rate'][judge][i][0]
      if kl.get(name) is not None and rate is not None:
        interval = results['interval'][judge][i][0]
        series.append(Series(name, i, [[kl[name], rate, *interval]]))
    found.append(
      Figure(
        name=f'frontier_{judge}',
        place='frontier',
        title=f'Win rate over {policies[0]} by {_words(judge)}, against KL',
        x='KL to the reference, nats a completion',
        y='win rate',
        series=series if len(series) > 1 else [],
        lines=False,
        level=0.5,
      )
    )
  return found


def along_runs(runs: Mapping[str, Mapping[str, Any]]) -> Figure:
  """Plots win rate against KL along each run, as measured during training."""
  series = []
  for i, (name, run) in enumerate(runs.items()):
    kl = dict(map(tuple, run['metrics'].get('eval_kl', [])))
    rates = dict(map(tuple, run['metrics'].get('win_rate', [])))
    points = [
      [kl[step], rate]
      for step, rate in rates.items()
      if _finite(rate) and _finite(kl.get(step))
    ]
    series.append(Series(name, i, points, run=name))
  return Figure(
    name='frontier_along_runs',
    place='along-runs',
    title='Win rate over the reference against KL, along each run',
    x='KL to the reference, nats a completion',
    y="win rate by the run's judge",
    series=[s for s in series if s.points],
    level=0.5,
  )


def sweeps(sweep: Mapping[str, Any]) -> list[Figure]:
  """Plots win rate over each axis of a sweep, a line per algorithm and seed."""
  runs = sweep.get('runs', [])
  algorithms = list(dict.fromkeys(run['algorithm'] for run in runs))
  found = []
  for axis in dict.fromkeys(name for run in runs for name in run['values']):
    lines: dict[str, list[list[float]]] = {}
    styles = {}
    for run in runs:
      x = number(run['values'].get(axis, ''))
      if x is None or not run['measured']:
        continue
      rest = {k: v for k, v in run['values'].items() if k != axis}
      others = ', '.join(f'{k} {v}' for k, v in rest.items())
      name = ', '.join(
        filter(None, [f'{run["algorithm"]} seed {run["seed"]}', others])
      )
      styles[name] = algorithms.index(run['algorithm'])
      best = max(run['measured'].values())
      lines.setdefault(name, []).append([x, *best])
    xs = [point[0] for points in lines.values() for point in points]
    found.append(
      Figure(
        name=f'sweep_{_file(axis)}',
        place='sweep-figures',
        title=f'Selection over {axis}: win rate by {_words(sweep["judge"])}',
        x=axis,
        y='win rate over what it is selected against',
        series=[
          Series(name, styles[name], sorted(points))
          for name, points in lines.items()
        ],
        log=bool(xs) and min(xs) > 0,
        level=0.5,
      )
    )
  return found


def curves(runs: Mapping[str, Mapping[str, Any]]) -> list[Figure]:
  """Plots every metric over the steps of every run, main metrics first."""
  metrics = sorted(
    {
      name
      for run in runs.values()
      for name, points in run['metrics'].items()
      if len(points) > 1
    }
  )
  main = [name for name in _MAIN_CURVES if name in metrics]
  rest = [name for name in metrics if name not in main]
  return [
    Figure(
      name=f'curve_{_file(metric)}',
      place='curves' if metric in main else 'other-curves',
      title=_words(metric),
      x='step',
      y=_words(metric),
      series=[
        Series(name, i, [p for p in points if _finite(p[1])], run=name)
        for i, (name, run) in enumerate(runs.items())
        if (points := run['metrics'].get(metric))
      ],
    )
    for metric in main + rest
  ]


def calibrations(results: Mapping[str, Any]) -> list[Figure]:
  """Plots the accuracy of judges over their confidence, by set of pairs."""
  found = []
  for pairs, judges in results.get('calibration', {}).items():
    series = [
      Series(
        f'{_words(judge)} (ECE {table["ece"]:.3f})',
        i,
        [
          [b['confidence'], b['accuracy'], *_interval(b)] for b in table['bins']
        ],
      )
      for i, (judge, table) in enumerate(judges.items())
    ]
    found.append(
      Figure(
        name=f'calibration_{_file(pairs)}',
        place='calibration',
        title=f'Calibration on {_words(pairs)}',
        x='confidence, max(p, 1 - p)',
        y='accuracy',
        series=series,
        diagonal=True,
      )
    )
  return found


def by_length(results: Mapping[str, Any]) -> list[Figure]:
  """Plots the accuracy of judges over how much longer the better one is."""
  return [
    Figure(
      name=f'length_{_file(pairs)}',
      place='calibration',
      title=f'Accuracy by length on {_words(pairs)}',
      x='tokens by which the better completion is longer',
      y='accuracy',
      series=[
        Series(
          _words(judge),
          i,
          [
            [(b['low'] + b['high']) / 2, b['accuracy'], *_interval(b)]
            for b in bins
          ],
        )
        for i, (judge, bins) in enumerate(judges.items())
      ],
      level=0.5,
    )
    for pairs, judges in results.get('by_length', {}).items()
  ]


def number(value: str) -> float | None:
  """Returns the last number in a gin value, or None.

  number('(0.0, 0.125)')  # 0.125
  """
  found = re.findall(r'[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?', value)
  return float(found[-1]) if found else None


def _interval(share: Mapping[str, float]) -> tuple[float, float]:
  """Returns the 95 % interval of an accuracy over `count` pairs."""
  right = share['accuracy'] * share['count']
  low, high = intervals.score_interval(right, 0, share['count'])
  return float(low), float(high)


def _finite(value: float | None) -> bool:
  return value is not None and math.isfinite(value)


def _words(name: str) -> str:
  return name.replace('_', ' ')


def _file(name: str) -> str:
  return re.sub(r'[^\w.=-]+', '_', name, flags=re.ASCII)
