"""Conversations of a data set: lists of turns, each with a role and a text.

    [{'role': 'system', 'content': 'Be brief.'},
     {'role': 'user', 'content': 'Why is the sky blue?'}]

The plain form of a conversation is what a judge reads. That of a single turn of
the user is its text; that of several turns names the speaker of each:

    System: Be brief.

    User: Why is the sky blue?
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import json
import re
from typing import Any

from ipo_md.core import row_files

Message = Mapping[str, Any]

# Roles and texts as ShareGPT names them.
_SPEAKERS = {
  'human': 'user',
  'gpt': 'assistant',
  'chatgpt': 'assistant',
  'bing': 'assistant',
  'bard': 'assistant',
}
# Transcripts as in Anthropic's hh-rlhf.
_TRANSCRIPT = re.compile(r'\n\n(Human|Assistant):')
_UNREAD = ('tool_calls', 'function_call')


def of_prompt(text: str) -> list[Message]:
  """Returns the conversation of a prompt alone."""
  return [{'role': 'user', 'content': text}]


def plain(messages: Sequence[Message]) -> str:
  """Returns the plain form of a conversation."""
  if is_prompt(messages):
    return messages[0]['content']
  return '\n\n'.join(
    f'{m["role"].capitalize()}: {m["content"]}' for m in messages
  )


def is_prompt(messages: Sequence[Message]) -> bool:
  """Returns whether a conversation is a single turn of the user."""
  return len(messages) == 1 and messages[0]['role'] == 'user'


def messages_of(row: Any, path: str) -> list[Message]:
  """Reads a list of turns.

  Args:
    row: The parsed row.
    path: Field, as for `row_files.field`.

  Raises:
    BadRow: It is no list of turns with a role and a text.
  """
  turns = row_files.field(row, path, list)
  return [_message(row, f'{path}.{i}') for i in range(len(turns))]


def _message(row: Any, path: str) -> Message:
  turn = row_files.field(row, path, dict)
  turn = {k: v for k, v in turn.items() if v is not None}
  for name in _UNREAD:
    if turn.get(name):
      raise row_files.BadRow(f"field '{path}.{name}' is not supported")
    turn.pop(name, None)
  if 'from' in turn and 'role' not in turn:
    speaker = row_files.field(row, f'{path}.from', str)
    text = row_files.field(row, f'{path}.value', str)
    return {'role': _SPEAKERS.get(speaker, speaker), 'content': text}
  role = row_files.field(row, f'{path}.role', str)
  text = row_files.field(row, f'{path}.content', str)
  return turn | {'role': role, 'content': text}


def prompt_of(row: Mapping[str, Any]) -> list[Message]:
  """Returns the conversation that a row asks to be continued.

  It is `prompt`, a text or a list of turns, or else `messages` without a last
  turn of the assistant. A `system` text is put before it.

  Raises:
    BadRow: The row has none, or one that is empty.
  """
  if row.get('prompt') is None and row.get('messages') is not None:
    messages = messages_of(row, 'messages')
    if messages and messages[-1]['role'] == 'assistant':
      messages = messages[:-1]
    return _checked(messages, 'messages')
  for name in ('history', 'tools'):
    if row.get(name):
      raise row_files.BadRow(
        f'field {name!r} is not read: write all turns into `prompt` as a list '
        'of messages, or remove the field'
      )
  prompt = row_files.field(row, 'prompt', (str, list))
  if isinstance(prompt, str):
    messages = of_prompt(prompt)
  else:
    messages = messages_of(row, 'prompt')
  if row.get('system'):
    if messages and messages[0]['role'] == 'system':
      raise row_files.BadRow("field 'system' is there beside a system turn")
    system = row_files.field(row, 'system', str)
    messages = [{'role': 'system', 'content': system}, *messages]
  return _checked(messages, 'prompt')


def _checked(messages: list[Message], name: str) -> list[Message]:
  if not messages or not messages[-1]['content'].strip():
    raise row_files.BadRow(f'field {name!r} is empty')
  if messages[-1]['role'] == 'assistant':
    raise row_files.BadRow(
      f'field {name!r} ends with a turn of the assistant, so nothing asks for '
      'another one'
    )
  return messages


def transcript(text: str) -> list[Message] | None:
  """Reads '\\n\\nHuman: ...\\n\\nAssistant: ...', or returns None."""
  parts = _TRANSCRIPT.split(text)
  if len(parts) < 3 or parts[0].strip():
    return None
  roles = {'Human': 'user', 'Assistant': 'assistant'}
  return [
    {'role': roles[who], 'content': said.strip()}
    for who, said in zip(parts[1::2], parts[2::2], strict=True)
  ]


def write(messages: Sequence[Message], field: str) -> str:
  """Writes a conversation as a text that `read` reads.

  A single turn of the user is the empty text, because its plain form is whole.

  Args:
    messages: The conversation.
    field: Field of the row that it came from, for messages.
  """
  if is_prompt(messages):
    return ''
  return json.dumps({'field': field, 'messages': messages}, default=str)


def read(text: str) -> tuple[str, list[Message]]:
  """Returns the field and the conversation of `write`."""
  found = json.loads(text)
  return found['field'], found['messages']


def prompts_of(path: str, macro: str) -> Iterator[tuple[str, list[Message]]]:
  """Yields the place and the conversation of each prompt of a file.

  Args:
    path: Path of the file; see `row_files.prompts`.
    macro: Name of the gin macro of the path, for messages.

  Raises:
    ValueError: The file is absent, empty or unreadable, or a row has no prompt.
  """
  for place, prompt in row_files.prompts(path, macro, prompt_of):
    yield place, of_prompt(prompt) if isinstance(prompt, str) else prompt
