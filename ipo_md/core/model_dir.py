"""Which run a MODEL_DIR belongs to, and whether that run has finished.

  MODEL_DIR/config.gin    the bindings of the run, which it has to keep
  MODEL_DIR/COMPLETED     the run reached its end

A run may change some of its settings when it is resumed: those that leave its
results as they are. The function or class that takes such a parameter declares
it with `may_change`. A macro may change if everything that refers to it may, so
a new macro cannot be forgotten here.
"""

from collections.abc import Callable
from collections.abc import Mapping
import difflib
import functools
import importlib
import os
import re
from typing import Any
from typing import TypeVar

from etils import epath
import jax

_Target = TypeVar('_Target', bound=Callable[..., Any])


def may_change(*parameters: str) -> Callable[[_Target], _Target]:
  """Declares parameters that a resumed run may change.

  Args:
    *parameters: Names of parameters of the decorated function or class.
  """

  def attach(target: _Target) -> _Target:
    target.may_change = frozenset(parameters)  # pyright: ignore
    return target

  return attach


def absolute(path: str, name: str) -> str:
  """Returns a path made absolute, with ~ expanded; a bucket's stays as it is.

  Args:
    path: Path of a file or folder.
    name: Name of the setting that holds it, for the message.

  Raises:
    ValueError: The path is empty.
  """
  if not path:
    raise ValueError(f'{name} is empty: it has to be a path.')
  return path if '://' in path else os.path.abspath(os.path.expanduser(path))


def claim(model_dir: str, config: str) -> str:
  """Makes MODEL_DIR this run's, or checks that it already is.

  Args:
    model_dir: MODEL_DIR, created if it does not exist.
    config: All bindings, as `gin.config_str()` gives them.

  Returns:
    The absolute path of MODEL_DIR.

  Raises:
    ValueError: The directory cannot be written, or holds another run.
  """
  model_dir = absolute(model_dir, 'MODEL_DIR')
  directory = epath.Path(model_dir)
  path = directory / 'config.gin'
  if _has_saved(directory):
    if not path.exists():
      raise ValueError(
        f'MODEL_DIR {model_dir} holds results without their config.gin, so '
        'they may belong to another run; choose another one.'
      )
    ours, theirs = bindings(config), bindings(path.read_text())
    if ours != theirs:
      changes = [
        line
        for line in difflib.unified_diff(theirs, ours, lineterm='', n=0)
        if line[0] in '+-' and line[:3] not in ('+++', '---')
      ]
      raise ValueError(
        f'MODEL_DIR {model_dir} holds a run with other bindings; choose '
        'another one, or give the run its own (- there, + here):\n  '
        + '\n  '.join(changes[:12])
      )
    return model_dir
  try:
    directory.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
      path.write_text(config)
  except OSError as error:
    raise ValueError(
      f'MODEL_DIR {model_dir} cannot be written: {error}.'
    ) from error
  return model_dir


def _has_saved(directory: epath.Path) -> bool:
  """Returns whether a run left results; else its bindings are forgotten."""
  files = ('COMPLETED', 'results.json', 'completions.jsonl')
  if any((directory / name).exists() for name in files):
    return True
  folder = directory / 'checkpoints'
  return folder.exists() and any(d.name.isdigit() for d in folder.iterdir())


def bindings(config: str) -> list[str]:
  """Returns the bindings that a resumed run has to keep, one a line.

  Args:
    config: Text of a configuration, as `gin.config_str()` writes it.
  """
  config = re.sub(r'\\\n\s*', '', config)
  config = re.sub(r'\n\s+', ' ', config)
  lines = [re.sub(r'\s+', ' ', line).strip() for line in config.splitlines()]
  lines = [line for line in lines if line and not line.startswith('#')]
  modules = _modules(lines)
  values = dict(line.split(' = ', 1) for line in lines if ' = ' in line)

  @functools.cache
  def free(key: str) -> bool:
    """Whether a parameter may change, or all uses of a macro may."""
    if '.' in key:
      selector, _, parameter = key.rpartition('/')[2].rpartition('.')
      return parameter in _declared(selector, modules)
    pattern = re.compile(rf'%{re.escape(key)}(?![\w/.])')
    users = [k for k, v in values.items() if pattern.search(v)]
    return bool(users) and all(map(free, users))

  return [
    line
    for line in lines
    if ' = ' not in line or not free(line.split(' = ', 1)[0])
  ]


def _modules(lines: list[str]) -> dict[str, str]:
  """Returns the modules that a configuration imports, by their names there."""
  found = {}
  for line in lines:
    if match := re.fullmatch(r'from (\S+) import (\w+)(?: as (\w+))?', line):
      package, module, alias = match.groups()
      found[alias or module] = f'{package}.{module}'
  return found


def _declared(selector: str, modules: Mapping[str, str]) -> frozenset[str]:
  """Returns the parameters that `selector` declares with `may_change`."""
  module, _, attributes = selector.partition('.')
  try:
    target = importlib.import_module(modules[module])
    for attribute in attributes.split('.'):
      target = getattr(target, attribute)
  except (KeyError, ImportError, AttributeError):
    return frozenset()  # of another version, or not ours
  return getattr(target, 'may_change', frozenset())


def is_completed(model_dir: str, train_steps: int) -> bool:
  """Returns whether MODEL_DIR holds a run that reached `train_steps`."""
  path = epath.Path(model_dir) / 'COMPLETED'
  return path.exists() and int(path.read_text()) >= train_steps


def complete(model_dir: str, train_steps: int) -> None:
  """Marks a run as finished, atomically. Nothing else does."""
  if jax.process_index() == 0:
    path = epath.Path(model_dir) / 'COMPLETED.partial'
    path.write_text(f'{train_steps}\n')
    path.replace(path.with_suffix(''))


def reopen(model_dir: str) -> None:
  """Removes the mark of a finished run that goes on to more steps."""
  if jax.process_index() == 0:
    (epath.Path(model_dir) / 'COMPLETED').unlink(missing_ok=True)
