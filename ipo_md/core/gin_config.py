"""Reads gin files and bindings, and refuses what gin would ignore."""

import ast
from collections.abc import Sequence
import difflib
import pathlib
import re
import sys
import tokenize

import gin

from ipo_md.core import macros
from ipo_md.core import private_apis

# Folders whose files set what run files leave open.
_AXES = ('models', 'tasks', 'judges', 'algorithms')

# A path: /a, ./a, ../a, ~/a, a/b or scheme://a, perhaps with :best behind it.
_PATH = re.compile(
  r'(?:~|/|\.{1,2}/|[A-Za-z_][\w.+-]*/|[a-z][a-z0-9]*://)[\w./+:=,~-]*'
)

_given: dict[str, Sequence[str]] = {'files': (), 'bindings': ()}

_WORD = re.compile(r'[A-Za-z_][\w.+-]*')
_EXPRESSION = re.compile(r'[\w)\]] *[*/+-]')
_SYNTAX = (
  'A value is a literal (a text in quotes), an @reference or a %MACRO, not an '
  'expression: write (0.0, 0.0) for (0.0,) * 2.'
)


def root() -> pathlib.Path:
  """Returns the folder that holds `gin` and `tasks`.

  In a checkout it is the checkout itself, in an installed wheel a folder of the
  package.
  """
  package = pathlib.Path(__file__).resolve().parents[1]
  bundled = package / 'bundled'
  return bundled if (bundled / 'gin').is_dir() else package.parent


def add_root() -> None:
  """Lets gin find the files of `gin`, and Python the modules of `tasks`."""
  gin.add_config_file_search_path(str(root()))
  if str(root()) not in sys.path:
    sys.path.append(str(root()))


def rewrite_gin_args(args: Sequence[str]) -> list[str]:
  """Turns --gin.NAME=VALUE into --gin_bindings=NAME = VALUE, as T5X does.

  A text needs no quotes if NAME is a macro that takes a text (see
  `macros`) or VALUE looks like a path (/a, ./a, ~/a, a/b, gs://a). What
  starts as another value, or is one, is left to gin.

    rewrite_gin_args(['--gin.MODEL_DIR=/tmp/x'])
    == ['--gin_bindings=MODEL_DIR = "/tmp/x"']

  Args:
    args: Arguments of the command line.

  Raises:
    SystemExit: A value is missing. absl would not say what to write instead.
  """
  out = []
  for arg in args:
    for prefix in ('--gin.', '-gin.'):
      if arg.startswith(prefix):
        name, equals, value = arg[len(prefix) :].partition('=')
        if not equals or not value.strip():
          raise SystemExit(f'ipo_md: {arg}: write --gin.{name}=VALUE.')
        if _PATH.fullmatch(value) or (
          macros.takes_text(name) and not _is_value(value)
        ):
          value = repr(value)
        arg = f'--gin_bindings={name} = {value}'
        break
    out.append(arg)
  return out


def _is_value(text: str) -> bool:
  """Returns whether a text is a value for gin, or starts like one."""
  if text.lstrip()[0] in '\'"([{@%':
    return True
  try:
    ast.literal_eval(text.strip())
  except (ValueError, SyntaxError):
    return False
  return True


def find(path: str) -> str:
  """Returns a gin file's path; 'runs/x.gin' is looked for in `gin` as well."""
  if not pathlib.Path(path).exists() and (root() / 'gin' / path).is_file():
    return str(root() / 'gin' / path)
  return path


def given() -> tuple[Sequence[str], Sequence[str]]:
  """Returns the files and the bindings that were parsed last."""
  return _given['files'], _given['bindings']


def run_files() -> list[str]:
  """Returns the names of the run files that a user may give."""
  texts = {
    p: p.read_text() for p in sorted((root() / 'gin/runs').glob('*.gin'))
  }
  included = {
    name
    for text in texts.values()
    for name in re.findall(r"^include 'gin/runs/(\w+)", text, re.MULTILINE)
  }
  return [
    path.stem
    for path, text in texts.items()
    if path.stem not in included or re.search(r'^RUN = ', text, re.MULTILINE)
  ]


def parse(files: Sequence[str], bindings: Sequence[str]) -> None:
  """Parses gin files, then bindings.

  Args:
    files: Paths of gin files; later ones override earlier ones.
    bindings: Bindings of the command line, such as 'TAU = 0.1'.

  Raises:
    ValueError: Something cannot be read, is set and unused, or is not set.
  """
  _given.update(files=files, bindings=bindings)
  try:
    gin.parse_config_files_and_bindings(
      [find(file) for file in files], list(bindings), finalize_config=False
    )
  except SyntaxError as error:
    raise ValueError(_unreadable(error)) from error
  except tokenize.TokenError as error:
    last = bindings[-1] if bindings else files[-1]
    raise ValueError(
      f'A bracket is left open in {last}, or before it.'
    ) from error
  except (AttributeError, ImportError, NameError, ValueError) as error:
    raise ValueError(_on_one_line(str(error))) from error
  check_macros(bindings)
  macros.check()
  gin.finalize()


def _unreadable(error: SyntaxError) -> str:
  """Returns what gin cannot read, and what to write instead, as one line."""
  line = (error.text or '').strip()
  place = f'{error.filename}, line {error.lineno}: ' if error.filename else ''
  reason = (error.msg or '').splitlines()[0].removesuffix('.')
  name, equals, value = line.partition('=')
  name = name.strip()
  if not equals:
    return f'{place}{reason}: {line}'
  if name not in macros.TABLE:
    hint = _SYNTAX
    if _WORD.fullmatch(value.strip()):
      hint = f'A text needs quotes here: {name} = {value.strip()!r}.'
    return f'{place}{line} cannot be read. {hint}'
  hint = f' {_SYNTAX}' if _EXPRESSION.search(value) else ''
  return f'{place}{line}: {name} must be {macros.TABLE[name]}.{hint}'


def _on_one_line(text: str) -> str:
  """Joins the lines that gin writes about a place in a file or binding."""
  text = re.sub(r'\n *\^ *$', '', text)
  text = re.sub(r'\n *(In [^\n]* line \d+)\n *', r' \1: ', text)
  return re.sub(r'\n *', ' ', text)


def check_macros(bindings: Sequence[str]) -> None:
  """Refuses a macro that nothing refers to, and a reference to an unset one.

  gin accepts a misspelt macro in silence, and a sweep over it is N identical
  runs. A macro of a gin file may be there for other runs, so any gin file may
  refer to it.

  Args:
    bindings: Bindings of the command line. This run must use what they set.

  Raises:
    ValueError: Names the macro, and those with a similar name.
  """
  bound = private_apis.bound_macros()
  given = {b.partition('=')[0].strip() for b in bindings}
  used = {'RUN'} | {
    '/'.join(reference.scopes)
    for reference in private_apis.references()
    if reference.selector == 'gin.macro'
  }
  known, setters = set(used), {}
  for path in sorted((root() / 'gin').rglob('*.gin')):
    known |= set(re.findall(r'%(\w+)', path.read_text()))
    for name in re.findall(r'^([A-Z_]+) =', path.read_text(), re.MULTILINE):
      if path.parent.name in _AXES or name == 'RUN':
        setters[name] = f' (by a file of gin/{path.parent.name})'
  for name in sorted(bound - used):
    if name in given or name not in known:
      near = difflib.get_close_matches(name.upper(), sorted(used), n=3)
      raise ValueError(
        f'{name} is set, but nothing in this run refers to it.'
        + (f' Did you mean {" or ".join(near)}?' if near else '')
      )
  if missing := [n + setters.get(n, '') for n in sorted(used - bound)]:
    raise ValueError(
      f'Not set, but needed: {", ".join(missing)}. Set it with '
      '--gin.NAME=VALUE or a gin file.'
    )
