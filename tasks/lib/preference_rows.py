"""Rows of preference files as examples of tasks.

Each function takes a row and raises a BadRow if it cannot be used.
"""

from collections.abc import Sequence
from typing import Any

from ipo_md.data import conversations
from tasks.lib import json_lines

Message = conversations.Message


def pair(row: dict[str, Any]) -> dict[str, Any]:
  """Returns the example of a row of prompt, chosen and rejected."""
  _check_paired(row)
  prompt, (chosen, rejected) = _conversation(row, ('chosen', 'rejected'))
  return prompt | {'completions': [chosen, rejected], 'preference': 1.0}


def best(row: dict[str, Any]) -> dict[str, Any]:
  """Returns the example of the one completion of a row that is imitated."""
  _check_paired(row)
  for name in ('chosen', 'completion'):
    if row.get(name) is not None:
      prompt, (text,) = _conversation(row, (name,))
      return prompt | {'targets': text}
  if row.get('messages') is not None:
    messages = conversations.messages_of(row, 'messages')
    text = _last(messages, 'messages')
    return _inputs(conversations.prompt_of(row), 'messages') | {'targets': text}
  found = scored(row)
  rewards, texts = found.pop('rewards'), found.pop('completions')
  return found | {'targets': texts[rewards.index(max(rewards))]}


def scored(row: dict[str, Any], k: int | None = None) -> dict[str, Any]:
  """Returns the example of a row of scored completions.

  Args:
    row: The parsed row.
    k: K, the most completions. None allows any number of them, one included.
  """
  if row.get('completions') is None and 'score_chosen' in row:
    names = ('chosen', 'rejected')
    prompt, texts = _conversation(row, names)
    scores = [json_lines.number(row, f'score_{name}') for name in names]
    return prompt | {'completions': texts, 'rewards': scores}
  completions = json_lines.field(row, 'completions', list)
  name = 'scores' if row.get('rewards') is None else 'rewards'
  scores = json_lines.field(row, name, list)
  if not completions:
    raise json_lines.BadRow("field 'completions' is empty")
  if k is not None and len(completions) < 2:
    raise json_lines.BadRow(
      "field 'completions' has 1, whose score has no other to compare with"
    )
  if k is not None and len(completions) > k:
    raise json_lines.BadRow(
      f"field 'completions' has {len(completions)}, more than k = {k}"
    )
  if len(scores) != len(completions):
    raise json_lines.BadRow(
      f'field {name!r} has {len(scores)} for {len(completions)} completions'
    )
  rows = range(len(completions))
  prompt, texts = _conversation(row, [f'completions.{i}' for i in rows])
  rewards = [json_lines.number(row, f'{name}.{i}') for i in rows]
  return prompt | {'completions': texts, 'rewards': rewards}


def _check_paired(row: dict[str, Any]) -> None:
  if 'label' in row and 'chosen' not in row and 'completions' not in row:
    raise json_lines.BadRow(
      "field 'label' marks one completion as good or bad. No objective here "
      'learns from such a row alone: write `chosen` and `rejected`, or '
      '`completions` and `scores`, for each prompt'
    )


def _inputs(messages: Sequence[Message], field: str) -> dict[str, Any]:
  return {
    'inputs': conversations.plain(messages),
    'conversation': conversations.write(messages, field),
  }


def _conversation(
  row: dict[str, Any], names: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
  """Reads the prompt of a row and its completions.

  A completion is a text, or the last turn of a list of messages. The turns
  before it are the prompt, or follow a `prompt` that they do not repeat.

  Args:
    row: The parsed row.
    names: Fields of the completions.

  Returns:
    The features of the prompt, and the texts of the completions.

  Raises:
    BadRow: The fields contradict each other, or are none of this.
  """
  before, texts = [], []
  for name in names:
    value = json_lines.field(row, name, (str, list))
    if isinstance(value, str):
      turns = None
      if row.get('prompt') is None:
        turns = conversations.transcript(value)
        if turns is None:
          raise json_lines.BadRow("field 'prompt' is missing")
    else:
      turns = conversations.messages_of(row, name)
    if turns is None:
      texts.append(value)
      before.append([])
    else:
      texts.append(_last(turns, name))
      before.append(turns[:-1])
  if row.get('prompt') is None:
    for name, turns in zip(names, before, strict=True):
      if _spoken(turns) != _spoken(before[0]):
        raise json_lines.BadRow(
          f"field 'prompt' is missing, and {name!r} has other turns before "
          f'the completion than {names[0]!r}'
        )
    row = {**row, 'prompt': before[0]}
    return _inputs(conversations.prompt_of(row), names[0]), texts
  prompt = conversations.prompt_of(row)
  for name, turns in zip(names, before, strict=True):
    longer = _joined(prompt, turns, name, isinstance(row['prompt'], str))
    if len(longer) > len(prompt):
      prompt, field = longer, name
      break
  else:
    field = 'prompt'
  for name, turns in zip(names, before, strict=True):
    if turns and _spoken(prompt[-len(turns) :]) != _spoken(turns):
      raise json_lines.BadRow(
        f'field {name!r} has other turns before the completion than {field!r}'
      )
  return _inputs(prompt, field), texts


def _joined(
  prompt: list[Message], turns: list[Message], name: str, is_text: bool
) -> list[Message]:
  """Returns the longer of a prompt and the turns before a completion.

  One must end with the other. A prompt that is a text may also be the first
  turn of the user alone.
  """
  if not turns:
    return prompt
  ours, theirs = _spoken(prompt), _spoken(turns)
  if ours[-len(theirs) :] == theirs:
    return prompt
  if theirs[-len(ours) :] == ours:
    return turns
  users = [said for said in theirs if said[0] == 'user']
  if is_text and len(ours) == 1 and users[:1] == ours:
    return turns
  if is_text and len(theirs) == 1 and users:
    raise json_lines.BadRow(
      f"field '{name}.0.content' is another text than `prompt`"
    )
  raise json_lines.BadRow(
    f'field {name!r} has other turns before the completion than `prompt`'
  )


def _spoken(turns: Sequence[Message]) -> list[tuple[str, str]]:
  return [(turn['role'], turn['content'].strip()) for turn in turns]


def _last(turns: Sequence[Message], name: str) -> str:
  """Returns the text of the last turn, which the assistant must have."""
  if not turns or turns[-1]['role'] != 'assistant':
    roles = ', '.join(turn['role'] for turn in turns) or 'none'
    raise json_lines.BadRow(
      f'field {name!r} has the turns {roles}. The last one must be of the '
      'assistant: it is the completion'
    )
  return turns[-1]['content']
