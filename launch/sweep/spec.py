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
import re
import string
from typing import Any


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
    tables: the file.
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
  tables: Mapping[str, Any]

  def policy(self, algorithm: str, values: Mapping[str, str], seed: int) -> Run:
    """The run of one point of an algorithm's axes with one seed."""
    name = '_'.join(
      [algorithm, *(f'{k}={v}' for k, v in values.items()), f'SEED={seed}']
    )
    run = make_run(
      re.sub(r'[^\w=.,+-]', '', name),
      self.tables,
      self.tables['policies'],
      self.tables['algorithms'][algorithm],
      {'bindings': {**values, 'SEED': seed}},
    )
    return dataclasses.replace(
      self.expand(run), algorithm=algorithm, values=values, seed=seed
    )

  def selection(self, algorithm: str, policies: Mapping[str, str]) -> Run:
    """The comparison that selects: policies by name, first the baseline."""
    run = make_run(f'select_{algorithm}', self.tables, self.tables['select'])
    return _with_policies(self.expand(run), policies)

  def comparison(self, policies: Mapping[str, str | Sequence[str]]) -> Run:
    """The last one: of what was selected, a path for each seed."""
    run = make_run('report', self.tables, self.tables['compare'])
    return _with_policies(self.expand(run), policies)

  def folder(self, name: str) -> str:
    return f'{self.out}/{name}'

  def expand(self, run: Run) -> Run:
    """Replaces $NAME by folders, and notes what they make it wait for."""
    folders = {name: self.folder(name) for name in self.runs}
    needs = set()
    bindings = {}
    for key, value in run.bindings.items():
      bindings[key] = substitute(
        value, {**folders, 'out': self.out}, f'{run.name}: {key}'
      )
      needs |= {n for n in _identifiers(value) if n in folders}
    return dataclasses.replace(run, bindings=bindings, needs=frozenset(needs))


def make_run(name: str, *tables: Mapping[str, Any]) -> Run:
  """The tables of a run put together, the first one the spec itself."""
  spec, *own = tables
  bindings, files, file = {}, list(spec.get('gin', [])), None
  for table in own:
    file = table.get('run', file)
    files += table.get('gin', [])
    bindings |= {k: value_of(v) for k, v in table.get('bindings', {}).items()}
  if file is None:
    raise ValueError(f'{name} has no run file: run = "gin/runs/....gin".')
  return Run(name, [file, *files], bindings)


def _with_policies(
  run: Run, policies: Mapping[str, str | Sequence[str]]
) -> Run:
  return dataclasses.replace(
    run, bindings={**run.bindings, 'POLICIES': repr(dict(policies))}
  )


def value_of(value: Any) -> str:
  """A TOML value as gin reads it."""
  return value if isinstance(value, str) else repr(value)


def _identifiers(text: str) -> list[str]:
  return string.Template(text).get_identifiers()


def substitute(text: str, names: Mapping[str, str], where: str) -> str:
  try:
    return string.Template(text).substitute(names)
  except (KeyError, ValueError) as error:
    raise ValueError(
      f'{where} = {text}: unknown $ name; known are {sorted(names)}.'
    ) from error
