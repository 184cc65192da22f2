"""Reads and checks the TOML file of a sweep, which spec.py describes."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import difflib
import itertools
import pathlib
import re
import tomllib
from typing import Any

from ipo_md.data import splits
from launch.sweep import spec as spec_lib

_RUN = {'run', 'gin', 'bindings'}
_KINDS = dict.fromkeys(('launcher', 'gin', 'seeds'), list) | dict.fromkeys(
  ('env', 'runs', 'algorithms', 'select', 'compare', 'bindings', 'axes'), dict
)
_KEYS = {
  '': {'at_once', 'launcher', 'gin', 'env', 'runs', 'policies', 'algorithms'}
  | {'select', 'compare'},
  'runs': _RUN,
  'policies': _RUN | {'seeds'},
  'algorithms': _RUN | {'axes', 'against'},
  'select': _RUN | {'judge', 'checkpoints', 'seeds', 'against'},
  'compare': _RUN | {'policies'},
}


def read(path: str, out: str) -> spec_lib.Spec:
  """Reads the file of a sweep.

    spec = read.read('launch/sweeps/smoke.toml', '/tmp/out')

  Args:
    path: Path of the TOML file.
    out: Folder of the sweep, local or in a bucket.

  Raises:
    ValueError: The file cannot be parsed, a key is unknown or missing, two runs
      have the same name, or an axis is empty.
  """
  tables = _tables(path)
  select, compare = tables['select'], tables['compare']
  seeds = tables['policies'].get('seeds', [0])
  algorithms = {
    name: _points(name, table.get('axes', {}))
    for name, table in tables.get('algorithms', {}).items()
  }
  spec = spec_lib.Spec(
    out=out,
    at_once=tables.get('at_once', 1),
    launcher=tables.get('launcher', []),
    env={
      k: spec_lib.substitute(str(v), {'out': out}, f'[env] {k}')
      for k, v in tables.get('env', {}).items()
    },
    runs={
      name: spec_lib.make_run(name, tables, table)
      for name, table in tables.get('runs', {}).items()
    },
    seeds=seeds,
    algorithms=algorithms,
    against={
      name: tables['algorithms'][name].get('against', select.get('against'))
      for name in algorithms
    },
    judge=select.get('judge', ''),
    checkpoints=select.get('checkpoints', 'last'),
    select_seeds=select.get('seeds', seeds),
    baselines=compare.get('policies', []),
    splits=[
      _unquoted(table.get('bindings', {}).get('HELD_OUT_SPLIT'))
      for table in (select, compare)
    ],
    tables=tables,
  )
  _check(spec, path)
  expanded = {name: spec.expand(run) for name, run in spec.runs.items()}
  spec = dataclasses.replace(spec, runs=expanded)
  # These raise an error if the runs cannot be built.
  for name, (values, *_) in spec.algorithms.items():
    spec.policy(name, values, seeds[0])
    spec.selection(name, {})
  spec.comparison({})
  return spec


def _tables(path: str) -> dict[str, Any]:
  """Parses the file; raises ValueError for a wrong table or key."""
  tables = _loaded(pathlib.Path(path))
  _check_keys(tables, _KEYS[''], path)
  for table in ('policies', 'select', 'compare'):
    if table not in tables:
      raise ValueError(f'{path} has no table [{table}].')
    _check_keys(tables[table], _KEYS[table], f'{path}: [{table}]')
  for kind in ('runs', 'algorithms'):
    for name, table in tables.get(kind, {}).items():
      _check_keys(table, _KEYS[kind], f'{path}: [{kind}.{name}]')
  return tables


def _loaded(path: pathlib.Path) -> dict[str, Any]:
  """Returns the tables of a file, laid over those of its `base`."""
  try:
    tables = tomllib.loads(path.read_text())
  except tomllib.TOMLDecodeError as error:
    raise ValueError(f'{path}: {error}') from error
  if 'base' not in tables:
    return tables
  base = path.parent / str(tables.pop('base'))
  if not base.is_file() or base.samefile(path):
    raise ValueError(f'{path}: base = {str(base)!r} is not another file.')
  return _laid_over(_loaded(base), tables)


def _laid_over(
  below: Mapping[str, Any], above: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns a table with every entry of `above`; only tables are merged."""
  found = dict(below)
  for key, value in above.items():
    merges = isinstance(value, dict) and isinstance(found.get(key), dict)
    found[key] = _laid_over(found[key], value) if merges else value
  return found


def _points(
  algorithm: str, axes: Mapping[str, Sequence[Any]]
) -> list[dict[str, str]]:
  """Returns every combination of the values of an algorithm's axes."""
  for name, values in axes.items():
    if not isinstance(values, list) or not values:
      raise ValueError(
        f'[algorithms.{algorithm}] axes: {name} = {values!r} must be a list '
        'of at least one value.'
      )
    if name == 'SEED':
      raise ValueError(
        f'[algorithms.{algorithm}] axes: set seeds by [policies] seeds = [...].'
      )
  return [
    dict(zip(axes, map(spec_lib.value_of, point), strict=True))
    for point in itertools.product(*axes.values())
  ]


def _check(spec: spec_lib.Spec, path: str) -> None:
  """Raises ValueError if names or values of a spec are wrong."""
  if not spec.algorithms:
    raise ValueError(f'{path} has no [algorithms.NAME].')
  known = [*spec.runs, *spec.algorithms]
  for name in known:
    if not name.isidentifier() or name in ('out', 'report', 'logs', 'cache'):
      raise ValueError(f'{path}: {name!r} cannot be the name of a run.')
    if known.count(name) > 1:
      raise ValueError(f'{path}: {name} is both a run and an algorithm.')
  for name in spec.baselines:
    if name not in spec.runs:
      raise ValueError(
        f'{path}: [compare] policies: {name!r} is not one of [runs], '
        f'{list(spec.runs)}.'
      )
  for algorithm, other in spec.against.items():
    if other not in known:
      raise ValueError(
        f'{path}: {algorithm} is selected against {other!r}, which is not one '
        f'of {known} ([select] against, [algorithms.{algorithm}] against).'
      )
    seen = [algorithm]
    while other in spec.algorithms:
      if other in seen:
        raise ValueError(
          f'{path}: {" against ".join([*seen, other])} is a circle.'
        )
      seen.append(other)
      other = spec.against[other]
  held_out = [splits.parse(text) for text in spec.splits if text is not None]
  if len(held_out) < 2 or held_out[0].overlaps(held_out[1]):
    raise ValueError(
      f'{path}: HELD_OUT_SPLIT is {spec.splits[0]} in [select.bindings] and '
      f'{spec.splits[1]} in [compare.bindings]. Set both, to different splits: '
      'a setting looks too good on the prompts on which it was selected.'
    )
  if not spec.judge:
    raise ValueError(f'{path}: [select] needs `judge`, a name of JUDGES.')
  if spec.checkpoints not in ('last', 'all'):
    raise ValueError(
      f"{path}: [select] checkpoints = {spec.checkpoints!r} is neither 'last' "
      "nor 'all'."
    )
  for word in [spec.out, *spec.launcher, *spec.env.values()]:
    if placeholder := re.search('gs://(?![a-z0-9])[^/]*', word):
      raise ValueError(
        f'{path}: {word}: write the name of your bucket in place of '
        f'{placeholder[0]}.'
      )
  if not isinstance(spec.at_once, int) or spec.at_once < 1:
    raise ValueError(f'{path}: at_once = {spec.at_once!r} must be a number.')
  _check_seeds(spec, path)


def _check_seeds(spec: spec_lib.Spec, path: str) -> None:
  """Raises ValueError if the seeds are not different seeds of [policies]."""
  for name, seeds in (
    ('[policies] seeds', spec.seeds),
    ('[select] seeds', spec.select_seeds),
  ):
    if (
      not seeds
      or not all(isinstance(seed, int) for seed in seeds)
      or len(set(seeds)) < len(seeds)
      or not set(seeds) <= set(spec.seeds)
    ):
      raise ValueError(
        f'{path}: {name} = {seeds} must be a list of different seeds of '
        f'[policies], {spec.seeds}.'
      )


def _check_keys(table: Mapping[str, Any], known: set[str], where: str) -> None:
  """Raises ValueError for an unknown key, or a value of the wrong kind."""
  for key, value in table.items():
    if key not in known:
      near = difflib.get_close_matches(key, known, n=1) or sorted(known)
      raise ValueError(
        f'{where}: unknown key {key!r}; try {" or ".join(near)}.'
      )
    if not isinstance(value, _KINDS.get(key, object)):
      kind = 'list' if _KINDS[key] is list else 'table'
      raise ValueError(f'{where}: {key} = {value!r} must be a {kind}.')


def _unquoted(text: str | None) -> str | None:
  """Returns a gin string without its quotes."""
  return text and text.strip('\'"')
