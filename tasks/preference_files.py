"""Tasks on preference files, with one prompt per row.

  pairs       prompt, chosen, rejected         -> targets [2, T], preference 1
  rewards     prompt, completions[], scores[]  -> targets [K, T], rewards [K]
  supervised  either, or prompt, completion,   -> targets [T], the best one
              or messages

A prompt is a text or a list of messages. A completion is a text, or a list of
messages whose last one is of the assistant; those before it are the prompt, and
`prompt` may be absent or repeat them (as in ultrafeedback_binarized). Only a
chat template reads a prompt of several turns; without one it is a bad row. A
gin file binds one of the three as the task:

  PREFERENCE_TASK = @preference_files.pairs()
  preference_files.pairs.files = {'train': 'a.jsonl', 'validation': 'b.jsonl'}
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import hashlib
from typing import Any

import seqio

from ipo_md.core import identity
from ipo_md.core import paths
from ipo_md.data import conversations
from tasks.lib import json_lines
from tasks.lib import text_tasks

Message = conversations.Message


@identity.reads(files=identity.of_file)
def pairs(*, files: Mapping[str, str], max_bad_rows: int = 0) -> str:
  """Registers a task of pairs, rows of `prompt, chosen, rejected`.

  Args:
    files: The path of each split.
    max_bad_rows: MAX_BAD_ROWS, the number of bad rows of a split that are left
      out and listed before reading fails.

  Returns:
    The name of the task.
  """
  return _add(
    f'preference_pairs_{_digest(files, max_bad_rows)}',
    _source(files, _pair, text_tasks.PREFERENCE, max_bad_rows),
    scores=['preference'],
    targets_rank=2,
  )


@identity.reads(files=identity.of_file)
def rewards(*, files: Mapping[str, str], k: int, max_bad_rows: int = 0) -> str:
  """Registers a task of rewards, rows of `prompt, completions, scores`.

  Args:
    files: The path of each split.
    k: K, the number of completions. A row of 2 to K completions is padded with
      masked ones. Any other number is a bad row.
    max_bad_rows: MAX_BAD_ROWS, the number of bad rows of a split that are left
      out and listed before reading fails.

  Returns:
    The name of the task.
  """
  return _add(
    f'preference_rewards_{_digest(files, k, max_bad_rows)}',
    _source(
      files, lambda row: _scored(row, k), text_tasks.REWARDS, max_bad_rows
    ),
    preprocessors=[text_tasks.exactly(k)],
    scores=['rewards'],
    targets_rank=2,
  )


@identity.reads(files=identity.of_file)
def supervised(*, files: Mapping[str, str], max_bad_rows: int = 0) -> str:
  """Registers a task of the chosen or best-scored completions.

  Args:
    files: The path of each split, in either format.
    max_bad_rows: MAX_BAD_ROWS, the number of bad rows of a split that are left
      out and listed before reading fails.

  Returns:
    The name of the task.
  """
  name = f'preference_supervised_{_digest(files, max_bad_rows)}'
  source = _source(files, _best, text_tasks.SUMMARY, max_bad_rows)
  return _add(name, source, targets_rank=1)


def _source(
  files: Mapping[str, str],
  parse: Callable[[dict[str, Any]], dict[str, Any]],
  signature: Mapping[str, Any],
  max_bad_rows: int,
) -> text_tasks.Source:
  files = {
    split: paths.absolute(
      path, f'PREFERENCE_FILES[{split!r}] ({split.upper()}_FILE)'
    )
    for split, path in files.items()
  }

  def rows(split: str) -> text_tasks.Rows:
    return text_tasks.rows_of_files(
      [files[split]], parse, max_bad_rows=max_bad_rows
    )

  return text_tasks.Source(
    rows,
    files=lambda split: [files[split]],
    signature=signature | text_tasks.CONVERSATION,
    splits=list(files),
    max_bad_rows=max_bad_rows,
  )


def _add(name: str, source: text_tasks.Source, **kwargs: Any) -> str:
  if name not in seqio.TaskRegistry.names():
    text_tasks.add_task(name, source, **kwargs)
  return name


def _digest(files: Mapping[str, str], *settings: int) -> str:
  text = repr((sorted(files.items()), settings))
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def _pair(row: dict[str, Any]) -> dict[str, Any]:
  _check_paired(row)
  prompt, (chosen, rejected) = _conversation(row, ('chosen', 'rejected'))
  return prompt | {'completions': [chosen, rejected], 'preference': 1.0}


def _best(row: dict[str, Any]) -> dict[str, Any]:
  for name in ('chosen', 'completion'):
    if row.get(name) is not None:
      prompt, (text,) = _conversation(row, (name,))
      return prompt | {'targets': text}
  if row.get('messages') is not None:
    messages = conversations.messages_of(row, 'messages')
    text = _last(messages, 'messages')
    return _inputs(conversations.prompt_of(row), 'messages') | {'targets': text}
  _check_paired(row)
  scored = _scored(row)
  best = scored['rewards'].index(max(scored['rewards']))
  text = scored.pop('completions')[best]
  del scored['rewards']
  return scored | {'targets': text}


def _scored(row: dict[str, Any], k: int | None = None) -> dict[str, Any]:
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
