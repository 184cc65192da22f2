"""The chat template of a tokenizer, rendered as transformers renders it.

    template = chat_template.read('/models/smollm2', vocabulary)
    text = template.render([{'role': 'user', 'content': 'Hi'}], ask=True)

A template is a program in Jinja that comes with the model. It runs in Jinja's
sandbox, where it can read the conversation and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import datetime
import functools
import hashlib
import json
from typing import Any

from etils import epath
from etils import epy
import jinja2
from jinja2 import ext
from jinja2 import nodes
from jinja2 import sandbox

from ipo_md.core import identity
from ipo_md.core import paths
from ipo_md.core import progress
from ipo_md.core import row_files
from ipo_md.core import types

with epy.lazy_imports():
  from ipo_md.data import hf_vocabulary

_SETTING = 'CHAT_TEMPLATE'
_JINJA = 'chat_template.jinja'
_CONFIG = 'tokenizer_config.json'
_TOKENS_MAP = 'special_tokens_map.json'
_TOKENS = tuple(
  f'{name}_token' for name in ('bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask')
)
# Names under which data sets hold the reasoning before an answer.
_REASONING = ('reasoning_content', 'thinking', 'reasoning')

Message = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """A chat template and the values that it can read.

  Attributes:
    path: File that holds the template, for messages.
    source: Text of the template.
    tokens: Special tokens by the names that a template uses, such as
      'bos_token'.
    date: Date that the template sees as today's, or None for the real one.
    arguments: Further values, such as {'enable_thinking': False}.
  """

  path: str
  source: str
  tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
  date: datetime.date | None = None
  arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def digest(self) -> str:
    """A text that differs if the template renders another text."""
    dated = 'strftime_now' in self.source
    today = self.date or (datetime.date.today() if dated else '')
    read = [self.source, dict(self.tokens), str(today), dict(self.arguments)]
    text = json.dumps(read, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  @functools.cached_property
  def _compiled(self) -> jinja2.Template:
    environment = _environment()
    environment.globals['strftime_now'] = self._now
    try:
      return environment.from_string(self.source)
    except jinja2.TemplateSyntaxError as error:
      raise ValueError(
        f'{_SETTING} {self.path}, line {error.lineno}: {error.message}'
      ) from None

  def _now(self, form: str) -> str:
    if self.date is not None:
      return self.date.strftime(form)
    _warn_of_the_date(self.path)
    return datetime.datetime.now().strftime(form)

  def render(self, messages: Sequence[Message], *, ask: bool) -> str:
    """Returns the text of a conversation.

    Args:
      messages: Turns with at least a `role` and a `content`.
      ask: Whether the text ends with what asks the model for its turn.

    Raises:
      BadRow: The template refuses the conversation.
    """
    try:
      return self._compiled.render(
        messages=[_with_reasoning(m) for m in messages],
        tools=None,
        documents=None,
        add_generation_prompt=ask,
        **{**self.tokens, **self.arguments},
      )
    except (
      jinja2.TemplateError,
      ArithmeticError,
      AttributeError,
      LookupError,
      RecursionError,
      TypeError,
      ValueError,
    ) as error:
      reason = ' '.join(str(error).split()) or type(error).__name__
      raise row_files.BadRow(
        f'the chat template {self.path} refuses it: {reason}'
      ) from None


@functools.cache
def _warn_of_the_date(path: str) -> None:
  progress.say(
    f'Warning: the chat template {path} writes the date of today into a '
    'prompt, so a run on another day reads other prompts. State a date with '
    'CHAT_DATE = "2026-01-31".'
  )


def _with_reasoning(message: Message) -> Message:
  """Gives the reasoning of a turn under the names that templates read."""
  found = [message[k] for k in _REASONING if message.get(k) is not None]
  if not found:
    return message
  return {'thinking': found[0], **message, 'reasoning_content': found[0]}


def _environment() -> jinja2.Environment:
  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[ext.loopcontrols, _generation_tag()],
  )
  environment.filters['tojson'] = _to_json
  environment.globals['raise_exception'] = _refuse
  return environment


@functools.cache
def _generation_tag() -> type[ext.Extension]:
  """Returns an extension for {% generation %}, which changes no text."""

  class Generation(ext.Extension):
    tags = {'generation'}

    def parse(self, parser: Any) -> Any:
      line = next(parser.stream).lineno
      body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
      return nodes.Scope(body).set_lineno(line)

  return Generation


def _refuse(message: str) -> None:
  raise jinja2.TemplateError(message)


def _to_json(
  value: Any,
  ensure_ascii: bool = False,
  indent: int | None = None,
  separators: tuple[str, str] | None = None,
  sort_keys: bool = False,
) -> str:
  """Writes JSON as it is; Jinja's own filter escapes it for HTML."""
  return json.dumps(
    value,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


def text(path: str) -> str:
  """Returns the text of a template; see `read`."""
  return _source(path)[1]


def read(
  path: str,
  vocabulary: types.Vocabulary,
  *,
  date: str | None = None,
  arguments: Mapping[str, Any] | None = None,
) -> ChatTemplate:
  """Reads a template.

  Args:
    path: CHAT_TEMPLATE: a folder of a tokenizer, a file in it such as
      tokenizer.json, or the file of a template.
    vocabulary: Vocabulary of the model. Its special tokens are read if no
      tokenizer_config.json names them.
    date: CHAT_DATE, as 'YYYY-MM-DD', or None for the date of today.
    arguments: Further values for the template.

  Raises:
    ValueError: There is no template, the date is none, or the vocabulary is
      not that of a tokenizer.json.
  """
  if not isinstance(vocabulary, hf_vocabulary.TokenizerVocabulary):
    raise ValueError(
      f'{_SETTING} {path} needs the tokenizer.json that it was written for: '
      'set VOCABULARY to @data.tokenizer_vocabulary(), or set '
      f'{_SETTING} to None.'
    )
  file, source = _source(path)
  folder = file.parent
  if not (folder / _CONFIG).exists():
    folder = epath.Path(vocabulary.path).parent
  template = ChatTemplate(
    path=str(file),
    source=source,
    tokens=_tokens(folder, vocabulary),
    date=_date(date),
    arguments=dict(arguments or {}),
  )
  _ = template._compiled  # raises if it cannot be parsed
  return template


def identify(path: str, name: str) -> identity.Identity | None:
  """Identifies the bytes of a template and of the special tokens it reads."""
  place = epath.Path(paths.absolute(path, name))
  if not place.exists():
    return None
  digest, files = hashlib.sha256(), []
  folder = place if place.is_dir() else place.parent
  if place.suffix == '.jinja':
    files.append(place)
  files += [folder / n for n in (_JINJA, _CONFIG, _TOKENS_MAP)]
  for file in files:
    if file.exists():
      digest.update(f'{file.name}\n'.encode() + file.read_bytes())
  return identity.Identity(path=str(place), digest=digest.hexdigest()[:16])


def _source(path: str) -> tuple[epath.Path, str]:
  """Returns the file of a template, and its text."""
  place = epath.Path(paths.absolute(path, _SETTING))
  if not place.exists():
    raise ValueError(f'There is no file or folder {place} ({_SETTING}).')
  if not place.is_dir() and place.suffix != '.json':
    return place, _text(place)
  folder = place if place.is_dir() else place.parent
  if (folder / _JINJA).exists():
    return folder / _JINJA, _text(folder / _JINJA)
  if (folder / _CONFIG).exists():
    found = _json(folder / _CONFIG).get('chat_template')
    if isinstance(found, list):
      named = {t.get('name'): t.get('template') for t in found}
      if 'default' not in named:
        raise ValueError(
          f'{folder / _CONFIG} ({_SETTING}) has the chat templates '
          f"{sorted(map(str, named))}, but none named 'default'. Write the "
          f'right one to a file and name it with {_SETTING}.'
        )
      found = named['default']
    if isinstance(found, str):
      return folder / _CONFIG, found
  raise ValueError(
    f'{folder} ({_SETTING}) has no chat template: neither {_JINJA} nor '
    f'chat_template in {_CONFIG}. Name the file of a template with {_SETTING}, '
    f'or set {_SETTING} to None and state a prefix and a suffix, as '
    'gin/chat/chatml.gin does. A model that was not trained on conversations '
    f'needs {_SETTING} = None alone.'
  )


def _text(file: epath.Path) -> str:
  try:
    return file.read_text()
  except UnicodeDecodeError as error:
    raise ValueError(f'{file} ({_SETTING}) is not UTF-8: {error}.') from None


def _json(file: epath.Path) -> Mapping[str, Any]:
  try:
    found = json.loads(_text(file))
  except json.JSONDecodeError as error:
    raise ValueError(f'{file} ({_SETTING}) is not JSON: {error}.') from None
  if not isinstance(found, dict):
    raise ValueError(f'{file} ({_SETTING}) is not an object of JSON.')
  return found


def _tokens(
  folder: epath.Path, vocabulary: hf_vocabulary.TokenizerVocabulary
) -> dict[str, str]:
  """Returns the special tokens that a template can name."""
  files = [folder / n for n in (_TOKENS_MAP, _CONFIG)]
  files = [file for file in files if file.exists()]
  if not files:
    ends = {'bos_token': vocabulary.bos_id, 'eos_token': vocabulary.eos_id}
    special = vocabulary.special_tokens
    return {k: special[i] for k, i in ends.items() if i in special}
  found = {}
  for file in files:
    config = _json(file)
    for name in _TOKENS:
      value = config.get(name)
      if isinstance(value, dict):
        value = value.get('content')
      if isinstance(value, str):
        found[name] = value
  return found


def _date(date: str | None) -> datetime.date | None:
  if date is None:
    return None
  try:
    return datetime.date.fromisoformat(date)
  except (TypeError, ValueError):
    raise ValueError(
      f"CHAT_DATE = {date!r} has to be a date such as '2026-01-31', or None."
    ) from None
