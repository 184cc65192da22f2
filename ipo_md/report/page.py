"""Writes the results of a comparison as one self-contained HTML page.

It reads
  FOLDER/results.json       win rates, intervals and measures of the policies
  FOLDER/completions.jsonl  a line per prompt, as `side_by_side` writes it:
    {"prompt": text, "completions": {policy: {"text": ..., "score": {...}}},
     "preference": {judge: [p, ...]}}
  FOLDER/sweep.json         the runs of a sweep, if there is one
  MODEL_DIR/metrics.jsonl, *.gin and versions.json of each run
and writes
  FOLDER/index.html         the page
  FOLDER/figures/           each figure as PNG and CSV

`preference` lists P(i > k) for i < k, row by row, of the policies in
results.json. It may be absent. The page makes no network requests. The same
input gives the same bytes, because the page holds neither the time nor a path
above the parent of FOLDER.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import html
import json
import math
from typing import Any

from etils import epath

from ipo_md.core import metrics as metrics_lib
from ipo_md.report import figure_files
from ipo_md.report import figures

_PROMPTS_PER_PAGE = 64
_MAX_BYTES = 25_000_000  # Prompts beyond this are in completions.jsonl alone.
_MAX_POINTS = 400  # Per curve.


def write(folder: str, runs: Mapping[str, str] | None = None) -> str:
  """Writes FOLDER/index.html and FOLDER/figures.

  Args:
    folder: Folder of results.json and completions.jsonl.
    runs: Name of each training run to show -> its MODEL_DIR.

  Returns:
    The path of the page.

  Raises:
    ValueError: results.json contradicts itself.
  """
  directory = epath.Path(folder)
  results = json.loads((directory / 'results.json').read_text())
  check(results)
  sweep = {}
  if (directory / 'sweep.json').exists():
    sweep = json.loads((directory / 'sweep.json').read_text())
  home = directory.resolve().parent
  places = {name: epath.Path(path) for name, path in (runs or {}).items()}
  swept = {r['name']: home / r['name'] for r in sweep.get('runs', [])}
  known = set(map(str, swept.values()))
  places = swept | {k: v for k, v in places.items() if str(v) not in known}
  histories = {name: _history(v, str(home)) for name, v in places.items()}
  drawn = figures.every(results, histories, sweep)
  path = directory / 'index.html'
  with (directory / 'completions.jsonl').open() as completions:
    path.write_text(page(results, completions, histories, drawn, sweep))
  figure_files.write(directory / 'figures', drawn, results)
  return str(path)


def page(
  results: Mapping[str, Any],
  completions: Iterable[str],
  runs: Mapping[str, Any],
  drawn: Sequence[figures.Figure],
  sweep: Mapping[str, Any],
) -> str:
  """Makes the HTML of the page.

  Args:
    results: Contents of results.json.
    completions: Lines of completions.jsonl.
    runs: Name -> {'gin': text, 'versions': {package: version}}.
    drawn: Figures.
    sweep: Contents of sweep.json, or empty.
  """
  pages, sizes, left_out = [], [], 0
  budget = _MAX_BYTES
  for lines in _batched(completions, _PROMPTS_PER_PAGE):
    content = _script('[' + ','.join(lines) + ']', f'page-{len(pages)}')
    budget -= len(content.encode())
    if budget < 0:
      left_out += len(lines)
    else:
      pages.append(content)
      sizes.append(len(lines))
  data = {
    'results': results,
    'runs': {
      name: {key: run[key] for key in ('gin', 'versions')}
      for name, run in runs.items()
    },
    'figures': [dataclasses.asdict(figure) for figure in drawn],
    'sweep': sweep,
    'pages': sizes,
    'leftOut': left_out,
  }
  text = json.dumps(_finite(data), sort_keys=True, allow_nan=False)
  here = epath.Path(__file__).parent
  parts = {
    'TITLE': html.escape(' · '.join(results['policies'])),
    'STYLE': (here / 'page.css').read_text(),
    'DATA': '\n'.join([_script(text, 'data'), *pages]),
    'SCRIPT': ''.join(
      (here / name).read_text()
      for name in ('page_figures.js', 'page_tables.js', 'page.js')
    ),
  }
  before, *slots = (here / 'page.html').read_text().split('{{')
  filled = [before]
  for slot in slots:
    name, after = slot.split('}}', 1)
    filled += [parts[name], after]
  return ''.join(filled)


def _script(text: str, name: str) -> str:
  """Embeds JSON in HTML so that no text in it can end the element."""
  text = text.replace('<', '\\u003c')
  return f'<script type="application/json" id="{name}">{text}</script>'


def _batched(lines: Iterable[str], size: int) -> Iterator[list[str]]:
  """Yields the lines, stripped, in lists of at most `size`."""
  batch = []
  for line in lines:
    batch.append(line.strip())
    if len(batch) == size:
      yield batch
      batch = []
  if batch:
    yield batch


def _history(model_dir: epath.Path, home: str) -> dict[str, Any]:
  """Reads the gin, the versions and the thinned metrics of a run.

  Args:
    model_dir: MODEL_DIR of the run.
    home: Folder whose path is replaced by DIR in the gin.
  """
  gin = [
    f'# {name}\n{(model_dir / name).read_text()}'
    for name in ('config.gin', 'operative_config.gin')
    if (model_dir / name).exists()
  ]
  versions = {}
  if (model_dir / 'versions.json').exists():
    versions = json.loads((model_dir / 'versions.json').read_text())
  history = {}
  if (model_dir / metrics_lib.METRICS_FILE).exists():
    history = metrics_lib.read_metrics(str(model_dir))
  metrics = {}
  for name in sorted({name for values in history.values() for name in values}):
    steps = [step for step in history if name in history[step]]
    stride = math.ceil(len(steps) / _MAX_POINTS)
    steps = steps[::-stride][::-1]  # The last step stays.
    metrics[name] = [[step, history[step][name]] for step in steps]
  return {
    'gin': '\n'.join(gin).replace(home, 'DIR'),
    'versions': versions,
    'metrics': metrics,
  }


def _finite(value: Any) -> Any:
  """Replaces NaN and infinity, which JSON lacks, by None."""
  if isinstance(value, Mapping):
    return {key: _finite(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def check(results: Mapping[str, Any]) -> None:
  """Raises ValueError if results.json contradicts itself."""
  policies = results['policies']
  if len(set(policies)) < len(policies):
    raise ValueError(f'results.json names a policy twice: {policies}.')
  for judge in results['judges']:
    for name in ('win_rate', 'interval'):
      matrix = results[name].get(judge, [])
      shape = [len(row) for row in matrix]
      if shape != [len(policies)] * len(policies):
        raise ValueError(
          f'results.json: {name} of judge {judge!r} has rows of {shape} '
          f'entries for {len(policies)} policies.'
        )
