"""Checks the values of macros against a table, and writes it as a page.

    python -m ipo_md.core.macros > docs/macros.md

`check` is called before anything is compiled. A whole number may be written as
8, 8.0 or 1e1; the macro is bound again as the integer. A macro that is not in
the table is a user's own and is not checked.
"""

from collections.abc import Mapping
import inspect
import reprlib
import types
import typing
from typing import Any

import gin

from ipo_md.core import macro_kinds as kinds
from ipo_md.core import private_apis
from ipo_md.core import run_macros
from ipo_md.core import task_macros

GROUPS: Mapping[str, Mapping[str, kinds.Macro]] = {
  **run_macros.GROUPS,
  **task_macros.GROUPS,
}
TABLE: Mapping[str, kinds.Macro] = {
  name: macro for group in GROUPS.values() for name, macro in group.items()
}

_PAGE = """\
# Macros

What the macros of the gin files take and mean. Values are checked before
anything is compiled or written. A whole number may be written as `8`, `8.0` or
`1e1`. On the command line, texts and paths need no quotes:
`--gin.MODEL_DIR=/tmp/run`. A macro of your own, which is not in these tables,
is not checked.

`python -m ipo_md.core.macros > docs/macros.md` writes this page.
"""


def check() -> None:
  """Checks the bound macros of the table, and binds whole numbers as ints.

  None is refused, too, where what the run binds it to does not take None.

  Raises:
    ValueError: Names the macro, its value and what it must be.
  """
  for name in sorted(private_apis.bound_macros() & TABLE.keys()):
    bound = private_apis.value_of(name)
    value = _resolved(name, bound)
    try:
      read = TABLE[name].read(value)
    except ValueError as error:
      through = f'{bound!r} = ' if private_apis.macro_of(bound) else ''
      raise ValueError(
        f'{name} = {through}{_shown(value)}: {name} {error}.'
      ) from None
    # What another macro of the table holds is bound again there.
    if repr(read) != repr(value) and private_apis.macro_of(bound) not in TABLE:
      gin.bind_parameter(f'{name}/gin.macro.value', read)
  for target, place, parameter, value in private_apis.used_bindings():
    name = private_apis.macro_of(value)
    if (
      name is not None
      and name in TABLE
      and _resolved(name, value) is None
      and not _takes_none(target, parameter)
    ):
      raise ValueError(
        f'{name} = None: {place}.{parameter} of this run needs '
        f'{TABLE[name].kind}.'
      )


def _takes_none(target: Any, parameter: str) -> bool:
  """Returns whether a parameter may be None, as far as its type says so."""
  found = inspect.signature(target).parameters.get(parameter)
  if found is None or found.default is None:
    return True
  annotation = found.annotation
  if isinstance(annotation, str):
    return 'None' in annotation or annotation == 'Any'
  if isinstance(annotation, types.UnionType):
    return types.NoneType in typing.get_args(annotation)
  return annotation in (inspect.Parameter.empty, Any)


def takes_text(name: str) -> bool:
  """Returns whether a macro of the table takes a text."""
  return name in TABLE and TABLE[name].kind.is_text


def _resolved(name: str, value: Any) -> Any:
  """Returns a value in which macros are replaced by what they refer to."""
  seen = [name] if private_apis.macro_of(value) != name else []
  while (macro := private_apis.macro_of(value)) is not None:
    if macro in seen:
      raise ValueError(
        f'{" = %".join([*seen, macro])}: {name} refers to itself.'
      )
    seen.append(macro)
    value = private_apis.value_of(macro)
  if isinstance(value, tuple | list):
    return type(value)(_resolved(name, item) for item in value)
  if isinstance(value, Mapping):
    return {key: _resolved(name, item) for key, item in value.items()}
  return value


def _shown(value: Any) -> str:
  """Returns a value on one line, cut if it is long."""
  short = reprlib.Repr()
  short.maxstring = short.maxother = 80
  return ' '.join(short.repr(value).split())


def page() -> str:
  """Returns the page of all macros in Markdown."""
  lines = [_PAGE]
  for group, table in GROUPS.items():
    lines += [f'## {group}', '', '| macro | value | meaning |', '|---|---|---|']
    for name, macro in table.items():
      meaning = macro.meaning
      if macro.none:
        meaning += f' `None`: {macro.none}.'
      lines.append(f'| `{name}` | {macro} | {meaning} |')
    lines.append('')
  return '\n'.join(lines).rstrip() + '\n'


if __name__ == '__main__':
  print(page(), end='')
