"""A sweep's TOML file -> the runs that it asks for.

    at_once = 2                        # runs at the same time
    launcher = []                      # put before every command, with $slug,
                                       #   the run's name: of a Cloud TPU
    gin = ["gin/models/...", ...]      # of every run, after its run file
    [env]                              # of every run
    [runs.NAME]                        # a run of its own, such as a judge's
    [policies]                         # what all policies have; seeds = [0, 1]
    [algorithms.NAME]                  # adds to [policies]
      axes = {TAU = [0.1, 1.0]}        # every combination, with every seed
      against = "RUN or ALGORITHM"     # what it is selected against
    [select]                           # the comparison that selects
      judge, checkpoints, seeds
    [compare]                          # the comparison of what was selected
      policies = ["RUN", ...]          # runs beside them, first the baseline

Every table of a run has `run`, `gin` and `bindings`: the run file comes first,
then `gin` of the spec, then its own. Values are as on the command line: a text
is an expression of gin ("@judges.likelihood", "'a text'"), a number is itself.
$NAME in a text is the folder of the run NAME, which then runs before; $out is
the sweep's.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import difflib
import itertools
import pathlib
import re
import string
import tomllib
from typing import Any

_RUN = {'run', 'gin', 'bindings'}
_KEYS = {
  '': {'at_once', 'launcher', 'gin', 'env', 'runs', 'policies', 'algorithms'}
  | {'select', 'compare'},
  'runs': _RUN,
  'policies': _RUN | {'seeds'},
  'algorithms': _RUN | {'axes', 'against'},
  'select': _RUN | {'judge', 'checkpoints', 'seeds', 'against'},
  'compare': _RUN | {'policies'},
}


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of python -m ipo_md.

  Attributes:
    name: also of its folder.
    files: gin files.
    bindings: macro -> value as gin reads it.
    needs: runs that come before it.
    algorithm: of a policy, else ''.
    values: of a policy, its point of the axes.
    seed: of a policy.
  """

  name: str
  files: Sequence[str]
  bindings: Mapping[str, str]
  needs: frozenset[str] = frozenset()
  algorithm: str = ''
  values: Mapping[str, str] = dataclasses.field(default_factory=dict)
  seed: int = 0

  @property
  def slug(self) -> str:
    """The name in a-z, 0-9 and -, as clouds want names."""
    return re.sub('[^a-z0-9]+', '-', self.name.lower()).strip('-')

  def arguments(self, out: str) -> list[str]:
    """Of the command line; `out` is the folder of the sweep."""
    bindings = {**self.bindings, 'MODEL_DIR': f"'{out}/{self.name}'"}
    return [f'--gin_file={file}' for file in self.files] + [
      f'--gin.{name}={value}' for name, value in bindings.items()
    ]


@dataclasses.dataclass(frozen=True)
class Spec:
  """The contents of a sweep's file, checked.

  Attributes:
    out: folder of the sweep, local or of a bucket.
    at_once: how many runs at the same time.
    launcher: put before every command.
    env: of every run.
    runs: of [runs], by name.
    seeds: of policies.
    algorithms: name -> its points of the axes, macro -> value.
    against: algorithm -> run or algorithm that it is selected against.
    judge: name of JUDGES by whose win rate is selected.
    checkpoints: 'last' or 'all' of a run's are candidates.
    select_seeds: seeds whose mean win rate selects.
    baselines: runs of the last comparison beside the policies.
    splits: HELD_OUT_SPLIT of the selection and of the last comparison.
  """

  out: str
  at_once: int
  launcher: Sequence[str]
  env: Mapping[str, str]
  runs: Mapping[str, Run]
  seeds: Sequence[int]
  algorithms: Mapping[str, Sequence[Mapping[str, str]]]
  against: Mapping[str, str]
  judge: str
  checkpoints: str
  select_seeds: Sequence[int]
  baselines: Sequence[str]
  splits: Sequence[str | None]
  _tables: Mapping[str, Any]

  def policy(self, algorithm: str, values: Mapping[str, str], seed: int) -> Run:
    """The run of one point of an algorithm's axes with one seed."""
    name = '_'.join(
      [algorithm, *(f'{k}={v}' for k, v in values.items()), f'SEED={seed}']
    )
    run = _run(
      re.sub(r'[^\w=.,+-]', '', name),
      self._tables,
      self._tables['policies'],
      self._tables['algorithms'][algorithm],
      {'bindings': {**values, 'SEED': seed}},
    )
    return dataclasses.replace(
      self._expand(run), algorithm=algorithm, values=values, seed=seed
    )

  def selection(self, algorithm: str, policies: Mapping[str, str]) -> Run:
    """The comparison that selects: policies by name, first the baseline."""
    run = _run(f'select_{algorithm}', self._tables, self._tables['select'])
    return _with_policies(self._expand(run), policies)

  def comparison(self, policies: Mapping[str, str]) -> Run:
    """The last one: of what was selected."""
    run = _run('report', self._tables, self._tables['compare'])
    return _with_policies(self._expand(run), policies)

  def folder(self, name: str) -> str:
    return f'{self.out}/{name}'

  def _expand(self, run: Run) -> Run:
    """Replaces $NAME by folders, and notes what they make it wait for."""
    folders = {name: self.folder(name) for name in self.runs}
    needs = set()
    bindings = {}
    for key, value in run.bindings.items():
      bindings[key] = _substitute(
        value, {**folders, 'out': self.out}, f'{run.name}: {key}'
      )
      needs |= {n for n in _identifiers(value) if n in folders}
    return dataclasses.replace(run, bindings=bindings, needs=frozenset(needs))


def read(path: str, out: str) -> Spec:
  """Reads a sweep's file.

  Args:
    path: of the TOML file.
    out: folder of the sweep, local or of a bucket.

  Raises:
    ValueError: it cannot be read, a key is unknown or missing, a name is taken
      twice, an axis is empty.
  """
  try:
    tables = tomllib.loads(pathlib.Path(path).read_text())
  except tomllib.TOMLDecodeError as error:
    raise ValueError(f'{path}: {error}') from error
  _check_keys(tables, _KEYS[''], path)
  for table in ('policies', 'select', 'compare'):
    if table not in tables:
      raise ValueError(f'{path} has no table [{table}].')
    _check_keys(tables[table], _KEYS[table], f'{path}: [{table}]')
  for kind in ('runs', 'algorithms'):
    for name, table in tables.get(kind, {}).items():
      _check_keys(table, _KEYS[kind], f'{path}: [{kind}.{name}]')
  select, compare = tables['select'], tables['compare']
  seeds = tables['policies'].get('seeds', [0])
  algorithms = {
    name: _points(name, table.get('axes', {}))
    for name, table in tables.get('algorithms', {}).items()
  }
  spec = Spec(
    out=out,
    at_once=tables.get('at_once', 1),
    launcher=tables.get('launcher', []),
    env={
      k: _substitute(str(v), {'out': out}, f'[env] {k}')
      for k, v in tables.get('env', {}).items()
    },
    runs={
      name: _run(name, tables, table)
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
    _tables=tables,
  )
  _check(spec, path)
  expanded = {name: spec._expand(run) for name, run in spec.runs.items()}
  spec = dataclasses.replace(spec, runs=expanded)
  for name, (values, *_) in spec.algorithms.items():  # raises what is wrong
    spec.policy(name, values, seeds[0])
    spec.selection(name, {})
  spec.comparison({})
  return spec


def _run(name: str, *tables: Mapping[str, Any]) -> Run:
  """The tables of a run put together, the first one the spec itself."""
  spec, *own = tables
  bindings, files, file = {}, list(spec.get('gin', [])), None
  for table in own:
    file = table.get('run', file)
    files += table.get('gin', [])
    bindings |= {k: _value(v) for k, v in table.get('bindings', {}).items()}
  if file is None:
    raise ValueError(f'{name} has no run file: run = "gin/runs/....gin".')
  return Run(name, [file, *files], bindings)


def _with_policies(run: Run, policies: Mapping[str, str]) -> Run:
  return dataclasses.replace(
    run, bindings={**run.bindings, 'POLICIES': repr(dict(policies))}
  )


def _points(
  algorithm: str, axes: Mapping[str, Sequence[Any]]
) -> list[dict[str, str]]:
  """Every combination of an algorithm's values."""
  for name, values in axes.items():
    if not isinstance(values, list) or not values:
      raise ValueError(
        f'[algorithms.{algorithm}] axes: {name} = {values!r} is to be a list '
        'of at least one value.'
      )
    if name == 'SEED':
      raise ValueError(
        f'[algorithms.{algorithm}] axes: seeds are [policies] seeds = [...].'
      )
  return [
    dict(zip(axes, map(_value, point), strict=True))
    for point in itertools.product(*axes.values())
  ]


def _check(spec: Spec, path: str) -> None:
  """Raises ValueError for what the names of a spec contradict."""
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
          f'{path}: {" against ".join([*seen, other])}: a circle.'
        )
      seen.append(other)
      other = spec.against[other]
  if None in spec.splits or spec.splits[0] == spec.splits[1]:
    raise ValueError(
      f'{path}: HELD_OUT_SPLIT is {spec.splits[0]} in [select.bindings] and '
      f'{spec.splits[1]} in [compare.bindings]; give both, of different '
      'prompts: what was selected on them looks too good on them.'
    )
  if not spec.judge:
    raise ValueError(f'{path}: [select] needs judge, a name of JUDGES.')
  if spec.checkpoints not in ('last', 'all'):
    raise ValueError(
      f"{path}: [select] checkpoints = {spec.checkpoints!r} is neither 'last' "
      "nor 'all'."
    )
  if not isinstance(spec.at_once, int) or spec.at_once < 1:
    raise ValueError(f'{path}: at_once = {spec.at_once!r} is no count of runs.')
  _check_seeds(spec, path)


def _check_seeds(spec: Spec, path: str) -> None:
  for name, seeds in (
    ('[policies] seeds', spec.seeds),
    ('[select] seeds', spec.select_seeds),
  ):
    if (
      not seeds
      or len(set(seeds)) < len(seeds)
      or not set(seeds) <= set(spec.seeds)
    ):
      raise ValueError(
        f'{path}: {name} = {seeds} is to name different seeds of [policies], '
        f'{spec.seeds}.'
      )


def _check_keys(table: Mapping[str, Any], known: set[str], where: str) -> None:
  for key in table:
    if key not in known:
      near = difflib.get_close_matches(key, known, n=1) or sorted(known)
      raise ValueError(f'{where}: unknown key {key!r}; {", ".join(near)}?')


def _value(value: Any) -> str:
  """A TOML value as gin reads it."""
  return value if isinstance(value, str) else repr(value)


def _unquoted(text: str | None) -> str | None:
  return text and text.strip('\'"')


def _identifiers(text: str) -> list[str]:
  return string.Template(text).get_identifiers()


def _substitute(text: str, names: Mapping[str, str], where: str) -> str:
  try:
    return string.Template(text).substitute(names)
  except (KeyError, ValueError) as error:
    raise ValueError(
      f'{where} = {text}: unknown $ name; known are {sorted(names)}.'
    ) from error
