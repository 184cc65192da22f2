"""Which bindings of a configuration a resumed run has to keep.

A run may change some of its settings when it is resumed: those that leave its
results as they are. The function or class that takes such a parameter declares
it with `may_change`. A macro may change if everything that refers to it may, so
a new macro cannot be forgotten here; and so may all parameters of what is
referred to in such places only, such as a tracker.
"""

import ast
from collections.abc import Callable
from collections.abc import Mapping
import importlib
import re
from typing import Any
from typing import TypeVar

_IMPORT = re.compile(r'(?:from (\S+) )?import (\S+)(?: as (\w+))?')

_Target = TypeVar('_Target', bound=Callable[..., Any])


def may_change(*parameters: str) -> Callable[[_Target], _Target]:
  """Declares parameters that a resumed run may change.

  Args:
    *parameters: Names of parameters of the decorated function or class.
  """

  def attach(target: _Target) -> _Target:
    target.may_change = frozenset(parameters)  # pyright: ignore[reportFunctionMemberAccess]  # typeshed's functions lack it
    return target

  return attach


def kept(config: str) -> list[str]:
  """Returns the bindings that a resumed run has to keep, one a line.

  Args:
    config: Text of a configuration, as `gin.config_str()` writes it.
  """
  lines = every(config)
  modules = _modules(lines)
  values = _values(lines)
  users = {key: _users(key, values) for key in values}
  free = {key for key in values if _is_declared(key, modules)}
  found = True
  while found:
    found = {key for key in values if users[key] and users[key] <= free} - free
    free |= found
  # What is imported for such bindings alone may be missing, too.
  of_free, of_kept = (
    '\n'.join(f'{k} = {v}' for k, v in values.items() if (k in free) is chosen)
    for chosen in (True, False)
  )
  spare = {
    name
    for name in modules
    if _mentions(name, of_free) and not _mentions(name, of_kept)
  }
  return [
    line
    for line in lines
    if line.split(' = ', 1)[0] not in free
    and not spare.intersection(_modules([line]))
  ]


def every(config: str) -> list[str]:
  """Returns all bindings and imports of a configuration, one a line."""
  config = re.sub(r'\\\n\s*', '', config)
  config = re.sub(r'\n[ \t]+', ' ', config)
  lines = [re.sub(r'\s+', ' ', line).strip() for line in config.splitlines()]
  return [line for line in lines if line and not line.startswith('#')]


def flat(config: str) -> dict[str, Any]:
  """Returns the value of each binding: a literal, or the text of anything else.

  flat('TAU = 0.1\\nlosses.ipo.tau = %TAU')
  # {'TAU': 0.1, 'losses.ipo.tau': '%TAU'}
  """
  found = _values(every(config))
  for key, value in found.items():
    try:
      found[key] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      continue
  return found


def _values(lines: list[str]) -> dict[str, Any]:
  return dict(line.split(' = ', 1) for line in lines if ' = ' in line)


def _users(key: str, values: Mapping[str, str]) -> set[str]:
  """Returns the keys whose values refer to a macro, or a parameter's owner."""
  if '.' in key:
    selector = key.rpartition('/')[2].rpartition('.')[0]
    pattern = re.compile(rf'@(?:\w+/)*{re.escape(selector)}(?![\w.])')
  else:
    pattern = re.compile(rf'%{re.escape(key)}(?![\w/.])')
  return {k for k, v in values.items() if pattern.search(v)}


def _is_declared(key: str, modules: Mapping[str, str]) -> bool:
  """Returns whether the owner of a parameter declares that it may change."""
  selector, _, parameter = key.rpartition('/')[2].rpartition('.')
  module, _, attributes = selector.partition('.')
  if not selector:
    return False  # a macro
  try:
    target = importlib.import_module(modules[module])
    for attribute in attributes.split('.'):
      target = getattr(target, attribute)
  except (KeyError, ImportError, AttributeError):
    return False  # of another version, or not ours
  return parameter in getattr(target, 'may_change', ())


def _mentions(module: str, text: str) -> bool:
  return bool(re.search(rf'(?<![\w.]){re.escape(module)}\.', text))


def _modules(lines: list[str]) -> dict[str, str]:
  """Returns the modules that a configuration imports, by their names there."""
  matches = filter(None, map(_IMPORT.fullmatch, lines))
  return {m[3] or m[2]: '.'.join(filter(None, m.groups()[:2])) for m in matches}
