"""Reads gin files and bindings, and refuses what gin would ignore."""

from collections.abc import Sequence
import difflib
import io
import pathlib
import re
import tokenize

import gin

# Of the checkout: 'gin/runs/online.gin' is found from any folder.
ROOT = str(pathlib.Path(__file__).resolve().parents[2])

# Folders whose files set what run files leave open.
_AXES = ('models', 'tasks', 'judges', 'algorithms')


def rewrite_gin_args(args: list[str]) -> list[str]:
  """--gin.NAME=VALUE -> --gin_bindings=NAME = VALUE, as in T5X.

  Args:
    args: of the command line.

  Raises:
    SystemExit: there is no value; before absl could raise anything clearer.
  """
  out = []
  for arg in args:
    for prefix in ('--gin.', '-gin.'):
      if arg.startswith(prefix):
        name, equals, value = arg[len(prefix) :].partition('=')
        if not equals:
          raise SystemExit(f'ipo_md: {arg}: write --gin.{name}=VALUE.')
        arg = f'--gin_bindings={name} = {value}'
        break
    out.append(arg)
  return out


def parse(files: Sequence[str], bindings: Sequence[str]) -> None:
  """gin files, then bindings. A ValueError says what cannot be read."""
  for binding in bindings:
    check_keys(binding)
  try:
    gin.parse_config_files_and_bindings(files, bindings, finalize_config=False)
  except SyntaxError as error:
    place = f'{error.filename or "bindings"}, line {error.lineno}'
    raise ValueError(
      f'{place}: {error.msg} {(error.text or "").strip()}\n(A text needs '
      'quotes: --gin.MODEL_DIR="\'/tmp/x\'".)'
    ) from error
  except (AttributeError, ImportError, NameError) as error:
    raise ValueError(str(error)) from error
  check_macros(bindings)
  gin.finalize()


def check_keys(binding: str) -> None:
  """Refuses a key that a dictionary has twice, of which gin drops the first.

  Args:
    binding: such as "POLICIES = {'ipo': 'a', 'ipo': 'b'}".
  """
  open_ = []  # the keys so far of each bracket that is open
  last = ''
  try:
    for token in tokenize.generate_tokens(io.StringIO(binding).readline):
      if token.string in ('{', '[', '('):
        open_.append(set())
      elif token.string in ('}', ']', ')') and open_:
        open_.pop()
      elif token.string == ':' and open_:
        if last in open_[-1]:
          raise ValueError(f'{binding}: the name {last} is there twice.')
        open_[-1].add(last)
      last = token.string
  except (tokenize.TokenError, SyntaxError):
    pass  # gin says what is wrong with it


def check_macros(bindings: Sequence[str]) -> None:
  """Refuses a macro that nothing refers to: most likely it is misspelt.

  gin accepts it in silence, and a sweep over it is N identical runs. A macro of
  a gin file may be there for other runs, so any run file may refer to it. Then
  refuses a reference to a macro that nothing sets.

  Args:
    bindings: of the command line; what they set, this run must use.
  """
  config = gin.config._CONFIG  # pylint: disable=protected-access
  bound = {scope for scope, selector in config if selector == 'gin.macro'}
  given = {b.partition('=')[0].strip() for b in bindings}
  macro = gin.get_configurable('gin.macro')
  references = gin.config.iterate_references(config, to=macro)
  used = {'/'.join(r.scopes) for r in references} | {'RUN'}
  known, setters = set(used), {}
  for path in sorted(pathlib.Path(ROOT, 'gin').rglob('*.gin')):
    known |= set(re.findall(r'%(\w+)', path.read_text()))
    for name in re.findall(r'^([A-Z_]+) =', path.read_text(), re.MULTILINE):
      if path.parent.name in _AXES or name == 'RUN':
        setters[name] = f' (by a file of gin/{path.parent.name})'
  for name in sorted(bound - used):
    if name in given or name not in known:
      near = difflib.get_close_matches(name, sorted(used), n=3)
      raise ValueError(
        f'{name} is set, but nothing in this run refers to it.'
        + (f' Did you mean {" or ".join(near)}?' if near else '')
      )
  if missing := [n + setters.get(n, '') for n in sorted(used - bound)]:
    raise ValueError(
      f'Not set, but needed: {", ".join(missing)}. Set it with '
      '--gin.NAME=VALUE or a gin file.'
    )
