"""Describes a sweep, and makes the runs that it asks for.

The TOML file of a sweep has these tables:

    base = "FILE"                      # a file whose entries hold unless this
                                       #   one has them; lists are replaced
    at_once = 2                        # number of runs at the same time
    launcher = []                      # words to put before every command, for
                                       #   example launch/tpu.py; $slug is the
                                       #   run's name as clouds accept it
    gin = ["gin/models/...", ...]      # gin files for every run
    [env]                              # environment variables for every run
    [runs.NAME]                        # a single run, such as that of a judge
    [policies]                         # settings of all policies
      seeds = [0, 1]
    [algorithms.NAME]                  # additional settings of one algorithm
      axes = {TAU = [0.1, 1.0]}        # every combination runs with every seed
      against = "RUN or ALGORITHM"     # baseline of the selection
    [select]                           # the comparison that selects settings
      judge, checkpoints, seeds
    [compare]                          # the comparison of the selected settings
      policies = ["RUN", ...]          # further runs in it, first the baseline

Each table of runs may have `run`, `gin` and `bindings`. The run file comes
first, then the spec's `gin`, then the table's own. Values are written as on the
command line: a string is a gin expression ("@judges.likelihood", "'a text'"),
and a number stands for itself. $NAME in a string is the folder of the run NAME,
which then runs first; $out is the folder of the sweep.
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
    name: Name of the run and of its folder.
    files: Gin files, first the run file.
    bindings: Macro -> value as gin reads it.
    needs: Names of the runs that come before it.
    algorithm: Algorithm of a policy; '' for other runs.
    values: Value of each axis, for a policy.
    seed: Seed of a policy.
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
    """Name in lower-case letters, digits and hyphens, which clouds accept."""
    return re.sub('[^a-z0-9]+', '-', self.name.lower()).strip('-')

  def arguments(self, out: str) -> list[str]:
    """Returns the arguments of python -m ipo_md.

    Args:
      out: Folder of the sweep.
    """
    bindings = {**self.bindings, 'MODEL_DIR': f"'{out}/{self.name}'"}
    return [f'--gin_file={file}' for file in self.files] + [
      f'--gin.{name}={value}' for name, value in bindings.items()
    ]


@dataclasses.dataclass(frozen=True)
class Spec:
  """The contents of a sweep's file, which read.py has checked.

  Attributes:
    out: Folder of the sweep, local or in a bucket.
    at_once: Largest number of runs at the same time.
    launcher: Words to put before every command.
    env: Environment variables of every run.
    runs: The runs of [runs], by name.
    seeds: Seeds of the policies.
    algorithms: Name -> settings, each of which maps an axis to its value.
    against: Algorithm -> run or algorithm that it is selected against.
    judge: Name of the judge in JUDGES whose win rate selects.
    checkpoints: Candidates of each run: its 'last' checkpoint, or 'all'.
    select_seeds: Seeds whose mean win rate selects.
    baselines: Runs in the final comparison beside the policies.
    splits: HELD_OUT_SPLIT of the selection and of the final comparison.
    tables: Tables of the file.
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
    """Returns the run of an algorithm with one setting and one seed."""
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
    """Returns the comparison that selects.

    Args:
      algorithm: Name of the algorithm.
      policies: Path of each policy by name, first the baseline.
    """
    run = make_run(f'select_{algorithm}', self.tables, self.tables['select'])
    return _with_policies(self.expand(run), policies)

  def comparison(self, policies: Mapping[str, str | Sequence[str]]) -> Run:
    """Returns the final comparison.

    Args:
      policies: Path of each run by name, or one path for each seed.
    """
    run = make_run('report', self.tables, self.tables['compare'])
    return _with_policies(self.expand(run), policies)

  def folder(self, name: str) -> str:
    """Returns the folder of a run."""
    return f'{self.out}/{name}'

  def expand(self, run: Run) -> Run:
    """Replaces $NAME by folders, and adds these runs to the needs."""
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
  """Combines tables into a run.

  Args:
    name: Name of the run.
    *tables: Table of the whole file, then those of the run, later ones winning.

  Raises:
    ValueError: No table names a run file.
  """
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
  """Returns a TOML value as gin reads it."""
  return value if isinstance(value, str) else repr(value)


def _identifiers(text: str) -> list[str]:
  return string.Template(text).get_identifiers()


def substitute(text: str, names: Mapping[str, str], where: str) -> str:
  """Replaces $NAME in a text.

  Args:
    text: Text with names.
    names: Value of each name.
    where: Place of the text, for the error message.

  Raises:
    ValueError: A name is unknown.
  """
  try:
    return string.Template(text).substitute(names)
  except (KeyError, ValueError) as error:
    raise ValueError(
      f'{where} = {text}: unknown name after $; known are {sorted(names)}.'
    ) from error
