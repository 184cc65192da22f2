"""Checks all configurations of a sweep in one process, before any of them runs.

  python -m launch.sweep.check < RUNS

RUNS is a JSON object: name -> {"arguments": [...] of python -m ipo_md, "axes":
[names], "folder": MODEL_DIR or null, "judge": a name of JUDGES or null}. If a
run is wrong, prints what is wrong with the first such run and exits with 1.
"""

import itertools
import json
import re
import sys

from etils import epath
import gin

from ipo_md.core import gin_config
from ipo_md.core import identity
from ipo_md.core import model_dir
from ipo_md.core import private_apis


def config_of(arguments: list[str], axes: list[str]) -> str:
  """Returns all bindings of a run except MODEL_DIR, as text.

  Args:
    arguments: Arguments of python -m ipo_md.
    axes: Names that the sweep varies.

  Raises:
    ValueError: The run cannot be parsed, or nothing refers to an axis.
  """
  files, bindings = [], []
  for argument in gin_config.rewrite_gin_args(arguments):
    flag, _, value = argument.partition('=')
    (files if flag == '--gin_file' else bindings).append(value)
  gin.clear_config()
  gin_config.parse(files, bindings)
  used, scopes = set(), {''}
  for reference in private_apis.references():
    if reference.selector == 'gin.macro':
      continue
    used.add(reference.selector)
    scopes |= set(itertools.accumulate(reference.scopes, '{}/{}'.format))
  for axis in axes:
    function, dot, _ = axis.rpartition('.')
    scope, _, name = function.rpartition('/')
    if dot and (name not in used or scope not in scopes):
      raise ValueError(
        f'{axis} is an axis, but nothing in this run refers to {function}.'
      )
  text = re.sub(r'\\\n\s*', '', gin.config_str())
  return re.sub(r'^MODEL_DIR = .*$', '', text, flags=re.MULTILINE)


def _check_judge(judge: str) -> None:
  """Raises ValueError if JUDGES of the parsed configuration lacks `judge`."""
  judges = gin.query_parameter('JUDGES/gin.macro.value')
  if judge not in judges:
    raise ValueError(
      f'[select] judge = {judge!r} is not one of JUDGES: {list(judges)}.'
    )


def _accepts_changed_inputs() -> bool:
  """Returns ACCEPT_CHANGED_INPUTS of the parsed configuration, if it has it."""
  try:
    return gin.query_parameter('ACCEPT_CHANGED_INPUTS/gin.macro.value')
  except ValueError:  # a run without that option
    return False


def main() -> int:
  gin_config.add_root()
  seen = {}
  for name, run in json.load(sys.stdin).items():
    try:
      config = config_of(run['arguments'], run['axes'])
      folder = run['folder']
      if run['judge']:
        _check_judge(run['judge'])
      if folder and (epath.Path(folder) / 'config.gin').exists():
        model_dir.check(
          folder,
          gin.config_str(),
          inputs=identity.of_run(),
          accept_changed_inputs=_accepts_changed_inputs(),
        )
    except (ValueError, OSError) as error:
      print(f'{name}: {error}')
      return 1
    if config in seen:
      print(
        f'{name} and {seen[config]} are the same run: nothing depends on the '
        'values in which they differ.'
      )
      return 1
    seen[config] = name
  return 0


if __name__ == '__main__':
  sys.exit(main())
