"""Writes the figures of the report as PNG and CSV."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import csv
import io
from typing import Any

from etils import epath
import matplotlib.figure

from ipo_md.report import figures

_DASHES = ('-', (0, (7, 3)), (0, (2, 3)), (0, (9, 3, 2, 3)))
_MARKERS = ('o', 's', '^', 'D')
_MAX_LEGEND = 14  # A PNG with more series has no legend.


def write(
  folder: epath.Path,
  drawn: Iterable[figures.Figure],
  results: Mapping[str, Any],
) -> None:
  """Writes NAME.png and NAME.csv of each figure and of each judge's matrix.

  Args:
    folder: Folder of the files, created if it does not exist.
    drawn: Figures.
    results: Contents of results.json.
  """
  folder.mkdir(parents=True, exist_ok=True)
  for figure in drawn:
    save(folder / figure.name, figure)
  names = results['policies']
  for judge in results['judges']:
    rates, bounds = results['win_rate'][judge], results['interval'][judge]
    _save(folder / f'win_rate_{judge}.png', heat_map(names, rates, bounds))
    rows = [
      [names[i], names[k], rates[i][k], *(bounds[i][k] or ())]
      for i in range(len(names))
      for k in range(len(names))
    ]
    _table(
      folder / f'win_rate_{judge}.csv',
      ['policy', 'over', 'win_rate', 'low', 'high'],
      rows,
    )


def save(stem: epath.Path, figure: figures.Figure) -> None:
  """Writes a figure as STEM.png and its points as STEM.csv."""
  _save(epath.Path(f'{stem}.png'), plot(figure))
  rows = [
    [series.name, *point] for series in figure.series for point in series.points
  ]
  _table(epath.Path(f'{stem}.csv'), ['series', 'x', 'y', 'low', 'high'], rows)


def plot(figure: figures.Figure) -> matplotlib.figure.Figure:
  """Draws a figure with matplotlib."""
  page = matplotlib.figure.Figure(figsize=(7, 4.5), layout='constrained')
  axes = page.add_subplot()
  for series in figure.series:
    style = series.style
    x, y, *bounds = zip(
      *(p if len(p) == 4 else (*p, p[1], p[1]) for p in series.points),
      strict=True,
    )
    low, high = bounds
    below = [max(0, v - at) for v, at in zip(y, low, strict=True)]
    above = [max(0, at - v) for v, at in zip(y, high, strict=True)]
    dash = _DASHES[(style // len(figures.COLORS) + style) % len(_DASHES)]
    axes.errorbar(
      x,
      y,
      yerr=(below, above) if any(below) or any(above) else None,
      label=series.name,
      color=figures.COLORS[style % len(figures.COLORS)],
      linestyle=dash if figure.lines else 'none',
      marker=_MARKERS[style % len(_MARKERS)] if len(x) < 50 else None,
      markersize=4,
      linewidth=1.5,
      elinewidth=0.8,
      capsize=2,
    )
  if figure.level is not None:
    axes.axhline(figure.level, color='gray', linewidth=0.8, linestyle=':')
  if figure.diagonal:
    axes.plot([0.5, 1], [0.5, 1], color='gray', linewidth=0.8, linestyle=':')
  if figure.log:
    axes.set_xscale('log')
  axes.set(title=figure.title, xlabel=figure.x, ylabel=figure.y)
  axes.grid(alpha=0.3)
  if 1 < len(figure.series) <= _MAX_LEGEND:
    axes.legend(fontsize=7)
  return page


def heat_map(
  names: Sequence[str],
  rates: Sequence[Sequence[float | None]],
  bounds: Sequence[Sequence[Sequence[float | None]]],
) -> matplotlib.figure.Figure:
  """Draws the win rates of rows over columns, with their intervals.

  Args:
    names: M policies.
    rates: [M, M] win rates, None for pairs that were not judged.
    bounds: [M, M] lower and upper ends of the intervals.
  """
  size = 1.6 + 0.95 * len(names)
  page = matplotlib.figure.Figure(figsize=(size, size), layout='constrained')
  axes = page.add_subplot()
  shown = [[0.5 if rate is None else rate for rate in row] for row in rates]
  axes.imshow(shown, cmap='PuOr', vmin=0, vmax=1)
  for i, row in enumerate(rates):
    for k, rate in enumerate(row):
      if rate is None:
        continue
      text = f'{rate:.3f}'
      if i != k:
        text += '\n{:.3f} to {:.3f}'.format(*bounds[i][k])
      dark = abs(rate - 0.5) > 0.3
      axes.text(
        k,
        i,
        text,
        ha='center',
        va='center',
        fontsize=6,
        color='white' if dark else 'black',
      )
  ticks = range(len(names))
  axes.set_xticks(ticks, names, rotation=45, ha='right', fontsize=7)
  axes.set_yticks(ticks, names, fontsize=7)
  axes.set_title('win rate of row over column', fontsize=8)
  return page


def _save(path: epath.Path, page: matplotlib.figure.Figure) -> None:
  """Writes a PNG."""
  buffer = io.BytesIO()
  page.savefig(buffer, format='png', dpi=110)
  path.write_bytes(buffer.getvalue())


def _table(
  path: epath.Path, header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
  """Writes a CSV."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(header)
  writer.writerows(rows)
  path.write_text(text.getvalue())
